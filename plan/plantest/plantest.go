// Package plantest has meshes in memory, and the views and facts that plans and flows are shown on.
//
// [Mesh] is one document a node, each told at once what another wrote. [Cases] are the situations
// that goldens of packages plan and flow have in common. For tests only.
package plantest

import (
	"fmt"
	"net/netip"
	"testing"

	"meshnet/crdt"
	"meshnet/plan"
	"meshnet/state"
)

// Mesh is the documents of nodes that hear each other at once.
type Mesh struct {
	tb   testing.TB
	docs []*state.Doc
	cut  bool
	held []state.Out
}

// Node returns the id of the n-th node, from 1.
func Node(n int) state.NodeID { return state.NodeID(n) * 0x1111111111111111 }

// Addr returns the underlay address of the n-th node.
func Addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) }

// Record returns the record of the n-th node: a host with an Ethernet underlay.
func Record(n int) state.Node {
	return state.Node{
		ID: Node(n), Name: fmt.Sprintf("host%d", n), Addr: Addr(n),
		GossipPort: 17946, TunnelPort: plan.DefaultTunnelPort, MTU: 1500,
	}
}

// NewMesh returns a mesh of nodes 1 to n that have written their records.
func NewMesh(tb testing.TB, n int) *Mesh {
	m := &Mesh{tb: tb}
	for i := range n {
		m.docs = append(m.docs, state.NewDoc(Node(i+1), 1, crdt.Actor(i+1)))
	}
	for i := range n {
		m.Apply(i+1, state.PutNode{Node: Record(i + 1)})
	}
	return m
}

// Apply makes changes on the n-th node and tells all others.
func (m *Mesh) Apply(n int, cs ...state.Change) {
	m.tb.Helper()
	if err := m.Try(n, cs...); err != nil {
		m.tb.Fatal(err)
	}
}

// Try is Apply for changes that may be refused.
func (m *Mesh) Try(n int, cs ...state.Change) error {
	out, err := m.docs[n-1].Apply(cs...)
	m.held = append(m.held, out)
	if !m.cut {
		m.Heal()
	}
	return err
}

// Cut keeps the nodes from hearing each other.
func (m *Mesh) Cut() { m.cut = true }

// Heal ends a cut.
func (m *Mesh) Heal() {
	for _, out := range m.held {
		for _, d := range m.docs {
			d.Merge(out)
		}
	}
	m.cut, m.held = false, nil
}

// View returns what node 1 holds.
func (m *Mesh) View() *state.View { return m.docs[0].View() }

// Create makes a network on node 1, whatever it overlaps, and returns its id.
func (m *Mesh) Create(name, subnet string) state.NetworkID {
	m.tb.Helper()
	return m.CreateDef(state.Definition{Name: name, Subnet: netip.MustParsePrefix(subnet)})
}

// NoGateway is the key of a label that makes CreateDef leave out the gateway.
const NoGateway = "no-gateway"

// CreateDef is Create with all that a definition has; the first address is the gateway.
func (m *Mesh) CreateDef(def state.Definition) state.NetworkID {
	m.tb.Helper()
	if len(def.Labels) == 0 || def.Labels[0].Key != NoGateway {
		def.Gateway = def.Subnet.Addr().Next()
	}
	m.Apply(1, state.CreateNetwork{Def: def, At: 1_000_000_000, Force: true})
	n, ok := m.View().ByName(def.Name)
	if !ok {
		m.tb.Fatalf("network %s is not there", def.Name)
	}
	return n.ID
}

// Endpoint returns the id of the endpoint that Attach makes for an address on the n-th node.
func Endpoint(n int, addr string) state.EndpointID {
	b := netip.MustParseAddr(addr).As4()
	return state.EndpointID(uint64(n)<<48 | uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3]))
}

// Attach puts a container with an address on the n-th node into a network. The id is that of
// [Endpoint].
func (m *Mesh) Attach(n int, net state.NetworkID, addr string) state.Endpoint {
	m.tb.Helper()
	a := netip.MustParseAddr(addr)
	e := state.Endpoint{
		ID: Endpoint(n, addr), Network: net, Container: "c" + addr,
		Addr: a, MAC: state.MACOf(a), Alloc: 1, At: 1_000_000_000,
	}
	m.Apply(n, state.PutEndpoint{Endpoint: e})
	return e
}

// Facts returns what node 1 knows of its host on a transport.
func Facts(tr state.Transport, sandboxes ...state.EndpointID) plan.Facts {
	f := plan.Facts{
		Self: Node(1),
		Choice: plan.Choice{
			Datapath: "netdev", Transport: tr, Private: tr == state.KernelVXLAN, TSO: tr == state.KernelVXLAN,
		},
		Underlay: plan.Underlay{
			Device: "eth0", Index: 2, Addr: Addr(1), Prefix: netip.PrefixFrom(Addr(1), 24), MTU: 1500,
		},
		Sandboxes: map[state.EndpointID]plan.Sandbox{},
	}
	if tr == state.OVSKernel {
		f.Choice.Datapath = "system"
	}
	if tr == state.OVSUserspace {
		f.Choice.NICs = []string{"eno1"}
	}
	for i, id := range sandboxes {
		f.Sandboxes[id] = plan.Sandbox{Path: fmt.Sprintf("/run/netns/c%d", i+1), Inode: 4026532000 + uint64(i)}
	}
	return f
}

// Case is a situation on node 1.
type Case struct {
	Name  string // of its golden
	Last  *plan.Host
	View  *state.View
	Facts plan.Facts
}

// Host returns the checked plan of the case.
func (c Case) Host() *plan.Host {
	h := plan.For(c.Last, c.View, c.Facts)
	h.Check()
	return h
}

// Cases returns the situations that goldens show.
func Cases(tb testing.TB) []Case {
	tb.Helper()
	cases := []Case{alone(tb), nothing(tb), sameSubnet(tb), noSandbox(tb), elsewhere(tb), memberGone(tb), overIPv6(tb)}
	for _, tr := range []state.Transport{state.OVSKernel, state.OVSUserspace, state.KernelVXLAN} {
		cases = append(cases, three(tb, tr), gateway(tb, tr))
	}
	return cases
}

// nothing: a node that is the first and has no network.
func nothing(tb testing.TB) Case {
	return Case{Name: "nothing", View: NewMesh(tb, 1).View(), Facts: Facts(state.KernelVXLAN)}
}

// alone: one node with two containers on one network.
func alone(tb testing.TB) Case {
	m := NewMesh(tb, 1)
	web := m.Create("web", "10.2.0.0/16")
	a, b := m.Attach(1, web, "10.2.0.5"), m.Attach(1, web, "10.2.0.6")
	return Case{Name: "alone", View: m.View(), Facts: Facts(state.OVSKernel, a.ID, b.ID)}
}

// three: three nodes with a container each on two networks.
func three(tb testing.TB, tr state.Transport) Case {
	m := NewMesh(tb, 3)
	web, def := m.Create("web", "10.2.0.0/16"), m.Create("default", "10.1.0.0/16")
	var own []state.EndpointID
	for n := 1; n <= 3; n++ {
		for _, e := range []state.Endpoint{
			m.Attach(n, web, fmt.Sprintf("10.2.0.%d", n+1)),
			m.Attach(n, def, fmt.Sprintf("10.1.0.%d", n+1)),
		} {
			if n == 1 {
				own = append(own, e.ID)
			}
		}
	}
	return Case{Name: "three-" + tr.String(), View: m.View(), Facts: Facts(tr, own...)}
}

// gateway: a container on an internal network, on one that leads out, with published ports, and on
// one without a gateway; this host has an address on the internal one and on one without containers
// here.
func gateway(tb testing.TB, tr state.Transport) Case {
	m := NewMesh(tb, 2)
	web := m.Create("web", "10.2.0.0/16")
	inner := m.CreateDef(state.Definition{Name: "inner", Subnet: netip.MustParsePrefix("10.3.0.0/16"), Internal: true})
	bare := m.CreateDef(state.Definition{Name: "bare", Subnet: netip.MustParsePrefix("10.4.0.0/16"), Labels: []state.Label{{Key: NoGateway}}})
	seen := m.Create("seen", "10.5.0.0/16")
	a := m.Attach(1, web, "10.2.0.5")
	a.Publish = []state.Published{{HostPort: 8080, Port: 80}, {Proto: state.UDP, HostPort: 53, Port: 5353}}
	m.Apply(1, state.PutEndpoint{Endpoint: a})
	own := []state.EndpointID{a.ID, m.Attach(1, inner, "10.3.0.5").ID, m.Attach(1, bare, "10.4.0.5").ID}
	hosts := []state.EndpointID{m.Attach(1, inner, "10.3.0.9").ID, m.Attach(1, seen, "10.5.0.9").ID}
	for _, net := range []struct {
		id   state.NetworkID
		addr string
	}{{web, "10.2.0.6"}, {inner, "10.3.0.6"}, {bare, "10.4.0.6"}, {seen, "10.5.0.6"}} {
		m.Attach(2, net.id, net.addr)
	}
	facts := Facts(tr, own...)
	for _, id := range hosts {
		facts.Sandboxes[id] = plan.Sandbox{Host: true}
	}
	return Case{Name: "gateway-" + tr.String(), View: m.View(), Facts: facts}
}

// sameSubnet: two networks with equal subnets and equal addresses.
func sameSubnet(tb testing.TB) Case {
	m := NewMesh(tb, 2)
	var own []state.EndpointID
	for _, name := range []string{"red", "blue"} {
		net := m.Create(name, "10.2.0.0/16")
		a := netip.MustParseAddr("10.2.0.5")
		e := state.Endpoint{ID: state.EndpointID(net)>>8 + 1, Network: net, Container: name, Addr: a, MAC: state.MACOf(a), At: 1}
		m.Apply(1, state.PutEndpoint{Endpoint: e})
		own = append(own, e.ID)
		e.ID, e.Addr = e.ID+1, a.Next()
		e.MAC = state.MACOf(e.Addr)
		m.Apply(2, state.PutEndpoint{Endpoint: e})
	}
	return Case{Name: "same-subnet", View: m.View(), Facts: Facts(state.KernelVXLAN, own...)}
}

// noSandbox: a container that is not running beside one that is.
func noSandbox(tb testing.TB) Case {
	m := NewMesh(tb, 2)
	web := m.Create("web", "10.2.0.0/16")
	m.Attach(1, web, "10.2.0.5")
	b := m.Attach(1, web, "10.2.0.6")
	return Case{Name: "no-sandbox", View: m.View(), Facts: Facts(state.OVSUserspace, b.ID)}
}

// elsewhere: a network that only other nodes have members on.
func elsewhere(tb testing.TB) Case {
	m := NewMesh(tb, 3)
	web, db := m.Create("web", "10.2.0.0/16"), m.Create("db", "10.3.0.0/16")
	a := m.Attach(1, web, "10.2.0.5")
	m.Attach(2, db, "10.3.0.5")
	m.Attach(3, db, "10.3.0.6")
	return Case{Name: "elsewhere", View: m.View(), Facts: Facts(state.OVSKernel, a.ID)}
}

// memberGone: a plan that follows one in which a node, and a container here, still were members.
func memberGone(tb testing.TB) Case {
	m := NewMesh(tb, 3)
	web := m.Create("web", "10.2.0.0/16")
	a, b := m.Attach(1, web, "10.2.0.5"), m.Attach(1, web, "10.2.0.6")
	c, d := m.Attach(2, web, "10.2.0.7"), m.Attach(3, web, "10.2.0.8")
	facts := Facts(state.KernelVXLAN, a.ID, b.ID)
	last := plan.For(nil, m.View(), facts)
	m.Apply(1, state.RemoveEndpoint{ID: a.ID})
	m.Apply(2, state.RemoveEndpoint{ID: c.ID})
	facts.IfNames = map[state.EndpointID]string{b.ID: "eth1", d.ID: "eth7"}
	return Case{Name: "member-gone", Last: last, View: m.View(), Facts: facts}
}

// overIPv6: an IPv6 underlay with jumbo frames here and a smaller MTU there, a network with an MTU of
// its own, no TSO.
func overIPv6(tb testing.TB) Case {
	m := NewMesh(tb, 2)
	addr := func(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n)) }
	for n := 1; n <= 2; n++ {
		rec := Record(n)
		rec.Addr, rec.MTU, rec.TunnelPort = addr(n), uint32(10500-1500*n), 4790
		m.Apply(n, state.PutNode{Node: rec})
	}
	web := m.Create("web", "10.2.0.0/16")
	small := m.CreateDef(state.Definition{Name: "small", Subnet: netip.MustParsePrefix("10.3.0.0/16"), MTU: 1400})
	own := []state.EndpointID{m.Attach(1, web, "10.2.0.5").ID, m.Attach(1, small, "10.3.0.5").ID}
	m.Attach(2, web, "10.2.0.6")
	facts := Facts(state.KernelVXLAN, own...)
	facts.Choice.TSO = false
	facts.Underlay.Addr, facts.Underlay.Prefix, facts.Underlay.MTU = addr(1), netip.PrefixFrom(addr(1), 64), 9000
	return Case{Name: "over-ipv6", View: m.View(), Facts: facts}
}
