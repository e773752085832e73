package api

import (
	"context"
	"math"
	"net/http"
	"net/netip"
	"time"

	"meshnet/agent"
	"meshnet/state"
)

// portDoor is the part of [Door] between networks and the hosts' own stacks.
type portDoor interface {
	Expose(context.Context, agent.ExposeRequest) (agent.Attachment, []string, error)
	Hide(ctx context.Context, network string) (agent.Attachment, bool, error)
	Publish(context.Context, agent.PublishRequest) (agent.Attachment, error)
}

// ExposeRequest asks for an address of the daemon's host on a network.
type ExposeRequest struct {
	Network string  `json:"network"`
	IP      string  `json:"ip,omitempty"`
	Wait    float64 `json:"wait"` // seconds, for the peers
}

// HideRequest asks for that address to be taken back.
type HideRequest struct {
	Network string `json:"network"`
}

// Hidden is the answer to hide: what was taken back, empty when there was nothing to do.
type Hidden struct {
	Hidden []Attachment `json:"hidden"`
}

// PublishRequest asks for a port of the daemon's host that leads to a container there, or with Remove
// for none.
type PublishRequest struct {
	Network   string `json:"network"`
	Container string `json:"container"`
	HostPort  uint16 `json:"host_port"`
	Port      uint16 `json:"port,omitempty"` // of the container; not needed with Remove
	UDP       bool   `json:"udp,omitempty"`  // else TCP
	Remove    bool   `json:"remove,omitempty"`
}

// Expose gives the daemon's host an address on a network.
func (c *Client) Expose(ctx context.Context, r ExposeRequest) (a Attached, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.patience+time.Duration(r.Wait*float64(time.Second)), errSilent)
	defer cancel()
	return a, c.do(ctx, "POST", "/v1/expose", nil, r, &a)
}

// Hide takes it back.
func (c *Client) Hide(ctx context.Context, r HideRequest) (h Hidden, err error) {
	return h, c.ask(ctx, "POST", "/v1/hide", r, &h)
}

// Publish makes a port of the daemon's host lead to a container there, or no longer, and returns the
// container with all that leads to it.
func (c *Client) Publish(ctx context.Context, r PublishRequest) (a Attachment, err error) {
	return a, c.ask(ctx, "POST", "/v1/publish", r, &a)
}

func (s *Server) portRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/expose", s.expose)
	mux.HandleFunc("POST /v1/hide", func(w http.ResponseWriter, r *http.Request) {
		var ask HideRequest
		if !read(w, r, &ask) {
			return
		}
		at, was, err := s.c.Door.Hide(r.Context(), ask.Network)
		h := Hidden{Hidden: []Attachment{}}
		if was {
			h.Hidden = append(h.Hidden, attachmentOf(at))
		}
		reply(w, h, err)
	})
	mux.HandleFunc("POST /v1/publish", s.publish)
}

func (s *Server) expose(w http.ResponseWriter, r *http.Request) {
	var ask ExposeRequest
	if !read(w, r, &ask) {
		return
	}
	req := agent.ExposeRequest{Network: ask.Network}
	var err error
	switch {
	case ask.Network == "":
		err = invalid("network; name one")
	case math.IsNaN(ask.Wait) || ask.Wait < 0 || ask.Wait > waitMax.Seconds():
		err = invalid("wait of %v s; want 0 to %v s", ask.Wait, waitMax.Seconds())
	case ask.IP != "":
		if req.Addr, err = netip.ParseAddr(ask.IP); err != nil || !req.Addr.Is4() {
			err = invalid("address %q; want an IPv4 address of the network", ask.IP)
		}
	}
	if err != nil {
		reply(w, nil, err)
		return
	}
	req.Wait = time.Duration(ask.Wait * float64(time.Second))
	at, waiting, err := s.c.Door.Expose(r.Context(), req)
	reply(w, Attached{Attachment: attachmentOf(at), Waiting: waiting}, err)
}

func (s *Server) publish(w http.ResponseWriter, r *http.Request) {
	var ask PublishRequest
	if !read(w, r, &ask) {
		return
	}
	var err error
	switch {
	case ask.Network == "" || ask.Container == "":
		err = invalid("request; name a network and a container")
	case ask.HostPort == 0 || ask.Port == 0 && !ask.Remove:
		err = invalid("port; want HOSTPORT:PORT, both from 1 to 65535")
	}
	if err != nil {
		reply(w, nil, err)
		return
	}
	p := state.Published{HostPort: ask.HostPort, Port: ask.Port}
	if ask.UDP {
		p.Proto = state.UDP
	}
	at, err := s.c.Door.Publish(r.Context(), agent.PublishRequest{
		Network: ask.Network, Container: ask.Container, Port: p, Remove: ask.Remove,
	})
	reply(w, attachmentOf(at), err)
}
