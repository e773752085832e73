package flow_test

import (
	"fmt"
	"net/netip"
	"testing"

	"meshnet/ovs/flow"
	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"
)

// large returns a mesh with n containers elsewhere and one here, on one network.
func large(tb testing.TB, n int) (*plantest.Mesh, state.NetworkID, plan.Facts) {
	m := plantest.NewMesh(tb, 2)
	net := m.Create("web", "10.0.0.0/8")
	own := m.Attach(1, net, "10.255.0.2")
	var cs []state.Change
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).Next().Next()
		cs = append(cs, state.PutEndpoint{Endpoint: state.Endpoint{
			ID: state.EndpointID(i + 1), Network: net, Container: "c", Addr: a, MAC: state.MACOf(a), Alloc: 1, At: 1,
		}})
		if len(cs) == 1000 || i == n-1 {
			m.Apply(2, cs...)
			cs = nil
		}
	}
	return m, net, plantest.Facts(state.KernelVXLAN, own.ID)
}

// BenchmarkChange is what one container more costs from the view on to the flows, among so many.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m, net, facts := large(b, n)
			views := []*state.View{m.View()}
			m.Attach(2, net, "10.254.0.2")
			views = append(views, m.View())
			hosts := []*plan.Host{plan.For(nil, views[0], facts)}
			facts.Found = found(hosts[0])
			hosts = append(hosts, plan.For(hosts[0], views[1], facts))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				was, view := hosts[i%2], views[1-i%2]
				is := plan.For(was, view, facts)
				is.CheckSince(was)
				for id, n := range is.Networks {
					add, remove := flow.Change(was.Networks[id], n, is)
					if len(add)+len(remove) != 2 {
						b.Fatalf("add %v remove %v", add, remove)
					}
				}
				hosts[1-i%2] = is
			}
		})
	}
}

// BenchmarkWhole is the same from nothing: what a start costs.
func BenchmarkWhole(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m, _, facts := large(b, n)
			v := m.View()
			b.ReportAllocs()
			for b.Loop() {
				h := plan.For(nil, v, facts)
				for _, n := range h.Networks {
					flow.Compile(n, h)
				}
			}
		})
	}
}
