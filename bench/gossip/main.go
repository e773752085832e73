package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	child := flag.Bool("child", false, "measure one cluster: for the command's own use")
	systemsFlag := flag.String("systems", strings.Join(names(), ","), "which systems")
	nodesFlag := flag.String("nodes", "5,25,50", "nodes of a cluster")
	passes := flag.Int("passes", 1, "how often all is measured")
	writes := flag.Int("writes", 100, "writes measured in a pass")
	pause := flag.Duration("pause", 200*time.Millisecond, "longest pause between writes, each is random")
	idle := flag.Duration("idle", 20*time.Second, "how long idle traffic is measured; 0: not")
	settle := flag.Duration("settle", 3*time.Second, "pause after forming")
	doc := flag.String("doc", "", "also write the tables into this file, between its marks")
	flag.Parse()
	if *child {
		if err := measureChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	j := job{Writes: *writes, Pause: *pause, Settle: *settle, Idle: 3 * time.Second}
	if err := run(j, strings.Split(*systemsFlag, ","), *nodesFlag, *passes, *idle, *doc); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run measures everything and prints it.
func run(j job, systems []string, nodes string, passes int, idle time.Duration, doc string) error {
	var sizes []int
	for _, s := range strings.Split(nodes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 2 {
			return fmt.Errorf("nodes of a cluster %q: want numbers from 2 on", s)
		}
		sizes = append(sizes, n)
	}
	rs := results{}
	for pass := range passes {
		for _, n := range sizes {
			for _, s := range systems {
				j := j
				j.System, j.Nodes, j.Writes = s, n, fewer(s, j.Writes)
				r, err := spawn(j)
				if err != nil {
					fmt.Fprintf(os.Stderr, "pass %d: %s, %d nodes: %v\n", pass+1, s, n, err)
					continue
				}
				r.Pass = pass
				rs = append(rs, *r)
				fmt.Fprintf(os.Stderr, "pass %d: %s, %d nodes: formed in %.0f ms, all p50 %.1f p99 %.1f max %.1f ms, %.1f ms CPU, %.1f kB, %.0f packets\n",
					pass+1, s, n, r.FormMS, r.AllP50, r.AllP99, r.AllMax, r.CPUMSWrite, r.BytesWrite/1000, r.PacketsWrite)
			}
		}
	}
	if idle > 0 {
		rs = append(rs, idleOf(j, systems, sizes, idle)...)
	}
	var out bytes.Buffer
	rs.print(&out, systems, sizes)
	fmt.Print(out.String())
	if doc == "" {
		return nil
	}
	return replaceTables(doc, out.String())
}

const (
	marksBegin = "<!-- bench-gossip: written by make bench-gossip-doc -->\n"
	marksEnd   = "<!-- bench-gossip ends -->\n"
)

// replaceTables writes what was printed into a document.
func replaceTables(path, tables string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write tables: %w", err)
	}
	before, rest, ok := strings.Cut(string(b), marksBegin)
	_, after, ok2 := strings.Cut(rest, marksEnd)
	if !ok || !ok2 {
		return fmt.Errorf("write tables: %s has no marks %q and %q", path, marksBegin, marksEnd)
	}
	if err := os.WriteFile(path, []byte(before+marksBegin+tables+marksEnd+after), 0o644); err != nil {
		return fmt.Errorf("write tables: %w", err)
	}
	return nil
}

// idleOf measures what idle clusters send, those of one system at the same time: each counts its own
// namespace, and they hardly need the processor. With those of all others beside them failure detectors
// suspect now and then, and say so to all.
func idleOf(j job, systems []string, sizes []int, long time.Duration) results {
	var mu sync.Mutex
	var rs results
	for _, s := range systems {
		var wg sync.WaitGroup
		for _, n := range sizes {
			j := j
			j.System, j.Nodes, j.Writes, j.Idle, j.Settle = s, n, 0, long, 30*time.Second
			wg.Go(func() {
				r, err := spawn(j)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					fmt.Fprintf(os.Stderr, "idle: %s, %d nodes: %v\n", s, n, err)
					return
				}
				rs = append(rs, *r)
			})
		}
		wg.Wait()
	}
	return rs
}

// spawn measures one cluster in a process and a network namespace of its own.
func spawn(j job) (*result, error) {
	spec, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode job: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", "-child")
	cmd.Stdin = strings.NewReader(string(spec))
	cmd.Stderr = os.Stderr
	// The child dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if uid := os.Geteuid(); uid != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	r := new(result)
	return r, json.Unmarshal(out, r)
}

// gcPercent is how much of the heap is garbage before it is collected, in every system. A process that
// plays all nodes would collect as often as all of them together, and stop all of them each time; in a
// mesh each node collects by itself.
const gcPercent = 400

func measureChild() error {
	var j job
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	parent, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getppid()))
	if err := errors.Join(err, err2); err != nil || own == parent {
		return fmt.Errorf("not in a network namespace of its own: %v", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	debug.SetGCPercent(gcPercent)
	r, err := measure(j)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
