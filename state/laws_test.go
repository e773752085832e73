package state

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"meshnet/crdt"
)

// The laws of package crdt, for the whole document, in the bytes that documents tell each other; and W1,
// of the wire: what is decoded is what was encoded, unknown fields survive, messages keep their limit,
// and no bytes make a decoder panic (FuzzDecode, FuzzRecords).

// said is what nodes said in a random history.
func said(t *rapid.T) []Out {
	w := newWorld(t, 3)
	for range rapid.IntRange(0, 25).Draw(t, "steps") {
		if rapid.IntRange(0, 2).Draw(t, "deliver") == 0 {
			w.deliver(t)
		} else {
			w.change(t)
		}
	}
	return w.sent
}

func drawOuts(t *rapid.T, from []Out, label string) (outs []Out) {
	for range rapid.IntRange(0, 2*len(from)).Draw(t, label) {
		outs = append(outs, from[rapid.IntRange(0, len(from)-1).Draw(t, label)])
	}
	return outs
}

func docOf(outs []Out) *Doc {
	d := NewDoc(99, 1, 99)
	for _, o := range outs {
		d.Merge(o)
	}
	return d
}

// canonical is all that a document holds, as bytes.
func canonical(d *Doc) []byte { return bytes.Join(Encode(everything(d), 1<<30), nil) }

func joinDocs(a, b *Doc) *Doc {
	for _, o := range []Out{everything(b), {Shared: []crdt.Delta{b.Shared()}}} { // who is given up comes first
		a.Merge(o)
	}
	return a
}

func TestL1DocJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		outs := said(t)
		a, b, c := drawOuts(t, outs, "a"), drawOuts(t, outs, "b"), drawOuts(t, outs, "c")
		same := func(law string, x, y *Doc) {
			if !bytes.Equal(canonical(x), canonical(y)) || dumpView(x.View()) != dumpView(y.View()) {
				t.Fatalf("not %s:\n%s\n%s", law, dumpView(x.View()), dumpView(y.View()))
			}
		}
		same("commutative", joinDocs(docOf(a), docOf(b)), joinDocs(docOf(b), docOf(a)))
		same("associative", joinDocs(joinDocs(docOf(a), docOf(b)), docOf(c)), joinDocs(docOf(a), joinDocs(docOf(b), docOf(c))))
		same("idempotent", joinDocs(docOf(a), docOf(a)), docOf(a))
		same("growing", joinDocs(joinDocs(docOf(a), docOf(b)), docOf(a)), joinDocs(docOf(a), docOf(b)))
	})
}

func TestL2DocDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 1)
		other := docOf(w.sent)
		for range rapid.IntRange(1, 25).Draw(t, "changes") {
			n := len(w.sent)
			w.change(t)
			for _, out := range w.sent[n:] {
				other.Merge(out)
			}
			if d := w.docs[0]; d.Digest() != other.Digest() || dumpView(d.View()) != dumpView(other.View()) {
				t.Fatalf("changed\n%stold\n%s", dumpView(d.View()), dumpView(other.View()))
			}
		}
	})
}

// TestL3DocOrder: the same ops in any order, again, and in any messages give the same bytes.
func TestL3DocOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		told := drawOuts(t, said(t), "told")
		want := docOf(told)
		var messages [][]byte
		for _, o := range told {
			messages = append(messages, Encode(o, rapid.IntRange(60, 1500).Draw(t, "limit"))...)
		}
		if len(messages) > 0 {
			messages = append(messages, messages[rapid.IntRange(0, len(messages)-1).Draw(t, "twice")])
		}
		got := NewDoc(99, 1, 99)
		for _, m := range rapid.Permutation(messages).Draw(t, "order") {
			in, err := Decode(m)
			if err != nil {
				t.Fatal(err)
			}
			got.Merge(in)
		}
		if !bytes.Equal(canonical(got), canonical(want)) || got.Digest() != want.Digest() {
			t.Fatalf("in another order\n%x\nwant\n%x", canonical(got), canonical(want))
		}
	})
}

// TestL4ViewReference compares views, made step by step, with what the rules as they are written down say
// of all records at once. Three nodes write what they like, so that nearly everything is claimed twice.
func TestL4ViewReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := NewDoc(99, 1, 99)
		must(t, d, CreateNetwork{Def: Definition{Name: "web", Subnet: prefix("10.2.0.0/29")}},
			CreateNetwork{Def: Definition{Name: "db", Subnet: prefix("10.2.0.0/29")}, Force: true})
		nets := []NetworkID{d.View().Networks()[0].ID, d.View().Networks()[1].ID, 77}
		var writers []*crdt.Owned
		for i := range 3 {
			writers = append(writers, crdt.NewOwned(NodeID(i+1), 1, nil))
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			w := writers[rapid.IntRange(0, 2).Draw(t, "node")]
			net := rapid.SampledFrom(nets).Draw(t, "net")
			var key string
			var value []byte
			if rapid.IntRange(0, 3).Draw(t, "kind") > 0 {
				key = endpointKey(EndpointID(rapid.IntRange(1, 6).Draw(t, "id")))
				e := Endpoint{
					Network: net, Container: "c", At: int64(rapid.IntRange(1, 3).Draw(t, "at")),
					Addr: netip.AddrFrom4([4]byte{10, 2, 0, byte(rapid.IntRange(0, 4).Draw(t, "addr"))}),
				}
				value = e.encode()
			} else {
				p := rapid.SampledFrom([]string{"10.2.0.0/29", "10.2.0.0/30", "10.2.0.2/31"}).Draw(t, "prefix")
				key = blockKey(net, prefix(p))
				k := Block{
					Root: Root{NodeID(rapid.IntRange(1, 3).Draw(t, "root")), int64(rapid.IntRange(1, 2).Draw(t, "of"))},
					Ver:  uint64(rapid.IntRange(1, 2).Draw(t, "ver")), Kind: BlockKind(rapid.IntRange(0, 3).Draw(t, "offer") / 3),
				}
				value = k.encode()
			}
			if op, ok := w.Remove([]byte(key)); ok && rapid.Bool().Draw(t, "remove") {
				d.Merge(Out{Ops: []crdt.Op{op}})
			} else {
				ops := []crdt.Op{w.Put([]byte(key), value)}
				if ok {
					ops = append(ops, op)
				}
				d.Merge(Out{Ops: ops})
			}
			if rapid.Bool().Draw(t, "look") {
				checkView(t, d)
			}
		}
		checkView(t, d)
	})
}

func checkView(t *rapid.T, d *Doc) {
	v := d.View()
	for _, n := range v.Networks() {
		var claims []*Endpoint
		members := map[NodeID]bool{}
		for at, e := range d.model.endpoints {
			if e.Network == n.ID {
				claims = append(claims, e)
				members[at.node] = true
			}
		}
		slices.SortFunc(claims, byAddress)
		if got := slices.Collect(n.Claims()); !slices.Equal(got, claims) {
			t.Fatalf("%s claims %v, want %v", n.Name, got, claims)
		}
		if got := slices.Sorted(maps.Keys(members)); !slices.Equal(n.Members(), got) {
			t.Fatalf("%s has members %v, want %v", n.Name, n.Members(), got)
		}
		shown := map[netip.Addr]*Endpoint{}
		for _, e := range claims {
			if !n.Def.host(e.Addr) || e.Addr == n.Def.Gateway {
				continue
			}
			owner := refOwner(d, n.ID, e.Addr)
			best := shown[e.Addr]
			if best == nil || (e.Node == owner) != (best.Node == owner) && e.Node == owner ||
				(e.Node == owner) == (best.Node == owner) && cmp.Or(cmp.Compare(e.At, best.At), cmp.Compare(e.Node, best.Node), cmp.Compare(e.ID, best.ID)) < 0 {
				shown[e.Addr] = e
			}
		}
		seen := 0
		for e := range n.Endpoints() {
			if shown[e.Addr] != e {
				t.Fatalf("%s shows %v, want %v", n.Name, e, shown[e.Addr])
			}
			seen++
		}
		if seen != len(shown) || n.Len() != seen {
			t.Fatalf("%s shows %d and says %d, want %d", n.Name, seen, n.Len(), len(shown))
		}
		lost := 0
		for _, c := range v.Conflicts() {
			if c.Kind == ConflictAddress && c.Network == n.ID {
				lost++
			}
		}
		if lost != len(claims)-len(shown) {
			t.Fatalf("%s lists %d conflicts, want %d", n.Name, lost, len(claims)-len(shown))
		}
	}
	for at, e := range d.model.endpoints {
		if got, ok := v.Endpoint(at.id); !ok || got.ID != e.ID {
			t.Fatalf("endpoint %s is not in the index", at.id)
		}
	}
}

// refOwner is the writer of the record that counts for an address, zero if that is an offer: of the
// first root (sealed, then at, then creator), then of the highest version, own before offer, lowest node.
func refOwner(d *Doc, net NetworkID, a netip.Addr) NodeID {
	var all []*Block
	for _, k := range d.model.nets[net].allBlocks {
		all = append(all, k)
	}
	sealed := func(r Root) bool {
		return slices.ContainsFunc(all, func(k *Block) bool { return k.Root == r && (k.Sealed || k.Node != r.Creator) })
	}
	slices.SortFunc(all, func(a, b *Block) int {
		return cmp.Or(compareBool(!sealed(a.Root), !sealed(b.Root)), cmp.Compare(a.Root.At, b.Root.At), cmp.Compare(a.Root.Creator, b.Root.Creator),
			-cmp.Compare(a.Ver, b.Ver), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Node, b.Node))
	})
	for _, k := range all {
		if k.Prefix.Contains(a) {
			if k.Kind == Own {
				return k.Node
			}
			return 0
		}
	}
	return 0
}

// TestL5DocNews: a merge returns what changed, nothing exactly without a change, and in messages that
// is enough for another document to follow.
func TestL5DocNews(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		outs := said(t)
		told := drawOuts(t, outs, "told")
		d, follower := docOf(told), docOf(told)
		for _, in := range append(drawOuts(t, outs, "more"), everything(docOf(drawOuts(t, outs, "pulled")))) {
			before := canonical(d)
			news := d.Merge(in)
			if news.Empty() != bytes.Equal(canonical(d), before) {
				t.Fatalf("news %+v, from\n%x\nto\n%x", news, before, canonical(d))
			}
			for _, m := range Encode(news, 1350) {
				in, err := Decode(m)
				if err != nil {
					t.Fatal(err)
				}
				follower.Merge(in)
			}
			if !bytes.Equal(canonical(follower), canonical(d)) {
				t.Fatalf("the news lead to\n%x\nwant\n%x", canonical(follower), canonical(d))
			}
		}
	})
}

// TestL6DocSync: a document that missed anything of what another holds becomes equal by what the other
// answers to its heads, in messages of any limit, and a few changes cost a few hundred bytes whatever
// there is.
func TestL6DocSync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		outs := said(t)
		a, b := docOf(drawOuts(t, outs, "a")), docOf(outs)
		limit := rapid.IntRange(100, 1400).Draw(t, "limit")
		b.Merge(everything(a))
		for range 2 { // a patch may come before the ops it needs
			pull(t, a, b, limit)
		}
		if !bytes.Equal(canonical(a), canonical(b)) || a.Digest() != b.Digest() {
			t.Fatalf("has\n%s\nwant\n%s", dumpView(a.View()), dumpView(b.View()))
		}
	})
	a, b := NewDoc(98, 1, 98), NewDoc(99, 1, 99)
	all := fleet(t, 20, 50)
	for _, o := range all {
		a.Merge(o)
		b.Merge(o)
	}
	w := NewDoc(1, 1, 1)
	web := must(t, w, PutNode{Node{Name: "late", Addr: addr("192.0.2.1")}})
	a.Merge(web)
	b.Merge(web)
	for i := range 5 {
		a.Merge(must(t, w, PutNode{Node{Name: fmt.Sprint("late", i), Addr: addr("192.0.2.1")}}))
	}
	if size := pull(t, b, a, 1400); size > 300 || a.Digest() != b.Digest() {
		t.Fatalf("%d bytes for one record that changed", size)
	}
}

// pull tells a what b answers to its heads, and returns the bytes of the answers.
func pull(t rapid.TB, a, b *Doc, limit int) (size int) {
	if a.shared.Digest() != b.shared.Digest() {
		a.Merge(Out{Shared: []crdt.Delta{b.Shared()}})
	}
	for more := true; more; {
		var heads []crdt.Head
		for i := range crdt.Buckets {
			mine := a.Heads(i)
			heads = append(heads, mine...)
			for _, h := range b.Heads(i) {
				if !slices.ContainsFunc(mine, func(x crdt.Head) bool { return x.Node == h.Node }) {
					heads = append(heads, crdt.Head{Node: h.Node})
				}
			}
		}
		var out Out
		out, more = b.Missing(heads, 4*limit)
		messages := Encode(out, limit)
		for _, m := range append(messages, messages...) {
			in, err := Decode(m)
			if err != nil {
				t.Fatal(err)
			}
			a.Merge(in)
		}
		for _, m := range messages {
			size += len(m)
		}
	}
	return size
}

func TestL7DocDigest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		outs := said(t)
		a, b := docOf(drawOuts(t, outs, "a")), docOf(drawOuts(t, outs, "b"))
		if (a.Digest() == b.Digest()) != bytes.Equal(canonical(a), canonical(b)) {
			t.Fatalf("digests equal %v of\n%x\n%x", a.Digest() == b.Digest(), canonical(a), canonical(b))
		}
	})
}

// TestI4DocForgotten: of a node that is given up nothing is shown whenever its records come, and its
// next life counts again. Who is alive is nowhere: a view is made of records alone.
func TestI4DocForgotten(t *testing.T) {
	d := NewDoc(1, 1, 1)
	must(t, d, CreateNetwork{Def: Definition{Name: "web", Subnet: prefix("10.2.0.0/16")}})
	web := d.View().Networks()[0].ID
	dead := NewDoc(2, 3, 2)
	dead.Merge(everything(d))
	put := func(id EndpointID, a string) Change {
		return PutEndpoint{Endpoint: Endpoint{ID: id, Network: web, Container: "c", Addr: addr(a)}}
	}
	record := PutNode{Node{Name: "dead", Addr: addr("192.0.2.2")}}
	early := must(t, dead, record, put(7, "10.2.0.7"))
	d.Merge(early)
	forget := must(t, d, Forget{Node: 2, Epoch: 3})
	late := must(t, dead, put(8, "10.2.0.8"))
	d.Merge(early)
	d.Merge(late)
	d.Merge(everything(dead))
	v := d.View()
	if _, ok := v.Node(2); ok || v.Networks()[0].Len() != 0 || len(v.Networks()[0].Members()) != 0 {
		t.Fatalf("still shown:\n%s", dumpView(v))
	}
	dead.Merge(forget)
	if _, err := dead.Apply(put(9, "10.2.0.9")); err == nil {
		t.Fatal("a node that was given up wrote")
	}
	d.Merge(dead.Renew(4, 5))
	d.Merge(must(t, dead, record, put(9, "10.2.0.9")))
	v = d.View()
	if _, ok := v.Node(2); !ok || v.Networks()[0].Len() != 1 || dumpView(v) != dumpView(dead.View()) {
		t.Fatalf("its next life is\n%sit sees\n%s", dumpView(v), dumpView(dead.View()))
	}
}

// TestI4Silence: after 30 days of silence, not before, what is held of others is gone when the first is
// met, and one's own and what is shared is not.
func TestI4Silence(t *testing.T) {
	d := NewDoc(1, 1, 1)
	must(t, d, CreateNetwork{Def: Definition{Name: "web", Subnet: prefix("10.2.0.0/16")}}, PutNode{Node{Name: "own", Addr: addr("192.0.2.1")}}, Forget{Node: 3, Epoch: 1})
	other := NewDoc(2, 1, 2)
	other.Merge(everything(d))
	d.Merge(must(t, other, PutNode{Node{Name: "other", Addr: addr("192.0.2.2")}}))
	if d.Meet(SilenceMax-1) || len(d.View().Nodes()) != 2 {
		t.Fatal("dropped too soon")
	}
	if !d.Meet(SilenceMax) {
		t.Fatal("not dropped")
	}
	v := d.View()
	if _, ok := v.Node(1); !ok || len(v.Nodes()) != 1 || len(v.Networks()) != 1 {
		t.Fatalf("left is\n%s", dumpView(v))
	}
	if e, ok := v.Forgotten(3); !ok || e != 1 {
		t.Fatal("who was given up is not known any more")
	}
	if d.Meet(SilenceMax) {
		t.Fatal("dropped twice")
	}
	d.Merge(everything(other))
	if len(d.View().Nodes()) != 2 {
		t.Fatal("what others tell afterwards is not taken in")
	}
}

// record fields for TestW1RoundTrip.
func drawAddr(t *rapid.T, label string) netip.Addr {
	b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label)
	switch rapid.IntRange(0, 2).Draw(t, label+" kind") {
	case 0:
		return netip.Addr{}
	case 1:
		return netip.AddrFrom4([4]byte(b))
	}
	b[0] = 0x20 // not an IPv4 one in disguise
	return netip.AddrFrom16([16]byte(b))
}

func drawPrefix(t *rapid.T, label string) netip.Prefix {
	a := drawAddr(t, label)
	return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, label+" bits"))
}

// drawUnknown is fields of a later version.
func drawUnknown(t *rapid.T) (b []byte) {
	num := 20
	for range rapid.IntRange(0, 3).Draw(t, "unknown") {
		num += rapid.IntRange(0, 30).Draw(t, "number")
		if rapid.Bool().Draw(t, "bytes") {
			b = appendField(b, num, rapid.SliceOf(rapid.Byte()).Draw(t, "value"))
		} else {
			b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(num)<<3), rapid.Uint64().Draw(t, "value"))
		}
	}
	return b
}

func drawText(t *rapid.T, label string) string {
	return rapid.StringN(0, 20, -1).Draw(t, label)
}

func drawDefinition(t *rapid.T) Definition {
	d := Definition{
		Name: drawText(t, "name"), Subnet: drawPrefix(t, "subnet"), Gateway: drawAddr(t, "gateway"), Internal: rapid.Bool().Draw(t, "internal"),
		BlockBits: rapid.Byte().Draw(t, "bits"), MTU: rapid.Uint32().Draw(t, "mtu"), Life: rapid.Uint32().Draw(t, "life"), unknown: drawUnknown(t),
	}
	for range rapid.IntRange(0, 2).Draw(t, "ranges") {
		d.Reserve = append(d.Reserve, Range{drawAddr(t, "from"), drawAddr(t, "to")})
		d.Labels = append(d.Labels, Label{drawText(t, "key"), drawText(t, "value")})
	}
	return d
}

func drawCreated(t *rapid.T) Created {
	return Created{
		Def: drawDefinition(t), VNI: rapid.Uint32().Draw(t, "vni"), Lamport: rapid.Uint64().Draw(t, "lamport"), At: rapid.Int64().Draw(t, "at"),
		Creator: NodeID(rapid.Uint64().Draw(t, "creator")), unknown: drawUnknown(t),
	}
}

func drawRecord(t *rapid.T, kind string) any {
	switch kind {
	case "node":
		return Node{
			Name: drawText(t, "name"), Addr: drawAddr(t, "addr"), GossipPort: rapid.Uint16().Draw(t, "port"), TunnelPort: rapid.Uint16().Draw(t, "tunnel"),
			Encap: Encap(rapid.Byte().Draw(t, "encap")), Transport: Transport(rapid.Byte().Draw(t, "transport")), MTU: rapid.Uint32().Draw(t, "mtu"),
			Version: drawText(t, "version"), unknown: drawUnknown(t),
		}
	case "network":
		return drawCreated(t)
	case "use":
		return Use{Created: drawCreated(t), unknown: drawUnknown(t)}
	case "endpoint":
		e := Endpoint{
			Network: NetworkID(rapid.Uint64().Draw(t, "net")), Container: drawText(t, "container"), Addr: drawAddr(t, "addr"), IfName: drawText(t, "ifname"),
			Alloc: rapid.Uint64().Draw(t, "alloc"), At: rapid.Int64().Draw(t, "at"), Down: rapid.Bool().Draw(t, "down"), unknown: drawUnknown(t),
		}
		copy(e.MAC[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
		for range rapid.IntRange(0, 3).Draw(t, "names") {
			e.Names = append(e.Names, drawText(t, "alias"))
		}
		return e
	case "block":
		k := Block{
			Root: Root{NodeID(rapid.Uint64().Draw(t, "root")), rapid.Int64().Draw(t, "at")}, Sealed: rapid.Bool().Draw(t, "sealed"), Ver: rapid.Uint64().Draw(t, "ver"),
			Kind: BlockKind(rapid.Byte().Draw(t, "kind")), To: NodeID(rapid.Uint64().Draw(t, "to")), ToEpoch: crdt.Epoch(rapid.Uint32().Draw(t, "epoch")),
			State: BlockState(rapid.Byte().Draw(t, "state")), unknown: drawUnknown(t),
		}
		for range rapid.IntRange(0, 3).Draw(t, "lineage") {
			k.Lineage = append(k.Lineage, NodeID(rapid.Uint64().Draw(t, "grantor")))
		}
		return k
	case "kill":
		k := kill{unknown: drawUnknown(t)}
		for range rapid.IntRange(0, 3).Draw(t, "uses") {
			k.uses = append(k.uses, useAt{NodeID(rapid.Uint64().Draw(t, "node")), crdt.Epoch(rapid.Uint32().Draw(t, "epoch")), crdt.Seq(rapid.Uint64().Draw(t, "seq"))})
		}
		return k
	}
	return rapid.Uint32().Draw(t, "count")
}

// TestW1RoundTrip: every record, with fields of a later version, is read as it was written, and nothing
// but all of its bytes is.
func TestW1RoundTrip(t *testing.T) {
	for _, kind := range []string{"node", "network", "use", "endpoint", "block", "kill", "count"} {
		t.Run(kind, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				v := drawRecord(t, kind)
				b := encodeSample(v)
				got, err := decodeSample(kind, b)
				if err != nil || !reflect.DeepEqual(got, v) {
					t.Fatalf("wrote %+v\nread  %+v, %v", v, got, err)
				}
				cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
				if got, err := decodeSample(kind, b[:cut]); err == nil && bytes.Equal(encodeSample(got), b) {
					t.Fatalf("%d of %d bytes read as all", cut, len(b))
				}
			})
		})
	}
}
