package fastpath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/fastpath/bpf"
)

const (
	// aliasTwin begins the alias of both ends of a twin: our mark.
	aliasTwin = "meshnet:twin="
	// filterName is that of the filter, and the program's.
	filterName = bpf.FastProgMeshnetFast
	// filterPriority puts ours before what others may add.
	filterPriority = 1
	// dumpTries is how often a list is asked for again that the kernel says was not of one moment.
	dumpTries = 10
)

// devices is all devices of the host.
type devices map[string]netlink.Link

func readDevices() (devices, error) {
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
	out := make(devices, len(links))
	for _, l := range links {
		out[l.Attrs().Name] = l
	}
	return out, nil
}

// index returns the index of a device; 0: it is not there.
func (d devices) index(name string) uint32 {
	if l, ok := d[name]; ok {
		return uint32(l.Attrs().Index)
	}
	return 0
}

// up reports whether a device is there and up.
func (d devices) up(name string) bool {
	l, ok := d[name]
	return ok && l.Attrs().Flags&net.FlagUp != 0
}

// carries reports whether a device has our filter, once, with the program of that number.
func (d devices) carries(name string, id ebpf.ProgramID) (bool, error) {
	l, ok := d[name]
	if !ok {
		return false, nil
	}
	filters, err := filtersOf(l)
	return len(filters) == 1 && filters[0].Id == int(id), err
}

// byIndex returns the device of an index.
func (d devices) byIndex(index int) (netlink.Link, bool) {
	for _, l := range d {
		if l.Attrs().Index == index {
			return l, true
		}
	}
	return nil, false
}

// names returns the names of all devices in order.
func (d devices) names() []string {
	out := make([]string, 0, len(d))
	for name := range d {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// twin makes both ends of a twin, with the MTU of the overlay, for Open vSwitch takes the size of
// segments from it; no IPv6 of their own, and up.
func (r *round) twin(t pair) error {
	r.path.spare(t.Slow, t.Port)
	for _, name := range []string{t.Slow, t.Port} {
		if l, ok := r.have[name]; ok && (l.Type() != "veth" || l.Attrs().Alias != aliasTwin+t.device && l.Attrs().Alias != "") {
			return fmt.Errorf("make twin %s: a device of that name exists that meshnet did not make; rename or remove it", name)
		}
	}
	slow, port := r.have[t.Slow], r.have[t.Port]
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
			r.have[name] = l
		}
		r.did("add", "twin %s %s of %s", t.Slow, t.Port, t.device)
	}
	for _, name := range []string{t.Slow, t.Port} {
		if err := r.settle(r.have[name], t); err != nil {
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
	if r.sound(l) {
		return r.up(l)
	}
	quiet := "/proc/sys/net/ipv6/conf/" + a.Name + "/disable_ipv6"
	if b, err := os.ReadFile(quiet); err == nil && string(bytes.TrimSpace(b)) != "1" {
		if err := os.WriteFile(quiet, []byte("1"), 0); err != nil {
			return fmt.Errorf("turn IPv6 off: %w", err)
		}
	}
	if name := a.Name; name == t.Port { // the other end is sound once it carries the program
		r.path.sound[name] = uint32(a.Index)
	}
	return r.up(l)
}

// sound reports whether a device was seen to be as it should, by an Apply since the host was read.
func (r *round) sound(l netlink.Link) bool {
	at, ok := r.path.sound[l.Attrs().Name]
	return ok && at == uint32(l.Attrs().Index)
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

// attach makes the program the first filter at the ingress of a device, if the device is there.
func (r *round) attach(name string) error {
	l, ok := r.have[name]
	if !ok || r.sound(l) {
		return nil // it could not be made, which was said
	}
	id, err := r.path.program.id()
	if err != nil {
		return err
	}
	carries, err := r.have.carries(name, id)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", name, err)
	}
	if !carries {
		err := r.path.program.attach(l)
		if errors.Is(err, unix.ENODEV) {
			return nil // gone meanwhile, with its container
		}
		if err != nil {
			return err
		}
		r.did("attach", "program to %s", name)
	}
	r.path.sound[name] = uint32(l.Attrs().Index)
	return nil
}

// attach makes the program the first filter at the ingress of a device, in place of an earlier one of
// ours (tc-bpf(8), direct action).
func (p *program) attach(l netlink.Link) error {
	index := l.Attrs().Index
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("attach to %s: make clsact: %w", l.Attrs().Name, err)
	}
	err := netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: p.prog.FD(), Name: filterName, DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("attach to %s: make filter: %w", l.Attrs().Name, err)
	}
	return nil
}

// filtersOf returns our filters at the ingress of a device.
func filtersOf(l netlink.Link) ([]*netlink.BpfFilter, error) {
	all, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil, nil // no clsact, or the device is gone
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", l.Attrs().Name, err)
	}
	var out []*netlink.BpfFilter
	for _, f := range all {
		if b, ok := f.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, filterName) {
			out = append(out, b)
		}
	}
	return out, nil
}

// carriers returns the devices that may carry our filter: those that bear a mark of ours.
func (d devices) carriers() []netlink.Link {
	var out []netlink.Link
	for _, name := range d.names() {
		if strings.HasPrefix(d[name].Attrs().Alias, "meshnet") {
			out = append(out, d[name])
		}
	}
	return out
}

// clear removes filters and twins that the plan has not.
func (r *round) clear(keep []pair) error {
	wanted := map[string]bool{}
	for _, t := range keep {
		wanted[t.device], wanted[t.Slow], wanted[t.Port] = true, true, true
	}
	var errs []error
	for _, l := range r.have.carriers() {
		a := l.Attrs()
		if !wanted[a.Name] {
			delete(r.path.sound, a.Name)
		}
		switch twin := strings.HasPrefix(a.Alias, aliasTwin); {
		case wanted[a.Name]:
		case twin:
			errs = append(errs, r.drop(l))
		default:
			errs = append(errs, r.detach(l))
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

// detach removes our filter from a device and, if no other is there, clsact.
func (r *round) detach(l netlink.Link) error {
	filters, err := filtersOf(l)
	if err != nil || len(filters) == 0 {
		return err
	}
	for _, f := range filters {
		if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("detach from %s: %w", l.Attrs().Name, err)
		}
	}
	r.did("detach", "program from %s", l.Attrs().Name)
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if all, err := netlink.FilterList(l, parent); err != nil || len(all) > 0 {
			return nil
		}
	}
	err = netlink.QdiscDel(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove clsact of %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// find returns the program, with its maps, that an earlier daemon attached, if it is the one that this
// would load; nil if there is none.
func find(have devices) (*program, error) {
	spec, err := bpf.LoadFast()
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	for _, l := range have.carriers() {
		filters, err := filtersOf(l)
		if err != nil {
			return nil, err
		}
		for _, f := range filters {
			if p := adopt(ebpf.ProgramID(f.Id), spec); p != nil {
				return p, nil
			}
		}
	}
	return nil, nil
}

// adopt opens a program of the kernel and its maps; nil if it is not what the spec says, or gone.
func adopt(id ebpf.ProgramID, spec *ebpf.CollectionSpec) *program {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil
	}
	p := &program{prog: prog}
	info, err := prog.Info()
	if err != nil || spec.Programs[bpf.FastProgMeshnetFast].Compatible(info) != nil {
		p.close()
		return nil
	}
	ids, _ := info.MapIDs()
	wanted := p.maps()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			p.close()
			return nil
		}
		i, err := m.Info()
		if at := wanted[nameOf(i)]; err == nil && at != nil && *at == nil {
			*at = m
		} else {
			m.Close()
		}
	}
	for name, m := range wanted {
		if *m == nil || spec.Maps[name].Compatible(*m) != nil {
			p.close()
			return nil
		}
	}
	return p
}

// nameOf returns the name of a map; i may be nil.
func nameOf(i *ebpf.MapInfo) string {
	if i == nil {
		return ""
	}
	return i.Name
}

// isFull reports whether an error says that a map has no room.
func isFull(err error) bool { return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) }
