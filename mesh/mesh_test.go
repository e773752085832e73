package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"meshnet/mesh/meshtest"
	"meshnet/state"
)

// lab is nodes on a network in memory, in a synctest bubble.
type lab struct {
	t     *testing.T
	net   *meshtest.Network
	dir   string
	nodes []*host
	edit  func(i int, c *Config)
}

type host struct {
	*Node
	i      int
	cancel context.CancelFunc
	ended  chan error
}

func newLab(t *testing.T) *lab {
	return &lab{t: t, net: meshtest.New(time.Millisecond, 1), dir: t.TempDir(), edit: func(int, *Config) {}}
}

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}) }

func (l *lab) config(i int) Config {
	dir := filepath.Join(l.dir, fmt.Sprint(i))
	must(l.t, os.MkdirAll(dir, 0o700))
	machine, boot := filepath.Join(dir, "machine-id"), filepath.Join(dir, "boot-id")
	for _, p := range []string{machine, boot} {
		if _, err := os.Stat(p); err != nil {
			must(l.t, os.WriteFile(p, fmt.Appendf(nil, "%s of %d\n", filepath.Base(p), i), 0o600))
		}
	}
	c := Config{
		StateDir: filepath.Join(dir, "state"), Name: fmt.Sprintf("h%d", i), Addr: addr(i), Port: 17946,
		Join: []string{addr(0).String(), addr(1).String()}, Cluster: "test", TunnelPort: 14789, MTU: 1500, Version: "test",
		DefaultSubnet: netip.MustParsePrefix("10.1.0.0/16"), MachineID: machine, BootID: boot,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	l.edit(i, &c)
	return c
}

// start runs host i, in the place of the one before if there was one.
func (l *lab) start(i int) *host {
	l.t.Helper()
	c := l.config(i)
	c.Packets = l.net.Host(netip.AddrPortFrom(c.Addr, c.Port))
	n, err := New(c)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	h := &host{n, i, cancel, make(chan error, 1)}
	go func() { h.ended <- n.Run(ctx) }()
	for len(l.nodes) <= i {
		l.nodes = append(l.nodes, nil)
	}
	l.nodes[i] = h
	return h
}

// stop ends a host and waits for it.
func (l *lab) stop(i int) {
	l.t.Helper()
	h := l.nodes[i]
	h.cancel()
	if err := <-h.ended; err != nil {
		l.t.Errorf("host %d: %v", i, err)
	}
	l.nodes[i] = nil
}

// end stops all and lets memberlist run out.
func (l *lab) end() {
	for i, h := range l.nodes {
		if h != nil {
			l.stop(i)
		}
	}
	time.Sleep(3 * time.Minute)
}

// await polls until ok, at most for d.
func (l *lab) await(what string, d time.Duration, ok func() bool) time.Duration {
	l.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > d {
			for _, h := range l.nodes {
				if h != nil {
					v := h.View()
					l.t.Logf("%s: digest %x, nodes %d, networks %d, alive %d, pending %q", h.c.Name, v.Digest(), len(v.Nodes()),
						len(v.Networks()), len(h.members.alive()), h.Pending())
				}
			}
			l.t.Fatalf("not within %s: %s", d, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

// converged: all running hosts know each other, are alive to each other and have one digest.
func (l *lab) converged() bool {
	n := 0
	for _, h := range l.nodes {
		if h != nil {
			n++
		}
	}
	var digests [][16]byte
	for _, h := range l.nodes {
		if h == nil {
			continue
		}
		if len(h.members.alive()) != n-1 {
			return false
		}
		digests = append(digests, h.View().Digest())
	}
	return len(slices.Compact(digests)) == 1
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// do carries out a wish with some time for it.
func (h *host) do(t *testing.T, w state.Wish) state.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := h.Do(ctx, w)
	if err != nil {
		t.Fatalf("%s: %v", h.c.Name, err)
	}
	if h.View().Version() < out.Version {
		t.Fatalf("%s: view %d after version %d was promised", h.c.Name, h.View().Version(), out.Version)
	}
	return out
}

func attach(network state.NetworkID, container string) state.Attach {
	return state.Attach{Network: network, Container: container, IfName: "eth1",
		Source: state.Source{Kind: state.SourcePath, Path: "/run/netns/" + container, Inode: 4026532000}}
}

// TestHealByState: nodes that nobody named as seeds are found again because the state names them.
func TestHealByState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(i int, c *Config) { c.Join = []string{addr(0).String()} }
		for i := range 4 {
			l.start(i)
		}
		l.await("formed", 10*time.Second, l.converged)
		l.stop(3)
		l.edit = func(i int, c *Config) { c.Join = nil }
		l.start(3)
		l.await("back without seeds", 10*time.Second, l.converged)
		l.net.Split([]netip.Addr{addr(3)})
		time.Sleep(3 * time.Minute)
		l.net.Heal()
		l.await("healed", 30*time.Second, l.converged)
	})
}

// TestDefaultIsOne: ten nodes that start at once make one network default, and without a peer a node
// does not wait for ever.
func TestDefaultIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 10 {
			l.start(i)
		}
		began := time.Now()
		for _, h := range l.nodes {
			<-h.Ready()
		}
		if took := time.Since(began); took > discoveryWindow+time.Second {
			t.Errorf("ready after %s", took)
		}
		l.await("converged", 10*time.Second, l.converged)
		ids := map[state.NetworkID]bool{}
		for _, h := range l.nodes {
			nw, _ := h.View().ByName("default")
			ids[nw.ID] = true
			if len(h.View().Networks()) != 1 {
				t.Errorf("%s has %d networks", h.c.Name, len(h.View().Networks()))
			}
		}
		if len(ids) != 1 {
			t.Errorf("%d ids of default", len(ids))
		}
	})
}

func TestAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(_ int, c *Config) { c.Join = nil }
		h := l.start(0)
		<-h.Ready()
		nw, _ := h.View().ByName("default")
		out := h.do(t, attach(nw.ID, "c1"))
		if !out.Addr.IsValid() || out.Again {
			t.Errorf("%+v", out)
		}
		if late := h.Reached(t.Context(), out.Endpoint); late != nil {
			t.Errorf("waits for %v", late)
		}
		if a := h.Agreeing(t.Context()); a.Alive != 1 || a.Agreeing != 1 || a.Known != 1 {
			t.Errorf("%+v", a)
		}
	})
}

func TestAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 5 {
			l.start(i)
		}
		l.await("formed", 10*time.Second, l.converged)
		web := l.nodes[2].do(t, state.Create{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16")}).Network
		l.await("web known", 2*time.Second, l.converged)
		used := map[netip.Addr]bool{}
		for i, h := range l.nodes {
			for k := range 3 {
				out := h.do(t, attach(web, fmt.Sprintf("c%d-%d", i, k)))
				if used[out.Addr] || !netip.MustParsePrefix("10.2.0.0/16").Contains(out.Addr) {
					t.Errorf("%s got %s", h.c.Name, out.Addr)
				}
				used[out.Addr] = true
			}
		}
		l.await("endpoints known", 2*time.Second, l.converged)
		for _, h := range l.nodes {
			nw, _ := h.View().Network(web)
			if nw.Len() != 15 || len(nw.Members()) != 5 {
				t.Errorf("%s sees %d endpoints of %d nodes", h.c.Name, nw.Len(), len(nw.Members()))
			}
		}
		h := l.nodes[0]
		w := attach(web, "c0-0")
		again := h.do(t, w)
		if !again.Again || len(h.Wishes()) != 3 {
			t.Errorf("attached twice: %+v, %d wishes", again, len(h.Wishes()))
		}
		h.do(t, state.Report{ID: again.Endpoint, Down: true})
		if e, _ := h.View().Endpoint(again.Endpoint); !e.Down {
			t.Error("not down after a report")
		}
		if out := h.do(t, state.Detach{ID: again.Endpoint}); out.Again || len(h.Wishes()) != 2 {
			t.Errorf("detach: %+v, %d wishes", out, len(h.Wishes()))
		}
		if out := h.do(t, state.Detach{ID: again.Endpoint}); !out.Again {
			t.Errorf("detached twice: %+v", out)
		}
		if _, err := h.Do(t.Context(), state.Remove{Network: web}); !errors.Is(err, state.ErrNetworkInUse) {
			t.Errorf("remove of a network in use: %v", err)
		}
		l.nodes[4].do(t, state.Remove{Network: web, Force: true})
		l.await("kill obeyed", 5*time.Second, func() bool {
			for _, h := range l.nodes {
				if len(h.Wishes()) != 0 {
					return false
				}
			}
			return true
		})
		l.await("network gone", 5*time.Second, func() bool {
			for _, h := range l.nodes {
				if _, ok := h.View().ByName("web"); ok {
					return false
				}
			}
			return l.converged()
		})
	})
}

func TestErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(_ int, c *Config) { c.Join = nil }
		h := l.start(0)
		<-h.Ready()
		for _, tt := range []struct {
			wish state.Wish
			want error
			text string
		}{
			{state.Create{Name: strings.Repeat("x", 64)}, state.ErrInvalid, "create network"},
			{state.Create{Name: "a", Subnet: netip.MustParsePrefix("10.1.2.0/24")}, state.ErrOverlap, "create network a: 10.1.2.0/24 overlaps default"},
			{state.Create{Name: "default", Subnet: netip.MustParsePrefix("10.9.0.0/16")}, state.ErrNetworkExists, "create network default"},
			{attach(99, "c1"), state.ErrNoNetwork, "attach c1"},
			{state.Remove{Network: 99}, state.ErrNoNetwork, "remove network"},
			{state.Report{ID: 5}, state.ErrNoEndpoint, "report"},
		} {
			_, err := h.Do(t.Context(), tt.wish)
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.text) || strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("%T: %v", tt.wish, err)
			}
		}
		a := h.do(t, state.Create{Name: "any"})
		b := h.do(t, state.Create{Name: "any"})
		if a.Network != b.Network || a.Again || !b.Again {
			t.Errorf("created twice: %+v, %+v", a, b)
		}
		h.do(t, state.Create{Name: "other"})
		var seen []netip.Prefix
		for _, nw := range h.View().Networks() {
			if slices.ContainsFunc(seen, nw.Def.Subnet.Overlaps) {
				t.Errorf("%s overlaps another", nw.Def.Subnet)
			}
			seen = append(seen, nw.Def.Subnet)
		}
		// A wait for an address ends with its context.
		nw, _ := h.View().ByName("any")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w := attach(nw.ID, "c1")
		w.Addr = netip.MustParseAddr("10.77.0.1")
		if _, err := h.Do(ctx, w); err == nil {
			t.Error("an address outside of the network was given")
		}
	})
}

// TestRestart: what was asked for and what was heard is there after a restart, also after a kill, and
// another start of the kernel begins a new epoch with the same content.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 3 {
			l.start(i)
		}
		l.await("formed", 10*time.Second, l.converged)
		web := l.nodes[0].do(t, state.Create{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16")}).Network
		l.await("web known", 2*time.Second, l.converged)
		var outs []state.Outcome
		for i := range 3 {
			outs = append(outs, l.nodes[i].do(t, attach(web, fmt.Sprint("c", i))))
		}
		l.await("attached", 2*time.Second, l.converged)

		h := l.nodes[1]
		digest := h.View().Digest()
		if out := h.do(t, state.Name{ID: outs[1].Endpoint, Given: "eth2"}); out.Again || h.View().Digest() != digest {
			t.Errorf("the name of an interface is others' business: %+v", out)
		}
		if out := h.do(t, attach(web, "c1")); !out.Again || h.Wishes()[0].Given != "eth2" || h.View().Digest() != digest {
			t.Errorf("attached twice: %+v, %+v, digest %t", out, h.Wishes(), h.View().Digest() == digest)
		}
		before, epoch, wishes := h.View().Digest(), h.store.epoch, h.Wishes()
		l.stop(1)
		// Alone, so that nothing comes from others.
		l.edit = func(i int, c *Config) { c.Join = nil }
		l.net.Split([]netip.Addr{addr(1)})
		h = l.start(1)
		if h.store.epoch != epoch {
			t.Errorf("epoch %d after %d", h.store.epoch, epoch)
		}
		if d := h.View().Digest(); d != before {
			t.Errorf("digest %x after %x", d, before)
		}
		if !slices.EqualFunc(h.Wishes(), wishes, equalWishes) || len(wishes) != 1 {
			t.Errorf("wishes %+v after %+v", h.Wishes(), wishes)
		}
		<-h.Ready()
		time.Sleep(time.Second)
		if e, ok := h.View().Endpoint(outs[1].Endpoint); !ok || e.Addr != outs[1].Addr {
			t.Errorf("endpoint %+v", e)
		}
		if nw, ok := h.View().Network(web); !ok || nw.Len() != 3 {
			t.Error("what was heard is lost")
		}
		if d := h.View().Digest(); d != before {
			t.Errorf("digest %x after %x: a restart changed the state", d, before)
		}
		l.stop(1)

		// Another run of the kernel.
		must(t, os.WriteFile(filepath.Join(l.dir, "1", "boot-id"), []byte("another\n"), 0o600))
		h = l.start(1)
		if h.store.epoch <= epoch {
			t.Errorf("epoch %d after a reboot, was %d", h.store.epoch, epoch)
		}
		if e, ok := h.View().Endpoint(outs[1].Endpoint); !ok || e.Addr != outs[1].Addr {
			t.Errorf("endpoint after reboot %+v", e)
		}
		l.net.Heal()
		l.await("converged after reboot", 40*time.Second, l.converged)
		for _, h := range l.nodes {
			nw, _ := h.View().Network(web)
			if nw.Len() != 3 {
				t.Errorf("%s sees %d endpoints", h.c.Name, nw.Len())
			}
		}
		// And once more, from the log that the new epoch wrote.
		digest = l.nodes[1].View().Digest()
		epoch = h.store.epoch
		l.stop(1)
		h = l.start(1)
		if h.store.epoch != epoch || h.View().Digest() != digest {
			t.Errorf("epoch %d, digest %x; want %d, %x", h.store.epoch, h.View().Digest(), epoch, digest)
		}
		l.await("converged again", 40*time.Second, l.converged)
		more := h.do(t, attach(web, "c9"))
		if more.Addr == outs[1].Addr {
			t.Error("an address was given twice")
		}
		h.do(t, state.Detach{ID: more.Endpoint})
		l.stop(1)
		h = l.start(1)
		time.Sleep(5 * time.Second)
		if _, ok := h.View().Endpoint(more.Endpoint); ok || len(h.Wishes()) != 1 {
			t.Error("what was detached is back")
		}
		time.Sleep(time.Minute) // the address rests
		w := attach(web, "c10")
		w.Addr = more.Addr
		h.do(t, w)
	})
}

// TestTornTail: a log cut anywhere is read up to there, and the node writes in a new epoch.
func TestTornTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(_ int, c *Config) { c.Join = nil }
		h := l.start(0)
		<-h.Ready()
		for k := range 5 {
			h.do(t, state.Create{Name: fmt.Sprint("n", k)})
		}
		l.stop(0)
		path := filepath.Join(l.dir, "0", "state", "log")
		whole, err := os.ReadFile(path)
		must(t, err)
		id := h.Self()
		for _, cut := range []int{1, 7, len(whole) / 3, len(whole) / 2, len(whole)} {
			must(t, os.WriteFile(path, whole[:len(whole)-cut], 0o600))
			h = l.start(0)
			if h.Self() != id || h.store.epoch < 2 {
				t.Errorf("cut by %d: id %s, epoch %d", cut, h.Self(), h.store.epoch)
			}
			<-h.Ready()
			h.do(t, state.Create{Name: "after"})
			l.stop(0)
		}
	})
}

// TestLostLog: others know more of the node than its disk does; it writes anew in a later epoch.
func TestLostLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 3 {
			l.start(i)
		}
		l.await("formed", 10*time.Second, l.converged)
		path := filepath.Join(l.dir, "1", "state", "log")
		l.stop(1)
		old, err := os.ReadFile(path)
		must(t, err)
		l.start(1)
		l.await("formed", 40*time.Second, l.converged)
		nw, _ := l.nodes[1].View().ByName("default")
		for k := range 10 { // more than the node writes by itself before it meets anybody
			l.nodes[1].do(t, attach(nw.ID, fmt.Sprint("c", k)))
		}
		l.await("attached", 5*time.Second, l.converged)
		l.stop(1)
		must(t, os.WriteFile(path, old, 0o600)) // rolled back, and it verifies
		h := l.start(1)
		l.await("converged", 40*time.Second, l.converged)
		l.await("new epoch", 5*time.Second, func() bool { n, ok := l.nodes[0].View().Node(h.Self()); return ok && n.Epoch > 1 })
		h.do(t, state.Create{Name: "works"})
		l.await("converged", 5*time.Second, l.converged)
	})
}

// TestRolledBack: a disk put back to before a reboot does not write a second time in the epoch that
// began then, which others would take for what they have.
func TestRolledBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 2 {
			l.start(i)
		}
		l.await("formed", 10*time.Second, l.converged)
		time.Sleep(5 * time.Second) // each has a block
		nw, _ := l.nodes[1].View().ByName("default")
		dir := filepath.Join(l.dir, "1", "state")
		l.stop(1)
		image := map[string][]byte{}
		for _, name := range []string{"log", "identity"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			must(t, err)
			image[name] = b
		}
		reboot := func(id string) *host {
			must(t, os.WriteFile(filepath.Join(l.dir, "1", "boot-id"), []byte(id), 0o600))
			return l.start(1)
		}
		reboot("second\n").do(t, attach(nw.ID, "lost"))
		l.await("attached", 40*time.Second, l.converged)
		l.stop(1)
		for name, b := range image {
			must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		}
		l.net.Split([]netip.Addr{addr(1)})
		h := reboot("third\n")
		<-h.Ready()
		h.do(t, attach(nw.ID, "kept"))
		l.net.Heal()
		l.await("converged", time.Minute, l.converged)
		time.Sleep(2 * time.Second)
		for _, h := range l.nodes {
			nw, _ := h.View().Network(nw.ID)
			var names []string
			for e := range nw.Claims() {
				names = append(names, e.Container)
			}
			if !slices.Equal(names, []string{"kept"}) {
				t.Errorf("%s shows %v", h.c.Name, names)
			}
		}
	})
}

func TestWrongKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(i int, c *Config) {
			c.Key = bytes.Repeat([]byte{byte(min(i, 2))}, 32)
			if i < 2 {
				c.Key = bytes.Repeat([]byte{7}, 32)
			}
			if i == 3 {
				c.Key, c.Cluster = bytes.Repeat([]byte{7}, 32), "other"
			}
		}
		for i := range 4 {
			l.start(i)
		}
		time.Sleep(20 * time.Second)
		for i, want := range []int{1, 1, 0, 0} {
			if got := len(l.nodes[i].members.alive()); got != want {
				t.Errorf("host %d sees %d members, want %d", i, got, want)
			}
		}
	})
}

func TestReachedAndAgreeing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 4 {
			l.start(i)
		}
		l.await("formed", 10*time.Second, l.converged)
		web := l.nodes[0].do(t, state.Create{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16")}).Network
		l.await("web known", 2*time.Second, l.converged)
		for i := range 3 {
			l.nodes[i].do(t, attach(web, fmt.Sprint("c", i)))
		}
		l.await("attached", 2*time.Second, l.converged)
		out := l.nodes[0].do(t, attach(web, "c9"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		late := l.nodes[0].Reached(ctx, out.Endpoint)
		cancel()
		if len(late) != 2 {
			t.Fatalf("%d laggards, want the 2 that have a member and applied nothing", len(late))
		}
		// Hosts that apply what they see.
		var wg sync.WaitGroup
		watching, stop := context.WithCancel(t.Context())
		for _, h := range l.nodes {
			wg.Go(func() {
				for v := range h.Watch(watching) {
					h.Applied(v.Version())
				}
			})
		}
		time.Sleep(time.Second)
		out = l.nodes[0].do(t, attach(web, "c10"))
		began := time.Now()
		if late := l.nodes[0].Reached(t.Context(), out.Endpoint); late != nil {
			t.Errorf("laggards %v", late)
		}
		if took := time.Since(began); took > 20*time.Millisecond {
			t.Errorf("reached after %s", took)
		}
		l.net.Lose(0.3)
		for k := range 5 {
			out := l.nodes[0].do(t, attach(web, fmt.Sprint("lossy", k)))
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if late := l.nodes[0].Reached(ctx, out.Endpoint); late != nil {
				t.Errorf("with loss: laggards %v", late)
			}
			cancel()
		}
		l.net.Lose(0)
		l.await("converged", 5*time.Second, l.converged)
		a := l.nodes[3].Agreeing(t.Context())
		if a.Alive != 4 || a.Agreeing != 4 || a.Known != 4 || a.Digest != l.nodes[0].View().Digest() {
			t.Errorf("%+v", a)
		}
		l.net.Split([]netip.Addr{addr(3)})
		a = l.nodes[3].Agreeing(t.Context())
		if a.Agreeing != 1 || len(a.Silent) != 3 {
			t.Errorf("cut off: %+v", a)
		}
		l.await("death noticed", time.Minute, func() bool { return len(l.nodes[3].members.alive()) == 0 })
		peers := l.nodes[3].Peers()
		if len(peers) != 4 {
			t.Errorf("%d peers", len(peers))
		}
		for _, p := range peers {
			if p.Self != (p.State == state.Alive) || p.Name == "" || p.Version != "test" {
				t.Errorf("%+v", p)
			}
		}
		stop()
		wg.Wait()
	})
}

// TestOneDaemonPerDirectory and what else New refuses.
func TestNewRefuses(t *testing.T) {
	l := newLab(t)
	c := l.config(0)
	n, err := New(c)
	must(t, err)
	if _, err := New(c); !errors.Is(err, errInUse) || strings.Contains(err.Error(), "\n") {
		t.Errorf("second daemon: %v", err)
	}
	must(t, errors.Join(n.store.log.close(), n.lock.Close()))
	for _, edit := range []func(*Config){
		func(c *Config) { c.StateDir = "" },
		func(c *Config) { c.Addr = netip.Addr{} },
		func(c *Config) { c.Key = []byte("short") },
		func(c *Config) { c.MDNS = true },
		func(c *Config) { c.Join = []string{"a b"} },
		func(c *Config) { c.Log = nil },
	} {
		c := l.config(1)
		edit(&c)
		if _, err := New(c); err == nil {
			t.Errorf("accepted %+v", c)
		}
	}
}

// TestCopiedDisk: on another machine the directory makes a new node without the old one's wishes.
func TestCopiedDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(_ int, c *Config) { c.Join = nil }
		h := l.start(0)
		<-h.Ready()
		nw, _ := h.View().ByName("default")
		h.do(t, attach(nw.ID, "c1"))
		id := h.Self()
		l.stop(0)
		must(t, os.WriteFile(filepath.Join(l.dir, "0", "machine-id"), []byte("another\n"), 0o600))
		h = l.start(0)
		if h.Self() == id || len(h.Wishes()) != 0 {
			t.Errorf("id %s, %d wishes", h.Self(), len(h.Wishes()))
		}
	})
}
