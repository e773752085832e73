package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"meshnet/agent"
	"meshnet/api"
	"meshnet/docker"
	"meshnet/fastpath"
	"meshnet/mesh"
	"meshnet/netns"
	"meshnet/ovs"
	"meshnet/plan"
	"meshnet/state"
)

// bridge is the name of the bridge in Open vSwitch.
const bridge = "meshnet"

// host is what was found and chosen before anything is started.
type host struct {
	options
	log      *slog.Logger
	underlay plan.Underlay
	choice   plan.Choice
	key      []byte
	warnings []string
}

// daemon runs this node until ctx ends. Who waits for it to be ready is told, also of a failure.
func daemon(ctx context.Context, o options, logTo io.Writer) error {
	w := waiting{notifier(), newNotify()}
	err := o.settle(w.parent != nil)
	if err == nil {
		err = runWhereverItIs(ctx, o, newLog(o, logTo), w)
	}
	if other := (&errRunning{}); errors.As(err, &other) {
		w.tell(ready{Running: other.version})
		return err
	}
	if err != nil {
		w.tell(ready{Error: err.Error()})
	}
	return err
}

// waiting is who waits for the daemon to be ready.
type waiting struct {
	parent  *os.File // a meshnet up -d; nil: none
	service notify
}

// tell says it once to the parent, and to the service manager each time.
func (w waiting) tell(r ready) error {
	tell(w.parent, r)
	if r.Error != "" || r.Running != "" {
		return nil
	}
	return w.service.say(fmt.Sprintf("READY=1\nSTATUS=node %s (%s) on %s, transport %s", r.Name, r.ID, r.Address, r.Transport))
}

// errRunning: another daemon of this run directory answers.
type errRunning struct{ version string }

func (e *errRunning) Error() string { return "meshnet " + e.version + " runs already" }

// other waits until the daemon that has the run directory answers: several that are started at once
// are one.
func other(ctx context.Context, o options, locked error) error {
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	for {
		s, err := api.NewClient(o.socket).Version(ctx)
		if err == nil {
			return &errRunning{s.Version}
		}
		if !errors.Is(err, api.ErrNoDaemon) {
			return locked
		}
		select {
		case <-time.After(endPoll):
		case <-ctx.Done():
			return locked
		}
		if held, err := lock(o.runDir, syscall.LOCK_SH); err == nil {
			held.Close()
			return fmt.Errorf("another meshnet up failed at the same time; start it again")
		}
	}
}

// settle makes paths absolute. One that is detached then leaves the directory it was started in, so
// that nobody is kept from unmounting it.
func (o *options) settle(detached bool) error {
	for _, path := range []*string{&o.keyFile, &o.stateDir, &o.runDir, &o.socket} {
		if *path == "" {
			continue
		}
		whole, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("find %s: %w", *path, err)
		}
		*path = whole
	}
	if !detached {
		return nil
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("leave directory: %w", err)
	}
	return nil
}

func newLog(o options, to io.Writer) *slog.Logger {
	level := &slog.HandlerOptions{Level: o.level}
	if o.logJSON {
		return slog.New(slog.NewJSONHandler(to, level))
	}
	return slog.New(slog.NewTextHandler(to, level))
}

// runWhereverItIs runs this node, and again with another address when the host's changes. What is on
// the host stays meanwhile, as over any restart.
func runWhereverItIs(ctx context.Context, o options, log *slog.Logger, w waiting) error {
	if err := os.MkdirAll(o.runDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	held, err := lock(o.runDir, syscall.LOCK_EX)
	if errors.Is(err, errLocked) {
		return other(ctx, o, err)
	}
	if err != nil {
		return err
	}
	defer held.Close()
	var moves []string
	for {
		err := run(ctx, o, log, w, moves)
		m := &moved{}
		if !errors.As(err, &m) {
			return err
		}
		log.Info("underlay changed", "was", m.was, "is", m.is)
		moves = []string{m.Error()}
	}
}

// run runs this node until ctx ends or the underlay changes. warnings are of the run before.
func run(ctx context.Context, o options, log *slog.Logger, w waiting, warnings []string) error {
	h, err := look(ctx, o, log)
	if err != nil {
		return err
	}
	h.warnings = append(h.warnings, warnings...)
	node, err := h.newMesh()
	if err != nil {
		return err
	}
	bridge, err := ovs.New(ovs.Config{Choice: h.choice, RunDir: o.runDir, Bridge: bridge, OVSDB: o.ovsdb, Log: log})
	if err != nil {
		return err
	}
	links, err := netns.New(netns.Config{RunDir: o.runDir, Log: log})
	if err != nil {
		return err
	}
	fast := fastpath.New(log)
	dockerd, err := docker.New("")
	if err != nil {
		return err
	}
	podman, err := docker.NewPodman("")
	if err != nil {
		return err
	}
	doer, err := agent.New(agent.Config{
		Mesh: node, Links: links, Fast: fast, Switch: bridge, Sandboxes: &containers{dockerd, newOnDemand(podman)},
		Paths: bridge.Paths, Traffic: fast.Traffic,
		Choice: h.choice, Underlay: h.underlay, Version: version, Warnings: h.warnings, Log: log,
	})
	if err != nil {
		return err
	}
	g := newGroup(ctx)
	door, err := api.Listen(api.Config{
		Path: o.socket, Door: doer, Version: version, RunDir: o.runDir, StateDir: o.stateDir, OVSDB: o.ovsdb, Settings: h.inForce(node),
		Stop: func() { g.cancel(nil) }, Log: log,
	})
	if err != nil {
		return err
	}
	g.run("run mesh", node.Run)
	g.run("run switch", bridge.Run)
	g.run("run links", links.Run)
	g.run("run fast path", fast.Run)
	g.run("run agent", doer.Run)
	g.run("answer", door.Serve)
	g.run("watch the underlay", h.watch)
	g.run("start", func(ctx context.Context) error {
		h.announce(ctx, node, doer, w)
		return nil
	})
	return g.wait()
}

// look finds out what this host has and chooses what to use of it.
func look(ctx context.Context, o options, log *slog.Logger) (*host, error) {
	h := &host{options: o, log: log}
	interfaces, err := netns.Interfaces()
	if err != nil {
		return nil, err
	}
	if h.underlay, err = plan.ChooseUnderlay(o.wants, interfaces); err != nil {
		return nil, err
	}
	facts, err := ovs.Probe(ctx, ovs.ProbeConfig{RunDir: o.runDir, OVSDB: o.ovsdb, UnderlayDevice: h.underlay.Device})
	if err != nil {
		return nil, err
	}
	if h.choice, err = plan.Choose(o.wants, facts); err != nil {
		return nil, err
	}
	var fast plan.FastFacts
	if h.choice.Transport != state.OVSUserspace && o.wants.FastPath != "off" {
		fast = fastpath.Probe()
	}
	h.choice = h.choice.Fast(o.wants, fast)
	if !h.subnet.IsValid() {
		routes, err := netns.Routes()
		if err != nil {
			return nil, err
		}
		if h.subnet, err = chooseSubnet(routes); err != nil {
			return nil, err
		}
	}
	if h.name == "" {
		if h.name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("read the host's name: %w; give --name", err)
		}
	}
	if o.keyFile == "" {
		h.warn("no key: anybody on " + h.underlay.Device + " can join; give all nodes one --key-file")
		return h, nil
	}
	key, warning, err := readKey(o.keyFile)
	if err != nil {
		return nil, err
	}
	h.key = key
	if warning != "" {
		h.warn(warning)
	}
	return h, nil
}

func (h *host) warn(text string) {
	h.log.Warn(text)
	h.warnings = append(h.warnings, text)
}

// inForce returns the settings with what was found out of the host.
func (h *host) inForce(node *mesh.Node) []api.Setting {
	return found(h.settings, map[string]string{
		"id": node.Self().String(), "name": h.name, "iface": h.underlay.Device, "advertise": h.underlay.Addr.String(),
		"default-subnet": h.subnet.String(),
	})
}

func (h *host) newMesh() (*mesh.Node, error) {
	device, err := net.InterfaceByIndex(h.underlay.Index)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", h.underlay.Device, err)
	}
	return mesh.New(mesh.Config{
		StateDir: h.stateDir, Name: h.name, ID: h.id,
		Addr: h.underlay.Addr, Port: h.port, Join: h.join, MDNS: h.mdns, Interface: device,
		Cluster: h.cluster, Key: h.key,
		TunnelPort: h.tunnelPort, Encap: h.choice.Encap, Transport: h.choice.Transport, MTU: h.underlay.MTU, Version: version,
		DefaultSubnet: h.subnet, Avoid: h.avoid, Quarantine: h.quarantine, Log: h.log,
	})
}

// avoid returns what this host has routes to: no network chosen here may overlap it.
func (h *host) avoid() []netip.Prefix {
	routes, err := netns.Routes()
	if err != nil {
		h.log.Warn("routes of this host cannot be read; a network may overlap one", "err", err)
	}
	return routes
}

// announce waits until the node is ready, the default network included, and says so.
func (h *host) announce(ctx context.Context, node *mesh.Node, a *agent.Agent, w waiting) {
	for _, ready := range []<-chan struct{}{node.Ready(), a.Ready()} {
		select {
		case <-ready:
		case <-ctx.Done():
			return
		}
	}
	r := ready{
		ID: node.Self().String(), Name: h.name, Address: h.underlay.Addr.String(), Device: h.underlay.Device,
		Transport: h.choice.Transport.String(), PID: os.Getpid(), Warnings: slices.Concat(h.warnings, h.choice.Warnings),
	}
	h.log.Info("node is up", "node", r.ID, "name", r.Name, "addr", r.Address, "device", r.Device,
		"transport", r.Transport, "why", h.choice.Why, "fastpath", h.choice.FastPath)
	if err := w.tell(r); err != nil {
		h.log.Warn("nobody was told that the node is ready", "err", err)
	}
	<-ctx.Done()
	if err := w.service.say("STOPPING=1"); err != nil {
		h.log.Debug("nobody was told that the node stops", "err", err)
	}
}
