package netns_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"meshnet/netns"
	"meshnet/netns/nstest"
	"meshnet/plan"
)

// faultyPlan has two links into one container, one into another, and a device.
func faultyPlan(one, two plan.Sandbox) *plan.Host {
	h := host([]plan.Link{link(5, one), link(6, one), link(7, two)}, device(2))
	h.Links[1].IfName = "net0"
	h.Firewall = plan.Firewall{On: true, Port: 14789, Peers: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	return h
}

// TestFaults lets a system call of each kind fail at each step of an Apply (strace's fault injection, in a
// process of its own, which may end of it). Afterwards what the plan wants can be had, or taken back,
// and nothing is left.
func TestFaults(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("MESHNET_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip("strace is not installed: ", err)
	}
	one, two := box(t, "one"), box(t, "two")
	whole := faultyPlan(one, two)
	failed := 0
	for call, steps := range map[string]int{"sendto": 14, "ioctl": 8, "write": 8} {
		for n := 1; n <= steps; n++ {
			cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:error=ENOBUFS:when=%d", call, n),
				os.Args[0], "-test.run=^TestFaultyApply$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("NETNS_TEST_FAULTS=%d %d", one.Inode, two.Inode))
			out, err := cmd.CombinedOutput()
			if err != nil {
				failed++
			}
			l := newLinks(t)
			if n%2 == 0 {
				if _, found, err := l.Apply(t.Context(), whole); err != nil || len(found.IfNames) != 3 {
					t.Fatalf("after %s %d failed: %v %v\n%s", call, n, found.IfNames, err, out)
				}
				settled(t, l, whole)
			}
			none := host(nil)
			none.Firewall.Port = 14789
			apply(t, l, none)
			settled(t, l, none)
			if left := marked(t); len(left) > 0 {
				t.Fatalf("after %s %d failed, on the host: %q\n%s", call, n, left, out)
			}
			for _, b := range []plan.Sandbox{one, two} {
				if left := run(t, b, "ip", "-o", "link"); strings.Count(left, "\n") > 1 {
					t.Fatalf("after %s %d failed, in %s: %s\n%s", call, n, b.Path, left, out)
				}
			}
		}
	}
	t.Logf("%d applies failed", failed)
	if failed < 10 {
		t.Errorf("only %d applies failed", failed)
	}
}

// marked returns the names of the devices here that bear our mark.
func marked(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().Group == mark {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// TestFaultyApply is the process of TestFaults.
func TestFaultyApply(t *testing.T) {
	var one, two uint64
	if n, _ := fmt.Sscan(os.Getenv("NETNS_TEST_FAULTS"), &one, &two); n != 2 {
		return
	}
	l, err := netns.New(netns.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h := faultyPlan(plan.Sandbox{Path: "/run/netns/one", Inode: one}, plan.Sandbox{Path: "/run/netns/two", Inode: two})
	if _, _, err := l.Apply(t.Context(), h); err != nil {
		t.Error(err)
	}
}
