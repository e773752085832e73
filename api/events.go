package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"meshnet/agent"
)

// eventDoor is the part of [Door] that tells what happened.
type eventDoor interface {
	Events(ctx context.Context, after uint64, wait bool) []agent.Event
}

// Event is something that changed, and why.
type Event struct {
	Time    time.Time `json:"time"`
	Node    string    `json:"node"`
	Kind    string    `json:"kind"`
	Subject string    `json:"subject"`
	Cause   string    `json:"cause"`
	Detail  string    `json:"detail"`
	Seq     uint64    `json:"seq"` // of one run of the daemon
}

// followMax is how long a request for events waits for one.
const followMax = 10 * time.Second

// Events returns the events after a number, 0 for all that are kept. With wait it waits a moment for
// one, and returns none if there is none.
func (c *Client) Events(ctx context.Context, after uint64, wait bool) (e []Event, err error) {
	path := fmt.Sprintf("/v1/events?after=%d&wait=%t", after, wait)
	return e, c.ask(ctx, "GET", path, nil, &e)
}

func (s *Server) eventRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
		if err != nil {
			reply(w, nil, invalid("number %q of an event", r.FormValue("after")))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), followMax)
		defer cancel()
		node := ""
		for _, n := range s.c.Door.Nodes() {
			if n.Self {
				node = n.Name
			}
		}
		answer(w, each(s.c.Door.Events(ctx, after, r.FormValue("wait") == "true"), func(e agent.Event) Event {
			return Event{e.Time, node, e.Kind, e.Subject, e.Cause, e.Detail, e.Seq}
		}))
	})
}
