package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
	"meshnet/netns"
)

// networkDefault is the network that attach means when none is named.
const networkDefault = "default"

// namespaceFlags name a container by its network namespace, in place of CONTAINER.
func namespaceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "pid", DefaultText: "none", Usage: "in place of CONTAINER: the network namespace of process `N`"},
		&cli.StringFlag{Name: "netns", Usage: "in place of CONTAINER: the network namespace at `PATH`"},
	}
}

func (t *terminal) attach() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "put a container on a network and print its address",
		ArgsUsage: "CONTAINER [NETWORK]",
		Description: "CONTAINER is a Docker name, a Docker id or the beginning of one, or a name under /run/netns.\n" +
			"NETWORK is default if it is not named. Twice is the same as once.",
		Flags: append(namespaceFlags(),
			&cli.StringFlag{Name: "ip", Usage: "`ADDRESS` wanted", DefaultText: "a free one"},
			&cli.StringFlag{Name: "mac", Usage: "`MAC` wanted", DefaultText: "from the address"},
			&cli.StringFlag{Name: "ifname", Usage: "`NAME` of the interface in the container", DefaultText: "the first free ethN"},
			&cli.StringSliceFlag{Name: "alias", Usage: "another `NAME` of the container"},
			&cli.BoolFlag{Name: "no-default-route", Usage: "leave the container's default route alone", DisableDefaultText: true},
			&cli.DurationFlag{Name: "wait", Value: 2 * time.Second, Usage: "`DURATION` for other nodes to reach the container"},
		),
		Action: verb(0, 2, words, t.attachOne),
	}
}

// container reads which container a command line means, with the open namespace that goes with it or
// nil, and the arguments that follow.
func container(c *cli.Context) (api.Ref, *os.File, []string, error) {
	args := c.Args().Slice()
	switch {
	case c.IsSet("pid") && c.IsSet("netns"):
		return api.Ref{}, nil, nil, usage(c, "--pid and --netns exclude each other")
	case c.IsSet("pid") && c.Int("pid") <= 0:
		return api.Ref{}, nil, nil, usage(c, "--pid %d: want a process id", c.Int("pid"))
	case c.IsSet("pid"):
		f, s, err := netns.FromPID(c.Int("pid"))
		if errors.Is(err, netns.ErrGone) {
			err = fmt.Errorf("there is no process %d; see ps", c.Int("pid"))
		}
		return api.Ref{Name: fmt.Sprintf("pid-%d", c.Int("pid")), PID: s.PID, Started: s.Started}, f, args, err
	case c.IsSet("netns"):
		f, s, err := netns.FromPath(c.String("netns"))
		if errors.Is(err, netns.ErrGone) {
			err = fmt.Errorf("there is nothing at %s; ip netns list shows what there is under /run/netns", c.String("netns"))
		}
		return api.Ref{Name: nameOf(s.Path), Path: s.Path}, f, args, err
	case len(args) == 0:
		return api.Ref{}, nil, nil, usage(c, "want %s", c.Command.ArgsUsage)
	}
	return api.Ref{Name: args[0]}, nil, args[1:], nil
}

// nameOf returns what people may call the container whose namespace is at a path: pid-7 for
// /proc/7/ns/net, else the last word.
func nameOf(path string) string {
	var pid int
	if n, err := fmt.Sscanf(path, "/proc/%d/", &pid); n == 1 && err == nil {
		return fmt.Sprintf("pid-%d", pid)
	}
	return filepath.Base(path)
}

func (t *terminal) attachOne(c *cli.Context) error {
	ref, ns, rest, err := container(c)
	if err != nil {
		return err
	}
	if ns != nil {
		defer ns.Close()
	}
	ask := api.AttachRequest{
		Container: ref, Network: networkDefault, IP: c.String("ip"), MAC: c.String("mac"), IfName: c.String("ifname"),
		Names: c.StringSlice("alias"), NoDefaultRoute: c.Bool("no-default-route"), Wait: c.Duration("wait").Seconds(),
	}
	switch len(rest) {
	case 0:
	case 1:
		ask.Network = rest[0]
	default:
		return usage(c, "want [NETWORK] after --pid or --netns")
	}
	what := "attach " + ref.Name + " to " + ask.Network
	got, err := client(c).Attach(c.Context, ask, ns)
	if err != nil {
		return askFailed(what, err)
	}
	return t.reached(c, what, got)
}

// reached prints the address of what was attached, and fails where other nodes did not say in time
// that they reach it.
func (t *terminal) reached(c *cli.Context, what string, got api.Attached) error {
	var late *failure
	if len(got.Waiting) > 0 {
		late = &failure{What: what, Code: exitWaiting, told: true, Err: fmt.Errorf(
			"it is done here, but %s did not say within %v that it is reached from there; see meshnet status",
			strings.Join(got.Waiting, ", "), c.Duration("wait"))}
		got.Error = late.Error()
	}
	if c.Bool("json") {
		t.json(got)
	} else {
		address, _, _ := strings.Cut(got.Address, "/")
		fmt.Fprintln(t.out, address)
	}
	if late != nil {
		return late
	}
	return nil
}

// askFailed is a failure whose what is known only after the arguments were read.
func askFailed(what string, err error) error {
	return &failure{What: what, Err: err, Code: exitOf(err)}
}

func (t *terminal) detach() *cli.Command {
	return &cli.Command{
		Name: "detach", Usage: "take a container off a network, or off all", ArgsUsage: "CONTAINER [NETWORK]",
		Description: "The container need not run any more. Twice is the same as once.",
		Flags:       namespaceFlags(),
		Action:      verb(0, 2, words, t.detachOne),
	}
}

func (t *terminal) detachOne(c *cli.Context) error {
	ref, ns, rest, err := container(c)
	if err != nil {
		return err
	}
	if ns != nil {
		defer ns.Close()
	}
	ask := api.DetachRequest{Container: ref}
	what := "detach " + ref.Name
	switch len(rest) {
	case 0:
	case 1:
		ask.Network = rest[0]
		what += " from " + ask.Network
	default:
		return usage(c, "want [NETWORK] after --pid or --netns")
	}
	got, err := client(c).Detach(c.Context, ask, ns)
	if err != nil {
		return askFailed(what, err)
	}
	if c.Bool("json") {
		t.json(got)
		return nil
	}
	for _, a := range got.Detached {
		fmt.Fprintf(t.out, "%s is off %s\n", a.Container, a.Network)
	}
	if len(got.Detached) == 0 {
		fmt.Fprintf(t.out, "%s was not attached\n", ref.Name)
	}
	return nil
}
