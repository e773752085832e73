package testlab

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	passes      = flag.Int("passes", 10, "BenchmarkDataPlane: passes over all cases")
	seconds     = flag.Int("seconds", 1, "BenchmarkDataPlane: length of each transfer")
	guestPasses = flag.Int("guest-passes", 7, "BenchmarkDataPlane: passes in the guest, where one takes minutes")
	withGuest   = flag.Bool("with-guest", false, "BenchmarkDataPlane: transport A too, in the guest of testlab/vm")
	only        = flag.String("cases", "", "BenchmarkDataPlane: a regular `expression` for the names of the cases; all")
	report      = flag.String("report", "", "BenchmarkDataPlane: the Markdown `file` to write")
)

const (
	// benchGuestMax bounds the benchmark's guest.
	benchGuestMax = 90 * time.Minute
	// awakeSeconds is how long a lab that goes on is left alone: connections that were silent for too long
	// are made anew.
	awakeSeconds = 3
)

// figures are what one pass over one case gave.
type figures struct {
	Case string
	Pass int
	TCP  float64 // Mbit/s that arrived
	RTT  float64 // microseconds, mean of the middle half of pings
	Tail float64 // microseconds that one ping of twenty takes longer than
	UDP  float64 // thousand datagrams of 64 bytes that arrived in a second
}

// dataCase is one way from a client, c1 on host 1, to a server, c2 on host 2 unless it says else.
type dataCase struct {
	name    string
	what    string   // for the table
	lab     []string // arguments of lab up
	in      string   // the case whose lab it is measured in; empty: its own
	build   func(l *lab) string
	more    func(l *lab, k int) string // another server, container ck on host 2; nil: no more
	here    bool                       // the server is c3 on host 1
	outside bool                       // it is on the segment, no node
	back    bool                       // the server sends
	lab2    *lab
	target  string   // the server's address
	pinged  []string // and of all that are pinged
}

// pings is how many are sent in a turn, and pingTurns how many turns of them a pass has: round trips of 10 µs differ by a
// third from turn to turn. In the guest, where starting ping takes long, there are as many as of streams.
const (
	pings     = 200
	pingTurns = 4 * turns
)

// turns is how often each case is measured in a pass, for one stream of TCP may have twice what the next has; and how
// many containers of host 2 are pinged. ovs-vswitchd's loop reads its ports in an order that comes from their
// numbers: whose answer it finds in the same turn or in the next, which is worth a fifth of a round trip, is luck.
const turns = 5

// BenchmarkDataPlane measures raw links, the kernel's VXLAN and bridge as Swarm and flannel build it,
// hand-built Open vSwitch of each transport (action NORMAL), and ours: all stand at once, and each
// pass goes over all of them, so that each meets the same machine. A machine that is shared with others changes
// within seconds, so what is compared takes turns of a second or less, every second turn goes backwards, and there
// are many; what runs on the hosts of other lines is stopped meanwhile. What it prints are ratios within one run; absolute
// figures are those of the machine.
func BenchmarkDataPlane(b *testing.B) {
	if b.N != 1 {
		b.Fatal("run it once: -benchtime 1x")
	}
	cases := nativeCases()
	if *inGuest {
		cases = guestCases()
	}
	var all []figures
	began := load()
	all = append(all, measureAll(b, cases)...)
	if *inGuest {
		return // the lines are read outside
	}
	out := io.Writer(os.Stdout)
	var text strings.Builder
	fmt.Fprintf(&text, "# The data plane, measured\n\nWritten by `make bench-data`; not to be edited.\n\n"+
		"%s, %d processors, Linux %s, load average %s before and %s after. %d interleaved passes; medians, and in brackets the middle half.\n"+
		"TCP is the mean of %d streams of %d s; UDP that of as many, what arrives of datagrams of 64 bytes sent as fast as one sender can; RTT the mean of the middle half of %d pings (in the guest %d), on this machine to %d containers in turn where there are switches, and p95 what one of twenty takes longer than.\n"+
		"All stand at once. Measured in turns of one stream or %d pings are, together, raw, the kernel's bridge and the fast path; C or A by hand and with --fastpath off; B: the processes of the others' hosts are stopped meanwhile.\n"+
		"`ours ÷ …` is the median of the passes' own ratios.\n",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), release(b), began, load(), *passes, turns, *seconds, pings*pingTurns, pings*turns, turns, pings)
	tables(&text, "This machine", nativeCases(), all)
	ratios(&text, nativeRatios(), all)
	if *withGuest {
		guest := benchGuest(b)
		tables(&text, guestTitle, guestCases(), guest)
		fmt.Fprintf(&text, "\n%s, %d passes.\n", time.Now().UTC().Format(time.DateOnly), *guestPasses)
		ratios(&text, guestRatios(), guest)
	} else {
		text.WriteString(section(*report, guestTitle))
	}
	fmt.Fprint(out, "\n", text.String())
	if *report != "" {
		text.WriteString(section(*report, programmingTitle))
		if err := os.WriteFile(*report, []byte(text.String()), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

func nativeCases() []*dataCase {
	bridge := []string{"--uplink", "bridge"}
	return []*dataCase{
		{name: "raw", what: "host to host, veth and bridge", build: raw},
		{name: "kernel", what: "kernel VXLAN + bridge (Swarm, flannel)", build: kernelBridge, more: kernelMore},
		{name: "kernel-nat", what: "the same, and a rule that masquerades, as Swarm and flannel have", build: kernelNAT, more: kernelMore},
		{name: "hand-C", what: "C by hand: NORMAL, TSO", build: handC, more: handMore("")},
		{name: "ours-C", what: "**C, meshnet**", build: ours, more: oursMore},
		{name: "slow-C", what: "C, meshnet --fastpath off", lab: []string{"--", "--fastpath", "off"}, build: ours, more: oursMore},
		{name: "hand-B", what: "B by hand: NORMAL", lab: bridge, build: handB, more: handMore(handNoOffload)},
		{name: "ours-B", what: "**B, meshnet**", lab: bridge, build: ours, more: oursMore},

		{name: "bridge-here", what: "same host: the kernel's bridge", in: "kernel", build: bridgeHere, here: true},
		{name: "ours-here", what: "**same host: C, meshnet**", in: "ours-C", build: oursHere, here: true},
		{name: "hand-here", what: "same host: C by hand", in: "hand-C", build: handHere, here: true},
		{name: "slow-here", what: "same host: C, meshnet --fastpath off", in: "slow-C", build: oursHere, here: true},
		{name: "ours-out", what: "**to the world: C, meshnet**", in: "ours-C", build: world, outside: true},
		{name: "slow-out", what: "to the world: C, meshnet --fastpath off", in: "slow-C", build: world, outside: true},
		{name: "ours-in", what: "**from the world: C, meshnet**", in: "ours-C", build: world, outside: true, back: true},
		{name: "slow-in", what: "from the world: C, meshnet --fastpath off", in: "slow-C", build: world, outside: true, back: true},
	}
}

func guestCases() []*dataCase {
	return []*dataCase{
		{name: "raw", what: "host to host, veth and bridge", build: raw},
		{name: "kernel", what: "kernel VXLAN + bridge (Swarm, flannel)", build: kernelBridge},
		{name: "kernel-nat", what: "the same, and a rule that masquerades, as Swarm and flannel have", build: kernelNAT},
		{name: "hand-A", what: "A by hand: NORMAL", build: handA},
		{name: "ours-A", what: "**A, meshnet**", build: ours},
		{name: "slow-A", what: "A, meshnet --fastpath off", lab: []string{"--", "--fastpath", "off"}, build: ours},
	}
}

// turn is the order of a pass. The cases of a line are measured together, a second of each in turn: those whose ratios
// lie near their bounds, and what shares a lab with them.
var turn = [][]string{
	{"raw", "kernel-nat", "bridge-here", "kernel", "ours-A", "ours-C", "ours-here", "ours-out", "ours-in"},
	{"slow-in", "slow-out", "slow-here", "slow-A", "hand-A", "slow-C", "hand-C", "hand-here"},
	{"hand-B", "ours-B"},
}

// line is that of a case in turn.
func (c *dataCase) line() int {
	return slices.IndexFunc(turn, func(line []string) bool { return slices.Contains(line, c.name) })
}

// ratio is one line of what we hold ourselves to.
type ratio struct {
	of, to string
	what   string
	get    func(figures) float64
	least  float64 // 0: no budget
	most   float64
}

func tcpOf(f figures) float64  { return f.TCP }
func rttOf(f figures) float64  { return f.RTT }
func tailOf(f figures) float64 { return f.Tail }
func udpOf(f figures) float64  { return f.UDP }

func nativeRatios() []ratio {
	return []ratio{
		{"ours-C", "hand-C", "TCP", tcpOf, 0.95, 0}, {"ours-C", "hand-C", "RTT", rttOf, 0, 1.05}, {"ours-C", "hand-C", "UDP", udpOf, 0, 0},
		{"slow-C", "hand-C", "TCP", tcpOf, 0.95, 0}, {"slow-C", "hand-C", "RTT", rttOf, 0, 1.05}, {"slow-C", "hand-C", "UDP", udpOf, 0, 0},
		{"ours-B", "hand-B", "TCP", tcpOf, 0.95, 0}, {"ours-B", "hand-B", "RTT", rttOf, 0, 1.05}, {"ours-B", "hand-B", "UDP", udpOf, 0, 0},
		{"ours-C", "hand-B", "TCP", tcpOf, 6, 0}, {"slow-C", "hand-B", "TCP", tcpOf, 6, 0},
		{"ours-C", "kernel", "TCP", tcpOf, 1, 0}, {"ours-C", "kernel", "RTT", rttOf, 0, 0.85}, {"ours-C", "kernel", "UDP", udpOf, 1.1, 0},
		{"ours-C", "kernel-nat", "TCP", tcpOf, 0, 0}, {"ours-C", "kernel-nat", "RTT", rttOf, 0, 0}, {"ours-C", "kernel-nat", "UDP", udpOf, 0, 0},
		{"ours-here", "bridge-here", "TCP", tcpOf, 0, 0}, {"ours-here", "bridge-here", "RTT", rttOf, 0, 0}, {"ours-here", "bridge-here", "UDP", udpOf, 0, 0},
		{"slow-here", "hand-here", "TCP", tcpOf, 0, 0}, {"slow-here", "hand-here", "RTT", rttOf, 0, 0}, {"slow-here", "hand-here", "UDP", udpOf, 0, 0},
		{"ours-out", "slow-out", "TCP", tcpOf, 1, 0}, {"ours-out", "slow-out", "RTT", rttOf, 0, 1}, {"ours-out", "slow-out", "UDP", udpOf, 1, 0},
		{"ours-in", "slow-in", "TCP", tcpOf, 1, 0}, {"ours-in", "slow-in", "UDP", udpOf, 1, 0},
	}
}

func guestRatios() []ratio {
	return []ratio{
		{"ours-A", "hand-A", "TCP", tcpOf, 0.85, 0}, {"ours-A", "hand-A", "RTT", rttOf, 0, 1 / 0.85}, {"ours-A", "hand-A", "UDP", udpOf, 0, 0},
		{"ours-A", "kernel", "TCP", tcpOf, 0.95, 0}, {"ours-A", "kernel", "RTT", rttOf, 0, 0}, {"ours-A", "kernel", "UDP", udpOf, 0, 0},
		{"ours-A", "kernel-nat", "TCP", tcpOf, 0, 0}, {"ours-A", "kernel-nat", "RTT", rttOf, 0, 0}, {"ours-A", "kernel-nat", "UDP", udpOf, 0, 0},
		{"slow-A", "hand-A", "TCP", tcpOf, 0.85, 0}, {"slow-A", "hand-A", "RTT", rttOf, 0, 1 / 0.85}, {"slow-A", "hand-A", "UDP", udpOf, 0, 0},
	}
}

// measureAll builds all cases and goes over them, printing a line each time.
func measureAll(b *testing.B, cases []*dataCase) []figures {
	cases = slices.DeleteFunc(cases, func(c *dataCase) bool { return !regexp.MustCompile(*only).MatchString(c.name) })
	labs := map[string]*lab{}
	for i, c := range cases {
		if c.lab2 = labs[c.in]; c.lab2 == nil {
			c.lab2 = &lab{b, fmt.Sprintf("b%d%c", os.Getpid(), 'a'+i)}
			labs[c.name] = c.lab2
			b.Cleanup(func() {
				c.lab2.run("down")
				c.lab2.nothingLeft()
			})
			c.lab2.with(c.lab)
		}
		c.target = c.build(c.lab2)
		c.pinged = []string{c.target}
		for k := 4; c.more != nil && len(c.pinged) < turns; k++ {
			c.pinged = append(c.pinged, c.more(c.lab2, k))
		}
		c.serve(b)
		c.ping()
	}
	for _, l := range labs {
		l.signal(syscall.SIGSTOP)
	}
	order := slices.Concat(turn...)
	slices.SortFunc(cases, func(a, c *dataCase) int { return slices.Index(order, a.name) - slices.Index(order, c.name) })
	var all []figures
	for pass := range *passes {
		for _, f := range measure(b, cases) {
			f.Pass = pass + 1
			fmt.Printf("data %s %d %.0f %.2f %.1f %.1f\n", f.Case, f.Pass, f.TCP, f.RTT, f.Tail, f.UDP)
			all = append(all, f)
		}
		slices.Reverse(cases)
	}
	return all
}

// measure goes over the cases once. All labs are stopped before and after.
func measure(b *testing.B, cases []*dataCase) []figures {
	got := make([]figures, len(cases))
	for done := 0; done < len(cases); {
		n := 1
		for done+n < len(cases) && cases[done+n].line() == cases[done].line() {
			n++
		}
		measureLine(b, cases[done:done+n], got[done:])
		done += n
	}
	return got
}

// measureLine measures cases together.
func measureLine(b *testing.B, cases []*dataCase, got []figures) {
	awake := awakeSeconds * time.Second // little is computed meanwhile: in the guest three times as long will do
	if *inGuest {
		awake *= 3
	}
	labs := map[*lab]bool{}
	for _, c := range cases {
		labs[c.lab2] = true
	}
	for l := range labs {
		l.signal(syscall.SIGCONT)
	}
	time.Sleep(awake)
	for i, c := range cases {
		got[i].Case = c.name
		c.ping()
	}
	took := make([][]float64, len(cases))
	each := func(n int, do func(k, i int, c *dataCase)) {
		for k := range n {
			for i := range cases {
				if k%2 == 1 {
					i = len(cases) - 1 - i
				}
				do(k, i, cases[i])
			}
		}
	}
	each(turns, func(_, i int, c *dataCase) { got[i].TCP += c.tcp(b) / turns })
	each(turns, func(_, i int, c *dataCase) { got[i].UDP += c.udp(b) / turns })
	rounds := pingTurns
	if *inGuest {
		rounds = turns
	}
	each(rounds, func(k, i int, c *dataCase) {
		one := c.rtt(b, c.pinged[k%len(c.pinged)])
		got[i].RTT += mean(middle(one)) / float64(rounds)
		took[i] = append(took[i], one...)
	})
	for i := range cases {
		slices.Sort(took[i])
		got[i].Tail = took[i][len(took[i])*19/20]
	}
	for l := range labs {
		l.signal(syscall.SIGSTOP)
	}
}

// ping fails if a server does not answer.
func (c *dataCase) ping() {
	for _, target := range c.pinged {
		c.run(1, "c1", "ping", "-c", "3", "-i", "0.2", "-W", strconv.Itoa(slow(1)), target)
	}
}

// signal sends a signal to all that runs on both hosts.
func (l *lab) signal(sig syscall.Signal) {
	l.t.Helper()
	hosts := map[string]bool{}
	for h := 1; h <= 2; h++ {
		pid, err := os.ReadFile(l.file(h, "init"))
		if err != nil {
			l.t.Fatal(err)
		}
		ns, err := os.Readlink("/proc/" + strings.TrimSpace(string(pid)) + "/ns/pid")
		if err != nil {
			l.t.Fatal(err)
		}
		hosts[ns] = true
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range all {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink("/proc/" + p.Name() + "/ns/pid"); err != nil || !hosts[ns] {
			continue // it may have ended
		}
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			l.t.Fatalf("signal process %d: %v", pid, err)
		}
	}
}

// run runs a command in a container, or on its host if the case has none.
func (c *dataCase) run(host int, container string, args ...string) string {
	where := []string{"in", strconv.Itoa(host), container}
	if c.name == "raw" {
		where = []string{"exec", strconv.Itoa(host)}
	}
	return c.lab2.run(append(where, args...)...)
}

// serve starts the server of a case.
func (c *dataCase) serve(b *testing.B) {
	switch {
	case c.outside && c.back:
		// It is there already.
	case c.outside:
		if out, err := exec.Command("ip", "netns", "exec", "mn-"+c.lab2.name+"-seg", "iperf3", "-s", "-D").CombinedOutput(); err != nil {
			b.Fatalf("iperf3: %v\n%s", err, out)
		}
		b.Cleanup(func() { exec.Command("sh", "-c", "kill $(ip netns pids mn-"+c.lab2.name+"-seg)").Run() })
	case c.here:
		c.run(1, "c3", "iperf3", "-s", "-D")
	default:
		c.run(2, "c2", "iperf3", "-s", "-D")
	}
}

func (c *dataCase) iperf(b *testing.B, into any, args ...string) {
	if c.back {
		args = append(args, "-R")
	}
	out := c.run(1, "c1", append([]string{"iperf3", "-J", "-c", c.target}, args...)...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		b.Fatalf("%s: iperf3: %v\n%s", c.name, err, out)
	}
}

func (c *dataCase) tcp(b *testing.B) float64 {
	var v struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	c.iperf(b, &v, "-t", strconv.Itoa(*seconds))
	return v.End.Received.Bits / 1e6
}

func (c *dataCase) udp(b *testing.B) float64 {
	var v struct {
		End struct {
			Sum struct {
				Packets float64
				Lost    float64 `json:"lost_packets"`
				Seconds float64
			}
		}
	}
	c.iperf(b, &v, "-u", "-b", "0", "-l", "64", "-t", strconv.Itoa(*seconds))
	return (v.End.Sum.Packets - v.End.Sum.Lost) / v.End.Sum.Seconds / 1000
}

var rttRE = regexp.MustCompile(` time=([\d.]+) ms`)

// rtt pings a server, and returns what each ping took, in microseconds.
func (c *dataCase) rtt(b *testing.B, target string) (took []float64) {
	for _, m := range rttRE.FindAllStringSubmatch(c.run(1, "c1", "ping", "-i", "0.001", "-c", strconv.Itoa(pings), target), -1) {
		ms, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, ms*1000)
	}
	if len(took) < pings*9/10 {
		b.Fatalf("%s: %d of %d pings to %s", c.name, len(took), pings, target)
	}
	return took
}

// ---- building ------------------------------------------------------------------------------------

// with brings up two hosts without a daemon.
func (l *lab) with(args []string) *lab {
	l.run(append([]string{"up", "-n", "2", "--no-start"}, args...)...)
	return l
}

func raw(*lab) string { return "192.0.2.2" }

// both runs a script on both hosts, with $h the host's number, $p the other's, and OVS_RUNDIR.
func (l *lab) both(script string) {
	l.t.Helper()
	for h := 1; h <= 2; h++ {
		l.run("exec", strconv.Itoa(h), "env", fmt.Sprint("h=", h), fmt.Sprint("p=", 3-h), "OVS_RUNDIR=/run/openvswitch", "bash", "-euc", script)
	}
}

// The pieces of what is built by hand. A container c$h has 10.9.0.$h and the MAC 02:0a:00:00:00:0$h.
const (
	handContainer = `
ip netns add c$h
ip link add v$h mtu 1450 type veth peer name eth0 mtu 1450 address 02:0a:00:00:00:0$h netns c$h
ip link set v$h up
ip -n c$h link set lo up
ip -n c$h addr add 10.9.0.$h/24 dev eth0
ip -n c$h link set eth0 up
`
	handDevice = `
ip link add vx7 mtu 1450 type vxlan id 7 local 192.0.2.$h dstport 14789 nolearning
ip link set vx7 up
bridge fdb append 00:00:00:00:00:00 dev vx7 dst 192.0.2.$p
bridge fdb append 02:0a:00:00:00:0$p dev vx7 dst 192.0.2.$p
`
	handSwitch = `
cd /run/openvswitch
export OVS_LOGDIR=/var/log/openvswitch
ovsdb-tool create conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server -vconsole:off conf.db --remote=punix:db.sock --pidfile=ovsdb-server.pid --detach --no-chdir --log-file
ovs-vsctl --no-wait init
[ -z "${tso:-}" ] || ovs-vsctl --no-wait set Open_vSwitch . other_config:userspace-tso-enable=true
ovs-vswitchd -vconsole:off unix:db.sock --pidfile=ovs-vswitchd.pid --detach --no-chdir --log-file
`
	// What the userspace datapath cannot do for its own tunnels.
	handNoOffload = `
ethtool -K v$h tx off >/dev/null
ip netns exec c$h ethtool -K eth0 tx off >/dev/null
`
	handTunnel = `-- add-port br-int t -- set interface t type=vxlan options:key=7 options:remote_ip=192.0.2.$p options:dst_port=14789`
)

func kernelBridge(l *lab) string {
	l.both(handContainer + handDevice + `
ip link add br0 mtu 1450 type bridge
ip link set vx7 master br0
ip link set v$h master br0
ip link set br0 up
`)
	return "10.9.0.2"
}

// kernelNAT is what a host needs besides for its containers to reach the world. Its connections are tracked
// then, those of the tunnel with them.
func kernelNAT(l *lab) string {
	target := kernelBridge(l)
	l.both(`
nft add table ip nat
nft add chain ip nat postrouting '{ type nat hook postrouting priority srcnat; }'
nft add rule ip nat postrouting ip saddr 10.9.0.0/24 oifname eth0 masquerade
`)
	return target
}

func handA(l *lab) string {
	l.both("modprobe openvswitch\n" + handContainer + handSwitch +
		`ovs-vsctl add-br br-int -- add-port br-int v$h ` + handTunnel)
	return "10.9.0.2"
}

func handB(l *lab) string {
	// What comes in by eth0 reaches the kernel, too, which is not to answer for br-phy.
	l.both(handContainer + handNoOffload + "sysctl -qw net.ipv4.conf.eth0.arp_ignore=1\n" +
		`ovs-vsctl add-br br-int -- set bridge br-int datapath_type=netdev -- add-port br-int v$h ` + handTunnel)
	return "10.9.0.2"
}

func handC(l *lab) string {
	l.both("tso=yes\n" + handContainer + handDevice + handSwitch +
		`ovs-vsctl add-br br-int -- set bridge br-int datapath_type=netdev -- add-port br-int v$h -- add-port br-int vx7`)
	return "10.9.0.2"
}

// ours is what meshnet makes of the same host by itself.
func ours(l *lab) string {
	for _, h := range []string{"1", "2"} {
		l.run("start", h)
		l.run("container", h, "c"+h)
	}
	l.run("converged", "-t", strconv.Itoa(slow(10)))
	l.attach(1, "c1", "default")
	return l.attach(2, "c2", "default")
}

// oursHere is another container beside the client.
func oursHere(l *lab) string {
	l.run("container", "1", "c3")
	return l.attach(1, "c3", "default")
}

// bridgeHere is the same by hand.
func bridgeHere(l *lab) string { return byHand(l, 1, 3, "ip link set v$h master br0\n") }

func handHere(l *lab) string { return byHand(l, 1, 3, "ovs-vsctl add-port br-int v$h\n") }

// byHand makes container ck on a host, and does with it what a script says, of which $h is k.
func byHand(l *lab, host, k int, script string) string {
	l.run("exec", strconv.Itoa(host), "env", fmt.Sprint("h=", k), "OVS_RUNDIR=/run/openvswitch", "bash", "-euc", handContainer+script)
	return fmt.Sprint("10.9.0.", k)
}

func kernelMore(l *lab, k int) string { return byHand(l, 2, k, "ip link set v$h master br0\n") }

func handMore(script string) func(l *lab, k int) string {
	return func(l *lab, k int) string { return byHand(l, 2, k, script+"ovs-vsctl add-port br-int v$h\n") }
}

func oursMore(l *lab, k int) string {
	name := fmt.Sprint("c", k)
	l.run("container", "2", name)
	return l.attach(2, name, "default")
}

// world is a machine on the segment that is no node.
func world(l *lab) string {
	if out, err := exec.Command("ip", "-n", "mn-"+l.name+"-seg", "addr", "replace", router+"/24", "dev", "seg").CombinedOutput(); err != nil {
		l.t.Fatalf("ip addr: %v\n%s", err, out)
	}
	return router
}

// ---- the guest -----------------------------------------------------------------------------------

// benchGuest runs the benchmark in the guest and returns what it printed.
func benchGuest(b *testing.B) []figures {
	ctx, cancel := context.WithTimeout(b.Context(), benchGuestMax)
	defer cancel()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "./vm", self, "-test.run=^$", "-test.bench=DataPlane", "-test.benchtime=1x", "-test.timeout=2h",
		"-lab", "-guest", fmt.Sprint("-passes=", *guestPasses), fmt.Sprint("-seconds=", *seconds))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var all []figures
	var text strings.Builder
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	for s := bufio.NewScanner(pipe); s.Scan(); {
		fmt.Fprintln(&text, s.Text())
		var f figures
		if n, _ := fmt.Sscanf(s.Text(), "data %s %d %g %g %g %g", &f.Case, &f.Pass, &f.TCP, &f.RTT, &f.Tail, &f.UDP); n == 6 {
			fmt.Println("guest:", s.Text())
			all = append(all, f)
		}
	}
	if err := cmd.Wait(); err != nil || len(all) == 0 {
		b.Fatalf("testlab/vm: %v\n%s", err, text.String())
	}
	return all
}

const (
	guestTitle       = "The guest of testlab/vm: Debian's kernel, processor emulated; compare only with each other"
	programmingTitle = "Programming a host" // of bench/program
)

// section returns a section of a report, which another run wrote; nothing if there is none.
func section(report, title string) string {
	old, err := os.ReadFile(report)
	if err != nil {
		return ""
	}
	_, text, found := strings.Cut(string(old), "\n## "+title+"\n")
	if !found {
		return ""
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return "\n## " + title + "\n" + text
}

// ---- the tables ----------------------------------------------------------------------------------

func tables(w io.Writer, title string, cases []*dataCase, all []figures) {
	fmt.Fprintf(w, "\n## %s\n\n| case | TCP Mbit/s | RTT µs | p95 µs | UDP 64 B, kpps |\n|---|---|---|---|---|\n", title)
	for _, c := range cases {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", c.what, spread(values(all, c.name, tcpOf), "%.0f"), spread(values(all, c.name, rttOf), "%.1f"),
			spread(values(all, c.name, tailOf), "%.0f"), spread(values(all, c.name, udpOf), "%.0f"))
	}
}

func ratios(w io.Writer, want []ratio, all []figures) {
	fmt.Fprint(w, "\n| ratio | | budget | |\n|---|---|---|---|\n")
	for _, r := range want {
		of, to := values(all, r.of, r.get), values(all, r.to, r.get)
		var quotients []float64
		for i := range min(len(of), len(to)) {
			quotients = append(quotients, of[i]/to[i])
		}
		budget, verdict := "", ""
		if m := median(quotients); r.least != 0 || r.most != 0 {
			budget = fmt.Sprintf("≥ %.2f", r.least)
			holds := m >= r.least
			if r.most != 0 {
				budget, holds = fmt.Sprintf("≤ %.2f", r.most), m <= r.most
			}
			verdict = map[bool]string{true: "holds", false: "**missed**"}[holds]
		}
		fmt.Fprintf(w, "| %s: %s ÷ %s | %s | %s | %s |\n", r.what, r.of, r.to, spread(quotients, "%.2f"), budget, verdict)
	}
}

// values returns the figures of a case in the order of passes.
func values(all []figures, name string, get func(figures) float64) []float64 {
	var vs []float64
	for _, f := range all {
		if f.Case == name {
			vs = append(vs, get(f))
		}
	}
	return vs
}

func median(vs []float64) float64 {
	vs = slices.Sorted(slices.Values(vs))
	n := len(vs)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return vs[n/2]
	}
	return (vs[n/2-1] + vs[n/2]) / 2
}

func spread(vs []float64, format string) string {
	if len(vs) == 0 {
		return "–"
	}
	half := middle(vs)
	return fmt.Sprintf(format+" ("+format+"–"+format+")", median(vs), half[0], half[len(half)-1])
}

// middle returns the middle half of values, sorted: of round trips it leaves out those in whose time the machine
// did something else.
func middle(vs []float64) []float64 {
	vs = slices.Sorted(slices.Values(vs))
	return vs[len(vs)/4 : len(vs)-len(vs)/4]
}

func mean(vs []float64) (m float64) {
	for _, v := range vs {
		m += v / float64(len(vs))
	}
	return m
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg") // said in the report, or not
	one, _, _ := strings.Cut(string(text), " ")
	return cmp.Or(one, "unknown")
}

func release(b *testing.B) string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
