package sim

import (
	"fmt"
	"slices"
	"time"

	"meshnet/crdt"
	"meshnet/ipam"
	"meshnet/state"
)

// survey compares what containers use with what the log holds of it: what was answered is there.
func (h *host) survey() {
	h.blocks = map[blockKey]state.Block{}
	own := map[state.EndpointID]place{}
	for _, n := range h.view.Networks() {
		for _, b := range n.Blocks() {
			if b.Node == h.id {
				h.blocks[blockKey{n.ID, b.Prefix}] = *b
			}
		}
		for e := range n.Claims() {
			if e.Node == h.id {
				own[e.ID] = place{n.ID, e.Addr}
			}
		}
	}
	for id, p := range h.held {
		if own[id] != p && !h.w.wronged {
			h.w.fatal("%s: %s of %s was answered and is not in the log", h.name, p.addr, id)
		}
	}
	for _, id := range sortedKeys(own) {
		if _, ok := h.held[id]; !ok {
			h.hold(id, own[id])
		}
	}
}

// released lets the answers go and checks what they promise.
func (h *host) released() {
	if len(h.answers) > 0 {
		h.look()
	}
	for _, a := range h.answers {
		e, ok := h.view.Endpoint(a.Endpoint)
		if !ok || e.Node != h.id || e.Addr != a.Addr {
			if h.mayMiss(a.Endpoint) || h.w.wronged {
				continue
			}
			h.w.fatal("%s: %s was answered for %s, which its view does not have", h.name, a.Addr, a.Endpoint)
		}
		n, _ := h.view.Network(e.Network)
		if n == nil {
			continue
		}
		if owner, ok := n.Owner(a.Addr); (!ok || owner != h.id) && h.fresh(a) && !h.w.wronged && h.w.excuse == "" {
			h.w.fatal("%s: %s of %s was allocated; its own view says the owner is %s", h.name, a.Addr, n.Name, h.w.name(owner))
		}
	}
	h.answers = h.answers[:0]
}

// mayMiss reports whether an endpoint was detached in the step of its answer.
func (h *host) mayMiss(id state.EndpointID) bool {
	_, wished := h.wishes[id]
	return !wished
}

// fresh reports whether an answer is an allocation of this moment, not one of before.
func (h *host) fresh(a ipam.Answer) bool { return a.ID == a.Endpoint }

func (h *host) checkEpoch() {
	doubt, lost := h.doc.Doubt()
	gone, given := h.view.Forgotten(h.id)
	given = given && gone >= h.doc.Epoch()
	if !lost && !given {
		return
	}
	now := h.now()
	h.renews = slices.DeleteFunc(h.renews, func(at time.Duration) bool { return now-at > time.Minute })
	if h.twin = len(h.renews) >= renewsMax; h.twin {
		return
	}
	h.renews = append(h.renews, now)
	epoch := h.laterEpoch(max(h.doc.Epoch(), doubt, gone))
	h.w.note("%s: others know more of it, or gave it up; epoch %d", h.name, epoch)
	actor := crdt.Actor(h.dice.next())
	h.disk.epoch = epoch
	h.w.began[crdt.Head{Node: h.id, Epoch: epoch}] = h.w.now
	h.write(rec{kind: recBoot, boot: &bootRec{h.kernel, epoch, actor}})
	h.doubtful = false
	h.tell(h.doc.Renew(epoch, actor))
	h.stale = true
	h.introduce()
	h.rewant = now + time.Millisecond
}

// hold notes that a container of this host has an address, and checks that no other has.
func (h *host) hold(id state.EndpointID, p place) {
	h.held[id] = p
	x := &holding{h, id, h.rootOf(p), h.doc.Epoch(), h.w.now}
	for _, o := range h.w.holds[p] {
		if o.host == h && o.id == id {
			h.w.fatal("%s: %s held twice by %s", h.name, p.addr, id)
		}
		if h.w.excuse == "" && o.root == x.root && o.host.rootOf(p) == x.root {
			h.w.fatal("%s on %s is held by %s and %s under one root", p.addr, p.network, h.name, o.host.name)
		}
	}
	h.w.holds[p] = append(h.w.holds[p], x)
}

func (h *host) release(id state.EndpointID) {
	p, ok := h.held[id]
	if !ok {
		return
	}
	delete(h.held, id)
	h.w.freed(p)
	h.w.holds[p] = slices.DeleteFunc(h.w.holds[p], func(x *holding) bool { return x.host == h && x.id == id })
}

func (h *host) releaseAll() {
	for id, p := range h.held {
		h.w.holds[p] = slices.DeleteFunc(h.w.holds[p], func(x *holding) bool { return x.host == h && x.id == id })
	}
	clear(h.held)
}

// rootOf is the root of the own block that an address is in.
func (h *host) rootOf(p place) state.Root {
	for k, b := range h.blocks {
		if k.network == p.network && b.Kind == state.Own && k.prefix.Contains(p.addr) {
			return b.Root
		}
	}
	return state.Root{}
}

// checkShown: what another host holds and this one has shown meanwhile does not go, whatever epoch
// begins there. What was shown of an earlier epoch may be of before it was given back, which a loss of
// power undid; and who rolled a disk back may live in an epoch before one that others know, for a while.
func (h *host) checkShown() {
	if h.w.wronged {
		return
	}
	for id, was := range h.shown {
		if e, ok := h.view.Endpoint(id); ok {
			h.show(e)
			continue
		}
		for _, o := range h.w.hosts {
			if p, ok := o.held[id]; ok && o != h {
				for _, x := range h.w.holds[p] {
					if x.host == o && x.id == id && x.since < was.at && x.epoch <= was.epoch && !h.showsEarlier(x) {
						h.w.fatal("%s showed %s of %s at %v and does no more, though %s holds it", h.name, p.addr, o.name, was.at, o.name)
					}
				}
			}
		}
		delete(h.shown, id)
	}
	for _, o := range h.w.hosts {
		for id := range o.held {
			if e, ok := h.view.Endpoint(id); ok && o != h {
				h.show(e)
			}
		}
	}
}

// showsEarlier reports whether of the host of a holding this one shows an epoch that began before.
func (h *host) showsEarlier(x *holding) bool {
	n, ok := h.view.Node(x.host.id)
	return ok && n.Epoch != x.epoch && h.w.began[crdt.Head{Node: n.ID, Epoch: n.Epoch}] < x.since
}

func (h *host) show(e *state.Endpoint) {
	s := seen{at: h.w.now}
	if n, ok := h.view.Node(e.Node); ok {
		s.epoch = n.Epoch
	}
	h.shown[e.ID] = s
}

// checkHeads: how far a node's map is known does not fall within an epoch, not by a restart either.
func (h *host) checkHeads() {
	was := h.heads
	h.heads = map[crdt.Head]crdt.Seq{}
	for b := range crdt.Buckets {
		for _, x := range h.doc.Heads(b) {
			k := crdt.Head{Node: x.Node, Epoch: x.Epoch}
			if x.Seq < was[k] {
				h.w.fatal("%s knew %s up to %d/%d, and now up to %d", h.name, h.w.name(x.Node), x.Epoch, was[k], x.Seq)
			}
			h.heads[k] = x.Seq
		}
	}
}

// extra is what a later version of the program does: a record of a kind that is not known here, or a
// known one with a field more.
func (h *host) extra(pick uint64) {
	h.refresh()
	var head crdt.Head
	for _, x := range h.doc.Heads(crdt.BucketOf(h.id)) {
		if x.Node == h.id {
			head = x
		}
	}
	op := crdt.Op{Node: h.id, Epoch: head.Epoch, Seq: head.Seq + 1, Ext: []byte{0x9a, 6, 2, 'x', byte(pick)}}
	op.Key, op.Value = fmt.Appendf(nil, "moon/%x", pick%4), []byte{9, byte(pick >> 8)}
	patches, _ := h.doc.Missing([]crdt.Head{{Node: h.id}}, 1<<30)
	if len(patches.Patches) > 0 && pick&1 == 0 {
		p := patches.Patches[0]
		op.Whole = p.Whole
		if n := len(p.Ops); n > 0 {
			was := p.Ops[int(pick>>16%uint64(n))]
			if len(was.Value) == 0 || string(was.Key) == "node" {
				return
			}
			op.Key, op.Closes = was.Key, []crdt.Seq{was.Seq}
			op.Value = append(slices.Clone(was.Value), 0x9a, 6, 2, 'y', byte(pick)) // field 99
		}
	}
	if h.doc.Epoch() != op.Epoch {
		return
	}
	out := state.Out{Ops: []crdt.Op{op}}
	h.w.note("%s: writes %s as a later version would", h.name, op.Key)
	h.doc.Restore(out)
	h.tell(out)
}
