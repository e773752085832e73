package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"meshnet/netns"
	"meshnet/netns/nstest"
	"meshnet/plan"
	"meshnet/state"
)

// gatewayHost is a host with two networks that have one subnet: one leads out and has a published port,
// on the other the host has an address. The container has a default route.
func gatewayHost(b plan.Sandbox) *plan.Host {
	subnet := netip.MustParsePrefix("10.2.0.0/16")
	l := link(5, b)
	l.Gateway = netip.MustParseAddr("10.2.0.1")
	h := host([]plan.Link{l})
	h.Firewall = plan.Firewall{On: true, Port: 14789, Gossip: 17946, Peers: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	way := func(vni uint32) plan.Way {
		return plan.Way{
			Network: state.NetworkID(vni), Subnet: subnet, Mark: plan.Mark(vni), MAC: state.MAC{0x0a, 'm', 'e', 0, 0, byte(vni)},
			Via: netip.AddrFrom4([4]byte{240, 0, 0, byte(vni)}), MTU: 1400,
		}
	}
	out, seen := way(7), way(8)
	out.Out, seen.Host = true, netip.MustParseAddr("10.2.9.9")
	h.Gateway = &plan.Gateway{
		Name: "mesh-gw", Port: "mesh-gw-port", OFPort: 60001, MAC: state.MAC{0x0e, 'm', 'e', 's', 'h', 0}, MTU: 1450, Offloads: true,
		Ways: []plan.Way{out, seen},
		Ports: []plan.Published{
			{Published: state.Published{HostPort: 8080, Port: 80}, Mark: out.Mark, Addr: netip.MustParseAddr("10.2.0.5")},
			{Published: state.Published{Proto: state.UDP, HostPort: 53, Port: 5353}, Mark: out.Mark, Addr: netip.MustParseAddr("10.2.0.5")},
		},
		Closed: []netip.Prefix{subnet},
	}
	return h
}

func gatewayLinks(t *testing.T) (*netns.Links, string) {
	t.Helper()
	dir := t.TempDir()
	l, err := netns.New(netns.Config{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return l, dir
}

// surroundings is what the gateway makes outside containers, as people's tools show it.
func surroundings(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []string{
		"ip -o addr show", "ip rule", "ip -4 route show table all", "ip neigh show nud permanent", "nft -s list ruleset",
		"cat /proc/sys/net/ipv4/ip_forward",
	} {
		fmt.Fprintf(&b, "%s:\n%s\n", c, run(t, plan.Sandbox{}, strings.Fields(c)...))
	}
	return b.String()
}

func TestGateway(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l, dir := gatewayLinks(t)
	h := gatewayHost(box(t, "one"))
	before := surroundings(t)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	before = strings.Replace(before, "ip_forward:\n1", "ip_forward:\n0", 1)
	apply(t, l, h)
	settled(t, l, h)
	now := surroundings(t)
	for _, want := range []string{
		"inet 10.2.9.9/32 scope global mesh-gw", "28005:\tfrom all fwmark 0x6d000007 lookup 1828716551", "from all fwmark 0x6d000008",
		"10.2.0.0/16 via 240.0.0.7 dev mesh-gw table 1828716551 proto 109 onlink mtu 1400",
		"10.2.0.0/16 via 240.0.0.8 dev mesh-gw proto 109 src 10.2.9.9 onlink mtu 1400",
		"240.0.0.7 dev mesh-gw lladdr 0a:6d:65:00:00:07 PERMANENT", "ip_forward:\n1",
		`iifname != "mesh-gw" meta nfproto ipv4 tcp dport 8080 fib daddr type local dnat ip to 10.2.0.5:80`,
		`udp dport 53 fib daddr type local dnat ip to 10.2.0.5:5353`,
		// Other packets than the gateway's are done with before the rules of networks.
		"iifname != \"mesh-gw\" accept\n\t\t@ll,48,48 0xa6d65000007 meta mark set 0x6d000007\n", `oifname != "mesh-gw" masquerade`, `iifname "mesh-gw" oifname "mesh-gw" counter drop`,
		// A peer's address is believed of nobody who comes by the gateway.
		"\t\tudp dport 14789 ip saddr @peers iifname != \"mesh-gw\" accept\n\t\tudp dport 14789 ip6 saddr @peers6 iifname != \"mesh-gw\" accept\n" +
			"\t\tiifname != \"lo\" udp dport 14789 counter drop\n",
		`udp dport 14789 ip daddr @peers counter drop`, `iifname "mesh-gw" tcp dport 17946 counter drop`,
		`iifname "mesh-gw" ip daddr 10.2.0.0/16 counter drop`,
	} {
		if !strings.Contains(now, want) {
			t.Errorf("no %q in\n%s", want, now)
		}
	}
	if routes := run(t, h.Links[0].Sandbox, "ip", "route"); !strings.Contains(routes, "default via 10.2.0.1 dev eth0 proto 109") {
		t.Errorf("routes of the container:\n%s", routes)
	}
	if note, err := os.ReadFile(dir + "/forwarding"); err != nil || strings.TrimSpace(string(note)) != "0" {
		t.Errorf("note %q, %v", note, err)
	}
	if _, err := l.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := surroundings(t); after != before {
		t.Errorf("purged:\n%s\nbefore:\n%s", after, before)
	}
}

// A container's own default route stays the only one.
func TestForeignDefaultRoute(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l, _ := gatewayLinks(t)
	b := box(t, "one")
	for _, c := range []string{"ip link add dm type veth peer name dn", "ip link set dn up", "ip addr add 172.17.0.2/16 dev dm", "ip link set dm up", "ip route add default via 172.17.0.1"} {
		run(t, b, strings.Fields(c)...)
	}
	h := gatewayHost(b)
	apply(t, l, h)
	settled(t, l, h)
	if routes := run(t, b, "ip", "route", "show", "default"); strings.TrimSpace(routes) != "default via 172.17.0.1 dev dm" {
		t.Errorf("default routes:\n%s", routes)
	}
	h.Links[0].Gateway = netip.Addr{}
	settled(t, l, h)
}

// What somebody changes is told and put back, with what is not ours untouched.
func TestGatewayDrift(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l, _ := gatewayLinks(t)
	started(t, l)
	b := box(t, "one")
	h := gatewayHost(b)
	for _, c := range []string{"ip rule add fwmark 0x6d lookup 77 priority 28005", "ip route add blackhole 10.77.0.0/16 table 77"} {
		run(t, plan.Sandbox{}, strings.Fields(c)...)
	}
	apply(t, l, h)
	quietFor(t, l)
	for _, test := range []struct {
		box plan.Sandbox
		how string
	}{
		{plan.Sandbox{}, "ip rule del fwmark 0x6d000007"}, {plan.Sandbox{}, "ip route flush table 1828716551"},
		{plan.Sandbox{}, "ip route del 10.2.0.0/16"}, {plan.Sandbox{}, "ip neigh del 240.0.0.7 dev mesh-gw"},
		{plan.Sandbox{}, "ip addr flush dev mesh-gw"}, {plan.Sandbox{}, "ip link set mesh-gw-port down"}, {plan.Sandbox{}, "ip link del mesh-gw"},
		{plan.Sandbox{}, "nft flush ruleset"}, {plan.Sandbox{}, "nft delete chain inet meshnet outward"},
		{plan.Sandbox{}, "nft flush set inet meshnet peers"}, {plan.Sandbox{}, "sysctl -qw net.ipv4.ip_forward=0"},
		{b, "ip addr flush dev eth0"}, {b, "ip route del default"}, {b, "ip link set eth0 down"}, {b, "ip link set eth0 mtu 1000"},
		{b, "ip link set eth0 address 02:00:00:00:00:01"}, {b, "ip addr add 10.2.0.77/16 dev eth0"},
	} {
		run(t, test.box, strings.Fields(test.how)...)
		select {
		case <-l.Drift():
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: no drift", test.how)
		}
		if steps, _ := apply(t, l, h); len(steps) == 0 {
			t.Errorf("%s: nothing was put back", test.how)
		}
		quietFor(t, l)
		settled(t, l, h)
	}
	rules := run(t, plan.Sandbox{}, "ip", "rule")
	if routes := run(t, plan.Sandbox{}, "ip", "route", "show", "table", "77"); !strings.Contains(routes, "10.77.0.0/16") || !strings.Contains(rules, "fwmark 0x6d lookup 77") {
		t.Errorf("others' are gone:\n%s%s", rules, routes)
	}
	// A whole look finds nothing either.
	fresh, _ := gatewayLinks(t)
	if steps, _, err := fresh.Apply(context.Background(), h); err != nil || len(steps) > 0 {
		t.Errorf("a new daemon finds %v, %v", steps, err)
	}
}

// The gateway may be a tap, of which ovs-vswitchd has the other end, and may become one and a veth again.
func TestGatewayTap(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l, _ := gatewayLinks(t)
	started(t, l)
	before := surroundings(t)
	h := gatewayHost(box(t, "one"))
	veth := *h.Gateway
	tap := veth
	tap.Port = ""
	kind := func(want string) {
		t.Helper()
		got := run(t, plan.Sandbox{}, "ip", "-d", "-o", "link", "show", "mesh-gw")
		for _, want := range []string{want, "link/ether 0e:6d:65:73:68:00", "mtu 1450", "alias meshnet:gateway", ",UP"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in\n%s", want, got)
			}
		}
		if ports := run(t, plan.Sandbox{}, "ip", "-o", "link"); strings.Contains(ports, "mesh-gw-port") == (h.Gateway.Tap()) {
			t.Errorf("devices:\n%s", ports)
		}
		if routes := run(t, plan.Sandbox{}, "ip", "-4", "route", "show", "table", "all"); strings.Count(routes, "dev mesh-gw") < 3 {
			t.Errorf("routes:\n%s", routes)
		}
	}
	h.Gateway = &tap
	for _, test := range []struct {
		what string
		how  []string
	}{
		{"made", nil},
		{"removed", []string{"ip link del mesh-gw"}},
		{"made by ovs-vswitchd", []string{"ip link del mesh-gw", "ip tuntap add mesh-gw mode tap"}},
		{"down", []string{"ip link set mesh-gw down"}},
	} {
		for _, how := range test.how {
			run(t, plan.Sandbox{}, strings.Fields(how)...)
			select {
			case <-l.Drift():
			case <-time.After(5 * time.Second):
				t.Fatalf("%s: no drift", how)
			}
		}
		if steps, _ := apply(t, l, h); len(steps) == 0 {
			t.Errorf("%s: nothing was done", test.what)
		}
		quietFor(t, l)
		settled(t, l, h)
		kind("tun type tap")
	}
	for _, test := range []struct {
		gateway *plan.Gateway
		want    string
	}{{&veth, "veth"}, {&tap, "tun type tap"}} {
		h.Gateway = test.gateway
		apply(t, l, h)
		quietFor(t, l)
		settled(t, l, h)
		kind(test.want)
	}
	// What is somebody's stays.
	h.Gateway = nil
	apply(t, l, h)
	quietFor(t, l)
	run(t, plan.Sandbox{}, "ip", "link", "add", "mesh-gw", "type", "bridge")
	h.Gateway = &tap
	if _, _, err := l.Apply(t.Context(), h); err == nil || !strings.Contains(err.Error(), "a device mesh-gw exists that meshnet did not make") {
		t.Errorf("a device of another: %v", err)
	}
	run(t, plan.Sandbox{}, "ip", "link", "del", "mesh-gw")
	apply(t, l, h)
	if _, err := l.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := surroundings(t); after != before {
		t.Errorf("purged:\n%s\nbefore:\n%s", after, before)
	}
}
