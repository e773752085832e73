package mesh

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

const (
	// ackAskDelay is how long an ack may take before it is asked for.
	ackAskDelay = 100 * time.Millisecond
	// agreeMax bounds how long members are asked for their digest.
	agreeMax = 2 * time.Second
	// agreeAskDelay is after how long those that said nothing are asked again; agreeMoveDelay those
	// that said something else, since changes may have been under way; agreeTries how often.
	agreeAskDelay  = 100 * time.Millisecond
	agreeMoveDelay = 50 * time.Millisecond
	agreeTries     = 4
	// headsMax is how many heads are remembered until the host has applied them.
	headsMax = 4096
)

// acks is who has applied whose writes. An ack names the seq up to which a writer's ops are in the
// view that the acknowledging host equals.
type acks struct {
	news    map[state.NodeID]bool // writers since the view before
	heads   []headAt              // not applied yet, by version
	onHost  map[state.NodeID]crdt.Head
	told    map[state.NodeID]crdt.Head // of onHost, what was acknowledged
	got     map[state.NodeID]crdt.Head // of this node's writes, by who has them
	waiters map[*waiter]struct{}
	askNext time.Duration
}

// headAt is how far a writer is known in the views from a version on.
type headAt struct {
	version uint64
	head    crdt.Head
}

// waiter waits until a write is on the hosts of a network.
type waiter struct {
	endpoint state.EndpointID
	head     crdt.Head
	done     chan struct{}
}

func newAcks() acks {
	return acks{
		news:    map[state.NodeID]bool{},
		onHost:  map[state.NodeID]crdt.Head{},
		told:    map[state.NodeID]crdt.Head{},
		got:     map[state.NodeID]crdt.Head{},
		waiters: map[*waiter]struct{}{},
	}
}

// Applied says that the host equals the view of that version; writers concerned are told.
func (n *Node) Applied(version uint64) {
	for {
		old := n.applied.Load()
		if old >= version {
			return
		}
		if n.applied.CompareAndSwap(old, version) {
			break
		}
	}
	select {
	case n.poked <- struct{}{}:
	default:
	}
}

// head returns how far a node's map is known and shown.
func (n *Node) head(id state.NodeID) crdt.Head {
	for _, h := range n.doc.Heads(crdt.BucketOf(id)) {
		if h.Node == id {
			return h
		}
	}
	return crdt.Head{Node: id}
}

// noteHeads remembers which writes the view just made holds.
func (n *Node) noteHeads() {
	for id := range n.news {
		if id != n.self {
			n.heads = append(n.heads, headAt{n.view.Version(), n.head(id)})
		}
	}
	clear(n.news)
	if len(n.heads) <= headsMax {
		return
	}
	// The host is far behind: of each writer the last head will do.
	last := map[state.NodeID]int{}
	for i, h := range n.heads {
		last[h.head.Node] = i
	}
	kept := n.heads[:0]
	for i, h := range n.heads {
		if last[h.head.Node] == i {
			kept = append(kept, h)
		}
	}
	n.heads = kept
}

// acknowledge tells the members that share a network with this node what its host has of theirs.
func (n *Node) acknowledge() {
	version := n.applied.Load()
	done := 0
	for done < len(n.heads) && n.heads[done].version <= version {
		h := n.heads[done].head
		n.onHost[h.Node] = h
		done++
	}
	n.heads = slices.Delete(n.heads, 0, done)
	concerned := map[state.NodeID]bool{}
	for _, nw := range n.view.Networks() {
		if nw.HasMember(n.self) {
			for _, id := range nw.Members() {
				concerned[id] = true
			}
		}
	}
	for _, id := range n.alive {
		if h := n.onHost[id]; concerned[id] && h != n.told[id] {
			n.sendAck(id)
		}
	}
}

func (n *Node) sendAck(to state.NodeID) {
	h := n.onHost[to]
	n.told[to] = h
	n.send(to, frame(chanAck, n.self, encodeAck(h.Epoch, h.Seq)))
}

func (n *Node) onAck(from state.NodeID, body []byte) {
	epoch, seq, err := decodeAck(body)
	if err != nil {
		n.c.Log.Debug("message dropped", "peer", from, "err", err)
		return
	}
	if _, member := slices.BinarySearch(n.alive, from); member {
		n.got[from] = crdt.Head{Node: n.self, Epoch: epoch, Seq: seq}
	}
}

// laggards returns the members that are alive, have a member on the endpoint's network and have not
// said that their host has what the waiter waits for.
func (n *Node) laggards(w *waiter) []state.NodeID {
	e, ok := n.view.Endpoint(w.endpoint)
	if !ok {
		return nil
	}
	nw, ok := n.view.Network(e.Network)
	if !ok {
		return nil
	}
	var late []state.NodeID
	for _, id := range n.alive {
		h := n.got[id]
		has := h.Epoch > w.head.Epoch || h.Epoch == w.head.Epoch && h.Seq >= w.head.Seq
		if nw.HasMember(id) && !has {
			late = append(late, id)
		}
	}
	return late
}

// checkWaiters ends the waits that are over.
func (n *Node) checkWaiters() {
	for w := range n.waiters {
		if len(n.laggards(w)) == 0 {
			delete(n.waiters, w)
			close(w.done)
		}
	}
	if len(n.waiters) == 0 {
		n.askNext = 0
	}
}

// askAgain asks for the acks that are waited for: they or what they acknowledge got lost.
func (n *Node) askAgain() {
	ask := map[state.NodeID]bool{}
	for w := range n.waiters {
		for _, id := range n.laggards(w) {
			ask[id] = true
		}
	}
	for id := range ask {
		n.send(id, frame(chanAckAsk, n.self, nil))
	}
	n.askNext = n.now() + ackAskDelay
}

// Reached waits until all reachable nodes with a member of the endpoint's network have said that
// their host knows it, or ctx ends. It returns those that have not.
func (n *Node) Reached(ctx context.Context, id state.EndpointID) []state.NodeID {
	w := &waiter{endpoint: id, done: make(chan struct{})}
	err := n.call(ctx, func() {
		n.refresh()
		w.head = n.head(n.self)
		n.waiters[w] = struct{}{}
		if n.askNext == 0 {
			n.askNext = n.now() + ackAskDelay
		}
	})
	if err == nil {
		select {
		case <-w.done:
			return nil
		case <-n.ended:
			return nil
		case <-ctx.Done():
		}
	}
	var late []state.NodeID
	ask := func() {
		if _, waits := n.waiters[w]; waits || w.head == (crdt.Head{}) {
			late = n.laggards(w)
		}
		delete(n.waiters, w)
	}
	if err := n.call(context.WithoutCancel(ctx), ask); err != nil {
		return nil // stopping: nobody is waited for
	}
	return late
}

// question is a round of asking for digests.
type question struct {
	nonce uint64
	got   map[state.NodeID][16]byte
	heard chan struct{} // holds one
}

// Agreeing asks all members for their digest now.
func (n *Node) Agreeing(ctx context.Context) state.Agreement {
	ctx, cancel := context.WithTimeout(ctx, agreeMax)
	defer cancel()
	q := &question{random64(), map[state.NodeID][16]byte{}, make(chan struct{}, 1)}
	var a state.Agreement
	look := func() { n.refresh(); a = n.agreement(q) }
	defer func() {
		forget := func() { delete(n.asking, q.nonce) }
		if err := n.call(context.WithoutCancel(ctx), forget); err != nil {
			n.c.Log.Debug("stopped while members were asked", "err", err)
		}
	}()
	for try := 1; ; try++ {
		err := n.call(ctx, func() {
			look()
			n.asking[q.nonce] = q
			for _, id := range slices.Concat(a.Silent, a.Differ) {
				n.send(id, frame(chanAsk, n.self, binary.BigEndian.AppendUint64(nil, q.nonce)))
			}
		})
		if err != nil || a.Agreeing == a.Alive || len(a.Silent) == 0 && try > agreeTries {
			return a
		}
		wait, heard := agreeMoveDelay, (chan struct{})(nil)
		if len(a.Silent) > 0 {
			wait, heard = agreeAskDelay, q.heard
		}
		select {
		case <-heard:
		case <-time.After(wait):
		case <-ctx.Done():
			if err := n.call(context.WithoutCancel(ctx), look); err != nil {
				n.c.Log.Debug("stopped while members were asked", "err", err)
			}
			return a
		}
	}
}

// agreement sums up what the members said.
func (n *Node) agreement(q *question) state.Agreement {
	a := state.Agreement{Digest: n.view.Digest(), Alive: 1 + len(n.alive), Known: len(n.view.Nodes()), Agreeing: 1}
	for _, id := range n.alive {
		switch digest, said := q.got[id]; {
		case !said:
			a.Silent = append(a.Silent, id)
		case digest == a.Digest:
			a.Agreeing++
		default:
			a.Differ = append(a.Differ, id)
		}
	}
	return a
}

func (n *Node) onAsk(from state.NodeID, body []byte) {
	nonce, err := decodeAsk(body)
	if err != nil {
		n.c.Log.Debug("message dropped", "peer", from, "err", err)
		return
	}
	n.send(from, frame(chanTell, n.self, encodeTell(nonce, n.doc.Digest())))
}

func (n *Node) onTell(from state.NodeID, body []byte) {
	nonce, digest, err := decodeTell(body)
	if err != nil {
		n.c.Log.Debug("message dropped", "peer", from, "err", err)
		return
	}
	q, ok := n.asking[nonce]
	if _, member := slices.BinarySearch(n.alive, from); !ok || !member {
		return
	}
	q.got[from] = digest
	for _, id := range n.alive {
		if _, said := q.got[id]; !said {
			return
		}
	}
	select {
	case q.heard <- struct{}{}:
	default:
	}
}
