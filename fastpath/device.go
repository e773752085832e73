package fastpath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// aliasTwin begins the alias of both ends of a twin: our mark.
	aliasTwin = "meshnet:twin="
	// dumpTries is how often a list is asked for again that the kernel says was not of one moment.
	dumpTries = 10
)

// devices is the devices of the host: all, as of one moment, or those that were asked for.
type devices struct {
	links map[string]netlink.Link
	all   bool
	at    map[string]uint32 // indexes that were asked for; 0: none
	fd    int               // a socket to ask by; not if all
}

// readDevices reads all.
func readDevices() (*devices, error) {
	var links []netlink.Link
	var err error
	for range dumpTries {
		if links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	out := &devices{links: make(map[string]netlink.Link, len(links)), all: true, fd: -1}
	for _, l := range links {
		out.links[l.Attrs().Name] = l
	}
	return out, nil
}

// askDevices reads none yet: where most are known to be as they were, a list of all would cost more
// than all else. The caller closes it.
func askDevices() (*devices, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket to ask for devices: %w", err)
	}
	return &devices{links: map[string]netlink.Link{}, at: map[string]uint32{}, fd: fd}, nil
}

func (d *devices) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

// get returns a device by its name.
func (d *devices) get(name string) (netlink.Link, bool) {
	l, ok := d.links[name]
	if ok || d.all {
		return l, ok
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, false
	}
	d.links[name] = l
	return l, true
}

// made notes a device that was not there before.
func (d *devices) made(l netlink.Link) { d.links[l.Attrs().Name] = l }

// index returns the index of a device; 0: it is not there.
func (d *devices) index(name string) uint32 {
	if l, ok := d.links[name]; ok {
		return uint32(l.Attrs().Index)
	}
	if d.all {
		return 0
	}
	at, ok := d.at[name]
	if !ok {
		at = indexOf(d.fd, name)
		d.at[name] = at
	}
	return at
}

// indexOf asks the kernel for the index of a device (netdevice(7)); 0: it is not there.
func indexOf(fd int, name string) uint32 {
	ask, err := unix.NewIfreq(name)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ask) != nil {
		return 0
	}
	return ask.Uint32()
}

// up reports whether a device is there and up.
func (d *devices) up(name string) bool {
	l, ok := d.get(name)
	return ok && l.Attrs().Flags&net.FlagUp != 0
}

// indexes returns the names of devices by their indexes, of all.
func (d *devices) indexes() map[int]string {
	out := make(map[int]string, len(d.links))
	for name, l := range d.links {
		out[l.Attrs().Index] = name
	}
	return out
}

// carriers returns the devices that may carry our program, in the order of names: of all, those that
// bear a mark of ours; else those of the names.
func (d *devices) carriers(names iter.Seq[string]) []netlink.Link {
	if d.all {
		names = maps.Keys(d.links)
	}
	var out []netlink.Link
	for _, name := range slices.Sorted(names) {
		if l, ok := d.get(name); ok && ours(l) {
			out = append(out, l)
		}
	}
	return out
}

// ours reports whether a device bears a mark of meshnet, or may be the one of the switch's tunnels, on which
// programs of ours are, too.
func ours(l netlink.Link) bool {
	return strings.HasPrefix(l.Attrs().Alias, "meshnet") || strings.HasPrefix(l.Attrs().Name, "vxlan_sys_")
}

// twin makes both ends of a twin, with the MTU of the overlay, for Open vSwitch takes the size of
// segments from it; no IPv6 of their own, and up.
func (r *round) twin(t pair) error {
	r.path.spare(t.Slow, t.Port)
	if r.sound(t.Slow, t.mtu) && r.sound(t.Port, t.mtu) {
		return nil
	}
	for _, name := range []string{t.Slow, t.Port} {
		if l, ok := r.have.get(name); ok && (l.Type() != "veth" || l.Attrs().Alias != aliasTwin+t.device && l.Attrs().Alias != "") {
			return fmt.Errorf("make twin %s: a device of that name exists that meshnet did not make; rename or remove it", name)
		}
	}
	slow, _ := r.have.get(t.Slow)
	port, _ := r.have.get(t.Port)
	if (slow == nil) != (port == nil) || slow != nil && slow.Attrs().ParentIndex != port.Attrs().Index {
		return fmt.Errorf("make twin of %s: its two ends are not each other's; remove %s and %s", t.device, t.Slow, t.Port)
	}
	if slow == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.Alias = t.Slow, int(t.mtu), aliasTwin+t.device
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerMTU = t.Port, t.mtu
		if err := netlink.LinkAdd(v); err != nil {
			return fmt.Errorf("make twin of %s: %w", t.device, err)
		}
		for _, name := range []string{t.Slow, t.Port} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return fmt.Errorf("make twin of %s: %w", t.device, err)
			}
			r.have.made(l)
		}
		r.did("add", "twin %s %s of %s", t.Slow, t.Port, t.device)
	}
	for _, name := range []string{t.Slow, t.Port} {
		l, _ := r.have.get(name)
		if err := r.settle(l, t); err != nil {
			return fmt.Errorf("set up twin %s of %s: %w", name, t.device, err)
		}
	}
	return nil
}

// settle makes one end as it should be.
func (r *round) settle(l netlink.Link, t pair) error {
	a := l.Attrs()
	if a.Alias != aliasTwin+t.device {
		if err := netlink.LinkSetAlias(l, aliasTwin+t.device); err != nil {
			return fmt.Errorf("set alias: %w", err)
		}
	}
	if a.MTU != int(t.mtu) {
		if err := netlink.LinkSetMTU(l, int(t.mtu)); err != nil {
			return fmt.Errorf("set MTU: %w", err)
		}
		r.did("set", "%s mtu %d", a.Name, t.mtu)
	}
	quiet := "/proc/sys/net/ipv6/conf/" + a.Name + "/disable_ipv6"
	if b, err := os.ReadFile(quiet); err == nil && string(bytes.TrimSpace(b)) != "1" {
		if err := os.WriteFile(quiet, []byte("1"), 0); err != nil {
			return fmt.Errorf("turn IPv6 off: %w", err)
		}
	}
	if name := a.Name; name == t.Port { // the other end is sound once it carries the program
		r.path.sound[name] = soundness{index: uint32(a.Index), mtu: t.mtu}
	}
	return r.up(l)
}

// sound reports whether a device was seen to be as it should, by an Apply since the host was read.
func (r *round) sound(name string, mtu uint32) bool {
	at := r.have.index(name)
	s := r.path.sound[name]
	return at != 0 && s.index == at && s.mtu == mtu
}

func (r *round) up(l netlink.Link) error {
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	r.did("set", "%s up", l.Attrs().Name)
	return nil
}

// clear removes programs and twins that the plan has not.
func (r *round) clear(ctx context.Context, keep []pair) error {
	wanted := map[string]bool{}
	for _, t := range keep {
		wanted[t.device], wanted[t.Slow], wanted[t.Port] = true, true, true
	}
	var errs []error
	sound := func(yield func(string) bool) {
		for name := range r.path.sound {
			if !wanted[name] && !yield(name) {
				return
			}
		}
	}
	errs = append(errs, r.leave(wanted))
	stale := r.have.carriers(sound)
	maps.DeleteFunc(r.path.sound, func(name string, _ soundness) bool { return !wanted[name] })
	for _, l := range stale {
		a := l.Attrs()
		switch twin := strings.HasPrefix(a.Alias, aliasTwin); {
		case wanted[a.Name]:
		case twin:
			errs = append(errs, r.drop(l))
		default:
			began := time.Now()
			errs = append(errs, r.detach(l))
			r.path.pause(ctx, time.Since(began))
		}
	}
	return errors.Join(errs...)
}

// drop removes a twin: in the background while there is somebody to do it, for the kernel takes some
// 25 ms for each.
func (r *round) drop(l netlink.Link) error {
	p := r.path
	same := func(d netlink.Link) bool {
		return d.Attrs().Index == l.Attrs().Index || d.Attrs().Index == l.Attrs().ParentIndex
	}
	if slices.ContainsFunc(p.doomed, same) {
		return nil
	}
	if !p.running {
		if err := deleteDevice(l); err != nil {
			return err
		}
	} else {
		p.doomed = append(p.doomed, l)
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	r.did("remove", "twin %s", l.Attrs().Name)
	return nil
}

// spare keeps a twin from removal that is wanted again.
func (p *Path) spare(names ...string) {
	p.doomed = slices.DeleteFunc(p.doomed, func(d netlink.Link) bool { return slices.Contains(names, d.Attrs().Name) })
}

// deleteDevice deletes by index: unlike a name it is never another device's later.
func deleteDevice(l netlink.Link) error {
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove twin %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// isFull reports whether an error says that a map has no room.
func isFull(err error) bool { return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) }
