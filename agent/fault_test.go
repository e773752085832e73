package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

var seeds = flag.Uint64("seeds", 20, "how many seeds TestAttachFaults runs")

// faulty is an applier that fails now and then, before or after it did its work.
type faulty struct {
	*applier
	rng *rand.Rand // used by the loop alone
	ill *atomic.Bool
}

func (f *faulty) Apply(ctx context.Context, h *plan.Host) ([]plan.Step, plan.Found, error) {
	roll := 9
	if f.ill.Load() {
		roll = f.rng.IntN(6)
	}
	time.Sleep(time.Duration(f.rng.IntN(10)) * time.Millisecond)
	if roll == 0 {
		return nil, plan.Found{}, errors.New("nothing was done")
	}
	steps, found, err := f.applier.Apply(ctx, h)
	if roll == 1 && err == nil {
		err = errors.New("something was not done")
	}
	return steps, found, err
}

// TestAttachFaults attaches twenty containers at once while every step fails now and then: the container
// is not there, stops or is removed meanwhile, Docker does not answer, the mesh refuses or fails after it
// kept the wish, links or switch fail, the caller goes away. Who was told that it is attached is, with an
// address of its own; of the others nothing is left.
func TestAttachFaults(t *testing.T) {
	for seed := range *seeds {
		if !attachFaults(t, seed) {
			t.Fatalf("seed %d", seed)
		}
	}
}

func attachFaults(t *testing.T, seed uint64) bool {
	return t.Run(fmt.Sprint(seed), func(t *testing.T) {
		bubble(t, 1, func(ctx context.Context, hosts []*node) {
			rng := rand.New(rand.NewPCG(seed, 7))
			h := hosts[0]
			h.create(t, ctx, "web", "10.2.0.0/16")
			n := ill(t, ctx, h, rng)
			defer n.end()
			failed, left := map[string]error{}, map[string]bool{}
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i := range 20 {
				name := fmt.Sprint("c", i)
				r := AttachRequest{Container: Ref{Name: name}, Network: "web", Wait: time.Second}
				patience, fate, at := 30*time.Second, rng.IntN(8), time.Duration(rng.IntN(60))*time.Millisecond
				switch rng.IntN(6) {
				case 0:
					patience = time.Duration(rng.IntN(40_000)) * time.Microsecond
				case 1:
					r.IfName = fmt.Sprint("w", i)
				}
				if fate != 0 {
					h.boxes.start(name)
				}
				wg.Go(func() {
					late, cancel := context.WithTimeout(ctx, patience)
					defer cancel()
					_, _, err := n.Attach(late, r)
					mu.Lock()
					failed[name] = err
					mu.Unlock()
				})
				wg.Go(func() {
					time.Sleep(at)
					mu.Lock()
					defer mu.Unlock()
					switch fate {
					case 1:
						h.boxes.stop(name)
					case 2:
						h.boxes.remove(name)
						left[name] = true
					}
				})
			}
			wg.Wait()
			n.heal()
			time.Sleep(30 * time.Second)
			check(t, n, failed, left)
		})
	})
}

// illNode is a node whose parts fail until it is healed.
type illNode struct {
	*node
	mesh *mesh
	ill  atomic.Bool
	end  func()
}

func ill(t *testing.T, ctx context.Context, h *node, rng *rand.Rand) *illNode {
	n := &illNode{mesh: h.mesh}
	n.ill.Store(true)
	links := &faulty{newApplier(), rand.New(rand.NewPCG(rng.Uint64(), 1)), &n.ill}
	bridge := &faulty{newApplier(), rand.New(rand.NewPCG(rng.Uint64(), 2)), &n.ill}
	fast := &faulty{newApplier(), rand.New(rand.NewPCG(rng.Uint64(), 4)), &n.ill}
	a, err := New(Config{
		Mesh: h.mesh, Links: links, Switch: bridge, Fast: fast, Sandboxes: h.boxes, Choice: h.c.Choice, Underlay: h.c.Underlay, Log: h.c.Log,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.node = &node{Agent: a, mesh: h.mesh, links: links.applier, bridge: bridge.applier, fast: fast.applier, boxes: h.boxes}
	own := rand.New(rand.NewPCG(rng.Uint64(), 3))
	var mu sync.Mutex
	h.mesh.mu.Lock()
	h.mesh.fail = func(w state.Wish) error {
		mu.Lock()
		roll := own.IntN(8)
		mu.Unlock()
		a, ok := w.(state.Attach)
		_, detach := w.(state.Detach)
		switch {
		case detach && roll < 2:
			return errors.New("the disk is full")
		case !ok || roll > 1:
			return nil
		case roll == 1:
			h.mesh.attach(a) // it is there, and yet an error
		}
		return state.Refuse(state.ErrNoAddress, "no free address")
	}
	h.mesh.mu.Unlock()
	var wg sync.WaitGroup
	run, stop := context.WithCancel(ctx)
	wg.Go(func() { a.Run(run) })
	n.end = func() {
		stop()
		wg.Wait()
	}
	time.Sleep(100 * time.Millisecond)
	return n
}

func (n *illNode) heal() {
	n.mesh.mu.Lock()
	n.mesh.fail = nil
	n.mesh.mu.Unlock()
	n.ill.Store(false)
	n.boxes.missed()
}

// check wants exactly those attached that were told so, but for those removed since.
func check(t *testing.T, n *illNode, failed map[string]error, left map[string]bool) {
	t.Helper()
	seen := map[netip.Prefix]string{}
	attached := map[string]bool{}
	for _, a := range n.PS(true) {
		if other, ok := seen[a.Addr]; ok || !a.Addr.IsValid() {
			t.Errorf("%s has the address %s of %s", a.Container, a.Addr, other)
		}
		seen[a.Addr] = a.Container
		attached[a.Container] = true
	}
	up := 0
	for name, err := range failed {
		switch {
		case left[name] && attached[name]:
			t.Errorf("%s was removed and is attached", name)
		case err != nil && attached[name]:
			t.Errorf("%s is attached, and yet: %v", name, err)
		case err == nil && !attached[name] && !left[name]:
			t.Errorf("%s was said to be attached and is not", name)
		}
	}
	for _, a := range n.PS(false) {
		if a.State == Ready {
			up++
		}
	}
	links, ports := n.links.links(), 0
	n.bridge.mu.Lock()
	for _, p := range n.bridge.ports {
		if p != 0 {
			ports++
		}
	}
	n.bridge.mu.Unlock()
	if len(n.mesh.Wishes()) != len(attached) || len(links) != up || ports != len(attached) {
		t.Errorf("%d attached, %d of them up: %d wishes, %d links, %d ports", len(attached), up, len(n.mesh.Wishes()), len(links), ports)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.busy) > 0 || len(n.hints) > 0 || len(n.suspects) > 0 || len(n.orphans) > 0 {
		t.Errorf("left in memory: %v, %v, %v, %v", n.busy, n.hints, n.suspects, n.orphans)
	}
	if len(n.seen.failing) > 0 {
		t.Errorf("still failing: %q", n.seen.failing)
	}
}

// TestWantedAgain: what failed and could not be taken back is kept if it is asked for again meanwhile.
func TestWantedAgain(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.boxes.start("c1")
		fail := func(f func(state.Wish) error) {
			h.mesh.mu.Lock()
			defer h.mesh.mu.Unlock()
			h.mesh.fail = f
		}
		fail(func(w state.Wish) error {
			switch w := w.(type) {
			case state.Attach:
				h.mesh.attach(w)
				return errors.New("the disk is full")
			case state.Detach:
				return errors.New("the disk is full")
			}
			return nil
		})
		if _, _, err := h.Attach(ctx, AttachRequest{Container: Ref{Name: "c1"}, Network: "web"}); err == nil {
			t.Fatal("attached on a full disk")
		}
		fail(func(w state.Wish) error {
			if _, ok := w.(state.Detach); ok {
				return errors.New("the disk is full")
			}
			return nil
		})
		h.put(t, ctx, "c1", "web")
		fail(nil)
		time.Sleep(time.Minute)
		if ps := h.PS(false); len(ps) != 1 || ps[0].State != Ready {
			t.Errorf("wanted again, and taken back: %+v", ps)
		}
	})
}
