package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"meshnet/agent"
	"meshnet/docker"
	"meshnet/state"
)

// dockerd is a model of Docker: containers by name, with their first process; zero: stopped.
type dockerd struct {
	pids    map[string]int
	hostNet string
	fail    error
	shared  map[string]string // id of the container whose network one uses
	alive   map[string]int    // found without Docker
	podman  bool              // it is Podman
}

func (d dockerd) Name() string {
	if d.podman {
		return "Podman"
	}
	return "Docker"
}

func (d dockerd) Source(id string) state.Source {
	s := state.Source{Kind: state.SourceDocker, Docker: id}
	if d.podman {
		s.Path = docker.Podman
	}
	return s
}

func (d dockerd) Find(ctx context.Context, ref string) (docker.Container, bool, error) {
	if d.fail != nil {
		return docker.Container{}, false, d.fail
	}
	if _, ok := d.pids[ref]; ok {
		c, err := d.Inspect(ctx, "id-of-"+ref)
		return c, true, err
	}
	return docker.Container{}, false, nil
}

func (d dockerd) Inspect(_ context.Context, id string) (docker.Container, error) {
	name := strings.TrimPrefix(id, "id-of-")
	pid, ok := d.pids[name]
	if d.fail != nil {
		return docker.Container{}, d.fail
	}
	if !ok {
		return docker.Container{}, state.Refuse(state.ErrNoContainer, "container %s was removed", name)
	}
	return docker.Container{ID: id, Name: name, PID: pid, HostNet: name == d.hostNet, SharedWith: d.shared[name]}, nil
}

func (d dockerd) Process(id string) (int, bool) {
	pid := d.alive[strings.TrimPrefix(id, "id-of-")]
	return pid, pid > 0
}

func (d dockerd) List(context.Context) ([]agent.Container, error)    { return nil, d.fail }
func (d dockerd) Watch(ctx context.Context, _ func(agent.Happening)) { <-ctx.Done() }
func (d dockerd) Reachable(context.Context) error                    { return d.fail }

// process starts a program in a network namespace of its own, which ends with the test.
func process(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestContainers(t *testing.T) {
	ctx := context.Background()
	pid := process(t)
	d := dockerd{
		pids:    map[string]int{"web": pid, "stopped": 0, "bare": os.Getpid(), "host": 1, "side": pid, "beside": 7, "guest": 1, "loop": 1},
		hostNet: "host",
		shared:  map[string]string{"side": "id-of-web", "beside": "id-of-side", "guest": "id-of-host", "orphan": "id-of-removed", "loop": "id-of-loop"},
	}
	c := &containers{docker: d}
	s, name, err := c.Resolve(ctx, "web")
	if err != nil || name != "web" || s != (state.Source{Kind: state.SourceDocker, Docker: "id-of-web"}) {
		t.Errorf("resolve web: %+v %s %v", s, name, err)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	box, err := c.Open(ctx, s)
	if err != nil || box.Inode != info.Sys().(*syscall.Stat_t).Ino || box.Path != fmt.Sprintf("/proc/%d/ns/net", pid) {
		t.Errorf("open web: %+v %v", box, err)
	}
	for _, test := range []struct {
		name string
		is   error
	}{{"host", agent.ErrRefused}, {"guest", agent.ErrRefused}, {"nobody-of-that-name", state.ErrNoContainer}} {
		if _, _, err := c.Resolve(ctx, test.name); !errors.Is(err, test.is) {
			t.Errorf("resolve %s: %v", test.name, err)
		}
	}
	for _, shares := range []string{"side", "beside"} {
		if s, name, err := c.Resolve(ctx, shares); err != nil || name != "web" || s.Docker != "id-of-web" {
			t.Errorf("resolve %s: %+v %s %v", shares, s, name, err)
		}
	}
	if s, _, err = c.Resolve(ctx, "stopped"); err != nil {
		t.Errorf("resolve a stopped container: %v", err)
	}
	if _, err := c.Open(ctx, state.Source{Kind: state.SourceDocker, Docker: "id-of-removed"}); !errors.Is(err, agent.ErrRemoved) {
		t.Errorf("open a container that was removed: %v", err)
	}
	if _, err := c.Open(ctx, s); errors.Is(err, agent.ErrRemoved) {
		t.Errorf("open a stopped container: %v", err)
	}
	for _, s := range []state.Source{s, {Kind: state.SourceDocker, Docker: "id-of-removed"}, {Kind: state.SourcePath, Path: "/nowhere", Inode: 7}} {
		if _, err := c.Open(ctx, s); !errors.Is(err, agent.ErrGone) {
			t.Errorf("open %+v: %v", s, err)
		}
	}
	if _, err := c.Open(ctx, state.Source{Kind: state.SourceDocker, Docker: "id-of-bare"}); err == nil || errors.Is(err, agent.ErrGone) {
		t.Errorf("open the host's own network: %v", err)
	}
}

// TestContainersFaults: what Docker cannot say must not look like a container that is gone.
func TestContainersFaults(t *testing.T) {
	ctx := context.Background()
	hung := errors.New("no answer within 5s")
	for _, test := range []struct {
		fail, resolve error
	}{
		{docker.ErrNoDocker, state.ErrNoContainer}, {hung, hung}, {state.Refuse(state.ErrInvalid, "ambiguous"), state.ErrInvalid},
	} {
		c := &containers{docker: dockerd{pids: map[string]int{"web": 1}, fail: test.fail}}
		if _, _, err := c.Resolve(ctx, "nobody-of-that-name"); !errors.Is(err, test.resolve) {
			t.Errorf("resolve while %v: %v", test.fail, err)
		}
		if _, err := c.Open(ctx, state.Source{Kind: state.SourceDocker, Docker: "id-of-web"}); err == nil || errors.Is(err, agent.ErrGone) {
			t.Errorf("open while %v: %v", test.fail, err)
		}
	}
	pid := process(t)
	c := &containers{docker: dockerd{fail: docker.ErrNoDocker, alive: map[string]int{"web": pid}}}
	if box, err := c.Open(ctx, state.Source{Kind: state.SourceDocker, Docker: "id-of-web"}); err != nil || box.Path != fmt.Sprintf("/proc/%d/ns/net", pid) {
		t.Errorf("open a container that runs without Docker: %+v %v", box, err)
	}
	if all, err := c.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("list without Docker: %v %v", all, err)
	}
	if w := c.Warnings(); len(w) != 1 || strings.Contains(w[0], "\n") {
		t.Errorf("warnings without Docker: %q", w)
	}
}

// TestPodman: what Docker does not know is asked of Podman, and found there again; that one of the two does
// not know a container, or does not run, says nothing of the other's.
func TestPodman(t *testing.T) {
	ctx := context.Background()
	one, two := process(t), process(t)
	d := dockerd{pids: map[string]int{"web": one, "both": one}}
	p := dockerd{pids: map[string]int{"pod": two, "both": two, "inpod": 1}, shared: map[string]string{"inpod": "id-of-pod"}, podman: true}
	c := &containers{d, p}
	for _, test := range []struct {
		name, whole, path string
		pid               int
	}{{"web", "web", "", one}, {"pod", "pod", docker.Podman, two}, {"inpod", "pod", docker.Podman, two}, {"both", "both", "", one}} {
		s, name, err := c.Resolve(ctx, test.name)
		if err != nil || name != test.whole || s != (state.Source{Kind: state.SourceDocker, Docker: "id-of-" + test.whole, Path: test.path}) {
			t.Errorf("resolve %s: %+v %s %v", test.name, s, name, err)
		}
		if box, err := c.Open(ctx, s); err != nil || box.Path != fmt.Sprintf("/proc/%d/ns/net", test.pid) {
			t.Errorf("open %s: %+v %v", test.name, box, err)
		}
	}
	pod := p.Source("id-of-pod")
	p.fail = docker.ErrNoDocker
	c = &containers{d, p}
	if _, err := c.Open(ctx, pod); err == nil || errors.Is(err, agent.ErrRemoved) || errors.Is(err, agent.ErrGone) {
		t.Errorf("open while Podman's service does not run: %v", err)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("warnings while Docker runs: %q", w)
	}
	d.fail, p.fail = docker.ErrNoDocker, nil
	c = &containers{d, p}
	if _, err := c.Open(ctx, p.Source("id-of-removed")); !errors.Is(err, agent.ErrRemoved) {
		t.Errorf("open what Podman removed: %v", err)
	}
	if _, _, err := c.Resolve(ctx, "nobody"); !errors.Is(err, state.ErrNoContainer) || !strings.Contains(err.Error(), "podman ps and ip netns list show") {
		t.Errorf("resolve with Podman alone: %v", err)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("warnings with Podman alone: %q", w)
	}
	d.fail, p.fail = nil, errors.New("no answer within 5s")
	if all, err := (&containers{d, p}).List(ctx); err == nil {
		t.Errorf("list while Podman does not answer: %v", all)
	}
}

// TestOnDemand: Podman's service, which a question starts, is asked of no more than names that nobody else
// knows, until one of its containers is attached.
func TestOnDemand(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := &counted{dockerd: dockerd{pids: map[string]int{"pod": 1}, podman: true}, watched: make(chan bool, 1)}
	c := &containers{dockerd{pids: map[string]int{"web": 1}}, newOnDemand(p)}
	ended := make(chan bool)
	go func() {
		c.Watch(ctx, func(agent.Happening) {})
		close(ended)
	}()
	c.Resolve(ctx, "web")
	c.List(ctx)
	c.Warnings()
	if p.asked != 0 {
		t.Errorf("asked %d times before it was of use", p.asked)
	}
	if _, _, err := c.Resolve(ctx, "nobody"); p.asked != 1 || !errors.Is(err, state.ErrNoContainer) {
		t.Errorf("asked %d times for a name that nobody knows: %v", p.asked, err)
	}
	if c.List(ctx); p.asked != 1 {
		t.Error("asked for a list before it was of use")
	}
	if _, name, err := c.Resolve(ctx, "pod"); err != nil || name != "pod" {
		t.Errorf("resolve: %s %v", name, err)
	}
	<-p.watched
	was := p.asked
	c.List(ctx)
	c.Warnings()
	if p.asked != was+2 {
		t.Errorf("asked %d times, want %d", p.asked, was+2)
	}
	cancel()
	<-ended
	// What is kept from before the daemon's start counts too.
	p = &counted{dockerd: dockerd{pids: map[string]int{"pod": 0}, podman: true}}
	c = &containers{dockerd{}, newOnDemand(p)}
	c.Open(t.Context(), p.Source("id-of-pod"))
	was = p.asked
	if c.List(t.Context()); p.asked != was+1 {
		t.Error("a container of before is not followed")
	}
}

// counted counts how often an engine is asked.
type counted struct {
	dockerd
	asked   int
	watched chan bool
}

func (c *counted) Find(ctx context.Context, ref string) (docker.Container, bool, error) {
	c.asked++
	return c.dockerd.Find(ctx, ref)
}

func (c *counted) Inspect(ctx context.Context, id string) (docker.Container, error) {
	c.asked++
	return c.dockerd.Inspect(ctx, id)
}

func (c *counted) List(ctx context.Context) ([]agent.Container, error) {
	c.asked++
	return c.dockerd.List(ctx)
}

func (c *counted) Reachable(ctx context.Context) error {
	c.asked++
	return c.dockerd.Reachable(ctx)
}

func (c *counted) Watch(ctx context.Context, tell func(agent.Happening)) {
	c.watched <- true
	c.dockerd.Watch(ctx, tell)
}
