package gossip

import (
	"slices"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

// Doc is the document that is kept equal with other members'. Implemented by state.Doc.
type Doc interface {
	Merge(state.In) state.Out
	Digest() [16]byte
	Buckets() (nodes [32]uint64, shared uint64)
	Heads(bucket int) []crdt.Head
	Gaps() []crdt.Head
	Missing(heads []crdt.Head, limit int) (out state.Out, more bool)
	Shared() crdt.Delta
}

// Config is what a machine is born with.
type Config struct {
	Self state.NodeID
	Doc  Doc
	// Seed chooses with whom and when digests are compared. Nodes should have different ones.
	Seed uint64
	// Flat is up to how many members, this one included, news goes from its writer to everybody; in
	// a larger mesh it goes down trees. 0: 64.
	Flat int
}

const (
	flatDefault = 64
	buckets     = 32
	allBuckets  = 1<<buckets - 1
	// answerPackets is up to how many packets an answer is sent as packets, not as a stream.
	answerPackets = 4
	// greetMax is with how many peers documents are compared at once when members appear.
	greetMax = 3
	// heldMax is how many own writes of different keys wait; with more of them all are left to the
	// digests.
	heldMax = 4096

	// pushPause is how long own news waits for more after some was pushed.
	pushPause   = 2 * time.Millisecond
	gapDelay    = 30 * time.Millisecond
	gapDelayMax = time.Second
	greetDelay  = 100 * time.Millisecond
	greetTries  = 5
	idleDelay   = time.Second
)

// soonDelays is when after news documents are compared: with the next member by id, where what a push
// lost is found by whoever comes before the loser; with the member before, unless that one has shown
// meanwhile that it has the same; and, then too, with any.
var soonDelays = [...]time.Duration{20 * time.Millisecond, 60 * time.Millisecond, 140 * time.Millisecond}

// soonSpread is up to how much later a member compares, by its id, so that not all are busy at once when
// the next news comes.
const soonSpread = 5 * time.Millisecond

// Event is something that happened.
type Event interface{ event() }

// Local tells of what this node changed. It is logged already.
type Local struct{ Out state.Out }

// Packet is a message of another member's machine. Body is not kept.
type Packet struct {
	From state.NodeID
	Body []byte
}

// Members tells who is alive, this node excluded. Alive is not kept.
type Members struct{ Alive []state.NodeID }

// Hint is the first half of a member's digest, heard by the way.
type Hint struct {
	From   state.NodeID
	Digest [8]byte
}

// Tick lets time pass; wanted at [Machine.Next].
type Tick struct{}

func (Local) event()   {}
func (Packet) event()  {}
func (Members) event() {}
func (Hint) event()    {}
func (Tick) event()    {}

// Action is something to do, in the order returned.
type Action interface{ action() }

// Send sends a message of at most [PacketMax] bytes; it may get lost.
type Send struct {
	To   state.NodeID
	Body []byte
}

// Stream sends a message of any size reliably.
type Stream struct {
	To   state.NodeID
	Body []byte
}

// News is what the document learnt. It is to be logged before what follows it is sent.
type News struct{ Out state.Out }

// Agreed tells that a member had our digest a moment ago.
type Agreed struct{ With state.NodeID }

func (Send) action()   {}
func (Stream) action() {}
func (News) action()   {}
func (Agreed) action() {}

// Counters count since the machine was made.
type Counters struct {
	Pushed    uint64 // messages of own news
	Relayed   uint64 // messages of others' news
	Held      uint64 // own writes that waited for a moment, or for the rate of pushes
	Coalesced uint64 // own writes not sent because a later one of the same key says it all
	Digests   uint64 // digests sent
	Differing uint64 // digests received that differ from the own
	Pulls     uint64 // wants sent because of a gap
	Answers   uint64 // answers sent, in messages
	Dropped   uint64 // messages and own writes not sent because a rate or a bound was exceeded
	Unknown   uint64 // messages received of an unknown version or kind
	Malformed uint64 // messages received that do not decode
}

// Machine is one member's share in keeping all documents equal.
type Machine struct {
	self  state.NodeID
	doc   Doc
	flat  int
	rand  uint64
	count Counters

	members []state.NodeID // alive, ascending, without self
	// kids caches children by origin until members change.
	kids map[state.NodeID][]state.NodeID
	// greet holds the new members whose documents were not yet seen equal.
	greet map[state.NodeID]greeting

	soon     [len(soonDelays)]time.Duration // when to compare after news; 0: not planned
	idle     time.Duration                  // when to compare in any case
	gap      time.Duration                  // when to pull what gaps lack; 0: no gap
	gapDelay time.Duration

	// held is own news that waits for the rate of pushes, or for more news.
	held   state.Out
	need   float64       // how many messages it takes, if that is known
	pushed time.Duration // when own news was pushed last

	pushes, relays, answers, greets, compares bucket
	now                                       time.Duration
	acts                                      []Action
}

type greeting struct {
	at    time.Duration
	tries int
}

// New returns a machine that has no members yet.
func New(c Config) *Machine {
	if c.Flat == 0 {
		c.Flat = flatDefault
	}
	return &Machine{
		self: c.Self, doc: c.Doc, flat: c.Flat, rand: mix(c.Seed) ^ uint64(c.Self),
		kids:     map[state.NodeID][]state.NodeID{},
		greet:    map[state.NodeID]greeting{},
		pushes:   bucket{rate: 20_000, burst: 20_000, level: 20_000},
		pushed:   -pushPause,
		compares: bucket{rate: 50, burst: 25, level: 25},
		greets:   bucket{rate: greetMax, burst: greetMax, level: greetMax},
		relays:   bucket{rate: 20_000, burst: 10_000, level: 10_000},
		answers:  bucket{rate: 10 << 20, burst: 4 << 20, level: 4 << 20},
	}
}

// Counters returns what was counted.
func (m *Machine) Counters() Counters { return m.count }

// Step tells the machine what happened and returns what to do. now never goes back.
func (m *Machine) Step(now time.Duration, ev Event) []Action {
	m.now, m.acts = now, nil
	switch ev := ev.(type) {
	case Local:
		if !ev.Out.Empty() {
			m.tell(ev.Out)
			m.planSoon()
		}
	case Packet:
		m.receive(ev.From, ev.Body)
	case Members:
		m.meet(ev.Alive)
	case Hint:
		if d := m.doc.Digest(); ev.Digest != [8]byte(d[:8]) && m.isMember(ev.From) {
			m.sendDigest(ev.From, 0)
		}
	case Tick:
		m.tick()
	}
	return m.acts
}

// Next returns when to Tick at the latest; zero: no need.
func (m *Machine) Next() time.Duration {
	if len(m.members) == 0 {
		return 0
	}
	next := m.idle
	for _, at := range m.soon {
		if at != 0 {
			next = min(next, at)
		}
	}
	if m.gap != 0 {
		next = min(next, m.gap)
	}
	for _, g := range m.greet {
		next = min(next, g.at)
	}
	if !m.held.Empty() {
		next = min(next, max(m.pushes.when(m.need), m.pushed+pushPause))
	}
	return next
}

// meet takes in who is alive and greets who was not before.
func (m *Machine) meet(alive []state.NodeID) {
	was := m.members
	m.members = slices.Clone(alive)
	slices.Sort(m.members)
	m.members = slices.DeleteFunc(slices.Compact(m.members), func(n state.NodeID) bool { return n == m.self })
	m.kids = map[state.NodeID][]state.NodeID{}
	if len(was) == 0 {
		m.idle = m.now + m.jitter(idleDelay)
	}
	for id := range m.greet {
		if !m.isMember(id) {
			delete(m.greet, id)
		}
	}
	// A newcomer is greeted by three of those who were there, and greets three of those it found.
	all := append(slices.Clone(m.members), m.self)
	var fresh, mine []state.NodeID
	for _, id := range m.members {
		if _, old := slices.BinarySearch(was, id); old {
			continue
		}
		fresh = append(fresh, id)
		if slices.Contains(greeters(id, all, greetMax), m.self) {
			mine = append(mine, id)
		}
	}
	if len(mine) > greetMax {
		mine = mine[:greetMax]
	}
	for _, id := range greeters(m.self, fresh, greetMax) {
		if m.greets.take(m.now, 1) {
			mine = append(mine, id)
		}
	}
	slices.Sort(mine)
	for _, id := range slices.Compact(mine) {
		m.greet[id] = greeting{m.now + greetDelay, 1}
		m.sendDigest(id, flagReply)
	}
}

func (m *Machine) isMember(id state.NodeID) bool {
	_, ok := slices.BinarySearch(m.members, id)
	return ok
}

// tell pushes own news, or holds it where some was pushed a moment ago or the rate is exceeded; meanwhile later writes of a key take
// the place of earlier ones.
func (m *Machine) tell(out state.Out) {
	if m.held.Empty() && m.now >= m.pushed+pushPause {
		to := m.receivers(m.self)
		if len(to) == 0 {
			return // who comes compares documents
		}
		parts := state.Encode(out, pushMax)
		if m.pushes.take(m.now, min(float64(len(to)*len(parts)), m.pushes.burst)) {
			m.push(m.self, m.self, to, parts)
			m.pushed = m.now
			return
		}
	}
	m.count.Held += uint64(len(out.Ops))
	m.held.Ops = append(m.held.Ops, out.Ops...)
	m.held.Shared = append(m.held.Shared, out.Shared...)
	if len(m.held.Ops)+len(m.held.Shared) < 2*heldMax {
		return
	}
	m.coalesce()
	if n := len(m.held.Ops) + len(m.held.Shared); n > heldMax {
		m.count.Dropped += uint64(n)
		m.held, m.need = state.Out{}, 0
	}
}

// coalesce drops held writes that later ones of the same key overwrite.
func (m *Machine) coalesce() {
	n := len(m.held.Ops)
	m.held.Ops = crdt.Coalesce(m.held.Ops)
	m.count.Coalesced += uint64(n - len(m.held.Ops))
}

// release pushes what was held, once the rate allows it.
func (m *Machine) release() {
	if m.held.Empty() || m.now < m.pushed+pushPause || m.now < m.pushes.when(m.need) {
		return
	}
	m.coalesce()
	to, parts := m.receivers(m.self), state.Encode(m.held, pushMax)
	m.need = min(float64(len(to)*len(parts)), m.pushes.burst)
	if !m.pushes.take(m.now, m.need) {
		return
	}
	m.push(m.self, m.self, to, parts)
	m.held, m.need, m.pushed = state.Out{}, 0, m.now
}

// receivers returns to whom this node sends what origin made.
func (m *Machine) receivers(origin state.NodeID) []state.NodeID {
	if len(m.members)+1 <= m.flat {
		if origin == m.self {
			return m.members
		}
		return nil
	}
	kids, ok := m.kids[origin]
	if !ok {
		kids = children(m.self, origin, m.members)
		m.kids[origin] = kids
	}
	return kids
}

// pass passes on news that came from another.
func (m *Machine) pass(origin, from state.NodeID, news state.Out) {
	if to := m.receivers(origin); len(to) > 0 {
		m.push(origin, from, to, state.Encode(news, pushMax))
	}
}

// push sends encoded news that origin made, but not back to from.
func (m *Machine) push(origin, from state.NodeID, to []state.NodeID, parts [][]byte) {
	for _, body := range parts {
		body = encodePush(origin, body)
		for _, id := range to {
			switch {
			case id == from || id == origin:
			case origin == m.self:
				m.count.Pushed++
				m.send(id, body)
			case m.relays.take(m.now, 1):
				m.count.Relayed++
				m.send(id, body)
			default:
				m.count.Dropped++
			}
		}
	}
}

// send chooses the way by size. The body may be shared between sends; nobody writes to it.
func (m *Machine) send(to state.NodeID, body []byte) {
	if len(body) > PacketMax {
		m.acts = append(m.acts, Stream{to, body})
		return
	}
	m.acts = append(m.acts, Send{to, body})
}

// tick does what is due.
func (m *Machine) tick() {
	if len(m.members) == 0 {
		return
	}
	m.release()
	for i, at := range m.soon {
		if at != 0 && at <= m.now {
			m.soon[i] = 0
			m.compareSoon(i)
		}
	}
	if m.idle <= m.now {
		m.idle = m.now + m.jitter(idleDelay)
		m.sendDigest(m.anyMember(), 0)
	}
	for _, id := range m.members {
		g, ok := m.greet[id]
		if !ok || g.at > m.now {
			continue
		}
		if g.tries == greetTries {
			delete(m.greet, id)
			continue
		}
		m.greet[id] = greeting{m.now + greetDelay<<g.tries, g.tries + 1}
		m.sendDigest(id, flagReply)
	}
	if m.gap != 0 && m.gap <= m.now {
		m.pullGaps()
	}
}

// compareSoon does one of the comparisons after news.
func (m *Machine) compareSoon(round int) {
	switch round {
	case 0:
		m.sendDigest(m.neighbour(1), 0)
	case 1:
		m.sendDigest(m.neighbour(-1), 0)
	default:
		m.sendDigest(m.anyMember(), 0)
	}
}

// neighbour returns the next member by id, or with -1 the one before, around the ring. It needs a
// member.
func (m *Machine) neighbour(step int) state.NodeID {
	at, _ := slices.BinarySearch(m.members, m.self)
	if step < 0 {
		at += len(m.members) - 1
	}
	return m.members[at%len(m.members)]
}

// pullGaps asks for ops below those that are known: each writer itself where it is alive, some other
// member for the rest and in every second round, since the way from a writer may be the fault.
func (m *Machine) pullGaps() {
	gaps := m.doc.Gaps()
	if len(gaps) == 0 {
		m.gap = 0
		return
	}
	direct := m.gapDelay == gapDelay
	var rest []crdt.Head
	for _, g := range gaps {
		if direct && m.isMember(g.Node) {
			m.count.Pulls++
			m.send(g.Node, wantMsg{0, []crdt.Head{g}}.encode())
		} else {
			rest = append(rest, g)
		}
	}
	if len(rest) > 0 {
		m.count.Pulls++
		m.send(m.anyMember(), wantMsg{0, rest}.encode())
	}
	m.gapDelay = min(2*m.gapDelay, gapDelayMax)
	m.gap = m.now + m.gapDelay
}

// vouched drops the comparisons after the first: the member before has shown that it has the same.
func (m *Machine) vouched() { clear(m.soon[1:]) }

// planSoon compares documents shortly after news. What is planned already serves this news too.
func (m *Machine) planSoon() {
	spread := time.Duration(mix(uint64(m.self)) % uint64(soonSpread))
	for i, d := range soonDelays {
		if m.soon[i] == 0 {
			m.soon[i] = m.now + d + spread
		}
	}
}

func (m *Machine) sendDigest(to state.NodeID, flags byte) {
	m.count.Digests++
	m.send(to, digestMsg{flags, m.doc.Digest()}.encode())
}

// anyMember needs a member.
func (m *Machine) anyMember() state.NodeID {
	return m.members[m.next()%uint64(len(m.members))]
}

// jitter returns d ± 25 %.
func (m *Machine) jitter(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(m.next()%uint64(d/2))
}

// next is SplitMix64.
func (m *Machine) next() uint64 {
	m.rand += 0x9e3779b97f4a7c15
	return mix(m.rand)
}

// bucket is a token bucket.
type bucket struct {
	rate, burst, level float64 // tokens a second, tokens, tokens
	at                 time.Duration
}

func (b *bucket) take(now time.Duration, n float64) bool {
	b.level = min(b.burst, b.level+b.rate*(now-b.at).Seconds())
	b.at = now
	if b.level < n {
		return false
	}
	b.level -= n
	return true
}

// when returns from when on n tokens can be taken.
func (b *bucket) when(n float64) time.Duration {
	if n <= b.level {
		return b.at
	}
	return b.at + time.Duration((n-b.level)/b.rate*float64(time.Second)) + 1
}
