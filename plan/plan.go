package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"net/netip"
	"slices"

	"meshnet/state"
)

// DefaultTunnelPort is the UDP port of tunnels unless up says otherwise. Not the registered 4789:
// other overlays on a host sit there, and one VNI on one port exists once.
const DefaultTunnelPort = 14789

// bridge is the name of our bridge.
const bridge = "meshnet"

// Facts is what the plan has to know of the host.
type Facts struct {
	Self      state.NodeID
	Choice    Choice
	Underlay  Underlay
	Sandboxes map[state.EndpointID]Sandbox // of own endpoints whose container is there
	IfNames   map[state.EndpointID]string  // as wished for
	Given     map[state.EndpointID]string  // as found, now or before
	Found     Found
}

// peer is another node that packets can be sent to.
type peer struct {
	id   state.NodeID
	addr netip.Addr
}

// For returns what the host should look like. last, which may be nil, is only read, and shared where
// nothing changed.
//
// To a node whose record names no address of the underlay's kind there is no way: its containers are
// left out until the record is right. So are endpoints with a MAC that cannot be meant (none, a
// group's, another member's), and what there are no port numbers for.
func For(last *Host, v *state.View, f Facts) *Host {
	if last == nil {
		last = &Host{}
	}
	h := &Host{
		Bridge:     bridge,
		Datapath:   f.Choice.Datapath,
		Transport:  f.Choice.Transport,
		Encap:      f.Choice.Encap,
		Underlay:   f.Underlay.Addr,
		Device:     f.Underlay.Device,
		TunnelPort: tunnelPort(v, f.Self),
		MTU:        overlayMTU(v, f),
		TSO:        f.Choice.TSO,
		Networks:   map[state.NetworkID]*Network{},
		peers:      peersOf(v, f),
	}
	p := planner{last: last, host: h, view: v, facts: f}
	p.members = p.localMembers()
	p.number()
	p.tunnels()
	same := h.likewise(last)
	for _, m := range p.members {
		if old := last.Networks[m.net.ID]; same && p.unchanged(old, m) {
			h.Networks[m.net.ID] = old
		} else if n := p.network(m); n != nil {
			h.Networks[m.net.ID] = n
		}
	}
	p.links()
	p.firewall()
	return h
}

// planner holds what the steps of one For share.
type planner struct {
	last  *Host
	host  *Host
	view  *state.View
	facts Facts

	members []member // networks with local members, in the order of their names
	ways    map[state.NodeID]way

	ports   map[state.EndpointID]uint32
	peers   map[state.NodeID]uint32
	devices map[state.NetworkID]uint32
}

// member is a network with its local members, in the order of addresses.
type member struct {
	net   *state.Network
	local []*state.Endpoint
}

// way is how packets get to a peer: its address and, where there are tunnels, the port of its own.
type way struct {
	addr netip.Addr
	port uint32
}

// tunnelPort is the one this node publishes; it is equal in the whole cluster.
func tunnelPort(v *state.View, self state.NodeID) uint16 {
	if n, ok := v.Node(self); ok && n.TunnelPort != 0 {
		return n.TunnelPort
	}
	return DefaultTunnelPort
}

// peersOf returns the nodes that packets can be sent to, in the order of their ids. Two may have one
// address: a host that was installed anew, and what it was before.
func peersOf(v *state.View, f Facts) []peer {
	var ps []peer
	for _, n := range v.Nodes() {
		a := n.Addr.Unmap()
		ours := n.ID == f.Self || a == f.Underlay.Addr
		if !ours && a.IsValid() && a.Is4() == f.Underlay.Addr.Is4() && !a.IsUnspecified() && !a.IsMulticast() {
			ps = append(ps, peer{n.ID, a})
		}
	}
	return ps
}

// ends returns the peers that a tunnel is named after, in order: one for each address, for OVS
// refuses a second tunnel to the same one.
func (p *planner) ends() []state.NodeID {
	var ids []state.NodeID
	addrs, names := map[netip.Addr]bool{}, map[string]bool{}
	for _, peer := range p.host.peers {
		if name := tunnelName(peer.id); !addrs[peer.addr] && !names[name] {
			addrs[peer.addr], names[name] = true, true
			ids = append(ids, peer.id)
		}
	}
	return ids
}

// likewise reports whether two hosts differ at most in networks, so that an unchanged network has an
// unchanged plan.
func (h *Host) likewise(o *Host) bool {
	return h.Transport == o.Transport && h.Encap == o.Encap && h.Underlay == o.Underlay &&
		h.TunnelPort == o.TunnelPort && h.MTU == o.MTU &&
		slices.Equal(h.peers, o.peers) && slices.Equal(h.Tunnels, o.Tunnels)
}

// tunnels plans one tunnel to each peer, where the transport has tunnels, and the ways to all.
func (p *planner) tunnels() {
	ports := map[netip.Addr]uint32{}
	for _, peer := range p.host.peers {
		if port := p.peers[peer.id]; port != 0 {
			ports[peer.addr] = port
			p.host.Tunnels = append(p.host.Tunnels, Tunnel{
				Peer: peer.id, Name: tunnelName(peer.id), Remote: peer.addr, OFPort: port,
			})
		}
	}
	p.ways = make(map[state.NodeID]way, len(p.host.peers))
	for _, peer := range p.host.peers {
		p.ways[peer.id] = way{peer.addr, ports[peer.addr]}
	}
}

// localMembers returns the networks that have members here.
func (p *planner) localMembers() []member {
	var ms []member
	names := map[string]bool{}
	for _, n := range p.view.Networks() {
		if !n.HasMember(p.facts.Self) {
			continue
		}
		m := member{net: n}
		if old := p.last.Networks[n.ID]; old != nil && old.from == n {
			m.local = old.local
		} else {
			for e := range valid(n) {
				if e.Node == p.facts.Self {
					m.local = append(m.local, e)
				}
			}
		}
		if len(m.local) > 0 && !names[deviceName(n.ID)] {
			names[deviceName(n.ID)] = true
			ms = append(ms, m)
		}
	}
	return ms
}

// valid yields the reachable endpoints of a network whose MAC can be meant, in the order of
// addresses. Of two members with one MAC the lower address has it.
func valid(n *state.Network) iter.Seq[*state.Endpoint] {
	return func(yield func(*state.Endpoint) bool) {
		seen := make(map[state.MAC]bool, n.Len())
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

// unchanged reports whether an earlier plan of a network still holds, given that the host's own
// facts are as they were.
func (p *planner) unchanged(old *Network, m member) bool {
	if old == nil || old.from != m.net || len(old.Ports) != len(m.local) {
		return false
	}
	if old.Device != nil && old.Device.OFPort != p.devices[m.net.ID] {
		return false
	}
	for i, e := range m.local {
		if old.Ports[i].OFPort != p.ports[e.ID] || old.Ports[i].Link != p.linkName(e.ID) {
			return false
		}
	}
	return true
}

// network plans one network; nil where nothing of it can be.
func (p *planner) network(m member) *Network {
	n := &Network{
		ID: m.net.ID, Name: m.net.Name, VNI: m.net.VNI, Subnet: m.net.Def.Subnet,
		MTU: p.host.MTU, from: m.net, local: m.local,
	}
	if own := m.net.Def.MTU; own != 0 && own < n.MTU {
		n.MTU = own
	}
	for _, e := range m.local {
		if port := p.ports[e.ID]; port != 0 {
			n.Ports = append(n.Ports, Port{
				Endpoint: e.ID, Link: p.linkName(e.ID), OFPort: port, Addr: e.Addr, MAC: e.MAC,
			})
		}
	}
	device := p.devices[n.ID]
	byDevice := p.host.Transport == state.KernelVXLAN
	if len(n.Ports) == 0 || byDevice && device == 0 {
		return nil
	}
	for e := range valid(m.net) {
		w, ok := p.ways[e.Node]
		if byDevice {
			w.port = device
		}
		if ok && w.port != 0 {
			n.Remotes = append(n.Remotes, Remote{
				Endpoint: e.ID, Node: e.Node, Addr: e.Addr, MAC: e.MAC, Via: w.addr, OFPort: w.port,
			})
		}
	}
	if byDevice {
		n.Device = p.device(n, device)
	} else {
		n.Flood = p.flood(m.net)
	}
	return n
}

// flood returns the ports of the tunnels to the peers with members.
func (p *planner) flood(n *state.Network) []uint32 {
	var ports []uint32
	for _, id := range n.Members() {
		if w := p.ways[id]; w.port != 0 {
			ports = append(ports, w.port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// device plans the VXLAN device of a network whose members are planned.
func (p *planner) device(n *Network, port uint32) *Vxlan {
	d := &Vxlan{
		Name: deviceName(n.ID), VNI: n.VNI, Local: p.host.Underlay, Port: p.host.TunnelPort,
		MTU: n.MTU, OFPort: port,
	}
	for _, r := range n.Remotes {
		d.FDB = append(d.FDB, FDB{r.MAC, r.Via})
	}
	slices.SortFunc(d.FDB, func(a, b FDB) int { return slices.Compare(a.MAC[:], b.MAC[:]) })
	for _, id := range n.from.Members() {
		if w, ok := p.ways[id]; ok {
			d.Flood = append(d.Flood, w.addr)
		}
	}
	slices.SortFunc(d.Flood, netip.Addr.Compare)
	d.Flood = slices.Compact(d.Flood)
	return d
}

// links plans the veths of the local members whose container is there.
func (p *planner) links() {
	for _, m := range p.members {
		n := p.host.Networks[m.net.ID]
		if n == nil {
			continue
		}
		for _, e := range m.local {
			name := p.linkName(e.ID)
			if p.ports[e.ID] == 0 || name == "" {
				continue
			}
			p.host.Links = append(p.host.Links, Link{
				Endpoint: e.ID,
				Name:     name,
				IfName:   cmp.Or(p.facts.IfNames[e.ID], e.IfName),
				Prefer:   p.facts.Given[e.ID],
				Sandbox:  p.facts.Sandboxes[e.ID],
				Addr:     netip.PrefixFrom(e.Addr, n.Subnet.Bits()),
				MAC:      e.MAC,
				MTU:      n.MTU,
				Offloads: p.offloads(),
			})
		}
	}
	slices.SortFunc(p.host.Links, func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
}

// offloads reports whether containers may leave checksums and segmentation to what comes after. The
// userspace datapath cannot do them for its own tunnels, nor without TSO at all.
func (p *planner) offloads() bool {
	switch p.host.Transport {
	case state.OVSKernel:
		return true
	case state.KernelVXLAN:
		return p.host.TSO
	}
	return false
}

// firewall keeps strangers away from the VXLAN devices, which take packets from any address; tunnel
// ports take them from their peer only.
func (p *planner) firewall() {
	if p.host.Transport != state.KernelVXLAN {
		return
	}
	fw := Firewall{On: true, Port: p.host.TunnelPort}
	for _, peer := range p.host.peers {
		fw.Peers = append(fw.Peers, peer.addr)
	}
	slices.SortFunc(fw.Peers, netip.Addr.Compare)
	fw.Peers = slices.Compact(fw.Peers)
	p.host.Firewall = fw
}

// Names of devices have at most 15 characters (IFNAMSIZ); ours have 13.

func tunnelName(id state.NodeID) string { return "mt-" + id.String()[:10] }

func deviceName(id state.NetworkID) string { return "mv-" + id.String()[:10] }

// linkName returns the name of the host's end of an endpoint's veth; empty while its container is
// not there.
func (p *planner) linkName(id state.EndpointID) string {
	s, ok := p.facts.Sandboxes[id]
	if !ok {
		return ""
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(id))
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(b, s.Inode))
	return "mc-" + hex.EncodeToString(sum[:5])
}
