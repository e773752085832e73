package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"meshnet/crdt"
)

// dumpView is a view as text, without its version.
func dumpView(v *View) string {
	var b strings.Builder
	for _, n := range v.Nodes() {
		fmt.Fprintf(&b, "node %s %s %s epoch %d\n", n.ID, n.Name, n.Addr, n.Epoch)
	}
	for _, id := range slices.Sorted(maps.Keys(v.forgotten)) {
		fmt.Fprintf(&b, "forgotten %s up to epoch %d\n", id, v.forgotten[id])
	}
	for _, n := range v.Networks() {
		fmt.Fprintf(&b, "network %s %s vni %d", n.Name, n.Def.Subnet, n.VNI)
		if n.Def.Life > 0 {
			fmt.Fprintf(&b, " life %d", n.Def.Life)
		}
		if n.Removed {
			b.WriteString(" removed")
		}
		b.WriteByte('\n')
		for e := range n.Claims() {
			shown := "quarantined"
			if s, ok := n.At(e.Addr); ok && s == e {
				shown = "shown"
			}
			fmt.Fprintf(&b, "  endpoint %s %s %s on %s %s", e.ID, e.Container, e.Addr, e.Node, shown)
			if e.Down {
				b.WriteString(" down")
			}
			b.WriteByte('\n')
			if at, ok := v.Endpoint(e.ID); !ok || at.ID != e.ID {
				fmt.Fprintf(&b, "  not in the index: %s\n", e.ID)
			}
		}
		fmt.Fprintf(&b, "  members %v, %d shown\n", n.Members(), n.Len())
		if r, ok := n.Winner(); ok {
			fmt.Fprintf(&b, "  winner %s at %d sealed %v\n", r.Creator, r.At, n.Sealed(r))
		}
		for _, k := range n.Blocks() {
			fmt.Fprintf(&b, "  block %s of %s ver %d kind %d\n", k.Prefix, k.Node, k.Ver, k.Kind)
		}
		for _, id := range n.killed {
			fmt.Fprintf(&b, "  killed %s\n", id)
		}
	}
	for _, c := range v.Conflicts() {
		fmt.Fprintf(&b, "conflict %s %s: kept %s, lost %s\n", c.Kind, c.What, c.Kept, c.Lost)
	}
	return b.String()
}

// world is documents of several nodes and all that they ever said.
type world struct {
	docs   []*Doc
	sent   []Out
	minted uint64
}

func newWorld(t *rapid.T, n int) *world {
	w := &world{}
	for i := range n {
		d := NewDoc(crdt.Node(i+1), 1, crdt.Actor(i+1))
		out, err := d.Apply(PutNode{Node{Name: fmt.Sprintf("h%d", i+1), Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}})
		if err != nil {
			t.Fatal(err)
		}
		w.docs, w.sent = append(w.docs, d), append(w.sent, out)
	}
	return w
}

// change makes some change on some node.
func (w *world) change(t *rapid.T) {
	d := w.docs[rapid.IntRange(0, len(w.docs)-1).Draw(t, "node")]
	v := d.View()
	var net NetworkID
	if all := v.Networks(); len(all) > 0 {
		net = all[rapid.IntRange(0, len(all)-1).Draw(t, "net")].ID
	}
	var own []EndpointID
	for at := range d.model.endpoints {
		if at.node == d.self {
			own = append(own, at.id)
		}
	}
	slices.Sort(own)
	var c Change
	switch step := rapid.IntRange(0, 11).Draw(t, "change"); {
	case step < 2:
		c = CreateNetwork{Def: Definition{
			Name:   rapid.SampledFrom([]string{"web", "db"}).Draw(t, "name"),
			Subnet: rapid.SampledFrom([]netip.Prefix{prefix("10.2.0.0/16"), prefix("10.3.0.0/29")}).Draw(t, "subnet"),
		}, At: int64(rapid.IntRange(1, 3).Draw(t, "at")), Force: true}
	case step < 3:
		c = RemoveNetwork{net, rapid.Bool().Draw(t, "force")}
	case step < 8:
		w.minted++
		c = PutEndpoint{Endpoint: Endpoint{
			ID: EndpointID(w.minted*256 + 7), Network: net, Container: fmt.Sprintf("c%d", w.minted),
			Addr: netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(2, 3).Draw(t, "b")), 0, byte(rapid.IntRange(1, 4).Draw(t, "d"))}),
			At:   int64(rapid.IntRange(1, 2).Draw(t, "since")),
		}}
	case step < 9 && len(own) > 0:
		c = RemoveEndpoint{own[rapid.IntRange(0, len(own)-1).Draw(t, "ep")]}
	case step < 10:
		c = PutBlock{Block{
			Network: net, Prefix: prefix(fmt.Sprintf("10.%d.0.0/30", rapid.IntRange(2, 3).Draw(t, "b"))), Ver: uint64(rapid.IntRange(1, 3).Draw(t, "ver")),
			Root: Root{NodeID(rapid.IntRange(1, 2).Draw(t, "root")), 1}, Kind: BlockKind(rapid.IntRange(0, 1).Draw(t, "kind")),
		}}
	case step < 11:
		if rapid.IntRange(0, 4).Draw(t, "really") == 0 {
			c = Forget{Node: NodeID(rapid.IntRange(1, len(w.docs)).Draw(t, "gone")), Epoch: d.Epoch(), Heir: NodeID(rapid.IntRange(0, 2).Draw(t, "heir"))}
		} else {
			c = RemoveBlock{net, prefix("10.2.0.0/30")}
		}
	default:
		if rapid.IntRange(0, 4).Draw(t, "really") == 0 {
			w.sent = append(w.sent, d.Renew(d.Epoch()+1, crdt.Actor(uint64(d.self)<<32|uint64(d.Epoch()))))
		}
		return
	}
	digest := d.Digest()
	if out, err := d.Apply(c); err == nil {
		w.sent = append(w.sent, out)
	} else if d.Digest() != digest {
		t.Fatalf("refused (%v) and yet changed", err)
	}
}

// deliver tells some node something that was said, with news checked.
func (w *world) deliver(t *rapid.T) {
	d := w.docs[rapid.IntRange(0, len(w.docs)-1).Draw(t, "to")]
	out := w.sent[rapid.IntRange(0, len(w.sent)-1).Draw(t, "what")]
	before := d.Digest()
	if news := d.Merge(out); news.Empty() != (d.Digest() == before) {
		t.Fatalf("news %+v, digest changed %v", news, d.Digest() != before)
	}
}

// TestDoc lets nodes change and hear of changes in any order, and then hear everything: documents of
// one digest have one view, and a view made step by step is the one made at once.
func TestDoc(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 3)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "deliver") {
				w.deliver(t)
			} else {
				w.change(t)
			}
			for i, d := range w.docs {
				if rapid.IntRange(0, 2).Draw(t, "look") == 0 {
					w.look(t, i, d)
				}
			}
		}
		for range 2 {
			for _, d := range w.docs {
				for _, o := range w.docs {
					d.Merge(everything(o))
				}
			}
		}
		for i, d := range w.docs {
			w.look(t, i, d)
			if _, doubts := d.Doubt(); doubts {
				t.Fatalf("node %d doubts what it wrote", i+1)
			}
			if d.Digest() != w.docs[0].Digest() || dumpView(d.View()) != dumpView(w.docs[0].View()) {
				t.Fatalf("node %d sees\n%s\nnode 1 sees\n%s", i+1, dumpView(d.View()), dumpView(w.docs[0].View()))
			}
		}
	})
}

// look compares a node's view with that of a node that heard all of it at once.
func (w *world) look(t *rapid.T, i int, d *Doc) {
	v := d.View()
	fresh := NewDoc(99, 1, 99)
	fresh.Merge(everything(d))
	if fresh.Digest() != d.Digest() {
		t.Fatalf("node %d: digests differ after hearing all", i+1)
	}
	if got, want := dumpView(v), dumpView(fresh.View()); got != want {
		t.Fatalf("node %d, step by step:\n%s\nat once:\n%s", i+1, got, want)
	}
	if again := d.View(); again != v {
		t.Fatal("another view without a change")
	}
	if v.Digest() != d.Digest() {
		t.Fatal("the view has another digest than its document")
	}
	names := map[string]bool{}
	vnis := map[uint32]bool{}
	for _, n := range v.Networks() {
		if names[n.Name] || vnis[n.VNI] || n.VNI == 0 || n.VNI > vniMax {
			t.Fatalf("not unique:\n%s", dumpView(v))
		}
		names[n.Name], vnis[n.VNI] = true, true
	}
}

// TestUntouched sees that what did not change is the same pointer.
func TestUntouched(t *testing.T) {
	d := NewDoc(1, 1, 1)
	must(t, d, CreateNetwork{Def: Definition{Name: "web", Subnet: prefix("10.2.0.0/16")}},
		CreateNetwork{Def: Definition{Name: "db", Subnet: prefix("10.3.0.0/16")}})
	v := d.View()
	web, _ := v.ByName("web")
	db, _ := v.ByName("db")
	must(t, d, PutEndpoint{Endpoint: Endpoint{ID: 7, Network: web.ID, Container: "c1", Addr: addr("10.2.0.5")}})
	w := d.View()
	if w == v || w.Version() <= v.Version() {
		t.Fatal("no later view")
	}
	if n, _ := w.ByName("db"); n != db {
		t.Error("db was built again")
	}
	if n, _ := w.ByName("web"); n == web || n.Len() != 1 || web.Len() != 0 {
		t.Error("web was not built again, or the old one changed")
	}
	web, _ = w.ByName("web")
	must(t, d, PutEndpoint{Endpoint: Endpoint{ID: 7, Network: web.ID, Container: "c1", Addr: addr("10.2.0.5"), Down: true}})
	if n, _ := d.View().ByName("web"); n == web || len(n.Members()) != 1 || &n.Members()[0] != &web.Members()[0] {
		t.Error("the members were listed again, or web was not built again")
	}
	must(t, d, CreateNetwork{Def: Definition{Name: "x", Subnet: prefix("10.4.0.0/16")}})
	if n, _ := d.View().ByName("db"); n != db {
		t.Error("db was built again for another network")
	}
}

func must(t rapid.TB, d *Doc, cs ...Change) Out {
	t.Helper()
	out, err := d.Apply(cs...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOfEndpoints: only single records of endpoints are what hardly anything follows from.
func TestOfEndpoints(t *testing.T) {
	put := func(keys ...string) (out Out) {
		for _, k := range keys {
			out.Ops = append(out.Ops, crdt.Op{Node: 1, Epoch: 1, Seq: 1, Key: []byte(k)})
		}
		return out
	}
	for _, c := range []struct {
		what string
		out  Out
		is   bool
	}{
		{"two endpoints", put(endpointKey(1), endpointKey(2)), true},
		{"an endpoint and a block", put(endpointKey(1), blockKey(1, netip.MustParsePrefix("10.0.0.0/30"))), false},
		{"a node", put(keyNode), false},
		{"an empty key", put(""), false},
		{"a whole map", Out{Patches: make([]crdt.Patch, 1)}, false},
		{"a shared record beside an endpoint", Out{Ops: put(endpointKey(1)).Ops, Shared: make([]crdt.Delta, 1)}, false},
	} {
		if got := c.out.OfEndpoints(); got != c.is {
			t.Errorf("%s: %t", c.what, got)
		}
	}
}
