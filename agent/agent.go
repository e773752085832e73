package agent

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"os"
	"sync"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

// Mesh is the agreed state and the way to change it. Implemented by mesh.Node and by a model.
type Mesh interface {
	// Do carries out a wish. It is durable on this host when Do returns.
	Do(context.Context, state.Wish) (state.Outcome, error)
	View() *state.View
	// Watch yields views until ctx ends. It misses versions, never the last. The first one holds
	// all that this host knew when it was stopped.
	Watch(context.Context) iter.Seq[*state.View]
	// Wishes returns the attachments this host was asked for, also after a restart, in the order of
	// their endpoint ids. The caller must not write to the slice.
	Wishes() []state.Attach
	// Applied says that the host equals the view of that version; writers concerned are told.
	Applied(version uint64)
	// Reached waits until all reachable nodes with a member of the endpoint's network have said
	// that their host knows it, or ctx ends. It returns those that have not.
	Reached(context.Context, state.EndpointID) []state.NodeID
	Peers() []state.Peer
	// Agreeing asks all members for their digest now.
	Agreeing(context.Context) state.Agreement
	// Pending lists what the mesh still waits for, a clause each, for status.
	Pending() []string
	Warnings() []string
	// Lost returns the nodes that were given up, Quarantined the ranges of addresses that were theirs
	// and that nobody has inherited yet.
	Lost(context.Context) []state.Lost
	Quarantined(context.Context) []state.Quarantined
	Self() state.NodeID
}

// Applier makes one kind of thing on the host equal to the plan. Implemented by ovs.Switch,
// netns.Links, fastpath.Path and by models. Apply is called by one goroutine.
type Applier interface {
	// Run keeps what Apply needs (connections, processes) until ctx ends.
	Run(context.Context) error
	// Apply starts from what is, changes the difference and returns what it did and saw, also when
	// some of it failed. The maps and slices it returns are the caller's.
	Apply(context.Context, *plan.Host) ([]plan.Step, plan.Found, error)
	// Drift delivers when the host may no longer be what Apply left.
	Drift() <-chan struct{}
}

// Switch is the applier that numbers ports. Implemented by ovs.Switch and by a model.
type Switch interface {
	Applier
	// Found reads what is there without changing it: the first plan keeps the port numbers that
	// packets are going by.
	Found(context.Context) (plan.Found, error)
}

// FastPath is the applier of what passes the switch by. Implemented by fastpath.Path and by a model.
type FastPath interface {
	Applier
	// Yield makes devices ready to be ports of the switch, before a plan without a fast path is applied
	// to it. Until the fast path goes, it goes on.
	Yield(context.Context) error
}

// Sandboxes finds the network namespaces of containers.
type Sandboxes interface {
	// Resolve turns what a person typed into a container's name and where its namespace comes from.
	// Docker is asked first, then /run/netns.
	Resolve(ctx context.Context, name string) (state.Source, string, error)
	// Hold takes an open namespace that the command line handed over and describes it. The file
	// stays the caller's.
	Hold(ns *os.File, s state.Source) (state.Source, error)
	// Open finds the namespace of a source as it is now; [ErrGone] if it is not there, [ErrRemoved] if it
	// never will be again. Several may be looked up at once.
	Open(context.Context, state.Source) (plan.Sandbox, error)
	// Watch tells what happens to containers until ctx ends, one call at a time: each event, and that
	// anything may have happened whenever one may have been missed, also at first. tell does not block.
	Watch(ctx context.Context, tell func(Happening))
	// List returns all containers that an engine knows, running or not. Empty where there is no engine.
	List(context.Context) ([]Container, error)
	// Release tells a container whose first process waits for its interfaces (meshnet run) that they
	// are there or, with a reason, that they never will be. It returns when it was told or waits no
	// more.
	Release(ctx context.Context, box plan.Sandbox, why string) error
	// Warnings are for status: what cannot be found, and why.
	Warnings() []string
}

// Config is what an agent works with. All interfaces are required.
type Config struct {
	Mesh      Mesh
	Links     Applier  // veths, VXLAN devices, firewall; applied first
	Switch    Switch   // bridge, ports, flows
	Fast      FastPath // what passes the switch by, with the twins that are its ports then
	Sandboxes Sandboxes
	// Paths returns what probes through the tunnels say, for people; nil: there are none.
	Paths func() map[state.NodeID]state.Path
	// Traffic returns what went by the fast path and what did not, device by device; nil: it is not
	// counted.
	Traffic func() []plan.Traffic

	Choice   plan.Choice   // of switch and transport, made at start
	Underlay plan.Underlay // what carries gossip and tunnels
	Version  string        // of the program, for status
	Warnings []string      // found at start, for status

	Log *slog.Logger // required
}

// Agent is the loop and the door. [New] makes one.
type Agent struct {
	c     Config
	poked chan struct{} // wakes the loop; holds one
	// stirred wakes the loop for sandboxes that may have changed; labelled wakes who obeys labels.
	// Each holds one.
	stirred, labelled chan struct{}
	ready             chan struct{} // closed after the first pass without a failure
	once              sync.Once     // closes ready

	events ring

	mu   sync.Mutex
	seen seen
	// changed is closed and replaced whenever seen changes.
	changed chan struct{}
	// suspects are endpoints whose sandbox is to be looked up again; tickets counts how often that
	// was asked for.
	suspects []state.EndpointID
	tickets  uint64
	// busy has an entry for each container and network that a call of the door works on, closed
	// when it has ended.
	busy map[place]chan struct{}
	// hints are sandboxes that the door found for attachments it is making.
	hints map[state.EndpointID]plan.Sandbox
	// orphans are attachments that failed and could not be taken back yet.
	orphans map[state.EndpointID]bool
	// moved are the ids of containers to which something happened; the empty one stands for all.
	moved map[string]bool
	// happened waits for who obeys labels.
	happened []Happening
	// faults are the labels that cannot be obeyed now, by container id, a line each.
	faults map[string]string
}

// seen is what the loop last saw and did. Its maps and slices are replaced, never written to.
type seen struct {
	host      *plan.Host // applied, or nil
	applied   uint64     // version of the view that the host equals
	answered  uint64     // the last ticket for which sandboxes were looked up
	failing   []string   // what the last pass could not do, a line each
	sandboxes map[state.EndpointID]plan.Sandbox
	gone      map[state.EndpointID]bool
	ifNames   map[state.EndpointID]string
	slow      string // why the fast path was given up; empty: it was not
}

// New checks the configuration and returns an agent that does nothing until [Agent.Run].
func New(c Config) (*Agent, error) {
	if c.Mesh == nil || c.Links == nil || c.Switch == nil || c.Fast == nil || c.Sandboxes == nil || c.Log == nil {
		return nil, errors.New("make agent: mesh, links, switch, fast path, sandboxes and log are required")
	}
	return &Agent{
		c:        c,
		poked:    make(chan struct{}, 1),
		stirred:  make(chan struct{}, 1),
		labelled: make(chan struct{}, 1),
		ready:    make(chan struct{}),
		changed:  make(chan struct{}),
		busy:     map[place]chan struct{}{},
		orphans:  map[state.EndpointID]bool{},
		hints:    map[state.EndpointID]plan.Sandbox{},
		moved:    map[string]bool{},
		faults:   map[string]string{},
	}, nil
}

// Ready is closed once the host equalled the agreed state for the first time.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run keeps the host equal to the agreed state until ctx ends, and returns nil then. What is on the
// host stays.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer cancel()
	views := make(chan struct{}, 1)
	watcher.Go(func() {
		for range a.c.Mesh.Watch(ctx) {
			poke(views)
		}
	})
	select {
	case <-views: // before the first one the state may be emptier than what runs here
	case <-ctx.Done():
		return nil
	}
	watcher.Go(func() { a.watchContainers(ctx) })
	watcher.Go(func() { a.obeyLabels(ctx) })
	l := loop{agent: a, started: time.Now(), suspect: map[state.EndpointID]bool{}}
	l.run(ctx, views)
	return nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// publish changes what the loop shows and wakes who waits for it.
func (a *Agent) publish(change func(*seen)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.seen)
	close(a.changed)
	a.changed = make(chan struct{})
}

// look returns what the loop last saw, and a channel that is closed when that changes.
func (a *Agent) look() (seen, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen, a.changed
}
