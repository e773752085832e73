package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

// TestFastPathOrder: twins are there before the switch has them for ports, and as long as it may; devices are
// made ready before they are its ports again.
func TestFastPathOrder(t *testing.T) {
	for _, c := range []struct {
		on        bool
		transport state.Transport
		want      []string
	}{
		{true, state.KernelVXLAN, []string{"links", "fast", "switch"}},
		{true, state.OVSKernel, []string{"links", "fast", "switch", "fast"}}, // which may have made the device of all tunnels
		{false, state.KernelVXLAN, []string{"links", "yield", "switch", "fast"}},
		{false, state.OVSKernel, []string{"links", "yield", "switch", "fast"}},
	} {
		bubble(t, 1, func(ctx context.Context, hosts []*node) {
			h := hosts[0]
			var mu sync.Mutex
			var order []string
			note := func(name string) func() {
				return func() {
					mu.Lock()
					defer mu.Unlock()
					order = append(order, name)
				}
			}
			for name, a := range map[string]*applier{"links": h.links, "fast": h.fast, "switch": h.bridge} {
				a.mu.Lock()
				a.note = note(name)
				if name == "fast" {
					a.yield = note("yield")
				}
				a.mu.Unlock()
			}
			h.c.Choice.FastPath, h.c.Choice.Transport = c.on, c.transport
			h.create(t, ctx, "web", "10.2.0.0/16")
			h.put(t, ctx, "c1", "web")
			mu.Lock()
			defer mu.Unlock()
			if n := len(order); n < len(c.want) || !slices.Equal(order[n-len(c.want):], c.want) {
				t.Errorf("on %t, %s: applied in the order %v", c.on, c.transport, order)
			}
		})
	}
}

// TestTwinsStay: when the fast path is to go and the switch did not let go of its twins, they stay.
func TestTwinsStay(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		h.put(t, ctx, "c1", "web")
		h.bridge.setFail(errors.New("not connected"))
		h.c.Choice.FastPath = false
		before := h.fast.count()
		h.links.drift <- struct{}{}
		time.Sleep(time.Second)
		if h.fast.count() != before {
			t.Error("the twins were removed from under the switch")
		}
		h.bridge.setFail(nil)
		time.Sleep(10 * time.Second)
		if host := h.fast.plan(); host == nil || host.FastPath {
			t.Error("the fast path is still on")
		}
	})
}

// TestFastPathGivenUp: a fast path that cannot be made is left out, and status says so; once it can be
// made again it stays off.
func TestFastPathGivenUp(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		at := h.put(t, ctx, "c1", "web")
		h.fast.setFail(errors.New("cannot allocate memory"))
		h.links.drift <- struct{}{}
		time.Sleep(2 * time.Second)
		if host := h.bridge.plan(); host == nil || host.FastPath || len(h.links.links()) != 1 {
			t.Fatalf("the switch has no ports of its own: %v", host)
		}
		h.fast.setFail(nil)
		time.Sleep(time.Minute)
		s := h.Status(ctx)
		if s.FastPath || !strings.Contains(s.FastWhy, "cannot allocate memory") || len(s.Pending) > 0 {
			t.Errorf("%s: %t %q, pending %v", at.Container, s.FastPath, s.FastWhy, s.Pending)
		}
		if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "fast path is off") {
			t.Errorf("warnings %q", s.Warnings)
		}
	})
}

// TestTraffic: what is counted is shown with names.
func TestTraffic(t *testing.T) {
	bubble(t, 1, func(ctx context.Context, hosts []*node) {
		h := hosts[0]
		h.create(t, ctx, "web", "10.2.0.0/16")
		at := h.put(t, ctx, "c1", "web")
		h.c.Traffic = func() []plan.Traffic {
			return []plan.Traffic{{Device: "mc-1", Network: at.Network, Endpoint: at.Endpoint, Fast: 7}, {Device: "mv-1", Network: at.Network}}
		}
		s := h.Status(ctx).Traffic
		if len(s) != 2 || s[0].Container != "c1" || s[0].Shown != "web" || s[0].Fast != 7 || s[1].Container != "" {
			t.Errorf("%+v", s)
		}
	})
}
