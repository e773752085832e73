package sim

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshnet/crdt"
	"meshnet/ipam"
	"meshnet/mesh/gossip"
	"meshnet/state"
)

// What follows is the loop of mesh.Node without memberlist, files and goroutines: the same steps in
// the same order, each method named after the one it stands for. mesh.Node is the measure: who
// changes one changes the other.

const (
	discoveryWindow = 3 * time.Second
	refreshMax      = 64
	renewsMax       = 3
	rewantDelay     = 10 * time.Second
	defaultName     = "default"
)

// recKind is what a record of the log holds.
type recKind uint8

const (
	recBoot recKind = iota
	recState
	recAttach
	recDetach
	recIPAM
)

type bootRec struct {
	kernel uint64
	epoch  crdt.Epoch
	actor  crdt.Actor
}

type rec struct {
	kind recKind
	boot *bootRec
	out  *state.Out
	ipam ipam.Record
	wish *state.Attach
}

// disk is a state directory: what survives a crash.
type disk struct {
	epoch  crdt.Epoch // of the identity, synced when written
	recs   []rec
	synced int
	torn   bool // the log ends within a record
	fresh  bool
}

// point is where in a commit a crash comes.
type point uint8

const (
	beforeWrite point = iota + 1
	beforeSync
	beforeSend
	amidSend
	points = amidSend
)

// fault is a crash to come.
type fault struct {
	at    point
	power bool
	down  time.Duration
	fate  uint64 // decides how much of the tail is lost
}

type want struct {
	wish state.Attach
	of   bool // of before the start: nobody waits for the answer
	at   time.Duration
}

// host is a machine with the daemon and its containers.
type host struct {
	w    *world
	slot int
	name string
	id   state.NodeID
	dice dice
	disk disk
	// image is a copy of the disk that may be restored.
	image  *disk
	kernel uint64
	skew   time.Duration // of the wall clock
	drift  float64       // of the wall clock, seconds a second
	fault  fault
	// held is what containers on this host use.
	held map[state.EndpointID]place

	life  uint32 // of the daemon
	up    bool
	start time.Duration

	doc    *state.Doc
	ipam   *ipam.Machine
	gossip *gossip.Machine
	view   *state.View
	alive  []state.NodeID
	wishes map[state.EndpointID]state.Attach
	wants  map[state.EndpointID]*want
	blocks map[blockKey]state.Block // own, as the document has them

	records []rec
	sync    bool
	outbox  []letter
	edits   []edit
	answers []ipam.Answer
	refused error // the last refusal
	heard   []rec // what others said, for the log
	mine    bool  // some of records is of this host's own making
	stale   bool  // the view is to be made anew
	unseen  bool  // ipam has not seen it
	broad   bool

	ipamNext, window, rewant, trustAt, follow time.Duration
	settled, doubtful, twin                   bool
	renews                                    []time.Duration
	heads                                     map[crdt.Head]crdt.Seq // highest seen, by (node, epoch)
	ticks                                     uint
	shown                                     map[state.EndpointID]seen // other hosts' endpoints
}

// seen is when an endpoint was last in the view, and of which epoch of its host.
type seen struct {
	at    time.Duration
	epoch crdt.Epoch
}

type blockKey struct {
	network state.NetworkID
	prefix  netip.Prefix
}

// edit is an endpoint of this host that comes or goes with the commit.
type edit struct {
	id    state.EndpointID
	place place
	gone  bool
}

func (w *world) newHost(slot int, generation uint64) *host {
	h := &host{
		w: w, slot: slot, name: string(rune('a' + slot%26)),
		dice: dice(mix(w.c.seed ^ mix(uint64(slot)<<8|generation))),
		held: map[state.EndpointID]place{}, kernel: 1,
		drift: w.c.drift[slot], skew: w.c.skew[slot],
	}
	if slot >= 26 {
		h.name += fmt.Sprint(slot / 26)
	}
	if generation > 0 {
		h.name += fmt.Sprintf("'%d", generation)
	}
	h.id = state.NodeID(h.dice.next() | 1)
	h.disk.fresh = true
	w.slots[h.id] = slot
	return h
}

func (h *host) now() time.Duration { return h.w.now - h.start }

// wall is what the host's clock shows, in seconds since 1970.
func (h *host) wall() int64 {
	t := h.w.now + h.skew + time.Duration(h.drift*float64(h.w.now))
	return 1_700_000_000 + int64(t/time.Second)
}

// open is mesh.openState.
func (h *host) open() (epoch crdt.Epoch, records []ipam.Record) {
	d := &h.disk
	last, booted := bootRec{}, false
	for i := range d.recs {
		if d.recs[i].kind == recBoot {
			last, booted = *d.recs[i].boot, true
		}
	}
	if !booted {
		last = bootRec{h.kernel, 1, crdt.Actor(h.dice.next())}
	}
	h.wishes = map[state.EndpointID]state.Attach{}
	h.doc = state.NewDoc(h.id, last.epoch, last.actor)
	var kept []rec
	for i := range d.recs {
		switch r := &d.recs[i]; r.kind {
		case recState:
			h.doc.Restore(*r.out)
			kept = append(kept, *r)
		case recAttach:
			h.wishes[r.wish.ID] = *r.wish
		case recDetach:
			delete(h.wishes, r.wish.ID)
		case recIPAM:
			records = append(records, r.ipam)
		}
	}
	doubt := d.torn || !booted || last.kernel != h.kernel || d.epoch > last.epoch
	h.doubtful = false
	if doubt && !d.fresh {
		heard, _ := h.doc.Doubt()
		last.epoch = h.laterEpoch(max(h.doc.Epoch(), heard, d.epoch))
		last.actor = crdt.Actor(h.dice.next())
		h.w.began[crdt.Head{Node: h.id, Epoch: last.epoch}] = h.w.now
		own := h.doc.Renew(last.epoch, last.actor)
		patches, shared := dump(h.doc)
		others := state.Out{Shared: []crdt.Delta{shared}}
		for _, p := range patches {
			if p.Node != h.id {
				others.Patches = append(others.Patches, p)
			}
		}
		kept = append(kept[:0], rec{kind: recState, out: &own}, rec{kind: recState, out: &others})
	} else {
		h.doubtful = !d.fresh
	}
	last.kernel = h.kernel
	d.epoch, d.torn, d.fresh = last.epoch, false, false
	rs := []rec{{kind: recBoot, boot: &last}}
	for _, r := range records {
		rs = append(rs, rec{kind: recIPAM, ipam: r})
	}
	rs = append(rs, kept...)
	for _, w := range sortedWishes(h.wishes) {
		rs = append(rs, rec{kind: recAttach, wish: &w})
	}
	d.recs, d.synced = rs, len(rs)
	return last.epoch, records
}

func (h *host) laterEpoch(e crdt.Epoch) crdt.Epoch { return e + 1 + crdt.Epoch(h.dice.below(1<<16)) }

// boot starts the daemon: mesh.New and the beginning of mesh.Node.Run.
func (h *host) boot() {
	h.up, h.start = true, h.w.now
	epoch, records := h.open()
	h.w.note("%s starts, epoch %d, doubtful %v", h.name, epoch, h.doubtful)
	h.ipam = ipam.New(ipam.Config{Self: h.id, Epoch: epoch, Records: records, Quarantine: 2 * time.Second})
	h.gossip = gossip.New(gossip.Config{Self: h.id, Doc: h.doc, Seed: h.dice.next(), Flat: h.w.c.flat})
	h.view = h.doc.View()
	h.alive, h.records, h.heard, h.outbox, h.edits, h.answers = nil, nil, nil, nil, nil, nil
	h.mine, h.sync, h.unseen, h.broad, h.settled, h.twin = false, false, false, false, false, false
	h.ipamNext, h.rewant, h.trustAt, h.follow, h.renews = 0, 0, 0, 0, nil
	h.wants = map[state.EndpointID]*want{}
	h.shown = map[state.EndpointID]seen{}
	h.survey()

	h.stale = true
	h.window = discoveryWindow
	h.introduce()
	h.refresh()
	h.takeUp()
	h.commit()
	h.w.members(500 * time.Millisecond)
}

// stop ends the daemon; with power the whole machine.
func (h *host) stop(power bool, fate uint64, down time.Duration) {
	h.w.note("%s stops, power %v, for %v", h.name, power, down)
	h.up, h.fault = false, fault{}
	h.life++
	h.w.wake[h.slot] = 0
	h.disk.recs = slices.Clip(h.disk.recs)
	if power {
		d := dice(fate)
		tail := len(h.disk.recs) - h.disk.synced
		keep := d.below(tail + 1)
		h.disk.torn = keep < tail && d.chance(0.5)
		h.disk.recs = slices.Clip(h.disk.recs[:h.disk.synced+keep])
		h.disk.synced = len(h.disk.recs)
		h.kernel++
		h.releaseAll()
		h.heads = nil
	}
	h.w.after(down, event{kind: evStart, host: int32(h.slot), life: h.life})
	h.w.members(2 * time.Second)
}

func (h *host) introduce() {
	h.apply(state.PutNode{Node: state.Node{
		Name: h.name, Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(h.slot + 1)}), GossipPort: 17946, TunnelPort: 14789, MTU: 1500,
		Version: h.w.c.version,
	}})
}

func (h *host) tick() {
	now := h.now()
	if at := h.gossip.Next(); at != 0 && at <= now {
		h.act(h.gossip.Step(now, gossip.Tick{}))
	}
	if h.ipamNext != 0 && h.ipamNext <= now {
		h.ipamNext = 0
		h.step(ipam.Tick{})
	}
	if !h.settled && h.window <= now {
		h.settle()
	}
	if h.rewant != 0 && h.rewant <= now {
		h.takeUp()
	}
	h.commit()
	if h.ticks++; h.ticks%8 == 0 && h.up {
		h.checkHeads()
		h.checkShown()
	}
}

// plan says when the next tick is due.
func (h *host) plan() {
	next := h.gossip.Next()
	for _, at := range [...]time.Duration{h.ipamNext, h.rewant, h.follow} {
		if at != 0 && (next == 0 || at < next) {
			next = at
		}
	}
	if !h.settled && (next == 0 || h.window < next) {
		next = h.window
	}
	if next != 0 {
		next += h.start
		if !h.w.calm && h.w.c.slow == h.slot {
			next += 50 * time.Millisecond
		}
	}
	h.w.wake[h.slot] = next
}

func (h *host) receive(from state.NodeID, c channel, body []byte) {
	switch c {
	case chanGossip:
		h.act(h.gossip.Step(h.now(), gossip.Packet{From: from, Body: body}))
		h.checkEpoch()
	case chanIPAM:
		if h.doubtful && (h.trustAt == 0 || h.now() < h.trustAt) {
			return
		}
		h.refresh()
		h.step(ipam.Msg{From: from, Body: body})
	}
}

func (h *host) meet(alive []state.NodeID) {
	h.alive = alive
	if h.trustAt == 0 && len(h.alive) > 0 {
		h.trustAt = h.now() + discoveryWindow
	}
	h.act(h.gossip.Step(h.now(), gossip.Members{Alive: h.alive}))
	h.refresh()
	h.step(ipam.Members{Alive: h.alive})
}

func (h *host) act(as []gossip.Action) {
	for _, a := range as {
		switch a := a.(type) {
		case gossip.News:
			h.heard = append(h.heard, rec{kind: recState, out: &a.Out})
			h.stale = true
			h.broad = h.broad || !a.Out.OfEndpoints()
		case gossip.Send:
			h.outbox = append(h.outbox, letter{h.id, a.To, chanGossip, false, a.Body})
		case gossip.Stream:
			h.outbox = append(h.outbox, letter{h.id, a.To, chanGossip, true, a.Body})
		case gossip.Agreed:
			h.doubtful = false
			if !h.settled {
				h.settle()
			}
		default:
			h.w.fatal("gossip asks for a %T, which the simulation does not know", a)
		}
	}
}

func (h *host) apply(cs ...state.Change) {
	if len(cs) == 0 {
		return
	}
	out, err := h.doc.Apply(cs...)
	if err == nil {
		h.changed(cs)
		h.tell(out)
		return
	}
	if len(cs) == 1 {
		h.w.note("%s: own record not written: %v", h.name, err)
		return
	}
	for _, c := range cs {
		h.apply(c)
	}
}

// changed keeps the books of this host's own endpoints and blocks.
func (h *host) changed(cs []state.Change) {
	for _, c := range cs {
		switch c := c.(type) {
		case state.PutEndpoint:
			h.edits = append(h.edits, edit{c.Endpoint.ID, place{c.Endpoint.Network, c.Endpoint.Addr}, false})
		case state.RemoveEndpoint:
			h.edits = append(h.edits, edit{id: c.ID, gone: true})
		case state.PutBlock:
			b := c.Block
			b.Node = h.id
			h.blocks[blockKey{b.Network, b.Prefix}] = b
			if h.w.tracing {
				h.w.note("%s: %s ver %d kind %d state %d to %s/%d root %s", h.name, b.Prefix, b.Ver, b.Kind, b.State, h.w.name(b.To), b.ToEpoch, h.w.name(b.Root.Creator))
			}
		case state.RemoveBlock:
			delete(h.blocks, blockKey{c.Network, c.Prefix})
			h.w.note("%s: %s removed", h.name, c.Prefix)
		}
	}
}

func (h *host) tell(out state.Out) {
	if out.Empty() {
		return
	}
	h.write(rec{kind: recState, out: &out})
	h.stale = true
	h.broad = h.broad || !out.OfEndpoints()
	h.w.changes++
	h.w.local = h.w.now
	if h.w.ref != nil {
		h.w.ref.said(out)
	}
	h.act(h.gossip.Step(h.now(), gossip.Local{Out: out}))
}

func (h *host) step(ev ipam.Event) {
	e := h.ipam.Step(h.now(), ev)
	for _, r := range e.Log {
		h.write(rec{kind: recIPAM, ipam: r})
	}
	h.sync = h.sync || e.Sync
	h.apply(e.Changes...)
	for _, m := range e.Send {
		h.outbox = append(h.outbox, letter{h.id, m.To, chanIPAM, false, m.Body})
	}
	h.ipamNext = e.Next
	for _, a := range e.Done {
		h.answered(a)
	}
}

func (h *host) look() {
	if h.stale {
		h.stale, h.unseen = false, true
		h.view = h.doc.View()
	}
}

func (h *host) refresh() {
	for i := 0; h.stale || h.unseen; i++ {
		if i == refreshMax {
			h.w.fatal("%s: every view leads to another change", h.name)
		}
		h.look()
		h.unseen = false
		h.step(ipam.Saw{View: h.view})
		h.obeyKills()
		h.checkEpoch()
	}
}

// write notes a record of this host's own making for the log.
func (h *host) write(r rec) {
	h.records = append(h.records, r)
	h.mine = true
}

// commit is mesh.Node.commit: what follows from others' news for addresses waits a moment, unless
// somebody waits for an address.
func (h *host) commit() {
	if h.mine || h.sync || len(h.outbox)+len(h.answers) > 0 {
		if h.flush(); !h.up {
			return
		}
	}
	if len(h.wants) == 0 && (h.stale || h.unseen || len(h.heard) > 0) {
		now := h.now()
		if due := now + ipam.Patience(h.id, h.broad); h.follow == 0 || due < h.follow {
			h.follow = due
		}
		if now < h.follow {
			h.plan()
			return
		}
	}
	h.follow, h.broad = 0, false
	h.refresh()
	if h.flush(); h.up {
		h.plan()
	}
}

// flush writes the log, then sends and answers what waited for it; a crash may come in between.
func (h *host) flush() {
	h.records = append(h.records, h.heard...)
	h.heard = h.heard[:0]
	f := h.fault
	if f.at != 0 && len(h.records)+len(h.outbox) == 0 {
		f.at = 0
	}
	if f.at == beforeWrite {
		h.crash(f)
		return
	}
	h.disk.recs = append(h.disk.recs, h.records...)
	h.records, h.mine = h.records[:0], false
	for _, e := range h.edits {
		if e.gone {
			h.release(e.id)
		} else if was, ok := h.held[e.id]; !ok || was != e.place {
			h.release(e.id)
			h.hold(e.id, e.place)
		}
	}
	h.edits = h.edits[:0]
	if f.at == beforeSync {
		h.crash(f)
		return
	}
	if h.sync {
		h.disk.synced = len(h.disk.recs)
		h.sync = false
	}
	if f.at == beforeSend {
		h.crash(f)
		return
	}
	for i, l := range h.outbox {
		if f.at == amidSend && i == len(h.outbox)/2 {
			h.crash(f)
			return
		}
		h.w.send(h, l)
	}
	h.outbox = h.outbox[:0]
	h.released()
}

func (h *host) crash(f fault) {
	h.w.note("%s crashes at point %d of a commit", h.name, f.at)
	h.stop(f.power, f.fate, f.down)
}

func (h *host) settle() {
	h.settled = true
	h.refresh()
	h.makeDefault()
	h.refresh()
	h.step(ipam.Settled{At: h.wall()})
}

func (h *host) makeDefault() {
	if _, ok := h.view.ByName(defaultName); ok || !h.w.c.subnet.IsValid() {
		return
	}
	w := state.Create{Name: defaultName, Subnet: h.w.c.subnet}
	for range 2 {
		def, err := w.Definition(h.taken())
		if err != nil {
			return
		}
		out, err := h.doc.Apply(state.CreateNetwork{Def: def, At: h.wall()})
		if err == nil {
			h.w.note("%s: makes default %s", h.name, def.Subnet)
			h.tell(out)
			return
		}
		w.Subnet = netip.Prefix{}
	}
}

func (h *host) taken() []netip.Prefix {
	var ps []netip.Prefix
	for _, nw := range h.view.Networks() {
		ps = append(ps, nw.Def.Subnet)
	}
	return ps
}

func (h *host) create(w state.Create) {
	h.refresh()
	have, exists := h.view.ByName(w.Name)
	exists = exists && !have.Removed
	def, err := w.Definition(h.taken())
	if err != nil {
		return
	}
	if exists {
		def.Life = have.Def.Life
		if def.ID() == have.ID {
			return
		}
		def.Life = 0
	}
	at := h.wall()
	out, err := h.doc.Apply(state.CreateNetwork{Def: def, At: at, Force: w.Force})
	if err != nil {
		h.w.note("%s: %v", h.name, err)
		return
	}
	h.tell(out)
	h.refresh()
	nw, ok := h.view.ByName(w.Name)
	if !ok {
		h.w.fatal("%s: network %s is not there after it was created", h.name, w.Name)
	}
	h.w.note("%s: makes %s %s", h.name, nw.Name, nw.Def.Subnet)
	h.step(ipam.Founded{Network: nw.ID, At: at})
}

func (h *host) remove(id state.NetworkID, force bool) {
	h.refresh()
	out, err := h.doc.Apply(state.RemoveNetwork{ID: id, Force: force})
	if err != nil {
		h.w.note("%s: %v", h.name, err)
		return
	}
	h.w.note("%s: removes network %s", h.name, id)
	h.w.removed[id] = true
	h.tell(out)
	h.refresh()
	if n, ok := h.view.Network(id); ok && !n.Removed {
		h.w.fatal("%s: network %s is there after it was removed", h.name, n.Name)
	}
}

func (h *host) forget(id state.NodeID, epoch crdt.Epoch) {
	h.refresh()
	out, err := h.doc.Apply(state.Forget{Node: id, Epoch: epoch})
	if err != nil {
		h.w.note("%s: %v", h.name, err)
		return
	}
	h.w.note("%s: rmpeer %s up to epoch %d", h.name, h.w.name(id), epoch)
	h.tell(out)
}

func (h *host) own(id state.EndpointID) (state.Endpoint, bool) {
	h.refresh()
	e, ok := h.view.Endpoint(id)
	if !ok || e.Node != h.id {
		return state.Endpoint{}, false
	}
	return *e, true
}

// attach asks for an address and returns what the endpoint is called; 0: refused, or it has one.
func (h *host) attach(w state.Attach) state.EndpointID {
	h.refresh()
	nw, ok := h.view.Network(w.Network)
	if !ok || h.twin {
		return 0
	}
	for _, old := range sortedWishes(h.wishes) {
		if old.ID == w.ID || old.Network == w.Network && old.Container == w.Container {
			w.ID = old.ID
		}
	}
	for _, id := range sortedKeys(h.wants) {
		if old := h.wants[id]; old.wish.Network == w.Network && old.wish.Container == w.Container {
			w.ID = old.wish.ID
		}
	}
	if e, ok := h.own(w.ID); ok {
		h.reattach(w, e)
		return 0
	}
	if waits, ok := h.wants[w.ID]; ok {
		waits.of = false
		return w.ID
	}
	if nw.Removed {
		return 0
	}
	h.wants[w.ID] = &want{w, false, h.w.now}
	h.step(ipam.Want{Wish: w, At: h.wall()})
	return w.ID
}

// reattach takes over what a repeated wish says anew.
func (h *host) reattach(w state.Attach, e state.Endpoint) {
	if w.Addr.IsValid() && w.Addr != e.Addr {
		return
	}
	e.Container, e.IfName, e.Names = w.Container, cmp.Or(w.IfName, e.IfName), w.Names
	out, err := h.doc.Apply(state.PutEndpoint{Endpoint: e})
	if err != nil {
		h.w.note("%s: %v", h.name, err)
		return
	}
	h.tell(out)
	w.ID = e.ID
	h.keep(w)
}

func (h *host) keep(w state.Attach) {
	h.wishes[w.ID] = w
	h.write(rec{kind: recAttach, wish: &w})
}

func (h *host) answered(a ipam.Answer) {
	w, ok := h.wants[a.ID]
	if !ok {
		return
	}
	delete(h.wants, a.ID)
	if a.Err != nil {
		h.refused = a.Err
		if h.w.tracing {
			h.w.note("%s: %s: %v", h.name, w.wish.Container, a.Err)
		}
		if w.of {
			h.rewant = h.now() + rewantDelay
		}
		return
	}
	h.w.note("%s: %s has %s of %s", h.name, w.wish.Container, a.Addr, w.wish.Network)
	w.wish.ID = a.Endpoint
	h.keep(w.wish)
	h.answers = append(h.answers, a)
}

func (h *host) giveUp(id state.EndpointID) {
	w, ok := h.wants[id]
	if !ok || w.of {
		return
	}
	if _, kept := h.wishes[id]; kept {
		w.of = true
		return
	}
	delete(h.wants, id)
	h.step(ipam.GiveUp{ID: id})
	h.commit()
}

func (h *host) detach(id state.EndpointID) {
	if _, ok := h.wants[id]; ok {
		delete(h.wants, id)
		h.step(ipam.GiveUp{ID: id})
	}
	if w, ok := h.wishes[id]; ok {
		h.w.note("%s: detaches %s", h.name, w.Container)
		delete(h.wishes, id)
		h.write(rec{kind: recDetach, wish: &w})
	}
	if e, ok := h.own(id); ok {
		h.step(ipam.Free{Endpoint: id, Alloc: e.Alloc})
		if _, still := h.own(id); still {
			h.apply(state.RemoveEndpoint{ID: id})
		}
	}
}

func (h *host) takeUp() {
	h.rewant = 0
	h.refresh()
	for _, w := range sortedWishes(h.wishes) {
		_, has := h.own(w.ID)
		_, waits := h.wants[w.ID]
		if has || waits {
			continue
		}
		if _, ok := h.view.Network(w.Network); !ok && h.settled {
			h.detach(w.ID)
			continue
		}
		h.wants[w.ID] = &want{w, true, h.w.now}
		h.step(ipam.Want{Wish: w, At: h.wall()})
	}
	for _, nw := range h.view.Networks() {
		var unwished []state.EndpointID
		if nw.HasMember(h.id) {
			for e := range nw.Claims() {
				if _, ok := h.wishes[e.ID]; !ok && e.Node == h.id {
					unwished = append(unwished, e.ID)
				}
			}
		}
		for _, id := range unwished {
			h.detach(id)
		}
	}
}

func (h *host) obeyKills() {
	if len(h.wishes) == 0 {
		return
	}
	for _, n := range h.view.Networks() {
		if !h.view.Killed(n.ID, h.id) {
			continue
		}
		for _, w := range sortedWishes(h.wishes) {
			if w.Network == n.ID {
				h.detach(w.ID)
			}
		}
	}
}

func sortedWishes(ws map[state.EndpointID]state.Attach) []state.Attach {
	if len(ws) == 0 {
		return nil
	}
	out := make([]state.Attach, 0, len(ws))
	for _, w := range ws {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b state.Attach) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	if len(m) == 0 {
		return nil
	}
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
