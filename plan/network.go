package plan

import (
	"iter"
	"net/netip"
	"slices"

	"meshnet/state"
)

// member is a network with its local members, in the order of addresses, and how it differs from
// what it was planned from before.
type member struct {
	net   *state.Network
	local []*state.Endpoint
	// old is the plan before, nil if there is none or it cannot be told in short what changed. Then
	// gone and came are the endpoints that differ, in the order of addresses.
	old        *Network
	gone, came []*state.Endpoint
}

// localMembers returns the networks that have members here.
func (p *planner) localMembers() []member {
	var ms []member
	names := map[string]bool{}
	for _, n := range p.view.Networks() {
		if !n.HasMember(p.facts.Self) {
			continue
		}
		m := p.member(n)
		if len(m.local) > 0 && !names[deviceName(n.ID)] {
			names[deviceName(n.ID)] = true
			ms = append(ms, m)
		}
	}
	return ms
}

// member looks what changed on a network. Where every MAC comes from its address no two members can
// have one, so that a change concerns nobody else.
func (p *planner) member(n *state.Network) member {
	m := member{net: n}
	old := p.last.Networks[n.ID]
	if old != nil && old.from == n {
		m.old, m.local = old, old.local
		return m
	}
	if old != nil && !old.odd {
		m.old = old
		m.gone, m.came = n.Since(old.from)
		if slices.ContainsFunc(m.came, oddMAC) {
			m.old, m.gone, m.came = nil, nil, nil
		}
	}
	if m.old == nil {
		for e := range valid(n) {
			if e.Node == p.facts.Self {
				m.local = append(m.local, e)
			}
		}
		return m
	}
	mine := func(es []*state.Endpoint) []*state.Endpoint {
		return slices.DeleteFunc(slices.Clone(es), func(e *state.Endpoint) bool { return e.Node != p.facts.Self })
	}
	m.local = patch(old.local, mine(m.gone), mine(m.came), func(e *state.Endpoint) netip.Addr { return e.Addr })
	return m
}

// differ returns what two lists in the order of addresses do not share. Elements that are the same
// pointer are not looked at.
func differ[E any](was, is []*E, addr func(*E) netip.Addr) (gone, came []*E) {
	// Mostly little differs: what both begin and end with is left out first.
	most, i := min(len(was), len(is)), 0
	for i < most && was[i] == is[i] {
		i++
	}
	was, is = was[i:], is[i:]
	for len(was) > 0 && len(is) > 0 && was[len(was)-1] == is[len(is)-1] {
		was, is = was[:len(was)-1], is[:len(is)-1]
	}
	for len(was) > 0 && len(is) > 0 {
		if was[0] == is[0] {
			was, is = was[1:], is[1:]
			continue
		}
		c := addr(was[0]).Compare(addr(is[0]))
		if c <= 0 {
			gone, was = append(gone, was[0]), was[1:]
		}
		if c >= 0 {
			came, is = append(came, is[0]), is[1:]
		}
	}
	return append(gone, was...), append(came, is...)
}

// patch returns a list in the order of addresses without some elements and with others. The list is
// not written to.
func patch[E any](list, gone, came []*E, addr func(*E) netip.Addr) []*E {
	if len(gone)+len(came) == 0 {
		return list
	}
	out := make([]*E, 0, len(list)-len(gone)+len(came))
	from := 0
	at := func(a netip.Addr) int {
		i, _ := slices.BinarySearchFunc(list[from:], a, func(e *E, a netip.Addr) int { return addr(e).Compare(a) })
		return from + i
	}
	for len(gone)+len(came) > 0 {
		if len(came) == 0 || len(gone) > 0 && !addr(came[0]).Less(addr(gone[0])) {
			i := at(addr(gone[0]))
			out = append(out, list[from:i]...)
			from = i
			if i < len(list) && addr(list[i]) == addr(gone[0]) {
				from = i + 1
			}
			gone = gone[1:]
			continue
		}
		i := at(addr(came[0]))
		out = append(out, list[from:i]...)
		out = append(out, came[0])
		from, came = i, came[1:]
	}
	return append(out, list[from:]...)
}

// oddMAC reports whether an endpoint's MAC does not come from its address.
func oddMAC(e *state.Endpoint) bool { return !e.Addr.Is4() || e.MAC != state.MACOf(e.Addr) }

// valid yields the reachable endpoints of a network whose MAC can be meant, in the order of
// addresses. Of two members with one MAC the lower address has it; the gateway comes before all.
func valid(n *state.Network) iter.Seq[*state.Endpoint] {
	return func(yield func(*state.Endpoint) bool) {
		seen := make(map[state.MAC]bool, n.Len())
		if n.Def.Gateway.IsValid() {
			seen[state.MACOf(n.Def.Gateway)] = true
		}
		for e := range n.Endpoints() {
			group := e.MAC[0]&1 != 0
			if group || e.MAC == (state.MAC{}) || seen[e.MAC] {
				continue
			}
			seen[e.MAC] = true
			if !yield(e) {
				return
			}
		}
	}
}

// network plans one network; nil where nothing of it can be. same says that all the plan depends on
// besides the network is as before.
func (p *planner) network(m member, same bool) *Network {
	n := &Network{
		ID: m.net.ID, Name: m.net.Name, VNI: m.net.VNI, Subnet: m.net.Def.Subnet,
		MTU: p.host.MTU, Trunk: p.host.Trunk, from: m.net, local: m.local,
	}
	if own := m.net.Def.MTU; own != 0 && own < n.MTU {
		n.MTU = own
	}
	for _, e := range m.local {
		if port := p.ports[e.ID]; port != 0 {
			link := p.linkName(e.ID)
			n.Ports = append(n.Ports, Port{
				Endpoint: e.ID, Link: link, Twin: p.twin(link), OFPort: port, Addr: e.Addr, MAC: e.MAC,
			})
		}
	}
	p.route(n, m)
	device := p.devices[n.ID]
	byDevice := p.host.Transport == state.KernelVXLAN
	if len(n.Ports) == 0 && n.Host == (Own{}) || byDevice && device == 0 {
		return nil
	}
	if same && m.old != nil && m.old.VNI == n.VNI && (m.old.Device == nil || m.old.Device.OFPort == device) {
		n.Remotes, n.odd = p.patchRemotes(m, device), m.old.odd
	} else {
		for e := range m.net.Endpoints() {
			n.odd = n.odd || oddMAC(e)
		}
		for e := range valid(m.net) {
			if r := p.remote(e, device); r != nil {
				n.Remotes = append(n.Remotes, r)
			}
		}
	}
	if byDevice {
		n.Device = p.device(n, device)
	} else {
		n.Flood = p.flood(m.net)
	}
	return n
}

// remote plans the way to a member elsewhere; nil if there is none, or it is here.
func (p *planner) remote(e *state.Endpoint, device uint32) *Remote {
	w, ok := p.ways[e.Node]
	if p.host.Transport == state.KernelVXLAN {
		w.port = device
	}
	if !ok || w.port == 0 {
		return nil
	}
	return &Remote{Endpoint: e.ID, Node: e.Node, Addr: e.Addr, MAC: e.MAC, Via: w.addr, OFPort: w.port}
}

// patchRemotes returns the remotes of a plan before with what changed since. An endpoint that changed
// in what does not matter here keeps its pointer.
func (p *planner) patchRemotes(m member, device uint32) []*Remote {
	addr := func(r *Remote) netip.Addr { return r.Addr }
	find := func(a netip.Addr) *Remote {
		i, ok := slices.BinarySearchFunc(m.old.Remotes, a, func(r *Remote, a netip.Addr) int { return r.Addr.Compare(a) })
		if !ok {
			return nil
		}
		return m.old.Remotes[i]
	}
	var gone, came []*Remote
	kept := map[*Remote]bool{}
	for _, e := range m.came {
		r := p.remote(e, device)
		if r == nil {
			continue
		}
		if was := find(r.Addr); was != nil && *was == *r {
			kept[was] = true
			continue
		}
		came = append(came, r)
	}
	for _, e := range m.gone {
		if r := find(e.Addr); r != nil && !kept[r] {
			gone = append(gone, r)
		}
	}
	return patch(m.old.Remotes, gone, came, addr)
}

// Since returns the remotes that two plans of a network do not share, each in the order of addresses.
func (n *Network) Since(old *Network) (gone, came []*Remote) {
	return differ(old.Remotes, n.Remotes, func(r *Remote) netip.Addr { return r.Addr })
}

// unchanged reports whether an earlier plan of a network still holds, given that the host's own
// facts are as they were.
func (p *planner) unchanged(m member) bool {
	old := m.old
	if old == nil || old.from != m.net {
		return false
	}
	now := Network{VNI: old.VNI}
	p.route(&now, m)
	if old.Device != nil && old.Device.OFPort != p.devices[m.net.ID] ||
		old.Router != now.Router || old.Host != now.Host || old.Door != now.Door {
		return false
	}
	ports := old.Ports
	for _, e := range m.local {
		if p.facts.Sandboxes[e.ID].Host {
			continue
		}
		if len(ports) == 0 || ports[0].Endpoint != e.ID || ports[0].OFPort != p.ports[e.ID] || ports[0].Link != p.linkName(e.ID) {
			return false
		}
		ports = ports[1:]
	}
	return len(ports) == 0
}
