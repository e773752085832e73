package ipam

import (
	"fmt"
	"net/netip"
	"strings"

	"meshnet/state"
)

// name is what people call a node.
func (m *Machine) name(id state.NodeID) string {
	if node, ok := m.knows(id); ok && node.Name != "" {
		return node.Name
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
