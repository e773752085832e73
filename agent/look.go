package agent

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

// Readiness is how far an attachment is.
type Readiness uint8

const (
	// Ready: its interface is there.
	Ready Readiness = iota
	// Pending: it waits for an address or for the host.
	Pending
	// Down: its container does not run.
	Down
)

// String returns ready, pending or down.
func (r Readiness) String() string { return [...]string{"ready", "pending", "down", ""}[r&3] }

// Attachment is a container on a network.
type Attachment struct {
	Endpoint  state.EndpointID
	Container string
	Network   state.NetworkID
	Shown     string       // the network's name
	Addr      netip.Prefix // with the network's length; invalid: none yet
	MAC       state.MAC
	IfName    string     // inside the container; empty: not known here
	Gateway   netip.Addr // invalid: none
	Node      state.NodeID
	NodeName  string
	State     Readiness
	Names     []string
	// Published lists the ports of its host that lead to it.
	Published []state.Published
}

// Network is a network as this node sees it.
type Network struct {
	*state.Network
	MTU        uint32 // of its interfaces, bytes
	Containers int    // on it, reachable
	// Members are the names of the nodes with a container on it; of Inspect only.
	Members []string
	// Attachments, of Inspect only, are those of all nodes, in the order of addresses.
	Attachments []Attachment
}

// Node is a node that the state names or that is a member of the mesh.
type Node struct {
	state.Peer
	// Tunnel: this host has a way to it, and probes come back from there. To a node with which it shares
	// no network none are sent: then, that the node is alive.
	Tunnel bool
	// Probed: Peer.RTT and Loss are of probes through the tunnel. Otherwise RTT is the gossip's.
	Probed bool
	Loss   float64 // part of the last probes that did not come back, 0 to 1
}

// Status is what this node says of itself and of the mesh.
type Status struct {
	Node      Node
	Converged bool // all alive members agree and nothing is pending
	Agreement state.Agreement
	Differ    []string // names of alive nodes with another digest
	Silent    []string // names of alive nodes that gave none in time
	Choice    plan.Choice
	Underlay  plan.Underlay
	Pending   []string // what is still to be done and why
	Warnings  []string
	Disagree  []string // those of Warnings that are about what nodes do not agree in
	Peers     []Node
	Networks  int
	Attached  int // containers on networks, here
	Repairs   int // steps by which this host was put right since the daemon's start
	// FastPath: known packets pass the switch by. FastWhy says why they do or not, in one clause.
	FastPath bool
	FastWhy  string
	Traffic  []Traffic
}

// Traffic is what came in by one device of the fast path, and whose it is.
type Traffic struct {
	plan.Traffic
	Shown     string // the network's name
	Container string // empty: the packets come from other hosts or from this one
}

// Nodes returns all nodes that the state names and all members, in the order of (name, id).
func (a *Agent) Nodes() []Node {
	view := a.c.Mesh.View()
	self := a.c.Mesh.Self()
	now, _ := a.look()
	nodes := map[state.NodeID]Node{}
	for _, n := range view.Nodes() {
		nodes[n.ID] = Node{Peer: state.Peer{
			ID: n.ID, Name: n.Name, Addr: n.Addr, Version: n.Version, State: state.Dead, Self: n.ID == self,
		}}
	}
	for _, p := range a.c.Mesh.Peers() {
		// What a node says of itself is in its record; a failure detector may not know it.
		if known, ok := nodes[p.ID]; ok {
			p.Name = cmp.Or(p.Name, known.Name)
			p.Version = cmp.Or(p.Version, known.Version)
			if !p.Addr.IsValid() {
				p.Addr = known.Addr
			}
		}
		_, recorded := view.Node(p.ID)
		nodes[p.ID] = Node{Peer: p, Tunnel: !p.Self && p.State == state.Alive && recorded && now.host != nil}
	}
	var paths map[state.NodeID]state.Path
	if a.c.Paths != nil {
		paths = a.c.Paths()
	}
	all := make([]Node, 0, len(nodes))
	for id, n := range nodes {
		if path, ok := paths[id]; ok {
			n.Tunnel, n.Probed, n.Loss, n.RTT = path.Up, true, path.Loss, path.RTT
		}
		all = append(all, n)
	}
	slices.SortFunc(all, func(x, y Node) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.ID, y.ID))
	})
	return all
}

// Networks returns all networks in the order of their names.
func (a *Agent) Networks() []Network {
	view := a.c.Mesh.View()
	all := make([]Network, 0, len(view.Networks()))
	for _, n := range view.Networks() {
		all = append(all, a.network(n))
	}
	return all
}

// Inspect returns a network by name or id, with its members and attachments.
func (a *Agent) Inspect(name string) (Network, error) {
	view := a.c.Mesh.View()
	n, err := find(view, name)
	if err != nil {
		return Network{}, err
	}
	net := a.network(n)
	for _, id := range n.Members() {
		net.Members = append(net.Members, nodeName(view, id))
	}
	slices.Sort(net.Members)
	net.Attachments = slices.DeleteFunc(a.PS(true), func(at Attachment) bool { return at.Network != n.ID })
	return net, nil
}

func (a *Agent) network(n *state.Network) Network {
	now, _ := a.look()
	mtu := n.Def.MTU
	if now.host != nil && (mtu == 0 || mtu > now.host.MTU) {
		mtu = now.host.MTU
	}
	return Network{Network: n, MTU: mtu, Containers: n.Len()}
}

// PS returns the attachments of this host, or of all, in the order of (network, address). Those
// that wait for an address come last. This host's alone cost what it has, whatever the mesh does.
func (a *Agent) PS(all bool) []Attachment {
	view := a.c.Mesh.View()
	self := a.c.Mesh.Self()
	now, _ := a.look()
	linked := links(now.host)
	var list, waiting []Attachment
	add := func(n *state.Network, e *state.Endpoint) {
		at := attachment(view, n, e)
		if e.Node == self {
			at.IfName = cmp.Or(now.ifNames[e.ID], e.IfName)
			at.State = ready(e, linked[e.ID])
		}
		list = append(list, at)
	}
	for _, w := range a.c.Mesh.Wishes() {
		n, known := view.Network(w.Network)
		if !known {
			continue
		}
		if e, ok := view.Endpoint(w.ID); ok {
			if !all && e.Node == self {
				add(n, e)
			}
			continue
		}
		waiting = append(waiting, Attachment{
			Endpoint: w.ID, Container: w.Container, Network: n.ID, Shown: n.Name, MAC: w.MAC, IfName: w.IfName,
			Gateway: n.Def.Gateway, Node: self, NodeName: nodeName(view, self), State: Pending, Names: w.Names,
		})
	}
	if all {
		for _, n := range view.Networks() {
			for e := range n.Claims() {
				add(n, e)
			}
		}
	} else {
		slices.SortFunc(list, func(x, y Attachment) int {
			return cmp.Or(cmp.Compare(x.Shown, y.Shown), x.Addr.Addr().Compare(y.Addr.Addr()), cmp.Compare(x.Endpoint, y.Endpoint))
		})
	}
	return append(list, waiting...)
}

// links returns the endpoints that have an interface on this host.
func links(h *plan.Host) map[state.EndpointID]bool {
	linked := map[state.EndpointID]bool{}
	if h != nil {
		for _, l := range h.Links {
			linked[l.Endpoint] = true
		}
		for _, n := range h.Networks {
			linked[n.Host.Endpoint] = true
		}
	}
	return linked
}

func ready(e *state.Endpoint, linked bool) Readiness {
	switch {
	case e.Down:
		return Down
	case !linked:
		return Pending
	}
	return Ready
}

func attachment(view *state.View, n *state.Network, e *state.Endpoint) Attachment {
	at := Attachment{
		Endpoint: e.ID, Container: e.Container, Network: n.ID, Shown: n.Name,
		Addr: netip.PrefixFrom(e.Addr, n.Def.Subnet.Bits()), MAC: e.MAC, IfName: e.IfName,
		Gateway: n.Def.Gateway, Node: e.Node, NodeName: nodeName(view, e.Node), Names: e.Names,
		Published: e.Publish,
	}
	if e.Down {
		at.State = Down
	}
	return at
}

// traffic returns what the fast path counted, with names.
func (a *Agent) traffic(view *state.View) []Traffic {
	if a.c.Traffic == nil {
		return nil
	}
	var all []Traffic
	for _, t := range a.c.Traffic() {
		named := Traffic{Traffic: t}
		if n, ok := view.Network(t.Network); ok {
			named.Shown = n.Name
		}
		if e, ok := view.Endpoint(t.Endpoint); ok {
			named.Container = e.Container
		}
		all = append(all, named)
	}
	return all
}

// agreeMax bounds the question to all members.
const agreeMax = 2 * time.Second

// Status asks all members for their digest and says how this node and the mesh are.
func (a *Agent) Status(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, agreeMax)
	defer cancel()
	m := a.c.Mesh
	agreed := m.Agreeing(ctx)
	view := m.View()
	now, _ := a.look()
	s := Status{
		Agreement: agreed,
		Differ:    a.nodeNames(agreed.Differ),
		Silent:    a.nodeNames(agreed.Silent),
		Choice:    a.c.Choice,
		Underlay:  a.c.Underlay,
		Pending:   slices.Concat(m.Pending(), now.failing),
		Disagree:  plan.Warnings(view, plan.Facts{Self: m.Self(), Choice: a.c.Choice, Underlay: a.c.Underlay}),
		Networks:  len(view.Networks()),
		Attached:  len(a.PS(false)),
		FastPath:  a.c.Choice.FastPath && now.slow == "",
		FastWhy:   cmp.Or(now.slow, a.c.Choice.FastWhy),
		Traffic:   a.traffic(view),
	}
	a.events.mu.Lock()
	s.Repairs = a.events.repairs
	a.events.mu.Unlock()
	s.Warnings = slices.Concat(a.c.Warnings, a.c.Choice.Warnings, m.Warnings(), a.c.Sandboxes.Warnings(), a.labelFaults(), s.Disagree)
	if now.slow != "" {
		s.Warnings = append(s.Warnings, "fast path is off: "+now.slow+"; meshnet down and up to try again")
	}
	if now.applied < view.Version() && len(now.failing) == 0 {
		s.Pending = append(s.Pending, "this host is being changed to what was agreed")
	}
	for _, n := range a.Nodes() {
		if n.Self {
			s.Node = n
			s.Node.Version = a.c.Version
		} else {
			s.Peers = append(s.Peers, n)
		}
	}
	s.Converged = agreed.Alive > 0 && agreed.Agreeing == agreed.Alive && len(s.Pending) == 0
	return s
}
