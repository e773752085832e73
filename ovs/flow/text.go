package flow

import (
	"fmt"
	"net/netip"
	"strings"

	"meshnet/state"
)

// String returns the flow as ovs-ofctl(8) add-flow takes it, fields in the order in which dump-flows
// prints them.
func (f Flow) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cookie=0x%x, table=%d, priority=%d", f.Cookie, f.Table, f.Priority)
	f.Match.write(&b)
	b.WriteString(" actions=")
	if len(f.Actions) == 0 {
		b.WriteString("drop")
	}
	for i, a := range f.Actions {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(a.String())
	}
	return b.String()
}

// String returns the match in ovs-ofctl's syntax; empty for the match of every packet.
func (m Match) String() string {
	var b strings.Builder
	m.write(&b)
	return strings.TrimPrefix(b.String(), ",")
}

// write writes each field with a comma before it.
func (m *Match) write(b *strings.Builder) {
	if w := m.protocol(); w != "" {
		b.WriteString("," + w)
	}
	writeNumber(b, "tun_id", m.TunID, "0x%x")
	writeNumber(b, "metadata", m.Metadata, "0x%x")
	if m.InPort != 0 {
		fmt.Fprintf(b, ",in_port=%d", m.InPort)
	}
	writeMAC(b, "dl_src", m.EthSrc)
	writeMAC(b, "dl_dst", m.EthDst)
	writePrefix(b, "nw_src", m.IPSrc)
	writePrefix(b, "nw_dst", m.IPDst)
	writePrefix(b, "arp_spa", m.ARPSPA)
	writePrefix(b, "arp_tpa", m.ARPTPA)
	if m.ARPOp != 0 {
		fmt.Fprintf(b, ",arp_op=%d", m.ARPOp)
	}
	writeMAC(b, "arp_sha", m.ARPSHA)
	writeMAC(b, "arp_tha", m.ARPTHA)
	writeNumber(b, "icmp_type", m.ICMPType, "%d")
	writeNumber(b, "icmp_code", m.ICMPCode, "%d")
	writeNumber(b, "tp_src", m.TPSrc, "%d")
	writeNumber(b, "tp_dst", m.TPDst, "%d")
}

// protocol returns the word, or the fields, for the Ethernet type and IP protocol.
func (m *Match) protocol() string {
	for _, w := range protocols {
		if w.eth == m.EthType && w.ip == m.IPProto {
			return w.word
		}
	}
	word := fmt.Sprintf("dl_type=0x%04x", m.EthType)
	for _, w := range protocols {
		if w.eth == m.EthType && w.ip == 0 {
			word = w.word
		}
	}
	if m.IPProto != 0 {
		word += fmt.Sprintf(",nw_proto=%d", m.IPProto)
	}
	return word
}

// protocols are ovs-ofctl's words for an Ethernet type with or without an IP protocol.
var protocols = [...]struct {
	word string
	eth  uint16
	ip   uint8
}{
	{"", 0, 0},
	{"ip", EthTypeIPv4, 0},
	{"arp", EthTypeARP, 0},
	{"ipv6", EthTypeIPv6, 0},
	{"icmp", EthTypeIPv4, ProtoICMP},
	{"tcp", EthTypeIPv4, ProtoTCP},
	{"udp", EthTypeIPv4, ProtoUDP},
}

// writeNumber writes an exact value in the given format, a masked one in hexadecimal.
func writeNumber[T uint8 | uint16 | uint64](b *strings.Builder, name string, v Masked[T], format string) {
	switch v.Mask {
	case 0:
	case ^T(0):
		fmt.Fprintf(b, ",%s="+format, name, v.Value)
	default:
		fmt.Fprintf(b, ",%s=0x%x/0x%x", name, v.Value, v.Mask)
	}
}

func writeMAC(b *strings.Builder, name string, v Masked[state.MAC]) {
	switch v.Mask {
	case state.MAC{}:
	case broadcast:
		fmt.Fprintf(b, ",%s=%s", name, v.Value)
	default:
		fmt.Fprintf(b, ",%s=%s/%s", name, v.Value, v.Mask)
	}
}

func writePrefix(b *strings.Builder, name string, p netip.Prefix) {
	switch {
	case !p.IsValid():
	case p.IsSingleIP():
		fmt.Fprintf(b, ",%s=%s", name, p.Addr())
	default:
		fmt.Fprintf(b, ",%s=%s", name, p)
	}
}

// String returns output:PORT.
func (a Output) String() string { return fmt.Sprintf("output:%d", a.Port) }

// String returns IN_PORT.
func (OutputInPort) String() string { return "IN_PORT" }

// String returns CONTROLLER:65535, which is the whole packet.
func (Controller) String() string { return "CONTROLLER:65535" }

// String returns set_field:VALUE->FIELD.
func (a SetField) String() string {
	return "set_field:" + a.Field.format(a.Value) + "->" + a.Field.String()
}

// String returns move:FIELD[]->FIELD[].
func (a Move) String() string {
	return "move:" + a.From.whole() + "->" + a.To.whole()
}

// String returns goto_table:TABLE.
func (a Goto) String() string { return fmt.Sprintf("goto_table:%d", a.Table) }

// whole returns the field as move names it.
func (f Field) whole() string {
	if f.Bits() == 0 {
		return "unknown[]"
	}
	return fields[f].move + "[]"
}

// format returns a value of the field.
func (f Field) format(v uint64) string {
	if f.Bits() == 0 {
		return fmt.Sprintf("0x%x", v)
	}
	switch fields[f].form {
	case formMAC:
		return state.MAC{byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}.String()
	case formAddr:
		return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}).String()
	case formDecimal:
		return fmt.Sprintf("%d", v)
	}
	return fmt.Sprintf("0x%x", v)
}
