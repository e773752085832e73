package flow_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"meshnet/ovs/flow"
	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"

	"pgregory.net/rapid"
)

// world is a mesh of three nodes whose containers come and go, and what node 1 makes of it.
type world struct {
	t     *rapid.T
	mesh  *plantest.Mesh
	nets  []state.NetworkID
	at    map[string]int // node by address
	facts plan.Facts
	host  *plan.Host
}

// step changes something: a container comes, goes, moves, stops, is renamed or gets another MAC; this
// host gets an address on a network.
func (w *world) step() {
	net := rapid.IntRange(0, len(w.nets)-1).Draw(w.t, "net")
	addr := fmt.Sprintf("10.%d.0.%d", net+2, rapid.IntRange(2, 9).Draw(w.t, "addr"))
	node := rapid.IntRange(1, 3).Draw(w.t, "node")
	if old, ok := w.at[addr]; ok {
		id := plantest.Endpoint(old, addr)
		if rapid.Bool().Draw(w.t, "changed") {
			e, _ := w.mesh.View().Endpoint(id)
			now := *e
			now.Down = !now.Down
			if old == 1 && rapid.Bool().Draw(w.t, "publish") {
				now.Publish = []state.Published{{HostPort: 80, Port: 80}}
			}
			if rapid.IntRange(0, 9).Draw(w.t, "MAC") == 0 {
				now.MAC = state.MACOf(netip.AddrFrom4([4]byte{10, byte(net + 2), 0, byte(rapid.IntRange(1, 9).Draw(w.t, "of"))}))
			}
			w.mesh.Apply(old, state.PutEndpoint{Endpoint: now})
			return
		}
		w.mesh.Apply(old, state.RemoveEndpoint{ID: id})
		delete(w.at, addr)
		delete(w.facts.Sandboxes, id)
		return
	}
	e := w.mesh.Attach(node, w.nets[net], addr)
	w.at[addr] = node
	if node == 1 {
		switch rapid.IntRange(0, 4).Draw(w.t, "sandbox") {
		case 0: // not there
		case 1:
			w.facts.Sandboxes[e.ID] = plan.Sandbox{Host: true}
		default:
			w.facts.Sandboxes[e.ID] = plan.Sandbox{Path: "/run/netns/" + addr, Inode: uint64(e.ID)}
		}
	}
}

// found returns what a switch that has a plan tells.
func found(h *plan.Host) plan.Found {
	f := plan.Found{Ports: map[state.EndpointID]uint32{}, Tunnels: map[state.NodeID]uint32{}, Devices: map[state.NetworkID]uint32{}}
	for id, n := range h.Networks {
		for _, p := range n.Ports {
			f.Ports[p.Endpoint] = p.OFPort
		}
		if n.Device != nil {
			f.Devices[id] = n.Device.OFPort
		}
	}
	for _, t := range h.Tunnels {
		f.Tunnels[t.Peer] = t.OFPort
	}
	if h.Gateway != nil {
		f.Gateway = h.Gateway.OFPort
	}
	return f
}

// What a plan takes over from the one before is what it would be made of anew, and the flows that a
// change adds and removes lead from those of one plan to those of the next.
func TestChangeFollowsPlan(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tr := rapid.SampledFrom([]state.Transport{state.OVSUserspace, state.KernelVXLAN}).Draw(rt, "transport")
		w := &world{t: rt, mesh: plantest.NewMesh(t, 3), at: map[string]int{}, facts: plantest.Facts(tr)}
		w.nets = []state.NetworkID{w.mesh.Create("a", "10.2.0.0/16"), w.mesh.CreateDef(
			state.Definition{Name: "b", Subnet: netip.MustParsePrefix("10.3.0.0/16"), Internal: true})}
		have := map[state.NetworkID][]flow.Flow{}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			w.step()
			last := w.host
			w.host = plan.For(last, w.mesh.View(), w.facts)
			w.host.Check()
			w.host.CheckSince(last)
			anew := w.facts
			anew.Found = found(w.host)
			if fresh := plan.For(nil, w.mesh.View(), anew); fresh.String() != w.host.String() {
				rt.Fatalf("planned\n%s\nanew\n%s", w.host, fresh)
			}
			for id, n := range w.host.Networks {
				want := flow.Compile(n, w.host)
				if all := len(flow.Base(w.host)); all != flow.CountBase(w.host) {
					rt.Fatalf("%d base flows, counted %d", all, flow.CountBase(w.host))
				}
				if len(want) != flow.Count(n, w.host) {
					rt.Fatalf("%d flows, counted %d", len(want), flow.Count(n, w.host))
				}
				if last == nil || last.Networks[id] == nil {
					have[id] = want
					continue
				}
				add, remove := flow.Change(last.Networks[id], n, w.host)
				have[id] = changed(have[id], add, remove)
				if !slices.EqualFunc(have[id], want, flow.Flow.Equal) {
					rt.Fatalf("changed into\n%v\nwant\n%v", have[id], want)
				}
			}
		}
	})
}

// changed removes and adds flows as a switch does.
func changed(have, add, remove []flow.Flow) []flow.Flow {
	same := func(list []flow.Flow, f flow.Flow) bool {
		return slices.ContainsFunc(list, func(g flow.Flow) bool { return flow.Compare(f, g) == 0 })
	}
	out := slices.DeleteFunc(slices.Clone(have), func(f flow.Flow) bool { return same(remove, f) || same(add, f) })
	out = append(out, add...)
	slices.SortFunc(out, flow.Compare)
	return out
}
