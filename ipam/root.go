package ipam

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"meshnet/state"
)

// Default is the name of the network that every node makes by itself. Nobody founded it: who takes
// its root is agreed on by hash.
const Default = "default"

const (
	// raceTurn is how long a node that comes first is given to answer.
	raceTurn = 200 * time.Millisecond
	// raceAgain is when a message to it is repeated.
	raceAgain = 50 * time.Millisecond
	// racePatience is how long a node is waited for that answers but takes no root.
	racePatience = 5 * time.Second
	// successors is how many nodes are named to inherit a root.
	successors = 5
)

// race is the wait of a node that does not come first for the one that does.
type race struct {
	to      state.NodeID // who is waited for
	since   time.Duration
	until   time.Duration
	again   time.Duration
	skipped []state.NodeID // did not answer
}

// mix is a hash of a network and a node: the finalizer of splitmix64 (Steele, Lea, Flood 2014).
func mix(a, b uint64) uint64 {
	x := a ^ b*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// rank orders nodes by rendezvous hash with a network, the same on every node.
func rank(id state.NetworkID, nodes []state.NodeID) []state.NodeID {
	out := slices.Clone(nodes)
	slices.SortFunc(out, func(a, b state.NodeID) int {
		return cmp.Or(cmp.Compare(mix(uint64(id), uint64(b)), mix(uint64(id), uint64(a))), cmp.Compare(a, b))
	})
	return out
}

func sortedNodes[V any](m map[state.NodeID]V) []state.NodeID {
	return slices.Sorted(maps.Keys(m))
}

// takeRoot is step R: the whole subnet is this node's, if nobody is known to have a part of it and
// this node founded the network or, where all did, comes first.
func (m *Machine) takeRoot(n *network) {
	m.fresh(n)
	if n.known || n.rooted {
		n.founded, n.race = false, race{}
		return
	}
	all := n.view.Def.Name == Default
	if n.founded && !all {
		m.root(n, n.foundedAt)
		return
	}
	if !m.settled || n.view.Removed || len(n.highs) > 0 || m.leaving {
		return
	}
	// A crash between the creation and the root leaves a network that only its creator can help.
	mine := n.view.Created.Creator == m.self
	if all && (mine || len(m.lost) == 0) { // where nodes were given up, one of them may have had all of it
		mine = m.first(n)
	}
	if mine {
		m.root(n, m.settledAt+int64((m.now-m.settledIn)/time.Second))
	}
}

func (m *Machine) root(n *network, at int64) {
	m.put(state.Block{
		Network: n.id, Prefix: n.view.Def.Subnet, Ver: 1, Lineage: m.heirs(n),
		Root: state.Root{Creator: m.self, At: at},
	})
	m.out.Sync = true
	n.founded, n.race = false, race{}
	m.fresh(n)
}

// first reports whether this node comes first of those that answer. Those before it are asked in
// turn.
func (m *Machine) first(n *network) bool {
	for _, id := range rank(n.id, append(slices.Clone(m.alive), m.self)) {
		if id == m.self {
			return true
		}
		r := &n.race
		if slices.Contains(r.skipped, id) {
			continue
		}
		if r.to != id {
			r.to, r.since, r.until, r.again = id, m.now, m.now+raceTurn, m.now
		}
		if m.now >= r.until || m.now >= r.since+racePatience {
			r.skipped = append(r.skipped, id)
			continue
		}
		if m.now >= r.again {
			r.again = m.now + raceAgain
			m.send(id, &message{kind: msgRoot, network: n.id})
		}
		m.wake(min(r.until, r.again))
		return false
	}
	return true
}

// onWait takes in that the node that is waited for answers.
func (m *Machine) onWait(n *network, from state.NodeID) {
	if n.race.to == from {
		n.race.until = m.now + raceTurn
	}
}
