package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"meshnet/fastpath"
	"meshnet/netns"
	"meshnet/ovs"
	"meshnet/plan"
	"meshnet/state"
)

// result is one row of one pass. Times are in milliseconds, memory in MB (10⁶ bytes).
type result struct {
	job
	Plan, Links, Fast, Switch float64 // from nothing
	Flows                     int
	Again                     float64 // the same plan once more by who knows nothing of it, as after a restart
	Change, ChangeMost        float64 // one container elsewhere more or less, median and most
	Heap                      float64 // of this process, which holds the mesh and its plan
	SwitchRSS                 float64 // ovs-vswitchd above what it has without a plan
	Kernel                    float64 // what cannot be reclaimed of the kernel's slabs, above what it was
}

func (r result) String() string {
	return fmt.Sprintf("%s: plan %.1f, links %.1f, fast path %.1f, switch %.1f, again %.1f, change %.2f (most %.1f) ms; %d flows; heap %.1f, ovs-vswitchd %.1f, kernel %.1f MB",
		r.job, r.Plan, r.Links, r.Fast, r.Switch, r.Again, r.Change, r.ChangeMost, r.Flows, r.Heap, r.SwitchRSS, r.Kernel)
}

// measureChild is the child: it measures the row on its standard input.
func measureChild(ctx context.Context) error {
	var j job
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return err
	}
	sandbox, err := settle()
	if err != nil {
		return err
	}
	m, err := newMesh(j.Endpoints, j.Peers)
	if err != nil {
		return err
	}
	h := &host{mesh: m, job: j, facts: facts(j.Transport, m, sandbox)}
	r, err := h.measure(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// settle makes the namespaces this process is in a host: its mounts, an underlay that leads nowhere, and a
// container.
func settle() (plan.Sandbox, error) {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return plan.Sandbox{}, fmt.Errorf("make mounts private: %w", err)
	}
	for _, fs := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := syscall.Mount(fs[0], fs[1], fs[0], 0, ""); err != nil {
			return plan.Sandbox{}, fmt.Errorf("mount %s: %w", fs[1], err)
		}
	}
	for _, args := range []string{
		"link set lo up", "link add eth0 type veth peer name nowhere", "addr add " + underlay(0).String() + "/15 dev eth0",
		"link set eth0 up", "link set nowhere up", "netns add c",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return plan.Sandbox{}, fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	const path = "/run/netns/c"
	var s syscall.Stat_t
	err := syscall.Stat(path, &s)
	return plan.Sandbox{Path: path, Inode: s.Ino}, err
}

func facts(t state.Transport, m *mesh, sandbox plan.Sandbox) plan.Facts {
	device := t == state.KernelVXLAN
	return plan.Facts{
		Self:   nodeID(0),
		Choice: plan.Choice{Datapath: "netdev", Transport: t, Private: true, TSO: device, FastPath: device},
		Underlay: plan.Underlay{
			Device: "eth0", Index: 2, Addr: underlay(0), Prefix: netip.PrefixFrom(underlay(0), 15), MTU: 1500,
		},
		Sandboxes: map[state.EndpointID]plan.Sandbox{m.local.ID: sandbox},
	}
}

// host is what carries out plans, as the daemon has it.
type host struct {
	*mesh
	job
	facts plan.Facts
	links *netns.Links
	fast  *fastpath.Path
	sw    *ovs.Switch
	plan  *plan.Host
	stop  func()
}

const runDir = "/run/meshnet"

// start makes appliers that know nothing, and waits for Open vSwitch.
func (h *host) start(ctx context.Context) (err error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if h.links, err = netns.New(netns.Config{RunDir: runDir, Log: log}); err != nil {
		return err
	}
	h.fast = fastpath.New(log)
	if h.sw, err = ovs.New(ovs.Config{Choice: h.facts.Choice, RunDir: runDir, Bridge: "meshnet", Log: log}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	runs := []func(context.Context) error{h.links.Run, h.fast.Run, h.sw.Run}
	ended := make(chan error, len(runs))
	for _, run := range runs {
		go func() { ended <- run(ctx) }()
	}
	h.stop = func() {
		cancel()
		for range runs {
			<-ended
		}
	}
	for {
		found, err := h.sw.Found(ctx)
		if err == nil {
			h.facts.Found = found
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// took is how long the steps of one apply took.
type took struct{ plan, links, fast, sw time.Duration }

func (t took) all() time.Duration { return t.plan + t.links + t.fast + t.sw }

// apply does what the daemon does about a view, in its order, and returns how many steps it took.
func (h *host) apply(ctx context.Context, view *state.View) (t took, steps int, err error) {
	began := time.Now()
	last := h.plan
	h.plan = plan.For(last, view, h.facts)
	h.plan.CheckSince(last)
	planned := time.Now()
	linkSteps, links, err := h.links.Apply(ctx, h.plan)
	if err != nil {
		return t, 0, fmt.Errorf("links: %w", err)
	}
	linked := time.Now()
	fastSteps, _, err := h.fast.Apply(ctx, h.plan)
	if err != nil {
		return t, 0, fmt.Errorf("fast path: %w", err)
	}
	fast := time.Now()
	switchSteps, found, err := h.sw.Apply(ctx, h.plan)
	if err != nil {
		return t, 0, fmt.Errorf("switch: %w", err)
	}
	found.IfNames = links.IfNames
	h.facts.Found = found
	steps = len(linkSteps) + len(fastSteps) + len(switchSteps)
	return took{planned.Sub(began), linked.Sub(planned), fast.Sub(linked), time.Since(fast)}, steps, nil
}

func (h *host) measure(ctx context.Context) (result, error) {
	r := result{job: h.job}
	if err := h.start(ctx); err != nil {
		return r, err
	}
	slabs, rss, err := memory()
	if err != nil {
		return r, err
	}
	t, _, err := h.apply(ctx, h.own.View())
	if err != nil {
		return r, err
	}
	r.Plan, r.Links, r.Fast, r.Switch = ms(t.plan), ms(t.links), ms(t.fast), ms(t.sw)
	if err := h.changes(ctx, &r); err != nil {
		return r, err
	}
	h.stop()
	if err := h.start(ctx); err != nil {
		return r, err
	}
	defer func() { h.stop() }()
	t, steps, err := h.apply(ctx, h.own.View())
	if err != nil {
		return r, err
	}
	if steps != 0 {
		return r, fmt.Errorf("the same plan again took %d steps", steps)
	}
	r.Again = ms(t.links + t.fast + t.sw)
	if r.Flows, err = flows(); err != nil {
		return r, err
	}
	slabsNow, rssNow, err := memory()
	if err != nil {
		return r, err
	}
	r.Kernel, r.SwitchRSS = (slabsNow-slabs)/1e6, (rssNow-rss)/1e6
	h.peer = nil
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r.Heap = float64(mem.HeapAlloc) / 1e6
	runtime.KeepAlive(h)
	return r, nil
}

// changes has the first peer add a container and remove it again and again, and measures from the merge
// until the host is as agreed.
func (h *host) changes(ctx context.Context, r *result) error {
	var times []time.Duration
	e := h.endpoint(2_000_000, netip.MustParseAddr("10.254.0.2"))
	for i := range h.Changes {
		change := state.Change(state.PutEndpoint{Endpoint: e})
		if i%2 == 1 {
			change = state.RemoveEndpoint{ID: e.ID}
		}
		out, err := h.peer.Apply(change)
		if err != nil {
			return err
		}
		began := time.Now()
		h.own.Merge(out)
		view := h.own.View()
		merged := time.Since(began)
		t, steps, err := h.apply(ctx, view)
		if err != nil {
			return fmt.Errorf("change %d: %w", i+1, err)
		}
		if steps == 0 {
			return fmt.Errorf("change %d changed nothing on the host", i+1)
		}
		times = append(times, merged+t.all())
	}
	if len(times) > 0 {
		slices.Sort(times)
		r.Change, r.ChangeMost = ms(times[len(times)/2]), ms(times[len(times)-1])
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// memory returns the kernel's slabs that cannot be reclaimed, and what ovs-vswitchd holds, in bytes.
func memory() (slabs, rss float64, err error) {
	pid, err := os.ReadFile(filepath.Join(runDir, "ovs/ovs-vswitchd.pid"))
	if err != nil {
		return 0, 0, err
	}
	if slabs, err = kilobytes("/proc/meminfo", "SUnreclaim:"); err != nil {
		return 0, 0, err
	}
	rss, err = kilobytes("/proc/"+strings.TrimSpace(string(pid))+"/status", "VmRSS:")
	return slabs, rss, err
}

// kilobytes reads a line of kB of a file of the kernel's, in bytes.
func kilobytes(path, key string) (float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			n, err := strconv.ParseFloat(f[1], 64)
			return n * 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, key)
}

// flows counts what the switch holds, by ovs-ofctl: the second opinion.
func flows() (int, error) {
	out, err := exec.Command("ovs-ofctl", "-O", "OpenFlow14", "dump-aggregate", "unix:"+filepath.Join(runDir, "ovs/meshnet.mgmt")).Output()
	if err != nil {
		return 0, fmt.Errorf("ovs-ofctl dump-aggregate: %w", err)
	}
	_, n, _ := strings.Cut(strings.TrimSpace(string(out)), "flow_count=")
	return strconv.Atoi(n)
}
