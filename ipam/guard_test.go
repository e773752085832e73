package ipam

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

// rig is one machine with its document, and the documents of other nodes that a test writes by hand.
type rig struct {
	t    *testing.T
	now  time.Duration
	m    *Machine
	doc  *state.Doc
	peer map[state.NodeID]*state.Doc
	net  state.NetworkID

	last Effects // of the last step, with what its view brought
	log  []Record
}

const self state.NodeID = 1

// newRig makes a machine that knows some other nodes, 2 and so on, and a network of one of all.
func newRig(t *testing.T, others int, name, subnet string, creator state.NodeID) *rig {
	r := &rig{t: t, peer: map[state.NodeID]*state.Doc{}, now: time.Second}
	r.doc = state.NewDoc(self, 1, 1)
	r.m = New(Config{Self: self, Epoch: 1})
	r.peer[self] = r.doc
	for id := self + 1; id <= self+state.NodeID(others); id++ {
		r.peer[id] = state.NewDoc(id, 1, crdt.Actor(id))
	}
	for id := self; id <= self+state.NodeID(others); id++ {
		r.say(id, state.PutNode{Node: state.Node{Name: string(rune('a' + id - 1)), Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(id)}), MTU: 1500}})
	}
	def, err := state.Create{Name: name, Subnet: netip.MustParsePrefix(subnet)}.Definition(nil)
	if err != nil {
		t.Fatal(err)
	}
	r.net = def.ID()
	r.say(creator, state.CreateNetwork{Def: def, At: 1})
	return r
}

// say makes a change by a node, which all others learn.
func (r *rig) say(id state.NodeID, cs ...state.Change) {
	r.t.Helper()
	out, err := r.peer[id].Apply(cs...)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range r.peer {
		d.Merge(out)
	}
	r.see()
}

func (r *rig) see() {
	r.step(Saw{r.doc.View()})
}

func (r *rig) step(ev Event) Effects {
	r.t.Helper()
	r.last = r.one(ev)
	for {
		v := r.doc.View()
		if v == r.m.view {
			return r.last
		}
		more := r.one(Saw{v})
		r.last.Changes = append(r.last.Changes, more.Changes...)
		r.last.Send = append(r.last.Send, more.Send...)
		r.last.Done = append(r.last.Done, more.Done...)
		r.last.Sync = r.last.Sync || more.Sync
		r.last.Next = more.Next
	}
}

func (r *rig) one(ev Event) Effects {
	r.t.Helper()
	eff := r.m.Step(r.now, ev)
	r.log = append(r.log, eff.Log...)
	if len(eff.Changes) == 0 {
		return eff
	}
	out, err := r.doc.Apply(eff.Changes...)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range r.peer {
		if d != r.doc {
			d.Merge(out)
		}
	}
	return eff
}

// restart makes the machine anew from its log.
func (r *rig) restart() {
	r.m = New(Config{Self: self, Epoch: r.doc.Epoch(), Records: r.log})
	r.now += time.Second
	r.see()
	r.step(Settled{1})
}

func (r *rig) alive(ids ...state.NodeID) { r.step(Members{ids}) }

func (r *rig) tell(from state.NodeID, m message) Effects {
	m.network = r.net
	return r.step(Msg{from, m.encode()})
}

// ask is what another node says that wants a block.
func ask(bits uint8) message {
	return message{kind: msgAsk, seq: 7, epoch: 1, born: 1, urgent: true, bits: bits}
}

// want asks for an address for a container and returns the answer, if there is one.
func (r *rig) want(id state.EndpointID, container, addr string) (Answer, bool) {
	r.t.Helper()
	w := state.Attach{ID: id, Network: r.net, Container: container}
	if addr != "" {
		w.Addr = netip.MustParseAddr(addr)
	}
	for _, a := range r.step(Want{Wish: w, At: 9}).Done {
		if a.ID == id {
			return a, true
		}
	}
	return Answer{}, false
}

// has fails unless a container gets an address.
func (r *rig) has(id state.EndpointID, addr string) Answer {
	r.t.Helper()
	a, ok := r.want(id, "c"+id.String(), addr)
	if !ok || a.Err != nil {
		r.t.Fatalf("no address: answered %v, %v", ok, a.Err)
	}
	return a
}

func (r *rig) waits(id state.EndpointID) {
	r.t.Helper()
	if a, ok := r.want(id, "c"+id.String(), ""); ok {
		r.t.Fatalf("answered at once: %v %v", a.Addr, a.Err)
	}
}

// sent returns the messages of a kind that the last step sent.
func (r *rig) sent(kind messageKind) (out []message, to []state.NodeID) {
	for _, e := range r.last.Send {
		m, err := decodeMessage(e.Body)
		if err != nil {
			r.t.Fatal(err)
		}
		if m.kind == kind {
			out, to = append(out, m), append(to, e.To)
		}
	}
	return out, to
}

func (r *rig) block(prefix string) (state.Block, bool) {
	n := r.m.nets[r.net]
	i, ok := n.find(netip.MustParsePrefix(prefix))
	if !ok {
		return state.Block{}, false
	}
	return n.blocks[i], true
}

var rootOf2 = state.Root{Creator: 2, At: 1}

// own is a record of another node; offer is one to this node.
func (r *rig) own(prefix string, root state.Root, ver uint64, lineage ...state.NodeID) state.PutBlock {
	return state.PutBlock{Block: state.Block{Network: r.net, Prefix: netip.MustParsePrefix(prefix), Root: root, Ver: ver, Lineage: lineage}}
}

func (r *rig) offer(from state.NodeID, prefix string, root state.Root, ver uint64) state.PutBlock {
	p := r.own(prefix, root, ver, from)
	p.Block.Kind, p.Block.To, p.Block.ToEpoch = state.Offer, self, 1
	return p
}

// R

func TestRootOfFounder(t *testing.T) {
	r := newRig(t, 3, "blue", "10.7.0.0/24", self)
	eff := r.step(Founded{r.net, 5})
	b, ok := r.block("10.7.0.0/24")
	if !ok || b.Ver != 1 || b.Root != (state.Root{Creator: self, At: 5}) || b.State != state.Usable || len(b.Lineage) != 3 {
		t.Fatal(b, ok)
	}
	if !eff.Sync || len(eff.Log) != 1 {
		t.Fatal("a root that is not synced")
	}
	if a := r.has(1, ""); !netip.MustParsePrefix("10.7.0.0/24").Contains(a.Addr) {
		t.Fatal(a.Addr)
	}
}

func TestNoRootWhereBlocksAreKnown(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", 2)
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1))
	r.step(Founded{r.net, 5})
	if _, ok := r.block("10.7.0.0/24"); ok {
		t.Fatal("a second root")
	}
}

func TestRootIsTakenOnce(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	// All was given away and cleaned.
	r.m.nets[r.net].remove(netip.MustParsePrefix("10.7.0.0/24"))
	r.step(Founded{r.net, 6})
	r.step(Settled{7})
	if _, ok := r.block("10.7.0.0/24"); ok {
		t.Fatal("a second root")
	}
}

func TestRootAfterCrashOfCreator(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.step(Tick{})
	if _, ok := r.block("10.7.0.0/24"); ok {
		t.Fatal("a root before the discovery window is over")
	}
	r.step(Settled{7})
	if _, ok := r.block("10.7.0.0/24"); !ok {
		t.Fatal("no root")
	}
}

func TestNoRootOfOthersNetwork(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", 2)
	r.step(Settled{7})
	if _, ok := r.block("10.7.0.0/24"); ok {
		t.Fatal("a root of another node's network")
	}
}

// first returns a rig of the default network in which this node comes first, or does not.
func rigOfDefault(t *testing.T, first bool) *rig {
	for i := range 64 {
		r := newRig(t, 1, Default, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24).String(), 2)
		if (rank(r.net, []state.NodeID{1, 2})[0] == self) == first {
			r.alive(2)
			return r
		}
	}
	t.Fatal("no such network")
	return nil
}

func TestRootOfDefault(t *testing.T) {
	r := rigOfDefault(t, true)
	r.step(Founded{r.net, 5}) // as every node says
	if r.m.nets[r.net].known {
		t.Fatal("a root before the discovery window is over")
	}
	r.step(Settled{7})
	if !r.m.nets[r.net].known {
		t.Fatal("no root by the first")
	}
}

func TestRootOfDefaultByAnother(t *testing.T) {
	r := rigOfDefault(t, false)
	r.step(Settled{7})
	if _, to := r.sent(msgRoot); r.m.nets[r.net].known || !slices.Equal(to, []state.NodeID{2}) {
		t.Fatal("the first was not asked", to)
	}
	r.now += 150 * time.Millisecond
	r.tell(2, message{kind: msgWait})
	r.now += 150 * time.Millisecond
	r.step(Tick{})
	if r.m.nets[r.net].known {
		t.Fatal("the first answers and was not waited for")
	}
	r.now += 51 * time.Millisecond
	r.step(Tick{})
	if !r.m.nets[r.net].known {
		t.Fatal("the first does not answer and nobody took the root")
	}
}

// A

func TestAllocateSkipsWhatIsReserved(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/29", self)
	r.step(Founded{r.net, 5})
	var got []string
	for i := range 5 {
		got = append(got, r.has(state.EndpointID(i+1), "").Addr.String())
	}
	slices.Sort(got)
	if want := []string{"10.7.0.2", "10.7.0.3", "10.7.0.4", "10.7.0.5", "10.7.0.6"}; !slices.Equal(got, want) {
		t.Fatal(got)
	}
	a, ok := r.want(6, "c6", "")
	if !ok || !errors.Is(a.Err, state.ErrNoAddress) ||
		a.Err.Error() != "no free address in 10.7.0.0/29; 5 of 5 in use (a 5); remove endpoints or make a larger network" {
		t.Fatal(ok, a.Err)
	}
}

func TestAllocateOnlyUnderTheWinner(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	r.has(1, "")
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1)) // older
	r.waits(2)
	if r.m.nets[r.net].root != rootOf2 {
		t.Fatal("the older root did not win")
	}
	// A root that others took from wins over an older one that nobody did.
	r = newRig(t, 2, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	r.say(3, r.own("10.7.0.0/28", state.Root{Creator: self, At: 5}, 1, self))
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1))
	r.has(1, "10.7.0.77")
	if b, _ := r.block("10.7.0.0/24"); !b.Sealed {
		t.Fatal("others took from the root and it is not sealed")
	}
}

func TestAllocateNotBelowAHigherVersion(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/28", self)
	r.step(Founded{r.net, 5})
	r.say(3, r.own("10.7.0.8/29", state.Root{Creator: self, At: 5}, 4, self))
	r.waits(1)
}

func TestAllocateNotFromPending(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.alive(2, 3)
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1), r.offer(2, "10.7.0.16/28", rootOf2, 2))
	if b, ok := r.block("10.7.0.16/28"); !ok || b.State != state.Pending {
		t.Fatal(b, ok)
	}
	r.waits(1)
}

func TestAnswersTwiceTheSame(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	a, _ := r.want(1, "c1", "")
	b, ok := r.want(2, "c1", "")
	if !ok || b.Err != nil || b.Addr != a.Addr || b.Endpoint != 1 || b.Alloc != a.Alloc || len(r.last.Log) != 0 {
		t.Fatal(b)
	}
	c, _ := r.want(3, "c1", "10.7.0.99")
	if !errors.Is(c.Err, state.ErrInvalid) {
		t.Fatal(c.Err)
	}
	r.restart()
	if d, ok := r.want(4, "c1", ""); !ok || d.Addr != a.Addr || d.Endpoint != 1 {
		t.Fatal(d)
	}
}

// Names and the rest of the wish are in the endpoint that others see.
func TestPublishes(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	eff := r.step(Want{Wish: state.Attach{ID: 1, Network: r.net, Container: "c1", Names: []string{"y", "x"}, IfName: "eth3",
		Addr: netip.MustParseAddr("10.7.0.9")}, At: 77})
	e, ok := r.peer[2].View().Endpoint(1)
	if !ok || len(eff.Log) != 1 || e.MAC.String() != "02:42:0a:07:00:09" || e.IfName != "eth3" || !slices.Equal(e.Names, []string{"x", "y"}) ||
		e.At != 77 || e.Alloc != eff.Done[0].Alloc || e.Container != "c1" {
		t.Fatal(e, ok)
	}
}

// F

func TestFreeNeedsTheNumber(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	a := r.has(1, "")
	r.step(Free{1, a.Alloc + 1})
	if _, ok := r.doc.View().Endpoint(1); !ok || len(r.m.nets[r.net].allocs) != 1 {
		t.Fatal("freed with another number")
	}
	r.step(Free{1, a.Alloc})
	if _, ok := r.doc.View().Endpoint(1); ok || len(r.m.nets[r.net].allocs) != 0 {
		t.Fatal("not freed")
	}
}

func TestCooldown(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/29", self)
	r.step(Founded{r.net, 5})
	var as []Answer
	for i := range 5 {
		as = append(as, r.has(state.EndpointID(i+1), ""))
	}
	r.step(Free{3, as[2].Alloc})
	r.now += time.Second
	r.step(Free{1, as[0].Alloc})
	r.waits(6)
	if _, err := r.want(7, "other", as[2].Addr.String()); !err {
		t.Fatal("a wanted address in its cooldown: no answer")
	}
	r.now += time.Second
	if eff := r.step(Tick{}); len(eff.Done) != 1 || !strings.Contains(eff.Done[0].Err.Error(), "less than a minute ago") {
		t.Fatal(eff.Done)
	}
	r.restart() // which begins the cooldowns again
	r.now += 59 * time.Second
	r.waits(8)
	r.step(GiveUp{8})
	r.now += time.Second
	if a := r.has(9, ""); a.Addr != as[2].Addr {
		t.Fatalf("%v before %v, which was given back first", a.Addr, as[2].Addr)
	}
	// The same container may have its own back at once.
	b := r.has(10, "")
	r.step(Free{10, b.Alloc})
	if a, ok := r.want(11, "c"+state.EndpointID(10).String(), b.Addr.String()); !ok || a.Err != nil {
		t.Fatal(ok, a.Err)
	}
}

// O

func TestOfferHasNoAllocation(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/29", self)
	r.step(Founded{r.net, 5})
	for i := range 4 {
		r.has(state.EndpointID(i+1), "")
	}
	eff := r.tell(2, ask(29))
	got, _ := r.sent(msgGive)
	if len(got) != 1 || !eff.Sync {
		t.Fatal(got, eff.Sync)
	}
	b := got[0].block
	if b.Prefix.Bits() != 32 || b.Ver < 2 || b.To != 2 || b.Lineage[len(b.Lineage)-1] != self {
		t.Fatal(b)
	}
	if _, ok := r.m.nets[r.net].allocation(b.Prefix.Addr()); ok {
		t.Fatal("offered an address in use")
	}
	for _, rest := range r.m.nets[r.net].blocks {
		if rest.Prefix != b.Prefix && (rest.Ver != b.Ver || rest.Kind != state.Own) {
			t.Fatal("divided without a new version", rest)
		}
	}
	if a, ok := r.want(9, "c9", ""); ok && a.Err == nil {
		t.Fatal("allocated what was offered", a.Addr)
	}
	r.tell(2, ask(29))
	if again, _ := r.sent(msgGive); len(again) != 1 || again[0].block.Prefix != b.Prefix || r.last.Sync || len(r.last.Log) > 0 {
		t.Fatal("asked again is not the same", again)
	}
	r.restart()
	r.tell(2, ask(29))
	if again, _ := r.sent(msgGive); len(again) != 1 || again[0].block.Prefix != b.Prefix {
		t.Fatal("an offer was forgotten", again)
	}
}

func TestOfferAtMostHalf(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	r.tell(2, ask(24))
	got, _ := r.sent(msgGive)
	if len(got) != 1 || got[0].block.Prefix.Bits() != 26 {
		t.Fatal(got) // of 253 half is 127: 64
	}
	r = newRig(t, 1, "blue", "10.7.0.0/24", 2)
	r.say(2, r.own("10.7.0.0/28", rootOf2, 2), r.offer(2, "10.7.0.16/28", rootOf2, 2))
	r.tell(2, ask(24))
	got, _ = r.sent(msgGive)
	if len(got) != 1 || got[0].block.Prefix.Bits() != 29 {
		t.Fatal(got)
	}
}

func TestShareDoubles(t *testing.T) {
	r := newRig(t, 3, "blue", "10.7.0.0/16", 2)
	n := r.m.nets[r.net]
	for _, c := range []struct {
		offer string
		want  uint8
	}{{"", 26}, {"10.7.1.0/26", 25}, {"10.7.2.0/26", 24}, {"10.7.3.0/25", 23}} {
		if c.offer != "" {
			r.say(2, r.own("10.7.0.0/28", rootOf2, 2), r.offer(2, c.offer, rootOf2, 2))
		}
		if got := r.m.share(n); got != c.want {
			t.Errorf("after %q asks for a /%d, want /%d", c.offer, got, c.want)
		}
	}
	r = newRig(t, 3, "blue", "10.7.0.0/29", 2)
	if got := r.m.share(r.m.nets[r.net]); got != 32 {
		t.Errorf("asks for a /%d of a /29", got)
	}
}

// The log begins with the first step, synced: an offer to this epoch is then known to be to this log.
func TestLogBegins(t *testing.T) {
	m := New(Config{Self: self, Epoch: 3})
	eff := m.Step(1, Tick{})
	if len(eff.Log) != 1 || !eff.Sync {
		t.Fatal(eff)
	}
	m = New(Config{Self: self, Epoch: 4, Records: eff.Log})
	if eff := m.Step(1, Tick{}); len(eff.Log) != 0 || m.born != 3 {
		t.Fatal(eff, m.born)
	}
}

func TestGiveUp(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", 2)
	r.waits(1)
	r.step(GiveUp{1})
	r.now += time.Minute
	if done := r.step(Tick{}).Done; len(done) != 0 {
		t.Fatal(done)
	}
}

func TestOfferOnlyToWhoIsKnown(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	r.tell(9, ask(28))
	if no, _ := r.sent(msgRefuse); len(no) != 1 || no[0].why != refuseLater {
		t.Fatal("offered to a stranger")
	}
	old := ask(28)
	old.epoch = 0
	r.tell(2, old)
	if no, _ := r.sent(msgRefuse); len(no) != 1 || no[0].why != refuseLater {
		t.Fatal("offered to an epoch that is over")
	}
	r.say(self, state.Forget{Node: 2, Epoch: 1})
	r.tell(2, ask(28))
	if no, _ := r.sent(msgRefuse); len(no) != 1 || no[0].why != refuseLater {
		t.Fatal("offered to a node that was given up")
	}
}

func TestOfferNotUnderALosingRoot(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1))
	r.tell(3, ask(28))
	if got, _ := r.sent(msgGive); len(got) != 0 {
		t.Fatal(got)
	}
}

func TestOfferAheadOnlyFromPlenty(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/29", self)
	r.step(Founded{r.net, 5})
	for i := range 3 {
		r.has(state.EndpointID(i+1), "")
	}
	m := ask(32)
	m.urgent = false
	r.tell(2, m)
	if no, _ := r.sent(msgRefuse); len(no) != 1 || no[0].why != refuseScarce {
		t.Fatal("gave of little ahead of need")
	}
}

// T

func TestTakeGuards(t *testing.T) {
	offer := func(r *rig) state.Block { return r.offer(2, "10.7.0.16/28", rootOf2, 3).Block }
	for _, c := range []struct {
		name string
		edit func(r *rig, b *state.Block)
		ok   bool
	}{
		{"as it should be", func(*rig, *state.Block) {}, true},
		{"to another", func(r *rig, b *state.Block) { b.To = 3 }, false},
		{"before this log began", func(r *rig, b *state.Block) { r.m.born = 2 }, false},
		{"held before in this version", func(r *rig, b *state.Block) { r.m.nets[r.net].raise(high{b.Prefix, b.Root, b.Ver}) }, false},
		{"a part held before", func(r *rig, b *state.Block) {
			r.m.nets[r.net].raise(high{netip.MustParsePrefix("10.7.0.20/31"), b.Root, b.Ver + 1})
		}, false},
		{"held before in a lower version", func(r *rig, b *state.Block) { r.m.nets[r.net].raise(high{b.Prefix, b.Root, b.Ver - 1}) }, true},
		{"held before under another root", func(r *rig, b *state.Block) {
			r.m.nets[r.net].raise(high{b.Prefix, state.Root{Creator: 3, At: 9}, b.Ver})
		}, true},
		{"under a losing root", func(r *rig, b *state.Block) { b.Root.At = 9 }, false},
		{"not by who it says", func(r *rig, b *state.Block) { b.Lineage = []state.NodeID{3} }, false},
		{"of a node that was given up", func(r *rig, b *state.Block) { r.say(3, state.Forget{Node: 2, Epoch: 1}) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
			r.say(3, r.own("10.7.0.0/28", rootOf2, 2, 2))
			b := offer(r)
			c.edit(r, &b)
			eff := r.tell(2, message{kind: msgGive, block: b})
			got, ok := r.block("10.7.0.16/28")
			if ok != c.ok {
				t.Fatalf("taken: %v", ok)
			}
			if ok && (got.Ver != 3 || !slices.Equal(got.Lineage, b.Lineage) || !eff.Sync) {
				t.Fatal(got, eff.Sync)
			}
		})
	}
}

// TestOfferThatWasDropped: an offer that was taken and dropped with the network, before its maker saw that, is
// asked past: the maker would make it again for ever.
func TestOfferThatWasDropped(t *testing.T) {
	for _, spent := range []bool{false, true} {
		r := newRig(t, 1, "blue", "10.7.0.0/24", 2)
		r.say(2, r.own("10.7.0.0/28", rootOf2, 2), r.offer(2, "10.7.0.16/28", rootOf2, 2))
		r.alive(2)
		if spent {
			if _, ok := r.block("10.7.0.16/28"); !ok {
				t.Fatal("the offer was not taken")
			}
			r.m.drop(r.m.nets[r.net])
			r.say(self, state.RemoveBlock{Network: r.net, Prefix: netip.MustParsePrefix("10.7.0.16/28")})
		}
		r.m.nets[r.net].ask = request{}
		r.last.Send = nil
		r.want(9, "c9", "")
		asks, _ := r.sent(msgAsk)
		if spent && (len(asks) != 1 || asks[0].born != 2) || !spent && len(asks) != 0 {
			t.Fatalf("dropped %t: %+v", spent, asks)
		}
	}
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	var given []netip.Prefix
	for i, born := range []crdt.Epoch{1, 1, 2} {
		r.tell(2, message{kind: msgAsk, seq: uint64(i + 1), epoch: 1, born: born, urgent: true, bits: 28})
		gives, _ := r.sent(msgGive)
		given = append(given, gives[0].block.Prefix)
	}
	if given[0] != given[1] || given[1] == given[2] {
		t.Fatal(given)
	}
}

// What was taken, passed on and cleaned is not taken again from the old offer, after a crash neither.
func TestTakeOnce(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", 2)
	r.say(2, r.own("10.7.0.0/28", rootOf2, 2), r.offer(2, "10.7.0.17/32", rootOf2, 2))
	r.tell(2, ask(32))
	given, _ := r.sent(msgGive)
	if len(given) != 1 {
		t.Fatal(given)
	}
	r.say(2, state.RemoveBlock{Network: r.net, Prefix: netip.MustParsePrefix("10.7.0.17/32")})
	r.say(2, r.own("10.7.0.17/32", rootOf2, 3, 2, self))
	if _, ok := r.block("10.7.0.17/32"); ok {
		t.Fatal("an offer that was taken is still there")
	}
	for range 2 {
		r.tell(2, message{kind: msgGive, block: r.offer(2, "10.7.0.17/32", rootOf2, 2).Block})
		if _, ok := r.block("10.7.0.17/32"); ok {
			t.Fatal("taken twice")
		}
		r.restart()
	}
}

// W

func TestWitness(t *testing.T) {
	pending := func(t *testing.T) (*rig, message) {
		r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
		r.alive(2, 3)
		r.say(2, r.own("10.7.0.0/28", rootOf2, 2), r.offer(2, "10.7.0.16/28", rootOf2, 2))
		msgs, to := r.sent(msgWitness)
		if len(msgs) != 1 || to[0] != 3 {
			t.Fatal("asked to witness:", to)
		}
		return r, message{kind: msgStored, block: msgs[0].block}
	}
	state16 := func(r *rig) state.BlockState { b, _ := r.block("10.7.0.16/28"); return b.State }

	r, stored := pending(t)
	r.tell(2, stored)
	if state16(r) != state.Pending {
		t.Fatal("the grantor is no witness")
	}
	r.restart()
	r.alive(2, 3)
	r.tell(3, stored)
	if state16(r) != state.Usable {
		t.Fatal("witnessed and still pending")
	}

	r, stored = pending(t)
	stored.block.Ver++
	r.tell(3, stored)
	if state16(r) != state.Pending {
		t.Fatal("another version was witnessed")
	}

	r, stored = pending(t)
	r.say(3, r.own("10.7.0.18/32", rootOf2, 5, 2))
	r.tell(3, stored)
	if state16(r) != state.Pending {
		t.Fatal("used below a higher version")
	}

	// Nobody else answers: who inherits from the giver may never have heard of this node.
	r, _ = pending(t)
	r.alive(2)
	r.now += time.Hour
	r.step(Tick{})
	if state16(r) != state.Pending {
		t.Fatal("used without a witness")
	}
	// Unless another has stored before that this node exists.
	r, _ = pending(t)
	r.tell(3, message{kind: msgMet, epoch: 1})
	if state16(r) != state.Usable {
		t.Fatal("known to another and still pending")
	}
}

func TestWitnessIsNotNeededByTwo(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", 2)
	r.alive(2)
	r.say(2, r.own("10.7.0.0/28", rootOf2, 2), r.offer(2, "10.7.0.16/28", rootOf2, 2))
	r.has(1, "")
}

func TestWitnessStores(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.say(2, r.own("10.7.0.0/28", rootOf2, 4))
	m := message{kind: msgWitness, block: r.own("10.7.0.16/28", rootOf2, 2, 2).Block}
	eff := r.tell(3, m)
	if got, to := r.sent(msgStored); len(got) != 1 || to[0] != 3 || !eff.Sync || len(eff.Log) != 1 {
		t.Fatal("stored:", got, eff.Sync)
	}
	r.restart()
	if b := r.m.witnessed[witnessKey{r.net, 3, netip.MustParsePrefix("10.7.0.16/28")}]; b.Ver != 2 {
		t.Fatal("a witness that forgot", b)
	}
	if _, ok := r.m.met[3]; !ok {
		t.Fatal("a witness that forgot whom it met")
	}
	r.tell(3, m)
	if got, _ := r.sent(msgStored); len(got) != 1 || len(r.last.Log) != 0 {
		t.Fatal("asked again:", got)
	}
	m.block.Prefix = netip.MustParsePrefix("10.7.0.0/29")
	r.tell(3, m)
	if got, _ := r.sent(msgStored); len(got) != 0 {
		t.Fatal("witnessed what is out of date")
	}
}

// C

func TestClean(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	r.tell(2, ask(28))
	got, _ := r.sent(msgGive)
	p := got[0].block.Prefix
	r.now += time.Hour
	r.step(Tick{})
	if _, ok := r.block(p.String()); !ok {
		t.Fatal("an offer that nobody took was dropped")
	}
	part := netip.PrefixFrom(p.Addr(), 30).String()
	root := state.Root{Creator: self, At: 5}
	r.say(2, r.own(part, root, got[0].block.Ver-1, self))
	if _, ok := r.block(p.String()); !ok {
		t.Fatal("an old record is no sign")
	}
	r.say(2, r.own(part, root, got[0].block.Ver, self))
	if _, ok := r.block(p.String()); ok {
		t.Fatal("an offer that was taken was kept")
	}
}

// Growing

func TestAsks(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.say(2, r.own("10.7.0.0/25", rootOf2, 2))
	r.say(3, r.own("10.7.0.128/26", rootOf2, 2, 2))
	r.alive(2, 3)
	if got, _ := r.sent(msgAsk); len(got) != 0 {
		t.Fatal("asked before its time")
	}
	r.now += firstSpread
	r.step(Tick{})
	got, to := r.sent(msgAsk)
	if len(got) != 1 || to[0] != 2 || got[0].urgent || got[0].bits != 28 {
		t.Fatal(got, to) // 256 / (4·3) = 21: 16
	}
	// A container that waits asks at once, and the next when the first refuses.
	r.waits(1)
	got, to = r.sent(msgAsk)
	if len(got) != 1 || to[0] != 2 || !got[0].urgent {
		t.Fatal(got, to)
	}
	r.tell(2, message{kind: msgRefuse, seq: got[0].seq, why: refuseNone})
	got, to = r.sent(msgAsk)
	if len(got) != 1 || to[0] != 3 {
		t.Fatal(got, to)
	}
	// Silence: again.
	asked := r.now
	for r.now < asked+time.Second {
		r.now = r.last.Next
		r.step(Tick{})
	}
	// What is given is taken, and answered at once where another knows this node already.
	r.tell(3, message{kind: msgMet, epoch: 1})
	r.tell(2, message{kind: msgGive, seq: 1, block: r.offer(2, "10.7.0.16/28", rootOf2, 3).Block})
	if done := r.last.Done; len(done) != 1 || done[0].Err != nil {
		t.Fatal(done)
	}
}

func TestSmallSubnetIsNotAskedForAhead(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/28", 2)
	r.say(2, r.own("10.7.0.0/28", rootOf2, 1))
	r.alive(2, 3)
	r.now += time.Minute
	r.step(Tick{})
	if got, _ := r.sent(msgAsk); len(got) != 0 {
		t.Fatal(got)
	}
}

func TestErrorNamesWhoIsAway(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/29", 2)
	r.say(2, r.own("10.7.0.0/30", rootOf2, 2))
	r.waits(1)
	r.now += viewPatience
	done := r.step(Tick{}).Done
	if len(done) != 1 || !errors.Is(done[0].Err, state.ErrNoAddress) ||
		done[0].Err.Error() != "2 free addresses belong to b, which does not answer; wait for it, or 'meshnet rmpeer b' if it is gone for good" {
		t.Fatal(done)
	}
}

// --ip

func TestWantedAddress(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.say(2, r.own("10.7.0.0/25", rootOf2, 2), r.own("10.7.0.192/26", rootOf2, 2))
	r.say(3, r.own("10.7.0.128/26", rootOf2, 2, 2),
		state.PutEndpoint{Endpoint: state.Endpoint{ID: 33, Network: r.net, Container: "db", Addr: netip.MustParseAddr("10.7.0.130")}})
	r.alive(2)
	fails := func(addr string, kind error, text string) {
		t.Helper()
		a, ok := r.want(1, "c1", addr)
		if !ok {
			r.now += answerPatience
			for _, d := range r.step(Tick{}).Done {
				a = d
			}
		}
		if !errors.Is(a.Err, kind) || !strings.Contains(a.Err.Error(), text) {
			t.Fatalf("%s: %v", addr, a.Err)
		}
	}
	fails("10.8.0.1", state.ErrInvalid, "is not in blue")
	fails("10.7.0.0", state.ErrAddressInUse, "reserved")
	fails("10.7.0.1", state.ErrAddressInUse, "reserved")
	fails("10.7.0.255", state.ErrAddressInUse, "reserved")
	fails("10.7.0.130", state.ErrAddressInUse, "in use by db on c")
	fails("10.7.0.140", state.ErrNoAddress, "belongs to c, which does not answer")

	if _, ok := r.want(2, "c2", "10.7.0.40"); ok {
		t.Fatal("answered at once")
	}
	got, to := r.sent(msgAsk) // and for a block of its own
	if len(got) != 2 || to[0] != 2 || got[0].exact.String() != "10.7.0.40" || got[1].exact.IsValid() {
		t.Fatal(got, to)
	}
	r.tell(2, message{kind: msgRefuse, seq: got[0].seq, why: refuseUsed, text: "web"})
	if len(r.last.Done) != 1 || !strings.Contains(r.last.Done[0].Err.Error(), "in use by web on b") {
		t.Fatal(r.last.Done)
	}
	r.want(3, "c3", "10.7.0.41")
	got, _ = r.sent(msgAsk)
	r.tell(2, message{kind: msgGive, seq: got[0].seq, block: r.offer(2, "10.7.0.41/32", rootOf2, 3).Block})
	r.tell(3, message{kind: msgMet, epoch: 1})
	if done := r.last.Done; len(done) != 1 || done[0].Addr.String() != "10.7.0.41" {
		t.Fatal(done)
	}
	// The owner's side: one address is given if it is free.
	m := ask(32)
	m.exact = netip.MustParseAddr("10.7.0.41")
	r.tell(2, m)
	if no, _ := r.sent(msgRefuse); len(no) != 1 || no[0].why != refuseUsed || no[0].text != "c3" {
		t.Fatal(no)
	}
}

func TestNoNetwork(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/24", self)
	r.net++
	if a, ok := r.want(1, "c1", ""); !ok || !errors.Is(a.Err, state.ErrNoNetwork) {
		t.Fatal(ok, a.Err)
	}
}

func TestRemovedNetworkLeavesNothing(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	a := r.has(1, "")
	r.step(Free{1, a.Alloc})
	r.say(self, state.RemoveNetwork{ID: r.net})
	if n := r.m.nets[r.net]; len(n.blocks) != 0 {
		t.Fatal(n.blocks)
	}
	r.restart()
	if n := r.m.nets[r.net]; len(n.blocks) != 0 || n.high(netip.MustParsePrefix("10.7.0.0/24"), state.Root{Creator: self, At: 5}) != 1 {
		t.Fatal(n.blocks, n.highs)
	}
}

// A log whose last record came without its changes is made whole from the log.
func TestRestartPublishesWhatTheLogHolds(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	eff := r.m.Step(r.now, Founded{r.net, 5})
	r.log = append(r.log, eff.Log...)
	want := r.m.Step(r.now, Want{Wish: state.Attach{ID: 1, Network: r.net, Container: "c1"}, At: 9})
	r.log = append(r.log, want.Log...)
	r.restart()
	if e, ok := r.peer[2].View().Endpoint(1); !ok || e.Addr != want.Done[0].Addr {
		t.Fatal("an endpoint was lost", ok)
	}
	n, _ := r.peer[2].View().Network(r.net)
	if len(n.Blocks()) != 1 {
		t.Fatal(n.Blocks())
	}
}
