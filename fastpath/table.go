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
	// ContainerTwin and TrunkTwin are the slow twins of those: what comes out of them comes from the
	// switch and goes to the device.
	ContainerTwin
	TrunkTwin
)

// String returns the kind in one word.
func (k Kind) String() string {
	return [...]string{"none", "container", "trunk", "container-twin", "trunk-twin"}[k]
}

// twin reports whether the device is a slow twin.
func (k Kind) twin() bool { return k == ContainerTwin || k == TrunkTwin }

// Port is a device that the program sits on, and what it has to know of it. Comparable.
type Port struct {
	Device string
	Kind   Kind
	VNI    uint32
	Other  string     // the slow twin; of a twin the device it stands for
	MAC    state.MAC  // of a container: its only source MAC
	Addr   netip.Addr // and its only source address

	Network  state.NetworkID  // for who counts
	Endpoint state.EndpointID // of a container
}

// Member is whom a frame may be for: a MAC on a network.
type Member struct {
	VNI uint32
	MAC state.MAC
}

// Way is where a member's frames go. Comparable.
type Way struct {
	Device string
	Local  bool // a container's veth here, not the network's VXLAN device
}

// Table is what the fast path knows of one network: its ports in the order of devices, and ways.
type Table struct {
	Ports []Port
	Ways  map[Member]Way
}

// Compile returns what the fast path has to know of a network on transport C. Local members whose
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

// remote returns the way to a member elsewhere; none where there is no fast path, or that is not IPv4.
func remote(n *plan.Network, r *plan.Remote) (Member, Way, bool) {
	ok := n.Device != nil && n.Device.Twin != (plan.Twin{}) && r.Addr.Is4()
	if !ok {
		return Member{}, Way{}, false
	}
	return Member{n.VNI, r.MAC}, Way{Device: n.Device.Name}, true
}

// Local is [Compile] without the members elsewhere, of whom there are many more.
func Local(n *plan.Network) Table {
	t := Table{Ways: make(map[Member]Way, len(n.Ports))}
	if n.Device == nil || n.Device.Twin == (plan.Twin{}) {
		return t
	}
	add := func(p Port, twin plan.Twin, kind Kind) {
		p.VNI, p.Other, p.Network = n.VNI, twin.Slow, n.ID
		t.Ports = append(t.Ports, p, Port{Device: twin.Slow, Kind: kind, VNI: n.VNI, Other: p.Device})
	}
	add(Port{Device: n.Device.Name, Kind: Trunk}, n.Device.Twin, TrunkTwin)
	for _, p := range n.Ports {
		if p.Link == "" || !p.Addr.Is4() {
			continue
		}
		add(Port{Device: p.Link, Kind: Container, MAC: p.MAC, Addr: p.Addr, Endpoint: p.Endpoint}, p.Twin, ContainerTwin)
		t.Ways[Member{n.VNI, p.MAC}] = Way{p.Link, true}
	}
	slices.SortFunc(t.Ports, func(a, b Port) int { return cmp.Compare(a.Device, b.Device) })
	return t
}
