package fastpath

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"meshnet/fastpath/bpf"
	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"
)

// BenchmarkTenThousand is a host with 1,000 of 10,000 endpoints of one network: the first Apply, one that
// has nothing to do, one change here and one elsewhere, a look for drift, and memory. Run it once
// (-benchtime 1x): the devices alone take a while.
func BenchmarkTenThousand(b *testing.B) {
	apart(b)
	m := plantest.NewMesh(b, 10)
	web := m.Create("web", "10.2.0.0/16")
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 2, byte(1 + i/250), byte(1 + i%250)}) }
	endpoint := func(i int) state.Endpoint {
		return state.Endpoint{
			ID: state.EndpointID(i + 1), Network: web, Container: fmt.Sprint("c", i), Addr: addr(i), MAC: state.MACOf(addr(i)), Alloc: 1, At: 1,
		}
	}
	var own []state.EndpointID
	for n := range 10 {
		var changes []state.Change
		for i := range 1000 {
			e := endpoint(1000*n + i)
			changes = append(changes, state.PutEndpoint{Endpoint: e})
			if n == 0 {
				own = append(own, e.ID)
			}
		}
		m.Apply(n+1, changes...)
	}
	f := plantest.Facts(state.KernelVXLAN, own...)
	f.Choice.FastPath = true
	h := plan.For(nil, m.View(), f)
	host(b, h)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := New(nil)
	timed := func(what string, h *plan.Host) {
		began := time.Now()
		if _, _, err := p.Apply(b.Context(), h); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(began).Microseconds())/1000, what+"-ms")
	}
	b.ResetTimer()
	timed("first", h)
	timed("nothing", h)
	m.Apply(2, state.RemoveEndpoint{ID: 1001})
	next := plan.For(h, m.View(), f)
	timed("elsewhere", next)
	m.Apply(1, state.RemoveEndpoint{ID: 1})
	delete(f.Sandboxes, 1)
	p.running = true // as while Run removes twins
	timed("here", plan.For(next, m.View(), f))
	began := time.Now()
	if same, err := p.intact(); err != nil || !same {
		b.Fatal(same, err)
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "look-ms")
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(m)
	runtime.KeepAlive(h)
	b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/1e6, "heap-MB")
	b.ReportMetric(float64(memory(b, p))/1e6, "maps-MB")
	b.ReportMetric(0, "ns/op")
}

// memory returns what the kernel says the maps take, bytes.
func memory(b *testing.B, p *Path) (sum uint64) {
	for _, m := range []*ebpf.Map{p.program.ports, p.program.members, p.program.exits, p.program.entries, p.program.counted} {
		info, err := m.Info()
		if err != nil {
			b.Fatal(err)
		}
		n, ok := info.Memlock()
		if !ok {
			b.Skip("the kernel does not say what a map takes")
		}
		sum += n
	}
	return sum
}

// BenchmarkProgram is what the program takes for a frame from a container to a member elsewhere, as it is
// and without its counters (clang): the least of many short runs in turns, so that others on the machine
// do not count.
func BenchmarkProgram(b *testing.B) {
	apart(b)
	indexes := someDevices(b, 100)
	m, _, f := two(b, true)
	h := plan.For(nil, m.View(), f)
	link := inOrder(h)[0].Ports[0].Link
	source, err := os.ReadFile("bpf/fast.c")
	if err != nil {
		b.Fatal(err)
	}
	var machines []*machine
	for _, text := range []string{string(source), strings.Replace(string(source), "	note(in, v.why, len);\n", "", 1)} {
		p, err := loadSpec(compiled(b, text), true, 0)
		if err != nil {
			b.Fatal(err)
		}
		m := machineOf(b, p)
		m.show(b, h, indexes)
		if err := p.counted.Put(m.index[link], make([]bpf.FastCount, ebpf.MustPossibleCPU())); err != nil {
			b.Fatal(err)
		}
		machines = append(machines, m)
	}
	const repeat = 2000
	least := [2]time.Duration{time.Hour, time.Hour}
	for range max(b.N, 100) {
		for i, m := range machines {
			o := ebpf.RunOptions{Data: ping("10.2.0.5", "10.2.0.7"), Context: &skb{Ifindex: m.index[link]}, Repeat: repeat}
			began := time.Now()
			if _, err := m.prog.Run(&o); err != nil {
				b.Fatal(err)
			}
			least[i] = min(least[i], time.Since(began)/repeat)
		}
	}
	b.ReportMetric(float64(least[0].Nanoseconds()), "counted-ns")
	b.ReportMetric(float64(least[1].Nanoseconds()), "uncounted-ns")
	b.ReportMetric(0, "ns/op")
}
