package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

const (
	// answerMax bounds an answer, bytes: a hundred thousand attachments fit.
	answerMax = 64 << 20
	// patience is how long an answer may take, the wait that a request asks for not counted: longer
	// than all that a daemon waits for by itself.
	patience = 40 * time.Second
	// patienceQuick is the same for requests that wait for nobody but the log.
	patienceQuick = 15 * time.Second
)

// Client asks a daemon. Errors are [*Error], or wrap [ErrNoDaemon], [ErrForbidden] or
// the end of ctx.
type Client struct {
	path            string
	patience, quick time.Duration
}

// NewClient returns a client of the daemon that has a socket.
func NewClient(path string) *Client { return &Client{path, patience, patienceQuick} }

// Version returns the daemon's version.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	return v, c.ask(ctx, "GET", "/v1/version", nil, &v)
}

// Settings returns how the daemon was set, in the order of up's flags.
func (c *Client) Settings(ctx context.Context) (s []Setting, err error) {
	return s, c.ask(ctx, "GET", "/v1/settings", nil, &s)
}

// Status asks all members for their digest.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.ask(ctx, "GET", "/v1/status", nil, &s)
}

// Nodes returns all nodes, in the order of (name, id).
func (c *Client) Nodes(ctx context.Context) (n []Node, err error) {
	return n, c.ask(ctx, "GET", "/v1/nodes", nil, &n)
}

// Networks returns all networks, in the order of names.
func (c *Client) Networks(ctx context.Context) (n []Network, err error) {
	return n, c.ask(ctx, "GET", "/v1/networks", nil, &n)
}

// Inspect returns a network by name or id, with its members and attachments.
func (c *Client) Inspect(ctx context.Context, name string) (n Network, err error) {
	return n, c.ask(ctx, "GET", "/v1/networks/"+url.PathEscape(name), nil, &n)
}

// Create makes a network.
func (c *Client) Create(ctx context.Context, r CreateRequest) (n Network, err error) {
	return n, c.ask(ctx, "POST", "/v1/networks", r, &n)
}

// RemoveNetwork removes a network by name or id and returns what it was.
func (c *Client) RemoveNetwork(ctx context.Context, name string, force bool) (n Network, err error) {
	path := "/v1/networks/" + url.PathEscape(name)
	if force {
		path += "?force=true"
	}
	return n, c.ask(ctx, "DELETE", path, nil, &n)
}

// PS returns the attachments of the daemon's host, or of all, in the order of (network, address).
func (c *Client) PS(ctx context.Context, all bool) (a []Attachment, err error) {
	path := "/v1/attachments"
	if all {
		path += "?all=true"
	}
	return a, c.ask(ctx, "GET", path, nil, &a)
}

// Attach puts a container on a network. ns is its open network namespace when the request names a
// process or a path, else nil; it stays the caller's.
func (c *Client) Attach(ctx context.Context, r AttachRequest, ns *os.File) (a Attached, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.patience+time.Duration(r.Wait*float64(time.Second)), errSilent)
	defer cancel()
	return a, c.do(ctx, "POST", "/v1/attach", ns, r, &a)
}

// Detach takes a container off. ns is as for [Client.Attach].
func (c *Client) Detach(ctx context.Context, r DetachRequest, ns *os.File) (d Detached, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.patience, errSilent)
	defer cancel()
	return d, c.do(ctx, "POST", "/v1/detach", ns, r, &d)
}

// IPAM returns how the addresses of a network are divided, by name or id, or of all if it is empty.
func (c *Client) IPAM(ctx context.Context, network string) (s []Space, err error) {
	return s, c.ask(ctx, "GET", "/v1/ipam?network="+url.QueryEscape(network), nil, &s)
}

// Conflicts returns what two sides both claimed.
func (c *Client) Conflicts(ctx context.Context) (l []Conflict, err error) {
	return l, c.ask(ctx, "GET", "/v1/conflicts", nil, &l)
}

// RemovePeer gives up a dead node by name, id or the beginning of one. heir, if not empty, inherits what
// no other node is left to; force does it to a node that answers.
func (c *Client) RemovePeer(ctx context.Context, node, heir string, force bool) (r Removed, err error) {
	path := "/v1/nodes/" + url.PathEscape(node) + "?heir=" + url.QueryEscape(heir)
	if force {
		path += "&force=true"
	}
	return r, c.ask(ctx, "DELETE", path, nil, &r)
}

// Leave hands on what the node has, and returns when others know that it left.
func (c *Client) Leave(ctx context.Context) (s Stopping, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.patience, errSilent)
	defer cancel()
	return s, c.do(ctx, "POST", "/v1/leave", nil, nil, &s)
}

// Stop asks the daemon to end.
func (c *Client) Stop(ctx context.Context) (s Stopping, err error) {
	return s, c.ask(ctx, "POST", "/v1/stop", nil, &s)
}

// errSilent: a daemon that has the socket does not answer.
var errSilent = fmt.Errorf("%w in time; it is stopped or busy, see its log", ErrNoDaemon)

// ask sends a request that carries no file and is answered soon.
func (c *Client) ask(ctx context.Context, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.quick, errSilent)
	defer cancel()
	return c.do(ctx, method, path, nil, body, into)
}

// do sends one request on a connection of its own.
func (c *Client) do(ctx context.Context, method, path string, file *os.File, ask, into any) error {
	var body io.Reader
	if ask != nil {
		b, err := json.Marshal(ask)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://meshnet"+path, body)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, c.path, file)
		},
	}
	answer, err := t.RoundTrip(r)
	if err != nil {
		if errors.Is(context.Cause(ctx), errSilent) {
			return errSilent
		}
		if errors.Is(err, ErrNoDaemon) || errors.Is(err, ErrForbidden) || ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("%w on %s: %w; see its log", ErrNoDaemon, c.path, err)
	}
	defer answer.Body.Close()
	d := json.NewDecoder(io.LimitReader(answer.Body, answerMax))
	if answer.StatusCode != http.StatusOK {
		e := &Error{}
		if err := d.Decode(e); err != nil || e.Message == "" {
			return fmt.Errorf("ask daemon: it answers %s and no reason", answer.Status)
		}
		return e
	}
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("read answer of daemon: %w", err)
	}
	return nil
}
