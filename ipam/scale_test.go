package ipam

import (
	"flag"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

var scale = flag.Int("scale", 60, "how many nodes share a /16")

// TestManyNodes wants every node of a large mesh to get addresses of one /16, at once, with what each
// writes known to all a tenth of a second later.
func TestManyNodes(t *testing.T) {
	const tick = 100 * time.Millisecond
	all := state.NewDoc(1<<60, 1, 1<<60)
	type member struct {
		m     *Machine
		doc   *state.Doc // of its own records alone
		inbox []Msg
		next  time.Duration
	}
	nodes := make([]*member, *scale)
	var ids []state.NodeID
	def, err := state.Create{Name: "big", Subnet: netip.MustParsePrefix("10.7.0.0/16")}.Definition(nil)
	if err != nil {
		t.Fatal(err)
	}
	var first state.Out
	for i := range nodes {
		id := state.NodeID(mix(uint64(i), 7) | 1)
		ids = append(ids, id)
		n := &member{m: New(Config{Self: id, Epoch: 1}), doc: state.NewDoc(id, 1, crdt.Actor(id))}
		nodes[i] = n
		cs := []state.Change{state.PutNode{Node: state.Node{Name: fmt.Sprint("h", i), Addr: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})}}}
		if i == 0 {
			cs = append(cs, state.CreateNetwork{Def: def, At: 1})
		}
		out, err := n.doc.Apply(cs...)
		if err != nil {
			t.Fatal(err)
		}
		all.Merge(out)
		if i == 0 {
			first = out
		} else {
			n.doc.Merge(state.Out{Shared: first.Shared})
		}
	}
	at := map[state.NodeID]*member{}
	for i, n := range nodes {
		at[ids[i]] = n
	}
	now := time.Second
	got := map[netip.Addr]state.NodeID{}
	var pending []state.Out
	step := func(n *member, ev Event) {
		e := n.m.Step(now, ev)
		n.next = e.Next
		for _, c := range e.Changes {
			out, err := n.doc.Apply(c)
			if err != nil {
				t.Fatal(err)
			}
			pending = append(pending, out)
		}
		for _, s := range e.Send {
			to := at[s.To]
			to.inbox = append(to.inbox, Msg{n.m.self, s.Body})
		}
		for _, a := range e.Done {
			if a.Err != nil {
				t.Fatalf("%s: %v", n.m.self, a.Err)
			}
			if other, twice := got[a.Addr]; twice {
				t.Fatalf("%s is of %s and %s", a.Addr, other, n.m.self)
			}
			got[a.Addr] = n.m.self
		}
	}
	for i, n := range nodes {
		step(n, Saw{all.View()})
		step(n, Members{ids})
		if i == 0 {
			step(n, Founded{def.ID(), 1})
		}
	}
	wanted, last := 0, (*state.View)(nil)
	for round := 0; len(got) < 3*len(nodes); round++ {
		if round > 600 {
			t.Fatalf("after %v of virtual time %d of %d have their addresses", now, len(got), 3*len(nodes))
		}
		now += tick
		for _, out := range pending {
			all.Merge(out)
		}
		pending = nil
		view := all.View()
		for i, n := range nodes {
			if view != last {
				step(n, Saw{view})
			}
			if round == 30 || round == 40 || round == 50 {
				wanted++
				step(n, Want{Wish: state.Attach{ID: state.EndpointID(wanted), Network: def.ID(), Container: fmt.Sprint("c", i, round)}, At: 1})
			}
			box := n.inbox
			n.inbox = nil
			for _, m := range box {
				step(n, m)
			}
			if n.next != 0 && n.next <= now {
				step(n, Tick{})
			}
		}
		last = view
	}
	t.Logf("%d nodes have %d addresses after %v", len(nodes), len(got), now)
}
