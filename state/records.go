package state

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"meshnet/crdt"
)

// NodeID names a host for as long as its state directory lives.
type NodeID = crdt.Node

// NetworkID is a hash of a network's definition and life: the same create on hosts that never met
// is one network, a network made again is a new one.
type NetworkID uint64

// String returns 16 hexadecimal digits.
func (n NetworkID) String() string { return fmt.Sprintf("%016x", uint64(n)) }

// EndpointID names one attachment of one container to one network: 64 random bits. Zero is none.
type EndpointID uint64

// String returns 16 hexadecimal digits.
func (e EndpointID) String() string { return fmt.Sprintf("%016x", uint64(e)) }

// ParseEndpointID is the inverse of [EndpointID.String].
func ParseEndpointID(s string) (EndpointID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("endpoint id %q: want 16 hexadecimal digits", s)
	}
	return EndpointID(n), nil
}

// MAC is an IEEE 802 48-bit address.
type MAC [6]byte

// MACOf returns the MAC of an IPv4 address in meshnet: 02:42 and the four bytes of the address.
func MACOf(a netip.Addr) MAC {
	b := a.As4()
	return MAC{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// ParseMAC reads the colon form.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("MAC address %q: want six bytes like 02:42:0a:02:00:05", s)
	}
	return MAC(hw), nil
}

// String returns the colon form in lower case.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Transport is how a host carries packets to its peers.
type Transport uint8

const (
	// NoTransport: not known.
	NoTransport Transport = iota
	// OVSKernel: OVS tunnel ports on the kernel datapath.
	OVSKernel
	// OVSUserspace: OVS tunnel ports on the userspace datapath, underlay address on an OVS bridge.
	OVSUserspace
	// KernelVXLAN: kernel VXLAN devices as ports of the userspace datapath.
	KernelVXLAN
)

// String returns the word of the command line: ovs-kernel, ovs-userspace, kernel-vxlan.
func (t Transport) String() string {
	switch t {
	case OVSKernel:
		return "ovs-kernel"
	case OVSUserspace:
		return "ovs-userspace"
	case KernelVXLAN:
		return "kernel-vxlan"
	}
	return "unknown"
}

// Encap is the encapsulation on the underlay.
type Encap uint8

const (
	// VXLAN is RFC 7348.
	VXLAN Encap = iota
	// Geneve is RFC 8926.
	Geneve
)

// String returns vxlan or geneve.
func (e Encap) String() string {
	if e == Geneve {
		return "geneve"
	}
	return "vxlan"
}

// Node is what a host says of itself. Key node of its Owned map.
type Node struct {
	ID    NodeID     // not encoded: the writer
	Epoch crdt.Epoch // not encoded: the op's

	Name       string
	Addr       netip.Addr // underlay address: gossip and tunnels
	GossipPort uint16
	TunnelPort uint16 // UDP
	Encap      Encap
	Transport  Transport
	MTU        uint32 // of the underlay, bytes
	Version    string // of the program

	unknown []byte // fields of a newer version, relayed
}

// Range is From to To, both included.
type Range struct{ From, To netip.Addr }

// Label is a key and a value that a person put on a network.
type Label struct{ Key, Value string }

// Definition is what a person asked a network to be. Hashed with its life it is the network's id, so
// it never changes.
type Definition struct {
	Name      string
	Subnet    netip.Prefix // masked
	Gateway   netip.Addr   // invalid: none
	Internal  bool
	BlockBits uint8   // largest block given in one grant, as a prefix length; 0: by rule
	MTU       uint32  // bytes; 0: from the underlay
	Reserve   []Range // sorted; never allocated
	Labels    []Label // sorted by key
	Life      uint32  // how often this definition was removed before

	unknown []byte
}

// Created is the shared record of a network: key net/<id>.
type Created struct {
	Def     Definition
	VNI     uint32 // chosen by the creator; where two collide the later one shows another
	Lamport uint64
	At      int64 // seconds since 1970: a datum to break ties, never compared with now
	Creator NodeID

	unknown []byte
}

// Endpoint is one container on one network. Key ep/<id> of its node's Owned map.
type Endpoint struct {
	ID   EndpointID
	Node NodeID // not encoded: the writer

	Network   NetworkID
	Container string // the name people know it by on its host
	Addr      netip.Addr
	MAC       MAC
	IfName    string   // inside the container
	Names     []string // sorted: names it answers to besides Container
	Alloc     uint64   // the allocation number that a release must name
	At        int64    // seconds since 1970, to break ties
	Down      bool     // its sandbox is gone for now
	// Publish lists the ports of its host that lead to it, sorted by (host port, protocol).
	Publish []Published

	unknown []byte
}

// Published is a port of a host that leads to a port of a container there.
type Published struct {
	Proto    Proto
	HostPort uint16
	Port     uint16 // of the container
}

// String returns 8080:80/tcp.
func (p Published) String() string { return fmt.Sprintf("%d:%d/%s", p.HostPort, p.Port, p.Proto) }

// Proto is a transport protocol that has ports.
type Proto uint8

const (
	// TCP is RFC 9293.
	TCP Proto = iota
	// UDP is RFC 768.
	UDP
)

// String returns tcp or udp.
func (p Proto) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// Use says that a node has members on a network and keeps it alive: key use/<net>. It holds the
// network's record, so that the network outlives the removal of its definition.
type Use struct {
	Node    NodeID // not encoded
	Network NetworkID
	Created Created

	unknown []byte
}

// BlockKind tells what a block record claims.
type BlockKind uint8

const (
	// Own: the writer owns the range.
	Own BlockKind = iota
	// Offer: the writer gives the range to To and no longer uses it.
	Offer
)

// BlockState tells whether an owned range may be allocated from.
type BlockState uint8

const (
	// Usable: stored by a witness, or none was needed.
	Usable BlockState = iota
	// Pending: taken, waiting for a witness.
	Pending
)

// Root is one act of taking the whole of a subnet. Roots of one network are ordered: sealed first,
// then by At, then by Creator.
type Root struct {
	Creator NodeID
	At      int64 // seconds since 1970
}

// Block is a range of a network's subnet and who owns it: key blk/<net>/<prefix>.
type Block struct {
	Node    NodeID // not encoded: the writer
	Network NetworkID
	Prefix  netip.Prefix
	Root    Root
	Sealed  bool // kept by the root's creator: another node has taken from it
	Ver     uint64
	Kind    BlockKind
	To      NodeID // Offer only
	ToEpoch crdt.Epoch
	Lineage []NodeID // grantors, oldest first
	State   BlockState

	unknown []byte
}
