package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"meshnet/state"
)

// Level is how bad a finding is.
type Level uint8

const (
	// Fit: as it should be.
	Fit Level = iota
	// Doubt: it works, but slower or with less than it could.
	Doubt
	// Fault: it does not work.
	Fault
)

// String returns ok, warning or fault.
func (l Level) String() string { return [...]string{"ok", "warning", "fault", ""}[l&3] }

// Finding is one thing that was looked at on a host.
type Finding struct {
	Check string // ovs, datapath, fastpath, ports, underlay, mtu, multicast, offload, firewall, overlap, daemon or mesh
	Level Level
	What  string
	Do    string // what a person can do; empty: nothing needs to be done
}

// Examination is what is known of a host that is to be judged. Zero values of what only a daemon knows
// mean that none answers.
type Examination struct {
	Wants     Wants
	OVS       OVSFacts
	Fast      FastFacts
	Links     []LinkFacts
	Routes    []netip.Prefix    // of this host, ours left out
	Multicast map[string]bool   // interfaces that can do multicast, by name
	NFT       bool              // nftables answers
	Droppers  []string          // chains of others that drop forwarded packets, and that no rule of ours passes
	Ports     map[string]string // ports of our bridge that ovs-vswitchd could not make, by name, and why

	Daemon   bool
	Pending  []string
	Warnings []string
	Disagree []string // as of [Warnings]
	Alive    int
	Known    int
	Networks map[string]netip.Prefix // subnets by name
}

// Examine judges a host. The findings are in a fixed order.
func Examine(e Examination) []Finding {
	x := examiner{Examination: e}
	x.ovs()
	x.underlay()
	x.firewall()
	x.overlaps()
	x.daemon()
	return x.found
}

type examiner struct {
	Examination
	choice Choice
	chosen bool
	found  []Finding
}

func (x *examiner) say(check string, l Level, do, format string, args ...any) {
	x.found = append(x.found, Finding{check, l, fmt.Sprintf(format, args...), do})
}

func (x *examiner) ovs() {
	c, err := Choose(x.Wants, x.OVS)
	if err != nil {
		why, do, _ := strings.Cut(err.Error(), "; ")
		x.say("ovs", Fault, do, "%s", why)
		return
	}
	x.choice, x.chosen = c, true
	which := "the host's Open vSwitch"
	if c.Private {
		which = "an Open vSwitch of its own"
	}
	x.say("ovs", Fit, "", "%s", which)
	x.say("datapath", Fit, "", "%s, transport %s: %s", c.Datapath, c.Transport, c.Why)
	if x.OVS.HostDeaf && c.Transport == state.OVSKernel {
		x.say("datapath", Fault, "if it lasts longer than a minute: systemctl restart openvswitch-switch",
			"ovs-vswitchd takes no packet from the kernel: started in the first ten seconds of a boot, 3.1 counts no processors until its ports change")
	}
	x.fastPath(c.Fast(x.Wants, x.Fast))
	if len(c.Warnings) == 0 {
		x.say("offload", Fit, "", "container offloads are as the transport needs them")
	}
	for _, w := range c.Warnings {
		what, do, _ := strings.Cut(w, "; ")
		x.say("offload", Doubt, do, "%s", what)
	}
	names := make([]string, 0, len(x.Ports))
	for name := range x.Ports {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		x.say("ports", Fault, "see the log of ovs-vswitchd; the daemon tries again", "port %s: %s", name, x.Ports[name])
	}
	if len(names) == 0 {
		x.say("ports", Fit, "", "ovs-vswitchd has no port with an error")
	}
}

// fastPath judges the fast path. That it is off is in doubt only where it could be on.
func (x *examiner) fastPath(c Choice) {
	switch {
	case c.FastPath:
		x.say("fastpath", Fit, "", "on: %s", c.FastWhy)
	case c.Transport == state.KernelVXLAN && x.Wants.FastPath != off: // on A packets stay in the kernel without
		what, do, _ := strings.Cut(c.FastWhy, "; ")
		x.say("fastpath", Doubt, do, "off: %s", what)
	default:
		x.say("fastpath", Fit, "", "off: %s", c.FastWhy)
	}
}

func (x *examiner) underlay() {
	u, err := ChooseUnderlay(x.Wants, x.Links)
	if err != nil {
		why, do, _ := strings.Cut(err.Error(), "; ")
		x.say("underlay", Fault, do, "%s", why)
		return
	}
	x.say("underlay", Fit, "", "%s, address %s", u.Device, u.Addr)
	overhead := uint32(overhead4)
	if u.Addr.Is6() {
		overhead = overhead6
	}
	if u.MTU < mtuMin+overhead {
		x.say("mtu", Fault, fmt.Sprintf("ip link set %s mtu 1500", u.Device),
			"%s has an MTU of %d bytes, less than the %d that are needed", u.Device, u.MTU, mtuMin+overhead)
	} else {
		x.say("mtu", Fit, "", "%s has %d bytes, so containers may have %d", u.Device, u.MTU, u.MTU-overhead)
	}
	if x.Multicast[u.Device] {
		x.say("multicast", Fit, "", "%s can do multicast, so nodes are found by mDNS", u.Device)
	} else {
		x.say("multicast", Doubt, "name a member: meshnet up --join HOST", "%s cannot do multicast, so no node is found by mDNS", u.Device)
	}
}

func (x *examiner) firewall() {
	switch {
	case !x.NFT && x.chosen && x.choice.Transport == state.KernelVXLAN:
		x.say("firewall", Fault, "load the kernel module nf_tables", "no nftables: anybody could send into the tunnels")
	case !x.NFT:
		x.say("firewall", Doubt, "load the kernel module nf_tables", "no nftables: containers cannot reach the world")
	case len(x.Droppers) == 0:
		x.say("firewall", Fit, "", "nothing drops what containers send to the world")
	}
	for _, c := range x.Droppers {
		x.say("firewall", Doubt, "let pass what comes from and goes to mesh-gw there", "chain %s may drop what containers send to the world", c)
	}
}

func (x *examiner) overlaps() {
	names := make([]string, 0, len(x.Networks))
	for name := range x.Networks {
		names = append(names, name)
	}
	slices.Sort(names)
	clean := true
	for i, name := range names {
		p := x.Networks[name]
		for _, r := range x.Routes {
			if r.Addr().Is4() && r.Overlaps(p) {
				clean = false
				x.say("overlap", Fault, "make the network anew with another subnet", "network %s (%s) overlaps the route to %s of this host: one of the two is not reached", name, p, r)
			}
		}
		for _, other := range names[i+1:] {
			if x.Networks[other].Overlaps(p) {
				x.say("overlap", Doubt, "no container can be on both", "networks %s (%s) and %s (%s) overlap", name, p, other, x.Networks[other])
			}
		}
	}
	if clean && x.Daemon {
		x.say("overlap", Fit, "", "no network overlaps a route of this host")
	}
}

func (x *examiner) daemon() {
	if !x.Daemon {
		x.say("daemon", Doubt, "start it: meshnet up -d", "no daemon answers")
		return
	}
	x.say("daemon", Fit, "", "it answers")
	for _, p := range x.Pending {
		x.say("daemon", Fault, "see the daemon's log", "%s", p)
	}
	for _, d := range x.Disagree {
		what, do, _ := strings.Cut(d, "; ")
		x.say("mesh", Fault, do, "%s", what)
	}
	for _, w := range x.Warnings {
		if slices.Contains(x.Disagree, w) || slices.Contains(x.choice.Warnings, w) {
			continue
		}
		what, do, _ := strings.Cut(w, "; ")
		x.say("daemon", Doubt, do, "%s", what)
	}
	if x.Alive < x.Known {
		x.say("mesh", Doubt, "see meshnet nodes; what will not come back: meshnet rmpeer NODE", "%d of %d nodes are alive", x.Alive, x.Known)
	} else {
		x.say("mesh", Fit, "", "all %d nodes are alive", x.Known)
	}
}
