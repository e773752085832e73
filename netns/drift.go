package netns

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"meshnet/plan"
)

const (
	// driftWait gathers what belongs to one event: a device that goes says so several times.
	driftWait = 50 * time.Millisecond
	// watchRetry is how long to wait before netlink is listened to again after a failure.
	watchRetry = time.Second
	// pollEvery is how often the firewalls are looked at of which nobody tells.
	pollEvery = 5 * time.Second
	// watchBuffer is the receive buffer of a subscription, bytes; the system may allow less.
	// When it overflows the subscription is made anew, and everything is looked at.
	watchBuffer = 1 << 20
)

// watched is what the devices of a plan, and the addresses of one interface, were like. Immutable.
type watched struct {
	host    *plan.Host
	names   map[string]bool
	device  string       // the interface whose addresses count
	index   int          // of device; zero: it is not there
	gateway int          // index of the gateway's end; zero: it is not there
	all     map[int]bool // the indexes of the devices and of the interface
	boxes   map[int]bool // the numbers of the namespaces that veths lead to
	was     string
}

// look notes what the devices of a plan are like now, and which namespaces belong to it.
func look(h *plan.Host, boxes map[int]bool) (*watched, error) {
	names, device := names(h), h.Device
	w := &watched{host: h, names: names, device: device, all: make(map[int]bool), boxes: boxes}
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
		if h.Gateway != nil && a.Name == h.Gateway.Name {
			w.gateway = a.Index
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

// compare looks whether something differs from what Apply left, and tells. Our own changes raise
// events too and do not count.
func (l *Links) compare(c changed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last.Load()
	if last == nil {
		return
	}
	differs := false
	if c.links || c.everything {
		now, err := look(last.host, last.boxes)
		differs = err != nil || now.was != last.was
		if err == nil {
			// A difference is told once. What cannot be read is told too, and then waits for the next Apply.
			l.last.Store(now)
		}
	}
	if l.differs(c, last.host) || differs {
		l.signal()
	}
}

// differs reads what may have changed and compares it with the plan, without changing anything.
func (l *Links) differs(c changed, h *plan.Host) bool {
	r, err := l.begin(h)
	if err != nil {
		return true
	}
	defer r.close()
	r.looking = true
	if c.gateway || c.everything {
		l.mirror.set(&l.mirror.gateway, false)
		err := r.gateway(h.Gateway)
		l.mirror.set(&l.mirror.gateway, err == nil)
		r.fail(err)
	}
	if c.firewall || c.everything {
		l.mirror.set(&l.mirror.firewall, false)
		err := r.wall(h)
		l.mirror.set(&l.mirror.firewall, err == nil)
		r.fail(err)
	}
	for _, group := range bySandbox(h.Links) {
		host, ok := r.have[group[0].Name]
		if !c.everything && (!ok || !c.boxes[host.Attrs().NetNsID]) {
			continue
		}
		delete(l.clean, group[0].Sandbox)
		before := len(r.errs)
		r.sandbox(group)
		if len(r.errs) == before && len(r.found.Gone) == 0 {
			continue
		}
		return true
	}
	return len(r.errs) > 0
}

func (l *Links) signal() {
	select {
	case l.drift <- struct{}{}:
	default: // one is waiting already
	}
}
