package flow_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"meshnet/ovs/flow"
	"meshnet/ovs/ovstest"
	"meshnet/plan"
	"meshnet/plan/plantest"
)

// install puts the ports and flows of a host on a bridge of its own.
func install(t *testing.T, in *ovstest.Instance, bridge string, h *plan.Host) {
	t.Helper()
	args := []string{"add-br", bridge, "--", "set", "bridge", bridge, "fail_mode=secure"}
	port := func(n uint32) {
		name := fmt.Sprintf("%s-%d", bridge, n)
		args = append(args, "--", "add-port", bridge, name, "--", "set", "interface", name, "type=dummy", fmt.Sprintf("ofport_request=%d", n))
	}
	for _, tun := range h.Tunnels {
		port(tun.OFPort)
	}
	if h.Gateway != nil {
		port(h.Gateway.OFPort)
	}
	for _, n := range h.Networks {
		for _, p := range n.Ports {
			port(p.OFPort)
		}
		if n.Device != nil {
			port(n.Device.OFPort)
		}
	}
	in.Vsctl(args...)
	var b strings.Builder
	for _, f := range slices.Concat(flows(h)...) {
		b.WriteString(f.String() + "\n")
	}
	file := filepath.Join(in.Dir, bridge+".flows")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	in.Ofctl("add-flows", bridge, file)
}

// A switch takes every flow, shows it again as it was meant, and sends packets where they belong.
func TestSwitch(t *testing.T) {
	in := ovstest.Start(t)
	for i, c := range plantest.Cases(t) {
		bridge := fmt.Sprintf("br%d", i)
		h := c.Host()
		install(t, in, bridge, h)
		have, err := flow.ParseDump(in.Ofctl("dump-flows", bridge))
		if err != nil {
			t.Fatal(err)
		}
		if add, remove := flow.Diff(have, slices.Concat(flows(h)...)); len(add)+len(remove) > 0 {
			t.Errorf("%s: add\n%v\nremove\n%v", c.Name, add, remove)
		}
		for _, p := range packets[c.Name] {
			trace := in.Appctl("ofproto/trace", bridge, p.packet(h))
			if got := outputs(trace); got != p.goal(h) {
				t.Errorf("%s: %s: goes to %q, want %q\n%s", c.Name, p.what, got, p.goal(h), trace)
			}
		}
	}
}

// probe is a packet and the OpenFlow ports that it has to leave by.
type probe struct {
	what string
	in   uint32
	more string // of its header; VNI of NAME stands for that network's
	want string
}

const (
	a1, a2, a3 = "02:42:0a:01:00:02", "02:42:0a:01:00:03", "02:42:0a:01:00:04" // on default: here, node 2, node 3
	w1         = "02:42:0a:02:00:02"                                           // on web: here
	i5         = "02:42:0a:03:00:05"                                           // on inner: here
	b5, b6     = "02:42:0a:02:00:05", "02:42:0a:02:00:06"
	all        = "ff:ff:ff:ff:ff:ff"
	group      = "01:00:5e:00:00:fb"
)

func ip(from, to, src, dst string) string {
	return fmt.Sprintf("ip,dl_src=%s,dl_dst=%s,nw_src=%s,nw_dst=%s", from, to, src, dst)
}

func ask(from, src, target string) string {
	return fmt.Sprintf("arp,dl_src=%s,dl_dst=%s,arp_op=1,arp_sha=%s,arp_spa=%s,arp_tpa=%s", from, all, from, src, target)
}

func icmp(from, to, src, dst string) string {
	return strings.Replace(ip(from, to, src, dst), "ip,", "icmp,", 1) + ",icmp_type=8,icmp_code=0"
}

// way is the MAC that stands for a network towards the host's own stack.
func way(network string) string { return "WAY of " + network }

// near is the MAC of the host's own stack.
const near = "0e:6d:65:73:68:00"

// routed is what goes to and comes from the host's own stack on any transport. Ports: 1 on web, 2 on
// inner, 3 on bare; remote members by REMOTE of NAME.
var routed = []probe{
	{"to the world", 1, ip(b5, "02:42:0a:02:00:01", "10.2.0.5", "192.0.2.77"), "60001"},
	{"to the world from an internal network", 2, ip(i5, "02:42:0a:03:00:01", "10.3.0.5", "192.0.2.77"), ""},
	{"ping to an internal network's gateway", 2, icmp(i5, "02:42:0a:03:00:01", "10.3.0.5", "10.3.0.1"), "IN_PORT"},
	{"ask for a gateway that is not", 3, ask("02:42:0a:04:00:05", "10.4.0.5", "10.4.0.1"), ""},
	{"back from the world", 60001, ip(near, way("web"), "192.0.2.77", "10.2.0.5"), "1"},
	{"from the world to a member elsewhere", 60001, ip(near, way("web"), "192.0.2.77", "10.2.0.6"), ""},
	{"from the world into an internal network", 60001, ip(near, way("inner"), "192.0.2.77", "10.3.0.5"), ""},
	{"from the host to a member here", 60001, ip(near, way("inner"), "10.3.0.9", "10.3.0.5"), "2"},
	{"from the host to a member elsewhere", 60001, ip(near, way("inner"), "10.3.0.9", "10.3.0.6"), "REMOTE of inner"},
	{"from the host, on a network without containers here", 60001, ip(near, way("seen"), "10.5.0.9", "10.5.0.6"), "REMOTE of seen"},
	{"from the host to another network", 60001, ip(near, way("inner"), "10.3.0.9", "10.2.0.5"), ""},
	{"from the host by no network", 60001, ip(near, "0a:6d:65:00:00:09", "10.3.0.9", "10.3.0.5"), ""},
	{"from the host, broadcast", 60001, ip(near, all, "10.3.0.9", "10.3.255.255"), ""},
	{"ask for the host", 2, ask(i5, "10.3.0.5", "10.3.0.9"), "IN_PORT"},
	{"to the host", 2, ip(i5, "02:42:0a:03:00:09", "10.3.0.5", "10.3.0.9"), "60001"},
	{"to the host in the host's name", 2, ip("02:42:0a:03:00:09", i5, "10.3.0.9", "10.3.0.5"), ""},
	{"from elsewhere to the host", 0, "REMOTE of inner " + ip("02:42:0a:03:00:06", "02:42:0a:03:00:09", "10.3.0.6", "10.3.0.9"), "60001"},
	{"from elsewhere to the gateway", 0, "REMOTE of web " + ip("02:42:0a:02:00:06", "02:42:0a:02:00:01", "10.2.0.6", "192.0.2.77"), ""},
}

// guarded is what port 1, the container 10.1.0.2, tries on any transport.
var guarded = []probe{
	{"another's MAC", 1, ip(a2, a3, "10.1.0.2", "10.1.0.4"), ""},
	{"another's address", 1, ip(a1, a2, "10.1.0.4", "10.1.0.3"), ""},
	{"to nobody", 1, ip(a1, "02:42:0a:01:00:09", "10.1.0.2", "10.1.0.9"), ""},
	{"to a member of the other network", 1, ip(a1, w1, "10.1.0.2", "10.2.0.2"), ""},
	{"IPv6", 1, "ipv6,dl_src=" + a1 + ",dl_dst=33:33:00:00:00:01,ipv6_src=fe80::1,ipv6_dst=ff02::1", ""},
	{"a probe", 1, "dl_type=0x88b5,dl_src=" + a1 + ",dl_dst=" + a2, ""},
	{"what looks like the answer to a probe", 1, "dl_type=0x88b5,dl_src=02:6d:65:73:68:00,dl_dst=" + a2, ""},
	{"something else", 1, "dl_type=0x88cc,dl_src=" + a1 + ",dl_dst=" + all, ""},
	{"asks for a member elsewhere", 1, ask(a1, "10.1.0.2", "10.1.0.3"), "IN_PORT"},
	{"asks before it has an address", 1, ask(a1, "0.0.0.0", "10.1.0.3"), "IN_PORT"},
	{"asks for nobody", 1, ask(a1, "10.1.0.2", "10.1.0.9"), ""},
	{"asks for the gateway", 1, ask(a1, "10.1.0.2", "10.1.0.1"), "IN_PORT"},
	{"pings the gateway", 1, icmp(a1, "02:42:0a:01:00:01", "10.1.0.2", "10.1.0.1"), "IN_PORT"},
	{"something else to the gateway", 1, ip(a1, "02:42:0a:01:00:01", "10.1.0.2", "10.1.0.1"), ""},
	{"to the world", 1, ip(a1, "02:42:0a:01:00:01", "10.1.0.2", "192.0.2.77"), "60001"},
	{"to a neighbour by the gateway", 1, ip(a1, "02:42:0a:01:00:01", "10.1.0.2", "10.1.0.3"), ""},
	{"to the world in another's name", 1, ip(a1, "02:42:0a:01:00:01", "10.1.0.3", "192.0.2.77"), ""},
	{"asks for its own address", 1, ask(a1, "0.0.0.0", "10.1.0.2"), ""},
	{"announces its own address", 1, ask(a1, "10.1.0.2", "10.1.0.2"), ""},
	{"asks in another's name", 1, ask(a1, "10.1.0.4", "10.1.0.3"), ""},
	{"asks from another's MAC", 1, ask(a2, "10.1.0.2", "10.1.0.3"), ""},
	{"answers what nobody asked", 1, strings.Replace(ask(a1, "10.1.0.2", "10.1.0.3"), "arp_op=1", "arp_op=2", 1), ""},
}

// packets are the probes of each situation.
var packets = map[string][]probe{
	"nothing": {{"from a port that is not planned", 9, ip(a1, all, "10.1.0.2", "10.1.255.255"), ""}},
	"alone": {
		{"to a neighbour", 1, ip(b5, b6, "10.2.0.5", "10.2.0.6"), "2"},
		{"to itself", 1, ip(b5, b5, "10.2.0.5", "10.2.0.5"), ""},
		{"broadcast", 1, ip(b5, all, "10.2.0.5", "10.2.255.255"), "2"},
		{"in the neighbour's name", 1, ip(b6, b6, "10.2.0.6", "10.2.0.6"), ""},
		{"asks for a neighbour", 1, ask(b5, "10.2.0.5", "10.2.0.6"), "IN_PORT"},
	},
	"three-ovs-kernel": append([]probe{
		{"to node 3", 1, ip(a1, a3, "10.1.0.2", "10.1.0.4"), "40002"},
		{"broadcast", 1, ip(a1, all, "10.1.0.2", "10.1.255.255"), "40001 40002"},
		{"multicast", 1, ip(a1, group, "10.1.0.2", "224.0.0.251"), "40001 40002"},
		{"a probe from a tunnel", 40001, "tun_id=VNI of default,dl_type=0x88b5,dl_src=" + a2 + ",dl_dst=" + a1, "IN_PORT"},
		{"an answered probe from a tunnel", 40001, "tun_id=VNI of default,dl_type=0x88b5,dl_src=02:6d:65:73:68:00,dl_dst=" + a1, "CONTROLLER:65535"},
		{"from a tunnel to here", 40001, "tun_id=VNI of default," + ip(a2, a1, "10.1.0.3", "10.1.0.2"), "1"},
		{"from a tunnel to another peer", 40001, "tun_id=VNI of default," + ip(a2, a3, "10.1.0.3", "10.1.0.4"), ""},
		{"from a tunnel, broadcast", 40001, "tun_id=VNI of default," + ip(a2, all, "10.1.0.3", "10.1.255.255"), "1"},
		{"from a tunnel with the other network's VNI", 40001, "tun_id=VNI of web," + ip(a2, a1, "10.1.0.3", "10.1.0.2"), ""},
		{"from a tunnel with a VNI of nobody", 40001, "tun_id=5," + ip(a2, all, "10.1.0.3", "10.1.255.255"), ""},
	}, guarded...),
	"three-kernel-vxlan": append([]probe{
		{"to node 3", 1, ip(a1, a3, "10.1.0.2", "10.1.0.4"), "50001"},
		{"broadcast", 1, ip(a1, all, "10.1.0.2", "10.1.255.255"), "50001"},
		{"a probe from the device", 50001, "dl_type=0x88b5,dl_src=" + a2 + ",dl_dst=" + a1, "IN_PORT"},
		{"an answered probe from the device", 50001, "dl_type=0x88b5,dl_src=02:6d:65:73:68:00,dl_dst=" + a1, "CONTROLLER:65535"},
		{"from the device to here", 50001, ip(a2, a1, "10.1.0.3", "10.1.0.2"), "1"},
		{"from the device to another peer", 50001, ip(a2, a3, "10.1.0.3", "10.1.0.4"), ""},
		{"from the device, broadcast", 50001, ip(a2, all, "10.1.0.3", "10.1.255.255"), "1"},
		{"from the other network's device", 50002, ip(a2, a1, "10.1.0.3", "10.1.0.2"), ""},
	}, guarded...),
	"gateway-ovs-kernel":    routed,
	"gateway-ovs-userspace": routed,
	"gateway-kernel-vxlan":  routed,
	// blue has ports 2 and 50002, red 1 and 50001; both have 10.2.0.5 here and 10.2.0.6 elsewhere.
	"same-subnet": {
		{"on red", 1, ip(b5, b6, "10.2.0.5", "10.2.0.6"), "50001"},
		{"on blue", 2, ip(b5, b6, "10.2.0.5", "10.2.0.6"), "50002"},
		{"broadcast on blue", 2, ip(b5, all, "10.2.0.5", "10.2.255.255"), "50002"},
		{"from elsewhere on red", 50001, ip(b6, b5, "10.2.0.6", "10.2.0.5"), "1"},
		{"from elsewhere on blue, broadcast", 50002, ip(b6, all, "10.2.0.6", "10.2.255.255"), "2"},
	},
}

// packet returns the probe as ofproto/trace takes it.
func (p probe) packet(h *plan.Host) string {
	s := fmt.Sprintf("in_port=%d,%s", p.in, p.more)
	for _, n := range h.Networks {
		s = strings.ReplaceAll(s, "VNI of "+n.Name, fmt.Sprint(n.VNI))
		s = strings.ReplaceAll(s, way(n.Name), n.Door.Far.String())
		if rest, ok := strings.CutPrefix(p.more, "REMOTE of "+n.Name+" "); ok {
			s = "in_port=" + remote(h, n.Name) + "," + rest
			if n.Device == nil {
				s += fmt.Sprintf(",tun_id=%d", n.VNI)
			}
		}
	}
	return s
}

// goal returns the ports that the probe has to leave by.
func (p probe) goal(h *plan.Host) string {
	if name, ok := strings.CutPrefix(p.want, "REMOTE of "); ok {
		return remote(h, name)
	}
	return p.want
}

// remote returns the port behind which the first remote member of a network is.
func remote(h *plan.Host, name string) string {
	for _, n := range h.Networks {
		if n.Name == name {
			return fmt.Sprint(n.Remotes[0].OFPort)
		}
	}
	return ""
}

// outputs returns the OpenFlow ports by which a traced packet leaves, in order.
func outputs(trace string) string {
	var ports []string
	for line := range strings.Lines(trace) {
		line = strings.TrimSpace(line)
		switch port, ok := strings.CutPrefix(line, "output:"); {
		case ok:
			ports = append(ports, port)
		case line == "IN_PORT", line == "CONTROLLER:65535":
			ports = append(ports, line)
		case strings.Contains(line, "skipping output"):
			ports = ports[:len(ports)-1]
		}
	}
	return strings.Join(ports, " ")
}
