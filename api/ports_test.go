package api

import (
	"context"
	"errors"
	"testing"
	"time"

	"meshnet/agent"
	"meshnet/state"
)

func (d *door) Expose(_ context.Context, r agent.ExposeRequest) (agent.Attachment, []string, error) {
	return agent.Attachment{Shown: r.Network, Container: r.Addr.String() + " " + r.Wait.String()}, nil, d.fail
}

func (d *door) Hide(_ context.Context, network string) (agent.Attachment, bool, error) {
	return agent.Attachment{Shown: network}, network == "web", d.fail
}

func (d *door) Publish(_ context.Context, r agent.PublishRequest) (agent.Attachment, error) {
	return agent.Attachment{Shown: r.Network, Container: r.Container, Published: []state.Published{r.Port}}, d.fail
}

func (d *door) Events(_ context.Context, after uint64, _ bool) []agent.Event {
	return []agent.Event{{Seq: after + 1, Kind: "created"}}
}

// TestEvents asks for what happened.
func TestEvents(t *testing.T) {
	c := NewClient(serve(t, &door{}))
	e, err := c.Events(context.Background(), 41, true)
	if err != nil || len(e) != 1 || e[0].Seq != 42 || e[0].Kind != "created" {
		t.Errorf("%+v %v", e, err)
	}
}

// TestPorts asks for what is between networks and hosts, rightly and wrongly.
func TestPorts(t *testing.T) {
	c := NewClient(serve(t, &door{}))
	ctx := context.Background()
	a, err := c.Expose(ctx, ExposeRequest{Network: "web", IP: "10.2.0.9", Wait: 1.5})
	if err != nil || a.Network != "web" || a.Container != "10.2.0.9 "+(1500*time.Millisecond).String() {
		t.Errorf("expose: %+v %v", a, err)
	}
	if h, err := c.Hide(ctx, HideRequest{"web"}); err != nil || len(h.Hidden) != 1 {
		t.Errorf("hide: %+v %v", h, err)
	}
	if h, err := c.Hide(ctx, HideRequest{"db"}); err != nil || h.Hidden == nil || len(h.Hidden) != 0 {
		t.Errorf("hide again: %+v %v", h, err)
	}
	p, err := c.Publish(ctx, PublishRequest{Network: "web", Container: "c1", HostPort: 53, Port: 5353, UDP: true})
	if err != nil || len(p.Published) != 1 || p.Published[0] != "53:5353/udp" {
		t.Errorf("publish: %+v %v", p, err)
	}
	if _, err := c.Publish(ctx, PublishRequest{Network: "web", Container: "c1", HostPort: 53, Remove: true}); err != nil {
		t.Errorf("unpublish: %v", err)
	}
	wrong := func(what string, err error) {
		t.Helper()
		if e := (&Error{}); !errors.As(err, &e) || e.Code != Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, r := range []PublishRequest{
		{}, {Network: "web", HostPort: 1, Port: 1}, {Container: "c1", HostPort: 1, Port: 1},
		{Network: "web", Container: "c1", Port: 1}, {Network: "web", Container: "c1", HostPort: 1},
	} {
		_, err := c.Publish(ctx, r)
		wrong("publish", err)
	}
	for _, r := range []ExposeRequest{{}, {Network: "web", IP: "::1"}, {Network: "web", IP: "x"}, {Network: "web", Wait: -1}} {
		_, err := c.Expose(ctx, r)
		wrong("expose", err)
	}
}
