package docker

import (
	"cmp"
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

// ErrNoDocker says that nobody listens at an engine's socket: there is no Docker (or Podman) here, or it
// does not run.
var ErrNoDocker = errors.New("it does not run here")

// Where the engines listen unless told otherwise (dockerd(8), podman-system-service(1)).
const (
	socketDocker = "/var/run/docker.sock"
	socketPodman = "/run/podman/podman.sock"
)

// answerMax bounds one question. A Docker that starts many containers at once is slow, not stuck.
const answerMax = 5 * time.Second

// shortID is how many digits of an id people are shown.
const shortID = 12

// Client asks one engine: a Docker daemon, or Podman's service, which speaks the same language.
type Client struct {
	api    *client.Client
	socket string
	name   string // of the engine, for people
	mark   string // Path of the sources of its containers
	proc   string // where the kernel shows processes
}

// New returns a client for Docker at a socket; empty: /var/run/docker.sock. Nothing is asked yet, and
// nobody has to listen.
func New(socket string) (*Client, error) {
	return newClient("Docker", cmp.Or(socket, socketDocker), "")
}

// NewPodman returns a client for Podman's service at a socket; empty: /run/podman/podman.sock. Sources of
// its containers have [Podman] as their path.
func NewPodman(socket string) (*Client, error) {
	return newClient("Podman", cmp.Or(socket, socketPodman), Podman)
}

// Podman is the path in sources of containers of Podman. Those of Docker have none.
const Podman = "podman"

func newClient(name, socket, mark string) (*Client, error) {
	api, err := client.New(client.WithHost("unix://" + socket))
	if err != nil {
		return nil, fmt.Errorf("make a client of %s for %s: %w", name, socket, err)
	}
	return &Client{api: api, socket: socket, name: name, mark: mark, proc: "/proc"}, nil
}

// Name returns the name of the engine, for people.
func (c *Client) Name() string { return c.name }

// Source returns what is kept of a container: how it is found again.
func (c *Client) Source(id string) state.Source {
	return state.Source{Kind: state.SourceDocker, Docker: id, Path: c.mark}
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
	return Container{}, false, c.failed("ask "+c.name+" for container "+ref, err)
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
		return Container{}, c.failed(fmt.Sprintf("ask %s for container %.*s", c.name, shortID, id), err)
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
		return c.failed("ask "+c.name+" for container "+ref, refused)
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
		return fmt.Errorf("%s: no answer within %v; see whether %s ps answers: %w", what, answerMax, strings.ToLower(c.name), err)
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
		return c.failed("ask "+c.name+" at "+c.socket, err)
	}
	return nil
}
