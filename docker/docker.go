package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"meshnet/state"
)

// ErrNoDocker says that nobody listens at Docker's socket: there is no Docker here, or it does not
// run.
var ErrNoDocker = errors.New("docker does not run here")

// socketDefault is where the Docker daemon listens unless told otherwise.
const socketDefault = "/var/run/docker.sock"

// answerMax bounds one question. A Docker that starts many containers at once is slow, not stuck.
const answerMax = 5 * time.Second

// shortID is how many digits of an id people are shown.
const shortID = 12

// Client asks one Docker daemon.
type Client struct {
	api    *client.Client
	socket string
	proc   string // where the kernel shows processes
}

// New returns a client for a socket; empty: /var/run/docker.sock. Nothing is asked yet, and nobody
// has to listen.
func New(socket string) (*Client, error) {
	if socket == "" {
		socket = socketDefault
	}
	api, err := client.New(client.WithHost("unix://" + socket))
	if err != nil {
		return nil, fmt.Errorf("make a Docker client for %s: %w", socket, err)
	}
	return &Client{api, socket, "/proc"}, nil
}

// Container is what Docker says of a container.
type Container struct {
	ID, Name string
	PID      int // its first process; zero: it does not run
	HostNet  bool
	// SharedWith is the id of the container whose network it uses; empty: it has one of its own, or
	// the host's.
	SharedWith string
}

// Find returns the container with a name, an id or an unambiguous beginning of an id, running or not;
// in this order, as Docker's own commands do. False if there is none. [ErrNoDocker] if Docker does
// not run.
func (c *Client) Find(ctx context.Context, ref string) (Container, bool, error) {
	if !plausible(ref) {
		return Container{}, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	got, err := c.api.ContainerInspect(ctx, ref, client.ContainerInspectOptions{})
	switch {
	case err == nil:
		return read(got.Container), true, nil
	case errdefs.IsNotFound(err):
		return Container{}, false, nil
	case errdefs.IsInvalidArgument(err):
		return Container{}, false, c.ambiguous(ctx, ref, err)
	}
	return Container{}, false, c.failed("ask Docker for container "+ref, err)
}

// Inspect returns a container by its id. The error wraps [state.ErrNoContainer] if it was removed and
// [ErrNoDocker] if Docker does not run.
func (c *Client) Inspect(ctx context.Context, id string) (Container, error) {
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	got, err := c.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return Container{}, state.Refuse(state.ErrNoContainer, "container %.*s was removed", shortID, id)
	}
	if err != nil {
		return Container{}, c.failed(fmt.Sprintf("ask Docker for container %.*s", shortID, id), err)
	}
	return read(got.Container), nil
}

func read(got container.InspectResponse) Container {
	out := Container{ID: got.ID, Name: strings.TrimPrefix(got.Name, "/")}
	if s := got.State; s != nil && s.Running {
		out.PID = s.Pid // zero while it restarts
	}
	if h := got.HostConfig; h != nil {
		out.HostNet, out.SharedWith = h.NetworkMode.IsHost(), h.NetworkMode.ConnectedContainer()
	}
	return out
}

// ambiguous returns the error for the beginning of several ids, with what it may mean. Docker does
// not say what they are.
func (c *Client) ambiguous(ctx context.Context, ref string, refused error) error {
	all, err := c.api.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return c.failed("list containers", err)
	}
	var may []string
	for _, s := range all.Items {
		if !strings.HasPrefix(s.ID, ref) {
			continue
		}
		what := s.ID[:min(shortID, len(s.ID))]
		if len(s.Names) > 0 {
			what += " (" + strings.TrimPrefix(s.Names[0], "/") + ")"
		}
		may = append(may, what)
	}
	if len(may) < 2 {
		return c.failed("ask Docker for container "+ref, refused)
	}
	slices.Sort(may)
	return state.Refuse(state.ErrInvalid, "container %s is ambiguous: %s; give more of the id, or the name", ref, strings.Join(may, ", "))
}

// failed wraps what the library returned.
func (c *Client) failed(what string, err error) error {
	var op *net.OpError
	switch {
	case client.IsErrConnectionFailed(err), errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("%s: %w (%w)", what, ErrNoDocker, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer within %v; see whether docker ps answers: %w", what, answerMax, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// plausible reports whether Docker could know something by that name. A path or an option is never
// sent.
func plausible(ref string) bool {
	for i, r := range ref {
		alnum := r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !alnum && (i == 0 || r != '_' && r != '.' && r != '-') {
			return false
		}
	}
	return ref != ""
}

// Reachable asks whether Docker answers; the error wraps [ErrNoDocker] if nobody listens.
func (c *Client) Reachable(ctx context.Context) error {
	if _, err := c.api.Ping(ctx, client.PingOptions{}); err != nil {
		return c.failed("ask Docker at "+c.socket, err)
	}
	return nil
}
