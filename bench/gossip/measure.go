package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	port = 17946
	// formMax and writeMax end what does not end.
	formMax  = 3 * time.Minute
	writeMax = 90 * time.Second
	warmups  = 3
	// tail is how long after the last write its retransmissions are counted.
	tail = 2 * time.Second
)

// node is one member of a cluster of the system that is measured.
type node interface {
	// formed reports whether this node sees n nodes, itself included, and is ready.
	formed(n int) bool
	// write makes key visible on this node and sends it to the others.
	write(key string) error
	close()
}

// agreeing is a node that can say what it holds; a cluster has formed when all say the same.
type agreeing interface{ digest() string }

// preparing is a node that does something once after the cluster formed and before it is measured.
// prepared reports whether the cluster is done with it.
type preparing interface {
	prepare(first bool) error
	prepared() bool
}

// place is what a system is given to start one node.
type place struct {
	index int
	addr  string
	seed  string // address of the first node; empty for the first node
	// seen is to be called when a key is visible on this node.
	seen func(key string)
}

// job is one cluster to measure.
type job struct {
	System string
	Nodes  int
	Writes int           // 0: none
	Pause  time.Duration // longest between writes
	Settle time.Duration // after forming
	Idle   time.Duration // how long idle traffic is measured
}

// result is what was measured of a cluster. Times are in milliseconds; costs are of all nodes
// together, traffic without what idleness costs.
type result struct {
	Pass         int
	System       string
	Nodes        int
	Writes       int
	Lost         int // writes not seen everywhere within writeMax
	FormMS       float64
	FormCPUMS    float64 // of all nodes together
	AllP50       float64 // from write to seen everywhere
	AllP99       float64
	AllMax       float64
	BytesWrite   float64
	PacketsWrite float64
	CPUMSWrite   float64
	IdleBps      float64 // bytes a second and node
}

func measure(j job) (*result, error) {
	start, ok := systems[j.System]
	if !ok {
		return nil, fmt.Errorf("system %q is not known; there are %s", j.System, strings.Join(names(), ", "))
	}
	t := tracker{nodes: j.Nodes}
	nodes := make([]node, 0, j.Nodes)
	defer func() {
		var wg sync.WaitGroup
		for _, n := range nodes {
			wg.Go(n.close)
		}
		wg.Wait()
	}()
	began := time.Now()
	for i := range j.Nodes {
		p := place{index: i, addr: address(i), seen: func(key string) { t.see(i, key) }}
		if i > 0 {
			p.seed = address(0)
		}
		n, err := start(p)
		if err != nil {
			return nil, fmt.Errorf("start node %d: %w", i, err)
		}
		nodes = append(nodes, n)
	}
	if err := until("the cluster has formed", formMax, func() bool { return formed(nodes) }); err != nil {
		return nil, err
	}
	r := &result{System: j.System, Nodes: j.Nodes, Writes: j.Writes, FormMS: ms(time.Since(began)), FormCPUMS: ms(cpu())}
	if err := prepare(nodes); err != nil {
		return nil, err
	}
	fillHeap()
	time.Sleep(j.Settle)
	before := traffic()
	time.Sleep(j.Idle)
	idle := traffic().minus(before).times(1 / j.Idle.Seconds())
	r.IdleBps = idle.bytes / float64(j.Nodes)
	if j.Writes > 0 {
		writeAll(j, &t, nodes, idle, r)
	}
	return r, nil
}

// fillHeap makes the heap as large as it becomes until garbage is collected, in every system: a process
// that has run for a while has its memory, and a young one waits for the kernel to find each page: 18 us
// on a machine that was idle, several times a write.
func fillHeap() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	for was := m.NumGC; m.NumGC == was; runtime.ReadMemStats(&m) {
		filling = make([]byte, 64<<10)
		for i := 0; i < len(filling); i += 4 << 10 {
			filling[i] = 1
		}
	}
	filling = nil
}

var filling []byte // on the heap, as it is not a function's

// writeAll measures the writes.
func writeAll(j job, t *tracker, nodes []node, idle count, r *result) {
	for i := range warmups {
		t.write(nodes, fmt.Sprintf("warm-%d", i))
	}
	time.Sleep(time.Second)
	if path := os.Getenv("BENCH_PROFILE"); path != "" {
		if f, err := os.Create(path + "-" + j.System); err == nil && pprof.StartCPUProfile(f) == nil {
			defer pprof.StopCPUProfile()
		}
	}
	var all []time.Duration
	before, cpuBefore, from := traffic(), cpu(), time.Now()
	for i := range j.Writes {
		took, seen := t.write(nodes, fmt.Sprintf("key-%04d", i))
		if !seen {
			r.Lost++
		}
		all = append(all, took)
		time.Sleep(rand.N(j.Pause + 1))
	}
	time.Sleep(tail)
	used := traffic().minus(before).minus(idle.times(time.Since(from).Seconds()))
	w := float64(j.Writes)
	r.BytesWrite, r.PacketsWrite = used.bytes/w, used.packets/w
	r.CPUMSWrite = ms(cpu()-cpuBefore) / w
	slices.Sort(all)
	r.AllP50, r.AllP99, r.AllMax = quantile(all, 0.5), quantile(all, 0.99), quantile(all, 1)
}

func formed(nodes []node) bool {
	for _, n := range nodes {
		if !n.formed(len(nodes)) {
			return false
		}
		a, ok := n.(agreeing)
		if ok && a.digest() != nodes[0].(agreeing).digest() {
			return false
		}
	}
	return true
}

func prepare(nodes []node) error {
	for i, n := range nodes {
		if p, ok := n.(preparing); ok {
			if err := p.prepare(i == 0); err != nil {
				return fmt.Errorf("prepare node %d: %w", i, err)
			}
		}
	}
	return until("all nodes are prepared", formMax, func() bool {
		return !slices.ContainsFunc(nodes, func(n node) bool { p, ok := n.(preparing); return ok && !p.prepared() })
	})
}

func until(what string, limit time.Duration, ok func() bool) error {
	for began := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > limit {
			return fmt.Errorf("not within %s: %s", limit, what)
		}
	}
	return nil
}

func address(i int) string { return fmt.Sprintf("127.1.%d.%d", i/250, i%250+1) }

// tracker notes when the key that is under way was first seen on each node.
type tracker struct {
	nodes int

	mu    sync.Mutex
	key   string
	saw   map[int]bool
	last  time.Time
	whole chan struct{} // closed when all have it
}

func (t *tracker) see(node int, key string) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if key != t.key || t.saw[node] {
		return
	}
	t.saw[node], t.last = true, now
	if len(t.saw) == t.nodes {
		close(t.whole)
	}
}

// write writes a key on a random node and returns how long it took until all others saw it.
func (t *tracker) write(nodes []node, key string) (took time.Duration, seen bool) {
	origin := rand.IntN(len(nodes))
	t.mu.Lock()
	t.key, t.saw, t.whole = key, map[int]bool{origin: true}, make(chan struct{})
	whole := t.whole
	t.mu.Unlock()
	from := time.Now()
	if err := nodes[origin].write(key); err != nil {
		fmt.Fprintf(os.Stderr, "write on node %d: %v\n", origin, err)
		return writeMax, false
	}
	select {
	case <-whole:
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.last.Sub(from), true
	case <-time.After(writeMax):
		return writeMax, false
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// quantile is the nearest rank of sorted times, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	i := int(q*float64(len(sorted))+0.9999999) - 1
	return ms(sorted[max(0, min(i, len(sorted)-1))])
}

// count is traffic on the loopback device.
type count struct{ bytes, packets float64 }

func (c count) minus(d count) count   { return count{c.bytes - d.bytes, c.packets - d.packets} }
func (c count) times(f float64) count { return count{c.bytes * f, c.packets * f} }

// traffic reads the counters of what the loopback device sent: IP packets, headers included.
func traffic() count {
	f, err := os.Open("/proc/self/net/dev")
	if err != nil {
		panic("count traffic: " + err.Error())
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		if v := strings.Fields(rest); strings.TrimSpace(name) == "lo" && len(v) > 9 {
			b, err := strconv.ParseFloat(v[8], 64)
			p, err2 := strconv.ParseFloat(v[9], 64)
			if err == nil && err2 == nil {
				return count{b, p}
			}
		}
	}
	panic("count traffic: no loopback device")
}

// cpu is what this process used, of all nodes together.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic("count processor time: " + err.Error())
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
