package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshnet/crdt"
	"meshnet/ipam"
	"meshnet/state"
)

const (
	// handMax bounds the wait until others have taken what a node that leaves has; what is left then
	// is inherited like that of a dead one.
	handMax = 10 * time.Second
	// handPoll is how often that is looked at.
	handPoll = 50 * time.Millisecond
)

// leaving is a node that is about to leave, or has.
type leaving struct {
	reply chan<- result
	until time.Duration
	next  time.Duration // 0: it has left
}

// due returns when to look again; 0: no need.
func (l *leaving) due() time.Duration {
	if l == nil {
		return 0
	}
	return l.next
}

func (l *leaving) left() bool { return l != nil && l.next == 0 }

// withdraw detaches all containers and begins to hand on what this node has.
func (n *Node) withdraw(to chan<- result) {
	for _, w := range sortedWishes(n.store.wishes) {
		n.detach(w.ID)
	}
	n.c.Log.Info("leaving the mesh")
	n.leaving = &leaving{to, n.now() + handMax, n.now() + handPoll}
	n.step(ipam.Leave{})
}

// takeLeave gives this node up itself, once others have what it had.
func (n *Node) takeLeave() {
	l := n.leaving
	if l == nil || l.left() || n.now() < l.next || n.quiet() {
		return
	}
	l.next = n.now() + handPoll
	n.refresh()
	if !n.ipam.Left() && n.now() < l.until && len(n.alive) > 0 {
		return
	}
	l.next = 0
	out, err := n.doc.Apply(state.Leave{})
	if err == nil {
		n.tell(out)
	}
	n.answer(l.reply, result{err: err})
}

// expel gives a dead node up. Twice is the same as once.
func (n *Node) expel(w state.Expel) (state.Outcome, error) {
	epoch := crdt.Epoch(0)
	if node, ok := n.view.Node(w.Node); ok {
		epoch = node.Epoch
	}
	if m, ok := n.members.all()[w.Node]; ok {
		epoch = max(epoch, m.epoch)
	}
	gone, was := n.view.Forgotten(w.Node)
	again := was && gone >= epoch
	switch {
	case again && w.Heir == 0:
		return state.Outcome{Again: true}, nil
	case again:
		epoch = gone
	case epoch == 0:
		return state.Outcome{}, fmt.Errorf("give up node %s: %w", w.Node, state.Refuse(state.ErrNoNode, "there is no such node; see 'meshnet nodes'"))
	}
	if w.Heir != 0 {
		if _, ok := n.view.Node(w.Heir); !ok {
			return state.Outcome{}, fmt.Errorf("give up node %s: %w", w.Node, state.Refuse(state.ErrNoNode, "there is no node %s to inherit; see 'meshnet nodes'", w.Heir))
		}
	}
	out, err := n.doc.Apply(state.Forget{Node: w.Node, Epoch: epoch, Heir: w.Heir})
	if err != nil {
		return state.Outcome{}, err
	}
	n.tell(out)
	n.c.Log.Info("node given up", "peer", w.Node, "epoch", epoch)
	return state.Outcome{Again: again && out.Empty()}, nil
}

// reachable reports whether others reach an own endpoint: no other one shows its address.
func (n *Node) reachable(e state.Endpoint) bool {
	nw, ok := n.view.Network(e.Network)
	if !ok {
		return true
	}
	shown, ok := nw.At(e.Addr)
	return ok && shown.Node == e.Node && shown.ID == e.ID
}

// renumber gives an endpoint whose address another one shows a new address.
func (n *Node) renumber(w state.Attach, e state.Endpoint, replies []chan<- result) {
	n.c.Log.Warn("container is renumbered: another one shows its address", "endpoint", e.ID, "network", n.networkName(e.Network), "addr", e.Addr)
	if w.Addr == e.Addr {
		w.Addr = netip.Addr{}
	}
	n.step(ipam.Free{Endpoint: e.ID, Alloc: e.Alloc})
	if _, still := n.own(e.ID); still {
		n.apply(state.RemoveEndpoint{ID: e.ID})
	}
	w.ID = e.ID
	n.wants[w.ID] = &want{wish: w, replies: replies}
	n.step(ipam.Want{Wish: w, At: time.Now().Unix()})
}

// unreached lists this node's containers that others do not reach, because another one shows their
// address; a sentence each.
func (n *Node) unreached() (out []string) {
	for _, nw := range n.view.Networks() {
		for lost, kept := range nw.Unshown() {
			if lost.Node != n.self || kept == nil {
				continue
			}
			host := kept.Node.String()
			if node, ok := n.view.Node(kept.Node); ok {
				host = node.Name
			}
			out = append(out, fmt.Sprintf("%s has %s on %s, as %s on %s, which is reached there; attach it again for another address",
				lost.Container, lost.Addr, nw.Name, kept.Container, host))
		}
	}
	slices.Sort(out)
	return out
}
