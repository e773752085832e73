package mesh

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"meshnet/state"
)

// Config is what a node is made of.
type Config struct {
	// StateDir is a directory of this node alone; made if it is not there. Required.
	StateDir string
	// Name is what people call this host: at most 64 bytes. Default: the node id.
	Name string
	// ID overrides the random id: to take up again the id of a node whose disk was lost. It then
	// stays with the state directory. Default: what the directory holds, else a random one.
	ID state.NodeID
	// Addr is the underlay address for gossip and tunnels. Required.
	Addr netip.Addr
	// Port is where gossip listens, UDP and TCP. Default: 17946.
	Port uint16
	// Join names nodes to begin with, as host or host:port. They are tried for as long as the node
	// runs.
	Join []string
	// MDNS looks for nodes on the link of Interface.
	MDNS bool
	// Interface has Addr. Required with MDNS.
	Interface *net.Interface
	// Cluster keeps clusters on one link apart; nodes join only with an equal one.
	Cluster string
	// Key encrypts gossip: 16, 24 or 32 bytes. Empty: everybody who reaches the port can join.
	Key []byte

	// TunnelPort, Encap, Transport, MTU and Version go into this node's record.
	TunnelPort uint16 // UDP
	Encap      state.Encap
	Transport  state.Transport
	MTU        uint32 // of the underlay, bytes
	Version    string // of the program

	// DefaultSubnet is that of the network `default`, which is made where no member knows one.
	// Invalid: none is made, and Ready waits for another node to make it.
	DefaultSubnet netip.Prefix
	// Avoid returns the prefixes that this host reaches by other ways: no network chosen here
	// overlaps them. Optional. Called from one goroutine; it should not take long.
	Avoid func() []netip.Prefix

	// MachineID is the path of the machine's id. Default: /etc/machine-id.
	MachineID string
	// BootID is the path of the id of this run of the kernel. Default:
	// /proc/sys/kernel/random/boot_id.
	BootID string
	// Quarantine is how long the addresses of a node that was given up rest before they are inherited.
	// 0: 10 minutes.
	Quarantine time.Duration
	// Log is required.
	Log *slog.Logger
	// Packets replaces the sockets, for tests. The node shuts it down.
	Packets memberlist.Transport

	openLog opener // the disk, for tests
}

const portDefault = 17946

// discoveryWindow is how long at most a node looks for others before it makes what is made once.
const discoveryWindow = 3 * time.Second

// check returns the configuration with its defaults.
func (c Config) check() (Config, error) {
	switch {
	case c.StateDir == "":
		return c, errors.New("configure mesh: no state directory")
	case c.Log == nil:
		return c, errors.New("configure mesh: no log")
	case !c.Addr.IsValid() || c.Addr.IsUnspecified() || c.Addr.Zone() != "":
		return c, fmt.Errorf("configure mesh: underlay address %s cannot be dialled; choose one with --advertise", c.Addr)
	case c.MDNS && c.Interface == nil:
		return c, errors.New("configure mesh: mDNS needs an interface; choose one with --iface or give --no-mdns")
	case len(c.Name) > nameMax || strings.ContainsAny(c.Name, "\n\t"):
		return c, fmt.Errorf("configure mesh: the name %.70q is too long or has line breaks; use at most %d bytes", c.Name, nameMax)
	}
	switch len(c.Key) {
	case 0, 16, 24, 32:
	default:
		return c, fmt.Errorf("configure mesh: the key has %d bytes; use 16, 24 or 32", len(c.Key))
	}
	for _, s := range c.Join {
		if s == "" || strings.ContainsAny(s, "/ ,") {
			return c, fmt.Errorf("configure mesh: %q is not an address to join; use HOST or HOST:PORT", s)
		}
	}
	c.Addr = c.Addr.Unmap()
	if c.Port == 0 {
		c.Port = portDefault
	}
	if c.MachineID == "" {
		c.MachineID = "/etc/machine-id"
	}
	if c.openLog == nil {
		c.openLog = openDisk
	}
	if c.BootID == "" {
		c.BootID = "/proc/sys/kernel/random/boot_id"
	}
	return c, nil
}
