package flow

import (
	"encoding/binary"
	"net/netip"

	"meshnet/state"
)

// Action is one of [Output], [OutputInPort], [Controller], [SetField], [Move] and [Goto]; a value that can be
// compared.
type Action interface {
	// String returns the action in ovs-ofctl's syntax.
	String() string
	action()
}

// Output sends the packet as it is now to a port; never to the port it came from.
type Output struct{ Port uint32 }

// OutputInPort sends the packet back to the port it came from.
type OutputInPort struct{}

// Controller hands the whole packet to the controllers that want to hear of packets.
type Controller struct{}

// SetField writes a whole field.
type SetField struct {
	Field Field
	Value uint64 // right-aligned: a MAC is its 48, an IPv4 address its 32 bits in network order
}

// Move copies a whole field to another of the same width.
type Move struct{ From, To Field }

// Goto continues in a later table, once the other actions are done; it is the last of a flow's
// actions. On the wire it is an instruction, not an action.
type Goto struct{ Table uint8 }

func (Output) action()       {}
func (OutputInPort) action() {}
func (Controller) action()   {}
func (SetField) action()     {}
func (Move) action()         {}
func (Goto) action()         {}

// SetMAC writes a MAC.
func SetMAC(f Field, m state.MAC) SetField {
	return SetField{f, uint64(binary.BigEndian.Uint16(m[:]))<<32 | uint64(binary.BigEndian.Uint32(m[2:]))}
}

// SetAddr writes an IPv4 address.
func SetAddr(f Field, a netip.Addr) SetField {
	b := a.As4()
	return SetField{f, uint64(binary.BigEndian.Uint32(b[:]))}
}

// Field is a packet or metadata field that actions write or copy.
type Field uint8

// The fields.
const (
	FieldTunID    Field = iota + 1 // 64 bits
	FieldMetadata                  // 64 bits
	FieldEthSrc                    // MAC
	FieldEthDst                    // MAC
	FieldARPOp                     // 16 bits
	FieldARPSPA                    // IPv4 address of the sender
	FieldARPTPA                    // IPv4 address of the target
	FieldARPSHA                    // MAC of the sender
	FieldARPTHA                    // MAC of the target
	FieldIPSrc                     // IPv4 address
	FieldIPDst                     // IPv4 address
	FieldTTL                       // 8 bits, of IP
	FieldICMPType                  // 8 bits
	fieldEnd
)

// form is how a field's value is written.
type form uint8

const (
	formHex form = iota
	formDecimal
	formMAC
	formAddr
)

// fields has for each Field its width and its names: of set_field, and of move (ovs-fields(7)).
var fields = [fieldEnd]struct {
	bits      uint8
	form      form
	set, move string
}{
	FieldTunID:    {64, formHex, "tun_id", "NXM_NX_TUN_ID"},
	FieldMetadata: {64, formHex, "metadata", "OXM_OF_METADATA"},
	FieldEthSrc:   {48, formMAC, "eth_src", "NXM_OF_ETH_SRC"},
	FieldEthDst:   {48, formMAC, "eth_dst", "NXM_OF_ETH_DST"},
	FieldARPOp:    {16, formDecimal, "arp_op", "NXM_OF_ARP_OP"},
	FieldARPSPA:   {32, formAddr, "arp_spa", "NXM_OF_ARP_SPA"},
	FieldARPTPA:   {32, formAddr, "arp_tpa", "NXM_OF_ARP_TPA"},
	FieldARPSHA:   {48, formMAC, "arp_sha", "NXM_NX_ARP_SHA"},
	FieldARPTHA:   {48, formMAC, "arp_tha", "NXM_NX_ARP_THA"},
	FieldIPSrc:    {32, formAddr, "ip_src", "NXM_OF_IP_SRC"},
	FieldIPDst:    {32, formAddr, "ip_dst", "NXM_OF_IP_DST"},
	FieldTTL:      {8, formDecimal, "nw_ttl", "NXM_NX_IP_TTL"},
	FieldICMPType: {8, formDecimal, "icmp_type", "NXM_OF_ICMP_TYPE"},
}

// Bits returns the width of the field; 0 for what is no field.
func (f Field) Bits() int {
	if f >= fieldEnd {
		return 0
	}
	return int(fields[f].bits)
}

// String returns the field's name in ovs-ofctl's syntax.
func (f Field) String() string {
	if f.Bits() == 0 {
		return "unknown"
	}
	return fields[f].set
}
