package docker

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"meshnet/agent"
)

const (
	// againMin to againMax: the wait until a stream that broke, or could not be opened, is tried again,
	// doubled each time.
	againMin, againMax = 100 * time.Millisecond, time.Second
	// resyncEvery: how often everything is looked at although no event was missed that we know of.
	resyncEvery = time.Minute
	// overlap is how far before the connection the stream begins. Docker answers a moment before it
	// subscribes, and keeps the latest events for this.
	overlap = time.Second
)

// Watch tells what happens to containers until ctx ends, one call at a time. Each time the stream of
// events begins anew, and every minute, it tells that anything may have happened; so it does once at
// first, whether Docker runs or not. tell must not block.
func (c *Client) Watch(ctx context.Context, tell func(agent.Happening)) {
	tell(agent.Happening{All: true})
	wait := againMin
	for ctx.Err() == nil {
		if c.stream(ctx, tell) {
			wait = againMin
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
		wait = min(2*wait, againMax)
	}
}

// stream follows one stream of events until it breaks. It reports whether it got that far.
func (c *Client) stream(ctx context.Context, tell func(agent.Happening)) (opened bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := os.Stat(c.socket); err != nil {
		return false // several connections by HTTP would be tried, each second
	}
	filters := client.Filters{}.Add("type", string(events.ContainerEventType))
	// Podman says remove where Docker says destroy.
	for _, a := range []events.Action{events.ActionStart, events.ActionDie, events.ActionDestroy, events.ActionRemove, events.ActionRename} {
		filters.Add("event", string(a))
	}
	// A Docker that accepts connections and answers nothing is there all the same once it answers.
	got := c.api.Events(ctx, client.EventsListOptions{
		Since: strconv.FormatInt(time.Now().Add(-overlap).Unix(), 10), Filters: filters,
	})
	select {
	case <-got.Err:
		return false
	default:
	}
	tell(agent.Happening{All: true})
	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	for {
		select {
		case m := <-got.Messages:
			tell(c.happening(m))
		case <-resync.C:
			tell(agent.Happening{All: true})
		case <-got.Err:
			return true
		case <-ctx.Done():
			return true
		}
	}
}

// happening reads an event. Its attributes are the container's labels, with its name and image among
// them.
func (c *Client) happening(m events.Message) agent.Happening {
	h := agent.Happening{Container: c.described(m.Actor.ID, m.Actor.Attributes["name"], m.Action == events.ActionStart, m.Actor.Attributes)}
	switch m.Action {
	case events.ActionStart:
		h.What = agent.Started
	case events.ActionRename:
		h.What = agent.Renamed
	default: // died or destroyed
		h.What = agent.Ended
	}
	return h
}

// List returns all containers, running or not, in the order of their ids. [ErrNoDocker] if Docker does
// not run.
func (c *Client) List(ctx context.Context) ([]agent.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	all, err := c.api.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return nil, c.failed("list containers", err)
	}
	out := make([]agent.Container, 0, len(all.Items))
	for _, s := range all.Items {
		name := ""
		for _, n := range s.Names {
			// A legacy link is a name too, with the other container's before it: /web/db.
			if own := strings.TrimPrefix(n, "/"); !strings.Contains(own, "/") {
				name = own
			}
		}
		running := s.State == container.StateRunning || s.State == container.StatePaused
		out = append(out, c.described(s.ID, name, running, s.Labels))
	}
	return out, nil
}
