package main

import (
	"context"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"meshnet/agent"
	"meshnet/state"
)

func (d *door) Expose(_ context.Context, r agent.ExposeRequest) (agent.Attachment, []string, error) {
	n, err := d.Inspect(r.Network)
	if err != nil {
		return agent.Attachment{}, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.at(0x77, "host:h1", n.Name, "10.1.0.9", node1, agent.Ready)
	d.attached = append(d.attached, a)
	return a, d.waiting, nil
}

func (d *door) Hide(ctx context.Context, network string) (agent.Attachment, bool, error) {
	off, err := d.Detach(ctx, agent.Ref{Name: "host:h1"}, network)
	if len(off) == 0 {
		return agent.Attachment{}, false, err
	}
	return off[0], true, err
}

func (d *door) Publish(_ context.Context, r agent.PublishRequest) (agent.Attachment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.attached {
		a := &d.attached[i]
		if a.Container != r.Container || a.Shown != r.Network || a.Node != node1 {
			continue
		}
		if r.Remove {
			a.Published = nil
		} else {
			a.Published = append(a.Published, r.Port)
		}
		return *a, nil
	}
	return agent.Attachment{}, state.Refuse(state.ErrNoEndpoint, "container %s is not attached to %s; attach it first", r.Container, r.Network)
}

func (d *door) Events(ctx context.Context, after uint64, wait bool) []agent.Event {
	events := []agent.Event{
		{Seq: 1, Time: born, Kind: "created", Subject: "network web", Cause: "h2", Detail: "10.2.0.0/16"},
		{Seq: 2, Time: born.Add(50 * time.Minute), Kind: "repaired", Subject: "this host", Cause: "somebody changed Open vSwitch, or it was restarted", Detail: "add port mc-1"},
	}
	if after >= 2 && wait {
		<-ctx.Done()
		return nil
	}
	return events[min(after, 2):]
}

// TestPortInUse: a port that a program of this host has is refused, but not when it leads to a
// container already.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	d := newDoor()
	socket := serve(t, d)
	if got := command(socket, "publish", "default", "c1", port+":80"); got.code != exitFailed || !strings.Contains(got.err, "has port "+port) {
		t.Errorf("taken: %v", got)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	d.attached[0].Published = []state.Published{{HostPort: uint16(n), Port: 80}}
	if got := command(socket, "publish", "default", "c1", port+":80"); got.code != exitDone {
		t.Errorf("again: %v", got)
	}
}
