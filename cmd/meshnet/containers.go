package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"meshnet/agent"
	"meshnet/docker"
	"meshnet/netns"
	"meshnet/plan"
	"meshnet/state"
)

// engine is what there is to ask of Docker or Podman. Implemented by docker.Client and by a model.
type engine interface {
	Name() string
	Source(id string) state.Source
	Find(ctx context.Context, ref string) (docker.Container, bool, error)
	Inspect(ctx context.Context, id string) (docker.Container, error)
	List(context.Context) ([]agent.Container, error)
	Watch(context.Context, func(agent.Happening))
	Process(id string) (pid int, found bool)
	Reachable(context.Context) error
}

// containers finds network namespaces by engine and by name. It implements agent.Sandboxes.
type containers struct {
	docker, podman engine // nil: is not asked
}

// sharedMax bounds how many containers may share a network one by way of the other.
const sharedMax = 8

// engines returns those that are asked.
func (c *containers) engines() []engine {
	return slices.DeleteFunc([]engine{c.docker, c.podman}, func(e engine) bool { return e == nil })
}

// Resolve asks Docker first, then looks under /run/netns, and asks Podman last, as that starts its
// service. A container that an engine knows need not run.
func (c *containers) Resolve(ctx context.Context, name string) (state.Source, string, error) {
	s := search{name: name}
	if source, shown, done, err := s.in(ctx, c.docker); done {
		return source, shown, err
	}
	if source, found, err := netns.FindNamed(name); err != nil || found {
		return source, name, err
	}
	if source, shown, done, err := s.in(ctx, c.podman); done {
		return source, shown, err
	}
	if s.failed != nil {
		return state.Source{}, "", s.failed
	}
	return state.Source{}, "", state.Refuse(state.ErrNoContainer, "there is no container %s; %s", name, c.whatThereIs(s.absent))
}

// search is the search for a container by its name.
type search struct {
	name   string
	failed error    // the first engine's that could not say
	absent []string // engines that do not run
}

// in asks an engine, if there is one. done: the rest is the answer.
func (s *search) in(ctx context.Context, e engine) (source state.Source, shown string, done bool, err error) {
	if e == nil {
		return state.Source{}, "", false, nil
	}
	got, found, err := e.Find(ctx, s.name)
	switch {
	case found:
		source, shown, err = owner(ctx, e, got)
		return source, shown, true, err
	case errors.Is(err, state.ErrInvalid): // ambiguous
		return state.Source{}, "", true, err
	case errors.Is(err, docker.ErrNoDocker):
		s.absent = append(s.absent, e.Name())
	case s.failed == nil:
		s.failed = err
	}
	return state.Source{}, "", false, nil
}

// owner returns the container whose network one uses, which is mostly its own: the network is attached
// once.
func owner(ctx context.Context, e engine, got docker.Container) (state.Source, string, error) {
	name := got.Name
	for range sharedMax {
		if got.SharedWith == "" {
			break
		}
		var err error
		if got, err = e.Inspect(ctx, got.SharedWith); err != nil {
			return state.Source{}, "", fmt.Errorf("find whose network container %s uses: %w", name, err)
		}
	}
	if got.HostNet {
		return state.Source{}, "", state.Refuse(agent.ErrRefused,
			"container %s has the host's network; start it without --network host", got.Name)
	}
	return e.Source(got.ID), got.Name, nil
}

// whatThereIs says which commands list containers, given the engines that do not run.
func (c *containers) whatThereIs(absent []string) string {
	var lists []string
	for _, e := range c.engines() {
		if !slices.Contains(absent, e.Name()) {
			lists = append(lists, strings.ToLower(e.Name())+" ps")
		}
	}
	shows := "ip netns list shows what there is"
	if len(lists) > 0 {
		shows = strings.Join(lists, ", ") + " and ip netns list show what there is"
	}
	switch {
	case slices.Contains(absent, "Podman") && hasPodman():
		shows += "; Podman's are found once its service runs: systemctl enable --now podman.socket"
	case len(lists) == 0 && slices.Contains(absent, "Docker"):
		shows += "; Docker does not run"
	}
	return shows
}

// hasPodman reports whether Podman is installed.
func hasPodman() bool {
	_, err := exec.LookPath("podman")
	return err == nil
}

// Hold describes a namespace that the command line opened.
func (c *containers) Hold(ns *os.File, s state.Source) (state.Source, error) {
	return netns.Hold(ns, s)
}

// Open finds the namespace of a container as it is now.
func (c *containers) Open(ctx context.Context, s state.Source) (plan.Sandbox, error) {
	if s.Kind != state.SourceDocker {
		box, err := netns.Open(s)
		return box, goneOf(err)
	}
	for _, e := range c.engines() {
		if e.Source(s.Docker) == s {
			return openOf(ctx, e, s.Docker)
		}
	}
	return plan.Sandbox{}, fmt.Errorf("find container %s: no engine %s is known; restart the daemon with one version", s.Docker, s.Path)
}

// openOf asks an engine for a container's process. Where it cannot say, its containers may run all the
// same: then the process is looked for.
func openOf(ctx context.Context, e engine, id string) (plan.Sandbox, error) {
	got, err := e.Inspect(ctx, id)
	if errors.Is(err, state.ErrNoContainer) {
		return plan.Sandbox{}, state.Refuse(agent.ErrRemoved, "%v", err)
	}
	pid := got.PID
	if err != nil {
		var found bool
		if pid, found = e.Process(id); !found {
			return plan.Sandbox{}, err
		}
	}
	if pid == 0 {
		return plan.Sandbox{}, state.Refuse(agent.ErrGone, "%s says that it is stopped", e.Name())
	}
	f, source, err := netns.FromPID(pid)
	if err != nil {
		return plan.Sandbox{}, goneOf(err)
	}
	defer f.Close()
	if _, err := netns.Hold(f, source); err != nil { // the host's own network too is refused here
		return plan.Sandbox{}, goneOf(err)
	}
	return plan.Sandbox{Path: fmt.Sprintf("/proc/%d/ns/net", pid), Inode: source.Inode}, nil
}

// Watch tells what happens to the engines' containers.
func (c *containers) Watch(ctx context.Context, tell func(agent.Happening)) {
	var one sync.Mutex
	var all sync.WaitGroup
	for _, e := range c.engines() {
		all.Go(func() {
			e.Watch(ctx, func(h agent.Happening) {
				one.Lock()
				defer one.Unlock()
				tell(h)
			})
		})
	}
	all.Wait()
}

// List returns the engines' containers. If one that runs does not answer there is no list: part of one
// would say that the rest has ended.
func (c *containers) List(ctx context.Context) (all []agent.Container, err error) {
	for _, e := range c.engines() {
		list, err := e.List(ctx)
		if err != nil && !errors.Is(err, docker.ErrNoDocker) {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// askMax bounds the question whether an engine is there.
const askMax = time.Second

// Warnings says that there is no engine, or that one does not answer.
func (c *containers) Warnings() (all []string) {
	ctx, cancel := context.WithTimeout(context.Background(), askMax)
	defer cancel()
	there := false
	for _, e := range c.engines() {
		err := e.Reachable(ctx)
		if err != nil && !errors.Is(err, docker.ErrNoDocker) {
			all = append(all, fmt.Sprintf("%s does not answer: %v", e.Name(), err))
		}
		there = there || !errors.Is(err, docker.ErrNoDocker)
	}
	if !there {
		return []string{"Docker does not run; containers are found by process, path and network namespace only"}
	}
	return all
}

// waiterSocket is where the first process of a container waits to be told: an abstract Unix socket,
// which only processes of that network namespace can make and reach (unix(7)).
const waiterSocket = "meshnet-wait"

const (
	// tellEvery is how often a process that does not listen yet is tried again, tellMax how long.
	tellEvery, tellMax = 2 * time.Millisecond, 10 * time.Second
	// tellLeast is how often a process is tried that does not look like a waiter: it may become one.
	tellLeast = 25
)

// Release tells the waiter in a container. It may have started a moment ago and not listen yet, and it
// may have gone on already.
func (c *containers) Release(ctx context.Context, box plan.Sandbox, why string) error {
	message := toldReady
	if why != "" {
		message = toldNever + " " + oneLine(why)
	}
	ctx, cancel := context.WithTimeout(ctx, tellMax)
	defer cancel()
	for try := 0; ; try++ {
		err := netns.Tell(box, waiterSocket, []byte(message+"\n"))
		if err == nil || errors.Is(err, netns.ErrGone) || try >= tellLeast && !waits(strings.TrimSuffix(box.Path, "/ns/net")) {
			return nil
		}
		select {
		case <-time.After(tellEvery):
		case <-ctx.Done():
			return fmt.Errorf("tell a container that its network is there: %w", err)
		}
	}
}

// waits reports whether the process of a directory under /proc is a waiter that has not gone on, or is
// about to become one or to start one.
func waits(dir string) bool {
	args := argsOf(dir)
	switch {
	case isWaiter(args):
		return true
	case len(args) > 1 && args[1] == "init": // runc before the program
		return true
	case !slices.Contains(args, waiterPath): // else an init process (--init) that starts it
		return false
	}
	children, err := os.ReadFile(filepath.Join(dir, "task", filepath.Base(dir), "children"))
	if err != nil || len(children) == 0 {
		return true
	}
	for _, pid := range strings.Fields(string(children)) {
		if isWaiter(argsOf(filepath.Join(filepath.Dir(dir), pid))) {
			return true
		}
	}
	return false
}

func isWaiter(args []string) bool {
	return len(args) > 1 && args[0] == waiterPath && args[1] == waiterVerb
}

func argsOf(dir string) []string {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil
	}
	return strings.Split(string(line), "\x00")
}

// goneOf makes netns's word for a namespace that is gone the agent's.
func goneOf(err error) error {
	if errors.Is(err, netns.ErrGone) {
		return state.Refuse(agent.ErrGone, "%v", err)
	}
	return err
}
