package agent

import (
	"context"
	"iter"
	"os"

	"meshnet/plan"
	"meshnet/state"
)

// Mesh is the agreed state and the way to change it. Implemented by mesh.Node and by a model.
type Mesh interface {
	// Do carries out a wish. It is durable on this host when Do returns.
	Do(context.Context, state.Wish) (state.Outcome, error)
	View() *state.View
	// Watch yields views until ctx ends. It misses versions, never the last.
	Watch(context.Context) iter.Seq[*state.View]
	// Wishes returns the attachments this host was asked for, also after a restart, in the order of
	// their endpoint ids.
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
	Self() state.NodeID
}

// Applier makes one kind of thing on the host equal to the plan. Implemented by ovs.Switch,
// netns.Links and by models. Apply is called by one goroutine.
type Applier interface {
	// Run keeps what Apply needs (connections, processes) until ctx ends.
	Run(context.Context) error
	// Apply starts from what is, changes the difference and returns what it did and saw, also when
	// some of it failed.
	Apply(context.Context, *plan.Host) ([]plan.Step, plan.Found, error)
	// Drift delivers when the host may no longer be what Apply left.
	Drift() <-chan struct{}
}

// Sandboxes finds the network namespaces of containers.
type Sandboxes interface {
	// Resolve turns what a person typed into a container's name and where its namespace comes from.
	// Docker is asked first, then /run/netns.
	Resolve(ctx context.Context, name string) (state.Source, string, error)
	// Hold takes an open namespace that the command line handed over and describes it.
	Hold(ns *os.File, s state.Source) (state.Source, error)
	// Open finds the namespace of a source as it is now; [ErrGone] if it is not there.
	Open(context.Context, state.Source) (plan.Sandbox, error)
}
