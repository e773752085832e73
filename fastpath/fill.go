package fastpath

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"meshnet/fastpath/bpf"
	"meshnet/plan"
	"meshnet/state"
)

// delta is what members should be: a way, or nil for none. Who is not in it stays.
type delta map[bpf.FastMember]*bpf.FastWay

// everything returns the delta that makes of what is there what is wanted.
func everything(have, want map[bpf.FastMember]bpf.FastWay) delta {
	d := make(delta, len(have)+len(want))
	for who := range have {
		d[who] = nil
	}
	for who, way := range want {
		d[who] = &way
	}
	return d
}

// fill makes the maps hold the plan: first out with what it has not, then in with the rest.
func (r *round) fill() []error {
	p := r.path
	p.counted, p.indexes = nil, map[string]uint32{}
	tables := make(map[state.NetworkID]applied, len(r.host.Networks))
	d := delta{}
	for id, old := range p.tables {
		if r.host.Networks[id] == nil {
			r.gone(d, old)
		}
	}
	ports := map[uint32]bpf.FastPort{}
	for id, n := range r.host.Networks {
		old := p.tables[id]
		t := applied{from: n, local: old.local}
		if old.from != n {
			t.local = Local(n)
		}
		if n.Device != nil {
			t.device = r.have.index(n.Device.Name)
		}
		tables[id] = t
		for _, port := range t.local.Ports {
			at, other := r.have.index(port.Device), r.have.index(port.Other)
			p.indexes[port.Device] = at
			if at != 0 && other != 0 {
				ports[at] = port.encode(other)
			}
		}
		p.counted = append(p.counted, t.local.Ports...)
		r.differ(d, old, t)
	}
	slices.SortFunc(p.counted, func(a, b Port) int { return cmp.Compare(a.Device, b.Device) })
	if p.over {
		d = everything(p.members, r.all(tables))
	}
	p.over = false
	errs := r.remove(ports, d)
	errs = append(errs, r.put(ports, d)...)
	p.tables = tables
	return errs
}

// all returns the members of all tables.
func (r *round) all(tables map[state.NetworkID]applied) map[bpf.FastMember]bpf.FastWay {
	want := map[bpf.FastMember]bpf.FastWay{}
	for _, t := range tables {
		for who, way := range Compile(t.from).Ways {
			if at := r.have.index(way.Device); at != 0 {
				want[who.encode()] = way.encode(at)
			}
		}
	}
	return want
}

// gone takes all members of a network off.
func (r *round) gone(d delta, old applied) {
	for who := range Compile(old.from).Ways {
		d[who.encode()] = nil
	}
}

// differ notes in what members of a network differ from what was applied, at the cost of what changed
// and of the local ones.
func (r *round) differ(d delta, old, now applied) {
	gone, came := []*plan.Remote(nil), now.from.Remotes
	switch {
	case old.from == nil:
	case old.from.VNI != now.from.VNI || old.device != now.device || now.device == 0:
		r.gone(d, old)
	default:
		gone, came = now.from.Since(old.from)
		for who := range old.local.Ways {
			d[who.encode()] = nil
		}
	}
	for _, m := range gone {
		if who, _, ok := remote(old.from, m); ok {
			d[who.encode()] = nil
		}
	}
	set := func(who Member, way Way) {
		if at := r.have.index(way.Device); at != 0 {
			w := way.encode(at)
			d[who.encode()] = &w
		}
	}
	for _, m := range came {
		if who, way, ok := remote(now.from, m); ok {
			set(who, way)
		}
	}
	for who, way := range now.local.Ways {
		set(who, way)
	}
}

func (r *round) remove(ports map[uint32]bpf.FastPort, d delta) (errs []error) {
	p := r.path
	for _, who := range d.sorted() {
		if _, there := p.members[who]; d[who] != nil || !there {
			continue
		}
		if err := p.program.members.Delete(who); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("take %x off the fast path: %w", who.Mac, err))
			continue
		}
		delete(p.members, who)
		r.did("remove", "fast way %d %x", who.Vni, who.Mac)
	}
	for _, index := range slices.Sorted(maps.Keys(p.ports)) {
		if _, ok := ports[index]; ok {
			continue
		}
		if err := p.program.ports.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("take device %d off the fast path: %w", index, err))
			continue
		}
		p.program.counts.Delete(index) // it may have none
		delete(p.ports, index)
		r.did("remove", "fast port %d", index)
	}
	return errs
}

func (r *round) put(ports map[uint32]bpf.FastPort, d delta) (errs []error) {
	p := r.path
	for _, index := range slices.Sorted(maps.Keys(ports)) {
		want := ports[index]
		if have, ok := p.ports[index]; ok && have == want {
			continue
		}
		err := p.program.counts.Update(index, make([]bpf.FastCount, ebpf.MustPossibleCPU()), ebpf.UpdateNoExist)
		if err == nil || errors.Is(err, ebpf.ErrKeyExist) {
			err = p.program.ports.Put(index, want)
		}
		if err != nil {
			errs = append(errs, r.overflow(err, fmt.Sprintf("device %d", index)))
			continue
		}
		p.ports[index] = want
		r.did("set", "fast port %d", index)
	}
	for _, who := range d.sorted() {
		want := d[who]
		if have, ok := p.members[who]; want == nil || ok && have == *want {
			continue
		}
		if err := p.program.members.Put(who, *want); err != nil {
			errs = append(errs, r.overflow(err, fmt.Sprintf("%x", who.Mac)))
			continue
		}
		p.members[who] = *want
		r.did("set", "fast way %d %x", who.Vni, who.Mac)
	}
	return errs
}

// overflow makes of a full map what it is: more for the switch to do. It is said once.
func (r *round) overflow(err error, what string) error {
	if !isFull(err) {
		return fmt.Errorf("put %s on the fast path: %w", what, err)
	}
	r.path.over = true
	if !r.path.full {
		r.path.full = true
		r.path.log.Warn("the fast path is full; what does not fit goes through the switch", "first", what)
	}
	return nil
}

func (d delta) sorted() []bpf.FastMember {
	return slices.SortedFunc(maps.Keys(d), func(a, b bpf.FastMember) int {
		return cmp.Or(cmp.Compare(a.Vni, b.Vni), slices.Compare(a.Mac[:], b.Mac[:]))
	})
}
