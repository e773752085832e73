package sim

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

// dump returns all that a document holds: every node's map and the shared records.
func dump(d *state.Doc) ([]crdt.Patch, crdt.Delta) {
	var heads []crdt.Head
	for i := range crdt.Buckets {
		for _, h := range d.Heads(i) {
			if len(heads) == 0 || heads[len(heads)-1].Node != h.Node {
				heads = append(heads, crdt.Head{Node: h.Node})
			}
		}
	}
	slices.SortFunc(heads, func(a, b crdt.Head) int { return cmp.Compare(a.Node, b.Node) })
	out, _ := d.Missing(heads, 1<<62)
	return out.Patches, d.Shared()
}

// reference is the merged state the naive way: every op that anybody said, and which of them no
// longer count.
type reference struct {
	lives map[crdt.Head]*refLife // by (node, epoch)
	adds  map[crdt.Dot]crdt.Entry
	gone  map[crdt.Dot]bool
}

// refLife is a node's map in an epoch: which seqs were said, and what of them lives as far as those
// know who said so.
type refLife struct {
	whole crdt.Seq
	said  map[crdt.Seq]bool
	dead  map[crdt.Seq]bool
	ops   map[crdt.Seq]crdt.Op
}

// newReference begins with what the hosts hold between them.
func newReference(hosts []*host) *reference {
	r := &reference{lives: map[crdt.Head]*refLife{}, adds: map[crdt.Dot]crdt.Entry{}, gone: map[crdt.Dot]bool{}}
	for _, h := range hosts {
		patches, shared := dump(h.doc)
		for _, p := range patches {
			r.patch(p)
		}
		r.delta(shared)
	}
	return r
}

func (r *reference) life(n crdt.Node, e crdt.Epoch) *refLife {
	k := crdt.Head{Node: n, Epoch: e}
	if r.lives[k] == nil {
		r.lives[k] = &refLife{said: map[crdt.Seq]bool{}, dead: map[crdt.Seq]bool{}, ops: map[crdt.Seq]crdt.Op{}}
	}
	return r.lives[k]
}

// patch takes in a whole map: a seq that its holder knows and does not show is dead.
func (r *reference) patch(p crdt.Patch) {
	l := r.life(p.Node, p.Epoch)
	l.whole = max(l.whole, p.Whole)
	lives := map[crdt.Seq]bool{}
	for _, op := range p.Ops {
		l.ops[op.Seq] = op
		lives[op.Seq] = true
	}
	knows := func(s crdt.Seq) {
		l.said[s] = true
		if !lives[s] {
			l.dead[s] = true
		}
	}
	for s := crdt.Seq(1); s <= p.Head; s++ {
		knows(s)
	}
	for _, span := range p.Cloud {
		for s := span.From; s <= span.To; s++ {
			knows(crdt.Seq(s))
		}
	}
}

func (r *reference) delta(d crdt.Delta) {
	held := map[crdt.Dot]bool{}
	for _, e := range d.Entries {
		r.adds[e.Dot] = e
		held[e.Dot] = true
	}
	for _, a := range d.Seen {
		for _, s := range a.Spans {
			for n := s.From; n <= s.To; n++ {
				if dot := (crdt.Dot{Actor: a.Actor, N: n}); !held[dot] {
					r.gone[dot] = true
				}
			}
		}
	}
}

// said takes in what a host changed.
func (r *reference) said(out state.Out) {
	for _, op := range out.Ops {
		l := r.life(op.Node, op.Epoch)
		l.whole = max(l.whole, op.Whole)
		l.said[op.Seq] = true
		l.ops[op.Seq] = op
		for _, s := range op.Closes {
			l.said[s], l.dead[s] = true, true
		}
	}
	for _, d := range out.Shared {
		r.delta(d)
	}
}

// settled returns what counts: of each node the latest epoch that is complete, of each key the last
// write that is not a removal; of the shared adds those that nobody removed.
func (r *reference) settled() (ops map[crdt.Node]map[string]crdt.Op, shared map[crdt.Dot]crdt.Entry) {
	shared = map[crdt.Dot]crdt.Entry{}
	forgot := map[crdt.Node]crdt.Epoch{}
	for dot, e := range r.adds {
		if r.gone[dot] {
			continue
		}
		shared[dot] = e
		var n crdt.Node
		if _, err := fmt.Sscanf(string(e.Key), "forget/%016x", &n); err == nil && len(e.Value) > 2 {
			epoch, _ := binary.Uvarint(e.Value[2:]) // after the version and the field's tag
			forgot[n] = max(forgot[n], crdt.Epoch(epoch))
		}
	}
	ops = map[crdt.Node]map[string]crdt.Op{}
	best := map[crdt.Node]crdt.Epoch{}
	for k, l := range r.lives {
		complete := true
		for s := crdt.Seq(1); s <= l.whole; s++ {
			complete = complete && l.said[s]
		}
		if !complete || k.Epoch <= forgot[k.Node] || k.Epoch < best[k.Node] {
			continue
		}
		best[k.Node] = k.Epoch
		last := map[string]crdt.Op{}
		for s, op := range l.ops {
			if o, ok := last[string(op.Key)]; !ok || o.Seq < s {
				last[string(op.Key)] = op
			}
		}
		maps.DeleteFunc(last, func(_ string, op crdt.Op) bool { return op.Value == nil || l.dead[op.Seq] })
		ops[k.Node] = last
	}
	maps.DeleteFunc(ops, func(_ crdt.Node, last map[string]crdt.Op) bool { return len(last) == 0 })
	return ops, shared
}

// checkEnd compares all hosts with each other and with the reference.
func (w *world) checkEnd() {
	first := w.hosts[0]
	patches, shared := dump(first.doc)
	for _, h := range w.hosts[1:] {
		ps, sh := dump(h.doc)
		w.samePatches(first, h, patches, ps)
		w.sameShared(first, h, shared, sh)
		first.refresh()
		h.refresh()
		if what := differ(first.view, h.view); what != "" {
			w.fatal("the views of %s and %s differ: %s", first.name, h.name, what)
		}
	}
	ops, adds := w.ref.settled()
	for _, p := range patches {
		if p.Head < p.Whole {
			continue // an epoch that is not complete shows nothing
		}
		n := 0
		for i := range p.Ops {
			op := &p.Ops[i]
			if op.Value == nil {
				if op.Seq <= p.Head {
					w.fatal("all hold the removal of %s by %s, which nothing can undo", op.Key, w.name(p.Node))
				}
				continue
			}
			want, ok := ops[p.Node][string(op.Key)]
			if !ok || want.Seq != op.Seq || want.Epoch != op.Epoch || !bytes.Equal(want.Value, op.Value) || !bytes.Equal(want.Ext, op.Ext) {
				w.fatal("all hold %s of %s from op %d/%d, of what was said op %d/%d counts", op.Key, w.name(p.Node), op.Epoch, op.Seq, want.Epoch, want.Seq)
			}
			n++
		}
		if n != len(ops[p.Node]) {
			w.fatal("all hold %d keys of %s, of what was said %d count", n, w.name(p.Node), len(ops[p.Node]))
		}
		delete(ops, p.Node)
	}
	for n := range ops {
		w.fatal("all hold nothing of %s, of what was said %d keys count", w.name(n), len(ops[n]))
	}
	for _, e := range shared.Entries {
		if want, ok := adds[e.Dot]; !ok || !bytes.Equal(want.Key, e.Key) || !bytes.Equal(want.Value, e.Value) || !bytes.Equal(want.Ext, e.Ext) {
			w.fatal("all hold %s, which was removed or said otherwise", e.Key)
		}
	}
	if len(shared.Entries) != len(adds) {
		w.fatal("all hold %d shared records, of what was said %d count", len(shared.Entries), len(adds))
	}
	fresh := state.NewDoc(1, 1, 1)
	fresh.Merge(state.In{Patches: patches, Shared: []crdt.Delta{shared}})
	if what := differ(fresh.View(), first.view); what != "" {
		w.fatal("the view built at once and that of %s, built bit by bit, differ: %s", first.name, what)
	}
	w.checkView(first.view)
	for _, h := range w.hosts {
		for id, x := range h.wants {
			if w.now-x.at > 30*time.Second {
				w.fatal("%s: nobody answered %s (%s) for %v", h.name, x.wish.Container, id, w.now-x.at)
			}
		}
	}
}

func (w *world) samePatches(a, b *host, as, bs []crdt.Patch) {
	if len(as) != len(bs) {
		w.fatal("%s and %s have one digest and know %d and %d nodes", a.name, b.name, len(as), len(bs))
	}
	for i := range as {
		p, q := &as[i], &bs[i]
		same := p.Node == q.Node && p.Epoch == q.Epoch && p.Head == q.Head && p.Whole == q.Whole && slices.Equal(p.Cloud, q.Cloud) && len(p.Ops) == len(q.Ops)
		for j := 0; same && j < len(p.Ops); j++ {
			x, y := &p.Ops[j], &q.Ops[j]
			same = x.Seq == y.Seq && bytes.Equal(x.Key, y.Key) && (x.Value == nil) == (y.Value == nil) && bytes.Equal(x.Value, y.Value) && bytes.Equal(x.Ext, y.Ext)
		}
		if !same {
			w.fatal("%s and %s have one digest and differ in what they hold of %s in epochs %d and %d", a.name, b.name, w.name(p.Node), p.Epoch, q.Epoch)
		}
	}
}

func (w *world) sameShared(a, b *host, x, y crdt.Delta) {
	same := len(x.Entries) == len(y.Entries) && slices.EqualFunc(x.Seen, y.Seen, func(p, q crdt.Seen) bool {
		return p.Actor == q.Actor && slices.Equal(p.Spans, q.Spans)
	})
	for i := 0; same && i < len(x.Entries); i++ {
		p, q := &x.Entries[i], &y.Entries[i]
		same = p.Dot == q.Dot && bytes.Equal(p.Key, q.Key) && bytes.Equal(p.Value, q.Value) && p.Lamport == q.Lamport && p.Created == q.Created && bytes.Equal(p.Ext, q.Ext)
	}
	if !same {
		w.fatal("%s and %s have one digest and differ in the shared records", a.name, b.name)
	}
}

// differ says in what two views differ; empty: in nothing.
func differ(a, b *state.View) string {
	if a.Digest() != b.Digest() {
		return "digests"
	}
	if len(a.Nodes()) != len(b.Nodes()) {
		return "nodes"
	}
	for i, n := range a.Nodes() {
		if m := b.Nodes()[i]; n.ID != m.ID || n.Epoch != m.Epoch || n.Name != m.Name || n.Addr != m.Addr || n.Version != m.Version {
			return "node " + n.ID.String()
		}
		ea, _ := a.Forgotten(n.ID)
		if eb, _ := b.Forgotten(n.ID); ea != eb {
			return "forgotten " + n.ID.String()
		}
	}
	if !slices.Equal(a.Conflicts(), b.Conflicts()) {
		return fmt.Sprintf("conflicts %v and %v", a.Conflicts(), b.Conflicts())
	}
	if len(a.Networks()) != len(b.Networks()) {
		return "networks"
	}
	for i, n := range a.Networks() {
		if what := differNetwork(n, b.Networks()[i]); what != "" {
			return "network " + n.Name + ": " + what
		}
		for e := range n.Claims() {
			x, _ := a.Endpoint(e.ID)
			if y, ok := b.Endpoint(e.ID); !ok || !sameEndpoint(x, y) {
				return "endpoint " + e.ID.String()
			}
		}
	}
	return ""
}

func differNetwork(n, m *state.Network) string {
	rootN, okN := n.Winner()
	rootM, okM := m.Winner()
	switch {
	case n.ID != m.ID || n.Name != m.Name || n.VNI != m.VNI || n.Removed != m.Removed:
		return fmt.Sprintf("%s vni %d removed %v and %s vni %d removed %v", n.Name, n.VNI, n.Removed, m.Name, m.VNI, m.Removed)
	case n.Created.Creator != m.Created.Creator || n.Created.At != m.Created.At || n.Created.Lamport != m.Created.Lamport:
		return "record"
	case !slices.Equal(n.Members(), m.Members()):
		return "members"
	case rootN != rootM || okN != okM || n.Sealed(rootN) != m.Sealed(rootM):
		return "root"
	case !slices.EqualFunc(n.Blocks(), m.Blocks(), sameBlock):
		return "blocks"
	case !slices.EqualFunc(slices.Collect(n.Claims()), slices.Collect(m.Claims()), sameEndpoint):
		return "claims"
	case !slices.EqualFunc(slices.Collect(n.Endpoints()), slices.Collect(m.Endpoints()), sameEndpoint):
		return "shown endpoints"
	}
	return ""
}

func sameBlock(a, b *state.Block) bool {
	return a.Node == b.Node && a.Prefix == b.Prefix && a.Root == b.Root && a.Sealed == b.Sealed && a.Ver == b.Ver && a.Kind == b.Kind &&
		a.To == b.To && a.ToEpoch == b.ToEpoch && a.State == b.State && slices.Equal(a.Lineage, b.Lineage)
}

func sameEndpoint(a, b *state.Endpoint) bool {
	return a.ID == b.ID && a.Node == b.Node && a.Network == b.Network && a.Container == b.Container && a.Addr == b.Addr && a.MAC == b.MAC &&
		a.IfName == b.IfName && a.Alloc == b.Alloc && a.At == b.At && a.Down == b.Down && slices.Equal(a.Names, b.Names)
}

// checkView holds a view against the rules, worked out plainly.
func (w *world) checkView(v *state.View) {
	names, vnis := map[string]bool{}, map[uint32]bool{}
	for _, n := range v.Networks() {
		if names[n.Name] || vnis[n.VNI] || n.VNI == 0 {
			w.fatal("network %s shares its name or its VNI %d", n.Name, n.VNI)
		}
		names[n.Name], vnis[n.VNI] = true, true
		groups := map[netip.Addr][]*state.Endpoint{}
		for e := range n.Claims() {
			groups[e.Addr] = append(groups[e.Addr], e)
		}
		for a, g := range groups {
			owner := ownerOf(n, a)
			best := slices.MinFunc(g, func(a, b *state.Endpoint) int {
				own := 0
				if a.Node == owner && b.Node != owner {
					own = -1
				} else if a.Node != owner && b.Node == owner {
					own = 1
				}
				return cmp.Or(own, cmp.Compare(a.At, b.At), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
			})
			if shown, ok := n.At(a); !ok || shown.ID != best.ID || shown.Node != best.Node {
				w.fatal("%s of %s: not the endpoint of %s is shown", a, n.Name, w.name(best.Node))
			}
			lost := 0
			for _, c := range v.Conflicts() {
				if c.Kind == state.ConflictAddress && c.Network == n.ID && c.What == a.String() {
					lost++
				}
			}
			if lost != len(g)-1 {
				w.fatal("%s of %s is claimed %d times, and %d conflicts are listed", a, n.Name, len(g), lost)
			}
		}
	}
	for _, n := range v.Networks() {
		w.checkCovered(n)
	}
	for _, h := range w.hosts {
		for id, p := range h.held {
			if e, ok := v.Endpoint(id); (!ok || e.Addr != p.addr) && !w.wronged {
				w.fatal("%s: container %s has %s, and no view says so", h.name, id, p.addr)
			}
		}
	}
}

// checkCovered: no part of a subnet is lost, while no node is and the network never was.
func (w *world) checkCovered(n *state.Network) {
	root, ok := n.Winner()
	if !ok || w.excuse != "" || len(w.dead) > 0 || w.removed[n.ID] {
		return
	}
	number := func(a netip.Addr) uint64 { b := a.As4(); return uint64(binary.BigEndian.Uint32(b[:])) }
	next := number(n.Def.Subnet.Addr())
	for _, b := range n.Blocks() { // by prefix: what contains another comes first
		if b.Root != root {
			continue
		}
		from := number(b.Prefix.Addr())
		if from > next {
			break
		}
		next = max(next, from+1<<(32-b.Prefix.Bits()))
	}
	if end := number(n.Def.Subnet.Addr()) + 1<<(32-n.Def.Subnet.Bits()); next != end {
		w.fatal("of %s of network %s nobody owns what follows the first %d addresses", n.Def.Subnet, n.Name, next-number(n.Def.Subnet.Addr()))
	}
}

// ownerOf is state.Network.Owner by looking at every block.
func ownerOf(n *state.Network, a netip.Addr) state.NodeID {
	sealed := map[state.Root]bool{}
	for _, b := range n.Blocks() {
		sealed[b.Root] = sealed[b.Root] || b.Sealed || b.Node != b.Root.Creator
	}
	var top *state.Block
	better := func(a, b *state.Block) bool {
		if sealed[a.Root] != sealed[b.Root] {
			return sealed[a.Root]
		}
		return cmp.Or(cmp.Compare(a.Root.At, b.Root.At), cmp.Compare(a.Root.Creator, b.Root.Creator),
			-cmp.Compare(a.Ver, b.Ver), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Node, b.Node)) < 0
	}
	for _, b := range n.Blocks() {
		if b.Prefix.Contains(a) && (top == nil || better(b, top)) {
			top = b
		}
	}
	if top == nil || top.Kind != state.Own {
		return 0
	}
	return top.Node
}

// freed notes when an address was given back: it rests for a minute.
func (w *world) freed(p place) {
	if w.rests == nil {
		w.rests = map[place]time.Duration{}
	}
	w.rests[p] = w.now
}

// probe has every host ask for an address of every network in turn: who asks gets one while anybody
// who is there owns a free one.
func (w *world) probe() {
	if w.c.nodes > 8 {
		return
	}
	for k, h := range w.hosts {
		w.until(w.now + 300*time.Millisecond) // what the one before got is known
		h.look()
		nets := h.view.Networks()
		if len(nets) == 0 {
			return
		}
		n := nets[k%len(nets)]
		if n.Removed || h.view.Killed(n.ID, h.id) {
			continue
		}
		free, got := w.ask(h, n)
		for tries := 1; !got && free > 0 && tries < 3 && strings.HasSuffix(fmt.Sprint(h.refused), "are being inherited; try again"); tries++ {
			w.until(w.now + 10*time.Second) // the heir may have to be told that it is one
			free, got = w.ask(h, n)
		}
		if !got && free > 0 && !w.namesDead(h.refused) && !w.waitsForDead(n.ID) {
			w.fatal("%s got none of the %d free addresses of %s %s", h.name, free, n.Name, n.Def.Subnet)
		}
	}
}

// waitsForDead reports whether an heir on a network waits for the word of somebody who is not there, or never was.
func (w *world) waitsForDead(id state.NetworkID) bool {
	there := func(id state.NodeID) bool {
		return slices.ContainsFunc(w.hosts, func(h *host) bool { return h.id == id })
	}
	return slices.ContainsFunc(w.hosts, func(h *host) bool {
		return h.up && slices.ContainsFunc(h.ipam.Quarantined(), func(q state.Quarantined) bool {
			return q.Network == id && !slices.ContainsFunc(q.Waits, there) && len(q.Waits) > 0
		})
	})
}

// ask has a host ask for an address of a network, and returns how many were free and whether it got one.
func (w *world) ask(h *host, n *state.Network) (free int, got bool) {
	free = w.free(n)
	id := state.EndpointID(h.dice.next() | 1)
	asked := h.attach(state.Attach{ID: id, Network: n.ID, Container: "probe"})
	h.commit()
	if asked == 0 {
		w.fatal("%s: cannot ask for an address of %s", h.name, n.Name)
	}
	for end := w.now + 12*time.Second; w.now < end && h.wants[id] != nil; {
		w.until(min(w.now+50*time.Millisecond, end))
	}
	if h.wants[id] != nil {
		w.fatal("%s: no answer to who wants an address of %s", h.name, n.Name)
	}
	_, got = h.held[id]
	return free, got
}

var rmpeerRE = regexp.MustCompile(`meshnet rmpeer (\S+)'`)

// namesDead reports whether a refusal asks for somebody to be given up who is gone: what that one had of an
// older root may hold up a newer one on who knows of it.
func (w *world) namesDead(err error) bool {
	if err == nil {
		return false
	}
	m := rmpeerRE.FindStringSubmatch(err.Error())
	return m != nil && !slices.ContainsFunc(w.hosts, func(h *host) bool { return h.name == m[1] })
}

// free is how many addresses of a network somebody who is there owns, and nobody has or had lately. What is
// owned under a root that lost is not: where the rest of the one that won is of a node that is gone, that one
// has to be given up first.
func (w *world) free(n *state.Network) int {
	root, _ := n.Winner()
	base := n.Def.Subnet.Masked().Addr()
	count := 0
	for i, a := 0, base; i < 256 && n.Def.Subnet.Contains(a); i, a = i+1, a.Next() {
		if !n.Def.Allocatable(a) {
			continue
		}
		if _, taken := n.At(a); taken {
			continue
		}
		b, ok := n.Top(a)
		if !ok || b.Kind != state.Own || b.State != state.Usable || b.Root != root {
			continue
		}
		slot, known := w.slots[b.Node]
		if !known || w.hosts[slot].id != b.Node {
			continue
		}
		if at, rests := w.rests[place{n.ID, a}]; rests && w.now < at+70*time.Second {
			continue
		}
		// A daemon that starts lets all that its log holds rest anew.
		if w.now < w.hosts[slot].start+70*time.Second && w.hosts[slot].start > time.Second {
			if _, ever := w.rests[place{n.ID, a}]; ever {
				continue
			}
		}
		count++
	}
	return count
}
