package testlab

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// router is the address of a machine on the segment that is no node.
const router = "192.0.2.254"

// withRouter puts a machine that is no node onto the segment: the lab's own namespace for it.
func (l *lab) withRouter() {
	l.t.Helper()
	for _, args := range [][]string{
		{"ip", "addr", "add", router + "/24", "dev", "seg"},
		{"ethtool", "-K", "seg", "tx", "off"}, // a card never hands out a checksum that is yet to be made
	} {
		args = append([]string{"--net=/run/netns/mn-" + l.name + "-seg"}, args...)
		if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
			l.t.Fatalf("%v: %v %s", args, err, out)
		}
	}
}

// outside prepares a part on the machine that is no node.
func (l *lab) outside(part string, args ...string) *exec.Cmd {
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/mn-" + l.name + "-seg", self}, args...)...)
	cmd.Env = append(os.Environ(), "TESTLAB_PART="+part, "MESHNET_LAB="+l.name)
	return cmd
}

// says runs a part to its end and returns what it printed; ok is whether it succeeded.
func says(cmd *exec.Cmd) (string, bool) {
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err == nil
}

// eventually waits until something holds, at most a time (ten times that in the guest), and returns how
// long it took.
func (l *lab) eventually(what string, most time.Duration, holds func() bool) time.Duration {
	l.t.Helper()
	if *inGuest {
		most *= 10
	}
	began := time.Now()
	for !holds() {
		if time.Since(began) > most {
			l.t.Errorf("%s: not within %v", what, most)
			return time.Since(began)
		}
		time.Sleep(50 * time.Millisecond)
	}
	took := time.Since(began)
	l.t.Logf("%s: %v", what, took.Round(10*time.Millisecond))
	return took
}

func (l *lab) pings(host int, container, to string) bool {
	wait := "1"
	if *inGuest {
		wait = "3"
	}
	_, err := l.try("in", fmt.Sprint(host), container, "ping", "-c", "1", "-W", wait, to)
	return err == nil
}

// ear is a part that listens: hear or sniff.
type ear struct {
	*lab
	cmd  *exec.Cmd
	in   io.Closer // closing it ends the part
	next func() string
}

func (l *lab) ear(cmd *exec.Cmd) *ear {
	l.t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd, next := l.start(cmd)
	return &ear{l, cmd, in, next}
}

// hears prepares an ear on a UDP port of a container, for a group if that is not empty.
func (l *lab) hears(host int, container, port string, group ...string) *ear {
	l.t.Helper()
	return l.ear(l.part(host, container, "hear", append([]string{port, fmt.Sprint(slow(20))}, group...)...))
}

// last waits for the last word.
func (e *ear) last() {
	e.t.Helper()
	if s := e.next(); s != lastWord {
		e.t.Errorf("%v says %q: the last word did not come", e.cmd.Args, s)
	}
}

// heard ends the ear and returns how often it heard what.
func (e *ear) heard() map[string]int {
	e.t.Helper()
	if err := e.in.Close(); err != nil {
		e.t.Error(err)
	}
	var got map[string]int
	line := e.next()
	for line == lastWord {
		line = e.next()
	}
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		e.t.Errorf("%v says %q: %v", e.cmd.Args, line, err)
	}
	if err := e.cmd.Wait(); err != nil {
		e.t.Error(err)
	}
	return got
}

// linger waits for what might come that should not, after the last word came.
func linger() { time.Sleep(time.Duration(300+boolInt(*inGuest)*1200) * time.Millisecond) }

// each returns what shout makes heard: n datagrams, each once.
func each(n int) map[string]int {
	all := map[string]int{}
	for i := range n {
		all[fmt.Sprint(i)] = 1
	}
	return all
}

// layout is how the hosts of a lab reach each other.
type layout struct {
	name  string
	up    []string // arguments of lab up
	other []string // flags of up for host 2, where they are others
	// transport of the hosts, and of host 2.
	transport, transport2 string
}

// layouts are those that this machine can have: transports C and B; in the guest A, and A beside C.
func layouts() []layout {
	const a, b, c = "ovs-kernel", "ovs-userspace", "kernel-vxlan"
	if *inGuest {
		return []layout{
			{name: "A", transport: a, transport2: a},
			{name: "A and C", other: []string{"--datapath", "netdev"}, transport: a, transport2: c},
		}
	}
	return []layout{
		{name: "C", transport: c, transport2: c},
		{name: "B", up: []string{"--uplink", "bridge"}, transport: b, transport2: b},
	}
}

// onEach runs a test on three hosts of each layout, with the containers of threeHosts.
func onEach(t *testing.T, test func(t *testing.T, l *lab, on layout)) {
	for _, on := range layouts() {
		t.Run(on.name, func(t *testing.T) {
			l := threeHosts(t, on.up...)
			if on.other != nil {
				l.again(2, on.other...)
				l.run("converged", "-t", fmt.Sprint(slow(10)))
			}
			l.wantTransport(1, on.transport)
			l.wantTransport(2, on.transport2)
			test(t, l, on)
		})
	}
}

// TestDataPlane is the whole scenario set on each transport.
func TestDataPlane(t *testing.T) {
	onEach(t, func(t *testing.T, l *lab, _ layout) {
		l.withRouter()
		l.withInner()
		for _, s := range scenarios() {
			t.Run(s.name, func(t *testing.T) { s.run(l.on(t)) })
		}
	})
}

// scenario is something to be seen on a lab of threeHosts with withRouter and withInner.
type scenario struct {
	name string
	run  func(*lab)
}

func scenarios() []scenario {
	return []scenario{
		{"reach", (*lab).reach},
		{"isolation", (*lab).isolation},
		{"broadcast", (*lab).broadcastOnce},
		{"spoofed", (*lab).spoofed},
		{"forged", (*lab).forged},
		{"multicast", (*lab).multicast},
		{"gateway", (*lab).gateway},
		{"published", (*lab).published},
		{"exposed", (*lab).exposed},
		{"firewalls", (*lab).firewalls},
		{"daemon", (*lab).daemon},
	}
}

// withInner makes an internal network with a container i1, i2, i3 on each host.
func (l *lab) withInner() {
	l.t.Helper()
	l.meshnet(1, "network", "create", "inner", "10.3.0.0/16", "--internal")
	all(1, 3, func(h int) {
		c := fmt.Sprint("i", h)
		l.run("container", fmt.Sprint(h), c)
		l.attach(h, c, "inner")
	})
}

// spoofed wants frames with another's MAC, address or ARP to go nowhere. That the way is open is seen
// by one in the container's own name.
func (l *lab) spoofed() {
	a1, a2, a3 := l.address("c1", "web"), l.address("c2", "web"), l.address("c3", "web")
	m1, m2, m3 := macOf(a1), macOf(a2), macOf(a3)
	ear := l.hears(2, "c2", "9998")
	nose := l.ear(l.part(2, "c2", "sniff", "eth0", "0x0806", fmt.Sprint(slow(20)), forgedText))
	frames := []string{
		datagram(m1, m2, a1, a2, 9998, "own"),
		datagram(m3, m2, a1, a2, 9998, "MAC of c3"),
		datagram(m1, m2, a3, a2, 9998, "address of c3"),
		datagram(m3, m2, a3, a2, 9998, "both of c3"),
		datagram("02:42:0a:02:63:63", m2, "10.2.99.99", a2, 9998, "of nobody"),
		datagram(m1, m2, "192.0.2.77", a2, 9998, "address outside"),
	}
	for _, op := range []byte{1, 2} {
		frames = append(frames,
			arp(op, m1, "ff:ff:ff:ff:ff:ff", a3, a2), // in c3's name
			arp(op, m1, m2, a3, a2),
			arp(op, m3, m2, a3, a2),
			arp(op, m1, "ff:ff:ff:ff:ff:ff", a1, a1)) // in its own: nobody needs it
	}
	frames = append(frames, datagram(m1, m2, a1, a2, 9998, lastWord))
	if out, err := l.part(1, "c1", "frame", append([]string{"eth0"}, frames...)...).CombinedOutput(); err != nil {
		l.t.Fatalf("frame: %v %s", err, out)
	}
	ear.last()
	linger()
	if got := ear.heard(); !maps.Equal(got, map[string]int{"own": 1}) {
		l.t.Errorf("datagrams %v arrived, want only the one that was not spoofed", got)
	}
	if got := nose.heard(); len(got) != 0 {
		l.t.Errorf("ARP frames arrived: %v", got)
	}
}

// forged wants a tunnel packet to be delivered only if a peer itself sent it, with a VNI that is
// known: not from a stranger, and not from a container under its host's address. That each of them
// can send to the tunnel's port at all is not to be seen here; what a peer sends last shows that the
// way is open.
func (l *lab) forged() {
	a1, a2 := l.address("c1", "web"), l.address("c2", "web")
	vni := fmt.Sprint(ask[struct{ VNI int }](l, 1, "network", "inspect", "web").VNI)
	inside := func(text string) string { return datagram(macOf(a1), macOf(a2), a1, a2, 9997, text) }
	ear := l.hears(2, "c2", "9997")
	for _, from := range []struct {
		cmd *exec.Cmd
	}{
		{l.part(1, "", "tunnel", "192.0.2.2:14789", vni, inside("a peer"))},
		{l.part(1, "", "tunnel", "192.0.2.2:14789", "77", inside("a peer with a VNI of nobody"))},
		{l.outside("tunnel", "192.0.2.2:14789", vni, inside("a stranger"))},
		{l.part(1, "c1", "tunnel", "192.0.2.2:14789", vni, inside("a container"))},
		{l.part(2, "c2", "tunnel", "192.0.2.2:14789", vni, inside("a container of that host"))},
		{l.part(1, "", "tunnel", "192.0.2.2:14789", vni, inside(lastWord))},
	} {
		if out, err := from.cmd.CombinedOutput(); err != nil {
			l.t.Errorf("%v: %v %s", from.cmd.Args, err, out)
		}
	}
	ear.last()
	linger()
	if got := ear.heard(); !maps.Equal(got, map[string]int{"a peer": 1}) {
		l.t.Errorf("forged datagrams %v arrived, want only the peer's own", got)
	}
}

// multicast wants what is sent to a group at each other member once, and nowhere else.
func (l *lab) multicast() {
	const group = "239.1.1.1"
	here := func(h int, c, network string) *ear { return l.hears(h, c, "9900", group, l.address(c, network)) }
	members := []*ear{here(2, "c2", "web"), here(3, "c3", "web")}
	others := []*ear{here(1, "i1", "inner"), here(2, "i2", "inner")}
	default2 := l.ear(l.part(2, "c2", "sniff", "eth1", "0x0800", fmt.Sprint(slow(20))))
	l.run("in", "1", "c1", "ip", "route", "replace", group+"/32", "dev", "eth0")
	if out, err := l.part(1, "c1", "shout", l.address("c1", "web"), "20", group+":9900").CombinedOutput(); err != nil {
		l.t.Fatalf("shout: %v\n%s", err, out)
	}
	for _, e := range members {
		e.last()
	}
	linger()
	for _, e := range members {
		if got := e.heard(); !maps.Equal(got, each(20)) {
			l.t.Errorf("%v heard %v, want each of 20 once", e.cmd.Args, got)
		}
	}
	for _, e := range others {
		if got := e.heard(); len(got) != 0 {
			l.t.Errorf("%v heard %v, want nothing", e.cmd.Args, got)
		}
	}
	if got := default2.heard(); got[macOf(l.address("c1", "web"))] != 0 {
		l.t.Errorf("default heard what was sent on web: %v", got)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// gateway wants its answer on every node, the way out under the host's address, and no way to other
// networks, to meshnet's own ports, or out of an internal network.
func (l *lab) gateway() {
	all(1, 3, func(h int) {
		for _, x := range []struct{ container, gateway string }{{fmt.Sprint("c", h), "10.2.0.1"}, {fmt.Sprint("i", h), "10.3.0.1"}} {
			if !l.pings(h, x.container, x.gateway) {
				l.t.Errorf("%s does not reach its gateway %s", x.container, x.gateway)
			}
		}
		neigh, err := l.try("in", fmt.Sprint(h), fmt.Sprint("c", h), "ip", "neigh", "show", "10.2.0.1")
		if !strings.Contains(neigh, macOf("10.2.0.1")) {
			l.t.Errorf("host %d: the gateway is %s (%v)", h, neigh, err)
		}
	})
	server, next := l.start(l.outside("who", router+":8000", "3"))
	for h := 1; h <= 3; h++ {
		if got, ok := says(l.part(h, fmt.Sprint("c", h), "call", router+":8000")); !ok || got != fmt.Sprint("192.0.2.", h) {
			l.t.Errorf("c%d to the world: %q %t", h, got, ok)
		}
		next()
	}
	if err := server.Wait(); err != nil {
		l.t.Error(err)
	}
	l.shut(1, "i1", router)
	if _, ok := says(l.part(1, "i1", "call", router+":8000")); ok {
		l.t.Error("an internal network leads out")
	}
	// With a route of its own it leads out no more than without.
	l.run("in", "1", "i1", "ip", "route", "add", "192.0.2.0/24", "via", "10.3.0.1")
	l.shut(1, "i1", router)
	l.run("container", "1", "lone")
	l.attach(1, "lone", "web")
	l.shut(1, "lone", l.address("i1", "inner"), l.address("i2", "inner"), l.address("c2", "default"))
	l.meshnet(1, "detach", "lone")
	l.run("rmcontainer", "1", "lone")
	all(1, 2, func(h int) {
		if _, ok := says(l.part(1, "c1", "call", fmt.Sprintf("192.0.2.%d:17946", h))); ok {
			l.t.Errorf("a container reaches meshnet on host %d", h)
		}
	})
	if out, err := l.try("in", "1", "c1", "ping", "-c", "1", "-W", "1", "-t", "1", router); err == nil || !strings.Contains(out, "Time to live exceeded") {
		l.t.Errorf("no word of a packet that the host dropped: %v %s", err, out)
	}
}

// published wants a port of a host to lead to a container, which sees the client's own address, and
// that to be so again after the daemon's end.
func (l *lab) published() {
	l.meshnet(1, "publish", "web", "c1", "8080:80")
	l.meshnet(1, "publish", "web", "c1", "8080:80")
	l.meshnet(1, "publish", "web", "c1", "5300:53/udp")
	reach := func() {
		l.t.Helper()
		server, next := l.start(l.part(1, "c1", "who", ":80", "3"))
		for _, from := range []struct {
			what, addr string
			cmd        *exec.Cmd
		}{
			{"a stranger", router, l.outside("call", "192.0.2.1:8080")},
			{"another host", "192.0.2.2", l.part(2, "", "call", "192.0.2.1:8080")},
			{"the host itself", "192.0.2.1", l.part(1, "", "call", "192.0.2.1:8080")},
		} {
			if got, ok := says(from.cmd); !ok || got != from.addr {
				l.t.Errorf("published to %s: told %q, %t; want %s", from.what, got, ok, from.addr)
			}
		}
		for range 3 {
			next()
		}
		if err := server.Wait(); err != nil {
			l.t.Error(err)
		}
	}
	reach()
	udp, next := l.start(l.part(1, "c1", "udpwho", "53"))
	if got, ok := says(l.outside("udpcall", "192.0.2.1:5300")); !ok || got != router {
		l.t.Errorf("published by UDP: told %q, %t", got, ok)
	}
	next()
	if err := udp.Wait(); err != nil {
		l.t.Error(err)
	}
	for _, wrong := range [][]string{
		{"1", "publish", "web", "c1", "8080:81"}, {"1", "publish", "inner", "i1", "8081:80"}, {"2", "publish", "web", "c1", "8081:80"},
		{"1", "publish", "web", "c1", "17946:80"},
	} {
		if out, err := l.try(append([]string{"exec", wrong[0], "meshnet"}, wrong[1:]...)...); err == nil {
			l.t.Errorf("%v: %s", wrong, out)
		}
	}
	l.run("kill", "1")
	l.run("exec", "1", "nft", "delete", "table", "inet", "meshnet")
	l.run("start", "1")
	l.converged()
	reach()
	l.meshnet(1, "unpublish", "web", "c1", "8080")
	l.meshnet(1, "unpublish", "web", "c1", "8080")
	if _, ok := says(l.outside("call", "192.0.2.1:8080")); ok {
		l.t.Error("an unpublished port still leads somewhere")
	}
}

// exposed wants a host to have an address on a network, and to be no router for others.
func (l *lab) exposed() {
	addr := strings.TrimSpace(l.meshnet(2, "expose", "inner"))
	if again := strings.TrimSpace(l.meshnet(2, "expose", "inner")); again != addr {
		l.t.Errorf("exposed twice: %s and %s", addr, again)
	}
	for _, to := range []string{l.address("i1", "inner"), l.address("i2", "inner")} {
		l.run("exec", "2", "ping", "-c", "2", "-i", "0.2", "-W", "2", to)
	}
	for h := 1; h <= 3; h++ {
		l.run("in", fmt.Sprint(h), fmt.Sprint("i", h), "ping", "-c", "2", "-i", "0.2", "-W", "2", addr)
	}
	if _, err := l.try("exec", "1", "ping", "-c", "1", "-W", "1", l.address("i1", "inner")); err == nil {
		l.t.Error("a host reaches a network that it was not exposed to")
	}
	route := exec.Command("ip", "-n", "mn-"+l.name+"-seg", "route", "replace", "10.3.0.0/16", "via", "192.0.2.2")
	if out, err := route.CombinedOutput(); err != nil {
		l.t.Fatalf("%v %s", err, out)
	}
	if exec.Command("ip", "netns", "exec", "mn-"+l.name+"-seg", "ping", "-c", "1", "-W", "1", l.address("i2", "inner")).Run() == nil {
		l.t.Error("a host routes for a stranger into a network")
	}
	l.meshnet(2, "hide", "inner")
	l.meshnet(2, "hide", "inner")
	if l.pings(1, "i1", addr) {
		l.t.Error("a hidden host still answers")
	}
}

// firewalls wants the way out to pass a FORWARD chain that drops, of either iptables, and rules to
// come back after a flush.
func (l *lab) firewalls() {
	out := func() bool { return l.pings(1, "c1", router) }
	for _, iptables := range []string{"iptables-nft", "iptables-legacy"} {
		l.run("exec", "1", iptables, "-A", "FORWARD", "-i", "eth7", "-j", "DROP")
		l.run("exec", "1", iptables, "-P", "FORWARD", "DROP")
		l.eventually("out past "+iptables+" -P FORWARD DROP", 10*time.Second, out)
		l.run("exec", "1", iptables, "-F")
		l.eventually("out after "+iptables+" -F", 10*time.Second, out)
		l.run("exec", "1", iptables, "-P", "FORWARD", "ACCEPT")
	}
	l.run("exec", "1", "nft", "flush", "ruleset")
	if !l.pings(1, "c1", l.address("c2", "web")) {
		l.t.Error("the overlay depends on the firewall")
	}
	l.eventually("out after nft flush ruleset", 10*time.Second, func() bool {
		_, err := l.try("exec", "1", "nft", "list", "chain", "inet", "meshnet", "outward")
		return err == nil && out()
	})
}

// TestDrift breaks one thing after the other and wants each back, and what is not ours untouched.
func TestDrift(t *testing.T) {
	onEach(t, func(t *testing.T, l *lab, on layout) {
		l.withRouter()
		l.foreign()
		for _, d := range drifts(on) {
			t.Run(d.what, func(t *testing.T) { l.on(t).drift(d) })
		}
		l.foreignLeft()
	})
}

// breakage is something that is done to host 1, from a shell there.
type breakage struct {
	what, how string
	inside    bool // the container c1
	lab       []string
	part      []string
}

func drifts(on layout) []breakage {
	all := []breakage{
		{what: "flows deleted", how: "ovs-ofctl -O OpenFlow14 del-flows meshnet"},
		{what: "one flow deleted", how: "ovs-ofctl -O OpenFlow14 del-flows meshnet table=40"},
		{what: "flows edited", how: "ovs-ofctl -O OpenFlow14 mod-flows meshnet table=40,actions=drop"},
		{what: "veth down", how: "for d in $(ip -o link | grep -o 'mc-[0-9a-f]*' | sort -u); do ip link set $d down; done"},
		{what: "port removed", how: "ovs-vsctl del-port $(ovs-vsctl list-ports meshnet | grep '^mc' | head -1) -- del-port $(ovs-vsctl list-ports meshnet | grep '^mc' | tail -1)"},
		{what: "bridge removed", how: "ovs-vsctl del-br meshnet"},
		{what: "gateway removed", how: "ip link del mesh-gw"},
		{what: "gateway down", how: "ip link set mesh-gw down"},
		{what: "rules removed", how: "ip rule flush; ip rule add from all lookup main priority 32766; ip rule add from all lookup default priority 32767"},
		{what: "routes removed", how: "for t in $(ip rule | sed -n 's/.*fwmark.*lookup //p'); do ip route flush table $t; done"},
		{what: "neighbours removed", how: "ip neigh flush nud permanent dev mesh-gw; ip neigh flush dev mesh-gw"},
		{what: "nft flushed", how: "nft flush ruleset"},
		{what: "forwarding off", how: "sysctl -qw net.ipv4.ip_forward=0"},
		{what: "address removed in the container", how: "ip addr flush dev eth0; ip addr flush dev eth1", inside: true},
		{what: "route removed in the container", how: "ip route del default", inside: true},
		{what: "interface down in the container", how: "ip link set eth0 down", inside: true},
		{what: "MAC changed in the container", how: "ip link set eth0 address 02:42:00:00:00:99", inside: true},
		{what: "interface removed in the container", how: "ip link del eth0", inside: true},
		{what: "vswitchd killed", lab: []string{"killovs", "1", "ovs-vswitchd"}},
		{what: "ovsdb-server killed", lab: []string{"killovs", "1", "ovsdb-server"}},
		{what: "all of Open vSwitch killed", lab: []string{"killovs", "1"}},
		{what: "database wiped", lab: []string{"wipeovs", "1"}},
	}
	if on.transport != "ovs-userspace" {
		all = append(all, breakage{what: "programs removed", part: []string{"programs", "remove"}})
	}
	if on.transport == "kernel-vxlan" {
		return append(all,
			breakage{what: "vxlan down", how: "for d in $(ip -o link | grep -o 'mv-[0-9a-f]*' | sort -u); do ip link set $d down; done"},
			breakage{what: "twins down", how: "for d in $(ip -o link | grep -oE 'm[cv][so][0-9a-f]+' | sort -u); do ip link set $d down; done"},
			breakage{what: "twins removed", how: "for d in $(ip -o link | grep -oE '(mc|mv|mesh)s[0-9a-fgw-]+' | sort -u); do ip link del $d; done"},
			breakage{what: "vxlan removed", how: "ip link del $(ip -o link | grep -o 'mv-[0-9a-f]*' | head -1)"},
			breakage{what: "entries removed", how: "for d in $(ip -o link | grep -o 'mv-[0-9a-f]*' | sort -u); do bridge fdb show dev $d | while read m x; do bridge fdb del $m dev $d $(echo $x | grep -o 'dst [0-9.]*'); done; done"},
		)
	}
	return append(all, breakage{what: "tunnels removed", how: "for p in $(ovs-vsctl list-ports meshnet | grep mt-); do ovs-vsctl del-port $p; done"})
}

// drift breaks something and wants all ways open again within 10 s, and what was done counted.
func (l *lab) drift(d breakage) {
	repairs := ask[statusJSON](l, 1, "status").Repairs
	switch {
	case d.lab != nil:
		l.run(d.lab...)
		if d.lab[0] == "killovs" && l.ownSwitch(1) {
			l.run("startovs", "1") // it is the host's to start
		}
	case d.part != nil:
		if out, err := l.part(1, "", d.part[0], d.part[1:]...).CombinedOutput(); err != nil {
			l.t.Fatalf("%s: %v\n%s", d.what, err, out)
		}
	case d.inside:
		l.run("in", "1", "c1", "sh", "-c", d.how)
	default:
		l.run("exec", "1", "bash", "-c", d.how)
	}
	web, other := l.address("c2", "web"), l.address("c3", "default")
	l.eventually("back", 10*time.Second, func() bool {
		for _, to := range []string{web, other, router} {
			// Who is known already is reached without Open vSwitch; who has to be asked for is not.
			wait := map[bool]string{false: "0.3", true: "1"}[*inGuest]
			if _, err := l.try("in", "1", "c1", "sh", "-c", "ip neigh flush all; ping -c 1 -W "+wait+" "+to); err != nil {
				return false
			}
		}
		return true
	})
	if d.how != "" {
		l.eventually("counted", 10*time.Second, func() bool { return ask[statusJSON](l, 1, "status").Repairs > repairs })
	}
	if l.t.Failed() {
		l.t.Log(l.meshnet(1, "status"))
	}
}

// ownSwitch reports whether a host's own Open vSwitch is the one that meshnet uses there.
func (l *lab) ownSwitch(host int) bool {
	_, err := l.try("exec", fmt.Sprint(host), "test", "-S", "/run/openvswitch/meshnet.mgmt")
	return err == nil
}

// foreign puts things of others onto host 1.
func (l *lab) foreign() {
	for _, c := range []string{
		"ip link add other type veth peer name other2", "ip rule add fwmark 0x6d lookup 77 priority 28005",
		"ip route add blackhole 10.77.0.0/16 table 77", "nft add table inet others", "nft add chain inet others c",
		"ovs-vsctl add-port meshnet other", "ovs-ofctl -O OpenFlow14 add-flow meshnet cookie=0x77,table=0,priority=7,in_port=777,actions=drop",
	} {
		l.run("exec", "1", "bash", "-c", c)
	}
}

// foreignLeft wants them there still, as far as they were not broken with the rest: flows, rules and
// tables were flushed whole, and the database wiped.
func (l *lab) foreignLeft() {
	l.t.Helper()
	if out := l.run("exec", "1", "ip", "route", "show", "table", "77"); !strings.Contains(out, "10.77.0.0/16") {
		l.t.Errorf("the route of others is gone: %s", out)
	}
	l.run("exec", "1", "ip", "link", "show", "other")
	l.run("exec", "1", "bash", "-c", "ip rule add fwmark 0x6d lookup 77 priority 28005; nft add table inet others; ovs-vsctl add-port meshnet other;"+
		"ovs-ofctl -O OpenFlow14 add-flow meshnet cookie=0x77,table=0,priority=7,in_port=777,actions=drop")
	l.run("kill", "1")
	l.run("start", "1")
	l.converged()
	for what, want := range map[string]string{
		"ip rule": "fwmark 0x6d lookup 77", "nft list tables": "inet others", "ovs-vsctl list-ports meshnet": "other",
		"ovs-ofctl -O OpenFlow14 dump-flows meshnet cookie=0x77/-1": "in_port=777",
	} {
		if out := l.run("exec", "1", "bash", "-c", what); !strings.Contains(out, want) {
			l.t.Errorf("%s: no %q of others any more:\n%s", what, want, out)
		}
	}
}

// TestPurge wants a host as it was before the first up.
func TestPurge(t *testing.T) {
	for _, on := range layouts() {
		if on.other != nil {
			continue // host 1 is as in the layout before
		}
		t.Run(on.name, func(t *testing.T) {
			l := up(t, append([]string{"-n", "2", "--no-start"}, on.up...)...)
			l.run("exec", "1", "iptables-nft", "-P", "FORWARD", "DROP")
			l.run("exec", "1", "iptables-legacy", "-P", "FORWARD", "DROP")
			l.run("exec", "1", "sysctl", "-qw", "net.ipv4.ip_forward=0")
			if on.transport == "ovs-kernel" {
				// Open vSwitch as its package leaves it: running, with a bridge of its host.
				l.run("exec", "1", "env", "OVS_RUNDIR=/run/openvswitch", "/usr/share/openvswitch/scripts/ovs-ctl", "--system-id=random", "start")
				l.run("exec", "1", "env", "OVS_RUNDIR=/run/openvswitch", "ovs-vsctl", "add-br", "br-host")
			}
			before := l.untouched()
			all(1, 2, func(h int) { l.begin(h) })
			l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
			l.run("container", "1", "c1")
			l.attach(1, "c1", "web")
			l.meshnet(1, "publish", "web", "c1", "8080:80")
			l.meshnet(1, "expose", "web")
			l.wantTransport(1, on.transport)
			if made := difference(before, l.untouched()); made == "" {
				t.Error("nothing was made")
			} else {
				t.Logf("made by up, attach, publish and expose:\n%s", made)
			}
			l.meshnet(1, "down", "--purge")
			after := l.untouched()
			if after != before {
				t.Errorf("purged, and yet:\n%s", difference(before, after))
			}
			t.Logf("purged: the %d lines of links, addresses, routes, neighbours, nftables, iptables, sysctls, the Open vSwitch database and processes are as before",
				strings.Count(after, "\n"))
		})
	}
}

// untouched returns all of host 1 that meshnet changes somewhere.
func (l *lab) untouched() string {
	l.t.Helper()
	return l.run("exec", "1", "bash", "-c", `ip -o link | sed 's/^[0-9]*: //' | sort; ip -o addr | sed 's/^[0-9]*: //; s/ tentative//' | sort
ip rule; ip route show table all | grep -v fe80 | sort; ip neigh show nud permanent; nft -s list ruleset; iptables-legacy -S; iptables-nft -S
sysctl -a 2>/dev/null | grep -E 'ip_forward|net.ipv4.conf.(all|default|eth0|br-phy)|net.ipv6.conf.(all|default|eth0)|rp_filter|fwmark'
export OVS_RUNDIR=/run/openvswitch
[ -S $OVS_RUNDIR/db.sock ] && while read -r t; do
	ovsdb-client -f csv dump unix:$OVS_RUNDIR/db.sock Open_vSwitch $t | sed 's/[0-9a-f]\{8\}-[-0-9a-f]*/UUID/g' | sort
done <<X
Open_vSwitch bridges external_ids manager_options other_config
Bridge name datapath_type fail_mode protocols controller external_ids other_config
Port name interfaces tag external_ids other_config
Interface name type options ofport_request external_ids other_config
X
ls /run/meshnet /var/lib/meshnet /run/openvswitch 2>/dev/null | grep -v 'pid\|ctl\|sock\|log'
pgrep -a 'ovs|meshnet' | sed 's/^[0-9]* //' | sort; true`)
}

// difference returns the lines that two texts do not share.
func difference(before, after string) string {
	var b strings.Builder
	for _, x := range []struct{ sign, a, b string }{{"-", before, after}, {"+", after, before}} {
		for line := range strings.Lines(x.a) {
			if !strings.Contains(x.b, line) {
				b.WriteString(x.sign + line)
			}
		}
	}
	return b.String()
}

// TestMoves gives an address another MAC again and again, and then to a container on another host: who
// talks to it reaches the new one at once.
func TestMoves(t *testing.T) {
	onEach(t, func(t *testing.T, l *lab, _ layout) {
		for h := 1; h <= 2; h++ {
			l.run("container", fmt.Sprint(h), "mover")
		}
		const address = "10.2.50.50"
		for i, h := range []int{1, 1, 1, 2} {
			if h == 2 {
				time.Sleep(time.Minute) // no other container gets an address that was given back just now
			}
			mac := fmt.Sprintf("02:42:00:00:00:%02x", i+1)
			l.meshnet(h, "attach", "mover", "web", "--ip", address, "--mac", mac, "--wait", fmt.Sprintf("%ds", slow(2)))
			l.eventually("reached", time.Second, func() bool { return l.pings(3, "c3", address) && l.pings(1, "c1", address) })
			if neigh := l.run("in", "3", "c3", "ip", "neigh", "show", address); !strings.Contains(neigh, mac) {
				t.Errorf("c3 takes %s for its MAC, want %s", neigh, mac)
			}
			l.meshnet(h, "detach", "mover", "web")
			if l.pings(3, "c3", address) {
				t.Error("a detached container answers")
			}
		}
	})
}

// TestGeneve carries packets by Geneve on transport B (in the guest A), and names a node that does not.
func TestGeneve(t *testing.T) {
	uplink := "bridge"
	if *inGuest {
		uplink = "plain"
	}
	l := up(t, "-n", "2", "--uplink", uplink, "--", "--encap", "geneve")
	for h := 1; h <= 2; h++ {
		l.run("container", fmt.Sprint(h), fmt.Sprint("c", h))
		l.attach(h, fmt.Sprint("c", h), "default")
	}
	l.run("matrix")
	if show := l.run("exec", "1", "ovs-vsctl", "show"); !strings.Contains(show, "type: geneve") {
		t.Errorf("no Geneve tunnel:\n%s", show)
	}
	l.meshnet(2, "down")
	l.begin(2, "--tunnel-port", "4000")
	l.converged()
	s := l.meshnet(1, "status")
	if !strings.Contains(s, "other encapsulation on h2 vxlan") || !strings.Contains(s, "other tunnel port on h2 4000") {
		t.Errorf("status does not name h2:\n%s", s)
	}
	out, err := l.try("exec", "1", "meshnet", "doctor")
	if err == nil || !strings.Contains(out, "h2") {
		t.Errorf("doctor finds nothing: %v\n%s", err, out)
	}
}

// TestMixedMTU wants the smallest underlay to set the MTU of all, and what is too large to fail where
// it is sent.
func TestMixedMTU(t *testing.T) {
	l := up(t, "-n", "2", "--no-start", "--mtu", "1500")
	l.run("exec", "2", "ip", "link", "set", "eth0", "mtu", "1400")
	for h := 1; h <= 2; h++ {
		l.begin(h)
	}
	l.converged()
	l.meshnet(1, "network", "create", "small", "10.7.0.0/16", "--mtu", "1000")
	l.converged()
	for h := 1; h <= 2; h++ {
		c := fmt.Sprint("c", h)
		l.run("container", fmt.Sprint(h), c)
		l.attach(h, c, "default")
		l.attach(h, c, "small")
	}
	for network, mtu := range map[string]int{"default": 1350, "small": 1000} {
		to := l.address("c2", network)
		l.run("in", "1", "c1", "ping", "-c", "3", "-i", "0.2", "-W", "2", "-M", "do", "-s", fmt.Sprint(mtu-28), to)
		out, err := l.command("in", "1", "c1", "ping", "-c", "1", "-W", "1", "-M", "do", "-s", fmt.Sprint(mtu-27), to).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "message too long") {
			t.Errorf("%s: a packet of %d bytes: %v\n%s", network, mtu+1, err, out)
		}
	}
	for h, want := range map[int]string{1: "smaller on h2 1400", 2: "larger on h1"} {
		if s := l.meshnet(h, "status"); !strings.Contains(s, want) {
			t.Errorf("host %d does not warn of %q:\n%s", h, want, s)
		}
	}
}
