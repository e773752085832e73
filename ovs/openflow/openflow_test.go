package openflow

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"meshnet/ovs/flow"
	"meshnet/state"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files again")

func genData(t *rapid.T) []byte {
	if b := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "data"); len(b) > 0 {
		return b
	}
	return nil
}

var genMod = rapid.Custom(func(t *rapid.T) FlowMod {
	m := FlowMod{
		Command:    Command(rapid.Uint8Max(uint8(DeleteStrict)).Draw(t, "command")),
		Flow:       genFlow.Draw(t, "flow"),
		CookieMask: rapid.Uint64().Draw(t, "mask"),
	}
	if m.Command >= Delete {
		m.Flow.Actions = nil
	}
	return m
})

var genMessage = rapid.Custom(func(t *rapid.T) Message {
	switch rapid.IntRange(0, 17).Draw(t, "kind") {
	case 0:
		return Hello{Versions: rapid.Uint32().Draw(t, "versions")}
	case 1:
		e := Error{Type: rapid.Uint16().Draw(t, "type"), Code: rapid.Uint16().Draw(t, "code"), Data: genData(t)}
		if rapid.Bool().Draw(t, "experimenter") {
			e.Type, e.Experimenter = 0xffff, rapid.Uint32().Draw(t, "who")
		} else if e.Type == 0xffff {
			e.Type = 1
		}
		return e
	case 2:
		return EchoRequest{Data: genData(t)}
	case 3:
		return EchoReply{Data: genData(t)}
	case 4:
		return FeaturesRequest{}
	case 5:
		return FeaturesReply{Datapath: rapid.Uint64().Draw(t, "dpid"), Tables: rapid.Uint8().Draw(t, "tables")}
	case 6:
		return BarrierRequest{}
	case 7:
		return BarrierReply{}
	case 8:
		return BundleControl{ID: rapid.Uint32().Draw(t, "id"), Step: BundleStep(rapid.Uint16Max(7).Draw(t, "step"))}
	case 9:
		return BundleAdd{ID: rapid.Uint32().Draw(t, "id"), Mod: genMod.Draw(t, "mod")}
	case 10:
		return genMod.Draw(t, "mod")
	case 12:
		m := PacketOut{Data: genData(t)}
		for _, a := range genFlow.Draw(t, "flow").Actions {
			if _, next := a.(flow.Goto); !next {
				m.Actions = append(m.Actions, a)
			}
		}
		return m
	case 13:
		return PacketIn{Cookie: rapid.Uint64().Draw(t, "cookie"), Data: genData(t)}
	case 14:
		return SetConfig{MissLen: rapid.Uint16().Draw(t, "miss")}
	case 15:
		return FlowMonitorRequest{ID: rapid.Uint32().Draw(t, "id")}
	case 16:
		m := FlowUpdates{Gap: rapid.Bool().Draw(t, "gap")}
		for range rapid.IntRange(0, 5).Draw(t, "n") {
			m.Cookies = append(m.Cookies, rapid.Uint64().Draw(t, "cookie"))
		}
		return m
	case 11:
		return FlowStatsRequest{Cookie: rapid.Uint64().Draw(t, "cookie"), CookieMask: rapid.Uint64().Draw(t, "mask")}
	}
	m := FlowStatsReply{More: rapid.Bool().Draw(t, "more")}
	for range rapid.IntRange(0, 5).Draw(t, "n") {
		m.Flows = append(m.Flows, genFlow.Draw(t, "flow"))
	}
	return m
})

func TestDecodeIsInverseOfAppend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := genMessage.Draw(t, "message")
		xid := rapid.Uint32().Draw(t, "xid")
		before := []byte("before")
		b, err := Append(before, xid, m)
		if err != nil {
			t.Fatal(err)
		}
		b, ok := bytes.CutPrefix(b, before)
		if !ok {
			t.Fatal("Append wrote over what was there")
		}
		h, got, err := Decode(b)
		if err != nil {
			t.Fatalf("%v\n% x", err, b)
		}
		if h != (Header{Version, typeOf(m), len(b), xid}) {
			t.Fatalf("header %+v", h)
		}
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("got  %+v\nwant %+v", got, m)
		}
	})
}

// Nothing that Decode returns may change when the caller reads the next message into the same memory.
func TestDecodeKeepsNoBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := genMessage.Draw(t, "message")
		b, err := Append(nil, 1, m)
		if err != nil {
			t.Fatal(err)
		}
		_, got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		clear(b)
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("changed to %+v", got)
		}
	})
}

// samples are messages of every kind, with every field and action.
func samples() []Message {
	mac := state.MAC{2, 0x42, 10, 1, 0, 7}
	addr := netip.MustParseAddr("10.1.0.7")
	ip := func(proto uint8) flow.Match {
		return flow.Match{
			EthType: flow.EthTypeIPv4, IPProto: proto,
			IPSrc: netip.MustParsePrefix("10.1.0.0/16"), IPDst: flow.Host(addr),
		}
	}
	icmp, tcp, udp := ip(flow.ProtoICMP), ip(flow.ProtoTCP), ip(flow.ProtoUDP)
	icmp.ICMPType, icmp.ICMPCode = flow.Exact8(8), flow.Exact8(0)
	tcp.TPSrc, tcp.TPDst = flow.Masked[uint16]{Value: 0x400, Mask: 0xfc00}, flow.Exact16(80)
	udp.TPSrc, udp.TPDst = flow.Exact16(53), flow.Masked[uint16]{Value: 0x400, Mask: 0xfc00}
	flows := []flow.Flow{
		{Cookie: flow.BaseCookie},
		{
			Table: 0, Priority: 100, Cookie: flow.BaseCookie, Match: flow.Match{InPort: 3},
			Actions: []flow.Action{flow.Move{From: flow.FieldTunID, To: flow.FieldMetadata}, flow.Goto{Table: 40}},
		},
		{
			Table: 20, Priority: 100, Cookie: flow.Cookie(7),
			Match: flow.Match{
				Metadata: flow.Exact64(2), EthType: flow.EthTypeARP, ARPOp: flow.ARPRequest,
				ARPSPA: netip.MustParsePrefix("10.1.0.0/16"), ARPTPA: flow.Host(addr),
				ARPSHA: flow.ExactMAC(mac), ARPTHA: flow.Multicast,
			},
			Actions: []flow.Action{
				flow.Move{From: flow.FieldEthSrc, To: flow.FieldEthDst},
				flow.SetMAC(flow.FieldEthSrc, mac),
				flow.SetField{Field: flow.FieldARPOp, Value: uint64(flow.ARPReply)},
				flow.Move{From: flow.FieldARPSHA, To: flow.FieldARPTHA},
				flow.Move{From: flow.FieldARPSPA, To: flow.FieldARPTPA},
				flow.SetMAC(flow.FieldARPSHA, mac),
				flow.SetAddr(flow.FieldARPSPA, addr),
				flow.OutputInPort{},
			},
		},
		{
			Table: 30, Priority: 90, Cookie: flow.Cookie(7),
			Match: flow.Match{
				TunID:    flow.Masked[uint64]{Value: 0x10, Mask: 0xf0},
				Metadata: flow.Masked[uint64]{Value: 0xff00, Mask: 0xffff00},
				EthSrc:   flow.ExactMAC(mac), EthDst: flow.Multicast,
			},
			Actions: []flow.Action{
				flow.SetField{Field: flow.FieldTunID, Value: 2}, flow.Output{Port: 1}, flow.Output{Port: 0xfeff},
				flow.SetField{Field: flow.FieldMetadata, Value: ^uint64(0)}, flow.Goto{Table: 40},
			},
		},
		{
			Table: 50, Priority: 110, Cookie: flow.Cookie(8), Match: icmp,
			Actions: []flow.Action{
				flow.Move{From: flow.FieldIPSrc, To: flow.FieldIPDst}, flow.SetAddr(flow.FieldIPSrc, addr),
				flow.SetField{Field: flow.FieldICMPType, Value: 0}, flow.SetField{Field: flow.FieldTTL, Value: 64},
				flow.OutputInPort{},
			},
		},
		{Table: 40, Priority: 65535, Cookie: flow.Cookie(8), Match: icmp, Actions: []flow.Action{flow.Output{Port: 9}}},
		{Table: 40, Priority: 1, Cookie: flow.Cookie(8), Match: tcp},
		{Table: 40, Priority: 1, Cookie: flow.Cookie(8), Match: udp},
	}
	messages := []Message{
		Hello{Versions: 1 << Version},
		Error{Type: 2, Code: 15, Data: []byte("refused")},
		Error{Type: 0xffff, Experimenter: 0x2320, Code: 42},
		EchoRequest{Data: []byte("ping")}, EchoReply{Data: []byte("ping")},
		FeaturesRequest{}, FeaturesReply{Datapath: 0x42, Tables: 254},
		BarrierRequest{}, BarrierReply{},
		BundleControl{ID: 7, Step: BundleOpen}, BundleControl{ID: 7, Step: BundleCommit},
		FlowStatsRequest{Cookie: flow.BaseCookie, CookieMask: flow.CookieMask},
		FlowMod{Command: DeleteStrict, CookieMask: ^uint64(0), Flow: flow.Flow{
			Table: flows[3].Table, Priority: flows[3].Priority, Cookie: flows[3].Cookie, Match: flows[3].Match,
		}},
		BundleAdd{ID: 7, Mod: FlowMod{Flow: flows[1]}},
		FlowStatsReply{Flows: flows, More: true},
		FlowCountRequest{Cookie: flow.BaseCookie, CookieMask: flow.CookieMask},
		FlowCountReply{Flows: 100_000},
	}
	for _, f := range flows {
		messages = append(messages, FlowMod{Command: Add, Flow: f})
	}
	messages = append(messages, SetConfig{MissLen: 128}, PacketIn{Cookie: flow.BaseCookie, Data: []byte("frame")},
		FlowMod{Command: Add, Flow: flow.Flow{Table: 40, Cookie: flow.BaseCookie, Actions: []flow.Action{flow.Controller{}}}},
		FlowMonitorRequest{ID: 1}, FlowUpdates{Cookies: []uint64{flow.BaseCookie}, Gap: true})
	return messages
}

func TestBytesOfSamples(t *testing.T) {
	var out strings.Builder
	for i, m := range samples() {
		b, err := Append(nil, uint32(i), m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%v\n%x\n\n", typeOf(m), b)
	}
	const golden = "testdata/samples.golden"
	if *rewrite {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("the bytes have changed; if that is meant, run with -rewrite\n%s", out.String())
	}
}

func TestAppendRefuses(t *testing.T) {
	add := func(m flow.Match, as ...flow.Action) Message {
		return FlowMod{Flow: flow.Flow{Match: m, Actions: as}}
	}
	var all []flow.Action
	for range 4100 {
		all = append(all, flow.Output{Port: 1})
	}
	for _, tt := range []struct {
		m   Message
		why string
	}{
		{add(flow.Match{TPDst: flow.Exact16(80)}), "only TCP and UDP"},
		{add(flow.Match{IPSrc: netip.MustParsePrefix("fd00::/8")}), "not an IPv4 prefix"},
		{add(flow.Match{Metadata: flow.Masked[uint64]{Value: 3, Mask: 1}}), "outside its mask"},
		{add(flow.Match{}, flow.Goto{Table: 1}, flow.Output{Port: 1}), "must be the last"},
		{add(flow.Match{}, flow.Output{}), "not the number of a port"},
		{add(flow.Match{}, flow.Output{Port: 0xfffffffd}), "not the number of a port"},
		{add(flow.Match{}, flow.SetField{Field: flow.FieldARPOp, Value: 1 << 16}), "wider"},
		{add(flow.Match{}, flow.SetField{}), "not known"},
		{add(flow.Match{}, flow.Move{From: flow.FieldEthSrc, To: flow.FieldTunID}), "one width"},
		{add(flow.Match{}, nil), "not known"},
		{add(flow.Match{}, all...), "more than a message holds"},
		{EchoRequest{Data: make([]byte, MaxLen)}, "more than a message holds"},
		{FlowStatsReply{Foreign: make([]Foreign, 1)}, "cannot be encoded"},
		{Other{Type: 10}, "not a message to be sent"},
		{BundleAdd{Mod: FlowMod{Flow: flow.Flow{Actions: []flow.Action{flow.Output{}}}}}, "not the number"},
	} {
		b, err := Append([]byte("x"), 1, tt.m)
		if err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%+v: error %v, want %q", tt.m, err, tt.why)
		}
		if string(b) != "x" {
			t.Errorf("%+v: left %d bytes behind", tt.m, len(b)-1)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tt := range []struct{ hex, why string }{
		{"", "0 bytes"},
		{"0514000000000001", "shorter than its header"},
		{"0514000900000001", "header says 9"},
		{"0414000800000001", "version 4"},
		{"051500090000000100", "1 bytes too many"},
		{"0501000900000001ff", "cut short"},
		{"052100080000000100", "header says 8"},
		{"051300100000000100030000" + "00000000", "multipart type 3"},
		{"051300120000000100010000" + "00000000" + "0030", "cut short"},
		{"0522001800000001" + "0000000700000003" + "0514000800000002", "barrier request in a bundle"},
	} {
		b, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(err)
		}
		if _, m, err := Decode(b); err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%s: %+v, error %v, want %q", tt.hex, m, err, tt.why)
		}
	}
}

// A match that says more, less or something else than flow.Match can say is not one.
func TestDecodeMatchRefuses(t *testing.T) {
	const inPort, tcp, dst = "8000000400000001", "8000140106", "80001c020050"
	for _, tt := range []struct{ name, hex string }{
		{"a field twice", inPort + inPort},
		{"a field under an empty mask", "8000051000000000000000000000000000000000"},
		{"a value outside its mask", "8000051000000000000000030000000000000001"},
		{"a mask on what has none", "80000b0408000f00"},
		{"an address whose mask is no prefix", "800017080a000001ff0000ff"},
		{"a port before its protocol", dst + tcp},
		{"a port of UDP with TCP", tcp + "80001e020050"},
		{"a length of another field", "800000020001"},
		{"an odd length with a mask", "80000509000000000000000000"},
		{"a field cut short", "80000004"},
		{"a header cut short", "8000"},
	} {
		b, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := decodeMatch(b); err == nil {
			t.Errorf("%s: taken for %v", tt.name, m)
		}
	}
	b, err := hex.DecodeString(inPort + tcp + dst)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := decodeMatch(b); err != nil || m.InPort != 1 || m.TPDst != flow.Exact16(80) {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestHelloWithoutBitmap(t *testing.T) {
	for _, tt := range []struct {
		hex     string
		speaks  bool
		highest uint8
	}{
		{"0500000800000001", true, 5},
		{"0600000800000001", true, 6},
		{"0400000800000001", false, 4},
		{"ff00000800000001", true, 31},
		{"0600001000000001" + "0001000800000012", false, 4}, // bitmap: 1.0 and 1.3
		{"0600001800000001" + "0007000500000000" + "0001000800000062", true, 6},
		{"0500000c00000001" + "00010003", true, 5}, // an element that is none
	} {
		b, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(err)
		}
		_, m, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if h := m.(Hello); h.Speaks(Version) != tt.speaks || h.Highest() != tt.highest {
			t.Errorf("%s: %+v, want %+v", tt.hex, h, tt)
		}
	}
}

// A flow that we would not write must not hide those around it, and must be found again by the match it came with.
func TestForeignFlowsDoNotSpoilADump(t *testing.T) {
	ours := flow.Flow{Table: 1, Priority: 2, Cookie: 3, Actions: []flow.Action{flow.Output{Port: 4}}}
	for _, tt := range []struct {
		name    string
		at      int // byte of the middle flow to change
		to      []byte
		foreign bool
	}{
		{"idle timeout", 14, []byte{0, 1}, true},
		{"flags", 18, []byte{0, 1}, true},
		{"importance", 20, []byte{0, 1}, true},
		{"packet count", 32, []byte{9, 9}, false},
		{"field", 52, []byte{0x80, 0, 10 << 1, 4}, true},
		{"zero in_port", 56, []byte{0, 0, 0, 0}, true},
		{"instruction", 64, []byte{0, 2}, true},
		{"action", 72, []byte{0, 17}, true},
		{"output to controller", 76, []byte{0xff, 0xff, 0xff, 0xfd}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			middle := ours
			middle.Match.InPort = 9
			b, err := Append(nil, 1, FlowStatsReply{Flows: []flow.Flow{ours, middle, ours}})
			if err != nil {
				t.Fatal(err)
			}
			before, err := Append(nil, 1, FlowStatsReply{Flows: []flow.Flow{ours}})
			if err != nil {
				t.Fatal(err)
			}
			copy(b[len(before)+tt.at:], tt.to)
			_, m, err := Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			reply := m.(FlowStatsReply)
			if !tt.foreign {
				if len(reply.Flows) != 3 {
					t.Fatalf("%+v", reply)
				}
				return
			}
			if len(reply.Flows) != 2 || len(reply.Foreign) != 1 {
				t.Fatalf("%+v", reply)
			}
			f := reply.Foreign[0]
			if f.Table != 1 || f.Priority != 2 || f.Cookie != 3 || f.Why == nil || len(f.RawMatch) != 8 {
				t.Fatalf("%+v", f)
			}
			del, err := Append(nil, 1, f.Delete())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(del, b[len(before)+48:][:16]) {
				t.Errorf("deletion % x does not have the match of % x", del, b)
			}
		})
	}
}

func TestErrorNames(t *testing.T) {
	for _, tt := range []struct {
		e    Error
		want string
	}{
		{Error{Type: 2, Code: 15}, "OFPBAC_BAD_SET_ARGUMENT (type 2, code 15)"},
		{Error{Type: 0xffff, Experimenter: 0x2320, Code: 42}, "NXBAC_CT_DATAPATH_SUPPORT (experimenter 0x2320, code 42)"},
		{Error{Type: 2, Code: 99}, "refused with an error unknown here (type 2, code 99)"},
		{Error{Type: 99}, "refused with an error unknown here (type 99, code 0)"},
		{Error{Type: 0xffff, Experimenter: 1}, "refused with an error unknown here (experimenter 0x1, code 0)"},
	} {
		if got := tt.e.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
		var e Error
		if !errors.As(fmt.Errorf("change: %w", tt.e), &e) || e.Code != tt.e.Code {
			t.Errorf("%v is lost when wrapped", tt.e)
		}
	}
}

// Whatever the bytes, Decode returns; what it understood it can write and understand again.
func FuzzDecode(f *testing.F) {
	for i, m := range samples() {
		b, err := Append(nil, uint32(i), m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Add(recorded(f, "testdata/stats-3.1.hex"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, m, err := Decode(b)
		if err != nil {
			return
		}
		if h.Len != len(b) {
			t.Fatalf("header %+v of %d bytes", h, len(b))
		}
		again, err := Append(nil, h.XID, m)
		if err != nil {
			return // Other, and a dump with foreign flows
		}
		_, m2, err := Decode(again)
		if err != nil {
			t.Fatalf("%+v\nbecame % x\nwhich is refused: %v", m, again, err)
		}
		if !reflect.DeepEqual(m, m2) {
			t.Fatalf("%+v\nbecame %+v", m, m2)
		}
	})
}

func BenchmarkAppendFlowMod(b *testing.B) {
	all := samples()
	m := all[len(all)-5]
	var buf []byte
	for b.Loop() {
		var err error
		if buf, err = Append(buf[:0], 1, m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeFlowStats(b *testing.B) {
	raw, err := Append(nil, 1, samples()[14])
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := Decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}
