package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshnet/state"
)

// TestContainerEvents: what happens to a container is seen at once, without a timer; its removal gives
// its address back and its new name is shown.
func TestContainerEvents(t *testing.T) {
	bubble(t, 2, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.create(t, ctx, "db", "10.3.0.0/16")
		at := h.put(t, ctx, "c1", "web")
		h.put(t, ctx, "c1", "db")
		h.put(t, ctx, "c2", "web")
		soon := func() { time.Sleep(50 * time.Millisecond) }
		for range 3 {
			h.boxes.stop("c1")
			soon()
			if ps := h.PS(false); ps[0].State != Down || len(h.links.links()) != 1 {
				t.Fatalf("after the stop: %+v", ps)
			}
			h.boxes.start("c1")
			soon()
			i := slices.IndexFunc(h.PS(false), func(a Attachment) bool { return a.Endpoint == at.Endpoint })
			if ps := h.PS(false); i < 0 || ps[i].State != Ready || ps[i].Addr != at.Addr || ps[i].MAC != at.MAC || len(h.links.links()) != 3 {
				t.Fatalf("after the start: %+v", ps)
			}
		}
		h.boxes.rename("c1", "front")
		soon()
		for _, other := range hosts {
			if n := len(slices.DeleteFunc(other.PS(true), func(a Attachment) bool { return a.Container != "front" })); n != 2 {
				t.Errorf("renamed: %+v", other.PS(true))
			}
		}
		if at, _, err := h.Attach(ctx, AttachRequest{Container: Ref{Name: "c1"}, Network: "web"}); err != nil || at.Container != "front" {
			t.Errorf("attached again: %+v %v", at, err)
		}
		h.boxes.remove("c1")
		soon()
		if ps, w := hosts[1].PS(true), h.mesh.Wishes(); len(ps) != 1 || len(w) != 1 || len(h.links.links()) != 1 {
			t.Errorf("after it was removed: %+v, wishes %+v", ps, w)
		}
		if opens := h.boxes.count(); opens > 30 {
			t.Errorf("%d sandboxes looked up", opens)
		}
	})
}

func (s *sandboxes) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens
}

// TestNameKept: an interface gets the name it had, also from an agent that was not there then; a
// wished one goes before.
func TestNameKept(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.links.mu.Lock()
		h.links.first = "eth7"
		h.links.mu.Unlock()
		h.put(t, ctx, "c1", "web")
		h.boxes.start("c2")
		if _, _, err := h.Attach(ctx, AttachRequest{Container: Ref{Name: "c2"}, Network: "web", IfName: "w0"}); err != nil {
			t.Fatal(err)
		}
		h.boxes.stop("c1")
		time.Sleep(time.Second)
		again := &node{mesh: h.mesh, links: newApplier(), bridge: h.bridge, fast: newApplier(), choice: h.choice, boxes: h.boxes}
		var wg sync.WaitGroup
		run, stop := context.WithCancel(ctx)
		again.begin(t, run, &wg)
		time.Sleep(time.Second)
		again.boxes.start("c1")
		time.Sleep(time.Second)
		if ps := again.PS(false); ps[0].IfName != "eth7" || ps[1].IfName != "w0" {
			t.Errorf("names %s and %s", ps[0].IfName, ps[1].IfName)
		}
		for _, w := range h.mesh.Wishes() {
			if w.Given != "eth7" && w.IfName == "" || w.Given != "" && w.IfName != "" {
				t.Errorf("kept %+v", w)
			}
		}
		stop()
		wg.Wait()
	})
}

// TestContainersMissed: the same without events, by the look at everything that follows; also by an
// agent that was not there meanwhile.
func TestContainersMissed(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		bubble(t, 1, func(ctx context.Context, hosts []*node) {
			h := hosts[0]
			h.create(t, ctx, "web", "10.2.0.0/16")
			for i := range 4 {
				h.put(t, ctx, fmt.Sprintf("c%d", i), "web")
			}
			h.boxes.deaf = true
			h.boxes.start("c0") // another sandbox
			h.boxes.stop("c1")
			h.boxes.remove("c2")
			h.boxes.rename("c3", "renamed")
			time.Sleep(11 * time.Second) // nothing is looked at by the clock
			if ps := h.PS(false); len(ps) != 4 || ps[1].State != Ready {
				t.Fatalf("seen without being told: %+v", ps)
			}
			var wg sync.WaitGroup
			run, stop := context.WithCancel(ctx)
			if restarted {
				h = &node{mesh: h.mesh, links: newApplier(), bridge: h.bridge, fast: newApplier(), choice: h.choice, boxes: h.boxes}
				h.begin(t, run, &wg)
			} else {
				h.boxes.missed()
			}
			time.Sleep(time.Second)
			var names []string
			for _, a := range h.PS(false) {
				names = append(names, a.Container+" "+a.State.String())
			}
			slices.Sort(names)
			if want := []string{"c0 ready", "c1 down", "renamed ready"}; !slices.Equal(names, want) || len(h.mesh.Wishes()) != 3 {
				t.Errorf("restarted %t: %q, want %q", restarted, names, want)
			}
			if inode := h.links.plan().Links[0].Sandbox.Inode; inode != 5 && h.links.plan().Links[1].Sandbox.Inode != 5 {
				t.Errorf("restarted %t: links %+v", restarted, h.links.plan().Links)
			}
			stop()
			wg.Wait()
		})
	}
}

// TestAttachAgainUnknown: an attach again of a container that could not be looked up a moment ago returns
// when its link is there, and not by what was known.
func TestAttachAgainUnknown(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.put(t, ctx, "c1", "web")
		h.boxes.setFail(errors.New("docker does not answer"))
		again := &node{mesh: h.mesh, links: newApplier(), bridge: h.bridge, fast: newApplier(), choice: h.choice, boxes: h.boxes}
		var wg sync.WaitGroup
		run, stop := context.WithCancel(ctx)
		again.begin(t, run, &wg)
		time.Sleep(graceMax + time.Second)
		h.boxes.setFail(nil)
		at, _, err := again.Attach(ctx, AttachRequest{Container: Ref{Name: "c1"}, Network: "web"})
		if err != nil || at.State != Ready || len(again.links.links()) != 1 {
			t.Errorf("attached %+v, links %v: %v", at, again.links.links(), err)
		}
		stop()
		wg.Wait()
	})
}

// TestRemovedLater: what cannot be given up now is given up later.
func TestRemovedLater(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.put(t, ctx, "c1", "web")
		h.mesh.mu.Lock()
		h.mesh.fail = func(w state.Wish) error { return errors.New("the disk is full") }
		h.mesh.mu.Unlock()
		h.boxes.remove("c1")
		time.Sleep(time.Second)
		if s := h.Status(ctx); s.Converged || !strings.Contains(strings.Join(s.Pending, ""), "the disk is full") {
			t.Errorf("status %+v", s.Pending)
		}
		h.mesh.mu.Lock()
		h.mesh.fail = nil
		h.mesh.mu.Unlock()
		time.Sleep(6 * time.Second)
		if w := h.mesh.Wishes(); len(w) != 0 || !h.Status(ctx).Converged {
			t.Errorf("still there: %+v", w)
		}
	})
}

// TestLabels: a container is on the networks its labels name when it starts, with no command, and its
// first process is let go when it has all of them.
func TestLabels(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.create(t, ctx, "db", "10.3.0.0/16")
		h.boxes.wants["c1"] = Wants{
			Networks: []string{"web", "db"}, Addrs: []netip.Addr{netip.MustParseAddr("10.3.0.77")}, Names: []string{"www"},
			IfNames: []string{"w0"}, Waits: true,
		}
		h.boxes.start("c1")
		time.Sleep(50 * time.Millisecond)
		ps := h.PS(false)
		if len(ps) != 2 || ps[0].Shown != "db" || ps[0].Addr.String() != "10.3.0.77/16" || ps[0].IfName != "eth1" || ps[1].IfName != "w0" ||
			!slices.Equal(ps[1].Names, []string{"www"}) || ps[0].State != Ready || ps[1].State != Ready || ps[0].Container != "c1" {
			t.Errorf("attached %+v", ps)
		}
		if want := []string{"/run/model/c1 1 "}; !slices.Equal(h.boxes.told(), want) {
			t.Errorf("released %q, want %q", h.boxes.told(), want)
		}
		// By hand off one: off until it starts again.
		if _, err := h.Detach(ctx, Ref{Name: "c1"}, "db"); err != nil {
			t.Fatal(err)
		}
		h.boxes.missed()
		time.Sleep(time.Second)
		if ps := h.PS(false); len(ps) != 1 {
			t.Errorf("attached behind our back: %+v", ps)
		}
		h.boxes.start("c1")
		time.Sleep(50 * time.Millisecond)
		if ps := h.PS(false); len(ps) != 2 || len(h.boxes.told()) != 2 {
			t.Errorf("after a restart %+v, released %q", ps, h.boxes.told())
		}
		// A start that nobody told of.
		h.boxes.deaf = true
		h.boxes.start("c1")
		h.boxes.missed()
		time.Sleep(50 * time.Millisecond)
		if !strings.HasPrefix(h.boxes.told()[len(h.boxes.told())-1], "/run/model/c1 3 ") || len(h.boxes.told()) != 3 {
			t.Errorf("released %q", h.boxes.told())
		}
	})
}

// TestLabelFaults: labels that cannot be obeyed are said once, and obeyed as soon as they can be.
func TestLabelFaults(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		addr := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
		h.boxes.wants["c1"] = Wants{Networks: []string{"later"}, Waits: true}
		h.boxes.wants["c2"] = Wants{Networks: []string{"web"}, Addrs: addr("10.9.0.1"), Waits: true}
		h.boxes.wants["c3"] = Wants{Networks: []string{"web"}, Fault: "label x", Waits: true}
		for i := 1; i <= 3; i++ {
			h.boxes.start(fmt.Sprintf("c%d", i))
		}
		time.Sleep(time.Minute)
		got := strings.Join(h.Status(ctx).Warnings, "\n")
		for _, want := range []string{"container c1: there is no network later", "container c2: address 10.9.0.1 is of none", "container c3: label x"} {
			if strings.Count(got, want) != 1 {
				t.Errorf("warnings %q, want %q once", got, want)
			}
		}
		// What can never be is told to who waits; what may come is waited for.
		for _, r := range h.boxes.told() {
			if strings.HasPrefix(r, "/run/model/c1") || strings.HasSuffix(r, " ") {
				t.Errorf("released %q", r)
			}
		}
		if len(h.boxes.told()) < 2 || len(h.PS(false)) != 0 {
			t.Errorf("released %q, attached %+v", h.boxes.told(), h.PS(false))
		}
		h.create(t, ctx, "later", "10.4.0.0/16")
		h.boxes.stop("c2")
		h.boxes.stop("c3")
		time.Sleep(obeyMax + time.Second)
		if ps := h.PS(false); len(ps) != 1 || ps[0].Container != "c1" || ps[0].State != Ready {
			t.Errorf("attached %+v", ps)
		}
		if w := h.Status(ctx).Warnings; len(w) != 0 {
			t.Errorf("warnings %q", w)
		}
		// Many at once.
		for i := 10; i < 60; i++ {
			name := fmt.Sprintf("c%d", i)
			h.boxes.wants[name] = Wants{Networks: []string{"web"}}
			h.boxes.start(name)
		}
		time.Sleep(time.Second)
		if n := len(h.PS(false)); n != 51 {
			t.Errorf("%d attached", n)
		}
	})
}
