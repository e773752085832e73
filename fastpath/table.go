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

// Port is a device that the program sits on, and what it has to know of it. Comparable.
type Port struct {
	Device string
	Kind   Kind
	VNI    uint32
	Other  string     // the slow twin; of a twin the device it stands for
	MAC    state.MAC  // of a container: its only source MAC
	Addr   netip.Addr // and its only source address
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
	t := Table{Ways: make(map[Member]Way, len(n.Ports)+len(n.Remotes))}
	if n.Device == nil || n.Device.Twin == (plan.Twin{}) {
		return t
	}
	add := func(p Port, twin plan.Twin, kind Kind) {
		p.VNI, p.Other = n.VNI, twin.Slow
		t.Ports = append(t.Ports, p, Port{Device: twin.Slow, Kind: kind, VNI: n.VNI, Other: p.Device})
	}
	add(Port{Device: n.Device.Name, Kind: Trunk}, n.Device.Twin, TrunkTwin)
	for _, p := range n.Ports {
		if p.Link == "" || !p.Addr.Is4() {
			continue
		}
		add(Port{Device: p.Link, Kind: Container, MAC: p.MAC, Addr: p.Addr}, p.Twin, ContainerTwin)
		t.Ways[Member{n.VNI, p.MAC}] = Way{p.Link, true}
	}
	for _, r := range n.Remotes {
		if r.Addr.Is4() {
			t.Ways[Member{n.VNI, r.MAC}] = Way{Device: n.Device.Name}
		}
	}
	slices.SortFunc(t.Ports, func(a, b Port) int { return cmp.Compare(a.Device, b.Device) })
	return t
}
