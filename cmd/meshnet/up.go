package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
	"meshnet/crdt"
	"meshnet/plan"
	"meshnet/state"
)

const (
	runDirDefault   = "/run/meshnet"
	stateDirDefault = "/var/lib/meshnet"
	socketDefault   = runDirDefault + "/meshnet.sock"
)

// defaultSubnets are tried in order for the default network: the first that no route of this host
// overlaps.
var defaultSubnets = [...]string{"10.1.0.0/16", "10.101.0.0/16", "10.201.0.0/16", "172.29.0.0/16"}

// options is what up was asked for, checked as far as words go.
type options struct {
	wants      plan.Wants
	name       string
	id         state.NodeID // zero: minted
	port       uint16       // of gossip
	join       []string
	mdns       bool
	cluster    string
	keyFile    string
	tunnelPort uint16
	subnet     netip.Prefix // of the default network; invalid: the first that fits
	stateDir   string
	runDir     string
	ovsdb      string
	socket     string
	quarantine time.Duration
	level      slog.Level
	logJSON    bool
	settings   []api.Setting // the same, for config show
}

func (t *terminal) up() *cli.Command {
	return &cli.Command{
		Name: "up", Usage: "run this node",
		Description: "Runs in the foreground; with -d it returns when the node is ready. A second up says so and does nothing.",
		Flags: settleable(append([]cli.Flag{
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when the node is ready", DisableDefaultText: true},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of this node", DefaultText: "the host's name"},
			&cli.StringFlag{Name: "id", Usage: "`ID` of this node, 16 hexadecimal digits", DefaultText: "minted at the first start"},
			&cli.StringFlag{Name: "iface", Usage: "`INTERFACE` for gossip and tunnels", DefaultText: "of the default route"},
			&cli.StringFlag{Name: "advertise", Usage: "`ADDRESS` of this host for gossip and tunnels", DefaultText: "of the interface"},
			&cli.UintFlag{Name: "port", Usage: "UDP and TCP `PORT` of gossip", Value: 17946},
			&cli.StringSliceFlag{Name: "join", Usage: "`HOST[:PORT],…` to look for members besides mDNS"},
			&cli.BoolFlag{Name: "no-mdns", Usage: "do not look for members by mDNS", DisableDefaultText: true},
			&cli.StringFlag{Name: "cluster", Usage: "`NAME`: only nodes of one name form a mesh", Value: "default"},
			&cli.StringFlag{Name: "key-file", Usage: "`FILE` with the cluster's key: 16, 24 or 32 bytes, raw, hex or base64"},
			&cli.StringFlag{Name: "ovs", Usage: "`WHICH` Open vSwitch: auto, host or private", Value: "auto"},
			&cli.StringFlag{Name: "datapath", Usage: "`TYPE`: auto, system or netdev", Value: "auto"},
			fastPathFlag(),
			&cli.StringFlag{Name: "encap", Usage: "`TYPE`: vxlan or geneve", Value: "vxlan"},
			&cli.UintFlag{Name: "tunnel-port", Usage: "UDP `PORT` of tunnels, equal on all nodes", Value: plan.DefaultTunnelPort},
			&cli.StringFlag{Name: "default-subnet", Usage: "`PREFIX` of the network default", DefaultText: "10.1.0.0/16, or another where a route overlaps it"},
			&cli.DurationFlag{Name: "quarantine", Usage: "`DURATION` for which the addresses of a removed node rest", Value: 10 * time.Minute, Hidden: true},
			&cli.StringFlag{Name: "log-level", Usage: "`LEVEL`: debug, info, warn or error", Value: "info"},
			&cli.StringFlag{Name: "log-format", Usage: "`FORMAT`: text or json", Value: "text"},
		}, dirFlags()...)),
		Action: verb(0, 0, words, t.start),
	}
}

func fastPathFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "fastpath", Value: "auto",
		Usage: "`WHEN` known packets pass Open vSwitch by, in the kernel: auto, where that can be, or off",
	}
}

// dirFlags say where a daemon keeps what it keeps.
func dirFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "state-dir", Usage: "`PATH` of what survives a reboot", Value: stateDirDefault},
		&cli.StringFlag{Name: "run-dir", Usage: "`PATH` of sockets, the log and a private Open vSwitch", Value: runDirDefault},
		configFlag(),
		&cli.StringFlag{Name: "ovsdb", Usage: "`ADDRESS` of the host's Open vSwitch database, like unix:/run/openvswitch/db.sock"},
	}
}

// start is the action of up.
func (t *terminal) start(c *cli.Context) error {
	settings, err := t.configure(c)
	if err != nil {
		return err
	}
	o, err := readOptions(c)
	if err != nil {
		return err
	}
	o.settings = settings
	if s, err := api.NewClient(o.socket).Version(c.Context); err == nil {
		tell(notifier(), ready{Running: s.Version})
		return t.said(c, "meshnet "+s.Version+" runs already")
	} else if !errors.Is(err, api.ErrNoDaemon) {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it changes this host's network, which only root may; use sudo meshnet up")
	}
	if c.Bool("detach") && os.Getenv(readyEnv) == "" { // else it is the daemon of one that was
		return t.detached(c, o)
	}
	err = daemon(c.Context, o, t.err)
	if other := (&errRunning{}); errors.As(err, &other) {
		return t.said(c, other.Error())
	}
	return err
}

// said prints a message, for people or as JSON.
func (t *terminal) said(c *cli.Context, message string) error {
	if c.Bool("json") {
		t.json(struct {
			Message string `json:"message"`
		}{message})
		return nil
	}
	fmt.Fprintln(t.out, message)
	return nil
}

// socketOf returns the socket: that of the flag or the environment, else the one in the run
// directory.
func socketOf(c *cli.Context) string {
	if !c.IsSet("socket") && c.IsSet("run-dir") {
		return filepath.Join(c.String("run-dir"), filepath.Base(socketDefault))
	}
	return c.String("socket")
}

func readOptions(c *cli.Context) (o options, err error) {
	o = options{
		wants:   plan.Wants{OVS: c.String("ovs"), Datapath: c.String("datapath"), FastPath: c.String("fastpath"), Iface: c.String("iface")},
		name:    c.String("name"),
		join:    c.StringSlice("join"),
		mdns:    !c.Bool("no-mdns"),
		cluster: c.String("cluster"),

		quarantine: c.Duration("quarantine"),

		keyFile:  c.String("key-file"),
		stateDir: c.String("state-dir"),
		runDir:   c.String("run-dir"),
		ovsdb:    c.String("ovsdb"),
		socket:   socketOf(c),
		logJSON:  c.String("log-format") == "json",
	}
	for _, f := range []struct {
		name  string
		words []string
	}{
		{"ovs", []string{"auto", "host", "private"}},
		{"datapath", []string{"auto", "system", "netdev"}},
		{"fastpath", []string{"auto", "off"}},
		{"encap", []string{"vxlan", "geneve"}},
		{"log-level", []string{"debug", "info", "warn", "error"}},
		{"log-format", []string{"text", "json"}},
	} {
		if v := c.String(f.name); !slices.Contains(f.words, v) {
			return o, usage(c, "--%s %q: want %s", f.name, v, strings.Join(f.words, ", "))
		}
	}
	if c.String("encap") == "geneve" {
		o.wants.Encap = state.Geneve
	}
	if err := o.level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return o, usage(c, "--log-level: %v", err)
	}
	if o.port, err = port(c, "port"); err != nil {
		return o, err
	}
	if o.tunnelPort, err = port(c, "tunnel-port"); err != nil {
		return o, err
	}
	if s := c.String("id"); s != "" {
		if o.id, err = crdt.ParseNode(s); err != nil || o.id == 0 {
			return o, usage(c, "--id %q: want 16 hexadecimal digits, not all zero", s)
		}
	}
	if s := c.String("advertise"); s != "" {
		if o.wants.Advertise, err = netip.ParseAddr(s); err != nil {
			return o, usage(c, "--advertise %q: want an address of this host", s)
		}
	}
	if s := c.String("default-subnet"); s != "" {
		o.subnet, err = netip.ParsePrefix(s)
		if err != nil || !o.subnet.Addr().Is4() || o.subnet != o.subnet.Masked() {
			return o, usage(c, "--default-subnet %q: want an IPv4 prefix like 10.1.0.0/16", s)
		}
	}
	return o, nil
}

func port(c *cli.Context, name string) (uint16, error) {
	n := c.Uint(name)
	if n == 0 || n > 65535 {
		return 0, usage(c, "--%s %d: want a port, 1 to 65535", name, n)
	}
	return uint16(n), nil
}

// chooseSubnet returns the subnet of the default network: the first that no route overlaps.
func chooseSubnet(routes []netip.Prefix) (netip.Prefix, error) {
	for _, s := range defaultSubnets {
		p := netip.MustParsePrefix(s)
		if !slices.ContainsFunc(routes, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose the default network: routes of this host overlap %s; give --default-subnet",
		strings.Join(defaultSubnets[:], ", "))
}

// readKey reads a cluster key: 16, 24 or 32 bytes, as they are, in hexadecimal or in base64. warning
// says that others may read it.
func readKey(path string) (key []byte, warning string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", fmt.Errorf("read key: %w; give another --key-file", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return nil, "", fmt.Errorf("read key: %w; give another --key-file", err)
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		warning = fmt.Sprintf("key file %s may be read by others than root; chmod 600 it", path)
	}
	words := strings.TrimSpace(string(b))
	forms := [][]byte{b, []byte(words)}
	if k, err := base64.StdEncoding.DecodeString(words); err == nil {
		forms = append([][]byte{k}, forms...)
	}
	if k, err := hex.DecodeString(words); err == nil {
		forms = append([][]byte{k}, forms...)
	}
	for _, k := range forms {
		if n := len(k); n == 16 || n == 24 || n == 32 {
			return k, warning, nil
		}
	}
	return nil, "", fmt.Errorf("read key %s: it holds no 16, 24 or 32 bytes, raw, hex or base64; make one with: "+
		"head -c 32 /dev/urandom | base64", path)
}

// group runs functions until all have returned. The first error ends the others.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	ended  chan error
	n      int
}

func newGroup(ctx context.Context) *group {
	ctx, cancel := context.WithCancelCause(ctx)
	return &group{ctx: ctx, cancel: cancel, ended: make(chan error)}
}

// run starts one more. One that returns before the others are told to is an error too.
func (g *group) run(what string, f func(context.Context) error) {
	g.n++
	go func() {
		err := f(g.ctx)
		if err == nil && g.ctx.Err() == nil {
			err = errors.New("it ended by itself")
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
		g.ended <- err
	}()
}

// wait returns when all have ended, with the first error.
func (g *group) wait() (first error) {
	for ; g.n > 0; g.n-- {
		if err := <-g.ended; err != nil && first == nil && !errors.Is(err, context.Canceled) {
			first = err
			g.cancel(err)
		}
	}
	g.cancel(nil)
	return first
}

// gone reports whether an error says that a file is not there.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
