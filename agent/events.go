package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

// Event is something that changed, and why.
type Event struct {
	Seq     uint64 // counts events of one run of the daemon, from 1
	Time    time.Time
	Kind    string // created, removed, attached, detached, gone, back, repaired, failing, recovered, conflict or settled
	Subject string
	Cause   string
	Detail  string
}

const (
	// eventsMax is how many events are kept.
	eventsMax = 4096
	// repairsMax is how many steps of one repair are events of their own.
	repairsMax = 16
)

// ring holds the last events. Its methods may be called from any goroutine.
type ring struct {
	mu      sync.Mutex
	last    uint64
	events  []Event
	repairs int
	changed chan struct{} // closed and replaced at each event; nil: nobody waits
}

func (r *ring) add(kind, subject, cause, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	if len(r.events) >= eventsMax {
		r.events = slices.Delete(r.events, 0, eventsMax/4)
	}
	r.events = append(r.events, Event{r.last, time.Now(), kind, subject, cause, detail})
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// after returns the events that came later, and a channel that is closed when there are more.
func (r *ring) after(seq uint64) ([]Event, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	i, _ := slices.BinarySearchFunc(r.events, seq+1, func(e Event, seq uint64) int {
		if e.Seq < seq {
			return -1
		}
		return 1
	})
	return slices.Clone(r.events[i:]), r.changed
}

// Events returns the events after a number, 0 for all that are kept. With wait it waits for one until
// ctx ends, and then returns none.
func (a *Agent) Events(ctx context.Context, after uint64, wait bool) []Event {
	for {
		events, changed := a.events.after(after)
		if len(events) > 0 || !wait {
			return events
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// repaired tells of what was put right on the host though nothing that was asked for had changed.
func (a *Agent) repaired(steps []plan.Step, cause string) {
	if len(steps) == 0 {
		return
	}
	a.events.mu.Lock()
	a.events.repairs += len(steps)
	a.events.mu.Unlock()
	for i, s := range steps {
		if i == repairsMax {
			a.events.add("repaired", "this host", cause, fmt.Sprintf("and %d more", len(steps)-i))
			return
		}
		a.events.add("repaired", "this host", cause, s.String())
	}
}

// compare tells of what differs between two views, as far as it concerns this host or all.
func (a *Agent) compare(was, is *state.View) {
	if was == nil || was == is {
		return
	}
	for _, n := range is.Networks() {
		old, ok := was.Network(n.ID)
		switch {
		case !ok:
			a.events.add("created", "network "+n.Name, nodeName(is, n.Created.Creator), n.Def.Subnet.String())
		case old != n:
			a.members(old, n)
		}
	}
	for _, n := range was.Networks() {
		if _, ok := is.Network(n.ID); !ok {
			a.events.add("removed", "network "+n.Name, "", n.Def.Subnet.String())
		}
	}
	a.conflicts(was.Conflicts(), is.Conflicts())
}

// members tells of containers of this host that came onto a network or went.
func (a *Agent) members(was, is *state.Network) {
	self := a.c.Mesh.Self()
	mine := func(n *state.Network) map[state.EndpointID]*state.Endpoint {
		out := map[state.EndpointID]*state.Endpoint{}
		if n.HasMember(self) {
			for e := range n.Claims() {
				if e.Node == self {
					out[e.ID] = e
				}
			}
		}
		return out
	}
	before, now := mine(was), mine(is)
	tell := func(kind string, e *state.Endpoint) {
		a.events.add(kind, "container "+e.Container, "", is.Name+" "+e.Addr.String())
	}
	for id, e := range now {
		if before[id] == nil {
			tell("attached", e)
		}
	}
	for id, e := range before {
		if now[id] == nil {
			tell("detached", e)
		}
	}
}

func (a *Agent) conflicts(was, is []state.Conflict) {
	for _, c := range is {
		if !slices.Contains(was, c) {
			a.events.add("conflict", c.Kind.String()+" "+c.What, "kept by "+c.Kept, "lost by "+c.Lost)
		}
	}
	for _, c := range was {
		if !slices.Contains(is, c) {
			a.events.add("settled", c.Kind.String()+" "+c.What, "", "")
		}
	}
}
