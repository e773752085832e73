package mesh

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"meshnet/state"
)

// Self returns this node's id.
func (n *Node) Self() state.NodeID { return n.self }

// View returns the state as of now. Before [Node.Run] it is what the log held.
func (n *Node) View() *state.View { return n.shown.Load().view }

// Watch yields views until ctx ends or the node stops. It misses versions, never the last.
func (n *Node) Watch(ctx context.Context) iter.Seq[*state.View] {
	return func(yield func(*state.View) bool) {
		var last *state.View
		for {
			s := n.shown.Load()
			if s.view != last {
				last = s.view
				if ctx.Err() != nil || !yield(last) {
					return
				}
			}
			select {
			case <-s.next:
			case <-ctx.Done():
				return
			case <-n.ended:
				return
			}
		}
	}
}

// Wishes returns the attachments this host was asked for, also after a restart, in the order of their
// endpoint ids. The slice is shared; nobody writes to it.
func (n *Node) Wishes() []state.Attach { return n.shown.Load().wishes }

// Pending lists what the mesh still waits for, a clause each.
func (n *Node) Pending() []string { return n.shown.Load().pending }

// Warnings lists what a person should look at, a sentence each.
func (n *Node) Warnings() []string { return n.shown.Load().warnings }

// Ready is closed when the network `default` is there.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Peers returns this node, the members and the nodes that the state names, by id.
func (n *Node) Peers() []state.Peer {
	v := n.View()
	all := n.members.all()
	ids := []state.NodeID{n.self}
	for id := range all {
		ids = append(ids, id)
	}
	for _, node := range v.Nodes() {
		ids = append(ids, node.ID)
	}
	slices.Sort(ids)
	var peers []state.Peer
	for _, id := range slices.Compact(ids) {
		p := state.Peer{ID: id, State: state.Dead, Since: n.made, Self: id == n.self}
		m, met := all[id]
		if met {
			p.Name, p.Addr, p.State, p.RTT, p.Since = m.name, m.addr.Addr(), m.state, m.rtt, m.since
		}
		if p.Self {
			p.Name, p.Addr, p.State, p.Version = n.c.Name, n.c.Addr, state.Alive, n.c.Version
		}
		node, named := v.Node(id)
		if named {
			p.Name, p.Addr, p.Version = cmp.Or(node.Name, p.Name), node.Addr, node.Version
		}
		if _, forgotten := v.Forgotten(id); forgotten && !named && p.State != state.Alive {
			continue
		}
		peers = append(peers, p)
	}
	return peers
}

// pending lists what is waited for, within a step.
func (n *Node) pending() []string {
	var ps []string
	if !n.settled {
		ps = append(ps, "looking for other nodes")
	}
	if len(n.wants) == 0 {
		return ps
	}
	first := len(ps)
	for _, w := range n.wants {
		ps = append(ps, fmt.Sprintf("%s waits for an address on %s", w.wish.Container, n.networkName(w.wish.Network)))
	}
	slices.Sort(ps[first:])
	return ps
}

// warnings lists what a person should look at, within a step.
func (n *Node) warnings() []string {
	var ws []string
	ws = append(ws, n.notes...)
	if text := n.twinText(); text != "" {
		ws = append(ws, text)
	}
	ws = append(ws, n.same...)
	if n.full != nil {
		ws = append(ws, n.refusal().Error())
	}
	return append(ws, n.unreached()...)
}

// Lost returns the nodes that were given up, in the order of their ids.
func (n *Node) Lost(ctx context.Context) (lost []state.Lost) {
	if n.call(ctx, func() { n.refresh(); lost = n.ipam.Lost() }) != nil {
		return nil // it stops
	}
	return lost
}

// Quarantined returns the ranges that belonged to nodes that were given up, in the order of (network,
// prefix).
func (n *Node) Quarantined(ctx context.Context) (ranges []state.Quarantined) {
	if n.call(ctx, func() { n.refresh(); ranges = n.ipam.Quarantined() }) != nil {
		return nil
	}
	return ranges
}
