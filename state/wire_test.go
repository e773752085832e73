package state

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"meshnet/crdt"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files of the present version")

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var (
	sampleDefinition = Definition{
		Name: "web", Subnet: prefix("10.2.0.0/16"), Gateway: addr("10.2.0.1"), Internal: true,
		BlockBits: 26, MTU: 1450, Reserve: []Range{{addr("10.2.9.0"), addr("10.2.9.9")}},
		Labels: []Label{{"team", "a"}, {"x", ""}}, Life: 2,
	}
	// sampleUnknown is two fields of a later version, 20 and 21.
	sampleUnknown = []byte{0xa0, 1, 7, 0xaa, 1, 2, 'h', 'i'}
	sampleCreated = Created{Def: sampleDefinition, VNI: 77, Lamport: 3, At: 1700000000, Creator: 0xa1}
	samples       = map[string]any{
		"node": Node{
			Name: "h1", Addr: addr("192.0.2.1"), GossipPort: 17946, TunnelPort: 14789, Encap: Geneve,
			Transport: KernelVXLAN, MTU: 1500, Version: "0.1",
		},
		"node-ipv6": Node{Name: "h1", Addr: addr("2001:db8::1")},
		"network":   sampleCreated,
		"endpoint": Endpoint{
			Network: 5, Container: "c1", Addr: addr("10.2.0.5"), MAC: MACOf(addr("10.2.0.5")), IfName: "eth1",
			Names: []string{"a", "b"}, Alloc: 9, At: 1700000001, Down: true,
		},
		"endpoint-published": Endpoint{
			Network: 5, Container: "c1", Addr: addr("10.2.0.5"), MAC: MACOf(addr("10.2.0.5")), Alloc: 9, At: 1700000001,
			Publish: []Published{{TCP, 8080, 80}, {UDP, 53, 5353}},
		},
		"endpoint-unknown": Endpoint{Network: 5, Container: "c1", unknown: []byte{0xa0, 1, 7, 0xaa, 1, 2, 'h', 'i'}},
		"use":              Use{Created: sampleCreated},
		"block-own":        Block{Root: Root{0xa1, 1700000000}, Sealed: true, Ver: 1, Lineage: []NodeID{0xa1, 0xb2}, State: Pending},
		"block-offer":      Block{Root: Root{0xa1, 1700000000}, Ver: 3, Kind: Offer, To: 0xb2, ToEpoch: 2, Lineage: []NodeID{0xa1}},
		"kill":             kill{uses: []useAt{{0xa1, 1, 9}, {0xb2, 2, 300}}},
		"count":            uint32(7),
		"node-unknown":     Node{Name: "h1", Addr: addr("192.0.2.1"), unknown: sampleUnknown},
		"network-unknown":  Created{Def: Definition{Name: "web", Subnet: prefix("10.2.0.0/16"), unknown: sampleUnknown}, VNI: 1, Lamport: 1, unknown: sampleUnknown},
		"use-unknown":      Use{Created: Created{Def: Definition{Name: "web"}, unknown: sampleUnknown}, unknown: sampleUnknown},
		"block-unknown":    Block{Root: Root{0xa1, 1}, Ver: 1, unknown: sampleUnknown},
		"kill-unknown":     kill{uses: []useAt{{0xa1, 1, 9}}, unknown: sampleUnknown},
		"message-ops": Out{Ops: []crdt.Op{
			{Node: 0xa1, Epoch: 1, Seq: 9, Closes: []crdt.Seq{2, 5}, Key: []byte("ep/1"), Value: []byte("v"), Ext: []byte{0x40, 1}},
			{Node: 0xa1, Epoch: 2, Seq: 1, Whole: 3, Key: []byte("node"), Value: []byte{}},
			{Node: 0xb2, Epoch: 1, Seq: 300, Key: []byte("use/1")},
		}},
		"message-patches": Out{Patches: []crdt.Patch{
			{
				Node: 0xa1, Epoch: 2, Whole: 4, From: 3, Head: 9, Cloud: []crdt.Span{{From: 11, To: 12}, {From: 20, To: 20}},
				Ops: []crdt.Op{
					{Node: 0xa1, Epoch: 2, Whole: 4, Seq: 7, Key: []byte("k"), Value: []byte("v")},
					{Node: 0xa1, Epoch: 2, Whole: 4, Seq: 12, Key: []byte("m")},
				},
				Needs: []crdt.Seq{8}, Dead: []crdt.Seq{1, 3},
			},
			{Node: 0xb2, Epoch: 1, From: 3, Head: 900, Listed: true, Live: []crdt.Seq{2}},
		}},
		"message-shared": Out{Shared: []crdt.Delta{{
			Entries: []crdt.Entry{{
				Dot: crdt.Dot{Actor: 7, N: 3}, Key: []byte("net/1"), Value: []byte("v"), Lamport: 2, Created: 1700000000, Ext: []byte{0x38, 1},
			}},
			Seen: []crdt.Seen{{Actor: 7, Spans: []crdt.Span{{From: 1, To: 3}}}, {Actor: 8, Spans: []crdt.Span{{From: 2, To: 2}}}},
		}}},
	}
)

// encodeSample and decodeSample are the encoders and decoders by the name of a sample's file.
func encodeSample(v any) []byte {
	switch v := v.(type) {
	case Node:
		return v.encode()
	case Created:
		return v.encode()
	case Endpoint:
		return v.encode()
	case Use:
		return v.encode()
	case Block:
		return v.encode()
	case kill:
		return v.encode()
	case uint32:
		return encodeCount(v)
	case Out:
		return bytes.Join(Encode(v, 1<<20), nil)
	}
	panic("sample of no known type")
}

func decodeSample(name string, b []byte) (any, error) {
	kind, _, _ := strings.Cut(name, "-")
	switch kind {
	case "node":
		return decodeNode(b)
	case "network":
		return decodeCreated(b)
	case "endpoint":
		return decodeEndpoint(b)
	case "use":
		return decodeUse(b)
	case "block":
		return decodeBlock(b)
	case "kill":
		return decodeKill(b)
	case "count":
		return decodeCount(b)
	case "message":
		return Decode(b)
	}
	return nil, fmt.Errorf("sample %s of no known kind", name)
}

func readHex(t testing.TB, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return b
}

// TestGolden reads the bytes of every version that was ever released and writes them again as they
// were. Files of released versions never change.
func TestGolden(t *testing.T) {
	dir := fmt.Sprintf("testdata/wire/v%d", version)
	if *rewrite {
		for name, v := range samples {
			var text strings.Builder
			for line := range slices.Chunk(encodeSample(v), 32) {
				fmt.Fprintf(&text, "%x\n", line)
			}
			if err := os.WriteFile(filepath.Join(dir, name+".hex"), []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	files, err := filepath.Glob("testdata/wire/v*/*.hex")
	if err != nil || len(files) < len(samples) {
		t.Fatalf("%d files of %d: %v", len(files), len(samples), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".hex")
		b := readHex(t, file)
		v, err := decodeSample(name, b)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if again := encodeSample(v); !bytes.Equal(again, b) {
			t.Errorf("%s: writes\n%x\nread\n%x", file, again, b)
		}
		if want, ok := samples[name]; ok && filepath.Dir(file) == dir && !reflect.DeepEqual(v, want) {
			t.Errorf("%s: reads\n%+v\nwant\n%+v", file, v, want)
		}
	}
}

// TestGoldenHashes holds what versions have to compute alike though it is never sent whole: the ids of
// networks, the VNIs they try, the keys of records, and the digests and buckets that documents compare.
func TestGoldenHashes(t *testing.T) {
	d := NewDoc(0xa1, 1, 1)
	for _, name := range []string{"message-ops", "message-patches", "message-shared"} {
		d.Restore(samples[name].(Out))
	}
	nodes, shared := d.Buckets()
	def := sampleDefinition
	for _, tt := range []struct{ name, got, want string }{
		{"id", def.ID().String(), "9bb8bbfdc815f73e"},
		{"life", lifeKey(def), "life/6ac011345858848b"},
		{"vnis", fmt.Sprint(ProbeVNI(7, 0), ProbeVNI(7, 1), ProbeVNI(7, 2)), "6830099 9927386 7041087"},
		{"keys", strings.Join([]string{keyNode, endpointKey(7), useKey(5), blockKey(5, prefix("10.2.0.0/24")), networkKey(5), killKey(5), forgetKey(0xa1)}, " "), "node ep/0000000000000007 use/0000000000000005 blk/0000000000000005/10.2.0.0/24 net/0000000000000005 kill/0000000000000005 forget/00000000000000a1"},
		{"mac", MACOf(addr("10.2.0.5")).String(), "02:42:0a:02:00:05"},
		{"digest", fmt.Sprintf("%x", d.Digest()), "c606d48a0d24c156b0311bc000a1d99d"},
		{"buckets", fmt.Sprintf("%x %x %x", nodes[crdt.BucketOf(0xa1)], nodes[crdt.BucketOf(0xb2)], shared), "14bebbb6091f2b25 35065e5fff2c5996 bf02ab4f0a367bac"},
		{"empty", fmt.Sprintf("%x", NewDoc(1, 1, 1).Digest()), "23d58a5963c3d9e05645b0e5f175d914"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %q, was %q", tt.name, tt.got, tt.want)
		}
	}
}

func TestRefusedBytes(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":           {},
		"later version":   {2},
		"zero written":    {1, 1 << 3, 0},
		"long varint":     {1, 1 << 3, 0x81, 0},
		"cut":             {1, 2<<3 | 2, 5, 'x'},
		"descending":      {1, 2<<3 | 2, 1, 'x', 1 << 3, 1},
		"twice":           {1, 1 << 3, 1, 1 << 3, 1},
		"other type":      {1, 1<<3 | 2, 1, 'x'},
		"fixed64":         {1, 20<<3&0x7f | 1, 1},
		"number zero":     {1, 0, 1},
		"bad address":     {1, 3<<3 | 2, 3, 1, 2, 3},
		"empty field":     {1, 2<<3 | 2, 0},
		"not a bool":      {1, 9 << 3, 2},
		"unknown is cut":  {1, 0xa2, 1, 9, 1},
		"unknown descend": {1, 0xa0, 1, 1, 0x98, 1, 1},
	} {
		if e, err := decodeEndpoint(b); err == nil {
			t.Errorf("%s: %x reads as %+v", name, b, e)
		}
	}
}

// TestW1Limit sees that messages keep the limit, and say in any order what they said together.
func TestW1Limit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 2)
		for range rapid.IntRange(1, 25).Draw(t, "changes") {
			w.change(t)
		}
		limit := rapid.IntRange(60, 2000).Draw(t, "limit")
		a := w.docs[0]
		out := everything(a)
		for _, news := range w.sent {
			out.Ops = append(out.Ops, news.Ops...)
		}
		fresh := NewDoc(99, 1, 99)
		messages := Encode(out, limit)
		for _, m := range rapid.Permutation(messages).Draw(t, "order") {
			in, err := Decode(m)
			if err != nil {
				t.Fatal(err)
			}
			if parts := len(in.Ops) + len(in.Patches) + len(in.Shared); len(m) > limit && parts != 1 {
				t.Fatalf("%d bytes with %d parts; limit %d", len(m), parts, limit)
			}
			fresh.Merge(in)
		}
		for _, m := range messages { // a patch may have come before the ops it needs
			in, _ := Decode(m)
			fresh.Merge(in)
		}
		whole := NewDoc(99, 1, 99)
		whole.Merge(out)
		if fresh.Digest() != whole.Digest() || dumpView(fresh.View()) != dumpView(whole.View()) {
			t.Fatalf("in messages:\n%s\nat once:\n%s", dumpView(fresh.View()), dumpView(whole.View()))
		}
	})
}

// TestW1Relay sees that a node of this version passes on what it does not know.
func TestW1Relay(t *testing.T) {
	later := append((&Endpoint{Network: 5, Container: "c1"}).encode(), 0xa2, 1, 5, 'l', 'a', 't', 'e', 'r')
	op := crdt.Op{Node: 1, Epoch: 1, Seq: 1, Key: []byte(endpointKey(7)), Value: later, Ext: []byte{0xa0, 1, 1}}
	entry := crdt.Entry{Dot: crdt.Dot{Actor: 1, N: 1}, Key: []byte("later/1"), Value: []byte{9, 9}, Ext: []byte{0xa0, 1, 2}}
	sent := Encode(Out{Ops: []crdt.Op{op}, Shared: []crdt.Delta{{Entries: []crdt.Entry{entry}}}}, 1<<20)
	in, err := Decode(sent[0])
	if err != nil {
		t.Fatal(err)
	}
	relay := NewDoc(2, 1, 2)
	news := relay.Merge(in)
	for _, out := range []Out{news, everything(relay)} {
		got := bytes.Join(Encode(out, 1<<20), nil)
		for _, part := range [][]byte{later, op.Ext, entry.Value, entry.Ext} {
			if !bytes.Contains(got, part) {
				t.Errorf("%x is not in what is passed on: %x", part, got)
			}
		}
	}
	e, _ := relay.View().Endpoint(7)
	if got := e.encode(); !bytes.Equal(got, later) {
		t.Errorf("written again as %x, was %x", got, later)
	}
}

// TestW1OldRelaysNew has a node of today between two of a later version: an endpoint with a field that
// it does not know, an op and a shared entry with fields of their own, and records of kinds that it does
// not know go through its merge, its log, its answers to a third node and its news, and come out with
// the bytes that they had. Its views show what it understands.
func TestW1OldRelaysNew(t *testing.T) {
	later := binary.AppendUvarint(appendField(nil, 40, "later"), 50<<3)
	later = binary.AppendUvarint(later, 7)
	endpoint := (&Endpoint{Network: 5, Container: "c1", Addr: addr("10.2.0.5"), unknown: later}).encode()
	ops := []crdt.Op{
		{Node: 1, Epoch: 1, Seq: 1, Key: []byte(keyNode), Value: append((&Node{Name: "new", Addr: addr("192.0.2.1")}).encode(), later...), Ext: later},
		{Node: 1, Epoch: 1, Seq: 2, Key: []byte(endpointKey(7)), Value: endpoint, Ext: later},
		{Node: 1, Epoch: 1, Seq: 3, Key: []byte("route/10.9.0.0/16"), Value: append([]byte{9}, later...), Ext: later},
		{Node: 1, Epoch: 1, Seq: 4, Key: []byte(endpointKey(8)), Value: []byte{version + 1, 0xff, 0xff}},
		{Node: 1, Epoch: 1, Seq: 5, Key: []byte(useKey(5)), Value: append((&Use{Created: sampleCreated}).encode(), later...), Ext: later},
		{Node: 1, Epoch: 1, Seq: 6, Key: []byte{0, 0xff, '/'}, Value: []byte{}},
	}
	created := sampleCreated
	entries := []crdt.Entry{
		{Dot: crdt.Dot{Actor: 1, N: 1}, Key: []byte("policy/1"), Value: append([]byte{9}, later...), Lamport: 4, Created: 5, Ext: later},
		{Dot: crdt.Dot{Actor: 1, N: 2}, Key: []byte(networkKey(5)), Value: append(created.encode(), later...), Lamport: 5, Created: 6, Ext: later},
		{Dot: crdt.Dot{Actor: 1, N: 3}, Key: []byte(forgetKey(77)), Value: append(encodeCount(3), later...), Ext: later},
	}
	told := Encode(Out{Ops: ops, Shared: []crdt.Delta{{Entries: entries}}}, 1<<20)

	relay := NewDoc(2, 1, 2)
	var news Out
	for _, m := range told {
		// What the message itself has that is new is passed over, not refused.
		in, err := Decode(append(slices.Clone(m), later...))
		if err != nil {
			t.Fatal(err)
		}
		news = relay.Merge(in)
	}
	restarted := NewDoc(2, 1, 2)
	for _, m := range Encode(news, 1<<20) { // what a log holds
		in, err := Decode(m)
		if err != nil {
			t.Fatal(err)
		}
		restarted.Restore(in)
	}
	for name, out := range map[string]Out{
		"news": news, "answer": everything(relay), "answer after a restart": everything(restarted),
	} {
		for _, limit := range []int{200, 1 << 20} {
			third := NewDoc(3, 1, 3)
			messages := Encode(out, limit)
			for _, m := range append(messages, messages...) {
				in, err := Decode(m)
				if err != nil {
					t.Fatal(err)
				}
				third.Merge(in)
			}
			for _, want := range ops {
				if got, _ := third.owned.Get(1, string(want.Key)); !reflect.DeepEqual(got, want) {
					t.Errorf("%s, in messages of %d: a third node has\n%+v\nwant\n%+v", name, limit, got, want)
				}
			}
			for _, want := range entries {
				if got, _ := third.shared.Value(string(want.Key)); !reflect.DeepEqual(got, want) {
					t.Errorf("%s, in messages of %d: a third node has\n%+v\nwant\n%+v", name, limit, got, want)
				}
			}
			if third.Digest() != relay.Digest() || third.Digest() != restarted.Digest() {
				t.Errorf("%s: digests differ", name)
			}
		}
	}
	v := relay.View()
	if e, ok := v.Endpoint(7); !ok || !bytes.Equal(e.encode(), endpoint) || e.Container != "c1" {
		t.Errorf("the endpoint is shown as %+v", e)
	}
	if n, ok := v.Node(1); !ok || n.Name != "new" {
		t.Error("the node is not shown")
	}
	if _, ok := v.Endpoint(8); ok || relay.Ignored() == 0 {
		t.Error("a record of a later form is shown, or not counted")
	}
	if _, ok := v.Forgotten(77); !ok {
		t.Error("a forget record with a later field is not read")
	}
	if _, ok := v.Network(5); !ok {
		t.Error("the network is not shown")
	}
}

func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob("testdata/wire/v*/message-*.hex")
	for _, file := range files {
		f.Add(readHex(f, file))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		in, err := Decode(b)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > uint64(len(b))*100+1<<16 {
			t.Fatalf("%d bytes allocated for %d", took, len(b))
		}
		if err != nil {
			return
		}
		parts := Encode(in, 1<<30)
		for _, part := range parts {
			again, err := Decode(part)
			if err != nil || !reflect.DeepEqual(again, in) {
				t.Fatalf("%+v\nagain %+v: %v", in, again, err)
			}
		}
		d := NewDoc(1, 1, 1)
		d.Merge(in)
		dumpView(d.View())
		d.Merge(everything(d))
	})
}

func FuzzRecords(f *testing.F) {
	names := []string{"node", "network", "endpoint", "use", "block", "kill", "count"}
	files, _ := filepath.Glob("testdata/wire/v*/*.hex")
	for _, file := range files {
		kind, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".hex"), "-")
		if i := slices.Index(names, kind); i >= 0 {
			f.Add(byte(i), readHex(f, file))
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		name := names[int(kind)%len(names)]
		v, err := decodeSample(name, b)
		if err != nil || name == "count" { // what a count does not know is nobody's: it is read as a number only
			return
		}
		if again := encodeSample(v); !bytes.Equal(again, b) {
			t.Fatalf("%s %x\nagain %x", name, b, again)
		}
	})
}

// FuzzText: ids, MACs and keys are read in one form only, which is the one that is written.
func FuzzText(f *testing.F) {
	for _, s := range []string{
		"00000000000000ff", "02:42:0a:02:00:05", "0242.0a02.0005", keyNode, endpointKey(7), useKey(5), blockKey(5, prefix("10.2.0.0/24")), "blk/0000000000000005/10.2.0.1/24",
		blockKey(5, prefix("2001:db8::/64")), networkKey(9), killKey(9), forgetKey(9), lifeKey(sampleDefinition), "net/0000000000000000", "ep/00000000000000FF", "blk//",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseEndpointID(s); err == nil && id.String() != strings.ToLower(s) {
			t.Errorf("id %q is read as %s", s, id)
		}
		if m, err := ParseMAC(s); err == nil {
			if again, err := ParseMAC(m.String()); err != nil || again != m {
				t.Errorf("MAC %q is read as %s, that as %s: %v", s, m, again, err)
			}
		}
		if id, ok := parseID[EndpointID](s, keyEndpoint); ok && endpointKey(id) != s {
			t.Errorf("key %q is read as %s", s, endpointKey(id))
		}
		if id, p, ok := parseBlockKey(s); ok && blockKey(id, p) != s {
			t.Errorf("key %q is read as %s", s, blockKey(id, p))
		}
		d := NewDoc(1, 1, 1)
		d.onOwned(2, s)
		d.onShared(s)
		dumpView(d.View())
	})
}

// everything is what a node that knows nothing is told.
func everything(d *Doc) Out {
	var zero []crdt.Head
	for b := range crdt.Buckets {
		for _, h := range d.Heads(b) {
			zero = append(zero, crdt.Head{Node: h.Node})
		}
	}
	out, _ := d.Missing(zero, 1<<30)
	out.Shared = []crdt.Delta{d.Shared()}
	return out
}
