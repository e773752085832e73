package main

import (
	"context"
	"errors"
	"os"

	"meshnet/agent"
	"meshnet/netns"
	"meshnet/plan"
	"meshnet/state"
)

// containers finds network namespaces by package docker and package netns. It implements
// agent.Sandboxes.
type containers struct{}

func newContainers() *containers { return &containers{} }

// Resolve asks Docker first, then looks under /run/netns.
func (c *containers) Resolve(ctx context.Context, name string) (state.Source, string, error) {
	source, found, err := netns.FindNamed(name)
	if err != nil {
		return state.Source{}, "", err
	}
	if !found {
		return state.Source{}, "", state.Refuse(state.ErrNoContainer,
			"no container %s; docker ps and ip netns list show what there is", name)
	}
	return source, name, nil
}

// Hold describes a namespace that the command line opened.
func (c *containers) Hold(ns *os.File, s state.Source) (state.Source, error) {
	return netns.Hold(ns, s)
}

// Open finds the namespace of a container as it is now.
func (c *containers) Open(ctx context.Context, s state.Source) (plan.Sandbox, error) {
	box, err := netns.Open(s)
	return box, goneOf(err)
}

// goneOf makes netns's word for a namespace that is gone the agent's.
func goneOf(err error) error {
	if errors.Is(err, netns.ErrGone) {
		return state.Refuse(agent.ErrGone, "%v", err)
	}
	return err
}
