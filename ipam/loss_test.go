package ipam

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnet/state"
)

// heirRig is a network of node 2, given up, of whose range this node is the heir; node 3 lives.
func heirRig(t *testing.T) *rig {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.alive(3)
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1, 3, self))
	r.say(3, state.Forget{Node: 2, Epoch: 1})
	return r
}

// testifies has a node answer what this one asks of all.
func (r *rig) testifies(from state.NodeID, records ...state.Block) Effects {
	r.t.Helper()
	q := r.m.nets[r.net].inquiry
	if q == nil {
		r.t.Fatal("nothing was asked")
	}
	return r.tell(from, message{kind: msgTestify, seq: q.seq, losses: r.m.losses(), records: records, past: make([]bool, len(records))})
}

func TestInherit(t *testing.T) {
	r := heirRig(t)
	if b := r.m.nets[r.net].estate; len(b) != 1 || b[0].Node != 2 || !r.last.Sync {
		t.Fatal("what the lost node had is not stored", b)
	}
	if got, to := r.sent(msgInquire); len(got) != 1 || to[0] != 3 || len(got[0].losses) != 1 {
		t.Fatal(got, to)
	}
	r.testifies(3)
	if _, ok := r.block("10.7.0.0/24"); ok {
		t.Fatal("inherited within the quarantine")
	}
	r.now += quarantineDefault
	eff := r.step(Tick{})
	b, ok := r.block("10.7.0.0/24")
	if !ok || b.Ver != 3 || b.State != state.Usable || b.Root != rootOf2 || !eff.Sync {
		t.Fatal(b, ok, eff.Sync)
	}
	if len(r.m.nets[r.net].estate) != 0 {
		t.Fatal("an estate that was inherited is kept")
	}
	r.restart()
	r.has(1, "")
}

func TestInheritWaitsForAll(t *testing.T) {
	r := heirRig(t)
	r.now += quarantineDefault
	r.step(Tick{})
	a, ok := r.want(1, "c1", "")
	for !ok && len(r.last.Done) == 0 {
		r.now += time.Second
		r.step(Tick{})
	}
	if len(r.last.Done) == 1 {
		a = r.last.Done[0]
	}
	if !errors.Is(a.Err, state.ErrNoAddress) || !strings.Contains(a.Err.Error(), "belonged to b") || !strings.Contains(a.Err.Error(), "rmpeer c") {
		t.Fatal(a.Err)
	}
	if qs := r.m.Quarantined(); len(qs) != 1 || qs[0].Name != "b" || qs[0].Heir != self || !slices.Equal(qs[0].Waits, []state.NodeID{3}) {
		t.Fatal(qs)
	}
	// What another still holds is not inherited, nor what it held in a later version.
	r.testifies(3, state.Block{Node: 3, Network: r.net, Prefix: netip.MustParsePrefix("10.7.0.128/25"), Root: rootOf2, Ver: 2, Lineage: []state.NodeID{2}})
	if _, ok := r.block("10.7.0.128/25"); ok {
		t.Fatal("inherited what another has")
	}
	if _, ok := r.block("10.7.0.0/25"); !ok {
		t.Fatal("the rest was not inherited", r.m.nets[r.net].blocks)
	}
}

func TestInheritNotBelowAHighestVersion(t *testing.T) {
	r := heirRig(t)
	q := r.m.nets[r.net].inquiry
	r.tell(3, message{kind: msgTestify, seq: q.seq, losses: r.m.losses(), highs: []high{{netip.MustParsePrefix("10.7.0.0/28"), rootOf2, 4}}})
	r.now += quarantineDefault
	r.step(Tick{})
	if len(r.m.nets[r.net].blocks) != 0 {
		t.Fatal("somebody held a later version", r.m.nets[r.net].blocks)
	}
}

func TestHeirNamedByAPerson(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.alive(3)
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1))
	r.say(3, state.Forget{Node: 2, Epoch: 1})
	if qs := r.m.Quarantined(); len(qs) != 1 || qs[0].Heir != 0 {
		t.Fatal(qs)
	}
	r.say(3, state.Forget{Node: 2, Epoch: 1, Heir: self})
	r.testifies(3)
	r.now += quarantineDefault
	r.step(Tick{})
	if _, ok := r.block("10.7.0.0/24"); !ok {
		t.Fatal("not inherited by who was named")
	}
}

// An offer that the lost node did not take comes back to its giver.
func TestOfferToTheLost(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", self)
	r.alive(2, 3)
	r.step(Founded{r.net, 5})
	r.tell(2, ask(28))
	got, _ := r.sent(msgGive)
	p := got[0].block.Prefix.String()
	r.say(3, state.Forget{Node: 2, Epoch: 1})
	r.testifies(3)
	r.now += quarantineDefault
	r.step(Tick{})
	if b, ok := r.block(p); !ok || b.Kind != state.Own || b.Ver != got[0].block.Ver+2 {
		t.Fatal(b, ok)
	}
}

// A node that hears that it was given up drops its blocks and asks for what its containers have.
func TestFence(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.alive(2, 3)
	r.tell(3, message{kind: msgMet, epoch: 1})
	r.say(2, r.own("10.7.0.0/28", rootOf2, 2), r.offer(2, "10.7.0.16/28", rootOf2, 2))
	a := r.has(1, "")
	out, err := r.peer[3].Apply(state.Forget{Node: self, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range r.peer {
		d.Merge(out)
	}
	r.one(Saw{r.doc.View()})
	if len(r.m.nets[r.net].blocks) != 0 || !r.m.fenced() {
		t.Fatal("not fenced")
	}
	if eff := r.m.Step(r.now, Want{Wish: state.Attach{ID: 2, Network: r.net, Container: "c2"}}); len(eff.Done)+len(eff.Changes) != 0 {
		t.Fatal("gave out addresses after it was given up", eff)
	}
	renewed := r.doc.Renew(2, 77)
	for _, d := range r.peer {
		if d != r.doc {
			d.Merge(renewed)
		}
	}
	r.say(self, state.PutNode{Node: state.Node{Name: "a", Addr: netip.MustParseAddr("192.0.2.1"), MTU: 1500}})
	r.say(2, r.own("10.7.0.16/28", rootOf2, 4))
	if e, ok := r.peer[3].View().Endpoint(1); !ok || e.Addr != a.Addr {
		t.Fatal("the container's endpoint has not come back", ok)
	}
	r.now += time.Second
	r.step(Tick{})
	asks, to := r.sent(msgAsk)
	i := slices.IndexFunc(asks, func(m message) bool { return m.exact == a.Addr && m.held })
	if i < 0 || to[i] != 2 || asks[i].epoch != 2 || asks[i].born != 2 {
		t.Fatal("the address was not asked for", asks, to)
	}
	// An offer to the life before is not taken.
	r.tell(2, message{kind: msgGive, block: r.offer(2, "10.7.0.32/28", rootOf2, 9).Block})
	if _, ok := r.block("10.7.0.32/28"); ok {
		t.Fatal("took an offer to a life that was given up")
	}
}

// The owner gives an address that another's container has, unless one of its own has it.
func TestGivesWhatIsHeld(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.alive(2)
	r.step(Founded{r.net, 5})
	r.say(2, state.PutEndpoint{Endpoint: state.Endpoint{ID: 21, Network: r.net, Container: "x", Addr: netip.MustParseAddr("10.7.0.9")}})
	mine := r.has(1, "")
	m := ask(32)
	m.exact, m.held = netip.MustParseAddr("10.7.0.9"), true
	r.tell(2, m)
	if got, _ := r.sent(msgGive); len(got) != 1 || got[0].block.Prefix.String() != "10.7.0.9/32" {
		t.Fatal(got)
	}
	m.exact = mine.Addr
	r.tell(2, m)
	if no, _ := r.sent(msgRefuse); len(no) != 1 || no[0].why != refuseUsed {
		t.Fatal(no)
	}
}

// Blocks under a root that lost are kept while they are needed and dropped when it lost for good.
func TestLosingRoot(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", self)
	r.alive(2, 3)
	r.step(Founded{r.net, 5})
	a := r.has(1, "")
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1)) // older
	if _, ok := r.block("10.7.0.0/24"); !ok {
		t.Fatal("dropped what may win yet")
	}
	asks, _ := r.sent(msgAsk)
	if !slices.ContainsFunc(asks, func(m message) bool { return m.exact == a.Addr && m.held }) {
		t.Fatal("the address was not asked for", asks)
	}
	r.say(3, r.own("10.7.0.128/25", rootOf2, 2, 2)) // sealed
	if _, ok := r.block("10.7.0.0/24"); !ok {
		t.Fatal("dropped while a container needs it")
	}
	r.tell(3, message{kind: msgMet, epoch: 1})
	r.say(2, r.offer(2, a.Addr.String()+"/32", rootOf2, 2))
	r.step(Tick{})
	if _, ok := r.block("10.7.0.0/24"); ok {
		t.Fatal("kept what lost for good")
	}
	if _, ok := r.doc.View().Endpoint(1); !ok {
		t.Fatal("the container lost its address")
	}
}

func TestGiveBack(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/16", 2)
	r.alive(2, 3)
	r.tell(3, message{kind: msgMet, epoch: 1})
	r.say(2, r.own("10.7.0.0/28", rootOf2, 2), r.offer(2, "10.7.1.0/26", rootOf2, 2), r.offer(2, "10.7.2.0/25", rootOf2, 2))
	r.has(1, "10.7.1.5")
	began := r.now
	for r.now < began+idleTime+2*reviewPause {
		r.now += reviewPause
		r.step(Tick{})
	}
	if b, ok := r.block("10.7.2.0/25"); !ok || b.Kind != state.Offer || b.To != 2 {
		t.Fatal("an idle block was not given back", b)
	}
	if b, _ := r.block("10.7.1.0/26"); b.Kind != state.Own {
		t.Fatal("gave back what is used")
	}
}

func TestLeaveHandsOn(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", self)
	r.alive(2, 3)
	r.step(Founded{r.net, 5})
	a := r.has(1, "")
	r.step(Leave{})
	if r.m.Left() {
		t.Fatal("left with a container")
	}
	r.step(Free{1, a.Alloc})
	got, to := r.sent(msgGive)
	if len(got) != 1 || got[0].block.Prefix.Bits() != 24 || r.m.Left() {
		t.Fatal(got)
	}
	if e, ok := r.want(2, "c2", ""); !ok || e.Err == nil {
		t.Fatal("attached while leaving")
	}
	b := got[0].block
	b.Kind, b.To, b.ToEpoch = state.Own, 0, 0
	r.say(to[0], state.PutBlock{Block: b})
	if !r.m.Left() {
		t.Fatal("all was taken and it has not left")
	}
}

// Who made a network alone names heirs when others come.
func TestHeirsAreNamedLater(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	if b, _ := r.block("10.7.0.0/24"); len(b.Lineage) != 0 {
		t.Fatal(b)
	}
	r.peer[2] = state.NewDoc(2, 1, 2)
	r.say(2, state.PutNode{Node: state.Node{Name: "b", Addr: netip.MustParseAddr("192.0.2.2"), MTU: 1500}})
	if b, _ := r.block("10.7.0.0/24"); !slices.Equal(b.Lineage, []state.NodeID{2}) || b.Ver != 2 || !r.last.Sync {
		t.Fatal(b, r.last.Sync)
	}
}

// After a start a node that knows others gives out no new address before it heard of them.
func TestHesitates(t *testing.T) {
	r := newRig(t, 1, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	a := r.has(1, "")
	r.m = New(Config{Self: self, Epoch: 1, Records: r.log})
	r.see()
	if b, ok := r.want(9, "c"+state.EndpointID(1).String(), ""); !ok || b.Addr != a.Addr {
		t.Fatal("what it has is not answered", ok, b)
	}
	r.waits(2)
	if done := r.step(Settled{1}).Done; len(done) != 1 || done[0].Err != nil {
		t.Fatal(done)
	}
}

// Detached and attached again a container has its address again.
func TestSticky(t *testing.T) {
	r := newRig(t, 0, "blue", "10.7.0.0/24", self)
	r.step(Founded{r.net, 5})
	a := r.has(1, "")
	r.has(2, "")
	r.step(Free{1, a.Alloc})
	if b, ok := r.want(3, "c"+state.EndpointID(1).String(), ""); !ok || b.Addr != a.Addr {
		t.Fatal(ok, b.Addr, a.Addr)
	}
}

// An older copy of a log is not believed about what was offered to it.
func TestRenewedTakesNothingOfBefore(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.say(3, r.own("10.7.0.0/28", rootOf2, 2, 2))
	r.step(Renewed{Epoch: 2})
	r.tell(2, message{kind: msgGive, block: r.offer(2, "10.7.0.16/28", rootOf2, 3).Block})
	if _, ok := r.block("10.7.0.16/28"); ok {
		t.Fatal("taken")
	}
}

// TestRefusalSaysWhy: who owns nothing usable because an older root is of a node that was given up says so,
// and whom that waits for; the asker repeats it.
func TestRefusalSaysWhy(t *testing.T) {
	r := newRig(t, 3, "blue", "10.7.0.0/24", 2)
	r.alive(4)
	r.say(2, r.own("10.7.0.0/25", rootOf2, 1, self, 3)) // 3 inherits, and is away
	r.say(4, state.Forget{Node: 2, Epoch: 1})
	r.now += quarantineDefault
	r.step(Tick{})
	r.tell(4, ask(28))
	got, _ := r.sent(msgRefuse)
	if len(got) != 1 || got[0].why != refuseNone || !strings.Contains(got[0].text, "belonged to b and fall to c, which does not answer") {
		t.Fatal(got)
	}
	r = newRig(t, 1, "blue", "10.7.0.0/24", 2)
	r.alive(2)
	r.say(2, r.own("10.7.0.0/24", rootOf2, 1))
	r.waits(1)
	for range 10 {
		if asks, _ := r.sent(msgAsk); len(asks) > 0 {
			r.tell(2, message{kind: msgRefuse, seq: asks[0].seq, why: refuseNone, text: "it rests"})
		}
		if len(r.last.Done) > 0 {
			break
		}
		r.now += 500 * time.Millisecond
		r.step(Tick{})
	}
	if len(r.last.Done) != 1 || r.last.Done[0].Err == nil || r.last.Done[0].Err.Error() != "it rests" {
		t.Fatal(r.last.Done)
	}
}

// TestOwnersByAddress: what an owner has free is counted by addresses, whoever has a container there: a node
// may have one under an address of another's block.
func TestOwnersByAddress(t *testing.T) {
	r := newRig(t, 2, "blue", "10.7.0.0/24", 2)
	r.say(2, r.own("10.7.0.0/30", rootOf2, 2)) // .1 is the gateway's
	r.say(3, r.own("10.7.0.4/31", rootOf2, 2, 2))
	for i, a := range []string{"10.7.0.2", "10.7.0.4"} {
		r.say(2, state.PutEndpoint{Kept: true, Endpoint: state.Endpoint{
			ID: state.EndpointID(i + 1), Network: r.net, Container: a, Addr: netip.MustParseAddr(a), IfName: "eth1", Alloc: uint64(i + 1), At: 1}})
	}
	if got := r.m.owners(r.m.nets[r.net]); !slices.Equal(got, []owner{{2, 1}, {3, 1}}) {
		t.Fatal(got)
	}
}
