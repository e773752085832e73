package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

const (
	// gather is how long the loop waits for more of what woke it: many wishes that arrive together
	// are one apply, and what arrives during one is the next. Small against the time that a link takes.
	gather = 500 * time.Microsecond
	// retryMin to retryMax: the wait after a failure, doubled each time.
	retryMin, retryMax = 100 * time.Millisecond, 5 * time.Second
	// lookEvery: how often sandboxes of which no engine tells anything (paths, processes) are looked up
	// without a reason. Of the others Watch tells, and now and then that all are to be looked up.
	lookEvery = 10 * time.Second
	// passEvery: how often the whole plan is applied without a reason.
	passEvery = 5 * time.Minute
	// openMax bounds the search for one sandbox.
	openMax = 5 * time.Second
	// applyMax bounds one apply.
	applyMax = 30 * time.Second
	// graceMax: how long after the start nothing is applied while it is not known whether a
	// container that ran is still there. A daemon's restart must not cut it off because Docker is
	// slow to answer.
	graceMax = 10 * time.Second
	// missedMax: how often in a row the fast path may fail before all goes through the switch again.
	missedMax = 3
)

// loop is the state of the one goroutine that changes the host.
type loop struct {
	agent   *Agent
	started time.Time

	host      *plan.Host
	found     plan.Found
	read      bool // found was read from the switch
	sandboxes map[state.EndpointID]plan.Sandbox
	gone      map[state.EndpointID]bool
	// stale: all sandboxes are to be looked up again; suspect: these.
	stale   bool
	suspect map[state.EndpointID]bool
	// moved: those of these containers too, by id; untold: those of which no engine tells.
	moved  map[string]bool
	untold bool
	passed time.Time   // when the last pass began
	view   *state.View // of the last round
	cause  string      // why this round is, where it is not for what was asked
	retry  time.Duration
	// missed counts how often in a row the fast path could not be made; slow is why it was given up.
	missed int
	slow   string
}

func (l *loop) run(ctx context.Context, views <-chan struct{}) {
	c := &l.agent.c
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	l.stale = true
	for {
		whole := true
		l.cause = ""
		select {
		case <-ctx.Done():
			return
		case <-views:
		case <-l.agent.poked:
		case <-c.Links.Drift():
			l.stale = true
			l.cause = "somebody changed links, routes or firewall"
		case <-c.Fast.Drift():
			l.cause = "somebody changed the fast path"
		case <-c.Switch.Drift():
			l.cause = "somebody changed Open vSwitch, or it was restarted"
		case <-again.C:
			l.untold = true // and what failed is a suspect
			l.cause = "tried again"
		case <-l.agent.stirred:
			whole = l.retry > 0
		case <-look.C:
			l.untold = true
			l.cause = "looked at in passing"
			whole = l.retry > 0 || time.Since(l.passed) >= passEvery
		}
		wait := gather
		if l.retry > 0 {
			wait = retryMin // whatever comes, a host that fails is not hammered
		}
		if !sleep(ctx, wait) {
			return
		}
		l.round(ctx, whole)
		if l.retry > 0 {
			again.Reset(l.retry)
		} else {
			again.Stop()
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// round looks up sandboxes and applies the plan, whole or only if a sandbox changed, and sets the
// wait until the next try.
func (l *loop) round(ctx context.Context, whole bool) {
	mesh := l.agent.c.Mesh
	ticket := l.takeSuspects()
	orphaned := l.agent.takeBack(ctx)
	changed, unknown, failing := l.lookup(ctx, mesh.View())
	failing = append(orphaned, failing...)
	view := mesh.View() // containers that were removed are not in it any more
	l.agent.compare(l.view, view)
	if l.view != view || changed {
		l.cause = ""
	}
	l.view = view
	equal := false
	if err := l.first(ctx); err != nil {
		failing = append(failing, "switch: "+err.Error())
	}
	switch {
	case !l.read:
	case unknown && time.Since(l.started) < graceMax:
	case whole || changed || len(failing) > 0:
		l.passed = time.Now()
		faults := l.apply(ctx, view)
		equal = len(faults) == 0
		failing = append(failing, faults...)
	}
	if ctx.Err() != nil {
		return
	}
	if equal {
		mesh.Applied(view.Version())
	}
	l.retry = l.after(failing)
	l.agent.publish(func(s *seen) {
		if equal {
			s.applied = max(s.applied, view.Version())
			s.answered = ticket
		}
		s.host, s.failing, s.ifNames, s.slow = l.host, failing, l.found.IfNames, l.slow
		s.sandboxes, s.gone = maps.Clone(l.sandboxes), maps.Clone(l.gone)
	})
	l.remember(ctx)
	if len(failing) == 0 && equal {
		l.agent.once.Do(func() { close(l.agent.ready) })
	}
}

// remember keeps the names that interfaces got, so that they get them again.
func (l *loop) remember(ctx context.Context) {
	for _, w := range l.agent.c.Mesh.Wishes() {
		name := l.found.IfNames[w.ID]
		if name == "" || name == w.Given || w.IfName != "" {
			continue
		}
		if _, err := l.agent.c.Mesh.Do(ctx, state.Name{ID: w.ID, Given: name}); err != nil {
			l.agent.c.Log.Warn("name of an interface is not kept", "endpoint", w.ID, "err", err)
		}
	}
}

// takeSuspects forgets the sandboxes that are to be looked up again, and returns the last ticket.
func (l *loop) takeSuspects() (ticket uint64) {
	a := l.agent
	l.moved = a.takeMoved()
	l.stale = l.stale || l.moved[""]
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range a.suspects {
		l.suspect[id] = true
	}
	a.suspects = nil
	return a.tickets
}

// first reads what the switch has, once, before anything is planned.
func (l *loop) first(ctx context.Context) error {
	if l.read {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, applyMax)
	defer cancel()
	found, err := l.agent.c.Switch.Found(ctx)
	if err != nil {
		return err
	}
	l.found, l.read = found, true
	return nil
}

// after logs what failed and returns how long to wait until the next try; 0: no need of one.
func (l *loop) after(failing []string) time.Duration {
	log := l.agent.c.Log
	if len(failing) == 0 {
		if l.retry > 0 {
			l.agent.events.add("recovered", "this host", "", "")
			log.Info("host is as planned again")
		}
		return 0
	}
	retry := min(max(2*l.retry, retryMin), retryMax)
	for _, f := range failing {
		if l.retry == 0 {
			l.agent.events.add("failing", "this host", l.cause, f)
		}
		log.Warn("host is not as planned", "err", f, "retry", retry)
	}
	return retry
}

// lookup finds the sandboxes of this host's wishes: those it does not know, and those that are stale. It
// reports whether one changed, and whether it is not known of a container that ran whether it is
// there. Attachments of containers that were removed are given up.
func (l *loop) lookup(ctx context.Context, view *state.View) (changed, unknown bool, failing []string) {
	before := l.sandboxes
	l.sandboxes = map[state.EndpointID]plan.Sandbox{}
	gone := map[state.EndpointID]bool{}
	var ask []state.Attach
	hints := l.agent.hinted()
	for _, w := range l.agent.c.Mesh.Wishes() {
		old, known := before[w.ID]
		hint, given := hints[w.ID]
		switch {
		case given && !known && !l.gone[w.ID] && !l.suspect[w.ID]:
			l.sandboxes[w.ID] = hint
		case l.doubtful(w) || !known && !l.gone[w.ID]:
			ask = append(ask, w)
		case known:
			l.sandboxes[w.ID] = old
		default:
			gone[w.ID] = true
		}
	}
	l.stale, l.untold, l.suspect, l.moved = false, false, map[state.EndpointID]bool{}, nil
	results := l.openAll(ctx, ask)
	for _, w := range ask {
		old, known := before[w.ID]
		e, attached := view.Endpoint(w.ID)
		r := results[w.ID]
		switch {
		case r.err == nil:
			l.sandboxes[w.ID] = r.box
			if attached && e.Down {
				failing = append(failing, l.report(ctx, w, false)...)
			}
		case errors.Is(r.err, ErrRemoved):
			failing = append(failing, l.forget(ctx, w)...)
		case errors.Is(r.err, ErrGone):
			gone[w.ID] = true
			if attached && !e.Down {
				failing = append(failing, l.report(ctx, w, true)...)
			}
		default:
			failing = append(failing, fmt.Sprintf("look up container %s: %v", w.Container, r.err))
			l.suspect[w.ID] = true
			if known {
				l.sandboxes[w.ID] = old
			} else if attached && !e.Down {
				unknown = true
			}
		}
	}
	l.gone = gone
	return !maps.Equal(before, l.sandboxes), unknown, failing
}

// doubtful reports whether what is known of an attachment's sandbox is to be looked up again.
func (l *loop) doubtful(w state.Attach) bool {
	return l.stale || l.suspect[w.ID] || l.moved[w.Source.Docker] && w.Source.Docker != "" ||
		l.untold && w.Source.Kind != state.SourceDocker
}

// forget gives up the attachment of a container that was removed: its address is free.
func (l *loop) forget(ctx context.Context, w state.Attach) []string {
	if _, err := l.agent.c.Mesh.Do(ctx, state.Detach{ID: w.ID}); err != nil {
		l.suspect[w.ID] = true
		return []string{fmt.Sprintf("give up container %s, which was removed: %v", w.Container, err)}
	}
	l.agent.c.Log.Info("container was removed", "endpoint", w.ID, "container", w.Container)
	return nil
}

func (l *loop) open(ctx context.Context, s state.Source) (plan.Sandbox, error) {
	if s.Kind == state.SourceHost {
		return plan.Sandbox{Host: true}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, openMax)
	defer cancel()
	return l.agent.c.Sandboxes.Open(ctx, s)
}

// report tells the mesh that a container's sandbox went or came back.
func (l *loop) report(ctx context.Context, w state.Attach, down bool) []string {
	if _, err := l.agent.c.Mesh.Do(ctx, state.Report{ID: w.ID, Down: down}); err != nil {
		return []string{fmt.Sprintf("report container %s: %v", w.Container, err)}
	}
	what := "container is back"
	if down {
		what = "container is gone"
	}
	kind := "back"
	if down {
		kind = "gone"
	}
	l.agent.events.add(kind, "container "+w.Container, "", "")
	l.agent.c.Log.Info(what, "endpoint", w.ID, "container", w.Container)
	return nil
}

// apply makes the host equal to the view, links first, and returns what could not be done. A failed
// step does not stop the others.
func (l *loop) apply(ctx context.Context, view *state.View) (faults []string) {
	ctx, cancel := context.WithTimeout(ctx, applyMax)
	defer cancel()
	c := &l.agent.c
	began := time.Now()
	last := l.host
	l.host = plan.For(last, view, l.facts())
	l.host.CheckSince(last)
	steps, links, linkErr := c.Links.Apply(ctx, l.host)
	if linkErr != nil {
		faults = append(faults, "links: "+linkErr.Error())
	}
	if l.host.FastPath { // its twins are the switch's ports
		fastSteps, err := l.fast(ctx)
		steps, faults = append(steps, fastSteps...), append(faults, err...)
	} else if err := c.Fast.Yield(ctx); err != nil {
		c.Log.Warn("packets may be lost while the fast path goes", "err", err)
	}
	switchSteps, bridge, switchErr := c.Switch.Apply(ctx, l.host)
	if switchErr != nil {
		faults = append(faults, "switch: "+switchErr.Error())
	}
	steps = append(steps, switchSteps...)
	if l.host.Trunk != "" { // the switch may have made that device just now
		fastSteps, err := l.fast(ctx)
		steps, faults = append(steps, fastSteps...), append(faults, err...)
	}
	if !l.host.FastPath && switchErr == nil { // else the switch may still need the twins
		fastSteps, err := l.fast(ctx)
		steps, faults = append(steps, fastSteps...), append(faults, err...)
	}
	if l.cause != "" {
		l.agent.repaired(steps, l.cause)
	}
	for _, s := range steps {
		c.Log.Debug("changed the host", "step", s.String())
	}
	if n := len(steps); n > 0 {
		c.Log.Debug("applied", "steps", n, "version", view.Version(), "took", time.Since(began))
	}
	if linkErr == nil || links.IfNames != nil {
		l.found.IfNames = links.IfNames
	}
	if switchErr == nil || bridge.Ports != nil {
		l.found.Ports, l.found.Tunnels, l.found.Devices = bridge.Ports, bridge.Tunnels, bridge.Devices
		l.found.Gateway, l.found.Features = bridge.Gateway, bridge.Features
	}
	if len(faults) == 0 && !l.stable(view) {
		faults = append(faults, "the switch gave other port numbers than planned; planning again")
	}
	return append(faults, l.lose(ctx, view, links.Gone)...)
}

// fast applies the fast path. One that cannot be made is given up until the daemon starts anew: what it
// ought to hand to the switch would be lost.
func (l *loop) fast(ctx context.Context) ([]plan.Step, []string) {
	steps, _, err := l.agent.c.Fast.Apply(ctx, l.host)
	if err == nil {
		l.missed = 0
		return steps, nil
	}
	if l.missed++; l.host.FastPath && l.missed >= missedMax && l.slow == "" {
		l.slow = "it could not be made: " + err.Error()
		l.agent.c.Log.Error("fast path is given up; packets go through the switch until the daemon is started anew", "err", err)
	}
	return steps, []string{"fast path: " + err.Error()}
}

// stable reports whether what was found leaves the plan that was applied as it is.
func (l *loop) stable(view *state.View) bool {
	next := plan.For(l.host, view, l.facts())
	return reflect.DeepEqual(next.Networks, l.host.Networks) && reflect.DeepEqual(next.Tunnels, l.host.Tunnels) &&
		reflect.DeepEqual(next.Gateway, l.host.Gateway)
}

// lose tells the mesh of sandboxes that were not there any more when a link was to be put in. They
// are looked up again at the next turn of the clock.
func (l *loop) lose(ctx context.Context, view *state.View, gone []state.EndpointID) (faults []string) {
	for _, w := range l.agent.c.Mesh.Wishes() {
		if !slices.Contains(gone, w.ID) {
			continue
		}
		delete(l.sandboxes, w.ID)
		l.gone[w.ID], l.suspect[w.ID] = true, true
		if e, attached := view.Endpoint(w.ID); attached && !e.Down {
			faults = append(faults, l.report(ctx, w, true)...)
		}
	}
	return faults
}

// facts is what the plan has to know of the host now.
func (l *loop) facts() plan.Facts {
	c := &l.agent.c
	names, given := map[state.EndpointID]string{}, map[state.EndpointID]string{}
	own := map[state.EndpointID]bool{}
	for _, w := range c.Mesh.Wishes() {
		if w.IfName != "" {
			names[w.ID] = w.IfName
		} else if g := cmp.Or(l.found.IfNames[w.ID], w.Given); g != "" {
			given[w.ID] = g
		}
		if w.NoDefaultRoute {
			own[w.ID] = true
		}
	}
	choice := c.Choice
	choice.FastPath = choice.FastPath && l.slow == ""
	return plan.Facts{
		Self:      c.Mesh.Self(),
		Choice:    choice,
		Underlay:  c.Underlay,
		Sandboxes: l.sandboxes,
		IfNames:   names,
		Given:     given,
		NoDefault: own,
		Found:     l.found,
	}
}
