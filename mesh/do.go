package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"meshnet/ipam"
	"meshnet/state"
)

// want is an attachment that waits for its address.
type want struct {
	wish    state.Attach
	replies []chan<- result // each has room for one
}

type result struct {
	out state.Outcome
	err error
}

// Do carries out a wish. It is durable on this host when Do returns. An attachment waits for its
// address until ctx ends, and is given up then.
func (n *Node) Do(ctx context.Context, w state.Wish) (state.Outcome, error) {
	reply := make(chan result, 1)
	if a, ok := w.(state.Attach); ok && a.ID == 0 {
		for a.ID == 0 {
			a.ID = state.EndpointID(random64())
		}
		w = a
	}
	if err := n.call(ctx, func() { n.do(w, reply) }); err != nil {
		return state.Outcome{}, fmt.Errorf("carry out the command: %w", err)
	}
	select {
	case r := <-reply:
		return r.out, r.err
	case <-n.ended:
		return state.Outcome{}, fmt.Errorf("carry out the command: %w", errStopped)
	case <-ctx.Done():
	}
	// The answer may be on its way: it counts, since others may know of it.
	if err := n.call(context.WithoutCancel(ctx), func() { n.giveUp(w, reply, ctx.Err()) }); err != nil {
		return state.Outcome{}, fmt.Errorf("carry out the command: %w", err)
	}
	r := <-reply
	return r.out, r.err
}

// do carries out a wish, within a step. reply gets exactly one result, at once or later.
func (n *Node) do(w state.Wish, reply chan<- result) {
	if _, ok := w.(state.Report); ok {
		n.current() // it hardly ever decides an address, so others hear of it before what else is new is followed up
	} else {
		n.refresh()
	}
	var out state.Outcome
	var err error
	switch {
	case n.mute():
		err = errors.New(n.twinText())
	case n.held || n.full != nil && promises(w):
		err = n.refusal()
	case n.leaving != nil:
		err = errors.New("this node is leaving the mesh; start it again to come back")
	}
	if err != nil {
		n.answer(reply, result{err: err})
		return
	}
	switch w := w.(type) {
	case state.Attach:
		n.attach(w, reply)
		return
	case state.Withdraw:
		n.withdraw(reply)
		return
	case state.Create:
		out, err = n.create(w)
	case state.Remove:
		out, err = n.remove(w)
	case state.Expel:
		out, err = n.expel(w)
	case state.Detach:
		out = n.detach(w.ID)
	case state.Name:
		out = n.name(w)
	case state.Report:
		out, err = n.report(w)
	case state.Publish:
		out, err = n.publishPorts(w)
	default:
		err = fmt.Errorf("carry out a wish: %T is not known; restart the daemon with one version", w)
	}
	n.answer(reply, result{out, err})
}

// answer replies once the log is written, with the view that holds what was done.
func (n *Node) answer(to chan<- result, r result) {
	n.after = append(n.after, reply{to: to, result: r, node: n})
}

// taken returns the prefixes that a network chosen here must not overlap.
func (n *Node) taken() []netip.Prefix {
	var ps []netip.Prefix
	for _, nw := range n.view.Networks() {
		ps = append(ps, nw.Def.Subnet)
	}
	for _, node := range n.view.Nodes() {
		if node.Addr.Is4() {
			ps = append(ps, netip.PrefixFrom(node.Addr, 32))
		}
	}
	if n.c.DefaultSubnet.IsValid() {
		ps = append(ps, n.c.DefaultSubnet)
	}
	if n.c.Avoid != nil {
		ps = append(ps, n.c.Avoid()...)
	}
	return ps
}

func (n *Node) create(w state.Create) (state.Outcome, error) {
	have, exists := n.view.ByName(w.Name)
	exists = exists && !have.Removed
	if exists && !w.Subnet.IsValid() {
		w.Subnet = have.Def.Subnet
	}
	def, err := w.Definition(n.taken())
	if err != nil {
		return state.Outcome{}, fmt.Errorf("create network %.70s: %w", w.Name, err)
	}
	if exists {
		def.Life = have.Def.Life
		if def.ID() == have.ID {
			return state.Outcome{Network: have.ID, Again: true}, nil
		}
		def.Life = 0
	}
	at := time.Now().Unix()
	out, err := n.doc.Apply(state.CreateNetwork{Def: def, At: at, Force: w.Force})
	if err != nil {
		return state.Outcome{}, err
	}
	n.tell(out)
	n.refresh()
	nw, ok := n.view.ByName(w.Name)
	if !ok {
		return state.Outcome{}, fmt.Errorf("create network %s: it is not there afterwards; create it again", w.Name)
	}
	n.c.Log.Info("network made", "network", nw.Name, "subnet", nw.Def.Subnet)
	n.step(ipam.Founded{Network: nw.ID, At: at})
	return state.Outcome{Network: nw.ID}, nil
}

func (n *Node) remove(w state.Remove) (state.Outcome, error) {
	out, err := n.doc.Apply(state.RemoveNetwork{ID: w.Network, Force: w.Force})
	if err != nil {
		return state.Outcome{}, err
	}
	n.tell(out)
	n.c.Log.Info("network removed", "network", w.Network)
	return state.Outcome{Network: w.Network}, nil
}

// own returns an endpoint of this node as the document has it.
func (n *Node) own(id state.EndpointID) (state.Endpoint, bool) {
	n.refresh()
	return n.ownShown(id)
}

// ownShown returns an endpoint of this node as the view has it.
func (n *Node) ownShown(id state.EndpointID) (state.Endpoint, bool) {
	e, ok := n.view.Endpoint(id)
	if !ok || e.Node != n.self {
		return state.Endpoint{}, false
	}
	return *e, true
}

// attach asks for an address, unless the container has one on that network.
func (n *Node) attach(w state.Attach, reply chan<- result) {
	nw, ok := n.view.Network(w.Network)
	if !ok {
		n.answer(reply, result{err: fmt.Errorf("attach %s to network %s: %w", w.Container, w.Network,
			state.Refuse(state.ErrNoNetwork, "there is no such network; see 'meshnet network ls'"))})
		return
	}
	for _, old := range n.store.wishes {
		if old.ID == w.ID || old.Network == w.Network && old.Container == w.Container {
			w.ID = old.ID
		}
	}
	for _, old := range n.wants {
		if old.wish.Network == w.Network && old.wish.Container == w.Container {
			w.ID = old.wish.ID
		}
	}
	if e, ok := n.own(w.ID); ok {
		if !n.reachable(e) && w.Addr != e.Addr {
			n.renumber(w, e, []chan<- result{reply})
			return
		}
		out, err := n.reattach(w, e)
		n.answer(reply, result{out, err})
		return
	}
	if waiting, ok := n.wants[w.ID]; ok {
		waiting.replies = append(waiting.replies, reply)
		return
	}
	if nw.Removed {
		n.answer(reply, result{err: fmt.Errorf("attach %s to %s: %w", w.Container, nw.Name,
			state.Refuse(state.ErrNoNetwork, "the network was removed and lives only until its last member goes"))})
		return
	}
	n.wants[w.ID] = &want{w, []chan<- result{reply}}
	n.step(ipam.Want{Wish: w, At: time.Now().Unix()})
}

// reattach takes over what a repeated wish says anew.
func (n *Node) reattach(w state.Attach, e state.Endpoint) (state.Outcome, error) {
	out := state.Outcome{Network: e.Network, Endpoint: e.ID, Addr: e.Addr, Again: true}
	old, known := n.store.wishes[e.ID]
	if w.Addr.IsValid() && w.Addr != e.Addr {
		return out, fmt.Errorf("attach %s to %s: %w", w.Container, n.networkName(e.Network),
			state.Refuse(state.ErrInvalid, "it has %s there already; detach it first", e.Addr))
	}
	if !w.Addr.IsValid() {
		w.Addr = old.Addr
	}
	if w.MAC == (state.MAC{}) {
		w.MAC = old.MAC
	} else {
		e.MAC = w.MAC
	}
	w.IfName, w.Given = cmp.Or(w.IfName, old.IfName), cmp.Or(w.Given, old.Given)
	e.Container, e.IfName = w.Container, cmp.Or(w.IfName, e.IfName)
	e.Names = slices.Sorted(slices.Values(w.Names))
	e.Publish = w.Publish
	if was, ok := n.own(e.ID); !ok || !equalEndpoints(was, e) {
		changed, err := n.doc.Apply(state.PutEndpoint{Endpoint: e})
		if err != nil {
			return out, err
		}
		n.tell(changed)
	}
	if !known || !equalWishes(old, w) {
		n.keep(w)
	}
	return out, nil
}

func (n *Node) networkName(id state.NetworkID) string {
	if nw, ok := n.view.Network(id); ok {
		return nw.Name
	}
	return id.String()
}

// keep stores a wish.
func (n *Node) keep(w state.Attach) {
	w.Names = slices.Clone(w.Names)
	n.keepRecords(n.store.keep(w))
	n.wishesOf = true
}

// answered ends a want.
func (n *Node) answered(a ipam.Answer) {
	w, ok := n.wants[a.ID]
	if !ok {
		return // given up
	}
	delete(n.wants, a.ID)
	r := result{}
	if a.Err != nil {
		r.err = fmt.Errorf("attach %s to %s: %w", w.wish.Container, n.networkName(w.wish.Network), a.Err)
		if len(w.replies) == 0 {
			n.c.Log.Warn("attachment of before has no address", "endpoint", a.ID, "err", a.Err)
			n.rewant = n.now() + rewantDelay
		}
	} else {
		w.wish.ID = a.Endpoint
		n.keep(w.wish)
		r.out = state.Outcome{Network: w.wish.Network, Endpoint: a.Endpoint, Addr: a.Addr}
		network := n.networkName(w.wish.Network)
		n.after = append(n.after, reply{say: func() {
			n.c.Log.Info("container attached", "endpoint", a.Endpoint, "network", network, "addr", a.Addr)
		}})
	}
	for _, reply := range w.replies {
		n.answer(reply, r)
	}
}

// giveUp ends the wait for an address, where it still lasts.
func (n *Node) giveUp(w state.Wish, reply chan result, why error) {
	a, ok := w.(state.Attach)
	if !ok {
		return // answered in this very moment
	}
	for id, waiting := range n.wants {
		i := slices.Index(waiting.replies, (chan<- result)(reply))
		if i < 0 {
			continue
		}
		waiting.replies = slices.Delete(waiting.replies, i, i+1)
		if _, kept := n.store.wishes[id]; len(waiting.replies) == 0 && !kept {
			delete(n.wants, id)
			n.step(ipam.GiveUp{ID: id})
		}
		if errors.Is(why, context.DeadlineExceeded) {
			why = state.Refuse(state.ErrNoAddress, "no node that owns addresses of it has answered; try again, or see 'meshnet nodes'")
		}
		reply <- result{err: fmt.Errorf("attach %s to %s: %w", a.Container, n.networkName(a.Network), why)}
		return
	}
}

// detach gives an attachment up. Twice is the same as once.
func (n *Node) detach(id state.EndpointID) state.Outcome {
	out := state.Outcome{Endpoint: id, Again: true}
	if w, ok := n.wants[id]; ok {
		delete(n.wants, id)
		n.step(ipam.GiveUp{ID: id})
		for _, reply := range w.replies {
			n.answer(reply, result{err: fmt.Errorf("attach %s to %s: it was detached meanwhile", w.wish.Container, n.networkName(w.wish.Network))})
		}
	}
	if w, ok := n.store.wishes[id]; ok {
		out.Network, out.Again = w.Network, false
		n.keepRecords(n.store.drop(id))
		n.wishesOf = true
		n.c.Log.Info("container detached", "endpoint", id, "network", n.networkName(w.Network))
	}
	if e, ok := n.own(id); ok {
		out.Network, out.Addr, out.Again = e.Network, e.Addr, false
		n.step(ipam.Free{Endpoint: id, Alloc: e.Alloc})
		if _, still := n.own(id); still {
			n.apply(state.RemoveEndpoint{ID: id})
		}
	}
	return out
}

// name notes what name an attachment's interface got. Only this host has to know.
func (n *Node) name(w state.Name) state.Outcome {
	a, ok := n.store.wishes[w.ID]
	if !ok || a.Given == w.Given {
		return state.Outcome{Endpoint: w.ID, Again: true}
	}
	a.Given = w.Given
	n.keep(a)
	return state.Outcome{Network: a.Network, Endpoint: w.ID}
}

// report notes whether a container's sandbox is there.
func (n *Node) report(w state.Report) (state.Outcome, error) {
	e, ok := n.ownShown(w.ID)
	if !ok {
		return state.Outcome{}, fmt.Errorf("report endpoint %s: %w", w.ID, state.ErrNoEndpoint)
	}
	out := state.Outcome{Network: e.Network, Endpoint: e.ID, Addr: e.Addr, Again: e.Down == w.Down}
	if out.Again {
		return out, nil
	}
	if wish, kept := n.store.wishes[w.ID]; kept && e.Down && !n.reachable(e) {
		if e, ok = n.own(w.ID); !ok { // this decides an address, so ipam sees first what is new
			return state.Outcome{}, fmt.Errorf("report endpoint %s: %w", w.ID, state.ErrNoEndpoint)
		}
		if !n.reachable(e) {
			n.renumber(wish, e, nil) // it starts again, and nobody reached it by this address
			return out, nil
		}
	}
	e.Down = w.Down
	changed, err := n.doc.Apply(state.PutEndpoint{Endpoint: e})
	if err != nil {
		return state.Outcome{}, err
	}
	n.tell(changed)
	return out, nil
}

// publishPorts sets the ports of this host that lead to an attachment.
func (n *Node) publishPorts(w state.Publish) (state.Outcome, error) {
	wish, wished := n.store.wishes[w.ID]
	e, ok := n.own(w.ID)
	if !ok || !wished {
		return state.Outcome{}, fmt.Errorf("publish ports of endpoint %s: %w", w.ID, state.ErrNoEndpoint)
	}
	out := state.Outcome{Network: e.Network, Endpoint: e.ID, Addr: e.Addr}
	e.Publish = slices.Clone(w.Ports)
	changed, err := n.doc.Apply(state.PutEndpoint{Endpoint: e})
	if err != nil {
		return state.Outcome{}, err
	}
	n.tell(changed)
	n.refresh()
	if e, ok = n.own(w.ID); ok {
		wish.Publish = e.Publish // sorted
	}
	out.Again = changed.Empty()
	n.keep(wish)
	return out, nil
}

// takeUp makes endpoints equal to the wishes: those without an endpoint ask for an address, and
// endpoints that nobody wishes for are given back. A crash may have kept one and lost the other.
func (n *Node) takeUp() {
	n.rewant = 0
	if n.quiet() {
		return
	}
	n.refresh()
	for _, w := range sortedWishes(n.store.wishes) {
		e, has := n.own(w.ID)
		_, waits := n.wants[w.ID]
		if has && !slices.Equal(e.Publish, w.Publish) {
			e.Publish = w.Publish
			n.apply(state.PutEndpoint{Endpoint: e})
		}
		if has || waits {
			continue
		}
		if _, ok := n.view.Network(w.Network); !ok && n.settled {
			n.c.Log.Warn("attachment given up: its network is gone", "endpoint", w.ID, "network", w.Network)
			n.detach(w.ID)
			continue
		}
		n.wants[w.ID] = &want{wish: w}
		n.step(ipam.Want{Wish: w, At: time.Now().Unix()})
	}
	for _, nw := range n.view.Networks() {
		var unwished []state.EndpointID
		if nw.HasMember(n.self) {
			for e := range nw.Claims() {
				if _, ok := n.store.wishes[e.ID]; !ok && e.Node == n.self {
					unwished = append(unwished, e.ID)
				}
			}
		}
		for _, id := range unwished {
			n.detach(id)
		}
	}
}

// obeyKills detaches the containers from networks that a person removed by force.
func (n *Node) obeyKills() {
	killed := map[state.NetworkID]bool{}
	for _, w := range n.store.wishes {
		if _, known := killed[w.Network]; !known {
			killed[w.Network] = n.view.Killed(w.Network, n.self)
		}
	}
	if !slices.Contains(slices.Collect(maps.Values(killed)), true) {
		return
	}
	for _, w := range sortedWishes(n.store.wishes) {
		if killed[w.Network] {
			n.c.Log.Warn("network was removed by force; its container is detached", "network", w.Network, "endpoint", w.ID)
			n.detach(w.ID)
		}
	}
}

// equalEndpoints compares what a repeated wish may change of an endpoint.
func equalEndpoints(a, b state.Endpoint) bool {
	return a.Container == b.Container && a.MAC == b.MAC && a.IfName == b.IfName && slices.Equal(a.Names, b.Names) &&
		slices.Equal(a.Publish, b.Publish)
}

func equalWishes(a, b state.Attach) bool {
	return a.ID == b.ID && a.Network == b.Network && a.Container == b.Container && a.Source == b.Source &&
		a.Addr == b.Addr && a.MAC == b.MAC && a.IfName == b.IfName && a.NoDefaultRoute == b.NoDefaultRoute && a.Given == b.Given &&
		slices.Equal(a.Names, b.Names) && slices.Equal(a.Publish, b.Publish)
}
