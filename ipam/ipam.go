package ipam

import (
	"net/netip"
	"time"

	"meshnet/state"
)

// Machine decides who may use which address: blocks owned by one node each, handed on by their
// owner, and the allocations inside this node's own. A step machine: no clock, no I/O. Not safe for
// concurrent use.
type Machine struct{ todo struct{} }

// Config is what a machine is born with.
type Config struct {
	Self    state.NodeID
	Records []Record // what was logged before, in order
}

// New returns a machine with what was logged before.
func New(c Config) *Machine { panic("todo") }

// Step tells the machine what happened and returns what to do, in the order of the fields of
// [Effects]. now never goes back within one machine.
func (m *Machine) Step(now time.Duration, ev Event) Effects { panic("todo") }

// Event is something that happened.
type Event interface{ event() }

// Want asks for an address for an attachment whose ID is set. It is answered by exactly one Answer
// with the same ID, at once or later.
type Want struct {
	Wish state.Attach
	At   int64 // seconds since 1970, for the record
}

// GiveUp ends a Want that nobody waits for any more; it is not answered.
type GiveUp struct{ ID state.EndpointID }

// Free gives an allocation back: the attachment is gone for good.
type Free struct {
	Endpoint state.EndpointID
	Alloc    uint64
}

// Saw tells of a new view.
type Saw struct{ View *state.View }

// Members tells who answers now, this node excluded.
type Members struct{ Alive []state.NodeID }

// Settled tells that the discovery window is over: roots may be taken.
type Settled struct{ At int64 }

// Founded tells that a network was created on this node: it is the network's first owner.
type Founded struct {
	Network state.NetworkID
	At      int64
}

// Msg is what another node's machine sent.
type Msg struct {
	From state.NodeID
	Body []byte // not kept
}

// Stored tells that the log up to Mark is synced.
type Stored struct{ Mark uint64 }

// Tick lets time pass; wanted at least at [Effects.Next].
type Tick struct{}

// Effects is what a step asks for: Changes and Log first, synced if Sync; only then Send and Done.
type Effects struct {
	Changes []state.Change
	Log     []Record
	Sync    bool
	Send    []Envelope
	Done    []Answer
	// Next is when to Tick at the latest; zero: no need.
	Next time.Duration
}

// Record is one line of the machine's log, opaque to who writes it.
type Record []byte

// Envelope is a message to another node's machine.
type Envelope struct {
	To   state.NodeID
	Body []byte
}

// Answer ends a Want.
type Answer struct {
	ID    state.EndpointID
	Addr  netip.Addr
	Alloc uint64
	Err   error // for people; wraps a sentinel of package state
}
