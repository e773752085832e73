package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
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
	NoDefault map[state.EndpointID]bool    // the container's default route is to be left alone
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
		NICs:       f.Choice.NICs,
		TunnelPort: tunnelPort(v, f.Self),
		MTU:        overlayMTU(v, f),
		TSO:        f.Choice.TSO,
		FastPath:   f.Choice.FastPath && canFast(f.Choice),
		Networks:   map[state.NetworkID]*Network{},
		peers:      peersOf(v, f),
	}
	if slices.Equal(h.peers, last.peers) {
		h.peers, h.ends = last.peers, last.ends
	}
	if h.FastPath && h.Transport == state.OVSKernel {
		h.Trunk = trunkName(h.TunnelPort)
	}
	p := planner{last: last, host: h, view: v, facts: f}
	p.members = p.localMembers()
	p.number()
	p.tunnels()
	same := h.likewise(last)
	for _, m := range p.members {
		if same && p.unchanged(m) {
			h.Networks[m.net.ID] = m.old
		} else if n := p.network(m, same); n != nil {
			h.Networks[m.net.ID] = n
		}
	}
	p.links()
	p.defaultRoutes()
	p.openGateway()
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
	gateway uint32
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
	if p.host.ends != nil {
		return p.host.ends
	}
	var ids []state.NodeID
	addrs, names := map[netip.Addr]bool{}, map[string]bool{}
	for _, peer := range p.host.peers {
		if name := tunnelName(peer.id); !addrs[peer.addr] && !names[name] {
			addrs[peer.addr], names[name] = true, true
			ids = append(ids, peer.id)
		}
	}
	p.host.ends = ids
	return ids
}

// samePeers reports whether the peers are those of the plan before, so that what follows from them alone is.
func (p *planner) samePeers() bool {
	return len(p.host.peers) > 0 && len(p.host.peers) == len(p.last.peers) && &p.host.peers[0] == &p.last.peers[0]
}

// likewise reports whether two hosts differ at most in networks, so that an unchanged network has an
// unchanged plan.
func (h *Host) likewise(o *Host) bool {
	return h.Transport == o.Transport && h.FastPath == o.FastPath && h.Encap == o.Encap && h.Underlay == o.Underlay &&
		h.TunnelPort == o.TunnelPort && h.MTU == o.MTU &&
		slices.Equal(h.peers, o.peers) && slices.Equal(h.Tunnels, o.Tunnels)
}

// tunnels plans one tunnel to each peer, where the transport has tunnels, and the ways to all.
func (p *planner) tunnels() {
	if p.samePeers() && len(p.peers) == len(p.last.Tunnels) &&
		!slices.ContainsFunc(p.last.Tunnels, func(t Tunnel) bool { return p.peers[t.Peer] != t.OFPort }) {
		p.host.Tunnels = p.last.Tunnels
	} else {
		for _, peer := range p.host.peers {
			if port := p.peers[peer.id]; port != 0 {
				p.host.Tunnels = append(p.host.Tunnels, Tunnel{
					Peer: peer.id, Name: tunnelName(peer.id), Remote: peer.addr, OFPort: port,
				})
			}
		}
	}
	ports := make(map[netip.Addr]uint32, len(p.host.Tunnels))
	for _, t := range p.host.Tunnels {
		ports[t.Remote] = t.OFPort
	}
	p.ways = make(map[state.NodeID]way, len(p.host.peers))
	for _, peer := range p.host.peers {
		p.ways[peer.id] = way{peer.addr, ports[peer.addr]}
	}
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
		Name: deviceName(n.ID), Twin: p.twin(deviceName(n.ID)), VNI: n.VNI, Local: p.host.Underlay, Port: p.host.TunnelPort,
		MTU: n.MTU, OFPort: port,
	}
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
				Twin:     p.twin(name),
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

// twin returns the slow twin of a device; none without a fast path.
func (p *planner) twin(device string) Twin {
	if !p.host.FastPath || device == "" {
		return Twin{}
	}
	return twinOf(device)
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
// ports take them from their peer only. A packet that this host forwards, perhaps under its own
// address, must not be taken for one of its own on any transport.
func (p *planner) firewall() {
	fw := Firewall{On: p.host.Transport == state.KernelVXLAN, Port: p.host.TunnelPort}
	if n, ok := p.view.Node(p.facts.Self); ok {
		fw.Gossip = n.GossipPort
	}
	p.host.Firewall = fw
	if p.samePeers() {
		p.host.Firewall.Peers = p.last.Firewall.Peers
		return
	}
	var peers []netip.Addr
	for _, peer := range p.host.peers {
		peers = append(peers, peer.addr)
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	p.host.Firewall.Peers = slices.Compact(peers)
}

// canFast reports whether there is a fast path for a transport and its encapsulation.
func canFast(c Choice) bool {
	return c.Transport == state.KernelVXLAN || c.Transport == state.OVSKernel && c.Encap == state.VXLAN
}

// trunkName is the name that ovs-vswitchd gives to the device of all VXLAN tunnels by a UDP port
// (lib/dpif-netlink-rtnl.c).
func trunkName(udp uint16) string { return fmt.Sprint("vxlan_sys_", udp) }

// Names of devices have at most 15 characters (IFNAMSIZ); ours have 13.

func tunnelName(id state.NodeID) string { return "mt-" + id.String()[:10] }

func deviceName(id state.NetworkID) string { return "mv-" + id.String()[:10] }

// linkName returns the name of the host's end of an endpoint's veth; empty while its container is
// not there.
func (p *planner) linkName(id state.EndpointID) string {
	s, ok := p.facts.Sandboxes[id]
	if !ok || s.Host {
		return ""
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(id))
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(b, s.Inode))
	return "mc-" + hex.EncodeToString(sum[:5])
}
