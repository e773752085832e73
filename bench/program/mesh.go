package main

import (
	"fmt"
	"net/netip"

	"meshnet/crdt"
	"meshnet/plan"
	"meshnet/state"
)

// peersMax is how many addresses there are for peers.
const peersMax = 60_000

// batch is how many endpoints are written at once.
const batch = 1000

// mesh is what this host holds of a mesh, and the document of the peer that goes on writing.
type mesh struct {
	own, peer *state.Doc
	network   state.NetworkID
	local     state.Endpoint
}

// newMesh returns a mesh of one network with a container here and so many on the peers, in turn.
func newMesh(endpoints, peers int) (*mesh, error) {
	m := &mesh{own: state.NewDoc(nodeID(0), 1, 1)}
	if _, err := m.own.Apply(state.PutNode{Node: record(0)}); err != nil {
		return nil, err
	}
	def := state.Definition{Name: "web", Subnet: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("10.0.0.1")}
	created, err := m.own.Apply(state.CreateNetwork{Def: def, At: 1, Force: true})
	if err != nil {
		return nil, err
	}
	web, ok := m.own.View().ByName("web")
	if !ok {
		return nil, fmt.Errorf("network web is not there")
	}
	m.network = web.ID
	m.local = m.endpoint(1, netip.MustParseAddr("10.255.0.2"))
	if _, err := m.own.Apply(state.PutEndpoint{Endpoint: m.local}); err != nil {
		return nil, err
	}
	for p := range peers {
		doc := state.NewDoc(nodeID(p+1), 1, crdt.Actor(p+2))
		doc.Merge(created)
		if err := m.write(doc, state.PutNode{Node: record(p + 1)}); err != nil {
			return nil, err
		}
		var cs []state.Change
		for i := p; i < endpoints; i += peers {
			cs = append(cs, state.PutEndpoint{Endpoint: m.endpoint(i+2, address(i))})
			if len(cs) == batch {
				if err := m.write(doc, cs...); err != nil {
					return nil, err
				}
				cs = nil
			}
		}
		if err := m.write(doc, cs...); err != nil {
			return nil, err
		}
		if p == 0 {
			m.peer = doc
		}
	}
	return m, nil
}

// write makes changes on a peer and tells this host.
func (m *mesh) write(doc *state.Doc, cs ...state.Change) error {
	if len(cs) == 0 {
		return nil
	}
	out, err := doc.Apply(cs...)
	if err == nil {
		m.own.Merge(out)
	}
	return err
}

func (m *mesh) endpoint(n int, a netip.Addr) state.Endpoint {
	return state.Endpoint{
		ID: state.EndpointID(n), Network: m.network, Container: fmt.Sprint("c", n), Addr: a, MAC: state.MACOf(a), Alloc: 1, At: 1,
	}
}

// address is the ith of those for containers elsewhere.
func address(i int) netip.Addr {
	i += 2
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func nodeID(n int) state.NodeID { return state.NodeID(n+1) * 0x9e3779b97f4a7c15 }

// underlay is the address of a node: of the range for benchmarks (RFC 2544).
func underlay(n int) netip.Addr {
	n += 1
	return netip.AddrFrom4([4]byte{198, 18 + byte(n>>16), byte(n >> 8), byte(n)})
}

func record(n int) state.Node {
	return state.Node{
		ID: nodeID(n), Name: fmt.Sprint("host", n), Addr: underlay(n), GossipPort: 17946, TunnelPort: plan.DefaultTunnelPort, MTU: 1500,
	}
}
