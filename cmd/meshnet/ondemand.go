package main

import (
	"context"
	"fmt"
	"sync"

	"meshnet/agent"
	"meshnet/docker"
)

// onDemand is an engine whose service is started by whoever asks it, and ends when nobody does: Podman's. It
// is left alone until one of its containers is named or was attached before; from then on it is
// followed, and labels of its containers are obeyed.
type onDemand struct {
	engine
	once sync.Once
	used chan struct{} // closed when one of its containers is of interest
}

func newOnDemand(e engine) *onDemand { return &onDemand{engine: e, used: make(chan struct{})} }

func (o *onDemand) use() { o.once.Do(func() { close(o.used) }) }

func (o *onDemand) inUse() bool {
	select {
	case <-o.used:
		return true
	default:
		return false
	}
}

func (o *onDemand) Find(ctx context.Context, ref string) (docker.Container, bool, error) {
	got, found, err := o.engine.Find(ctx, ref)
	if found {
		o.use()
	}
	return got, found, err
}

func (o *onDemand) Inspect(ctx context.Context, id string) (docker.Container, error) {
	o.use()
	return o.engine.Inspect(ctx, id)
}

func (o *onDemand) List(ctx context.Context) ([]agent.Container, error) {
	if !o.inUse() {
		return nil, nil
	}
	return o.engine.List(ctx)
}

func (o *onDemand) Watch(ctx context.Context, tell func(agent.Happening)) {
	select {
	case <-o.used:
		o.engine.Watch(ctx, tell)
	case <-ctx.Done():
	}
}

func (o *onDemand) Reachable(ctx context.Context) error {
	if !o.inUse() {
		return fmt.Errorf("%w, for all we know", docker.ErrNoDocker)
	}
	return o.engine.Reachable(ctx)
}
