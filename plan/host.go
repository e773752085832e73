package plan

import (
	"net/netip"

	"meshnet/state"
)

// Host is what one host should look like: everything and nothing but what meshnet makes there.
// Immutable. Networks that did not change are the same pointers as in the Host before.
type Host struct {
	Bridge     string // name of the bridge: meshnet
	Datapath   string // OVS datapath_type: system or netdev
	Transport  state.Transport
	Encap      state.Encap
	Underlay   netip.Addr // this host's tunnel end
	Device     string     // the interface that has it
	TunnelPort uint16     // UDP
	MTU        uint32     // largest of any overlay device, bytes
	// TSO: vswitchd runs with userspace TSO, so container offloads stay on.
	TSO      bool
	Tunnels  []Tunnel // in the order of peers; A and B
	Networks map[state.NetworkID]*Network
	Links    []Link // in the order of names
	Firewall Firewall

	peers []peer // all that the ways of Networks depend on
}

// Tunnel is an OVS tunnel port to one peer, key=flow.
type Tunnel struct {
	Peer   state.NodeID
	Name   string // of the port: mt- and ten hexadecimal digits of the peer's id
	Remote netip.Addr
	OFPort uint32
}

// Network is a network with a member on this host. Immutable.
type Network struct {
	ID     state.NetworkID
	Name   string
	VNI    uint32
	Subnet netip.Prefix
	MTU    uint32 // of its devices, bytes
	Device *Vxlan // transport C only
	Ports  []Port // local members, in the order of addresses
	// Remotes are the members elsewhere, in the order of addresses.
	Remotes []Remote
	// Flood lists the OpenFlow ports of the tunnels to peers with members here, ascending; A and B.
	Flood []uint32

	from  *state.Network    // what it was planned from
	local []*state.Endpoint // its members here, in the order of addresses
}

// Port is a local member of a network.
type Port struct {
	Endpoint state.EndpointID
	Link     string // the host's end of its veth, an OVS port; empty while the container is not there
	OFPort   uint32
	Addr     netip.Addr
	MAC      state.MAC
}

// Remote is a member of a network on another host.
type Remote struct {
	Endpoint state.EndpointID
	Node     state.NodeID
	Addr     netip.Addr
	MAC      state.MAC
	Via      netip.Addr // the peer's tunnel end
	OFPort   uint32     // of the tunnel to it (A, B) or of the network's device (C)
}

// Vxlan is a kernel VXLAN device of one network and an OVS port. No learning, no ageing.
type Vxlan struct {
	Name   string // mv- and ten hexadecimal digits of the network's id
	VNI    uint32
	Local  netip.Addr
	Port   uint16 // UDP
	MTU    uint32
	OFPort uint32
	FDB    []FDB        // unicast, in the order of MACs
	Flood  []netip.Addr // peers with members, sorted: entries for 00:00:00:00:00:00
}

// FDB says behind which peer a MAC is.
type FDB struct {
	MAC state.MAC
	Via netip.Addr
}

// Link is a veth between an OVS port and a container.
type Link struct {
	Endpoint state.EndpointID
	// Name of the host's end: mc- and ten hexadecimal digits of a hash of endpoint and sandbox, so
	// that a new sandbox gets a new name (OVS goes on using the old device of a name made again).
	Name     string
	IfName   string // in the container; empty: Prefer if it is free, else the first free ethN
	Prefer   string // the name it had before
	Sandbox  Sandbox
	Addr     netip.Prefix
	MAC      state.MAC
	MTU      uint32
	Offloads bool // false: TX checksum offload off at both ends
}

// Firewall says who may send to the tunnel port of transport C.
type Firewall struct {
	On    bool
	Port  uint16       // UDP
	Peers []netip.Addr // sorted
}

// Sandbox is the network namespace of a container as it is now.
type Sandbox struct {
	Path  string // opens the namespace: /proc/PID/ns/net, /run/netns/NAME, /proc/self/fd/N
	Inode uint64 // of the namespace: another inode is another sandbox
}

// Step is one thing that was done to the host. For people: printed, logged, counted; nothing
// decides by it.
type Step struct{ Op, What string }

// String returns the step as one line.
func (s Step) String() string { return s.Op + " " + s.What }

// Found is what an applier saw that a later plan has to know.
type Found struct {
	Ports    map[state.EndpointID]uint32 // OpenFlow ports in use, by our marks
	Tunnels  map[state.NodeID]uint32
	Devices  map[state.NetworkID]uint32
	IfNames  map[state.EndpointID]string // names that interfaces got inside containers
	Gone     []state.EndpointID          // their sandbox is no longer there
	Features Features
}

// Features is what the datapath can do.
type Features struct {
	TSO bool // userspace TSO is on in the running vswitchd
}
