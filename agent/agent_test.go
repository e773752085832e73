package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

// node is one host: an agent over models.
type node struct {
	*Agent
	mesh   *mesh
	links  *applier
	bridge *applier
	fast   *applier
	choice plan.Choice
	boxes  *sandboxes
}

// begin starts an agent, which ends with ctx.
func (n *node) begin(t *testing.T, ctx context.Context, wg *sync.WaitGroup) {
	t.Helper()
	a, err := New(Config{
		Mesh: n.mesh, Links: n.links, Switch: n.bridge, Fast: n.fast, Sandboxes: n.boxes,
		Choice: n.choice,
		Underlay: plan.Underlay{
			Device: "eth0", Index: 2, Addr: underlay(n.mesh.self), Prefix: netip.PrefixFrom(underlay(n.mesh.self), 24), MTU: 1500,
		},
		Version: "0.1.0", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Agent = a
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
}

// bubble runs a test with n hosts in virtual time.
func bubble(t *testing.T, n int, f func(ctx context.Context, hosts []*node)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		s := &segment{delay: time.Millisecond}
		var hosts []*node
		for i := range n {
			hosts = append(hosts, &node{
				mesh: s.join(state.NodeID(i + 1)), links: newApplier(), bridge: newApplier(), fast: newApplier(), boxes: newSandboxes(),
				choice: plan.Choice{Datapath: "netdev", Transport: state.KernelVXLAN, TSO: true, FastPath: true},
			})
		}
		for _, h := range hosts {
			wg.Go(func() { h.mesh.run(ctx) })
			h.mesh.announce(t)
			h.begin(t, ctx, &wg)
		}
		time.Sleep(time.Second)
		f(ctx, hosts)
	})
}

func (n *node) create(t *testing.T, ctx context.Context, name, subnet string) Network {
	t.Helper()
	net, err := n.Create(ctx, state.Create{Name: name, Subnet: netip.MustParsePrefix(subnet)})
	if err != nil {
		t.Fatal(err)
	}
	return net
}

func (n *node) put(t *testing.T, ctx context.Context, container, network string) Attachment {
	t.Helper()
	n.boxes.start(container)
	at, waiting, err := n.Attach(ctx, AttachRequest{Container: Ref{Name: container}, Network: network, Wait: 2 * time.Second})
	if err != nil || len(waiting) > 0 {
		t.Fatalf("attach %s: %v, waiting for %v", container, err, waiting)
	}
	return at
}

// TestProbedNodes: what probes say of a tunnel is shown instead of what gossip says, and only where
// something was probed.
func TestProbedNodes(t *testing.T) {
	bubble(t, 3, func(_ context.Context, hosts []*node) {
		a := hosts[0]
		a.c.Paths = func() map[state.NodeID]state.Path {
			return map[state.NodeID]state.Path{
				2: {Up: true, RTT: time.Millisecond, Loss: 0.25}, 7: {Up: true}, // 7 is no node of the mesh
			}
		}
		nodes := a.Nodes()
		if len(nodes) != 3 {
			t.Fatalf("%+v", nodes)
		}
		if n := nodes[1]; !n.Tunnel || !n.Probed || n.RTT != time.Millisecond || n.Loss != 0.25 {
			t.Errorf("%+v", n)
		}
		if n := nodes[2]; !n.Tunnel || n.Probed {
			t.Errorf("%+v", n)
		}
		a.c.Paths = func() map[state.NodeID]state.Path { return map[state.NodeID]state.Path{3: {Loss: 1}} }
		if n := a.Nodes()[2]; n.Tunnel || !n.Probed || n.Loss != 1 {
			t.Errorf("%+v", n)
		}
	})
}

// TestConverge: a hundred agents, a container on each; every host comes to know all others.
func TestConverge(t *testing.T) {
	const n = 100
	bubble(t, n, func(ctx context.Context, hosts []*node) {
		hosts[0].create(t, ctx, "web", "10.2.0.0/16")
		time.Sleep(time.Second)
		for i, h := range hosts {
			h.put(t, ctx, fmt.Sprintf("c%d", i), "web")
		}
		time.Sleep(time.Second)
		for _, h := range hosts {
			var remotes int
			for _, n := range h.bridge.plan().Networks {
				remotes += len(n.Remotes)
			}
			if remotes != n-1 || len(h.links.links()) != 1 {
				t.Fatalf("%s has %d remotes and %d links", name(h.mesh.self), remotes, len(h.links.links()))
			}
			if got := h.mesh.equal(); got != h.mesh.View().Version() {
				t.Errorf("%s applied version %d of %d", name(h.mesh.self), got, h.mesh.View().Version())
			}
		}
		s := hosts[7].Status(ctx)
		if !s.Converged || s.Agreement.Agreeing != n || len(s.Peers) != n-1 || s.Attached != 1 || s.Networks != 1 {
			t.Errorf("status %+v", s)
		}
		if all := hosts[3].PS(true); len(all) != n {
			t.Errorf("%d attachments, want %d", len(all), n)
		}
	})
}

// TestAttach: the answer, its second time, and what others see.
func TestAttach(t *testing.T) {
	bubble(t, 2, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		at := h.put(t, ctx, "c1", "web")
		if at.Addr.String() != "10.2.1.1/16" || at.IfName != "eth1" || at.State != Ready || at.Gateway.String() != "10.2.0.1" ||
			at.NodeName != "h1" || at.MAC.String() != "02:42:0a:02:01:01" || at.Shown != "web" {
			t.Errorf("attached %+v", at)
		}
		again, _, err := h.Attach(ctx, AttachRequest{Container: Ref{Name: "c1"}, Network: "web", Names: []string{"www"}})
		if err != nil || again.Endpoint != at.Endpoint || len(h.PS(false)) != 1 {
			t.Errorf("attached again: %+v %v", again, err)
		}
		if w := h.mesh.Wishes(); !slices.Equal(w[0].Names, []string{"www"}) {
			t.Errorf("names %v", w[0].Names)
		}
		_, _, err = h.Attach(ctx, AttachRequest{Container: Ref{Name: "c1"}, Network: "web", MAC: state.MAC{2, 1}})
		if !errors.Is(err, ErrRefused) {
			t.Errorf("attach with another MAC: %v", err)
		}
		time.Sleep(time.Second)
		if all := hosts[1].PS(true); len(all) != 1 || all[0].Node != 1 || all[0].State != Ready {
			t.Errorf("the other host sees %+v", all)
		}
		if n, err := hosts[1].Inspect("web"); err != nil || n.Containers != 1 || !slices.Equal(n.Members, []string{"h1"}) || n.MTU != 1450 {
			t.Errorf("the other host sees network %+v %v", n, err)
		}
	})
}

// TestAttachMany: twenty at once are twenty addresses and few applies; ten of one container are one.
func TestAttachMany(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		time.Sleep(time.Second)
		before := h.links.count()
		var wg sync.WaitGroup
		for i := range 30 {
			container := fmt.Sprintf("c%d", min(i, 20))
			h.boxes.start(container)
			wg.Go(func() {
				if _, _, err := h.Attach(ctx, AttachRequest{Container: Ref{Name: container}, Network: "web"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		seen := map[netip.Prefix]bool{}
		for _, at := range h.PS(false) {
			seen[at.Addr] = true
		}
		if len(seen) != 21 || len(h.links.links()) != 21 {
			t.Errorf("%d addresses and %d links, want 21", len(seen), len(h.links.links()))
		}
		if n := h.links.count() - before; n > 5 {
			t.Errorf("%d applies for 30 attachments at once", n)
		}
	})
}

// TestAttachRefused: a failed attach leaves nothing.
func TestAttachRefused(t *testing.T) {
	bubble(t, 2, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.boxes.start("c1")
		attach := func(container, network string) error {
			_, _, err := h.Attach(ctx, AttachRequest{Container: Ref{Name: container}, Network: network})
			return err
		}
		empty := func(why string) {
			t.Helper()
			time.Sleep(time.Minute)
			if w, ps := h.mesh.Wishes(), h.PS(true); len(w) > 0 || len(ps) > 0 || len(h.links.links()) > 0 {
				t.Errorf("%s left %v, %v", why, w, ps)
			}
		}
		for _, test := range []struct {
			container, network string
			is                 error
		}{
			{"c1", "nosuch", state.ErrNoNetwork}, {"xyz", "web", state.ErrNoContainer}, {"c2", "web", ErrGone}, {"host", "web", ErrRefused},
		} {
			if err := attach(test.container, test.network); !errors.Is(err, test.is) || strings.Contains(err.Error(), "\n") {
				t.Errorf("attach %s to %s: %v", test.container, test.network, err)
			}
			empty(test.container)
		}
		h.mesh.fail = func(w state.Wish) error {
			if _, ok := w.(state.Attach); ok {
				h.mesh.attach(w.(state.Attach)) // half-way: it is there, and yet an error
				return state.Refuse(state.ErrNoAddress, "no free address in 10.2.0.0/16; remove containers")
			}
			return nil
		}
		if err := attach("c1", "web"); !errors.Is(err, state.ErrNoAddress) {
			t.Errorf("attach without an address: %v", err)
		}
		h.mesh.fail = nil
		empty("no address")

		h.bridge.setFail(errors.New("no connection"))
		if err := attach("c1", "web"); !errors.Is(err, ErrLate) || !strings.Contains(err.Error(), "no connection") {
			t.Errorf("attach without a switch: %v", err)
		}
		h.bridge.setFail(nil)
		empty("no switch")

		late, cancel := context.WithTimeout(ctx, gather/2)
		defer cancel()
		if _, _, err := h.Attach(late, AttachRequest{Container: Ref{Name: "c1"}, Network: "web"}); err == nil {
			t.Error("attach whose caller went away succeeded")
		}
		empty("caller gone")
		h.put(t, ctx, "c1", "web")
	})
}

// TestReached: who does not say that it has the container is named, and the attachment stays.
func TestReached(t *testing.T) {
	bubble(t, 3, func(ctx context.Context, hosts []*node) {
		hosts[0].create(t, ctx, "web", "10.2.0.0/16")
		time.Sleep(time.Second)
		hosts[1].put(t, ctx, "c1", "web")
		time.Sleep(time.Second) // the others know
		hosts[1].mesh.deaf = true
		hosts[0].boxes.start("c2")
		began := time.Now()
		at, waiting, err := hosts[0].Attach(ctx, AttachRequest{Container: Ref{Name: "c2"}, Network: "web", Wait: 2 * time.Second})
		if took := time.Since(began); err != nil || !slices.Equal(waiting, []string{"h2"}) || took < 2*time.Second || took > 3*time.Second {
			t.Errorf("waited %v for %v: %v", took, waiting, err)
		}
		if ps := hosts[0].PS(false); len(ps) != 1 || ps[0].Endpoint != at.Endpoint {
			t.Errorf("attachments %+v", ps)
		}
	})
}

// TestBackOff: an apply that fails is tried again, ever more slowly, and nothing is said to be
// applied until it was.
func TestBackOff(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		time.Sleep(time.Second)
		before := h.mesh.equal()
		h.links.setFail(errors.New("no permission"))
		h.create(t, ctx, "db", "10.3.0.0/16")
		first, other := h.links.count(), h.bridge.count()
		time.Sleep(30 * time.Second)
		if n := h.links.count() - first; n < 8 || n > 13 {
			t.Errorf("%d tries in 30 s", n)
		}
		if h.bridge.count() == other {
			t.Error("the failure of the links stopped the switch")
		}
		tries := h.links.began[len(h.links.began)-2:]
		if gap := tries[1].Sub(tries[0]); gap < 4*time.Second || gap > 6*time.Second {
			t.Errorf("tries %v apart at the end", gap)
		}
		if h.mesh.equal() != before {
			t.Errorf("said that version %d is applied", h.mesh.equal())
		}
		if s := h.Status(ctx); s.Converged || !slices.ContainsFunc(s.Pending, func(p string) bool { return strings.Contains(p, "no permission") }) {
			t.Errorf("status %+v", s)
		}
		h.links.setFail(nil)
		time.Sleep(6 * time.Second)
		if v := h.mesh.View().Version(); h.mesh.equal() != v || !h.Status(ctx).Converged {
			t.Errorf("applied %d of %d: %+v", h.mesh.equal(), v, h.Status(ctx))
		}
		n := h.links.count()
		time.Sleep(time.Minute)
		if h.links.count() != n {
			t.Error("applied without a reason")
		}
	})
}

// TestDrift: what changes behind our back is put right.
func TestDrift(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		for _, a := range []*applier{hosts[0].links, hosts[0].bridge} {
			before := a.count()
			a.drift <- struct{}{}
			time.Sleep(100 * time.Millisecond)
			if a.count() != before+1 {
				t.Errorf("%d applies after a drift", a.count()-before)
			}
		}
	})
}

// TestContainer stops and starts a container under an attachment.
func TestContainer(t *testing.T) {
	bubble(t, 2, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		at := h.put(t, ctx, "c1", "web")
		h.boxes.stop("c1")
		h.links.drift <- struct{}{}
		time.Sleep(time.Second)
		if ps := hosts[1].PS(true); len(ps) != 1 || ps[0].State != Down || len(h.links.links()) != 0 {
			t.Errorf("after the stop: %+v", ps)
		}
		h.boxes.start("c1")
		time.Sleep(11 * time.Second)
		ps := hosts[1].PS(true)
		if len(ps) != 1 || ps[0].State != Ready || ps[0].Addr != at.Addr || len(h.links.links()) != 1 {
			t.Errorf("after the start: %+v", ps)
		}
		// Gone between the look and the link: known from Apply.
		h.links.mu.Lock()
		h.links.gone[at.Endpoint] = true
		h.links.mu.Unlock()
		h.boxes.stop("c1")
		h.bridge.drift <- struct{}{}
		time.Sleep(time.Second)
		if ps := h.PS(false); len(ps) != 1 || ps[0].State != Down {
			t.Errorf("after it was gone: %+v", ps)
		}
		time.Sleep(time.Second)
		if s := h.Status(ctx); !s.Converged {
			t.Errorf("a stopped container keeps the host from converging: %+v", s)
		}
	})
}

// TestBack: an attach of a container that was gone a moment ago does not go by what was seen then.
func TestBack(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		at := h.put(t, ctx, "c1", "web")
		h.boxes.stop("c1")
		h.links.drift <- struct{}{}
		time.Sleep(time.Second)
		h.create(t, ctx, "db", "10.3.0.0/16")
		h.put(t, ctx, "c1", "db")
		if ps := h.PS(false); ps[0].State != Ready || ps[1].State != Ready {
			t.Errorf("back on one network only: %+v", ps)
		}
		h.boxes.stop("c1")
		h.links.drift <- struct{}{}
		time.Sleep(time.Second)
		back := h.put(t, ctx, "c1", "web")
		if back.Endpoint != at.Endpoint || back.Addr != at.Addr || back.State != Ready || len(h.links.links()) != 2 {
			t.Errorf("back as %+v", back)
		}
	})
}

// TestDetach: by name, from one network or all, of a container that is gone, twice.
func TestDetach(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.create(t, ctx, "db", "10.3.0.0/16")
		h.create(t, ctx, "log", "10.4.0.0/16")
		h.boxes.start("c2")
		h.put(t, ctx, "c2", "web")
		h.boxes.start("c3")
		if off, err := h.Detach(ctx, Ref{Name: "c3"}, ""); err != nil || len(off) != 0 || len(h.mesh.Wishes()) != 1 {
			t.Errorf("detach of what is not attached: %+v %v", off, err)
		}
		h.Detach(ctx, Ref{Name: "c2"}, "")
		for _, n := range []string{"web", "db", "log"} {
			if _, _, err := h.Attach(ctx, AttachRequest{Container: Ref{Name: "c1"}, Network: n}); err == nil {
				t.Error("attached a container that does not run")
			}
			h.boxes.start("c1")
			h.put(t, ctx, "c1", n)
			h.boxes.stop("c1")
		}
		off, err := h.Detach(ctx, Ref{Name: "c1"}, "db")
		if err != nil || len(off) != 1 || off[0].Shown != "db" || len(h.mesh.Wishes()) != 2 {
			t.Errorf("detach from db: %+v %v", off, err)
		}
		if off, err := h.Detach(ctx, Ref{Name: "c1-i"}, ""); err != nil || len(off) != 2 || len(h.mesh.Wishes()) != 0 {
			t.Errorf("detach from all: %+v %v", off, err)
		}
		if off, err := h.Detach(ctx, Ref{Name: "c1"}, ""); err != nil || len(off) != 0 {
			t.Errorf("detach again: %+v %v", off, err)
		}
		if _, err := h.Detach(ctx, Ref{Name: "c1"}, "nosuch"); !errors.Is(err, state.ErrNoNetwork) {
			t.Errorf("detach from nowhere: %v", err)
		}
		if _, err := h.Detach(ctx, Ref{Name: "xyz"}, ""); !errors.Is(err, state.ErrNoContainer) {
			t.Errorf("detach nobody: %v", err)
		}
	})
}

// TestPath: a container known by its namespace. Another one made under the same path is its
// successor; one of the same name elsewhere, while the first lives, is refused.
func TestPath(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		ref := Ref{Name: "c1", NS: os.Stdin, Source: state.Source{Kind: state.SourcePath, Path: "/run/netns/c1"}}
		var ids []state.EndpointID
		for range 2 {
			h.boxes.start("/run/netns/c1")
			h.links.drift <- struct{}{}
			time.Sleep(time.Second)
			at, _, err := h.Attach(ctx, AttachRequest{Container: ref, Network: "web"})
			if err != nil || at.State != Ready {
				t.Fatal(at, err)
			}
			ids = append(ids, at.Endpoint)
		}
		// Before the loop has seen that the first one is gone, as right after a reboot.
		h.boxes.start("/run/netns/c1")
		if at, _, err := h.Attach(ctx, AttachRequest{Container: ref, Network: "web"}); err != nil || at.Endpoint != ids[0] {
			t.Errorf("attach the successor at once: %+v %v", at, err)
		}
		h.boxes.start("c1")
		if _, _, err := h.Attach(ctx, AttachRequest{Container: Ref{Name: "c1"}, Network: "web"}); !errors.Is(err, ErrRefused) {
			t.Errorf("attach another c1: %v", err)
		}
		if ids[0] != ids[1] || len(h.PS(false)) != 1 || len(h.mesh.Wishes()) != 1 {
			t.Errorf("endpoints %v, attachments %+v", ids, h.PS(false))
		}
		if off, err := h.Detach(ctx, ref, "web"); err != nil || len(off) != 1 {
			t.Errorf("detach: %+v %v", off, err)
		}
	})
}

// TestInode: the kernel gives the inode of a namespace that is gone to the next one; that does not
// make the next container the one before. One namespace under two names is one container.
func TestInode(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		attach := func(path string) Attachment {
			t.Helper()
			ref := Ref{Name: path, NS: os.Stdin, Source: state.Source{Kind: state.SourcePath, Path: path}}
			at, _, err := h.Attach(ctx, AttachRequest{Container: ref, Network: "web"})
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		h.boxes.start("x")
		x := attach("x")
		h.boxes.mu.Lock()
		h.boxes.inode["alias"] = h.boxes.inode["x"]
		h.boxes.mu.Unlock()
		if again := attach("alias"); again.Endpoint != x.Endpoint {
			t.Errorf("one namespace is two containers: %+v", h.PS(false))
		}
		h.boxes.mu.Lock()
		h.boxes.inode["y"] = h.boxes.inode["x"]
		delete(h.boxes.inode, "x")
		h.boxes.mu.Unlock()
		if y := attach("y"); y.Endpoint == x.Endpoint || y.Addr == x.Addr {
			t.Errorf("two containers are one: %+v", h.PS(false))
		}
	})
}

// TestRestart: a new agent over the same mesh and switch touches nothing, keeps port numbers, and
// does not cut off containers while Docker does not answer.
func TestRestart(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		for i := range 5 {
			h.put(t, ctx, fmt.Sprintf("c%d", i), "web")
		}
		if _, err := h.Detach(ctx, Ref{Name: "c0"}, ""); err != nil { // so that numbers have a gap
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		links, before := h.links.links(), h.bridge.plan()

		again := &node{mesh: h.mesh, links: newApplier(), bridge: h.bridge, fast: newApplier(), choice: h.choice, boxes: h.boxes}
		again.boxes.setFail(errors.New("docker does not answer"))
		var wg sync.WaitGroup
		run, stop := context.WithCancel(ctx)
		again.begin(t, run, &wg)
		time.Sleep(5 * time.Second)
		if again.links.count() != 0 {
			t.Error("applied before it knew the containers")
		}
		select {
		case <-again.Ready():
			t.Error("ready before it applied anything")
		default:
		}
		again.boxes.setFail(nil)
		time.Sleep(5 * time.Second)
		if !slices.Equal(again.links.links(), links) {
			t.Errorf("links %v, before %v", again.links.links(), links)
		}
		for id, n := range again.bridge.plan().Networks {
			if !slices.Equal(n.Ports, before.Networks[id].Ports) {
				t.Errorf("ports %v, before %v", n.Ports, before.Networks[id].Ports)
			}
		}
		<-again.Ready()
		stop()
		wg.Wait()
	})
}

// TestRemove: a network in use is refused with its users, one without goes.
func TestRemove(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.put(t, ctx, "c1", "web")
		if _, err := h.RemoveNetwork(ctx, "web", false); !errors.Is(err, state.ErrNetworkInUse) || !strings.Contains(err.Error(), "c1") {
			t.Errorf("remove a network in use: %v", err)
		}
		if _, err := h.Detach(ctx, Ref{Name: "c1"}, ""); err != nil {
			t.Fatal(err)
		}
		if n, err := h.RemoveNetwork(ctx, "web", false); err != nil || n.Name != "web" || len(h.Networks()) != 0 {
			t.Errorf("remove: %v, left %v", err, h.Networks())
		}
		if _, err := h.RemoveNetwork(ctx, "web", false); !errors.Is(err, state.ErrNoNetwork) {
			t.Errorf("remove again: %v", err)
		}
	})
}

func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an agent of nothing")
	}
}
