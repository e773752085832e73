package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"meshnet/agent"
	"meshnet/docker"
	"meshnet/netns"
	"meshnet/plan"
	"meshnet/state"
)

// engine is what there is to ask of Docker. Implemented by docker.Client and by a model.
type engine interface {
	Find(ctx context.Context, ref string) (id, name string, found bool, err error)
	PID(ctx context.Context, id string) (pid int, running, hostNet bool, sharedWith string, err error)
}

// containers finds network namespaces by Docker and by name. It implements agent.Sandboxes.
type containers struct{ docker engine }

// Resolve asks Docker first, then looks under /run/netns. A container that Docker knows need not run.
func (c *containers) Resolve(ctx context.Context, name string) (state.Source, string, error) {
	id, shown, found, dockerErr := c.docker.Find(ctx, name)
	if found {
		_, _, hostNet, _, err := c.docker.PID(ctx, id)
		if err != nil {
			return state.Source{}, "", err
		}
		if hostNet {
			return state.Source{}, "", state.Refuse(agent.ErrRefused,
				"container %s has the host's network; start it without --network host", shown)
		}
		return state.Source{Kind: state.SourceDocker, Docker: id}, shown, nil
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

func (c *containers) openDocker(ctx context.Context, id string) (plan.Sandbox, error) {
	pid, running, _, _, err := c.docker.PID(ctx, id)
	if errors.Is(err, state.ErrNoContainer) {
		return plan.Sandbox{}, state.Refuse(agent.ErrGone, "%v", err)
	}
	if err != nil {
		return plan.Sandbox{}, err
	}
	if !running {
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

// goneOf makes netns's word for a namespace that is gone the agent's.
func goneOf(err error) error {
	if errors.Is(err, netns.ErrGone) {
		return state.Refuse(agent.ErrGone, "%v", err)
	}
	return err
}
