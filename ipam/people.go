package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"meshnet/state"
)

// name is what people call a node.
func (m *Machine) name(id state.NodeID) string {
	if node, ok := m.knows(id); ok && node.Name != "" {
		return node.Name
	}
	if l, ok := m.lost[id]; ok && l.name != "" {
		return l.name
	}
	return id.String()
}

func (m *Machine) names(ids []state.NodeID) string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = m.name(id)
	}
	return strings.Join(out, ", ")
}

func (m *Machine) inUse(n *network, a netip.Addr, container string, node state.NodeID) error {
	return state.Refuse(state.ErrAddressInUse, "address %s of %s is in use by %s on %s; choose another or detach that",
		a, n.view.Name, container, m.name(node))
}

// silent says that owners have free addresses and do not answer.
func (m *Machine) silent(free int64, ids []state.NodeID) error {
	addresses, verb := "addresses belong", "do"
	if free == 1 {
		addresses = "address belongs"
	}
	if len(ids) == 1 {
		verb = "does"
	}
	return state.Refuse(state.ErrNoAddress, "%d free %s to %s, which %s not answer; wait for it, or 'meshnet rmpeer %s' if it is gone for good",
		free, addresses, m.names(ids), verb, m.name(ids[0]))
}

// orphan returns the range without an owner that has an address, nil if none does.
func (m *Machine) orphan(n *network, a netip.Addr) *orphan {
	for i := range n.orphans {
		if n.orphans[i].prefix.Contains(a) {
			return &n.orphans[i]
		}
	}
	return nil
}

// resting counts the addresses that belonged to nodes that were given up.
func (m *Machine) resting(n *network) uint64 {
	var ps []netip.Prefix
	for i := range n.orphans {
		ps = append(ps, n.orphans[i].prefix)
	}
	return count(gaps(ps, n.reserved()))
}

// inQuarantine says that what is free belonged to nodes that were given up, and what that waits for.
func (m *Machine) inQuarantine(n *network) error {
	var of, waits []state.NodeID
	var left time.Duration
	heirless, away := state.NodeID(0), state.NodeID(0)
	for i := range n.orphans {
		o := &n.orphans[i]
		of = append(of, o.holder)
		left = max(left, m.due(o)-m.now)
		switch {
		case o.heir == 0:
			heirless = o.holder
		case o.heir != m.self && !m.answers(o.heir):
			away = o.heir
		}
		if n.inquiry != nil && o.heir == m.self {
			waits = m.silentTo(n.inquiry)
		}
	}
	slices.Sort(of)
	of = slices.Compact(of)
	text := fmt.Sprintf("no free address in %s; %d belonged to %s", n.view.Def.Subnet, m.resting(n), m.names(of))
	switch {
	case heirless != 0:
		return state.Refuse(state.ErrNoAddress, "%s, of whom no heir is left; name one: meshnet rmpeer %s --heir NODE", text, m.name(heirless))
	case left > 0:
		return state.Refuse(state.ErrNoAddress, "%s and rest for another %s; wait for that", text, left.Round(time.Second))
	case away != 0:
		return state.Refuse(state.ErrNoAddress, "%s and fall to %s, which does not answer; wait for it, or 'meshnet rmpeer %s' if it is gone for good",
			text, m.name(away), m.name(away))
	case len(waits) > 0:
		return state.Refuse(state.ErrNoAddress, "%s and wait for %s to hear of that; start it, or 'meshnet rmpeer %s' if it is gone for good",
			text, m.names(waits), m.name(waits[0]))
	}
	return state.Refuse(state.ErrNoAddress, "%s and are being inherited; try again", text)
}

// unconfirmed says that a block was received and nobody else knows this node yet.
func (m *Machine) unconfirmed(n *network) error {
	var away []state.NodeID
	for _, node := range m.view.Nodes() {
		if node.ID != m.self && !m.isLost(node.ID) && !m.answers(node.ID) {
			away = append(away, node.ID)
		}
	}
	if len(away) == 0 {
		return state.Refuse(state.ErrNoAddress, "addresses of %s were received and no other node has confirmed it; try again", n.view.Name)
	}
	return state.Refuse(state.ErrNoAddress, "addresses of %s were received, and no node but their giver knows this one yet; wait for %s, or 'meshnet rmpeer %s' if it is gone for good",
		n.view.Name, m.names(away), m.name(away[0]))
}

// exhausted says who uses all that there is.
func (m *Machine) exhausted(n *network, resting bool) error {
	uses := m.uses(n)
	var by []string
	used := uint64(0)
	for _, u := range uses {
		by = append(by, fmt.Sprintf("%s %d", m.name(u.node), u.count))
		used += u.count
	}
	who := ""
	if len(by) > 0 {
		who = " (" + strings.Join(by, ", ") + ")"
	}
	advice := "remove endpoints or make a larger network"
	if resting {
		advice = "some were given back less than a minute ago: try again then, " + advice
	}
	return state.Refuse(state.ErrNoAddress, "no free address in %s; %d of %d in use%s; %s",
		n.view.Def.Subnet, used, n.capacity(), who, advice)
}

// use is how many addresses a node uses.
type use struct {
	node  state.NodeID
	count uint64
}

// uses returns who uses how many addresses of a network, in the order of node ids.
func (m *Machine) uses(n *network) []use {
	counts := map[state.NodeID]uint64{}
	for e := range n.view.Claims() {
		if e.Node != m.self {
			counts[e.Node]++
		}
	}
	if len(n.allocs) > 0 {
		counts[m.self] = uint64(len(n.allocs))
	}
	for e := range n.view.Unshown() { // one address, two containers
		if counts[e.Node] > 0 {
			counts[e.Node]--
		}
	}
	out := make([]use, 0, len(counts))
	for _, id := range sortedNodes(counts) {
		out = append(out, use{id, counts[id]})
	}
	return out
}

// capacity is how many addresses of a subnet may be allocated at all.
func (n *network) capacity() uint64 {
	return count(gaps([]netip.Prefix{n.view.Def.Subnet}, n.reserved()))
}
