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
type Client struct{ api *client.Client }

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
	return &Client{api}, nil
}

// Find returns the id and the name of the container with a name, an id or an unambiguous beginning of
// an id, running or not; in this order, as Docker's own commands do. False if there is none.
// [ErrNoDocker] if Docker does not run.
func (c *Client) Find(ctx context.Context, ref string) (id, name string, found bool, err error) {
	if !plausible(ref) {
		return "", "", false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	got, err := c.api.ContainerInspect(ctx, ref, client.ContainerInspectOptions{})
	switch {
	case err == nil:
		return got.Container.ID, strings.TrimPrefix(got.Container.Name, "/"), true, nil
	case errdefs.IsNotFound(err):
		return "", "", false, nil
	case errdefs.IsInvalidArgument(err):
		return "", "", false, c.ambiguous(ctx, ref, err)
	}
	return "", "", false, c.failed("ask Docker for container "+ref, err)
}

// PID returns the first process of a container by its id. It does not run while pid is zero. hostNet
// says that it has the host's network, and sharedWith names the container whose network it uses. The
// error wraps [state.ErrNoContainer] if it was removed and [ErrNoDocker] if Docker does not run.
func (c *Client) PID(ctx context.Context, id string) (pid int, running, hostNet bool, sharedWith string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	got, err := c.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return 0, false, false, "", state.Refuse(state.ErrNoContainer, "container %.*s was removed", shortID, id)
	}
	if err != nil {
		return 0, false, false, "", c.failed(fmt.Sprintf("ask Docker for container %.*s", shortID, id), err)
	}
	if s := got.Container.State; s != nil && s.Running {
		pid = s.Pid // zero while it restarts
	}
	if h := got.Container.HostConfig; h != nil {
		hostNet, sharedWith = h.NetworkMode.IsHost(), h.NetworkMode.ConnectedContainer()
	}
	return pid, pid > 0, hostNet, sharedWith, nil
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
