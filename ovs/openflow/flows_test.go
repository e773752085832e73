package openflow

import (
	"net/netip"

	"pgregory.net/rapid"

	"meshnet/ovs/flow"
	"meshnet/state"
)

// The generators below give flows that a switch takes: each field with those it depends on, each value within its mask.

func genMasked[T uint8 | uint16 | uint64](g *rapid.Generator[T]) *rapid.Generator[flow.Masked[T]] {
	return rapid.Custom(func(t *rapid.T) flow.Masked[T] {
		mask := ^T(0)
		switch rapid.IntRange(0, 2).Draw(t, "mask kind") {
		case 0:
			return flow.Masked[T]{}
		case 1:
			mask = g.Draw(t, "mask")
		}
		return flow.Masked[T]{Value: g.Draw(t, "value") & mask, Mask: mask}
	})
}

func genExact8(t *rapid.T, label string) flow.Masked[uint8] {
	if rapid.Bool().Draw(t, label+" any") {
		return flow.Masked[uint8]{}
	}
	return flow.Exact8(rapid.Uint8().Draw(t, label))
}

var genMAC = rapid.Custom(func(t *rapid.T) (m state.MAC) {
	copy(m[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
	return m
})

var genMaskedMAC = rapid.Custom(func(t *rapid.T) flow.Masked[state.MAC] {
	m := flow.Masked[state.MAC]{Value: genMAC.Draw(t, "value")}
	switch rapid.IntRange(0, 3).Draw(t, "mask kind") {
	case 0:
		return flow.Masked[state.MAC]{}
	case 1:
		return flow.Multicast
	case 2:
		m.Mask = genMAC.Draw(t, "mask")
	default:
		return flow.ExactMAC(m.Value)
	}
	for i := range m.Value {
		m.Value[i] &= m.Mask[i]
	}
	return m
})

var genPrefix = rapid.Custom(func(t *rapid.T) netip.Prefix {
	n := rapid.IntRange(0, 32).Draw(t, "bits")
	if n == 0 {
		return netip.Prefix{}
	}
	a := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
	return netip.PrefixFrom(a, n).Masked()
})

var genMatch = rapid.Custom(func(t *rapid.T) flow.Match {
	m := flow.Match{
		InPort:   rapid.Uint32Max(0xfeff).Draw(t, "in_port"),
		TunID:    genMasked(rapid.Uint64()).Draw(t, "tun_id"),
		Metadata: genMasked(rapid.Uint64()).Draw(t, "metadata"),
		EthSrc:   genMaskedMAC.Draw(t, "eth_src"),
		EthDst:   genMaskedMAC.Draw(t, "eth_dst"),
		EthType:  rapid.SampledFrom([]uint16{0, flow.EthTypeIPv4, flow.EthTypeARP, flow.EthTypeIPv6, 0x88cc}).Draw(t, "eth_type"),
	}
	switch m.EthType {
	case flow.EthTypeIPv4:
		m.IPSrc, m.IPDst = genPrefix.Draw(t, "nw_src"), genPrefix.Draw(t, "nw_dst")
		m.IPProto = rapid.SampledFrom([]uint8{0, flow.ProtoICMP, flow.ProtoTCP, flow.ProtoUDP, 47}).Draw(t, "nw_proto")
	case flow.EthTypeARP:
		m.ARPOp = rapid.Uint16Max(255).Draw(t, "arp_op")
		m.ARPSPA, m.ARPTPA = genPrefix.Draw(t, "arp_spa"), genPrefix.Draw(t, "arp_tpa")
		m.ARPSHA, m.ARPTHA = genMaskedMAC.Draw(t, "arp_sha"), genMaskedMAC.Draw(t, "arp_tha")
	}
	switch m.IPProto {
	case flow.ProtoICMP:
		m.ICMPType, m.ICMPCode = genExact8(t, "icmp_type"), genExact8(t, "icmp_code")
	case flow.ProtoTCP, flow.ProtoUDP:
		m.TPSrc = genMasked(rapid.Uint16()).Draw(t, "tp_src")
		m.TPDst = genMasked(rapid.Uint16()).Draw(t, "tp_dst")
	}
	return m
})

// genActions gives actions that a flow with that Ethernet type may have: ARP fields need ARP, those of
// IP need IP.
func genActions(t *rapid.T, table uint8, ethType uint16) []flow.Action {
	fields := []flow.Field{flow.FieldTunID, flow.FieldMetadata, flow.FieldEthSrc, flow.FieldEthDst}
	switch ethType {
	case flow.EthTypeARP:
		fields = append(fields, flow.FieldARPOp, flow.FieldARPSPA, flow.FieldARPTPA, flow.FieldARPSHA, flow.FieldARPTHA)
	case flow.EthTypeIPv4:
		fields = append(fields, flow.FieldIPSrc, flow.FieldIPDst, flow.FieldTTL)
	}
	field := rapid.SampledFrom(fields)
	actions := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) flow.Action {
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			return flow.Output{Port: rapid.Uint32Range(1, 0xfeff).Draw(t, "port")}
		case 1:
			return flow.OutputInPort{}
		case 3:
			return flow.Controller{}
		case 2:
			f := field.Draw(t, "field")
			value := rapid.Uint64().Draw(t, "value") >> (64 - f.Bits())
			if f == flow.FieldARPOp {
				value &= 0xff // more is none to Open vSwitch
			}
			return flow.SetField{Field: f, Value: value}
		}
		from := field.Draw(t, "from")
		to := field.Filter(func(f flow.Field) bool { return f.Bits() == from.Bits() }).Draw(t, "to")
		return flow.Move{From: from, To: to}
	}), 0, 8).Draw(t, "actions")
	if table < 253 && rapid.Bool().Draw(t, "go on") {
		actions = append(actions, flow.Goto{Table: rapid.Uint8Range(table+1, 253).Draw(t, "goto")})
	}
	if len(actions) == 0 {
		return nil
	}
	return actions
}

// genFlow gives flows that bear our mark.
var genFlow = rapid.Custom(func(t *rapid.T) flow.Flow {
	f := flow.Flow{
		Table:    rapid.Uint8Max(253).Draw(t, "table"),
		Priority: rapid.Uint16().Draw(t, "priority"),
		Cookie:   flow.BaseCookie | rapid.Uint64().Draw(t, "cookie")&^flow.CookieMask,
		Match:    genMatch.Draw(t, "match"),
	}
	f.Actions = genActions(t, f.Table, f.Match.EthType)
	return f
})
