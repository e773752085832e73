package gossip

import (
	"cmp"
	"slices"

	"meshnet/crdt"
	"meshnet/state"
)

const (
	trees  = 3
	fanout = 4
)

// children returns to whom this node passes on what origin made, in ascending order: its children in
// three trees of fan-out four over origin and members. In each tree origin is the root and the others
// follow in the order of a hash of (tree, origin, member), so that all who know the same members
// build the same trees. Differing lists cost duplicates or a pull.
func children(self, origin state.NodeID, members []state.NodeID) []state.NodeID {
	ranked := make([]rank, 0, len(members)+1)
	var out []state.NodeID
	for tree := range uint64(trees) {
		ranked = ranked[:0]
		seed := mix(tree+1) ^ mix(uint64(origin))
		for _, m := range members {
			if m != origin {
				ranked = append(ranked, rank{mix(seed ^ uint64(m)), m})
			}
		}
		if self != origin {
			ranked = append(ranked, rank{mix(seed ^ uint64(self)), self})
		}
		slices.SortFunc(ranked, rank.compare)
		at := 0 // the root's place; the ranked follow from 1
		if self != origin {
			at = 1 + slices.IndexFunc(ranked, func(r rank) bool { return r.id == self })
		}
		for i := at*fanout + 1; i <= at*fanout+fanout && i <= len(ranked); i++ {
			out = append(out, ranked[i-1].id)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// greeters returns up to n of members by a hash of (who, member): those who are the first to compare
// documents with who.
func greeters(who state.NodeID, members []state.NodeID, n int) []state.NodeID {
	seed := mix(uint64(who))
	first := make([]rank, 0, n+1)
	for _, m := range members {
		r := rank{mix(seed ^ uint64(m)), m}
		if m == who || len(first) == n && first[n-1].compare(r) < 0 {
			continue
		}
		i, _ := slices.BinarySearchFunc(first, r, rank.compare)
		first = slices.Insert(first, i, r)
		first = first[:min(n, len(first))]
	}
	out := make([]state.NodeID, len(first))
	for i, r := range first {
		out[i] = r.id
	}
	return out
}

type rank struct {
	hash uint64
	id   state.NodeID
}

func (a rank) compare(b rank) int {
	switch {
	case a.hash != b.hash && a.hash < b.hash, a.hash == b.hash && a.id < b.id:
		return -1
	case a == b:
		return 0
	}
	return 1
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood 2014) over x plus its increment.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// sortHeads orders heads as messages have them.
func sortHeads(hs []crdt.Head) { slices.SortFunc(hs, compareHeads) }

func compareHeads(a, b crdt.Head) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Epoch, b.Epoch))
}
