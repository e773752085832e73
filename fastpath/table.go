package fastpath

import (
	"cmp"
	"net/netip"
	"slices"

	"meshnet/plan"
	"meshnet/state"
)

// Kind is what a device is to the fast path.
type Kind uint8

const (
	// Container is the host's end of a container's veth.
	Container Kind = iota + 1
	// Trunk is a network's VXLAN device.
	Trunk
	// Door is the switch's end of the veth to the host's own stack.
	Door
	// Underlay is the device that tunnel packets come in by. It has no twin: what the program does not
	// take there goes its way as without it.
	Underlay
	// Tunnel is the device of all tunnels of the kernel's datapath. It has no twin either.
	Tunnel
	// ContainerTwin, TrunkTwin and DoorTwin are the slow twins of those: what comes out of them comes
	// from the switch and goes to the device.
	ContainerTwin
	TrunkTwin
	DoorTwin
)

// String returns the kind in one word.
func (k Kind) String() string {
	return [...]string{"none", "container", "trunk", "door", "underlay", "tunnel", "container-twin", "trunk-twin", "door-twin"}[k]
}

// twin reports whether the device is a slow twin.
func (k Kind) twin() bool { return k >= ContainerTwin }

// Port is a device that the program sits on, and what it has to know of it. Comparable.
type Port struct {
	Device string
	Kind   Kind
	VNI    uint32
	Other  string     // the slow twin; of a twin the device it stands for
	MAC    state.MAC  // of a container: its only source MAC
	Addr   netip.Addr // and its only source address; of underlay and tunnel: the host's tunnel end
	UDP    uint16     // of the underlay: the port of the tunnels

	Network  state.NetworkID  // for who counts
	Endpoint state.EndpointID // of a container
}

// Member is whom a frame may be for: a MAC on a network.
type Member struct {
	VNI uint32
	MAC state.MAC
}

// How is how a frame gets onto a device.
type How uint8

const (
	// Out: it is sent by the device.
	Out How = iota
	// Inside: it goes to the other end of a container's veth.
	Inside
	// Host: it is received by the host's end of the gateway's veth, by the network's [Exit].
	Host
	// Keyed: it is sent by the device of all tunnels, which is told the network and the peer.
	Keyed
)

// String returns how in one word.
func (h How) String() string { return [...]string{"out", "inside", "host", "keyed"}[h&3] }

// Way is where a member's frames go. Comparable.
type Way struct {
	Device string
	How    How
	Trunk  string     // of a container: its network's VXLAN device, or that of all tunnels, by which peers reach it
	Peer   netip.Addr // of a member elsewhere: the tunnel end of the host that has it
}

// Exit is how the containers of a network reach the world: whatever is not for the subnet goes to the
// host's own stack, under these MACs. Comparable.
type Exit struct {
	Subnet netip.Prefix
	Far    state.MAC // source: stands for the network
	Near   state.MAC // destination: the host's
}

// Inward is whom a frame from the host's own stack is for.
type Inward struct {
	Far  state.MAC // the network
	Addr netip.Addr
}

// Entry is the container of an [Inward]. Comparable.
type Entry struct {
	Device string
	Router state.MAC  // source: the network's gateway
	MAC    state.MAC  // destination
	Except netip.Addr // the host's own address on the network, from which it is for the switch; invalid: none
}

// Table is what the fast path knows of one network: its ports in the order of devices, and the rest.
type Table struct {
	Ports   []Port
	Ways    map[Member]Way
	Exit    Exit // the zero value: it does not lead to the world
	Entries map[Inward]Entry
}

// Doors returns the ports of the gateway; none if g is nil or has no fast path.
func Doors(g *plan.Gateway) []Port {
	if g == nil || g.Twin == (plan.Twin{}) {
		return nil
	}
	return []Port{
		{Device: g.Port, Kind: Door, Other: g.Twin.Slow},
		{Device: g.Twin.Slow, Kind: DoorTwin, Other: g.Port},
	}
}

// Outside returns the port that tunnel packets come in by, and the peers that may send them, and to whom
// they may be sent by it; false if they cannot be taken there: without a fast path, and over IPv6.
func Outside(h *plan.Host) (Port, []netip.Addr, bool) {
	if !h.FastPath || h.Encap != state.VXLAN || !h.Underlay.Is4() || h.Device == "" || h.TunnelPort == 0 {
		return Port{}, nil, false
	}
	return Port{Device: h.Device, Kind: Underlay, Addr: h.Underlay, UDP: h.TunnelPort}, h.Firewall.Peers, true
}

// Tunnels returns the device of all tunnels of the kernel's datapath, on transport A.
func Tunnels(h *plan.Host) []Port {
	if h.Trunk == "" || !h.Underlay.Is4() {
		return nil
	}
	return []Port{{Device: h.Trunk, Kind: Tunnel, Addr: h.Underlay}}
}

// Compile returns what the fast path has to know of a network on transports A and C. Local members whose
// container is not there, and all that is not IPv4, are left to the switch. A network that is the
// same pointer in two plans with a fast path has the same table.
func Compile(n *plan.Network) Table {
	t := Local(n)
	for _, r := range n.Remotes {
		if m, w, ok := remote(n, r); ok {
			t.Ways[m] = w
		}
	}
	return t
}

// remote returns the way to a member elsewhere; false where there is no fast path, or that is not IPv4.
func remote(n *plan.Network, r *plan.Remote) (Member, Way, bool) {
	w := Way{Device: n.Trunk, How: Keyed, Peer: r.Via}
	if n.Device != nil {
		w.Device, w.How = n.Device.Name, Out
	}
	ok := fast(n) && r.Addr.Is4() && (w.How == Out || r.Via.Is4())
	if !ok {
		return Member{}, Way{}, false
	}
	return Member{n.VNI, r.MAC}, w, true
}

// fast reports whether a network is planned with a fast path.
func fast(n *plan.Network) bool {
	return n.Trunk != "" || n.Device != nil && n.Device.Twin != (plan.Twin{})
}

// trunk returns the device by which frames of a network come from peers.
func trunk(n *plan.Network) string {
	if n.Device != nil {
		return n.Device.Name
	}
	return n.Trunk
}

// Local is [Compile] without the members elsewhere, of whom there are many more.
func Local(n *plan.Network) Table {
	t := Table{Ways: make(map[Member]Way, len(n.Ports)), Entries: map[Inward]Entry{}}
	if !fast(n) {
		return t
	}
	add := func(p Port, twin plan.Twin, kind Kind) {
		p.VNI, p.Other, p.Network = n.VNI, twin.Slow, n.ID
		t.Ports = append(t.Ports, p, Port{Device: twin.Slow, Kind: kind, VNI: n.VNI, Other: p.Device})
	}
	if n.Device != nil {
		add(Port{Device: n.Device.Name, Kind: Trunk}, n.Device.Twin, TrunkTwin)
	}
	for _, p := range n.Ports {
		if p.Link == "" || !p.Addr.Is4() {
			continue
		}
		add(Port{Device: p.Link, Kind: Container, MAC: p.MAC, Addr: p.Addr, Endpoint: p.Endpoint}, p.Twin, ContainerTwin)
		t.Ways[Member{n.VNI, p.MAC}] = Way{Device: p.Link, How: Inside, Trunk: trunk(n)}
		if n.Router.Out && n.Door != (plan.Door{}) {
			t.Entries[Inward{n.Door.Far, p.Addr}] = Entry{p.Link, n.Router.MAC, p.MAC, n.Host.Addr}
		}
	}
	if n.Router.Out && n.Door != (plan.Door{}) && n.Subnet.Addr().Is4() {
		t.Ways[Member{n.VNI, n.Router.MAC}] = Way{Device: n.Door.Name, How: Host}
		t.Exit = Exit{n.Subnet.Masked(), n.Door.Far, n.Door.Near}
	}
	slices.SortFunc(t.Ports, func(a, b Port) int { return cmp.Compare(a.Device, b.Device) })
	return t
}
