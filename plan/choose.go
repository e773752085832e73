package plan

import (
	"net/netip"

	"meshnet/state"
)

// Wants is what a person asked for at up. Zero values leave the choice to us.
type Wants struct {
	OVS       string // auto, host or private
	Datapath  string // auto, system or netdev
	Encap     state.Encap
	Iface     string
	Advertise netip.Addr
}

// OVSFacts is what the host has in the way of Open vSwitch, as package ovs reads it.
type OVSFacts struct {
	Installed      bool   // ovs-vswitchd, ovsdb-server and ovsdb-tool are on the host
	Module         bool   // generic netlink family ovs_datapath, after a try to load it
	HostRunning    bool   // the host's instance answers
	HostNetdev     bool   // it has a bridge with datapath_type netdev
	HostTSO        bool   // it runs with userspace TSO
	UnderlayOn     string // the bridge of the host's instance that has the underlay address, or empty
	UnderlayNetdev bool   // that bridge is datapath_type netdev
	PrivateRunning bool   // an instance of ours answers
}

// Choice is the switch and the transport that a host uses, and why.
type Choice struct {
	Private   bool   // an instance of our own under the run directory, else the host's
	Start     bool   // the host's instance has to be started first
	Datapath  string // system or netdev
	Transport state.Transport
	Encap     state.Encap
	TSO       bool
	Why       string   // one clause, for status
	Warnings  []string // for status
}

// Choose picks the switch and the transport (design of the host, docs/decisions). The error is one
// line that says what is missing.
func Choose(w Wants, f OVSFacts) (Choice, error) { panic("todo") }

// LinkFacts is an interface of the host, as package netns reads it.
type LinkFacts struct {
	Name    string
	Index   int
	Kind    string // as ip -d link shows: veth, bridge, …; empty for hardware
	MTU     uint32
	Up      bool
	Ours    bool // bears our mark
	Docker  bool // docker0, or a bridge or veth that Docker made
	Addrs   []netip.Prefix
	Default bool // a default route leaves by it
}

// ChooseUnderlay picks the interface that carries gossip and tunnels: the one with the advertised
// address or the given name, else the default route's, else the only one up with a global address
// that neither meshnet nor Docker made. The error lists what there is.
func ChooseUnderlay(w Wants, links []LinkFacts) (Underlay, error) { panic("todo") }
