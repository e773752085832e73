package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// driftWait gathers what belongs to one event: a device that goes says so several times.
	driftWait = 50 * time.Millisecond
	// watchRetry is how long to wait before netlink is listened to again after a failure.
	watchRetry = time.Second
	// watchBuffer is the receive buffer of a subscription, bytes; the system may allow less.
	// When it overflows the subscription is made anew, and everything is looked at.
	watchBuffer = 1 << 20
)

var errClosed = errors.New("the kernel closed the subscription")

// watched is what some devices, and the addresses of one interface, were like. Immutable.
type watched struct {
	names  map[string]bool
	device string       // the interface whose addresses count
	index  int          // of device; zero: it is not there
	all    map[int]bool // the indexes of the devices and of the interface
	was    string
}

// look notes what the devices with these names are like now.
func look(names map[string]bool, device string) (*watched, error) {
	w := &watched{names: names, device: device, all: make(map[int]bool)}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var b strings.Builder
	for _, link := range links { // the kernel lists what did not change in the same order
		a := link.Attrs()
		if a.Name == device {
			w.index = a.Index
			w.all[a.Index] = true
		}
		if names[a.Name] {
			w.all[a.Index] = true
			fmt.Fprintf(&b, "%d %s %s mtu %d up %t\n", a.Index, a.Name, a.Alias, a.MTU, a.Flags&net.FlagUp != 0)
		}
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if w.index != 0 && a.LinkIndex == w.index {
			fmt.Fprintf(&b, "%s\n", a.IPNet)
		}
	}
	w.was = fmt.Sprintf("%sunderlay %d\n", b.String(), w.index)
	return w, nil
}

// concerns reports whether a change of a link may be of interest.
func (w *watched) concerns(a *netlink.LinkAttrs) bool {
	return w != nil && (w.names[a.Name] || w.all[a.Index] || a.Name == w.device)
}

// watch delivers drift until ctx ends.
func (l *Links) watch(ctx context.Context) {
	for {
		err := l.subscribe(ctx)
		if ctx.Err() != nil {
			return
		}
		l.log.Warn("changes of devices are not seen for a moment", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchRetry):
		}
	}
}

// subscribe listens to netlink until ctx ends or it fails.
func (l *Links) subscribe(ctx context.Context) error {
	links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	done := make(chan struct{})
	failed := make(chan error, 1)
	tell := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{
		ErrorCallback: tell, ReceiveBufferSize: watchBuffer,
	})
	if err != nil {
		close(done)
		return fmt.Errorf("subscribe to devices: %w", err)
	}
	defer drain(links)
	err = netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{
		ErrorCallback: tell, ReceiveBufferSize: watchBuffer,
	})
	if err != nil {
		close(done)
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	defer drain(addrs)
	defer close(done)
	timer := time.NewTimer(0) // also after a failure: what was missed is not known
	defer timer.Stop()
	waiting := true
	wait := func() {
		if !waiting {
			waiting = true
			timer.Reset(driftWait)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case u, ok := <-links:
			if !ok {
				return errClosed
			}
			if l.last.Load().concerns(u.Attrs()) {
				wait()
			}
		case u, ok := <-addrs:
			if !ok {
				return errClosed
			}
			if w := l.last.Load(); w != nil && u.LinkIndex == w.index {
				wait()
			}
		case <-timer.C:
			waiting = false
			l.compare()
		}
	}
}

// drain empties a channel until its sender has closed it.
func drain[T any](c <-chan T) {
	for range c {
	}
}

// compare looks whether something differs from what Apply left, and tells. Our own changes raise
// events too and do not count.
func (l *Links) compare() {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last.Load()
	if last == nil {
		return
	}
	now, err := look(last.names, last.device)
	if err == nil && now.was == last.was {
		return
	}
	// A difference is told once. What cannot be read is told too, and then waits for the next Apply.
	l.last.Store(now)
	l.signal()
}

func (l *Links) signal() {
	select {
	case l.drift <- struct{}{}:
	default: // one is waiting already
	}
}
