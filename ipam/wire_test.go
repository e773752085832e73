package ipam

import (
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"meshnet/state"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func someBlock() state.Block {
	return state.Block{
		Network: 0xb1, Prefix: netip.MustParsePrefix("10.7.0.16/28"), Root: state.Root{Creator: 2, At: 1700000000},
		Sealed: true, Ver: 300, Kind: state.Offer, To: 3, ToEpoch: 4, Lineage: []state.NodeID{5, 2}, State: state.Pending,
	}
}

func someEntries() []entry {
	return []entry{
		{kind: entBorn, epoch: 3},
		{kind: entMet, node: 9},
		{kind: entPut, block: someBlock()},
		{kind: entRemove, network: 0xb1, prefix: netip.MustParsePrefix("10.7.0.0/24")},
		{kind: entAlloc, endpoint: state.Endpoint{
			ID: 7, Network: 0xb1, Container: "c1", Addr: netip.MustParseAddr("10.7.0.17"), MAC: state.MAC{2, 0x42, 10, 7, 0, 17},
			IfName: "eth1", Names: []string{"db", "web"}, Alloc: 12, At: 1700000001,
		}},
		{kind: entFree, network: 0xb1, id: 7, alloc: 12},
		{kind: entWitness, node: 9, block: blockOf(9)},
		{kind: entDrop, network: 0xb1},
		{kind: entForget, node: 9, epoch: 4, heir: 3, name: "c"},
		{kind: entForget, node: 9, epoch: 4},
		{kind: entEstate, node: 9, block: blockOf(9)},
		{kind: entSettled, network: 0xb1, node: 9, prefix: netip.MustParsePrefix("10.7.0.16/28")},
		{kind: entMetBy, node: 9},
		{kind: entMet, node: 9, epoch: 5},
	}
}

func blockOf(n state.NodeID) state.Block {
	b := someBlock()
	b.Node = n
	return b
}

func someMessages() []message {
	return []message{
		{kind: msgAsk, network: 0xb1, seq: 5, epoch: 2, born: 1, urgent: true, bits: 28},
		{kind: msgAsk, network: 0xb1, seq: 6, epoch: 2, born: 1, bits: 32, exact: netip.MustParseAddr("10.7.0.9")},
		{kind: msgGive, network: 0xb1, seq: 5, block: someBlock()},
		{kind: msgRefuse, network: 0xb1, seq: 5, why: refuseUsed, text: "c1"},
		{kind: msgWitness, network: 0xb1, block: someBlock()},
		{kind: msgStored, network: 0xb1, block: someBlock()},
		{kind: msgRoot, network: 0xb1},
		{kind: msgWait, network: 0xb1},
		{kind: msgAsk, network: 0xb1, seq: 6, epoch: 2, born: 1, bits: 32, exact: netip.MustParseAddr("10.7.0.9"), held: true},
		{kind: msgMeet, epoch: 3},
		{kind: msgMet, epoch: 3},
		{kind: msgInquire, network: 0xb1, seq: 8, epoch: 3, losses: []state.Forget{{Node: 3, Epoch: 2}, {Node: 9, Epoch: 1, Heir: 2}},
			ranges: []netip.Prefix{netip.MustParsePrefix("10.7.0.16/28")}},
		{kind: msgTestify, network: 0xb1, seq: 8, losses: []state.Forget{{Node: 3, Epoch: 2}}, met: []known{{2, 0}, {3, 4}},
			records: []state.Block{blockOf(9)}, past: []bool{true}, highs: []high{{netip.MustParsePrefix("10.7.0.16/29"), state.Root{Creator: 2, At: 5}, 7}}},
		{kind: msgTestify, network: 0xb1, seq: 8},
	}
}

// golden holds bytes to those that the first release wrote.
func golden(t *testing.T, name string, lines []string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	got := strings.Join(lines, "\n") + "\n"
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; what is written must be read by every later version:\n%s", path, got)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	var lines []string
	for _, e := range someEntries() {
		b := encodeRecord([]entry{e})
		lines = append(lines, fmt.Sprintf("%d %s", e.kind, hex.EncodeToString(b)))
		got, err := decodeRecord(b)
		if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], e) {
			t.Errorf("%+v, %v, want %+v", got, err, e)
		}
	}
	golden(t, "records.v1", lines)
	all := someEntries()
	got, err := decodeRecord(encodeRecord(all))
	if err != nil || !reflect.DeepEqual(got, all) {
		t.Error(got, err)
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	var lines []string
	for _, m := range someMessages() {
		b := m.encode()
		lines = append(lines, fmt.Sprintf("%d %s", m.kind, hex.EncodeToString(b)))
		got, err := decodeMessage(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v, %v, want %+v", got, err, m)
		}
		// A later version adds fields at the end.
		if got, err := decodeMessage(append(b, 1, 2, 3)); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("with more: %+v, %v, want %+v", got, err, m)
		}
		for i := range b {
			if _, err := decodeMessage(b[:i]); err == nil {
				t.Errorf("%d of %d bytes of kind %d decode", i, len(b), m.kind)
			}
		}
	}
	golden(t, "messages.v1", lines)
}

// A later version adds fields to entries, and kinds.
func TestRecordOfLaterVersion(t *testing.T) {
	e := entry{kind: entMet, node: 9}
	b := append(e.encode(), 1, 2, 3)
	w := writer{2, byte(len(b))}
	w = append(append(w, b...), 2, 200, 1)
	got, err := decodeRecord(Record(w))
	if err != nil || len(got) != 1 || got[0].node != 9 {
		t.Fatal(got, err)
	}
}

func FuzzMessage(f *testing.F) {
	for _, m := range someMessages() {
		f.Add(m.encode())
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err == nil {
			again, err := decodeMessage(m.encode())
			if err != nil || !reflect.DeepEqual(again, m) {
				t.Fatalf("%+v, %v, was %+v", again, err, m)
			}
		}
		// Whatever it says, a machine takes it.
		r := newRig(t, 1, "blue", "10.7.0.0/24", self)
		r.step(Founded{r.net, 5})
		r.step(Msg{2, b})
		if err == nil {
			m.block.Network = r.net
			r.tell(2, m)
			r.now += time.Second
			r.step(Tick{})
		}
	})
}

func FuzzRecord(f *testing.F) {
	for _, e := range someEntries() {
		f.Add([]byte(encodeRecord([]entry{e})))
	}
	f.Add([]byte(encodeRecord(someEntries())))
	f.Fuzz(func(t *testing.T, b []byte) {
		es, err := decodeRecord(b)
		m := New(Config{Self: self, Epoch: 1, Records: []Record{b}})
		m.Step(1, Tick{})
		if err != nil {
			return
		}
		again, err := decodeRecord(encodeRecord(es))
		if err != nil || !reflect.DeepEqual(again, es) {
			t.Fatalf("%+v, %v, was %+v", again, err, es)
		}
	})
}
