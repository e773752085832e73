package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshnet/state"
)

// ExposeRequest asks for an address of this host on a network.
type ExposeRequest struct {
	Network string
	Addr    netip.Addr // invalid: any
	// Wait bounds the wait for other nodes.
	Wait time.Duration
}

// PublishRequest asks for a port of this host that leads to a container here, or with Remove for
// none.
type PublishRequest struct {
	Network, Container string
	Port               state.Published // with Remove its container's port does not count
	Remove             bool
}

// HostPrefix begins the name of what stands for a host on a network that it was exposed to.
const HostPrefix = "host:"

// Expose gives this host an address on a network, and returns when it has it and, within the wait,
// the other nodes reach it: the second result is as for [Agent.Attach]. Twice is the same as once.
func (a *Agent) Expose(ctx context.Context, r ExposeRequest) (Attachment, []string, error) {
	n, err := find(a.c.Mesh.View(), r.Network)
	if err != nil {
		return Attachment{}, nil, err
	}
	free, err := a.occupy(ctx, place{name: HostPrefix, network: n.ID})
	if err != nil {
		return Attachment{}, nil, err
	}
	defer free()
	w, ok := a.exposed(n.ID)
	if !ok {
		w = state.Attach{
			ID: mint(), Network: n.ID, Container: HostPrefix + nodeName(a.c.Mesh.View(), a.c.Mesh.Self()),
			Source: state.Source{Kind: state.SourceHost}, Addr: r.Addr,
		}
	}
	if r.Addr.IsValid() {
		w.Addr = r.Addr
	}
	do, cancel := context.WithTimeout(ctx, doMax)
	defer cancel()
	out, err := a.c.Mesh.Do(do, w)
	if err == nil {
		err = a.host(ctx, out.Version, 0)
	}
	if err != nil {
		if !ok {
			a.undo(ctx, w.ID)
		}
		return Attachment{}, nil, err
	}
	wait, cancel := context.WithTimeout(ctx, r.Wait)
	defer cancel()
	waiting := a.nodeNames(a.c.Mesh.Reached(wait, out.Endpoint))
	at, err := a.attachmentOf(out.Endpoint)
	return at, waiting, err
}

// Hide takes this host's address on a network back, and returns what it was; false if it had none.
func (a *Agent) Hide(ctx context.Context, network string) (Attachment, bool, error) {
	n, err := find(a.c.Mesh.View(), network)
	if err != nil {
		return Attachment{}, false, err
	}
	w, ok := a.exposed(n.ID)
	if !ok {
		return Attachment{}, false, nil
	}
	was, err := a.attachmentOf(w.ID)
	if err != nil {
		return Attachment{}, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, doMax)
	defer cancel()
	out, err := a.c.Mesh.Do(ctx, state.Detach{ID: w.ID})
	if err == nil {
		err = a.host(ctx, out.Version, 0)
	}
	return was, err == nil, err
}

// exposed returns the wish for this host's own address on a network.
func (a *Agent) exposed(id state.NetworkID) (state.Attach, bool) {
	for _, w := range a.c.Mesh.Wishes() {
		if w.Network == id && w.Source.Kind == state.SourceHost {
			return w, true
		}
	}
	return state.Attach{}, false
}

func (a *Agent) attachmentOf(id state.EndpointID) (Attachment, error) {
	for _, at := range a.PS(false) {
		if at.Endpoint == id {
			return at, nil
		}
	}
	return Attachment{}, fmt.Errorf("endpoint %s was detached meanwhile; try again", id)
}

// Publish makes a port of this host lead to a port of a container that runs here, or with remove no
// longer. Twice is the same as once. It returns the container with all that leads to it.
func (a *Agent) Publish(ctx context.Context, r PublishRequest) (Attachment, error) {
	n, err := find(a.c.Mesh.View(), r.Network)
	if err != nil {
		return Attachment{}, err
	}
	if (n.Def.Internal || !n.Def.Gateway.IsValid()) && !r.Remove {
		return Attachment{}, state.Refuse(ErrRefused, "network %s has no way out, so its containers could not answer; make one without --internal", n.Name)
	}
	w, err := a.publishable(ctx, r, n)
	if err != nil {
		return Attachment{}, err
	}
	free, err := a.occupy(ctx, place{name: w.Container, network: n.ID})
	if err != nil {
		return Attachment{}, err
	}
	defer free()
	same := func(p state.Published) bool { return p.HostPort == r.Port.HostPort && p.Proto == r.Port.Proto }
	ports := slices.Clone(w.Publish)
	i := slices.IndexFunc(ports, same)
	switch {
	case r.Remove && i >= 0:
		ports = slices.Delete(ports, i, i+1)
	case r.Remove:
	case i >= 0 && ports[i] != r.Port:
		return Attachment{}, state.Refuse(ErrRefused, "port %d/%s leads to its port %d already; unpublish that first",
			r.Port.HostPort, r.Port.Proto, ports[i].Port)
	case i < 0:
		if err := a.portFree(r.Port); err != nil {
			return Attachment{}, err
		}
		ports = append(ports, r.Port)
	}
	ctx, cancel := context.WithTimeout(ctx, doMax)
	defer cancel()
	out, err := a.c.Mesh.Do(ctx, state.Publish{ID: w.ID, Ports: ports})
	if err == nil {
		err = a.host(ctx, out.Version, 0)
	}
	if err != nil {
		return Attachment{}, err
	}
	return a.attachmentOf(w.ID)
}

// publishable returns the attachment that a request means.
func (a *Agent) publishable(ctx context.Context, r PublishRequest, n *state.Network) (state.Attach, error) {
	mine, err := a.attached(ctx, Ref{Name: r.Container})
	for _, w := range mine {
		if w.Network == n.ID {
			return w, nil
		}
	}
	for e := range n.Endpoints() {
		if e.Container == r.Container && e.Node != a.c.Mesh.Self() {
			return state.Attach{}, state.Refuse(ErrRefused, "container %s runs on %s; publish it there", r.Container,
				nodeName(a.c.Mesh.View(), e.Node))
		}
	}
	if err != nil {
		return state.Attach{}, err
	}
	return state.Attach{}, state.Refuse(state.ErrNoEndpoint, "container %s is not attached to %s; attach it first", r.Container, n.Name)
}

// portFree refuses a port of this host that leads elsewhere or is meshnet's own.
func (a *Agent) portFree(p state.Published) error {
	for _, w := range a.c.Mesh.Wishes() {
		if slices.ContainsFunc(w.Publish, func(o state.Published) bool { return o.HostPort == p.HostPort && o.Proto == p.Proto }) {
			return state.Refuse(ErrRefused, "port %d/%s leads to %s already; unpublish that first", p.HostPort, p.Proto, w.Container)
		}
	}
	if self, ok := a.c.Mesh.View().Node(a.c.Mesh.Self()); ok {
		tunnel := p.Proto == state.UDP && p.HostPort == self.TunnelPort
		if tunnel || p.HostPort == self.GossipPort {
			return state.Refuse(ErrRefused, "port %d/%s is meshnet's own; choose another", p.HostPort, p.Proto)
		}
	}
	return nil
}
