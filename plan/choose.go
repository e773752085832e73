package plan

import (
	"errors"
	"fmt"
	"net/netip"

	"meshnet/state"
)

// Wants is what a person asked for at up. Zero values leave the choice to us.
type Wants struct {
	OVS       string // auto, host or private
	Datapath  string // auto, system or netdev
	FastPath  string // auto or off
	Encap     state.Encap
	Iface     string
	Advertise netip.Addr
}

// OVSFacts is what the host has in the way of Open vSwitch, as package ovs reads it.
type OVSFacts struct {
	Installed      bool     // ovs-vswitchd, ovsdb-server and ovsdb-tool are on the host
	Module         bool     // generic netlink family ovs_datapath, after a try to load it
	NoTun          bool     // no /dev/net/tun, after a try to load it; bridges on the userspace datapath are such devices
	HostRunning    bool     // the host's instance answers
	HostNetdev     bool     // it has a bridge, other than ours, with datapath_type netdev
	HostTSO        bool     // it runs with userspace TSO
	HostDeaf       bool     // it has a bridge on the kernel's datapath, and no thread that takes packets from there
	UnderlayOn     string   // the bridge of the host's instance that has the underlay address, or empty
	UnderlayNetdev bool     // that bridge is datapath_type netdev
	UnderlayNICs   []string // its ports that are devices of the kernel, sorted
	PrivateRunning bool     // an instance of ours answers
}

// FastFacts is what the kernel can of what the fast path needs, as package fastpath finds out.
type FastFacts struct {
	Can  bool
	Peer bool   // it has bpf_redirect_peer (Linux 5.10)
	Ends bool   // a program may name both ends of a tunnel of the kernel's datapath (Linux 6.0)
	Lack string // what is missing; and what to do. Empty if it can
}

// Choice is the switch and the transport that a host uses, and why.
type Choice struct {
	Private   bool   // an instance of our own under the run directory, else the host's
	Start     bool   // the host's instance has to be started first
	Stop      bool   // a private instance, left from before, has to be stopped first
	Datapath  string // system or netdev
	Transport state.Transport
	Encap     state.Encap
	NICs      []string // devices of the kernel that are ports of the userspace bridge with the underlay address; B
	TSO       bool
	Why       string   // one clause, for status
	FastPath  bool     // eBPF in front of the switch; transports A and C. Set by [Choice.Fast]
	FastWhy   string   // one clause, for status
	Warnings  []string // for status
}

// The words of --ovs, --datapath and --fastpath.
const (
	off     = "off"
	auto    = "auto"
	host    = "host"
	private = "private"
	system  = "system"
	netdev  = "netdev"
)

// Choose picks the switch and the transport:
//
//   - The underlay address is on a bridge of the host's instance: that instance, because only it can
//     send from there. On the kernel's datapath tunnel ports of the kernel ([state.OVSKernel]), on
//     the userspace datapath those of vswitchd ([state.OVSUserspace]).
//   - The kernel has the module: the host's instance and the kernel's datapath.
//   - Otherwise an instance of our own on the userspace datapath, with kernel VXLAN devices
//     ([state.KernelVXLAN]). It can be started with userspace TSO, without which they are slow, and
//     TSO is for a whole process. Beside a host's instance with a userspace bridge it may not run
//     (two processes, one name of the datapath); then the host's instance does it.
//
// Wants overrides each of these where it can be done. The error is one line that says what is
// missing.
func Choose(w Wants, f OVSFacts) (Choice, error) {
	c, err := choose(w, f)
	if err != nil {
		return Choice{}, fmt.Errorf("choose a switch: %w", err)
	}
	return c, nil
}

// Fast returns the choice with a fast path or without: on transports A, by VXLAN, and C it has one where the
// kernel can, unless it is not wanted. B has none: what vswitchd encapsulates itself leaves by vswitchd.
func (c Choice) Fast(w Wants, f FastFacts) Choice {
	c.FastPath = false
	switch {
	case w.FastPath == off:
		c.FastWhy = "--fastpath off"
	case c.Transport == state.OVSUserspace:
		c.FastWhy = "the tunnels of transport " + c.Transport.String() + " end in ovs-vswitchd"
	case c.Encap != state.VXLAN:
		c.FastWhy = "it is for VXLAN; the kernel's datapath carries packets"
	case !f.Can:
		c.FastWhy = f.Lack
	case c.Transport == state.OVSKernel && !f.Ends:
		c.FastWhy = "it takes Linux 6.0 beside the kernel's datapath, which carries packets"
	case f.Peer:
		c.FastPath, c.FastWhy = true, "the kernel has clsact, eBPF and bpf_redirect_peer"
	default:
		c.FastPath, c.FastWhy = true, "the kernel has clsact and eBPF; bpf_redirect stands in for bpf_redirect_peer"
	}
	return c
}

func choose(w Wants, f OVSFacts) (Choice, error) {
	if err := checkWords(w); err != nil {
		return Choice{}, err
	}
	if !f.Installed {
		return Choice{}, errors.New("no Open vSwitch is installed; apt-get install openvswitch-switch")
	}
	datapath, why, err := chooseDatapath(w, f)
	if err != nil {
		return Choice{}, err
	}
	c := Choice{Datapath: datapath, Why: why, Encap: w.Encap}
	onBridge := f.UnderlayOn != "" && f.UnderlayNetdev
	shared := f.HostNetdev || onBridge
	switch {
	case datapath == system:
		c.Transport = state.OVSKernel
	case w.OVS == private && shared:
		return Choice{}, errors.New("--ovs private: the host's Open vSwitch has a bridge on the userspace datapath, which two instances cannot share; use --ovs host, or remove that bridge")
	case onBridge:
		c.Transport, c.NICs = state.OVSUserspace, f.UnderlayNICs
	default:
		c.Transport = state.KernelVXLAN
		c.Private = w.OVS != host && !shared
	}
	if datapath == netdev && f.NoTun {
		return Choice{}, fmt.Errorf("the userspace datapath (%s) needs /dev/net/tun, and the kernel has none; load the module tun, or give this container /dev/net/tun", why)
	}
	if c.Transport == state.KernelVXLAN && w.Encap == state.Geneve {
		return Choice{}, fmt.Errorf("--encap geneve: transport %s carries VXLAN only (%s); use --encap vxlan, or load the kernel module openvswitch", c.Transport, why)
	}
	c.Start = !c.Private && !f.HostRunning
	c.Stop = !c.Private && f.PrivateRunning
	if w.OVS != host && shared && c.Transport == state.KernelVXLAN {
		c.Why += ", and the host's Open vSwitch has a userspace bridge already"
	}
	c.settleTSO(f)
	return c, nil
}

func checkWords(w Wants) error {
	switch w.OVS {
	case "", auto, host, private:
	default:
		return fmt.Errorf("--ovs %q: want auto, host or private", w.OVS)
	}
	switch w.Datapath {
	case "", auto, system, netdev:
	default:
		return fmt.Errorf("--datapath %q: want auto, system or netdev", w.Datapath)
	}
	switch w.FastPath {
	case "", auto, off:
	default:
		return fmt.Errorf("--fastpath %q: want auto or off", w.FastPath)
	}
	return nil
}

// chooseDatapath returns system or netdev, and why.
func chooseDatapath(w Wants, f OVSFacts) (datapath, why string, err error) {
	switch {
	case w.Datapath == system && w.OVS == private:
		return "", "", errors.New("--ovs private --datapath system: the kernel's datapath belongs to the host's instance; use --ovs host, or --datapath netdev")
	case w.Datapath == system && !f.Module:
		return "", "", errors.New("--datapath system: the kernel has no module openvswitch; install a kernel that has it, or leave --datapath out")
	case w.Datapath == system:
		return system, "--datapath system", nil
	case w.Datapath == netdev:
		return netdev, "--datapath netdev", nil
	case w.OVS == private:
		return netdev, "--ovs private", nil
	case f.UnderlayOn != "" && f.UnderlayNetdev:
		return netdev, "the underlay address is on the userspace bridge " + f.UnderlayOn, nil
	case f.Module && f.UnderlayOn != "":
		return system, "the underlay address is on the kernel bridge " + f.UnderlayOn, nil
	case f.Module:
		return system, "the kernel has the module openvswitch", nil
	}
	return netdev, "the kernel has no module openvswitch", nil
}

// settleTSO says whether vswitchd runs with userspace TSO, and warns where that does harm.
func (c *Choice) settleTSO(f OVSFacts) {
	switch {
	case c.Private:
		c.TSO = true
	case c.Datapath == netdev:
		c.TSO = f.HostTSO
	}
	switch {
	case c.Transport == state.KernelVXLAN && !c.TSO:
		c.Warnings = append(c.Warnings, "the host's Open vSwitch runs without userspace TSO: container offloads are off and TCP is several times slower; set other_config:userspace-tso-enable=true in its database and restart it")
	case c.Transport == state.OVSUserspace && c.TSO:
		c.Warnings = append(c.Warnings, "the host's Open vSwitch runs with userspace TSO, which its own tunnels cannot segment: container offloads are off")
	}
}
