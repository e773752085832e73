package agent

import (
	"context"
	"maps"
	"net/netip"

	"meshnet/plan"
	"meshnet/state"
)

// Container is what the engine that runs containers says of one.
type Container struct {
	Source  state.Source
	Name    string
	Running bool
	Wants   Wants
}

// Wants is what a container's labels ask for. Nothing if Networks is empty.
type Wants struct {
	Networks []string
	Addrs    []netip.Addr // each for the network whose subnet has it
	Names    []string     // on all of them
	IfNames  []string     // in the order of Networks; may be shorter
	// NoDefaultRoute leaves the container's default route alone.
	NoDefaultRoute bool
	// Waits: its first process waits for [Sandboxes].Release.
	Waits bool
	// Fault says what is wrong with the labels; empty: nothing.
	Fault string
}

// What is what happened to a container.
type What uint8

const (
	// Started: it has a new sandbox, perhaps.
	Started What = iota + 1
	// Ended: its sandbox went, or the container was removed.
	Ended
	// Renamed: it has another name.
	Renamed
)

// Happening is one thing that happened to a container, or that anything may have happened to all.
type Happening struct {
	All       bool // the rest is zero then
	What      What
	Container Container
}

// happeningsMax bounds what waits to be looked at. Beyond it all containers are looked at.
const happeningsMax = 4096

// watchContainers passes on what happens to containers until ctx ends.
func (a *Agent) watchContainers(ctx context.Context) {
	a.c.Sandboxes.Watch(ctx, func(h Happening) {
		a.mu.Lock()
		if h.All || len(a.happened) >= happeningsMax {
			a.happened = []Happening{{All: true}}
		} else {
			a.happened = append(a.happened, h)
		}
		if h.All {
			a.moved = map[string]bool{"": true}
		} else if len(a.moved) < happeningsMax {
			a.moved[h.Container.Source.Docker] = true
		} else {
			a.moved[""] = true
		}
		a.mu.Unlock()
		poke(a.stirred)
		poke(a.labelled)
	})
}

// takeMoved returns the ids of the containers to which something happened since the last call; the
// empty id stands for all.
func (a *Agent) takeMoved() map[string]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	moved := a.moved
	a.moved = map[string]bool{}
	return moved
}

// hinted returns the sandboxes that the door found.
func (a *Agent) hinted() map[state.EndpointID]plan.Sandbox {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.hints)
}

// takeHappened returns what happened since the last call.
func (a *Agent) takeHappened() []Happening {
	a.mu.Lock()
	defer a.mu.Unlock()
	happened := a.happened
	a.happened = nil
	return happened
}

// rename gives the attachments of a container the name that people know it by now.
func (a *Agent) rename(ctx context.Context, c Container) {
	for _, w := range a.c.Mesh.Wishes() {
		if w.Source != c.Source || w.Container == c.Name || c.Name == "" {
			continue
		}
		was := w.Container
		w.Container = c.Name
		do, cancel := context.WithTimeout(ctx, doMax)
		_, err := a.c.Mesh.Do(do, w)
		cancel()
		if err != nil {
			a.c.Log.Warn("container's new name is not known to others yet", "container", c.Name, "was", was, "err", err)
			continue
		}
		a.c.Log.Info("container was renamed", "endpoint", w.ID, "container", c.Name, "was", was)
	}
}

// opened is a sandbox looked up, or why there is none.
type opened struct {
	box plan.Sandbox
	err error
}

// openAtOnce bounds how many sandboxes are looked up at the same time.
const openAtOnce = 8

// openAll looks up the sandboxes of wishes.
func (l *loop) openAll(ctx context.Context, wishes []state.Attach) map[state.EndpointID]opened {
	out := make(map[state.EndpointID]opened, len(wishes))
	if len(wishes) == 1 {
		box, err := l.open(ctx, wishes[0].Source)
		out[wishes[0].ID] = opened{box, err}
		return out
	}
	// One question for each container, not for each of its networks.
	results := make(map[state.Source]*opened, len(wishes))
	var sources []state.Source
	for _, w := range wishes {
		if results[w.Source] == nil {
			results[w.Source] = &opened{}
			sources = append(sources, w.Source)
		}
	}
	l.each(sources, func(s state.Source) {
		r := results[s]
		r.box, r.err = l.open(ctx, s)
	})
	for _, w := range wishes {
		out[w.ID] = *results[w.Source]
	}
	return out
}

// each calls f for each source, openAtOnce at a time, and returns when all have ended.
func (l *loop) each(sources []state.Source, f func(state.Source)) {
	work := make(chan state.Source)
	done := make(chan struct{})
	n := min(openAtOnce, len(sources))
	for range n {
		go func() {
			for s := range work {
				f(s)
			}
			done <- struct{}{}
		}()
	}
	for _, s := range sources {
		work <- s
	}
	close(work)
	for range n {
		<-done
	}
}
