package testlab

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

type statusJSON struct {
	Node          struct{ ID, Name, Address, Version string }
	Converged     bool
	Digest        string
	NodesAlive    int `json:"nodes_alive"`
	NodesKnown    int `json:"nodes_known"`
	NodesAgreeing int `json:"nodes_agreeing"`
	Transport     string
	Pending       []string
	Repairs       int
}

type attachment struct {
	Endpoint, Container, Network, Address, MAC, Node, State string
}

// threeHosts has a container c1, c2, c3 on each host, on web (10.2.0.0/16) and default.
func threeHosts(t *testing.T, args ...string) *lab {
	l := up(t, args...)
	l.run("converged", "-t", fmt.Sprint(slow(10)))
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	seen := map[string]string{}
	for h := 1; h <= 3; h++ {
		c := fmt.Sprint("c", h)
		l.run("container", fmt.Sprint(h), c)
		for _, network := range []string{"web", "default"} {
			a := l.attach(h, c, network)
			if other, ok := seen[a]; ok {
				t.Fatalf("%s has the address of %s: %s", c, other, a)
			}
			seen[a] = c
		}
	}
	return l
}

func (l *lab) address(container, network string) string {
	l.t.Helper()
	for _, a := range ask[[]attachment](l, 1, "ps", "-a") {
		if a.Container == container && a.Network == network {
			address, _, _ := strings.Cut(a.Address, "/")
			return address
		}
	}
	l.t.Fatalf("%s is not on %s", container, network)
	return ""
}

// TestKernelVXLAN is the main job on transport C, what a host without the kernel module gets.
func TestKernelVXLAN(t *testing.T) {
	l := threeHosts(t)
	for h := 1; h <= 3; h++ {
		s := ask[statusJSON](l, h, "status")
		if !s.Converged || s.NodesAgreeing != 3 || s.NodesAlive != 3 || s.Transport != "kernel-vxlan" {
			t.Errorf("host %d: %+v", h, s)
		}
	}
	t.Run("matrix", func(t *testing.T) { l.on(t).reach() })
	t.Run("tunnels", func(t *testing.T) { l.on(t).tunnels() })
	t.Run("large packets", func(t *testing.T) { l.on(t).largestPacket(1450) })
	t.Run("transfer", func(t *testing.T) { l.on(t).transfer(200_000_000) })
	t.Run("no ARP on the underlay", func(t *testing.T) { l.on(t).noARP() })
	t.Run("split and healed", func(t *testing.T) { l.on(t).splitAndHealed() })
	t.Run("detached", func(t *testing.T) { l.on(t).detached() })
}

// TestUnderlayOnBridge is the main job on transport B.
func TestUnderlayOnBridge(t *testing.T) {
	l := threeHosts(t, "--uplink", "bridge")
	if s := ask[statusJSON](l, 1, "status"); s.Transport != "ovs-userspace" || s.NodesAgreeing != 3 {
		t.Errorf("%+v", s)
	}
	t.Run("matrix", func(t *testing.T) { l.on(t).reach() })
	t.Run("full mesh", func(t *testing.T) { l.on(t).fullMesh() })
	t.Run("tunnels", func(t *testing.T) { l.on(t).tunnels() })
	t.Run("large packets", func(t *testing.T) { l.on(t).largestPacket(1450) })
	t.Run("transfer", func(t *testing.T) { l.on(t).transfer(200_000_000) })
	t.Run("no ARP on the underlay", func(t *testing.T) { l.on(t).noARP() })
	t.Run("one answer", func(t *testing.T) { l.on(t).oneAnswer() })
}

// oneAnswer asks by ARP for a host on transport B: its bridge answers, and not the kernel on the bridge's NIC, too.
func (l *lab) oneAnswer() {
	mac := strings.TrimSpace(l.run("exec", "2", "sh", "-c", "ip -o link show br-phy | sed 's/.*ether //; s/ .*//'"))
	said := l.run("exec", "1", "sh", "-c", "busybox arping -c 3 -I br-phy 192.0.2.2 || true")
	answers := strings.Count(said, "reply from 192.0.2.2")
	if answers == 0 || strings.Count(said, "["+mac+"]") != answers {
		l.t.Errorf("want answers of %s alone:\n%s", mac, said)
	}
}

// on is the lab for a subtest.
func (l *lab) on(t *testing.T) *lab { return &lab{t, l.name} }

// tunnel waits until a host's probes show its tunnel to another as wanted, up or down.
func (l *lab) tunnel(host, peer int, want string) {
	l.t.Helper()
	type node struct {
		Name, Tunnel string
		RTT          float64
		Loss         *float64
	}
	var last []node
	for end := time.Now().Add(time.Duration(slow(10)) * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		last = ask[[]node](l, host, "nodes")
		for _, n := range last {
			if n.Name == fmt.Sprint("h", peer) && n.Loss != nil && n.Tunnel == want && (n.RTT > 0 || want == "down") {
				return
			}
		}
	}
	l.t.Errorf("host %d: the tunnel to host %d is not shown %s by probes: %+v", host, peer, want, last)
}

// tunnels wants all tunnels up.
func (l *lab) tunnels() {
	for h := 1; h <= 3; h++ {
		for p := 1; p <= 3; p++ {
			if p != h {
				l.tunnel(h, p, "up")
			}
		}
	}
}

func (l *lab) reach() {
	l.t.Log("\n" + l.run("matrix", "web") + l.run("matrix", "default"))
}

func (l *lab) largestPacket(mtu int) {
	to := l.address("c2", "web")
	l.run("in", "1", "c1", "ping", "-c", "3", "-i", "0.1", "-W", "2", "-M", "do", "-s", fmt.Sprint(mtu-28), to)
	if out, err := l.try("in", "1", "c1", "ping", "-c", "1", "-W", "1", "-M", "do", "-s", fmt.Sprint(mtu-27), to); err == nil {
		l.t.Errorf("a packet larger than the MTU passed:\n%s", out)
	}
}

// transfer sends some bytes each way between two hosts, with nobody having touched ethtool.
func (l *lab) transfer(size int) {
	for _, way := range [][2]int{{1, 2}, {3, 1}} {
		from, to := way[0], way[1]
		address := l.address(fmt.Sprint("c", to), "web") + ":5001"
		sink, ready := l.start(l.part(to, fmt.Sprint("c", to), "sink", address))
		sent, err := l.part(from, fmt.Sprint("c", from), "source", address, fmt.Sprint(size), "seed").Output()
		if err != nil {
			l.t.Fatalf("source: %v", err)
		}
		if got := ready(); got != strings.TrimSpace(string(sent)) || len(got) != 64 {
			l.t.Errorf("host %d to %d: sent %s, got %s", from, to, sent, got)
		}
		if err := sink.Wait(); err != nil {
			l.t.Error(err)
		}
	}
}

// start starts a part and waits until it says that it is ready. The function returned reads its next
// line.
func (l *lab) start(cmd *exec.Cmd) (*exec.Cmd, func() string) {
	l.t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	next := func() string {
		lines.Scan()
		return strings.TrimSpace(lines.Text())
	}
	if s := next(); s != "ready" {
		l.t.Fatalf("%v says %q", cmd.Args, s)
	}
	return cmd, next
}

// isolation wants no way from web to default, nor to a network with web's own subnet.
func (l *lab) isolation() {
	l.meshnet(2, "network", "create", "web2", "10.2.0.0/16", "--force")
	l.run("container", "2", "x2")
	l.meshnet(2, "attach", "x2", "web2", "--ip", "10.2.200.200", "--wait", fmt.Sprintf("%ds", slow(2)))
	l.run("container", "1", "w1")
	l.attach(1, "w1", "web")
	l.run("in", "1", "w1", "ping", "-c", "1", "-W", fmt.Sprint(slow(2)), l.address("c2", "web"))
	l.run("in", "1", "w1", "ip", "route", "add", "10.1.0.0/16", "dev", "eth0")
	strangers := []string{l.address("c2", "default"), l.address("c1", "default"), "10.2.200.200"}
	l.shut(1, "w1", strangers...)
	for _, to := range strangers { // nor when the MAC is known
		l.run("in", "1", "w1", "ip", "neigh", "replace", to, "lladdr", macOf(to), "dev", "eth0")
	}
	l.shut(1, "w1", strangers...)
}

// shut wants addresses not to answer a container.
func (l *lab) shut(host int, container string, addresses ...string) {
	l.t.Helper()
	var asking sync.WaitGroup
	for _, to := range addresses {
		asking.Go(func() {
			if l.pings(host, container, to) {
				l.t.Errorf("%s on host %d reaches %s", container, host, to)
			}
		})
	}
	asking.Wait()
}

func macOf(address string) string {
	var a, b, c, d int
	fmt.Sscanf(address, "%d.%d.%d.%d", &a, &b, &c, &d)
	return fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", a, b, c, d)
}

// noARP wants no ARP of containers between hosts. That the capture would show one is seen first, by
// a forged one.
func (l *lab) noARP() {
	tcpdump := exec.Command("nsenter", "--net=/run/netns/mn-"+l.name+"-seg",
		"tcpdump", "-l", "-nn", "-T", "vxlan", "-i", "u2", "--immediate-mode", "udp port 14789")
	var out bytes.Buffer
	tcpdump.Stdout = &out
	stderr, err := tcpdump.StderrPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := tcpdump.Start(); err != nil {
		l.t.Fatal(err)
	}
	for s := bufio.NewScanner(stderr); s.Scan() && !strings.Contains(s.Text(), "listening on"); {
	}
	vni := ask[struct{ VNI int }](l, 1, "network", "inspect", "web").VNI
	if err := l.part(1, "", "forge", "192.0.2.2:14789", fmt.Sprint(vni)).Run(); err != nil {
		l.t.Fatal(err)
	}
	for h := 1; h <= 3; h++ {
		c := fmt.Sprint("c", h)
		l.run("in", fmt.Sprint(h), c, "ip", "neigh", "flush", "all")
	}
	l.run("matrix", "web")
	if _, err := l.try("in", "1", "c1", "ping", "-c", "1", "-W", "1", "10.2.77.77"); err == nil {
		l.t.Error("an address that nobody has answers")
	}
	if err := tcpdump.Process.Signal(os.Interrupt); err != nil {
		l.t.Fatal(err)
	}
	if err := tcpdump.Wait(); err != nil {
		l.t.Logf("tcpdump: %v", err)
	}
	var arps []string
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "ARP") {
			arps = append(arps, strings.TrimSpace(line))
		}
	}
	if len(arps) != 1 || !strings.Contains(arps[0], "10.2.99.99") {
		l.t.Errorf("want the forged ARP and no other, got %d:\n%s", len(arps), strings.Join(arps, "\n"))
	}
	if !strings.Contains(out.String(), "ICMP echo request") {
		l.t.Errorf("the capture has no pings:\n%s", out.String())
	}
}

// broadcastOnce wants each broadcast at each other member once, and nowhere else. It needs what
// isolation makes.
func (l *lab) broadcastOnce() {
	here := func(h int, c string) *ear { return l.hears(h, c, "9999") }
	members := []*ear{here(1, "w1"), here(2, "c2"), here(3, "c3")}
	own, other := here(1, "c1"), here(2, "x2")
	if out, err := l.part(1, "c1", "shout", l.address("c1", "web"), "20", "10.2.255.255:9999").CombinedOutput(); err != nil {
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
	if got := other.heard(); len(got) != 0 {
		l.t.Errorf("%v heard %v, want nothing", other.cmd.Args, got)
	}
	for text, n := range own.heard() {
		if n != 1 { // its own kernel loops it back; the overlay must not
			l.t.Errorf("c1 heard its own %s %d times", text, n)
		}
	}
}

// splitAndHealed wants both sides to work alone and one mesh afterwards.
func (l *lab) splitAndHealed() {
	l.run("split", "1,2", "3")
	l.meshnet(1, "network", "create", "left", "10.31.0.0/24")
	l.meshnet(3, "network", "create", "right", "10.32.0.0/24")
	l.run("container", "3", "r3")
	l.meshnet(3, "attach", "r3", "right")
	l.tunnel(1, 3, "down")
	l.tunnel(1, 2, "up")
	time.Sleep(time.Minute)
	if s := ask[statusJSON](l, 1, "status"); s.NodesAlive != 2 {
		l.t.Errorf("cut off for a minute, and %d nodes are alive", s.NodesAlive)
	}
	l.run("heal")
	l.run("converged", "-t", "30")
	for h := 1; h <= 3; h++ {
		names := l.meshnet(h, "network", "ls")
		for _, n := range []string{"left", "right", "web", "default"} {
			if !strings.Contains(names, n) {
				l.t.Errorf("host %d has no network %s:\n%s", h, n, names)
			}
		}
		if s := ask[statusJSON](l, h, "status"); s.NodesAgreeing != 3 {
			l.t.Errorf("host %d: %+v", h, s)
		}
	}
	l.reach()
}

// detached wants nothing of an attachment left, and a network in use not removed.
func (l *lab) detached() {
	if out, err := l.try("exec", "2", "meshnet", "network", "rm", "right"); err == nil {
		l.t.Errorf("a network in use was removed:\n%s", out)
	}
	l.meshnet(3, "detach", "r3", "right")
	l.meshnet(3, "detach", "r3", "right")
	l.run("converged")
	l.meshnet(2, "network", "rm", "right")
	l.run("converged")
	if names := l.meshnet(3, "network", "ls"); strings.Contains(names, "right") {
		l.t.Errorf("right is still there:\n%s", names)
	}
	if links := l.run("in", "3", "r3", "ip", "-br", "link"); strings.Contains(links, "eth") {
		l.t.Errorf("r3 still has an interface:\n%s", links)
	}
}

// fullMesh wants a tunnel port to each peer on each host.
func (l *lab) fullMesh() {
	for h := 1; h <= 3; h++ {
		show := l.run("exec", fmt.Sprint(h), "ovs-vsctl", "show")
		for p := 1; p <= 3; p++ {
			want := 1
			if p == h {
				want = 0
			}
			if n := strings.Count(show, fmt.Sprintf(`remote_ip="192.0.2.%d"`, p)); n != want {
				l.t.Errorf("host %d has %d tunnels to host %d:\n%s", h, n, p, show)
			}
		}
	}
}

// TestDocker attaches containers of a dockerd on each host by name and by id.
func TestDocker(t *testing.T) {
	l := up(t, "-n", "2", "--docker")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	l.run("exec", "1", "docker", "run", "-d", "--name", "c1", "busybox", "sleep", "100000")
	id := strings.TrimSpace(l.run("exec", "2", "docker", "run", "-d", "--name", "c2", "busybox", "sleep", "100000"))
	l.attach(1, "c1", "web")
	l.attach(2, id[:12], "web")
	l.run("in", "1", "c1", "ping", "-c", "2", "-W", "2", l.address("c2", "web"))
	l.run("in", "2", "c2", "ping", "-c", "2", "-W", "2", l.address("c1", "web"))
	l.run("matrix", "web")
	out, err := l.command("exec", "1", "meshnet", "attach", "nobody", "web").CombinedOutput()
	if err == nil || strings.Count(string(out), "\n") != 1 {
		t.Errorf("attach of nobody: %v %q", err, out)
	}
}

// TestKey wants a node without the key to stay outside.
func TestKey(t *testing.T) {
	dir := t.TempDir()
	keys := [2]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for i, k := range keys {
		if err := os.WriteFile(k, bytes.Repeat([]byte{byte(i + 1)}, 32), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := up(t, "--no-start")
	for h, k := range []string{keys[0], keys[0], keys[1]} {
		l.meshnet(h+1, "up", "-d", "--key-file", k)
	}
	l.meshnet(1, "network", "create", "secret", "10.9.0.0/24")
	l.run("exec", "2", "meshnet", "network", "inspect", "secret")
	if s := ask[statusJSON](l, 1, "status"); s.NodesAlive != 2 {
		t.Errorf("%+v", s)
	}
	if out, err := l.try("exec", "3", "meshnet", "network", "inspect", "secret"); err == nil {
		t.Errorf("a node with another key knows the network:\n%s", out)
	}
}

// TestMistakes wants one line that says what to do, and the contract's exit code, for what people
// get wrong.
func TestMistakes(t *testing.T) {
	l := up(t, "-n", "1", "--no-start")
	run := func(args ...string) (int, string) {
		cmd := l.command(append([]string{"exec", "1"}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), stderr.String()
	}
	refused := func(code int, args ...string) {
		t.Helper()
		got, line := run(append([]string{"meshnet"}, args...)...)
		if got != code || strings.Count(line, "\n") != 1 || !strings.HasPrefix(line, "meshnet: ") {
			t.Errorf("meshnet %s: exit %d, want %d:\n%s", strings.Join(args, " "), got, code, line)
		}
		t.Log(strings.TrimSpace(line))
	}
	refused(3, "status")
	refused(3, "attach", "c1")
	refused(1, "up", "-d", "--iface", "nowhere0")
	refused(1, "up", "-d", "--key-file", "/nowhere")
	refused(2, "up", "-d", "--default-subnet", "10.1.2.3/16")
	if code, line := run("setpriv", "--reuid=65534", "--clear-groups", "meshnet", "up", "-d"); code != 1 || !strings.Contains(line, "root") {
		t.Errorf("not root: exit %d: %s", code, line)
	}
	// Only this host does not see the program any more.
	l.run("exec", "1", "mount", "--bind", "/dev/null", "/usr/sbin/ovs-vswitchd")
	if code, line := run("meshnet", "up", "-d"); code != 1 || !strings.Contains(line, "apt-get install openvswitch-switch") {
		t.Errorf("no Open vSwitch: exit %d: %s", code, line)
	}
	l.run("exec", "1", "umount", "/usr/sbin/ovs-vswitchd")
	l.meshnet(1, "up", "-d")
	l.meshnet(1, "up", "-d")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	refused(2, "network", "create", "bad", "10.2.0.0/33")
	refused(2, "network", "create", "bad", "10.3.0.1/16")
	refused(2, "network", "create", "bad", "300.0.0.0/8")
	refused(1, "network", "create", "bad", "10.2.4.0/24")
	refused(1, "network", "create", "web", "10.4.0.0/16")
	refused(2, "network", "create", strings.Repeat("n", 64))
	refused(1, "network", "inspect", "nothing")
	refused(1, "network", "rm", "nothing")
	refused(1, "attach", "nobody", "web")
	refused(1, "attach", "nobody", "nothing")
	refused(1, "attach", "--pid", "1", "web")
	refused(2, "attach")
	refused(2, "frobnicate")
	refused(2, "status", "--frobnicate")
	l.run("container", "1", "c1")
	refused(2, "attach", "c1", "web", "--ip", "10.9.0.1")
	refused(1, "attach", "c1", "web", "--ip", "10.2.0.1")
	refused(2, "attach", "c1", "web", "--mac", "zz")
	if ps := ask[[]attachment](l, 1, "ps", "-a"); len(ps) != 0 {
		t.Errorf("refused, and yet: %+v", ps)
	}
	l.meshnet(1, "down")
	l.meshnet(1, "down")
	refused(3, "status")
}
