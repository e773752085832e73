package fastpath

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
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
	d, want := delta{}, empty()
	for id, old := range p.tables {
		if r.host.Networks[id] == nil {
			r.gone(d, old)
		}
	}
	r.outside(want)
	r.ports(want, Tunnels(r.host))
	r.ports(want, Doors(r.host.Gateway))
	for id, n := range r.host.Networks {
		old := p.tables[id]
		t := applied{from: n, local: old.local}
		if old.from != n {
			t.local = Local(n)
		}
		if name := trunk(n); name != "" {
			t.device = r.have.index(name)
		}
		tables[id] = t
		r.ports(want, t.local.Ports)
		if t.local.Exit != (Exit{}) {
			want.exits[n.VNI] = t.local.Exit.encode()
		}
		for who, e := range t.local.Entries {
			if at := r.have.index(e.Device); at != 0 {
				want.entries[who.encode()] = e.encode(at)
			}
		}
		r.differ(d, old, t)
	}
	slices.SortFunc(p.counted, func(a, b Port) int { return cmp.Compare(a.Device, b.Device) })
	if p.over {
		d = everything(p.has.members, r.all(tables))
	}
	p.over = false
	errs := r.remove(want, d)
	errs = append(errs, r.put(want, d)...)
	p.tables = tables
	return errs
}

// ports notes ports whose devices are there.
func (r *round) ports(want contents, ports []Port) {
	for _, port := range ports {
		at, other := r.have.index(port.Device), r.have.index(port.Other)
		r.path.indexes[port.Device] = at
		if at != 0 && (other != 0 || port.Kind == Tunnel) {
			want.ports[at] = port.encode(other)
		}
	}
	r.path.counted = append(r.path.counted, ports...)
}

// all returns the members of all tables.
func (r *round) all(tables map[state.NetworkID]applied) map[bpf.FastMember]bpf.FastWay {
	want := map[bpf.FastMember]bpf.FastWay{}
	for _, t := range tables {
		for who, way := range Compile(t.from).Ways {
			if w, ok := way.encode(r.have.index); ok {
				want[who.encode()] = w
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
		if w, ok := way.encode(r.have.index); ok {
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

// remove takes out what is not wanted.
func (r *round) remove(want contents, d delta) (errs []error) {
	p := r.path
	for _, who := range d.sorted() {
		if _, there := p.has.members[who]; d[who] != nil || !there {
			continue
		}
		if err := drop(p.program.members, p.has.members, who); err != nil {
			errs = append(errs, err)
			continue
		}
		r.did("remove", "fast way %s", shown(who))
	}
	gone, more := dropAll(p.program.entries, p.has.entries, want.entries)
	for _, who := range gone {
		r.did("remove", "fast entry %s", shown(who))
	}
	errs = append(errs, more...)
	exits, more := dropAll(p.program.exits, p.has.exits, want.exits)
	for _, vni := range exits {
		r.did("remove", "fast exit %d", vni)
	}
	errs = append(errs, more...)
	peers, more := dropAll(p.program.peers, p.has.peers, want.peers)
	for _, peer := range peers {
		r.did("remove", "fast peer %s", address(peer))
	}
	errs = append(errs, more...)
	ports, more := dropAll(p.program.ports, p.has.ports, want.ports)
	for _, index := range ports {
		p.program.counted.Delete(index) // it may have none
		r.did("remove", "fast port %d", index)
	}
	return append(errs, more...)
}

// dropAll takes out of a map, and of what it has, all that is not wanted, and returns what it was.
func dropAll[K, V comparable](m *ebpf.Map, has, want map[K]V) (gone []K, errs []error) {
	for k := range has {
		if _, ok := want[k]; ok {
			continue
		}
		if err := drop(m, has, k); err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, k)
	}
	return gone, errs
}

func drop[K, V comparable](m *ebpf.Map, has map[K]V, k K) error {
	if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take %s off the fast path: %w", shown(k), err)
	}
	delete(has, k)
	return nil
}

// put puts in what is wanted: ports before who may be reached by them.
func (r *round) put(want contents, d delta) (errs []error) {
	p := r.path
	for _, index := range slices.Sorted(maps.Keys(want.ports)) {
		err := p.program.counted.Update(index, make([]bpf.FastCount, ebpf.MustPossibleCPU()), ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			errs = append(errs, r.overflow(err, index))
		}
		errs = append(errs, set(r, p.program.ports, p.has.ports, index, want.ports[index], "fast port"))
	}
	for addr, peer := range want.peers {
		errs = append(errs, set(r, p.program.peers, p.has.peers, addr, peer, "fast peer"))
	}
	for vni, exit := range want.exits {
		errs = append(errs, set(r, p.program.exits, p.has.exits, vni, exit, "fast exit"))
	}
	for who, entry := range want.entries {
		errs = append(errs, set(r, p.program.entries, p.has.entries, who, entry, "fast entry"))
	}
	for _, who := range d.sorted() {
		if way := d[who]; way != nil {
			errs = append(errs, set(r, p.program.members, p.has.members, who, *way, "fast way"))
		}
	}
	return errs
}

// set puts one thing into a map, and into what it has, unless it is there.
func set[K, V comparable](r *round, m *ebpf.Map, has map[K]V, k K, v V, what string) error {
	if have, ok := has[k]; ok && have == v {
		return nil
	}
	if err := m.Put(k, v); err != nil {
		return r.overflow(err, k)
	}
	has[k] = v
	r.did("set", "%s %s", what, shown(k))
	return nil
}

// overflow makes of a full map what it is: more for the switch to do. It is said once.
func (r *round) overflow(err error, what any) error {
	if !isFull(err) {
		return fmt.Errorf("put %s on the fast path: %w", shown(what), err)
	}
	r.path.over = true
	if !r.path.full {
		r.path.full = true
		r.path.log.Warn("the fast path is full; what does not fit goes through the switch", "first", shown(what))
	}
	return nil
}

func (d delta) sorted() []bpf.FastMember {
	return slices.SortedFunc(maps.Keys(d), func(a, b bpf.FastMember) int {
		return cmp.Or(cmp.Compare(a.Vni, b.Vni), slices.Compare(a.Mac[:], b.Mac[:]))
	})
}

// shown returns a key as people read it.
func shown(key any) string {
	switch k := key.(type) {
	case bpf.FastMember:
		return fmt.Sprintf("%d %s", k.Vni, state.MAC(k.Mac))
	case bpf.FastInward:
		return fmt.Sprintf("%s %s", state.MAC(k.Far), address(k.Ip))
	}
	return fmt.Sprint(key)
}

// address returns the IPv4 address of [bigEndian].
func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.NativeEndian.AppendUint32(nil, n)))
}
