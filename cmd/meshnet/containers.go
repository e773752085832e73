package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"meshnet/agent"
	"meshnet/docker"
	"meshnet/netns"
	"meshnet/plan"
	"meshnet/state"
)

// engine is what there is to ask of Docker. Implemented by docker.Client and by a model.
type engine interface {
	Find(ctx context.Context, ref string) (docker.Container, bool, error)
	Inspect(ctx context.Context, id string) (docker.Container, error)
	List(context.Context) ([]agent.Container, error)
	Watch(context.Context, func(agent.Happening))
	Process(id string) (pid int, found bool)
	Reachable(context.Context) error
}

// containers finds network namespaces by Docker and by name. It implements agent.Sandboxes.
type containers struct{ docker engine }

// sharedMax bounds how many containers may share a network one by way of the other.
const sharedMax = 8

// Resolve asks Docker first, then looks under /run/netns. A container that Docker knows need not run.
// One that uses another's network is that other one: the network is attached once.
func (c *containers) Resolve(ctx context.Context, name string) (state.Source, string, error) {
	got, found, dockerErr := c.docker.Find(ctx, name)
	if found {
		for range sharedMax {
			if got.SharedWith == "" {
				break
			}
			var err error
			if got, err = c.docker.Inspect(ctx, got.SharedWith); err != nil {
				return state.Source{}, "", fmt.Errorf("find whose network container %s uses: %w", name, err)
			}
		}
		if got.HostNet {
			return state.Source{}, "", state.Refuse(agent.ErrRefused,
				"container %s has the host's network; start it without --network host", got.Name)
		}
		return state.Source{Kind: state.SourceDocker, Docker: got.ID}, got.Name, nil
	}
	if errors.Is(dockerErr, state.ErrInvalid) {
		return state.Source{}, "", dockerErr // ambiguous
	}
	source, found, err := netns.FindNamed(name)
	if err != nil || found {
		return source, name, err
	}
	if dockerErr != nil && !errors.Is(dockerErr, docker.ErrNoDocker) {
		return state.Source{}, "", dockerErr
	}
	where := "docker ps and ip netns list show what there is"
	if dockerErr != nil {
		where = "ip netns list shows what there is; Docker does not run"
	}
	return state.Source{}, "", state.Refuse(state.ErrNoContainer, "there is no container %s; %s", name, where)
}

// Hold describes a namespace that the command line opened.
func (c *containers) Hold(ns *os.File, s state.Source) (state.Source, error) {
	return netns.Hold(ns, s)
}

// Open finds the namespace of a container as it is now.
func (c *containers) Open(ctx context.Context, s state.Source) (plan.Sandbox, error) {
	if s.Kind == state.SourceDocker {
		return c.openDocker(ctx, s.Docker)
	}
	box, err := netns.Open(s)
	return box, goneOf(err)
}

// openDocker asks Docker for a container's process. Where Docker cannot say, its containers may run all
// the same: then the process is looked for.
func (c *containers) openDocker(ctx context.Context, id string) (plan.Sandbox, error) {
	got, err := c.docker.Inspect(ctx, id)
	if errors.Is(err, state.ErrNoContainer) {
		return plan.Sandbox{}, state.Refuse(agent.ErrRemoved, "%v", err)
	}
	pid := got.PID
	if err != nil {
		var found bool
		if pid, found = c.docker.Process(id); !found {
			return plan.Sandbox{}, err
		}
	}
	if pid == 0 {
		return plan.Sandbox{}, state.Refuse(agent.ErrGone, "Docker says that it is stopped")
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

// Watch tells what happens to Docker's containers.
func (c *containers) Watch(ctx context.Context, tell func(agent.Happening)) {
	c.docker.Watch(ctx, tell)
}

// List returns Docker's containers.
func (c *containers) List(ctx context.Context) ([]agent.Container, error) {
	all, err := c.docker.List(ctx)
	if errors.Is(err, docker.ErrNoDocker) {
		err = nil
	}
	return all, err
}

// askMax bounds the question whether Docker is there.
const askMax = time.Second

// Warnings says that there is no Docker.
func (c *containers) Warnings() []string {
	ctx, cancel := context.WithTimeout(context.Background(), askMax)
	defer cancel()
	err := c.docker.Reachable(ctx)
	switch {
	case errors.Is(err, docker.ErrNoDocker):
		return []string{"Docker does not run; containers are found by process, path and network namespace only"}
	case err != nil:
		return []string{fmt.Sprintf("Docker does not answer: %v", err)}
	}
	return nil
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
