package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"meshnet/api"
	"meshnet/docker"
)

// runFlags are run's own flags that have a value, and its switches.
var (
	runFlags    = []string{"-n", "--ip", "--alias", "--ifname", "--socket"}
	runSwitches = []string{"--no-default-route", "--json", "--help"}
)

func (t *terminal) runContainer() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "docker run, with the interface there before the first process starts",
		ArgsUsage: "[-n NETWORK[,…]] [--ip ADDRESS] [--alias NAME] [--ifname NAME] [--no-default-route] [--] DOCKER_RUN_ARGS",
		Description: "All of docker run's arguments follow meshnet's own: meshnet run -n web -it ubuntu bash.\n" +
			"NETWORK is default if it is not named. The attachment stays with the container over every restart.\n" +
			"Output, signals and exit code are docker's.",
		SkipFlagParsing: true, HideHelp: true,
		Action: func(c *cli.Context) error {
			own, rest, err := splitRun(c.Args().Slice())
			if err != nil {
				return usage(c, "%v", err)
			}
			if _, ok := own["--help"]; ok {
				return cli.ShowSubcommandHelp(c)
			}
			r, err := parseDockerRun(rest)
			if err != nil {
				return usage(c, "%v", err)
			}
			if r.network == "host" {
				return usage(c, "a container with --network host has the host's network; take that away")
			}
			err = t.dockerRun(c, own, r)
			if failed := (&failure{}); err == nil || errors.As(err, &failed) {
				return err
			}
			return &failure{What: "run " + r.image, Err: err, Code: exitOf(err)}
		},
	}
}

// splitRun takes run's own flags off the front of a command line. Values of a flag given more than once
// are kept in order.
func splitRun(args []string) (own map[string][]string, rest []string, err error) {
	own = map[string][]string{}
	for len(args) > 0 {
		name, value, joined := strings.Cut(args[0], "=")
		switch {
		case args[0] == "--":
			return own, args[1:], nil
		case slices.Contains(runSwitches, args[0]):
			own[args[0]] = nil
			args = args[1:]
			continue
		case !slices.Contains(runFlags, name):
			return own, args, nil
		case joined:
			args = args[1:]
		case len(args) == 1:
			return own, nil, fmt.Errorf("flag needs an argument: %s", name)
		default:
			value = args[1]
			args = args[2:]
		}
		if value == "" {
			return own, nil, fmt.Errorf("flag needs an argument: %s", name)
		}
		own[name] = append(own[name], value)
	}
	return own, args, nil
}

// dockerRun checks what is asked for and becomes docker run.
func (t *terminal) dockerRun(c *cli.Context, own map[string][]string, r dockerRun) error {
	networks := list(own["-n"])
	if len(networks) == 0 {
		networks = []string{networkDefault}
	}
	socket := c.String("socket")
	if s := own["--socket"]; len(s) > 0 {
		socket = s[len(s)-1]
	}
	if err := checkNetworks(c, api.NewClient(socket), networks, list(own["--ip"])); err != nil {
		return err
	}
	path, err := exec.LookPath("docker")
	if err != nil {
		return errors.New("docker is not installed; apt-get install docker.io")
	}
	self, err := self()
	if err != nil {
		return err
	}
	process, err := t.processOf(c.Context, path, r)
	if err != nil {
		return err
	}
	labels := [][2]string{
		{docker.LabelNetwork, strings.Join(networks, ",")}, {docker.LabelWaits, "yes"},
		{docker.LabelIP, strings.Join(list(own["--ip"]), ",")}, {docker.LabelAlias, strings.Join(list(own["--alias"]), ",")},
		{docker.LabelIfName, strings.Join(list(own["--ifname"]), ",")},
	}
	if _, no := own["--no-default-route"]; no {
		labels = append(labels, [2]string{docker.LabelDefaultRoute, "no"})
	}
	args := []string{"docker", "run", "--mount", "type=bind,src=" + self + ",dst=" + waiterPath + ",readonly", "--entrypoint", waiterPath}
	for _, l := range labels {
		if l[1] != "" {
			args = append(args, "--label", l[0]+"="+l[1])
		}
	}
	args = slices.Concat(args, r.flags, []string{"--", r.image, waiterVerb, strings.Join(networks, ",")}, process)
	return fmt.Errorf("start docker: %w", syscall.Exec(path, args, os.Environ()))
}

// list splits the values of a flag at commas.
func list(values []string) (out []string) {
	for _, v := range values {
		out = append(out, strings.FieldsFunc(v, func(r rune) bool { return r == ',' })...)
	}
	return out
}

// checkNetworks finds out, before there is a container, whether the daemon knows the networks and
// whether the addresses are theirs.
func checkNetworks(c *cli.Context, daemon *api.Client, networks, addrs []string) error {
	known, err := daemon.Networks(c.Context)
	if err != nil {
		return err
	}
	var subnets []netip.Prefix
	for _, name := range networks {
		i := slices.IndexFunc(known, func(n api.Network) bool { return n.Name == name || n.ID == name })
		if i < 0 {
			return fmt.Errorf("there is no network %s; see meshnet network ls", name)
		}
		if p, err := netip.ParsePrefix(known[i].Subnet); err == nil {
			subnets = append(subnets, p)
		}
	}
	for _, s := range addrs {
		a, err := netip.ParseAddr(s)
		if err != nil || !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return usage(c, "--ip %s: want an address of %s", s, strings.Join(networks, ", "))
		}
	}
	return nil
}

// self returns the path of this program, which containers get mounted. It has to run where there is no
// library.
func self() (string, error) {
	path, err := os.Executable()
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("read this program: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s is linked dynamically and would not start in every container; build it with CGO_ENABLED=0", path)
		}
	}
	if strings.ContainsAny(path, ",\"") {
		return "", fmt.Errorf("docker cannot mount %s, for its name; move it", path)
	}
	return path, nil
}

// processOf asks docker what the container would start with, and pulls the image where docker run
// would.
func (t *terminal) processOf(ctx context.Context, docker string, r dockerRun) ([]string, error) {
	var config *struct{ Entrypoint, Cmd []string }
	inspect := func() error {
		cmd := exec.CommandContext(ctx, docker, "image", "inspect", "--format", "{{json .Config}}", "--", r.image)
		var why bytes.Buffer
		cmd.Stderr = &why
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("ask docker for image %s: %s", r.image, oneLine(strings.TrimSpace(why.String())))
		}
		if err := json.Unmarshal(out, &config); err != nil {
			return fmt.Errorf("read what docker says of image %s: %w", r.image, err)
		}
		return nil
	}
	var err error
	if r.pull != "always" {
		err = inspect()
	}
	if r.pull == "always" || err != nil && r.pull != "never" {
		args := []string{"pull"}
		if r.platform != "" {
			args = append(args, "--platform", r.platform)
		}
		cmd := exec.CommandContext(ctx, docker, append(args, "--", r.image)...)
		cmd.Stdout, cmd.Stderr = t.err, t.err // as docker run does it
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("pull image %s: docker pull ended with %w", r.image, err)
		}
		err = inspect()
	}
	if err != nil {
		return nil, err
	}
	if config == nil {
		config = &struct{ Entrypoint, Cmd []string }{}
	}
	process := r.process(config.Entrypoint, config.Cmd)
	if len(process) == 0 || process[0] == "" {
		return nil, fmt.Errorf("image %s names no program to start; give one after it", r.image)
	}
	return process, nil
}
