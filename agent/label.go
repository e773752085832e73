package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

const (
	// obeyAtOnce bounds how many containers are attached by their labels at the same time.
	obeyAtOnce = 16
	// obeyMin to obeyMax: the wait until labels that could not be obeyed are tried again, doubled each
	// time.
	obeyMin, obeyMax = 200 * time.Millisecond, 10 * time.Second
	// labelWait bounds the wait for other nodes, for a container that waits for its interfaces.
	labelWait = 2 * time.Second
	// listMax bounds the question for all containers.
	listMax = 10 * time.Second
)

// labels is the state of the one goroutine that puts containers on the networks their labels name,
// once for each time they start: who detaches one by hand has it detached until its next start.
type labels struct {
	agent *Agent
	known map[string]*labelled // running ones, by Docker id
	ended chan obeyed          // results of those that are being attached
	busy  int
}

// labelled is a running container with labels.
type labelled struct {
	Container
	done  plan.Sandbox // all was done for this sandbox
	busy  bool         // it is being attached
	due   time.Time    // of the next try; zero: none
	retry time.Duration
}

// obeyed is what became of a try.
type obeyed struct {
	who *labelled
	box plan.Sandbox
	err error
}

// obeyLabels attaches containers by their labels until ctx ends. It begins after the first apply:
// before, what is there may only not be known yet.
func (a *Agent) obeyLabels(ctx context.Context) {
	for now, changed := a.look(); now.host == nil; now, changed = a.look() {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	l := labels{agent: a, known: map[string]*labelled{}, ended: make(chan obeyed, obeyAtOnce)}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.labelled:
			for _, h := range a.takeHappened() {
				l.happen(ctx, h)
			}
		case o := <-l.ended:
			l.end(o)
		case <-timer.C:
		}
		if next := l.begin(ctx, &workers); next > 0 {
			timer.Reset(next)
		}
	}
}

// happen takes note of what happened to a container.
func (l *labels) happen(ctx context.Context, h Happening) {
	c := h.Container
	id := c.Source.Docker
	switch {
	case h.All:
		l.resync(ctx)
	case h.What == Renamed:
		l.agent.rename(ctx, c)
		if k := l.known[id]; k != nil {
			k.Name = c.Name
		}
	case h.What == Ended:
		l.drop(id)
	case h.What == Started:
		l.drop(id)
		l.add(c)
	}
}

// add begins to care for a running container.
func (l *labels) add(c Container) {
	if len(c.Wants.Networks) > 0 {
		l.known[c.Source.Docker] = &labelled{Container: c, due: time.Now()}
	}
}

func (l *labels) drop(id string) {
	delete(l.known, id)
	l.agent.fault(id, "")
}

// resync looks at all containers, when something may have been missed.
func (l *labels) resync(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, listMax)
	defer cancel()
	all, err := l.agent.c.Sandboxes.List(ctx)
	if err != nil {
		l.agent.c.Log.Debug("containers cannot be listed", "err", err)
		return // the stream of events says when it can be
	}
	running := map[string]bool{}
	for _, c := range all {
		l.agent.rename(ctx, c)
		if !c.Running {
			continue
		}
		id := c.Source.Docker
		running[id] = true
		if k := l.known[id]; k == nil {
			l.add(c)
		} else if !k.busy && k.due.IsZero() {
			k.due = time.Now() // it may have another sandbox than the one all was done for
		}
	}
	for id := range l.known {
		if !running[id] {
			l.drop(id)
		}
	}
}

// begin starts what is due and returns how long until there is more to do; zero: it does not depend
// on time.
func (l *labels) begin(ctx context.Context, workers *sync.WaitGroup) (next time.Duration) {
	now := time.Now()
	for _, k := range l.known {
		if k.busy || k.due.IsZero() {
			continue
		}
		if wait := k.due.Sub(now); wait > 0 {
			if next == 0 || wait < next {
				next = wait
			}
			continue
		}
		if l.busy == obeyAtOnce {
			continue // the end of another one comes round
		}
		l.busy++
		k.busy, k.due = true, time.Time{}
		who, c, done := k, k.Container, k.done
		workers.Go(func() {
			box, err := l.agent.obey(ctx, c, done)
			l.ended <- obeyed{who, box, err} // has room for all that are busy
		})
	}
	return next
}

// end takes note of what became of a try.
func (l *labels) end(o obeyed) {
	l.busy--
	k := o.who
	k.busy = false
	id := k.Source.Docker
	if l.known[id] != k {
		return // it ended meanwhile
	}
	if o.err == nil {
		k.done, k.retry = o.box, 0
		l.agent.fault(id, "")
		return
	}
	k.retry = min(max(2*k.retry, obeyMin), obeyMax)
	k.due = time.Now().Add(k.retry)
	if errors.Is(o.err, ErrGone) {
		return // it ends, or is between two starts
	}
	if l.agent.fault(id, fmt.Sprintf("labels of container %s: %v", k.Name, o.err)) {
		l.agent.c.Log.Warn("labels cannot be obeyed yet", "container", k.Name, "err", o.err)
	}
}

// fault notes what is wrong with a container's labels, empty: nothing, and reports whether that is new.
func (a *Agent) fault(id, what string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.faults[id] == what {
		return false
	}
	if what == "" {
		delete(a.faults, id)
	} else {
		a.faults[id] = what
	}
	return true
}

// labelFaults returns the labels that cannot be obeyed now, a line each, sorted.
func (a *Agent) labelFaults() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Values(a.faults))
}

// obey puts a container on the networks that its labels name, unless that was done for the sandbox it
// has, and lets its first process go on if that waits. It returns the sandbox.
func (a *Agent) obey(ctx context.Context, c Container, done plan.Sandbox) (plan.Sandbox, error) {
	open, cancel := context.WithTimeout(ctx, openMax)
	defer cancel()
	box, err := a.c.Sandboxes.Open(open, c.Source)
	if err != nil || box == done {
		return box, err
	}
	err = a.obeyAll(ctx, c)
	if !c.Wants.Waits {
		return box, err
	}
	why := ""
	switch {
	case err == nil:
	case final(err):
		why = err.Error()
	default:
		return box, err
	}
	return box, errors.Join(err, a.c.Sandboxes.Release(ctx, box, why))
}

// final reports whether it is of no use to wait: what is asked for cannot be had.
func final(err error) bool {
	return errors.Is(err, state.ErrInvalid) || errors.Is(err, ErrRefused) || errors.Is(err, state.ErrAddressInUse)
}

func (a *Agent) obeyAll(ctx context.Context, c Container) error {
	if c.Wants.Fault != "" {
		return state.Refuse(state.ErrInvalid, "%s", c.Wants.Fault)
	}
	requests, err := a.requests(c)
	if err != nil {
		return err
	}
	for _, r := range requests {
		if _, _, err := a.Attach(ctx, r); err != nil {
			return fmt.Errorf("attach to %s: %w", r.Network, err)
		}
	}
	return nil
}

// requests turns what labels ask for into attachments, one a network.
func (a *Agent) requests(c Container) ([]AttachRequest, error) {
	view := a.c.Mesh.View()
	left := slices.Clone(c.Wants.Addrs)
	var out []AttachRequest
	for i, name := range c.Wants.Networks {
		n, err := find(view, name)
		if err != nil {
			return nil, err
		}
		r := AttachRequest{
			Container: Ref{Name: c.Source.Docker}, Network: name, Names: c.Wants.Names, NoDefaultRoute: c.Wants.NoDefaultRoute,
		}
		if i < len(c.Wants.IfNames) {
			r.IfName = c.Wants.IfNames[i]
		}
		if c.Wants.Waits {
			r.Wait = labelWait
		}
		if at := slices.IndexFunc(left, n.Def.Subnet.Contains); at >= 0 {
			r.Addr = left[at]
			left = slices.Delete(left, at, at+1)
		}
		out = append(out, r)
	}
	if len(left) > 0 {
		return nil, state.Refuse(state.ErrInvalid, "address %s is of none of its networks", each(left))
	}
	return out, nil
}

// each joins addresses for people.
func each(addrs []netip.Addr) string {
	s := ""
	for i, a := range addrs {
		if i > 0 {
			s += ", "
		}
		s += a.String()
	}
	return s
}
