package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"meshnet/state"
)

// network is what a machine holds of one network.
type network struct {
	id state.NetworkID
	// view is nil while the view has no such network; learnt is since when it has.
	view   *state.Network
	learnt time.Duration
	// defined: the view had it for its definition, not for its users only.
	defined bool
	// checked: own records in the view were compared with the log.
	checked bool

	// What the log says.
	blocks  []state.Block    // of this node, by prefix: owned and offered
	highs   []high           // highest version ever held
	allocs  []state.Endpoint // by address
	resting []rest           // given back, oldest first
	rooted  bool             // this node took the root once
	estate  []state.Block    // what nodes that were given up had, by (prefix, node)

	// What follows from the log and the view.
	stale  bool           // has to be worked out again
	heard  []*state.Block // of all nodes: the view's
	others []*state.Block // of other nodes that were not given up
	given  []state.Block  // offers that came by message, until the view has them
	told   []state.Block  // what others said of living nodes when this one asked, by (prefix, node)
	rivals []*state.Block // others, estate and told, by prefix
	// orphans are the ranges of which the highest record is of, or to, a node that was given up.
	orphans []orphan
	root    state.Root     // the winner
	known   bool           // there is a root
	usable  []netip.Prefix // own blocks that may be allocated from, in order
	beaten  []netip.Prefix // own blocks of which a higher version is known
	free    []span         // addresses of usable that were never given out or long ago

	// What is under way.
	founded   bool
	foundedAt int64
	wants     []*want
	ask       request
	vouches   []vouch
	race      race
	inquiry   *inquiry
	bequests  request                        // to those that inherit
	claims    map[netip.Addr]*request        // for addresses of own containers in blocks of others
	idle      map[netip.Prefix]time.Duration // since when an own block is without a container
	reviewed  time.Duration                  // when idle was last looked at
}

// high is the highest version of a range that this node ever held under a root.
type high struct {
	prefix netip.Prefix
	root   state.Root
	ver    uint64
}

// rest is an address in its cooldown.
type rest struct {
	addr      netip.Addr
	container string
	until     time.Duration
}

func (n *network) find(p netip.Prefix) (int, bool) {
	return slices.BinarySearchFunc(n.blocks, p, func(b state.Block, p netip.Prefix) int { return compare(b.Prefix, p) })
}

func (n *network) put(b state.Block) {
	n.stale = true
	if i, ok := n.find(b.Prefix); ok {
		n.blocks[i] = b
	} else {
		n.blocks = slices.Insert(n.blocks, i, b)
	}
	n.raise(high{b.Prefix, b.Root, b.Ver})
}

func (n *network) remove(p netip.Prefix) {
	n.stale = true
	if i, ok := n.find(p); ok {
		n.blocks = slices.Delete(n.blocks, i, i+1)
	}
}

// raise notes that a range was held in a version.
func (n *network) raise(h high) {
	for _, o := range n.highs {
		if o.root == h.root && o.ver >= h.ver && contains(o.prefix, h.prefix) {
			return
		}
	}
	n.highs = slices.DeleteFunc(n.highs, func(o high) bool {
		return o.root == h.root && o.ver <= h.ver && contains(h.prefix, o.prefix)
	})
	n.highs = append(n.highs, h)
}

// high returns the highest version in which any address of a range was held under a root.
func (n *network) high(p netip.Prefix, r state.Root) uint64 {
	var ver uint64
	for _, h := range n.highs {
		if h.root == r && h.prefix.Overlaps(p) {
			ver = max(ver, h.ver)
		}
	}
	return ver
}

func (n *network) allocation(a netip.Addr) (int, bool) {
	return slices.BinarySearchFunc(n.allocs, a, func(e state.Endpoint, a netip.Addr) int { return e.Addr.Compare(a) })
}

// held returns what an endpoint id or a container holds on this network.
func (n *network) held(id state.EndpointID, container string) (*state.Endpoint, bool) {
	for i := range n.allocs {
		if e := &n.allocs[i]; e.ID == id || e.Container == container {
			return e, true
		}
	}
	return nil, false
}

// reserved returns what is never allocated, in order.
func (n *network) reserved() []span {
	d := &n.view.Def
	s := spanOf(d.Subnet)
	out := []span{{s.lo, s.lo}, {s.hi, s.hi}}
	if d.Gateway.Is4() {
		g := number(d.Gateway)
		out = append(out, span{g, g})
	}
	for _, r := range d.Reserve {
		if r.From.Is4() && r.To.Is4() && !r.To.Less(r.From) {
			out = append(out, span{number(r.From), number(r.To)})
		}
	}
	sortSpans(out)
	return out
}

func sortSpans(s []span) {
	slices.SortFunc(s, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
}

// busy returns what of the own blocks is not to be given out now or only as a last resort, in order.
func (n *network) busy() []span {
	out := n.reserved()
	for i := range n.allocs {
		a := number(n.allocs[i].Addr)
		out = append(out, span{a, a})
	}
	for _, r := range n.resting {
		a := number(r.addr)
		out = append(out, span{a, a})
	}
	sortSpans(out)
	return out
}

// refresh works out what follows from the log and the view.
func (m *Machine) refresh(n *network) {
	n.others = n.others[:0]
	for _, b := range n.heard {
		if b.Node != m.self && n.sound(b.Prefix) {
			n.others = append(n.others, b)
		}
	}
	for i := range n.given {
		if n.sound(n.given[i].Prefix) {
			n.others = append(n.others, &n.given[i])
		}
	}
	byPrefix := func(a, b *state.Block) int { return compare(a.Prefix, b.Prefix) }
	slices.SortStableFunc(n.others, byPrefix)
	n.rivals = append(n.rivals[:0], n.others...)
	if len(n.estate)+len(n.told) > 0 {
		for _, list := range [2][]state.Block{n.estate, n.told} {
			for i := range list {
				n.rivals = append(n.rivals, &list[i])
			}
		}
		slices.SortStableFunc(n.rivals, byPrefix)
	}
	n.root, n.known = winner(n.blocks, n.rivals)
	n.beaten = n.beaten[:0]
	overlaps(n.blocks, n.rivals, func(mine, other *state.Block) {
		if other.Root == mine.Root && other.Ver > mine.Ver && !slices.Contains(n.beaten, mine.Prefix) {
			n.beaten = append(n.beaten, mine.Prefix)
		}
	})
	n.usable = n.usable[:0]
	for i := range n.blocks {
		if b := &n.blocks[i]; b.State == state.Usable && n.holds(b) {
			n.usable = append(n.usable, b.Prefix)
		}
	}
	n.count()
	n.stale = false
	m.findOrphans(n)
}

// sound reports whether a prefix that another node names is one of this network.
func (n *network) sound(p netip.Prefix) bool {
	return p.Addr().Is4() && p.IsValid() && p == p.Masked() && contains(n.view.Def.Subnet, p)
}

// holds reports whether a block is owned as far as this node knows: under the root that won and with
// no higher version known.
func (n *network) holds(b *state.Block) bool {
	return b.Kind == state.Own && n.known && b.Root == n.root && !slices.Contains(n.beaten, b.Prefix)
}

// count works out the free addresses again.
func (n *network) count() {
	n.free = nil
	if n.view != nil {
		n.free = gaps(n.usable, n.busy())
	}
}

// winner is [state.Network.Winner] of what this node knows, which is more than the view has: its own
// log, and offers that came by message.
func winner(mine []state.Block, others []*state.Block) (state.Root, bool) {
	sealed := map[state.Root]bool{}
	see := func(b *state.Block) {
		sealed[b.Root] = sealed[b.Root] || b.Sealed || b.Node != b.Root.Creator
	}
	for i := range mine {
		see(&mine[i])
	}
	for _, b := range others {
		see(b)
	}
	var best state.Root
	found := false
	for r, s := range sealed {
		if !found || before(r, s, best, sealed[best]) {
			best, found = r, true
		}
	}
	return best, found
}

func before(a state.Root, aSealed bool, b state.Root, bSealed bool) bool {
	if aSealed != bSealed {
		return aSealed
	}
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Creator, b.Creator)) < 0
}

// overlaps calls f for each own block and each other's that share an address. Both are in the order
// of prefixes, of which one contains the other or they share nothing: a walk with the stack of the
// prefixes around is enough.
func overlaps(mine []state.Block, others []*state.Block, f func(mine, other *state.Block)) {
	type open struct{ mine, other *state.Block }
	var around []open
	prefix := func(o open) netip.Prefix {
		if o.mine != nil {
			return o.mine.Prefix
		}
		return o.other.Prefix
	}
	i, j := 0, 0
	for i < len(mine) || j < len(others) {
		var next open
		if j == len(others) || i < len(mine) && compare(mine[i].Prefix, others[j].Prefix) <= 0 {
			next.mine = &mine[i]
			i++
		} else {
			next.other = others[j]
			j++
		}
		for len(around) > 0 && !contains(prefix(around[len(around)-1]), prefix(next)) {
			around = around[:len(around)-1]
		}
		for _, o := range around {
			switch {
			case o.mine != nil && next.other != nil:
				f(o.mine, next.other)
			case o.other != nil && next.mine != nil:
				f(next.mine, o.other)
			}
		}
		around = append(around, next)
	}
}
