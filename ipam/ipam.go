package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

// Machine decides who may use which address: blocks owned by one node each, handed on by their
// owner, and the allocations inside this node's own. A step machine: no clock, no I/O. Not safe for
// concurrent use.
type Machine struct {
	self  state.NodeID
	epoch crdt.Epoch

	// What the log says.
	born      crdt.Epoch                  // in which epoch the log begins; 0: it has not
	met       map[state.NodeID]crdt.Epoch // who exists, and the latest epoch that mattered; 0: not known
	metBy     map[state.NodeID]bool       // who has stored that this node exists
	lost      map[state.NodeID]loss       // who was given up
	witnessed map[witnessKey]state.Block
	lastAlloc uint64

	nets  map[state.NetworkID]*network
	order []state.NetworkID // of nets, ascending

	view      *state.View
	alive     []state.NodeID // ascending, known to the view or not
	settled   bool
	settledAt int64         // seconds since 1970
	settledIn time.Duration // the machine's time then
	leaving   bool
	// resumed: the log is of a run before. What it says may be an older copy, or given up by others,
	// which they will say in a moment.
	resumed bool
	// lossMark counts the changes of lost and met.
	lossMark uint64
	meets    request // for metBy

	quarantine time.Duration
	off        guard // what tests switch off

	started bool
	now     time.Duration
	seq     uint64 // of the last request
	out     Effects
	entries []entry // of this step
}

// Config is what a machine is born with.
type Config struct {
	Self state.NodeID
	// Epoch is this node's epoch at start. A later one is learnt from this node's own record.
	Epoch crdt.Epoch
	// Quarantine is how long the addresses of a node that was given up rest before they are
	// inherited. 0: 10 minutes.
	Quarantine time.Duration
	// Records is what was logged before, in order. All of the log must be synced by now: a daemon
	// that was killed left writes that it had not synced, and from here on they are told.
	Records []Record
}

// New returns a machine with what was logged before. Records that it cannot read are left out: what
// a log holds is checked by who keeps it.
func New(c Config) *Machine {
	m := &Machine{
		self:      c.Self,
		epoch:     c.Epoch,
		met:       map[state.NodeID]crdt.Epoch{},
		metBy:     map[state.NodeID]bool{},
		lost:      map[state.NodeID]loss{},
		witnessed: map[witnessKey]state.Block{},
		nets:      map[state.NetworkID]*network{},

		quarantine: cmp.Or(c.Quarantine, quarantineDefault),
	}
	for _, r := range c.Records {
		es, err := decodeRecord(r)
		if err != nil {
			continue
		}
		for i := range es {
			m.replay(&es[i])
		}
	}
	m.resumed = m.born != 0
	return m
}

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

const (
	followDelay  = 5 * time.Millisecond
	followSpread = 12
	followLazily = 20
)

// Patience is how long a view may be unseen while nobody waits for an address: a delay, and up to
// followSpread more by the node's id, so that not all are busy when the next write comes. From
// containers that come and go hardly anything follows: of news that is nothing else (see
// [state.Out.OfEndpoints]) it is followLazily times as much.
func Patience(self state.NodeID, broad bool) time.Duration {
	d := followDelay * time.Duration(1+self%(followSpread+1))
	if !broad {
		d *= followLazily
	}
	return d
}

// Members tells who answers now, this node excluded.
type Members struct{ Alive []state.NodeID }

// Settled tells that the discovery window is over: roots may be taken.
type Settled struct{ At int64 }

// Founded tells that a network was created on this node: it is the network's first owner. Of a network
// that every node makes by itself, which is called [Default], that says nothing.
type Founded struct {
	Network state.NetworkID
	At      int64
}

// Msg is what another node's machine sent.
type Msg struct {
	From state.NodeID
	Body []byte // not kept
}

// Renewed tells that this node begins an epoch because its log is an older copy: what it promised and
// took since is not known.
type Renewed struct{ Epoch crdt.Epoch }

// Leave has the machine hand its blocks on. It gives out no more addresses; [Machine.Left] tells
// when nothing is left.
type Leave struct{}

// Tick lets time pass; wanted at least at [Effects.Next].
type Tick struct{}

func (Want) event()    {}
func (GiveUp) event()  {}
func (Free) event()    {}
func (Saw) event()     {}
func (Members) event() {}
func (Settled) event() {}
func (Founded) event() {}
func (Msg) event()     {}
func (Renewed) event() {}
func (Leave) event()   {}
func (Tick) event()    {}

// Effects is what a step asks for. Log is written before Changes, or in one piece with them, and
// all of it synced if Sync; only then are Changes told to others, Send sent and Done released. In
// the log a record is there whole or not at all.
type Effects struct {
	Changes []state.Change
	Log     []Record // at most one
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
	ID state.EndpointID // of the Want
	// Endpoint is what has the address: ID, or what the container was attached as before.
	Endpoint state.EndpointID
	Addr     netip.Addr
	Alloc    uint64
	Err      error // for people; wraps a sentinel of package state
}

// Step tells the machine what happened and returns what to do. now never goes back within one
// machine.
func (m *Machine) Step(now time.Duration, ev Event) Effects {
	m.now = now
	m.out, m.entries = Effects{}, nil
	m.start()
	switch ev := ev.(type) {
	case Want:
		m.want(ev)
	case GiveUp:
		m.giveUp(ev.ID)
	case Free:
		m.release(ev)
	case Saw:
		m.saw(ev.View)
	case Members:
		m.alive = slices.Clone(ev.Alive)
		slices.Sort(m.alive)
		m.alive = slices.DeleteFunc(slices.Compact(m.alive), func(n state.NodeID) bool { return n == m.self })
		for _, id := range m.alive {
			m.meet(id, 0)
		}
		m.meets = request{}
	case Renewed:
		m.write(entry{kind: entBorn, epoch: ev.Epoch})
		m.epoch = max(m.epoch, ev.Epoch)
		m.out.Sync = true
	case Leave:
		m.leaving = true
	case Settled:
		m.settled, m.settledAt, m.settledIn = true, ev.At, now
	case Founded:
		n := m.network(ev.Network)
		n.founded, n.foundedAt = true, ev.At
	case Msg:
		m.receive(ev)
	}
	m.introduce()
	for _, id := range m.order {
		m.work(m.nets[id])
	}
	if len(m.entries) > 0 {
		m.out.Log = []Record{encodeRecord(m.entries)}
	}
	return m.out
}

// start begins the log, synced before anything is told: from then on an offer to this epoch is not
// mistaken for one to a predecessor whose log was lost. Cooldowns that the log holds begin again.
func (m *Machine) start() {
	if m.started {
		return
	}
	m.started = true
	if m.born == 0 {
		m.write(entry{kind: entBorn, epoch: m.epoch})
		m.out.Sync = true
	}
	for id, l := range m.lost {
		l.heard = m.now
		m.lost[id] = l
	}
	for _, id := range m.order {
		n := m.nets[id]
		for i := range n.resting {
			n.resting[i].until = m.now + cooldown
		}
	}
}

// write makes an entry so, here and in the log.
func (m *Machine) write(e entry) {
	m.replay(&e)
	m.entries = append(m.entries, e)
}

// replay makes an entry so. It alone changes what the log holds, when it is written as when it is
// read.
func (m *Machine) replay(e *entry) {
	switch e.kind {
	case entBorn:
		m.born = e.epoch
	case entMet:
		m.met[e.node] = max(m.met[e.node], e.epoch)
		m.lossMark++
	case entMetBy:
		m.metBy[e.node] = true
	case entForget:
		m.replayForget(e)
	case entEstate:
		m.network(e.block.Network).bequeath(e.block)
	case entSettled:
		m.network(e.network).settle(e.node, e.prefix)
	case entPut:
		b := e.block
		b.Node = m.self
		n := m.network(b.Network)
		n.put(b)
		n.rooted = n.rooted || b.Kind == state.Own && b.Root.Creator == m.self
	case entRemove:
		m.network(e.network).remove(e.prefix)
	case entAlloc:
		n := m.network(e.endpoint.Network)
		if i, taken := n.allocation(e.endpoint.Addr); !taken {
			n.allocs = slices.Insert(n.allocs, i, e.endpoint)
		}
		n.resting = slices.DeleteFunc(n.resting, func(r rest) bool { return r.addr == e.endpoint.Addr })
		m.lastAlloc = max(m.lastAlloc, e.endpoint.Alloc)
		n.count()
	case entFree:
		n := m.network(e.network)
		i := slices.IndexFunc(n.allocs, func(a state.Endpoint) bool { return a.ID == e.id && a.Alloc == e.alloc })
		if i >= 0 {
			a := n.allocs[i]
			n.allocs = slices.Delete(n.allocs, i, i+1)
			n.resting = append(n.resting, rest{a.Addr, a.Container, m.now + cooldown})
			n.count()
		}
	case entWitness:
		if _, known := m.met[e.node]; !known {
			m.met[e.node] = 0
			m.lossMark++
		}
		m.witnessed[witnessKey{e.block.Network, e.node, e.block.Prefix}] = e.block
	case entDrop:
		n := m.network(e.network)
		n.blocks, n.resting, n.estate, n.stale = nil, nil, nil, true
	}
}

// network returns what is held of a network, from now on if nothing was.
func (m *Machine) network(id state.NetworkID) *network {
	if n, ok := m.nets[id]; ok {
		return n
	}
	n := &network{id: id, stale: true}
	m.nets[id] = n
	i, _ := slices.BinarySearch(m.order, id)
	m.order = slices.Insert(m.order, i, id)
	return n
}

// put writes a block record of this node.
func (m *Machine) put(b state.Block) {
	b.Node = m.self
	m.write(entry{kind: entPut, block: b})
	m.out.Changes = append(m.out.Changes, state.PutBlock{Block: b})
}

// remove removes a block record of this node.
func (m *Machine) remove(n *network, p netip.Prefix) {
	m.write(entry{kind: entRemove, network: n.id, prefix: p})
	m.out.Changes = append(m.out.Changes, state.RemoveBlock{Network: n.id, Prefix: p})
}

// wake asks for a Tick at t.
func (m *Machine) wake(t time.Duration) {
	if m.out.Next == 0 || t < m.out.Next {
		m.out.Next = t
	}
}

// work does what can be done on a network now.
func (m *Machine) work(n *network) {
	if n.view == nil || m.fenced() {
		return
	}
	m.tidy(n)
	m.takeRoot(n)
	m.takeOffers(n)
	m.confirm(n)
	m.inherit(n)
	m.rested(n)
	if m.leaving {
		m.depart(n)
		return
	}
	m.serve(n)
	m.reclaim(n)
	m.grow(n)
	m.giveBack(n)
}
