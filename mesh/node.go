package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"meshnet/ipam"
	"meshnet/mesh/gossip"
	"meshnet/state"
)

const (
	// drainMax is how many messages are taken in before what they changed is published.
	drainMax = 128
	// refreshMax bounds how often in a row a view may lead to a change that leads to a view.
	refreshMax = 64
	// rewantDelay is how long an attachment of before the start waits for its next try to get an
	// address.
	rewantDelay = 10 * time.Second
)

// errStopped: the node does not run any more.
var errStopped = errors.New("the daemon is stopping")

// Node is this host's member of the mesh. [New] makes one.
type Node struct {
	c       Config
	lock    *os.File
	self    state.NodeID
	made    time.Time
	members *members
	streams *streams

	poked   chan struct{}
	applied atomic.Uint64 // highest version that the host equals
	begun   chan struct{} // steps are taken
	ended   chan struct{}
	ready   chan struct{}
	shown   atomic.Pointer[shown]

	turn sync.Mutex
	// What follows belongs to who has the turn, see [Node.take].
	over   bool // no step is taken any more
	timer  *time.Timer
	start  time.Time
	store  *stored
	doc    *state.Doc
	ipam   *ipam.Machine
	gossip *gossip.Machine
	view   *state.View
	alive  []state.NodeID

	// What a step leaves to be done: first the records, then the rest.
	records  []record
	mine     bool // some of them are of this node's own making
	sync     bool
	outbox   []outgoing
	after    []reply
	heard    []state.Out // what others said, for the log
	stale    bool        // the view is to be made anew
	unseen   bool        // ipam has not seen it
	broad    bool        // what it has not seen is more than records of endpoints
	wishesOf bool        // the wishes changed
	fullness

	ipamNext time.Duration
	follow   time.Duration // when ipam sees the view; 0: it has
	window   time.Duration // when the discovery window ends
	settled  bool
	doubtful bool          // the log may be an older copy: no member has been compared with yet
	trustAt  time.Duration // when it is trusted without; 0: nobody met yet
	twin
	rewant  time.Duration
	wants   map[state.EndpointID]*want
	leaving *leaving
	acks
	silence
	asking map[uint64]*question
}

// outgoing is a message that waits for the log.
type outgoing struct {
	to   state.NodeID
	body []byte
}

// shown is what others may look at, immutable. next is closed when there is something newer.
type shown struct {
	view     *state.View
	wishes   []state.Attach
	pending  []string
	warnings []string
	next     chan struct{}
}

// New checks the configuration, locks the state directory and reads it. The node does nothing until
// [Node.Run], which also gives the directory back.
func New(c Config) (*Node, error) {
	c, err := c.check()
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(c.StateDir)
	if err != nil {
		return nil, err
	}
	s, err := openState(&c)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if c.Name == "" {
		c.Name = s.id.String()
	}
	c.Log = c.Log.With("node", s.id)
	n := &Node{
		c: c, lock: lock, self: s.id, made: time.Now(), store: s, doc: s.doc,
		members: newMembers(s.id, c.Name, s.epoch, c.Log),
		poked:   make(chan struct{}, 1),
		begun:   make(chan struct{}), ended: make(chan struct{}), ready: make(chan struct{}),
		ipam:   ipam.New(ipam.Config{Self: s.id, Epoch: s.epoch, Records: s.ipam, Quarantine: c.Quarantine}),
		gossip: gossip.New(gossip.Config{Self: s.id, Doc: s.doc, Seed: random64()}),
		wants:  map[state.EndpointID]*want{},
		acks:   newAcks(),
		asking: map[uint64]*question{},

		doubtful: s.resumed || s.damaged, silence: silence{before: s.heard},
		fullness: fullness{full: s.full, held: s.held, lossy: s.held},
	}
	for _, text := range s.notes {
		n.note(text)
	}
	n.view = n.doc.View()
	n.shown.Store(&shown{view: n.view, wishes: sortedWishes(s.wishes), next: make(chan struct{})})
	return n, nil
}

// Run takes part in the mesh until ctx ends, and returns nil then, or the fault that stopped it. All
// that it started has ended when it returns, but for what memberlist lets run out.
func (n *Node) Run(ctx context.Context) (err error) {
	n.start = time.Now()
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		cancel()
		close(n.ended)
		err = errors.Join(err, n.store.log.close(), n.lock.Close())
	}()
	if err := n.members.open(inner, &n.c); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	n.streams = newStreams(inner, n.c.Log, n.members.list.SendReliable)
	defer n.streams.wait()
	defer cancel()
	defer n.members.close()
	found := make(chan candidate, 64)
	r := n.rejoin(found)
	working, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { r.run(working) })
	if n.c.MDNS {
		d := n.discovery(found)
		wg.Go(func() { d.run(working) })
	}
	n.loop(ctx)
	return nil
}

// loop takes in what happens, until ctx ends. What people ask for is a step on their own goroutines,
// see [Node.call].
func (n *Node) loop(ctx context.Context) {
	n.timer = time.NewTimer(0)
	defer n.timer.Stop()
	n.take(n.begin)
	close(n.begun)
	for {
		select {
		case <-ctx.Done():
			n.turn.Lock()
			defer n.turn.Unlock()
			n.over = true
			n.flush()
			return
		case b := <-n.members.inbox:
			n.take(func() {
				n.receive(b)
				for i := 0; i < drainMax && len(n.members.inbox) > 0; i++ {
					n.receive(<-n.members.inbox)
				}
			})
		case <-n.members.changed:
			n.take(n.meet)
		case h := <-n.members.hints:
			n.take(func() { n.act(n.gossip.Step(n.now(), gossip.Hint{From: h.from, Digest: h.digest})) })
		case <-n.poked:
			n.take(n.acknowledge)
		case <-n.timer.C:
			n.take(n.tick)
		}
	}
}

// begin says who this node is and takes up what it was asked for before.
func (n *Node) begin() {
	n.stale = true
	n.nameSame()
	n.wishesOf = true
	if n.c.MDNS || len(n.c.Join) > 0 || len(n.view.Nodes()) > 1 {
		n.window = discoveryWindow
	}
	for _, node := range n.view.Nodes() {
		n.news[node.ID] = true // acknowledged once the host equals the first view
	}
	if n.full != nil {
		n.suspend(n.full)
	}
	if n.quiet() {
		return
	}
	n.introduce()
	n.refresh()
	n.takeUp()
	if n.window == 0 {
		n.settle() // nobody to look for
	}
}

// introduce writes this node's own record.
func (n *Node) introduce() {
	if e, gone := n.doc.View().Forgotten(n.self); gone && e >= n.doc.Epoch() {
		return // until it begins a new epoch
	}
	n.apply(state.PutNode{Node: state.Node{
		Name: n.c.Name, Addr: n.c.Addr, GossipPort: n.c.Port, TunnelPort: n.c.TunnelPort,
		Encap: n.c.Encap, Transport: n.c.Transport, MTU: n.c.MTU, Version: n.c.Version,
	}})
}

func (n *Node) now() time.Duration { return time.Since(n.start) }

// untilNext returns how long nothing is due.
func (n *Node) untilNext() time.Duration {
	next := n.now() + time.Hour
	for _, at := range []time.Duration{
		n.gossip.Next(), n.ipamNext, n.askNext, n.rewant, n.follow, n.blind, n.mendNext, n.twinNext, n.leaving.due(),
	} {
		if at != 0 {
			next = min(next, at)
		}
	}
	if !n.settled && !n.quiet() {
		next = min(next, n.window)
	}
	return max(0, next-n.now())
}

// tick does what is due.
func (n *Node) tick() {
	now := n.now()
	if at := n.gossip.Next(); at != 0 && at <= now {
		n.act(n.gossip.Step(now, gossip.Tick{}))
	}
	if n.ipamNext != 0 && n.ipamNext <= now {
		n.step(ipam.Tick{})
	}
	if !n.settled && n.window <= now {
		n.settle()
	}
	if n.askNext != 0 && n.askNext <= now {
		n.askAgain()
	}
	if n.rewant != 0 && n.rewant <= now {
		n.takeUp()
	}
	if n.mendNext != 0 && n.mendNext <= now {
		n.mend()
	}
	if n.twinNext != 0 && n.twinNext <= now {
		n.callTwins()
	}
	if n.blind != 0 && n.blind <= now {
		n.see()
	}
	n.takeLeave()
}

// receive takes in a message.
func (n *Node) receive(b []byte) {
	n.members.waiting.Add(-int64(len(b)))
	c, from, body, err := unframe(b)
	if err == nil && from == n.self && c == chanTwin {
		n.heardTwin(body)
		return
	}
	if err != nil || from == n.self || from == 0 {
		n.c.Log.Debug("message dropped", "peer", from, "err", err)
		return
	}
	n.wake()
	switch c {
	case chanGossip:
		n.act(n.gossip.Step(n.now(), gossip.Packet{From: from, Body: body}))
		n.checkEpoch()
	case chanIPAM:
		// What it holds may be an older copy, which others' heads show in a moment: until then
		// nothing is promised on its strength. Who asks asks again.
		if n.doubtful && (n.trustAt == 0 || n.now() < n.trustAt) {
			return
		}
		n.refresh() // it may be about what has just been said
		n.step(ipam.Msg{From: from, Body: body})
	case chanAck:
		n.onAck(from, body)
	case chanAckAsk:
		n.sendAck(from)
	case chanAsk:
		n.onAsk(from, body)
	case chanTell:
		n.onTell(from, body)
	case chanBye:
		n.members.left(from, string(body))
	}
}

// meet tells the machines who is alive now.
func (n *Node) meet() {
	was := n.alive
	n.alive = n.members.alive()
	n.nameSame()
	if n.twinNext == 0 && len(n.members.twins()) > 0 {
		n.callTwins()
	}
	if len(n.alive) > 0 {
		n.wake()
	}
	if n.trustAt == 0 && len(n.alive) > 0 {
		n.trustAt = n.now() + discoveryWindow
	}
	n.act(n.gossip.Step(n.now(), gossip.Members{Alive: n.alive}))
	n.refresh()
	n.step(ipam.Members{Alive: n.alive})
	n.checkWaiters()
	for _, id := range n.alive {
		if !slices.Contains(was, id) {
			n.c.Log.Info("peer is there", "peer", id)
		}
	}
	for _, id := range was {
		if !slices.Contains(n.alive, id) {
			n.c.Log.Info("peer is gone", "peer", id)
		}
	}
}

// act does what gossip asks for.
func (n *Node) act(as []gossip.Action) {
	for _, a := range as {
		switch a := a.(type) {
		case gossip.News:
			n.heardSomebody()
			n.learnt(a.Out)
		case gossip.Send:
			n.send(a.To, frame(chanGossip, n.self, a.Body))
		case gossip.Stream:
			n.send(a.To, frame(chanGossip, n.self, a.Body))
		case gossip.Agreed:
			n.doubtful = false
			n.heardSomebody()
			n.see()
			if !n.settled {
				n.settle()
			}
		}
	}
}

// learnt logs what others said and plans what follows from it.
func (n *Node) learnt(out state.Out) {
	n.heard = append(n.heard, out)
	n.stale = true
	n.broad = n.broad || !out.OfEndpoints()
	for i := range out.Ops {
		n.news[out.Ops[i].Node] = true
	}
	for i := range out.Patches {
		n.news[out.Patches[i].Node] = true
	}
}

// send queues a message until the log is written.
func (n *Node) send(to state.NodeID, body []byte) {
	n.outbox = append(n.outbox, outgoing{to, body})
}

// apply changes the document by what cannot be refused, and returns what it wrote.
func (n *Node) apply(cs ...state.Change) {
	if len(cs) == 0 {
		return
	}
	out, err := n.doc.Apply(cs...)
	if err == nil {
		n.tell(out)
		return
	}
	if len(cs) == 1 {
		n.c.Log.Warn("own record not written", "err", err)
		return
	}
	for _, c := range cs { // one refused does not stop the others
		n.apply(c)
	}
}

// tell logs what this node changed and tells others.
func (n *Node) tell(out state.Out) {
	if out.Empty() {
		return
	}
	n.keepRecords(stateRecords(out)...)
	n.stale = true
	n.broad = n.broad || !out.OfEndpoints()
	n.act(n.gossip.Step(n.now(), gossip.Local{Out: out}))
}

// step tells ipam what happened and does what it asks for. While this node may write
// nothing it is told nothing: [Node.resume] makes up for it.
func (n *Node) step(ev ipam.Event) {
	if n.quiet() {
		n.ipamNext = 0
		return
	}
	e := n.ipam.Step(n.now(), ev)
	for _, r := range e.Log {
		n.keepRecords(n.store.promise(r))
	}
	n.sync = n.sync || e.Sync
	n.apply(e.Changes...)
	for _, m := range e.Send {
		n.send(m.To, frame(chanIPAM, n.self, m.Body))
	}
	n.ipamNext = e.Next
	for _, a := range e.Done {
		n.answered(a)
	}
}

// look makes the view anew.
func (n *Node) look() {
	n.stale, n.unseen = false, true
	was := n.view.Nodes()
	n.view = n.doc.View()
	if !sameNodes(was, n.view.Nodes()) {
		n.nameSame()
	}
	if !n.mine {
		n.publish() // all it shows of this node's is logged; what others said comes again
	}
	n.noteHeads()
}

// current makes the view anew if need be. What follows from it waits, see [Node.commit].
func (n *Node) current() {
	if n.stale {
		n.look()
	}
}

// refresh makes the view anew until nothing follows from it any more.
func (n *Node) refresh() {
	for i := 0; (n.stale || n.unseen) && i < refreshMax; i++ {
		n.current()
		n.unseen = false
		if n.blind == 0 {
			n.step(ipam.Saw{View: n.view})
		}
		if !n.quiet() {
			n.obeyKills()
			n.checkEpoch()
		}
	}
}

// commit writes the log, then sends, shows and answers what waited for it. What is on its way to
// others does not wait for the view. What others said is shown at once; it is logged with whatever is
// said next, and what follows from it for addresses waits a moment, for more of it to come and for
// others to be served first, unless somebody waits for an address.
func (n *Node) commit() {
	n.deliver()
	if len(n.wants) == 0 && (n.unseen || len(n.heard) > 0) {
		now := n.now()
		if due := now + ipam.Patience(n.self, n.broad); n.follow == 0 || due < n.follow {
			n.follow = due
		}
		if now < n.follow {
			return
		}
	}
	n.follow, n.broad = 0, false
	n.refresh()
	n.flush()
	n.deliver()
}

// deliver sends, shows and answers, with what of it there is in the log before.
func (n *Node) deliver() {
	if n.mine || n.sync || len(n.outbox) > 0 || len(n.after) > 0 {
		n.flush()
	}
	if n.stale {
		n.look()
	} else {
		n.publish()
	}
	n.checkWaiters()
	after := n.after
	n.after = nil
	for _, r := range after {
		r.done()
	}
}

// keepRecords notes what this node makes so, for the log.
func (n *Node) keepRecords(rs ...record) {
	n.records = append(n.records, rs...)
	n.mine = true
}

// flush writes the log and sends what waited for it.
func (n *Node) flush() {
	if n.full == nil {
		for _, out := range n.heard {
			n.records = append(n.records, stateRecords(out)...)
		}
	} else if len(n.heard) > 0 {
		n.lossy = true // others have it
	}
	n.heard = nil
	n.write()
	large := func(m outgoing) bool { return len(m.body) > packetMax }
	for _, m := range n.outbox {
		if !large(m) {
			continue
		}
		for _, to := range n.members.targets(m.to) {
			n.streams.add(to.node, m.body)
		}
	}
	n.members.packets(slices.DeleteFunc(n.outbox, large))
	n.outbox = nil
}

// publish shows what changed.
func (n *Node) publish() {
	was := n.shown.Load()
	view, pending, warnings := n.view, n.pending(), n.warnings()
	if digest := n.view.Digest(); digest != *n.members.digest.Load() {
		changed := digest // made only here: most of what is published changes nothing
		n.members.digest.Store(&changed)
	}
	if n.blind != 0 {
		view = was.view
	}
	if view == was.view && !n.wishesOf && slices.Equal(pending, was.pending) && slices.Equal(warnings, was.warnings) {
		return
	}
	now := shown{view: view, wishes: was.wishes, pending: pending, warnings: warnings, next: make(chan struct{})}
	if n.wishesOf {
		now.wishes = sortedWishes(n.store.wishes)
		n.wishesOf = false
	}
	n.shown.Store(&now)
	close(was.next)
	if _, ok := n.view.ByName(defaultName); ok {
		select {
		case <-n.ready:
		default:
			close(n.ready)
		}
	}
}

// settle ends the discovery window: what is made once is made now, where nobody made it.
func (n *Node) settle() {
	if n.quiet() {
		return // once it may write
	}
	n.settled = true
	n.refresh()
	n.makeDefault()
	n.refresh()
	n.step(ipam.Settled{At: time.Now().Unix()})
}

func (n *Node) rejoin(found <-chan candidate) *rejoin {
	known, err := loadPeers(n.c.StateDir)
	if err != nil {
		n.c.Log.Warn("peers of before are not remembered", "err", err)
	}
	return &rejoin{
		remembered: known,
		remember:   func(peers []netip.AddrPort) error { return storePeers(n.c.StateDir, peers) },
		self:       candidate{n.self, netip.AddrPortFrom(n.c.Addr, n.c.Port)},
		seeds:      n.c.Join, port: n.c.Port, log: n.c.Log, found: found,
		nodes: n.lost, renamed: n.renamed(),
		alive: n.there, moved: n.members.moved,
		join: func(addr string) error {
			if _, err := n.members.list.Join([]string{addr}); err != nil {
				return fmt.Errorf("join: %w", err)
			}
			return nil
		},
	}
}

func (n *Node) discovery(found chan<- candidate) *discovery {
	return &discovery{
		self:    candidate{n.self, netip.AddrPortFrom(n.c.Addr, n.c.Port)},
		cluster: clusterHash(n.c.Cluster), iface: *n.c.Interface, log: n.c.Log, found: found, seeded: len(n.c.Join) > 0,
		alone: func() bool { return len(n.members.alive()) == 0 },
	}
}

// lost returns where the nodes are that the state names or that were members once.
func (n *Node) lost() map[state.NodeID]netip.AddrPort {
	v := n.View()
	nodes := map[state.NodeID]netip.AddrPort{}
	for id, p := range n.members.all() {
		if _, forgotten := v.Forgotten(id); !forgotten {
			nodes[id] = p.addr
		}
	}
	for _, node := range v.Nodes() {
		if node.Addr.IsValid() && node.GossipPort != 0 {
			nodes[node.ID] = netip.AddrPortFrom(node.Addr, node.GossipPort)
		}
	}
	return nodes
}

// renamed returns a function that reports whether [Node.lost] has others from the state than when it
// was called last.
func (n *Node) renamed() func() bool {
	var was []*state.Node
	return func() bool {
		now := n.View().Nodes()
		same := sameNodes(was, now)
		was = now
		return !same
	}
}

// sameNodes reports whether two views have the same nodes: the later one has the slice of the other then.
func sameNodes(a, b []*state.Node) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// there returns where the members are that are alive.
func (n *Node) there() map[state.NodeID]netip.AddrPort {
	nodes := map[state.NodeID]netip.AddrPort{}
	for id, p := range n.members.all() {
		if p.state == state.Alive {
			nodes[id] = p.addr
		}
	}
	for _, m := range n.members.twins() { // found on the link, it needs no try either
		if addr, ok := netip.AddrFromSlice(m.Addr); ok {
			nodes[n.self] = netip.AddrPortFrom(addr.Unmap(), m.Port)
		}
	}
	return nodes
}
