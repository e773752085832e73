package plan

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"meshnet/state"
)

// The device between the bridge and this host's own stack; the port is a veth's other end.
const (
	gatewayName = "mesh-gw"
	gatewayPort = "mesh-gw-port"
)

// markBase is above the VNI, 24 bits, in a mark: "m", so that ours are told from others'.
const markBase uint32 = 'm' << 24

// Mark returns the mark of a network's packets and connections in this host's own stack, which is
// also the number of its routing table there.
func Mark(vni uint32) uint32 { return markBase | vni&vniMax }

// MarkMask covers what all marks have in common: [Mark] of 0.
const MarkMask uint32 = 0xff << 24

// MAC addresses on the gateway's device: locally administered, "me", and a network's VNI or, for the
// host's end, what no VNI is.
func doorMAC(vni uint32) state.MAC {
	b := binary.BigEndian.AppendUint32(nil, vni)
	return state.MAC{0x0a, 'm', 'e', b[1], b[2], b[3]}
}

func nearMAC() state.MAC { return state.MAC{0x0e, 'm', 'e', 's', 'h', 0} }

// hop returns the next hop that stands for a network: in 240.0.0.0/4, reserved (RFC 1112, section 4),
// so that it is nobody's. It is only the name of an entry for the network's MAC.
func hop(vni uint32) netip.Addr {
	b := binary.BigEndian.AppendUint32(nil, 240<<24|vni&vniMax)
	return netip.AddrFrom4([4]byte(b))
}

// route plans the gateway of a network, this host's own address on it and the way between the two
// and the host's own stack.
func (p *planner) route(n *Network, m member) {
	def := &m.net.Def
	if def.Gateway.IsValid() {
		n.Router = Router{Addr: def.Gateway, MAC: state.MACOf(def.Gateway), Out: !def.Internal}
	}
	for _, e := range m.local {
		if p.facts.Sandboxes[e.ID].Host && n.Host == (Own{}) {
			n.Host = Own{e.ID, e.Addr, e.MAC}
		}
	}
	if (n.Router.Out || n.Host != (Own{})) && p.gateway != 0 {
		n.Door = Door{OFPort: p.gateway, Name: gatewayName, Near: nearMAC(), Far: doorMAC(n.VNI)}
	}
}

// openGateway plans the gateway, where a network has to do with this host's own stack.
func (p *planner) openGateway() {
	g := &Gateway{Name: gatewayName, OFPort: p.gateway, MAC: nearMAC(), MTU: p.host.MTU, Offloads: p.offloads()}
	// The userspace datapath has 32 buffers made and freed in each turn of its loop for an idle veth, and one for a tap.
	if p.host.FastPath || p.host.Datapath == system {
		g.Port, g.Twin = gatewayPort, p.twin(gatewayPort)
	}
	for _, m := range p.members {
		n := p.host.Networks[m.net.ID]
		if n == nil || n.Door == (Door{}) {
			continue
		}
		mark := Mark(n.VNI)
		g.Ways = append(g.Ways, Way{
			Network: n.ID, Subnet: n.Subnet, Mark: mark, MAC: n.Door.Far, Via: hop(n.VNI), MTU: n.MTU,
			Out: n.Router.Out, Host: n.Host.Addr,
		})
		for _, e := range m.local {
			if n.Router.Out && p.linkName(e.ID) != "" && p.ports[e.ID] != 0 {
				for _, port := range e.Publish {
					g.Ports = append(g.Ports, Published{port, mark, e.Addr})
				}
			}
		}
	}
	if len(g.Ways) == 0 {
		return
	}
	slices.SortFunc(g.Ways, func(a, b Way) int { return cmp.Compare(a.Mark, b.Mark) })
	slices.SortFunc(g.Ports, func(a, b Published) int {
		return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Proto, b.Proto),
			cmp.Compare(a.Mark, b.Mark), a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	// Of two containers that were given one port of the host the first in order has it.
	g.Ports = slices.CompactFunc(g.Ports, func(a, b Published) bool { return a.HostPort == b.HostPort && a.Proto == b.Proto })
	for _, n := range p.view.Networks() {
		g.Closed = append(g.Closed, n.Def.Subnet)
	}
	slices.SortFunc(g.Closed, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	g.Closed = slices.Compact(g.Closed)
	p.host.Gateway = g
}

// defaultRoutes gives each container one default route: by the gateway of the network it was attached
// to first, of those that lead out and are not to be left alone.
func (p *planner) defaultRoutes() {
	type claim struct {
		at   uint64
		id   state.EndpointID
		link int
	}
	first := map[Sandbox]claim{}
	gateways := map[state.EndpointID]netip.Addr{}
	for _, m := range p.members {
		for _, e := range m.local {
			if n := p.host.Networks[m.net.ID]; n != nil && n.Router.Out {
				gateways[e.ID] = n.Router.Addr
			}
		}
	}
	for i, l := range p.host.Links {
		if !gateways[l.Endpoint].IsValid() || p.facts.NoDefault[l.Endpoint] {
			continue
		}
		c := claim{link: i, id: l.Endpoint}
		if e, ok := p.view.Endpoint(l.Endpoint); ok {
			c.at = e.Alloc
		}
		if old, ok := first[l.Sandbox]; !ok || cmp.Or(cmp.Compare(c.at, old.at), cmp.Compare(c.id, old.id)) < 0 {
			first[l.Sandbox] = c
		}
	}
	for _, c := range first {
		l := &p.host.Links[c.link]
		l.Gateway = gateways[l.Endpoint]
	}
}
