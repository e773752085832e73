package netns

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshnet/netns/nstest"
)

// TestWatchUnderlay: a change of the underlay's addresses, MTU or existence is told, one of another
// device is not, until there is no underlay: then all are.
func TestWatchUnderlay(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	device := func(name string) netlink.Link {
		l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l)); err != nil {
			t.Fatal(err)
		}
		return l
	}
	address := func(s string) *netlink.Addr {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	u, other := device("u0"), device("o0")
	calls := make(chan struct{}, 100)
	there := true
	errDone := errors.New("done")
	ended := make(chan error, 1)
	result := make(chan error, 100)
	go func() {
		ended <- WatchUnderlay(t.Context(), u.Attrs().Index, func() (bool, error) {
			calls <- struct{}{}
			err := <-result
			return there, err
		})
	}()
	told := func(what string, want bool) {
		t.Helper()
		select {
		case <-calls:
			if !want {
				t.Fatalf("%s was told", what)
			}
		case <-time.After(map[bool]time.Duration{true: 5 * time.Second, false: 4 * changeWait}[want]):
			if want {
				t.Fatalf("%s was not told", what)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	told("the beginning", true)
	result <- nil
	must(netlink.AddrAdd(other, address("192.0.2.9/24")))
	told("an address of another device", false)
	must(netlink.AddrAdd(u, address("198.51.100.1/24")))
	told("an address", true)
	result <- nil
	must(netlink.LinkSetMTU(u, 1400))
	told("the MTU", true)
	there = false
	result <- nil
	must(netlink.AddrAdd(other, address("192.0.2.10/24")))
	told("an address of another device while there is no underlay", true)
	result <- nil
	must(netlink.LinkDel(u))
	told("the end of the device", true)
	result <- errDone
	select {
	case err := <-ended:
		if !errors.Is(err, errDone) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it does not end")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WatchUnderlay(ctx, 1, func() (bool, error) { return true, nil }); err != nil {
		t.Error(err)
	}
}
