package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"meshnet/state"
)

const (
	// answerMax is how long a node that is to be given up is asked whether it is there.
	answerMax = 1500 * time.Millisecond
	// leaveMax bounds the wait until others have what a node that leaves had, and know that it left.
	leaveMax = 15 * time.Second
)

// BlockState is how far a range of addresses is owned.
type BlockState uint8

const (
	// Settled: its owner gives out addresses of it.
	Settled BlockState = iota
	// Claimed: it waits for a witness, is on its way to another node, or was owned under a root that
	// lost against another one.
	Claimed
	// Quarantined: its owner was given up, and nobody has inherited it yet.
	Quarantined
)

// String returns settled, claimed or quarantined.
func (s BlockState) String() string {
	return [...]string{"settled", "claimed", "quarantined", ""}[s&3]
}

// Block is a range of addresses of a network.
type Block struct {
	Prefix     netip.Prefix
	Owner      string // name
	OwnerID    state.NodeID
	State      BlockState
	Used, Free uint64 // addresses for containers
	// Of a quarantined one: who inherits it, empty if a person has to name one; how long it rests yet;
	// the names of those that have not said that they know, where this node inherits.
	Heir  string
	Left  time.Duration
	Waits []string
}

// Address is an address that a container has.
type Address struct {
	Addr      netip.Addr
	Container string
	Node      string // name
	Since     int64  // seconds since 1970
	Shown     bool   // reached: no other container shows it
}

// Space is how the addresses of a network are divided.
type Space struct {
	Network *state.Network
	// Size is how many addresses there are for containers, Used how many of them have one.
	Size, Used uint64
	Blocks     []Block   // by prefix
	Addresses  []Address // by address
}

// Spaces returns how the addresses of a network are divided, by name or id, or of all.
func (a *Agent) Spaces(ctx context.Context, network string) ([]Space, error) {
	view := a.c.Mesh.View()
	nets := view.Networks()
	if network != "" {
		n, err := find(view, network)
		if err != nil {
			return nil, err
		}
		nets = []*state.Network{n}
	}
	rest := a.c.Mesh.Quarantined(ctx)
	out := make([]Space, 0, len(nets))
	for _, n := range nets {
		out = append(out, a.space(view, n, rest))
	}
	return out, nil
}

func (a *Agent) space(view *state.View, n *state.Network, rest []state.Quarantined) Space {
	s := Space{Network: n, Size: n.Def.Room(n.Def.Subnet)}
	var used []netip.Addr
	for e := range n.Claims() {
		shown, ok := n.At(e.Addr)
		s.Addresses = append(s.Addresses, Address{
			Addr: e.Addr, Container: e.Container, Node: nodeName(view, e.Node), Since: e.At, Shown: ok && shown == e,
		})
		if len(used) == 0 || used[len(used)-1] != e.Addr {
			used = append(used, e.Addr)
		}
	}
	s.Used = uint64(len(used))
	fill := func(b Block) {
		from, _ := slices.BinarySearchFunc(used, b.Prefix.Addr(), netip.Addr.Compare)
		for i := from; i < len(used) && b.Prefix.Contains(used[i]); i++ {
			b.Used++
		}
		if room := n.Def.Room(b.Prefix); room > b.Used {
			b.Free = room - b.Used
		}
		s.Blocks = append(s.Blocks, b)
	}
	winner, _ := n.Winner()
	for _, k := range n.Blocks() {
		b := Block{Prefix: k.Prefix, OwnerID: k.Node, State: Claimed}
		top, ok := n.Top(k.Prefix.Addr())
		switch {
		case k.Kind == state.Offer && (!ok || top != k):
			continue // it was taken
		case k.Kind == state.Offer:
			b.OwnerID = k.To
		case k.State == state.Usable && k.Root == winner:
			b.State = Settled
		}
		b.Owner = nodeName(view, b.OwnerID)
		fill(b)
	}
	for _, q := range rest {
		if q.Network == n.ID {
			b := Block{Prefix: q.Prefix, Owner: q.Name, OwnerID: q.Node, State: Quarantined, Left: q.Left, Waits: a.nodeNames(q.Waits)}
			if q.Heir != 0 {
				b.Heir = nodeName(view, q.Heir)
			}
			fill(b)
		}
	}
	slices.SortStableFunc(s.Blocks, func(x, y Block) int {
		return cmp.Or(x.Prefix.Addr().Compare(y.Prefix.Addr()), cmp.Compare(x.Prefix.Bits(), y.Prefix.Bits()))
	})
	return s
}

// Conflict is something that two sides both claimed, and how it was settled.
type Conflict struct {
	state.Conflict
	Shown string // the network's name
}

// Conflicts lists what was settled against somebody, in a fixed order.
func (a *Agent) Conflicts() []Conflict {
	view := a.c.Mesh.View()
	out := make([]Conflict, 0, len(view.Conflicts()))
	for _, c := range view.Conflicts() {
		with := Conflict{Conflict: c, Shown: c.Network.String()}
		if n, ok := view.Network(c.Network); ok {
			with.Shown = n.Name
		}
		out = append(out, with)
	}
	return out
}

// RemovePeer gives up a node that will not come back, by name, id or unambiguous beginning of an id.
// Twice is the same as once. heir, if not empty, inherits what no other node is left to. A node that
// answers is given up by force only.
func (a *Agent) RemovePeer(ctx context.Context, name, heir string, force bool) (removed state.Lost, again bool, err error) {
	node, there, err := a.findNode(ctx, name)
	if err != nil {
		return state.Lost{}, false, err
	}
	w := state.Expel{Node: node.Node}
	if heir != "" {
		h, there, err := a.findNode(ctx, heir)
		if err != nil {
			return state.Lost{}, false, err
		}
		if !there || h.Node == node.Node {
			return state.Lost{}, false, state.Refuse(ErrRefused, "%s cannot inherit; name a node that is there", heir)
		}
		w.Heir = h.Node
	}
	if node.Node == a.c.Mesh.Self() {
		return state.Lost{}, false, state.Refuse(ErrRefused, "it is this node; use 'meshnet leave'")
	}
	if there && !force && a.isThere(ctx, node.Node) {
		return state.Lost{}, false, state.Refuse(ErrRefused, "%s answers; run 'meshnet leave' there, or stop it first, or use --force", node.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, doMax)
	defer cancel()
	out, err := a.c.Mesh.Do(ctx, w)
	if err != nil {
		return state.Lost{}, false, err
	}
	poke(a.poked)
	return node, out.Again, nil
}

// findNode returns the node of a name, an id, or the beginning of one; there: it was not given up.
func (a *Agent) findNode(ctx context.Context, name string) (node state.Lost, there bool, err error) {
	match := func(known string, id state.NodeID) bool {
		return known == name || id.String() == name || len(name) >= 4 && strings.HasPrefix(id.String(), name)
	}
	var found []state.Lost
	for _, n := range a.Nodes() {
		if match(n.Name, n.ID) {
			found = append(found, state.Lost{Node: n.ID, Name: n.Name})
		}
	}
	if len(found) > 1 {
		return state.Lost{}, false, state.Refuse(ErrRefused, "several nodes are called %s; give an id of 'meshnet nodes'", name)
	}
	if len(found) == 1 {
		return found[0], true, nil
	}
	for _, l := range a.c.Mesh.Lost(ctx) {
		if match(l.Name, l.Node) {
			return l, false, nil
		}
	}
	return state.Lost{}, false, state.Refuse(state.ErrNoNode, "there is no node %s; see 'meshnet nodes'", name)
}

// isThere asks a node that is said to be alive whether it is.
func (a *Agent) isThere(ctx context.Context, id state.NodeID) bool {
	alive := slices.ContainsFunc(a.c.Mesh.Peers(), func(p state.Peer) bool { return p.ID == id && p.State == state.Alive })
	if !alive {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	return !slices.Contains(a.c.Mesh.Agreeing(ctx).Silent, id)
}

// Leave takes this host's containers off all networks, hands its addresses on and waits until others
// know that it left. The daemon is of no use afterwards but to be stopped.
func (a *Agent) Leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaveMax)
	defer cancel()
	out, err := a.c.Mesh.Do(ctx, state.Withdraw{})
	if err != nil {
		return fmt.Errorf("leave the mesh: %w", err)
	}
	poke(a.poked)
	for {
		agreed := a.c.Mesh.Agreeing(ctx)
		if agreed.Agreeing >= agreed.Alive || len(agreed.Differ) == 0 && agreed.Agreeing > 1 {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("leave the mesh: %w", errors.Join(ErrLate, errors.New("others do not know yet; it goes on when they are reached")))
		}
	}
	if err := a.host(ctx, out.Version, 0); err != nil {
		return err
	}
	return nil
}
