package plan

import (
	"cmp"
	"net/netip"
	"strings"

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
	NICs       []string   // the kernel's devices that are ports of Device's userspace bridge, sorted; B
	TunnelPort uint16     // UDP
	MTU        uint32     // largest of any overlay device, bytes
	// TSO: vswitchd runs with userspace TSO, so container offloads stay on.
	TSO bool
	// FastPath: known unicast is sent from device to device before it comes to the switch, whose
	// ports are the slow twins of the devices; transports A and C.
	FastPath bool
	// Trunk is the device by which all tunnels of the kernel's datapath go, made by it; A with a fast path.
	Trunk    string
	Tunnels  []Tunnel // in the order of peers; A and B
	Networks map[state.NetworkID]*Network
	Links    []Link   // in the order of names
	Gateway  *Gateway // nil: no network here has to do with the host's own stack
	Firewall Firewall

	peers []peer         // all that the ways of Networks depend on; the slice of the plan before if they are the same
	ends  []state.NodeID // of them those that a tunnel is named after; nil where there are no tunnels
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
	Trunk  string // that of the Host
	Ports  []Port // local members, in the order of addresses
	// Remotes are the members elsewhere, in the order of addresses. One that did not change is the same
	// pointer as in the plan before.
	Remotes []*Remote
	Router  Router // zero: the network has no gateway
	Host    Own    // zero: this host has no address on it
	Door    Door   // zero: nothing of it goes to this host's own stack
	// Flood lists the OpenFlow ports of the tunnels to peers with members here, ascending; A and B.
	Flood []uint32

	from  *state.Network    // what it was planned from
	local []*state.Endpoint // its members here, in the order of addresses
	odd   bool              // a member has a MAC that does not come from its address
}

// Router is the gateway of a network as its members see it: the same address and MAC on every host,
// answered for on each.
type Router struct {
	Addr netip.Addr
	MAC  state.MAC
	Out  bool // to the world, by this host and its address
}

// Own is this host's own address on a network (meshnet expose).
type Own struct {
	Endpoint state.EndpointID
	Addr     netip.Addr
	MAC      state.MAC
}

// Door is how packets of a network go to and come from this host's own stack: through one device for
// all networks, told apart by a MAC.
type Door struct {
	OFPort uint32
	Name   string    // of the device, or of the host's end of the veth
	Near   state.MAC // its MAC
	Far    state.MAC // stands for the network on that device
}

// Gateway is the veth or tap between the bridge and this host's own stack, and what the host has to know to
// route by it. Of the host's end everything but the two MACs is the kernel's business.
type Gateway struct {
	Name     string // of the host's end
	Port     string // of the veth's other end: it, or its twin, is an OVS port; empty: Name is a tap, and an OVS port itself
	Twin     Twin   // of Port
	OFPort   uint32
	MAC      state.MAC // of the host's end
	MTU      uint32
	Offloads bool  // of a veth; those of a tap are ovs-vswitchd's to set
	Ways     []Way // in the order of marks
	Ports    []Published
	// Closed is the subnets of all networks of the mesh, sorted: from one of them nothing goes to
	// another by this host.
	Closed []netip.Prefix
}

// Way is a network as the host's own stack sees it.
type Way struct {
	Network state.NetworkID
	Subnet  netip.Prefix
	// Mark is on packets and connections of the network, and the number of its routing table: two
	// networks may have one subnet.
	Mark uint32
	MAC  state.MAC  // stands for the network on the gateway's device
	Via  netip.Addr // its next hop: of 240.0.0.0/4, so nobody's; never on a wire
	MTU  uint32
	Out  bool       // its containers reach the world
	Host netip.Addr // this host's own address on it; invalid: none
}

// Published is a port of this host that leads to a container here. The client's address is kept.
type Published struct {
	state.Published
	Mark uint32 // of the container's network
	Addr netip.Addr
}

// Port is a local member of a network.
type Port struct {
	Endpoint state.EndpointID
	Link     string // the host's end of its veth; empty while the container is not there
	Twin     Twin   // of Link
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

// Twin is the slow twin of a device whose frames the fast path sees first: a veth that what it does
// not send itself goes through. The zero value is none.
type Twin struct {
	Slow string // the end that the fast path sends to and takes from
	Port string // the other, an OVS port
}

// twinOf returns the twin of a device, named after it.
func twinOf(device string) Twin {
	kind, id, _ := strings.Cut(device, "-")
	return Twin{Slow: kind + "s" + id, Port: kind + "o" + id}
}

// Vxlan is a kernel VXLAN device of one network. It, or its twin, is an OVS port. No learning, no
// ageing: its entries say behind which peer each MAC is.
type Vxlan struct {
	Name   string // mv- and ten hexadecimal digits of the network's id
	Twin   Twin
	VNI    uint32
	Local  netip.Addr
	Port   uint16 // UDP
	MTU    uint32
	OFPort uint32
	// Flood is the peers with members, sorted: entries for 00:00:00:00:00:00. The other entries are
	// those of the network's Remotes.
	Flood []netip.Addr
}

// Switch returns the name of the device that is the OVS port; empty while there is none.
func (p Port) Switch() string { return cmp.Or(p.Twin.Port, p.Link) }

// Switch returns the name of the device that is the OVS port.
func (d *Vxlan) Switch() string { return cmp.Or(d.Twin.Port, d.Name) }

// Switch returns the name of the device that is the OVS port.
func (g *Gateway) Switch() string { return cmp.Or(g.Twin.Port, g.Port, g.Name) }

// Tap reports whether it is a tap, of which ovs-vswitchd has the other end (tap in ovs-vswitchd.conf.db(5), "Interface").
func (g *Gateway) Tap() bool { return g.Port == "" }

// Link is a veth between an OVS port and a container.
type Link struct {
	Endpoint state.EndpointID
	// Name of the host's end: mc- and ten hexadecimal digits of a hash of endpoint and sandbox, so
	// that a new sandbox gets a new name (OVS goes on using the old device of a name made again).
	Name     string
	Twin     Twin
	IfName   string // in the container; empty: Prefer if it is free, else the first free ethN
	Prefer   string // the name it had before
	Sandbox  Sandbox
	Addr     netip.Prefix
	MAC      state.MAC
	MTU      uint32
	Offloads bool // false: TX checksum offload off at both ends
	// Gateway is what the container's default route leads to; invalid: none by this link. A default
	// route that others gave the container stays.
	Gateway netip.Addr
}

// Firewall says who may send to the tunnel port.
type Firewall struct {
	On    bool         // what comes from others than peers is dropped here: transport C
	Port  uint16       // UDP
	Peers []netip.Addr // sorted
	// Gossip is the UDP and TCP port by which nodes talk; 0: not known. No container may.
	Gossip uint16
}

// Sandbox is the network namespace of a container as it is now.
type Sandbox struct {
	Path  string // opens the namespace: /proc/PID/ns/net, /run/netns/NAME, /proc/self/fd/N
	Inode uint64 // of the namespace: another inode is another sandbox
	Host  bool   // the host itself, in place of a container
}

// Step is one thing that was done to the host. For people: printed, logged, counted; nothing
// decides by it.
type Step struct{ Op, What string }

// String returns the step as one line.
func (s Step) String() string { return s.Op + " " + s.What }

// Traffic is what came in by one device of the fast path since the device is on it, in packets, by what
// became of them.
type Traffic struct {
	Device   string
	Network  state.NetworkID
	Endpoint state.EndpointID // of a container's device; else 0
	Fast     uint64           // sent straight on
	Slow     uint64           // to the switch: not for the fast path, or to whom it does not know
	Refused  uint64           // to the switch, which drops them: not the container's own MAC or address
	Broken   uint64           // to the switch: no whole IPv4 header
	Returned uint64           // from the switch
	Bytes    uint64           // of Fast
}

// Found is what an applier saw that a later plan has to know.
type Found struct {
	Ports    map[state.EndpointID]uint32 // OpenFlow ports in use, by our marks
	Tunnels  map[state.NodeID]uint32
	Devices  map[state.NetworkID]uint32
	Gateway  uint32                      // 0: there is none
	IfNames  map[state.EndpointID]string // names that interfaces got inside containers
	Gone     []state.EndpointID          // their sandbox is no longer there
	Features Features
}

// Features is what the datapath can do.
type Features struct {
	TSO bool // userspace TSO is on in the running vswitchd
}
