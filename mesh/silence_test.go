package mesh

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"meshnet/state"
)

// TestThirtyDays: who heard of nobody for 30 days drops what it holds of others before it speaks, not
// sooner, and does not find it again on its disk; a member that was away that long brings its own part
// back itself.
func TestThirtyDays(t *testing.T) {
	for _, days := range []int{29, 31} {
		t.Run(fmt.Sprint(days, " days"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { silence3(t, days) })
		})
	}
}

func silence3(t *testing.T, days int) {
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
	for i := range 3 {
		l.stop(i)
	}
	time.Sleep(time.Duration(days) * 24 * time.Hour)
	shown := func(h *host) (n int) {
		if nw, ok := h.View().Network(web); ok {
			n = nw.Len()
		}
		return n
	}
	h := l.start(0)
	time.Sleep(time.Minute)
	if n := shown(h); n != 3 {
		t.Fatalf("with nobody to speak to, %d of 3 endpoints are left", n)
	}
	least := make(chan int)
	watching, stop := context.WithCancel(t.Context())
	go func() {
		low := 3
		for v := range h.Watch(watching) {
			n := 0
			if nw, ok := v.Network(web); ok {
				n = nw.Len()
			}
			low = min(low, n)
		}
		least <- low
	}()
	l.start(1)
	l.await("two met", 40*time.Second, l.converged)
	stop()
	want := 2
	if days < 30 {
		want = 3
	}
	for i := range 2 {
		if n := shown(l.nodes[i]); n != want {
			t.Errorf("host %d shows %d endpoints after %d days, want %d", i, n, days, want)
		}
	}
	if low := <-least; low < want {
		t.Errorf("only %d endpoints were shown in between: containers lost their way", low)
	}
	// What was dropped is not on the disk either.
	l.stop(0)
	l.net.Split([]netip.Addr{addr(0)})
	h = l.start(0)
	if n := shown(h); n != want {
		t.Errorf("%d endpoints after a restart, want %d", n, want)
	}
	l.net.Heal()
	l.start(2)
	l.await("all met", 60*time.Second, l.converged)
	for i, h := range l.nodes {
		nw, _ := h.View().Network(web)
		if nw.Len() != 3 {
			t.Errorf("host %d shows %d endpoints of 3", i, nw.Len())
		}
		for k, o := range outs {
			if e, ok := h.View().Endpoint(o.Endpoint); !ok || e.Addr != o.Addr {
				t.Errorf("host %d: endpoint %d is %+v", i, k, e)
			}
		}
		if c := h.View().Conflicts(); len(c) > 0 {
			t.Errorf("host %d: conflicts %+v", i, c)
		}
	}
}
