package state

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"meshnet/crdt"
)

// fleet is what the nodes of a large mesh say of themselves: each its record, a block and its
// containers on one network.
func fleet(t testing.TB, nodes, containers int) []Out {
	t.Helper()
	var all []Out
	var net NetworkID
	for i := range nodes {
		id := NodeID(uint64(i+1) * 0x9e3779b97f4a7c15)
		d := NewDoc(id, 1, crdt.Actor(i+1))
		if i == 0 {
			all = append(all, must(t, d, CreateNetwork{Def: Definition{Name: "web", Subnet: prefix("10.0.0.0/8")}}))
			net = d.View().Networks()[0].ID
		} else {
			d.Merge(all[0])
		}
		cs := []Change{
			PutNode{Node{
				Name: fmt.Sprintf("host%d", i), Addr: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}),
				GossipPort: 17946, TunnelPort: 14789, Transport: KernelVXLAN, MTU: 1500, Version: "0.1.0",
			}},
			PutBlock{Block{
				Network: net, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
				Root: Root{1, 1700000000}, Ver: 2, Lineage: []NodeID{1},
			}},
		}
		for k := range containers {
			cs = append(cs, PutEndpoint{Endpoint: Endpoint{
				ID: EndpointID(uint64(i*containers+k+1) * 0xd1342543de82ef95), Network: net, Container: fmt.Sprintf("service-%d-%d", i, k),
				Addr: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(k + 2)}), IfName: "eth1", Alloc: uint64(k + 1), At: 1700000000,
			}})
		}
		all = append(all, must(t, d, cs...))
	}
	return all
}

// BenchmarkReplica is the memory of one replica of 1,000 nodes with 50 containers each, with its view.
// The budget is 200 MB.
func BenchmarkReplica(b *testing.B) {
	said := fleet(b, 1000, 50)
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	var wire [][]byte
	size := 0
	for _, out := range said {
		for _, m := range Encode(out, 1340) {
			wire = append(wire, m)
			size += len(m)
		}
	}
	said = nil
	var grown float64
	for b.Loop() {
		before := heap()
		d := NewDoc(7, 1, 7)
		for _, m := range wire {
			in, err := Decode(m)
			if err != nil {
				b.Fatal(err)
			}
			d.Merge(in)
		}
		n := d.View().Networks()[0].Len()
		grown = heap() - before
		if n != 50_000 {
			b.Fatalf("%d endpoints", n)
		}
		runtime.KeepAlive(d)
	}
	b.ReportMetric(grown/1e6, "MB/replica")
	b.ReportMetric(float64(size)/1e6, "MB/wire")
}
