// Package sim plays the whole core, documents, gossip and addresses of several hosts, under one seeded
// loop of events with virtual time: letters late, lost, doubled and out of order, cuts two-way, one-way
// and flapping, crashes with a torn log, disks lost and rolled back, clocks an hour off, member lists
// that lie, hosts of a later version, operators right and wrong. It checks at every step that no
// address is there twice, and after all faults are over that all documents and views are equal, equal
// to a naive reference of what was said, and that every host gets an address while one is free.
//
// A schedule follows from its seed and the number of hosts. One that fails is made smaller and printed
// with what plays it again.
package sim

import (
	"flag"
	"fmt"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "play this seed only")
	runsFlag  = flag.Uint64("runs", 0, "play this many seeds; 0: for as long as -for says")
	forFlag   = flag.Duration("for", 2*time.Second, "for how long to play seeds")
	nodesFlag = flag.Int("nodes", 5, "how many hosts")
	onlyFlag  = flag.String("only", "", "leave all acts out but these, as a failure prints them")
	linesFlag = flag.Int("lines", 120, "how many lines of a failure's trace to print")
	allFlag   = flag.Bool("all", false, "go on after a failure and list them by kind")
	// A daemon that starts on the same run of the kernel goes on in the epoch of its log, and what it
	// writes before it has met anybody is taken for what it wrote in that epoch before the log was put
	// back: see seed 23611.
	resumedFlag = flag.Bool("resumed", false, "also put logs back without a reboot, which mesh does not see in time")
	smallFlag   = flag.Duration("shrink", time.Minute, "for how long to make a failing schedule smaller")
	fromFlag    = flag.Uint64("from", 1, "the first seed")
)

func TestSimulation(t *testing.T) {
	if *seedFlag != 0 {
		c := newChaos(*seedFlag, *nodesFlag)
		keepOnly(&c, *onlyFlag)
		w, fail := run(c, true)
		t.Logf("seed %d: %s", *seedFlag, &c)
		if fail != nil {
			report(t, c, fail)
			return
		}
		t.Logf("passed: %d events, %d letters, %d changes; excused by: %q", w.events, w.letters, w.changes, w.excuse)
		return
	}
	// Little lives and much dies: the collector is to come rarely.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(max(heapMin, int64(*nodesFlag)*heapNode)))
	began, cpu := time.Now(), cpuTime()
	var next, done, events, failed atomic.Uint64
	next.Store(*fromFlag - 1)
	var worst atomic.Uint64
	kinds := kinds{seeds: map[string][]uint64{}}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for failed.Load() == 0 {
				seed := next.Add(1)
				if *runsFlag > 0 && seed >= *fromFlag+*runsFlag || *runsFlag == 0 && time.Since(began) > *forFlag {
					return
				}
				w, fail := run(newChaos(seed, *nodesFlag), false)
				done.Add(1)
				if fail != nil && *allFlag {
					kinds.note(seed, fail)
				} else if fail != nil {
					if failed.Add(1) == 1 {
						worst.Store(seed)
					}
					return
				}
				events.Add(w.events)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	t.Logf("%d schedules of %d hosts in %v: %.0f a minute, %.0f a minute of one core, %.0f events each", done.Load(), *nodesFlag,
		took.Round(10*time.Millisecond), float64(done.Load())/took.Minutes(), float64(done.Load())/(cpuTime()-cpu).Minutes(),
		float64(events.Load())/float64(max(1, done.Load())))
	kinds.report(t)
	if seed := worst.Load(); seed != 0 {
		c := newChaos(seed, *nodesFlag)
		_, fail := run(c, false)
		if fail == nil {
			t.Fatalf("seed %d failed and passes when it is played again: something depends on more than the seed", seed)
		}
		c, fail = shrink(c, fail)
		report(t, c, fail)
	}
}

// keepOnly leaves out all acts but those listed.
func keepOnly(c *chaos, list string) {
	if list == "" {
		return
	}
	var kept []int
	for _, s := range strings.Split(list, ",") {
		if n, err := strconv.Atoi(s); err == nil {
			kept = append(kept, n)
		}
		c.option(s)
	}
	for i := range c.acts {
		c.acts[i].skip = !slices.Contains(kept, i)
	}
}

// option applies one simplification by its name.
func (c *chaos) option(name string) {
	switch name {
	case "lossless":
		c.loss = 0
	case "single":
		c.double = 0
	case "quick":
		c.delay = 300 * time.Microsecond
	case "noslow":
		c.slow = -1
	case "nolate":
		clear(c.late)
	case "clocks":
		clear(c.skew)
		clear(c.drift)
	default:
		return
	}
	c.plain = append(c.plain, name)
}

var plain = []string{"lossless", "single", "quick", "noslow", "nolate", "clocks"}

// shrink leaves out what a schedule fails without: first acts, in ever smaller parts, then what is
// wrong with the network, the clocks and the hosts.
func shrink(c chaos, fail *failure) (chaos, *failure) {
	began := time.Now()
	try := func(d chaos) bool {
		if time.Since(began) > *smallFlag {
			return false
		}
		_, f := run(d, false)
		if f == nil {
			return false
		}
		c, fail = d, f
		return true
	}
	for again := true; again; {
		again = false
		for size := len(c.acts); size > 0; size /= 2 {
			for at := 0; at < len(c.acts); at += size {
				d := c
				d.acts = slices.Clone(c.acts)
				left := false
				for i := at; i < min(at+size, len(d.acts)); i++ {
					left = left || !d.acts[i].skip
					d.acts[i].skip = true
				}
				if left && try(d) {
					again = true
				}
			}
		}
		for _, name := range plain {
			if slices.Contains(c.plain, name) {
				continue
			}
			d := c
			d.plain = slices.Clone(c.plain)
			d.late, d.skew, d.drift = slices.Clone(c.late), slices.Clone(c.skew), slices.Clone(c.drift)
			d.option(name)
			if try(d) {
				again = true
			}
		}
	}
	return c, fail
}

// report prints a failure with what plays it again.
func report(t *testing.T, c chaos, fail *failure) {
	t.Helper()
	_, traced := run(c, true)
	if traced == nil {
		t.Fatalf("seed %d passes when it is traced: %v", c.seed, fail)
	}
	for _, l := range traced.trace[max(0, len(traced.trace)-*linesFlag):] {
		t.Log(l)
	}
	if traced.stack != "" {
		t.Log(traced.stack)
	}
	t.Log(c.String())
	var kept []string
	for i, a := range c.acts {
		if !a.skip {
			kept = append(kept, fmt.Sprint(i))
		}
	}
	kept = append(kept, c.plain...)
	t.Fatalf("seed %d, %s\nagain: make sim SEED=%d NODES=%d ONLY=%s", c.seed, traced.Error(), c.seed, c.nodes, strings.Join(kept, ","))
}

// kinds collects failures that say the same but for names and numbers.
type kinds struct {
	sync.Mutex
	seeds map[string][]uint64
}

var varies = regexp.MustCompile(`[0-9a-f]{16}|[0-9./]+|\b[a-z]\b('\S*)?`)

func (k *kinds) note(seed uint64, fail *failure) {
	k.Lock()
	defer k.Unlock()
	line, _, _ := strings.Cut(fail.what, "\n")
	line = varies.ReplaceAllString(line, "_")
	k.seeds[line] = append(k.seeds[line], seed)
}

func (k *kinds) report(t *testing.T) {
	for line, seeds := range k.seeds {
		slices.Sort(seeds)
		t.Errorf("%d times: %s: %v", len(seeds), line, seeds[:min(len(seeds), 12)])
	}
}

// The collector runs from so many bytes on: heapNode for each host, and heapMin, what the processor's cache
// holds more or less, in any case.
const heapMin, heapNode = 64 << 20, 8 << 20

// cpuTime is what this process has used of all cores.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
