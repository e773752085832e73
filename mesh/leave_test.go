package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"meshnet/state"
)

// three starts three hosts with a network of one subnet.
func three(t *testing.T, subnet string) (*lab, state.NetworkID) {
	l := newLab(t)
	l.edit = func(_ int, c *Config) { c.Quarantine = 5 * time.Second }
	for i := range 3 {
		l.start(i)
	}
	l.await("formed", 10*time.Second, l.converged)
	out := l.nodes[0].do(t, state.Create{Name: "blue", Subnet: netip.MustParsePrefix(subnet)})
	l.await("known", 5*time.Second, l.converged)
	return l, out.Network
}

func TestExpelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, net := three(t, "10.7.0.0/28")
		defer l.end()
		had := l.nodes[2].do(t, attach(net, "c2"))
		gone := l.nodes[2].Self()
		l.await("told", 5*time.Second, l.converged)
		l.stop(2)
		l.await("missed", time.Minute, func() bool { return len(l.nodes[0].members.alive()) == 1 })
		for i := range 2 {
			l.nodes[i].do(t, state.Expel{Node: gone})
		}
		if out := l.nodes[0].do(t, state.Expel{Node: gone}); !out.Again {
			t.Error("given up twice")
		}
		rests := func() bool {
			return len(l.nodes[0].Quarantined(t.Context()))+len(l.nodes[1].Quarantined(t.Context())) > 0
		}
		if lost := l.nodes[1].Lost(t.Context()); len(lost) != 1 || lost[0].Name != "h2" || !rests() {
			t.Error("nothing rests", lost)
		}
		l.await("inherited", time.Minute, func() bool { return !rests() })
		for i := range 12 { // all but the one that c2 may come back to
			l.nodes[i%2].do(t, attach(net, fmt.Sprint("x", i)))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := l.nodes[1].Do(ctx, state.Expel{Node: 77}); !errors.Is(err, state.ErrNoNode) {
			t.Error(err)
		}
		l.start(2)
		l.await("back", 30*time.Second, l.converged)
		l.await("c2 back", 10*time.Second, func() bool {
			e, ok := l.nodes[0].View().Endpoint(had.Endpoint)
			return ok && e.Addr == had.Addr && e.Node == gone
		})
		nw, _ := l.nodes[0].View().Network(net)
		shown, _ := nw.At(had.Addr)
		if shown.Node == gone && len(l.nodes[0].View().Conflicts()) != 0 || shown.Node != gone && len(l.nodes[0].View().Conflicts()) != 1 {
			t.Error(l.nodes[0].View().Conflicts())
		}
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, net := three(t, "10.7.0.0/24")
		defer l.end()
		l.nodes[0].do(t, attach(net, "c0"))
		l.nodes[2].do(t, attach(net, "c2"))
		gone := l.nodes[0].Self()
		// The owner of nearly all leaves.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := l.nodes[0].Do(ctx, state.Withdraw{}); err != nil {
			t.Fatal(err)
		}
		l.await("known", 5*time.Second, func() bool {
			v := l.nodes[1].View()
			_, there := v.Node(gone)
			return !there && v.Digest() == l.nodes[2].View().Digest()
		})
		nw, _ := l.nodes[1].View().Network(net)
		for a := netip.MustParseAddr("10.7.0.0"); nw.Def.Subnet.Contains(a); a = a.Next() {
			if id, ok := nw.Owner(a); !ok || id == gone {
				t.Fatalf("%s was not handed on: %v %v", a, id, ok)
			}
		}
		if q := l.nodes[1].Quarantined(t.Context()); len(q) > 0 {
			t.Errorf("left, and rests: %v", q)
		}
		if _, err := l.nodes[0].Do(ctx, attach(net, "c3")); err == nil {
			t.Error("attached while leaving")
		}
		l.stop(0)
		l.start(0)
		l.await("back", 30*time.Second, l.converged)
		if ws := l.nodes[0].Wishes(); len(ws) > 0 {
			t.Errorf("left with its attachments: %v", ws)
		}
		l.nodes[0].do(t, attach(net, "c0"))
	})
}

func TestBornApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.net.Split([]netip.Addr{addr(0)}, []netip.Addr{addr(1)})
		had := map[state.EndpointID]netip.Addr{}
		var net state.NetworkID
		for i := range 3 {
			h := l.start(i)
			<-h.Ready()
			net = h.do(t, state.Create{Name: "tiny", Subnet: netip.MustParsePrefix("10.7.0.0/29")}).Network
			for j := range 3 {
				out := h.do(t, attach(net, fmt.Sprintf("c%d%d", i, j)))
				had[out.Endpoint] = out.Addr
			}
		}
		l.net.Heal()
		l.await("one mesh", 30*time.Second, l.converged)
		time.Sleep(10 * time.Second)
		v := l.nodes[0].View()
		nw, _ := v.Network(net)
		lost := 0
		for id, a := range had {
			e, ok := v.Endpoint(id)
			if !ok || e.Addr != a {
				t.Errorf("renumbered: %v", e)
			}
		}
		for range nw.Unshown() {
			lost++
		}
		if nw.Len()+lost != 9 || lost != len(v.Conflicts()) || lost < 4 {
			t.Errorf("%d shown, %d not, conflicts %v", nw.Len(), lost, v.Conflicts())
		}
		warned := 0
		for _, h := range l.nodes {
			warned += len(h.Warnings())
			// What is in use belongs to who uses it.
			for e := range nw.Endpoints() {
				if e.Node == h.Self() {
					if id, ok := nw.Owner(e.Addr); !ok || id != e.Node {
						t.Errorf("%s of %s belongs to %v", e.Addr, e.Container, id)
					}
				}
			}
		}
		if warned != lost {
			t.Errorf("%d warnings of %d", warned, lost)
		}
	})
}

// A container that nobody reaches by its address gets another when it is attached again, or starts again.
func TestRenumbered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.net.Split([]netip.Addr{addr(0)})
		var net state.NetworkID
		for i := range 2 {
			h := l.start(i)
			<-h.Ready()
			net = h.do(t, state.Create{Name: "blue", Subnet: netip.MustParsePrefix("10.7.0.0/24")}).Network
			for _, c := range []struct{ name, addr string }{{"x", "10.7.0.9"}, {"y", "10.7.0.10"}} {
				w := attach(net, fmt.Sprint(c.name, i))
				w.Addr = netip.MustParseAddr(c.addr)
				h.do(t, w)
			}
		}
		l.net.Heal()
		l.await("one mesh", 30*time.Second, l.converged)
		time.Sleep(10 * time.Second)
		nw, _ := l.nodes[0].View().Network(net)
		lost := 0
		for e := range nw.Unshown() {
			h := l.nodes[0]
			if h.Self() != e.Node {
				h = l.nodes[1]
			}
			lost++
			if e.Addr == netip.MustParseAddr("10.7.0.9") {
				if out := h.do(t, attach(net, e.Container)); out.Addr == e.Addr || out.Endpoint != e.ID {
					t.Errorf("attached again: %v", out)
				}
				continue
			}
			h.do(t, state.Report{ID: e.ID, Down: true})
			if now, _ := h.View().Endpoint(e.ID); now.Addr != e.Addr {
				t.Errorf("renumbered when it stopped: %v", now.Addr)
			}
			h.do(t, state.Report{ID: e.ID})
		}
		if lost != 2 {
			t.Fatalf("%d not reached", lost)
		}
		l.await("nothing left", 20*time.Second, func() bool { return l.converged() && len(l.nodes[0].View().Conflicts()) == 0 })
	})
}
