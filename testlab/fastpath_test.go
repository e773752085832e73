package testlab

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fastStatus is what status says of the fast path.
type fastStatus struct {
	FastPath struct {
		On    bool
		Why   string
		Ports []struct {
			Device, Network, Container    string
			Fast, Slow, Refused, Returned uint64
		}
	} `json:"fast_path"`
}

// TestFastPath has known packets pass Open vSwitch by: they do not notice that it dies, that the daemon
// dies, or that the fast path is switched off and on. Without it the scenario set passes as with it.
// (That one moves is in TestMoves, all other things on transport C are with it too.)
func TestFastPath(t *testing.T) {
	l := threeHosts(t)
	l.withRouter()
	l.withInner()
	t.Run("counted", func(t *testing.T) { l.on(t).counted() })
	t.Run("underlay", func(t *testing.T) { l.on(t).underlay() })
	t.Run("steady", func(t *testing.T) { l.on(t).steady() })
	off := append(l.upFlags(), "--fastpath", "off")
	if err := os.WriteFile(l.dir()+"/upflags", []byte(strings.Join(off, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for h := 1; h <= 3; h++ {
		l.again(h, off...)
		l.fast(h, false, "--fastpath off")
		l.eventually("nothing is left of the fast path", 5*time.Second, func() bool { return l.nothingOfFast(h) == "" })
	}
	t.Run("off", func(t *testing.T) {
		for _, s := range scenarios() {
			t.Run(s.name, func(t *testing.T) { s.run(l.on(t)) })
		}
		for h := 1; h <= 3; h++ {
			l.on(t).fast(h, false, "--fastpath off")
		}
	})
	l.meshnet(1, "down", "--purge")
	if left := l.nothingOfFast(1); left != "" {
		t.Errorf("purged, and there is still\n%s", left)
	}
}

// fast wants a host's fast path on or off, and the reason in status and doctor.
func (l *lab) fast(host int, on bool, why string) {
	l.t.Helper()
	if s := ask[fastStatus](l, host, "status").FastPath; s.On != on || !strings.Contains(s.Why, why) {
		l.t.Errorf("host %d: fast path %t, %q; want %t, %q", host, s.On, s.Why, on, why)
	}
}

// nothingOfFast returns what a host has of the fast path.
func (l *lab) nothingOfFast(host int) string {
	l.t.Helper()
	devices := l.findings(host, `tc qdisc show | grep clsact
		for d in $(ls /sys/class/net); do tc filter show dev $d ingress; done
		ip -br link | grep -E '^(mc|mv|mesh)[so]'
		ls -A /sys/fs/bpf`)
	return devices + l.programs(host)
}

// programs returns which devices of a host carry a program, whether by TCX or by a filter.
func (l *lab) programs(host int) string {
	l.t.Helper()
	out, err := l.part(host, "", "programs", "list").Output()
	if err != nil {
		l.t.Fatalf("programs of host %d: %v", host, err)
	}
	return string(out)
}

// counted wants what goes which way to be told, port by port.
func (l *lab) counted() {
	for h := 1; h <= 3; h++ {
		l.fast(h, true, "the kernel has")
	}
	if out := l.say(1, "meshnet", "doctor").out; !strings.Contains(out, "fastpath") || !strings.Contains(out, "on: the kernel has") {
		l.t.Errorf("doctor says\n%s", out)
	}
	if l.nothingOfFast(1) == "" || strings.Count(l.programs(1), "\n") < 4 {
		l.t.Error("nothing of the fast path is found: what looks for the rest of it later is blind")
	}
	a1, a2, a3 := l.address("c1", "web"), l.address("c2", "web"), l.address("c3", "web")
	l.run("in", "1", "c1", "ping", "-q", "-c", "20", "-i", "0.01", a2)
	l.run("in", "1", "c1", "ping", "-q", "-c", "20", "-i", "0.01", router)
	for range 3 { // in c3's name
		if out, err := l.part(1, "c1", "frame", "eth0", datagram(macOf(a1), macOf(a2), a3, a2, 9998, "in the name of c3")).CombinedOutput(); err != nil {
			l.t.Fatalf("frame: %v %s", err, out)
		}
	}
	var container, peers, gateway uint64
	for _, p := range ask[fastStatus](l, 1, "status").FastPath.Ports {
		switch {
		case p.Container == "c1" && p.Network == "web":
			container = p.Fast
			if p.Refused != 3 || p.Slow == 0 || p.Returned == 0 { // ARP goes by the switch
				l.t.Errorf("%+v; want 3 refused, some slow and some from the switch", p)
			}
		case strings.HasPrefix(p.Device, "mv-") && p.Network == "web":
			peers = p.Fast
		case p.Device == "mesh-gw-port":
			gateway = p.Fast
		}
	}
	// The way to the world is by the network that the container was attached to first.
	if container < 20 || peers < 20 || gateway < 20 {
		l.t.Errorf("fast from c1 %d, from peers %d, from the world %d; want at least the 20 pings", container, peers, gateway)
	}
}

// atCard sends a hundred pings from host 1 to host 2, which all have to come back, and wants most of them taken at
// the card, past the VXLAN device. The function it returns sends a hundred more, and says how many were not.
func (l *lab) atCard() (others func() int) {
	a1, a2 := l.address("c1", "web"), l.address("c2", "web")
	passed := func() (n int) { // by VXLAN devices
		for _, f := range strings.Fields(l.findings(2, `for d in $(ip -o link | grep -oE 'mv-[0-9a-f]+|vxlan_sys_[0-9]+' | sort -u); do ip -s -j link show $d | grep -o '"rx":{"bytes":[0-9]*,"packets":[0-9]*' | grep -o '[0-9]*$'; done`)) {
			more, err := strconv.Atoi(f)
			if err != nil {
				l.t.Fatal(err)
			}
			n += more
		}
		return n
	}
	pings := func() int {
		before := passed()
		out := l.run("in", "1", "c1", "ping", "-q", "-c", "100", "-i", "0.002", a2)
		if m := lossRE.FindStringSubmatch(out); m == nil || m[1] != m[2] {
			l.t.Error(out)
		}
		return passed() - before
	}
	l.run("in", "2", "c2", "ping", "-c", "1", a1)
	if n := pings(); n > 20 { // ARP and the like
		l.t.Errorf("%d of 100 pings went by the VXLAN device", n)
	}
	return pings
}

// underlay wants tunnel packets to be taken at the card unless the host has an IPsec policy that would have them
// looked at; nothing is lost by the change.
func (l *lab) underlay() {
	pings := l.atCard()
	stop := l.pinging(1, "c1", l.address("c2", "web"))
	l.run("exec", "2", "ip", "xfrm", "policy", "add", "dir", "in", "src", "192.0.2.0/24", "dst", "192.0.2.0/24", "action", "allow")
	l.eventually("a policy, and all by the VXLAN device", 8*time.Second, func() bool { return pings() >= 100 })
	l.run("exec", "2", "ip", "xfrm", "policy", "flush")
	l.eventually("no policy, and nothing by the VXLAN device", 8*time.Second, func() bool { return pings() <= 20 })
	if lost, gap := stop(); lost > 0 {
		l.t.Errorf("%d pings lost, longest silence %s", lost, gap)
	}
}

// steady sends pings, one each millisecond, and a stream by TCP from host to host, and does to host 1 what
// neither may notice.
func (l *lab) steady() {
	to := l.address("c2", "web")
	l.run("in", "2", "c2", "iperf3", "-s", "-1", "-D")
	l.run("in", "1", "c1", "ping", "-c", "2", "-i", "0.2", to)
	stop := l.pingEvery("0.001", 1, "c1", to)
	stream := l.command("in", "1", "c1", "iperf3", "-J", "-i", "0.5", "-l", "4K", "-b", "20M", "-t", "120", "-c", to)
	var streamed bytes.Buffer
	stream.Stdout = &streamed
	if err := stream.Start(); err != nil {
		l.t.Fatal(err)
	}
	time.Sleep(time.Second)
	l.run("pause", "1") // or it would be back at once
	l.run("killovs", "1", "ovs-vswitchd")
	time.Sleep(10 * time.Second)
	if out := l.findings(1, "pgrep -a ovs-vswitchd"); out != "" {
		l.t.Errorf("vswitchd runs: %s", out)
	}
	l.run("resume", "1")
	l.run("converged")
	l.run("kill", "1")
	l.run("start", "1")
	l.run("converged")
	for range 3 {
		for _, flags := range [][]string{{"--fastpath", "off"}, {}} {
			l.again(1, flags...)
			l.run("converged")
			time.Sleep(time.Second)
		}
	}
	l.fast(1, true, "the kernel has")
	if lost, gap := stop(); lost > 0 {
		l.t.Errorf("%d pings lost, longest silence %s", lost, gap)
	}
	l.run("exec", "1", "pkill", "-INT", "-f", "^iperf3 -J -i 0.5 .*-c "+to+"$")
	ended := stream.Wait()
	var v struct {
		Intervals []struct{ Sum struct{ Bytes float64 } }
	}
	// Half a second each: it has to have gone on over the second before and the ten without ovs-vswitchd at least.
	if err := json.Unmarshal(streamed.Bytes(), &v); err != nil || len(v.Intervals) <= 2*(1+10) {
		l.t.Fatalf("iperf3: %v, %v\n%s", ended, err, streamed.String())
	}
	var moved []float64
	for _, i := range v.Intervals[:len(v.Intervals)-1] {
		moved = append(moved, i.Sum.Bytes)
	}
	l.t.Logf("a stream over %d half seconds, at least %.0f kB in each", len(moved), slices.Min(moved)/1000)
	if slices.Min(moved) == 0 {
		l.t.Errorf("the stream stood: %v", moved)
	}
}

var lossRE = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)
