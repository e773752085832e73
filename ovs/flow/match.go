package flow

import (
	"bytes"
	"cmp"
	"net/netip"

	"meshnet/state"
)

// Ethernet types and IP protocols that matches need (IEEE 802 and IANA numbers).
const (
	EthTypeIPv4 uint16 = 0x0800
	EthTypeARP  uint16 = 0x0806
	EthTypeIPv6 uint16 = 0x86dd

	// EthTypeProbe is for experiments on one's own network: local experimental EtherType 1.
	EthTypeProbe uint16 = 0x88b5

	ProtoICMP uint8 = 1
	ProtoTCP  uint8 = 6
	ProtoUDP  uint8 = 17
)

// Operations of ARP (RFC 826).
const (
	ARPRequest uint16 = 1
	ARPReply   uint16 = 2
)

// Masked is a value of which the bits in Mask count. The zero Mask matches everything; a bit of
// Value outside Mask is zero.
type Masked[T comparable] struct{ Value, Mask T }

// Any reports whether it matches everything.
func (m Masked[T]) Any() bool {
	var none T
	return m.Mask == none
}

// Exact64 matches one value of a 64-bit field.
func Exact64(v uint64) Masked[uint64] { return Masked[uint64]{v, ^uint64(0)} }

// Exact16 matches one value of a 16-bit field.
func Exact16(v uint16) Masked[uint16] { return Masked[uint16]{v, ^uint16(0)} }

// Exact8 matches one value of an 8-bit field.
func Exact8(v uint8) Masked[uint8] { return Masked[uint8]{v, ^uint8(0)} }

// ExactMAC matches one MAC.
func ExactMAC(m state.MAC) Masked[state.MAC] { return Masked[state.MAC]{m, broadcast} }

// Host matches one address.
func Host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

var broadcast = state.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Multicast matches the MACs of groups, the broadcast among them: the I/G bit (IEEE 802).
var Multicast = Masked[state.MAC]{state.MAC{0x01}, state.MAC{0x01}}

// Match is what a packet must have. The zero value of a field matches everything, so the zero Match
// matches every packet. The fields of a protocol need EthType, and IPProto where there is one, to be
// set to that protocol (OpenFlow 1.5, "Flow Match Field Prerequisite").
type Match struct {
	InPort   uint32 // OpenFlow port number; 0: any
	TunID    Masked[uint64]
	Metadata Masked[uint64]

	EthSrc, EthDst Masked[state.MAC]
	EthType        uint16 // 0: any

	// IPSrc and IPDst are masked IPv4 prefixes, for EthTypeIPv4.
	IPSrc, IPDst netip.Prefix
	IPProto      uint8 // 0: any

	// The ARP fields are for EthTypeARP; the addresses are masked IPv4 prefixes.
	ARPOp          uint16 // 0: any
	ARPSPA, ARPTPA netip.Prefix
	ARPSHA, ARPTHA Masked[state.MAC]

	// The ICMP fields are for ProtoICMP and matched exactly.
	ICMPType, ICMPCode Masked[uint8]

	// TPSrc and TPDst are the ports of ProtoTCP and ProtoUDP.
	TPSrc, TPDst Masked[uint16]
}

func (m *Match) compare(o *Match) int {
	return cmp.Or(
		cmp.Compare(m.InPort, o.InPort),
		compareNumber(m.TunID, o.TunID),
		compareNumber(m.Metadata, o.Metadata),
		compareMAC(m.EthSrc, o.EthSrc),
		compareMAC(m.EthDst, o.EthDst),
		cmp.Compare(m.EthType, o.EthType),
		comparePrefix(m.IPSrc, o.IPSrc),
		comparePrefix(m.IPDst, o.IPDst),
		cmp.Compare(m.IPProto, o.IPProto),
		cmp.Compare(m.ARPOp, o.ARPOp),
		comparePrefix(m.ARPSPA, o.ARPSPA),
		comparePrefix(m.ARPTPA, o.ARPTPA),
		compareMAC(m.ARPSHA, o.ARPSHA),
		compareMAC(m.ARPTHA, o.ARPTHA),
		compareNumber(m.ICMPType, o.ICMPType),
		compareNumber(m.ICMPCode, o.ICMPCode),
		compareNumber(m.TPSrc, o.TPSrc),
		compareNumber(m.TPDst, o.TPDst),
	)
}

func compareNumber[T uint8 | uint16 | uint64](a, b Masked[T]) int {
	return cmp.Or(cmp.Compare(a.Value, b.Value), cmp.Compare(a.Mask, b.Mask))
}

func compareMAC(a, b Masked[state.MAC]) int {
	return cmp.Or(bytes.Compare(a.Value[:], b.Value[:]), bytes.Compare(a.Mask[:], b.Mask[:]))
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
