package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"meshnet/state"
)

// formed starts n hosts with a network web and a container on each, and returns the network.
func (l *lab) formed(n int) state.NetworkID {
	l.t.Helper()
	for i := range n {
		l.start(i)
	}
	l.await("formed", 10*time.Second, l.converged)
	web := l.nodes[0].do(l.t, state.Create{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16")}).Network
	l.await("web known", 2*time.Second, l.converged)
	for i := range n {
		l.nodes[i].do(l.t, attach(web, fmt.Sprint("c", i)))
	}
	l.await("attached", 2*time.Second, l.converged)
	return web
}

// crash takes a host off the network at once: nobody hears that it goes.
func (l *lab) crash(i int) {
	l.t.Helper()
	l.net.Split([]netip.Addr{l.nodes[i].c.Addr})
	l.stop(i)
	l.net.Heal()
}

func (l *lab) stateDir(i int) string { return filepath.Join(l.dir, fmt.Sprint(i), "state") }

// copyState makes host i's state directory one of host from, as it is now.
func (l *lab) copyState(from, i int) {
	l.t.Helper()
	must(l.t, os.RemoveAll(l.stateDir(i)))
	must(l.t, os.MkdirAll(filepath.Dir(l.stateDir(i)), 0o700))
	must(l.t, os.CopyFS(l.stateDir(i), os.DirFS(l.stateDir(from))))
}

func warned(h *host, words ...string) bool {
	return slices.ContainsFunc(h.Warnings(), func(w string) bool {
		return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(w, word) })
	})
}

// unique fails where two endpoints of a network have one address, as any node sees it.
func (l *lab) unique(web state.NetworkID) {
	l.t.Helper()
	for _, h := range l.nodes {
		if h == nil {
			continue
		}
		nw, ok := h.View().Network(web)
		if !ok {
			continue
		}
		seen := map[netip.Addr]state.EndpointID{}
		for e := range nw.Claims() {
			if other, twice := seen[e.Addr]; twice && other != e.ID {
				l.t.Errorf("%s sees %s twice", h.c.Name, e.Addr)
			}
			seen[e.Addr] = e.ID
		}
	}
}

// TestCopiedState: a state directory that was made on another machine is another node's, and the new
// one says so; the first goes on undisturbed.
func TestCopiedState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		web := l.formed(3)
		l.copyState(1, 3)
		h := l.start(3)
		if h.Self() == l.nodes[1].Self() || len(h.Wishes()) != 0 {
			t.Errorf("id %s, %d wishes", h.Self(), len(h.Wishes()))
		}
		l.await("four nodes", 20*time.Second, l.converged)
		if !warned(h, "made on another machine", l.nodes[1].Self().String(), h.Self().String()) {
			t.Errorf("warnings %q", h.Warnings())
		}
		if w := l.nodes[1].Warnings(); len(w) != 0 || l.nodes[1].doc.Epoch() != 1 {
			t.Errorf("the first: epoch %d, %q", l.nodes[1].doc.Epoch(), w)
		}
		h.do(t, attach(web, "c3"))
		l.await("attached", 2*time.Second, l.converged)
		l.unique(web)
	})
}

// TestClonedMachine: two hosts with one identity and one machine id. Within seconds both know, and name
// each other; the one with the larger address changes nothing, whichever was there first; the other
// goes on. When the copy is stopped all is as before.
func TestClonedMachine(t *testing.T) {
	for _, tt := range []struct {
		name        string
		first, copy int // host 1's place or a larger or smaller address
	}{{"copy has the larger address", 1, 5}, {"copy has the smaller address", 5, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.end()
				l.edit = func(i int, c *Config) {
					c.Join = []string{addr(0).String(), addr(2).String()}
					if i == tt.copy { // a clone has all of the machine
						c.MachineID = filepath.Join(l.dir, fmt.Sprint(tt.first), "machine-id")
						c.Name = fmt.Sprint("h", tt.first)
					}
				}
				for _, i := range []int{0, 2, tt.first} {
					l.start(i)
				}
				l.await("formed", 10*time.Second, l.converged)
				web := l.nodes[0].do(t, state.Create{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16")}).Network
				l.await("web known", 2*time.Second, l.converged)
				l.nodes[tt.first].do(t, attach(web, "c1"))
				l.nodes[0].do(t, attach(web, "c0"))
				l.await("attached", 2*time.Second, l.converged)

				l.copyState(tt.first, tt.copy)
				l.start(tt.copy)
				one, two := l.nodes[1], l.nodes[5]
				if one.Self() != two.Self() {
					t.Fatal("not a clone")
				}
				took := l.await("both know", 10*time.Second, func() bool {
					return warned(one, one.Self().String(), addr(5).String(), addr(1).String()) && warned(two, one.Self().String(), addr(5).String(), addr(1).String())
				})
				t.Logf("both know after %s: %q", took, two.Warnings()[0])
				for _, w := range []state.Wish{state.Create{Name: "no"}, attach(web, "no")} {
					if _, err := two.Do(t.Context(), w); err == nil || !strings.Contains(err.Error(), addr(1).String()) || strings.Contains(err.Error(), "\n") {
						t.Errorf("the one with the larger address: %T: %v", w, err)
					}
				}
				l.await("the other may write", 20*time.Second, func() bool {
					_, err := one.Do(t.Context(), state.Create{Name: "yes"})
					return err == nil
				})
				time.Sleep(2 * time.Minute)
				if e, m := one.doc.Epoch(), two.doc.Epoch(); max(e, m)>>16 > 6 {
					t.Errorf("epochs %d and %d: they go on fighting", e, m)
				}
				if !warned(one, addr(5).String()) || !warned(two, addr(1).String()) {
					t.Error("they do not know of each other any more")
				}
				l.unique(web)
				l.stop(tt.copy)
				for range 100 { // it says that it stops, which the other does not
					time.Sleep(10 * time.Millisecond)
					if !slices.Contains(l.nodes[0].members.alive(), one.Self()) {
						t.Fatal("the copy that stopped took the other with it")
					}
				}
				l.await("undisturbed", 40*time.Second, func() bool {
					h := l.nodes[tt.first]
					_, err := h.Do(t.Context(), state.Create{Name: "again"})
					return err == nil && len(l.nodes[0].View().Nodes()) == 3 && l.nodes[0].View().Digest() == h.View().Digest()
				})
				if nw, _ := l.nodes[0].View().Network(web); nw.Len() != 2 {
					t.Errorf("%d endpoints, want 2", nw.Len())
				}
			})
		})
	}
}

// TestSameHostname: hosts of one name are two nodes, and say that they are called alike.
func TestSameHostname(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(_ int, c *Config) { c.Name = "debian" }
		web := l.formed(3)
		for i, h := range l.nodes {
			if nw, _ := h.View().Network(web); nw.Len() != 3 {
				t.Errorf("host %d sees %d endpoints", i, nw.Len())
			}
			if !warned(h, "is called debian too", "--name") {
				t.Errorf("host %d: warnings %q", i, h.Warnings())
			}
		}
		l.unique(web)
	})
}

// TestChangedAddress: a node that starts at another address, after a crash or not, is the same node;
// others see the new address at once, long before the old one is known to be dead.
func TestChangedAddress(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash=%t", crash), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.end()
				web := l.formed(3)
				id, epoch := l.nodes[2].Self(), l.nodes[2].doc.Epoch()
				if crash {
					l.crash(2)
				} else {
					l.stop(2)
				}
				l.edit = func(i int, c *Config) { c.Addr = addr(9) }
				h := l.start(2)
				took := l.await("address known", 3*time.Second, func() bool {
					return !slices.ContainsFunc(l.nodes[:2], func(p *host) bool { n, ok := p.View().Node(id); return !ok || n.Addr != addr(9) })
				})
				if h.Self() != id || h.doc.Epoch() != epoch {
					t.Errorf("id %s, epoch %d", h.Self(), h.doc.Epoch())
				}
				whole := l.await("one mesh", 10*time.Second, l.converged)
				out := h.do(t, attach(web, "more"))
				l.await("others see what it does", 2*time.Second, func() bool { _, ok := l.nodes[0].View().Endpoint(out.Endpoint); return ok })
				time.Sleep(time.Minute)
				for i, p := range l.nodes {
					if !l.converged() || len(p.Warnings()) != 0 {
						t.Errorf("host %d: converged %t, warnings %q", i, l.converged(), p.Warnings())
					}
				}
				t.Logf("address known after %s, one mesh after %s", took, whole)
			})
		})
	}
}

// TestDiskGone: a host that lost its disk is a new node; the old one stays, dead, until a person says
// that it will not come back, or takes its id up again.
func TestDiskGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		web := l.formed(3)
		id := l.nodes[2].Self()
		l.crash(2)
		must(t, os.RemoveAll(l.stateDir(2)))
		h := l.start(2)
		l.await("one mesh", 30*time.Second, l.converged)
		if h.Self() == id || len(h.Wishes()) != 0 {
			t.Errorf("id %s, %d wishes", h.Self(), len(h.Wishes()))
		}
		l.await("the old one is missed", 20*time.Second, func() bool { return warned(h, id.String(), "lost its disk", "rmpeer") })
		old := slices.IndexFunc(l.nodes[0].Peers(), func(p state.Peer) bool { return p.ID == id })
		if old < 0 || l.nodes[0].Peers()[old].State != state.Dead {
			t.Errorf("the old one is not shown as dead: %+v", l.nodes[0].Peers())
		}
		h.do(t, attach(web, "new"))
		l.await("attached", 5*time.Second, l.converged)
		l.unique(web)

		// With --id it takes up the old one again.
		l.crash(2)
		must(t, os.RemoveAll(l.stateDir(2)))
		l.edit = func(i int, c *Config) { c.ID = id }
		h = l.start(2)
		l.await("back as it was", 30*time.Second, func() bool { n, ok := l.nodes[0].View().Node(id); return ok && n.Epoch > 1 && l.converged() })
		out := h.do(t, attach(web, "again"))
		l.await("attached", 5*time.Second, func() bool { _, ok := l.nodes[0].View().Endpoint(out.Endpoint); return ok })
		l.unique(web)
	})
}

// TestRolledBackSnapshot: a machine set back to a snapshot, identity and all, notices from others and
// says so; it gives no address of before twice.
func TestRolledBackSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		web := l.formed(3)
		l.stop(1)
		snapshot := filepath.Join(l.dir, "snapshot")
		must(t, os.CopyFS(snapshot, os.DirFS(l.stateDir(1))))
		l.start(1)
		l.await("back", 30*time.Second, l.converged)
		for k := range 5 {
			l.nodes[1].do(t, attach(web, fmt.Sprint("later", k)))
		}
		l.await("attached", 5*time.Second, l.converged)
		l.crash(1)
		must(t, os.RemoveAll(l.stateDir(1)))
		must(t, os.CopyFS(l.stateDir(1), os.DirFS(snapshot)))
		h := l.start(1)
		l.await("noticed", 10*time.Second, func() bool { return warned(h, "set back to an older copy") })
		l.await("one mesh", 30*time.Second, l.converged)
		if h.doc.Epoch() < 2 || len(h.Wishes()) != 1 {
			t.Errorf("epoch %d, %d wishes", h.doc.Epoch(), len(h.Wishes()))
		}
		h.do(t, attach(web, "after"))
		l.await("attached", 5*time.Second, l.converged)
		l.unique(web)
	})
}

// TestTwoDaemonsOneDirectory: the second is refused in one line.
func TestTwoDaemonsOneDirectory(t *testing.T) {
	l := newLab(t)
	c := l.config(0)
	n, err := New(c)
	must(t, err)
	c.Addr = addr(5)
	if _, err := New(c); !errors.Is(err, errInUse) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), c.StateDir) {
		t.Errorf("second daemon: %v", err)
	}
	must(t, errors.Join(n.store.log.close(), n.lock.Close()))
	n, err = New(c)
	must(t, err)
	must(t, errors.Join(n.store.log.close(), n.lock.Close()))
}

// TestTwoClustersOneLAN: clusters of other names, all of whose nodes know of all others' addresses, stay
// apart, also by what mDNS shows of them.
func TestTwoClustersOneLAN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(i int, c *Config) {
			c.Cluster = []string{"red", "blue"}[i%2]
			c.Join = nil
			for k := range 6 {
				c.Join = append(c.Join, addr(k).String())
			}
		}
		for i := range 6 {
			l.start(i)
		}
		time.Sleep(30 * time.Second)
		l.nodes[0].do(t, state.Create{Name: "ofred"})
		l.nodes[1].do(t, state.Create{Name: "ofblue"})
		time.Sleep(5 * time.Second)
		for i, h := range l.nodes {
			_, red := h.View().ByName("ofred")
			_, blue := h.View().ByName("ofblue")
			if len(h.members.alive()) != 2 || len(h.View().Nodes()) != 3 || red != (i%2 == 0) || blue != (i%2 == 1) {
				t.Errorf("host %d: %d alive, %d nodes, red %t, blue %t", i, len(h.members.alive()), len(h.View().Nodes()), red, blue)
			}
		}
		d := discovery{self: candidate{l.nodes[0].Self(), netip.AddrPortFrom(addr(0), 17946)}, cluster: clusterHash("red")}
		if _, err := parseText(d.instance(), d.text(), clusterHash("blue")); err == nil {
			t.Error("what mDNS shows of one cluster is taken by another")
		}
		if c, err := parseText(d.instance(), d.text(), clusterHash("red")); err != nil || c != d.self {
			t.Errorf("%+v, %v", c, err)
		}
	})
}
