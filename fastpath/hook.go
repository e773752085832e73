package fastpath

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/fastpath/bpf"
)

const (
	// hookName is the name that our programs and filters have.
	hookName = bpf.FastProgMeshnetFast
	// filterPriority puts ours before what others may add, and lastPriority behind it, on devices that are not
	// ours.
	filterPriority = 1
	lastPriority   = 0xffff
	// loopback is the index of the loopback device of every network namespace.
	loopback = 1
)

// hasTCX reports whether the kernel has TCX (Linux 6.6), by which programs are attached to a device without a qdisc.
func hasTCX() bool {
	_, err := heard(loopback)
	return err == nil
}

// attach makes the program the one of ours at the ingress of a device, if the device is there.
func (r *round) attach(name string, mtu uint32) error {
	if r.sound(name, mtu) {
		return nil
	}
	l, ok := r.have.get(name)
	if !ok {
		return nil // it could not be made, which was said
	}
	done, tcx, err := r.path.program.attach(l, r.path.tcx)
	if errors.Is(err, unix.ENODEV) {
		return nil // gone meanwhile, with its container
	}
	if err != nil {
		return err
	}
	if done {
		r.did("attach", "program to %s", name)
	}
	r.path.sound[name] = soundness{uint32(l.Attrs().Index), mtu, tcx}
	return nil
}

// attach makes the program the only one of ours at the ingress of a device, and reports whether it was not
// and whether it is there by TCX. While clsact, which filters take, comes or goes, the device sends nothing
// (qdisc_graft, dev_deactivate), so where something was sent it comes by TCX. That takes a grace period of
// RCU, 12 ms, so what is new gets a filter, and TCX when it is to lose it, see [Path.Yield].
func (p *program) attach(l netlink.Link, can bool) (done, tcx bool, err error) {
	if !can {
		done, err = p.filter(l, filterPriority)
		return done, false, err
	}
	id, err := p.id()
	if err != nil {
		return false, false, err
	}
	index := uint32(l.Attrs().Index)
	all, err := heard(index)
	if err != nil {
		return false, false, err
	}
	filters, err := filtersOf(l)
	if err != nil {
		return false, false, err
	}
	if slices.Contains(all, id) || len(filters) == 0 && hasSent(l) {
		done, err = p.toTCX(l)
		return done, true, err
	}
	if done, err = p.filter(l, filterPriority); err != nil {
		return false, false, err
	}
	n, err := dismiss(index, all, 0) // it would come first
	return done || n > 0, false, err
}

func hasSent(l netlink.Link) bool {
	s := l.Attrs().Statistics
	return s != nil && s.TxPackets > 0
}

// toTCX attaches the program by TCX, and not by a filter, and reports whether it was not so.
func (p *program) toTCX(l netlink.Link) (bool, error) {
	done, err := p.listen(l)
	if err != nil {
		return false, err
	}
	n, err := unfilter(l)
	return done || n > 0, err
}

// Yield makes the devices ready to be ports of the switch themselves, before a plan without a fast path is
// applied to it: that removes clsact from them, by which they would lose what they are about to send. While
// the fast path is on they send next to nothing themselves. Without TCX it does nothing. It takes 12 ms for
// each device, and as long again between two, for others' sake, until that is pausedMax.
func (p *Path) Yield(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tables != nil && p.program == nil {
		return nil // off, and was so
	}
	have, err := readDevices()
	if err != nil {
		return err
	}
	r := round{path: p, have: have}
	if p.tables == nil {
		if err := r.read(); err != nil {
			return err
		}
	}
	p.paused = 0
	p.forget() // nothing else was looked at
	if p.program == nil || !p.tcx {
		return nil
	}
	for _, l := range have.carriers(nil) {
		if err := ctx.Err(); err != nil {
			return err
		}
		filters, err := filtersOf(l)
		if err != nil {
			return err
		}
		if len(filters) == 0 || strings.HasPrefix(l.Attrs().Alias, aliasTwin) {
			continue
		}
		began := time.Now()
		if _, err := p.program.toTCX(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
		p.pause(ctx, time.Since(began))
	}
	return nil
}

// carries reports whether a device has the program of that number: as the last by TCX, or as the only filter of ours.
func (d *devices) carries(name string, id ebpf.ProgramID, tcx bool) (bool, error) {
	l, ok := d.get(name)
	if !ok {
		return false, nil
	}
	if tcx {
		last, err := isLast(uint32(l.Attrs().Index), id)
		if errors.Is(err, unix.ENODEV) {
			return false, nil
		}
		return last, err
	}
	filters, err := filtersOf(l)
	return len(filters) == 1 && filters[0].Id == int(id), err
}

// detach removes our programs from a device, however they are attached.
func (r *round) detach(l netlink.Link) error {
	n := 0
	if all, err := heard(uint32(l.Attrs().Index)); err == nil {
		if n, err = dismiss(uint32(l.Attrs().Index), all, 0); err != nil {
			return err
		}
	}
	filters, err := unfilter(l)
	if n+filters > 0 {
		r.did("detach", "program from %s", l.Attrs().Name)
	}
	return err
}

// heard returns the programs that are attached to the ingress of a device by TCX, in their order, all of
// them before any filter. It fails where there is no TCX.
func heard(index uint32) ([]ebpf.ProgramID, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: int(index), Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return nil, fmt.Errorf("list programs of device %d: %w", index, err)
	}
	all := make([]ebpf.ProgramID, len(q.Programs))
	for i, p := range q.Programs {
		all[i] = p.ID
	}
	return all, nil
}

// isLast reports whether a program is the last that is attached to a device by TCX.
func isLast(index uint32, id ebpf.ProgramID) (bool, error) {
	all, err := heard(index)
	return len(all) > 0 && all[len(all)-1] == id, err
}

// dismiss detaches our programs, by their name, but one, and returns how many.
func dismiss(index uint32, all []ebpf.ProgramID, but ebpf.ProgramID) (n int, err error) {
	for _, id := range all {
		if id == but {
			continue
		}
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone
		}
		defer prog.Close()
		if info, err := prog.Info(); err != nil || info.Name != hookName {
			continue
		}
		err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(index), Program: prog, Attach: ebpf.AttachTCXIngress})
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return n, fmt.Errorf("detach from device %d: %w", index, err)
		}
		n++
	}
	return n, nil
}

// listen makes the program the last at the ingress of a device, and the only one of ours, unless it is,
// and reports whether it was not. So it takes only what others let pass.
func (p *program) listen(l netlink.Link) (bool, error) {
	id, err := p.id()
	if err != nil {
		return false, err
	}
	index := uint32(l.Attrs().Index)
	all, err := heard(index)
	if err != nil {
		return false, err
	}
	done := false
	if at := slices.Index(all, id); at < 0 || at != len(all)-1 {
		if at >= 0 {
			if _, err := dismiss(index, []ebpf.ProgramID{id}, 0); err != nil {
				return false, err
			}
		}
		err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(index), Program: p.prog, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return false, fmt.Errorf("attach to %s: %w", l.Attrs().Name, err)
		}
		done = true
	}
	n, err := dismiss(index, all, id)
	return done || n > 0, err
}

// behind makes the program the last at the ingress of a device of others', by TCX or as a filter, and reports
// whether it was not.
func (p *program) behind(l netlink.Link, tcx bool) (bool, error) {
	if tcx {
		return p.listen(l)
	}
	return p.filter(l, lastPriority)
}

// filter makes the program a filter at the ingress of a device, in place of an earlier one of ours (tc-bpf(8),
// direct action), unless it is, and reports whether it was not. Filters come in the order of priorities.
func (p *program) filter(l netlink.Link, priority uint16) (bool, error) {
	id, err := p.id()
	if err != nil {
		return false, err
	}
	was, err := filtersOf(l)
	if err != nil {
		return false, fmt.Errorf("attach to %s: %w", l.Attrs().Name, err)
	}
	if len(was) == 1 && was[0].Id == int(id) {
		return false, nil
	}
	index := l.Attrs().Index
	if err := netlink.QdiscAdd(clsact(l)); err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("attach to %s: make clsact: %w", l.Attrs().Name, err)
	}
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority,
		},
		Fd: p.prog.FD(), Name: hookName, DirectAction: true,
	})
	if err != nil {
		return false, fmt.Errorf("attach to %s: make filter: %w", l.Attrs().Name, err)
	}
	return true, nil
}

// clsact is what filters at the ingress of a device hang on.
func clsact(l netlink.Link) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
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
		if isOurs(f) {
			out = append(out, f.(*netlink.BpfFilter))
		}
	}
	return out, nil
}

func isOurs(f netlink.Filter) bool {
	b, ok := f.(*netlink.BpfFilter)
	return ok && strings.HasPrefix(b.Name, hookName)
}

// unfilter removes our filters from a device and, if no others are there, clsact. It returns how many of ours
// there were.
func unfilter(l netlink.Link) (int, error) {
	filters, err := filtersOf(l)
	if err != nil || len(filters) == 0 {
		return 0, err
	}
	for _, f := range filters {
		if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return 0, fmt.Errorf("detach from %s: %w", l.Attrs().Name, err)
		}
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if all, err := netlink.FilterList(l, parent); err != nil || len(all) > 0 {
			return len(filters), nil
		}
	}
	err = netlink.QdiscDel(clsact(l))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return len(filters), fmt.Errorf("remove clsact of %s: %w", l.Attrs().Name, err)
	}
	return len(filters), nil
}

// find returns the program, with its maps, that an earlier daemon attached, if it is the one that this
// would load; nil if there is none.
func find(have *devices) (*program, error) {
	spec, err := bpf.LoadFast()
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	for _, l := range have.carriers(nil) {
		ids, _ := heard(uint32(l.Attrs().Index)) // none where there is no TCX
		filters, err := filtersOf(l)
		if err != nil {
			return nil, err
		}
		for _, f := range filters {
			ids = append(ids, ebpf.ProgramID(f.Id))
		}
		for _, id := range ids {
			if p := adopt(id, spec); p != nil {
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
