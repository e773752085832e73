package flow

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"meshnet/state"

	"pgregory.net/rapid"
)

func genMasked[T uint8 | uint16 | uint64](t *rapid.T, g *rapid.Generator[T], exact bool) Masked[T] {
	if exact || rapid.Bool().Draw(t, "exact") {
		return Masked[T]{g.Draw(t, "value"), ^T(0)}
	}
	m := Masked[T]{g.Draw(t, "value"), g.Draw(t, "mask")}
	m.Value &= m.Mask
	return m
}

func genMAC(t *rapid.T) (m state.MAC) {
	copy(m[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
	return m
}

func genMaskedMAC(t *rapid.T) Masked[state.MAC] {
	switch rapid.IntRange(0, 2).Draw(t, "how") {
	case 0:
		return Masked[state.MAC]{}
	case 1:
		return Multicast
	}
	return ExactMAC(genMAC(t))
}

func genAddr(t *rapid.T) netip.Addr {
	return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
}

func genPrefix(t *rapid.T) netip.Prefix {
	bits := rapid.IntRange(0, 32).Draw(t, "bits")
	if bits == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(genAddr(t), bits).Masked()
}

func genMatch(t *rapid.T) Match {
	m := Match{
		InPort: rapid.Uint32Max(0xfffffeff).Draw(t, "in_port"),
		EthSrc: genMaskedMAC(t),
		EthDst: genMaskedMAC(t),
	}
	if rapid.Bool().Draw(t, "registers") {
		m.TunID = genMasked(t, rapid.Uint64(), false)
		m.Metadata = genMasked(t, rapid.Uint64(), false)
	}
	m.EthType = rapid.SampledFrom([]uint16{0, EthTypeARP, EthTypeIPv4, EthTypeIPv6, 0x88cc}).Draw(t, "type")
	switch m.EthType {
	case EthTypeARP:
		m.ARPOp = rapid.Uint16Max(2).Draw(t, "op")
		m.ARPSPA, m.ARPTPA = genPrefix(t), genPrefix(t)
		m.ARPSHA, m.ARPTHA = genMaskedMAC(t), genMaskedMAC(t)
	case EthTypeIPv4:
		m.IPSrc, m.IPDst = genPrefix(t), genPrefix(t)
		m.IPProto = rapid.Byte().Draw(t, "proto")
		if rapid.Bool().Draw(t, "known") {
			m.IPProto = rapid.SampledFrom([]uint8{ProtoICMP, ProtoTCP, ProtoUDP}).Draw(t, "known proto")
		}
	}
	switch {
	case m.EthType != EthTypeIPv4:
	case m.IPProto == ProtoICMP:
		m.ICMPType = genMasked(t, rapid.Uint8(), true)
		m.ICMPCode = genMasked(t, rapid.Uint8(), true)
	case m.IPProto == ProtoTCP, m.IPProto == ProtoUDP:
		m.TPSrc = genMasked(t, rapid.Uint16(), false)
		m.TPDst = genMasked(t, rapid.Uint16(), false)
	}
	return m
}

func genAction(t *rapid.T) Action {
	switch rapid.IntRange(0, 4).Draw(t, "action") {
	case 0:
		return Output{rapid.Uint32().Draw(t, "port")}
	case 1:
		return OutputInPort{}
	case 3:
		return Controller{}
	case 2:
		f := Field(rapid.IntRange(int(FieldTunID), int(fieldEnd)-1).Draw(t, "field"))
		return SetField{f, rapid.Uint64().Draw(t, "value") >> (64 - f.Bits())}
	}
	return rapid.SampledFrom([]Action{
		Move{FieldEthSrc, FieldEthDst}, Move{FieldARPSHA, FieldARPTHA},
		Move{FieldARPSPA, FieldARPTPA}, Move{FieldTunID, FieldMetadata},
	}).Draw(t, "move")
}

func genFlow(t *rapid.T) Flow {
	f := Flow{
		Table:    rapid.Uint8Max(254).Draw(t, "table"),
		Priority: rapid.Uint16().Draw(t, "priority"),
		Cookie:   rapid.Uint64().Draw(t, "cookie"),
		Match:    genMatch(t),
	}
	for range rapid.IntRange(0, 4).Draw(t, "actions") {
		f.Actions = append(f.Actions, genAction(t))
	}
	if rapid.Bool().Draw(t, "goto") {
		f.Actions = append(f.Actions, Goto{rapid.Uint8Max(254).Draw(t, "goto table")})
	}
	return f
}

// genSet draws flows of few keys, so that two sets have much in common; no flow twice.
func genSet(t *rapid.T, label string) []Flow {
	return rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) Flow {
		f := Flow{
			Table:    rapid.SampledFrom([]uint8{0, 10, 40}).Draw(t, "table"),
			Priority: rapid.SampledFrom([]uint16{0, 100}).Draw(t, "priority"),
			Cookie:   rapid.Uint64Max(1).Draw(t, "cookie"),
			Match:    Match{InPort: rapid.Uint32Max(3).Draw(t, "in_port")},
		}
		for range rapid.IntRange(0, 2).Draw(t, "actions") {
			f.Actions = append(f.Actions, Output{rapid.Uint32Range(1, 2).Draw(t, "port")})
		}
		return f
	}), 0, 20, func(f Flow) [4]uint64 {
		return [4]uint64{uint64(f.Table), uint64(f.Priority), uint64(f.Match.InPort)}
	}).Draw(t, label)
}

func TestParseIsInverseOfString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := genFlow(t)
		g, err := Parse(f.String())
		if err != nil {
			t.Fatal(err)
		}
		if !f.Equal(g) {
			t.Fatalf("parsed back as another flow:\n%v\n%v", f, g)
		}
	})
}

func TestCompareIsZeroExactlyForTheSameFlow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, g := genFlow(t), genFlow(t)
		if rapid.Bool().Draw(t, "same place") {
			g.Table, g.Priority = f.Table, f.Priority
		}
		if rapid.Bool().Draw(t, "one field") {
			other := reflect.ValueOf(g.Match)
			i := rapid.IntRange(0, other.NumField()-1).Draw(t, "field")
			g.Match = f.Match
			reflect.ValueOf(&g.Match).Elem().Field(i).Set(other.Field(i))
		}
		same := f.Table == g.Table && f.Priority == g.Priority && f.Match == g.Match
		if c := Compare(f, g); (c == 0) != same || Compare(g, f) != -c {
			t.Fatalf("Compare is %d and back %d, same %v:\n%v\n%v", c, Compare(g, f), same, f, g)
		}
	})
}

func TestCompareSeesEveryField(t *testing.T) {
	mac, prefix := ExactMAC(state.MAC{2}), netip.MustParsePrefix("10.0.0.0/8")
	ms := []Match{
		{}, {InPort: 1}, {TunID: Exact64(1)}, {Metadata: Exact64(1)}, {EthSrc: mac}, {EthDst: mac}, {EthDst: Multicast},
		{EthType: 1}, {IPSrc: prefix}, {IPSrc: netip.MustParsePrefix("10.0.0.0/9")}, {IPDst: prefix}, {IPProto: 1}, {ARPOp: 1},
		{ARPSPA: prefix}, {ARPTPA: prefix}, {ARPSHA: mac}, {ARPTHA: mac}, {ICMPType: Exact8(0)}, {ICMPCode: Exact8(0)},
		{TPSrc: Exact16(0)}, {TPSrc: Masked[uint16]{0, 1}}, {TPDst: Exact16(0)},
	}
	if want := reflect.TypeFor[Match]().NumField() + 4; len(ms) != want {
		t.Fatalf("%d matches, want %d: each field once, three masks and none", len(ms), want)
	}
	for i, m := range ms {
		for j, o := range ms {
			if c := m.compare(&o); (c == 0) != (i == j) || c != -o.compare(&m) {
				t.Errorf("compare %v with %v: %d", m, o, c)
			}
		}
	}
}

// held is a flow table as a switch keeps it: adding replaces the same flow.
type held map[Match]map[[2]uint16]Flow

func hold(fs []Flow) held {
	h := held{}
	h.add(fs)
	return h
}

func (h held) add(fs []Flow) {
	for _, f := range fs {
		if h[f.Match] == nil {
			h[f.Match] = map[[2]uint16]Flow{}
		}
		h[f.Match][[2]uint16{uint16(f.Table), f.Priority}] = f
	}
}

func (h held) remove(fs []Flow) {
	for _, f := range fs {
		delete(h[f.Match], [2]uint16{uint16(f.Table), f.Priority})
	}
}

func (h held) list() (fs []Flow) {
	for _, m := range h {
		for _, f := range m {
			fs = append(fs, f)
		}
	}
	slices.SortFunc(fs, Compare)
	return fs
}

func TestDiffLeadsFromHaveToWant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := genSet(t, "have"), genSet(t, "want")
		add, remove := Diff(have, want)
		table := hold(have)
		table.remove(remove)
		table.add(add)
		if got := table.list(); !slices.EqualFunc(got, hold(want).list(), Flow.Equal) {
			t.Fatalf("got %v\nwant %v", got, want)
		}
		for _, f := range add {
			if slices.ContainsFunc(have, f.Equal) {
				t.Fatalf("adds what is there: %v", f)
			}
		}
		for _, f := range remove {
			if slices.ContainsFunc(want, func(g Flow) bool { return Compare(f, g) == 0 }) {
				t.Fatalf("removes what is wanted or replaced: %v", f)
			}
		}
		if !slices.IsSortedFunc(add, Compare) || !slices.IsSortedFunc(remove, Compare) {
			t.Fatalf("not in canonical order: %v %v", add, remove)
		}
	})
}

func TestDiffOfEqualsIsEmptyInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have := genSet(t, "have")
		want := rapid.Permutation(have).Draw(t, "want")
		before := slices.Clone(want)
		if add, remove := Diff(have, want); len(add)+len(remove) > 0 {
			t.Fatalf("add %v remove %v", add, remove)
		}
		if !slices.EqualFunc(want, before, Flow.Equal) {
			t.Fatal("Diff wrote to its argument")
		}
	})
}

func TestParseDump(t *testing.T) {
	const dump = `OFPST_FLOW reply (OF1.5) (xid=0x2):
 cookie=0x6d65000000000000, duration=0.007s, table=0, n_packets=2, n_bytes=84, idle_age=0, priority=100,in_port=40001 actions=move:NXM_NX_TUN_ID[]->OXM_OF_METADATA[],goto_table:40
 cookie=0x6d65000000000000, duration=0.007s, table=0, n_packets=0, n_bytes=0, idle_age=0, hard_age=70000, priority=0 actions=drop
 cookie=0x6d65000000000005, duration=0.007s, table=50, n_packets=0, n_bytes=0, idle_age=0, priority=1,icmp,tun_id=0x5,nw_dst=10.0.0.0/8,icmp_type=8,icmp_code=0 actions=drop
 cookie=0x6d65000000000005, duration=0.007s, table=50, n_packets=0, n_bytes=0, idle_age=0, tcp,nw_src=10.0.0.0/8,tp_src=0x50/0xfff0,tp_dst=80 actions=drop
`
	got, err := ParseDump(dump)
	if err != nil {
		t.Fatal(err)
	}
	want := []Flow{
		{Priority: 100, Cookie: BaseCookie, Match: Match{InPort: 40001}, Actions: []Action{Move{FieldTunID, FieldMetadata}, Goto{40}}},
		{Cookie: BaseCookie},
		{Table: 50, Priority: 1, Cookie: Cookie(5), Match: Match{
			TunID: Exact64(5), EthType: EthTypeIPv4, IPProto: ProtoICMP, IPDst: netip.MustParsePrefix("10.0.0.0/8"),
			ICMPType: Exact8(8), ICMPCode: Exact8(0)}},
		{Table: 50, Priority: 32768, Cookie: Cookie(5), Match: Match{
			EthType: EthTypeIPv4, IPProto: ProtoTCP, IPSrc: netip.MustParsePrefix("10.0.0.0/8"),
			TPSrc: Masked[uint16]{0x50, 0xfff0}, TPDst: Exact16(80)}},
	}
	if !slices.EqualFunc(got, want, Flow.Equal) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
}

func TestParseRefusesWhatItHasNoTypeFor(t *testing.T) {
	for _, s := range []string{
		"", "priority=1", "nd_target=fe80::1 actions=drop", "sctp actions=drop", "table=256 actions=drop",
		"priority=65536 actions=drop", "actions=NORMAL", "actions=", "actions=output:x", "actions=set_field:1->in_port",
		"actions=set_field:65536->arp_op", "actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ARP_SPA[]",
		"actions=move:NXM_NX_TUN_ID[0..31]->OXM_OF_METADATA[0..31]", "ip,nw_src=::1 actions=drop", "in_port=LOCAL actions=drop",
		"dl_dst=02:00 actions=drop", "metadata=1/x actions=drop", "actions=drop,drop", "ip,nw_src=10.0.0.0/33 actions=drop",
	} {
		if f, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %v", s, f)
		}
	}
}

func TestCookie(t *testing.T) {
	for _, id := range []state.NetworkID{0, 1, 0xffff << 48, 0xfedcba9876543210} {
		if c := Cookie(id); !Ours(c) || c == BaseCookie {
			t.Errorf("Cookie(%v) = %#x", id, c)
		}
	}
	if Cookie(0xfedcba9876543210) != 0x6d65ba9876543210 {
		t.Errorf("%#x", Cookie(0xfedcba9876543210))
	}
	if Ours(0) || Ours(0x6d66<<48) {
		t.Error("takes another's flows for ours")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("cookie=0x6d65000000000001, table=10, priority=100,arp,in_port=5,dl_src=02:42:0a:02:00:05,arp_spa=0.0.0.0 actions=goto_table:20")
	f.Add("priority=90,metadata=0x5/0xff,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00 actions=set_field:0x5->tun_id,output:40001,goto_table:40")
	f.Add("ip,nw_src=10.0.0.0/8 actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],set_field:02:42:0a:02:00:05->eth_src,IN_PORT")
	f.Fuzz(func(t *testing.T, s string) {
		g, err := Parse(s)
		if err != nil {
			return
		}
		h, err := Parse(g.String())
		if err != nil || !h.Equal(g) {
			t.Fatalf("%q: %v, written and read again: %v, %v", s, g, h, err)
		}
	})
}
