package testlab

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var longCut = flag.Duration("cut", time.Minute, "how long the cut of TestCutWithoutMDNS lasts")

// said is what a command on a host printed, whether it failed or not.
type said struct {
	out, err string
	code     int
}

// say runs a command on a host and takes whatever comes of it.
func (l *lab) say(host int, args ...string) said {
	l.t.Helper()
	cmd := l.command(append([]string{"exec", fmt.Sprint(host)}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		l.t.Fatal(err)
	}
	return said{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// within polls for at most d, and returns how long it took.
func (l *lab) within(what string, d time.Duration, ok func() bool) time.Duration {
	l.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > d {
			l.t.Fatalf("not within %s: %s", d, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(began)
}

// pinging pings from a container 100 times a second until it is stopped, and returns how many were
// lost and the longest silence.
func (l *lab) pinging(host int, container, to string) (stop func() (lost int, gap time.Duration)) {
	l.t.Helper()
	return l.pingEvery("0.01", host, container, to)
}

// pingEvery is pinging with so many seconds between two pings.
func (l *lab) pingEvery(interval string, host int, container, to string) (stop func() (lost int, gap time.Duration)) {
	l.t.Helper()
	cmd := l.command("in", fmt.Sprint(host), container, "ping", "-D", "-i", interval, "-W", "1", to)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	began := time.Now()
	return func() (int, time.Duration) {
		l.t.Helper()
		// The ping itself is to hear of it, not the programs that led to it.
		l.run("exec", fmt.Sprint(host), "pkill", "-INT", "-f", "ping -D -i "+interval+" -W 1 "+to+"$")
		if err := cmd.Wait(); err != nil && !strings.Contains(out.String(), "received") {
			l.t.Fatalf("ping: %v\n%s", err, out.String())
		}
		last, gap := float64(began.UnixNano())/1e9, 0.0
		seqs, sent := map[int]bool{}, 0
		for _, line := range stampRE.FindAllStringSubmatch(out.String(), -1) {
			at, _ := strconv.ParseFloat(line[1], 64)
			gap = max(gap, at-last)
			last = at
			seq, _ := strconv.Atoi(line[2])
			seqs[seq], sent = true, max(sent, seq) // the last may be on its way when it ends
		}
		if sent == 0 {
			l.t.Fatalf("ping:\n%s", out.String())
		}
		l.t.Logf("%d pings, one each %s s", sent, interval)
		return sent - len(seqs), time.Duration(gap * 1e9)
	}
}

var stampRE = regexp.MustCompile(`(?m)^\[([0-9.]+)\] 64 bytes .* icmp_seq=([0-9]+) `)

// TestManyUp: five hosts that start in the same second are one mesh with one network, and five up on one
// host are one daemon.
func TestManyUp(t *testing.T) {
	l := up(t, "-n", "5", "--no-start")
	var wg sync.WaitGroup
	began := time.Now()
	for h := 1; h <= 5; h++ {
		for range map[bool]int{true: 5, false: 1}[h == 1] {
			wg.Go(func() {
				if s := l.say(h, "meshnet", "up", "-d"); s.code != 0 {
					t.Errorf("host %d: %+v", h, s)
				}
			})
		}
	}
	wg.Wait()
	t.Logf("all are ready after %s", time.Since(began).Round(time.Millisecond))
	l.run("converged", "-t", "20")
	one := time.Since(began)
	for h := 1; h <= 5; h++ {
		s := ask[statusJSON](l, h, "status")
		if s.NodesAlive != 5 || s.NodesAgreeing != 5 || len(strings.Fields(l.run("exec", fmt.Sprint(h), "pgrep", "-f", "meshnet up"))) != 1 {
			t.Errorf("host %d: %+v", h, s)
		}
		if names := ask[[]struct{ Name string }](l, h, "network", "ls"); len(names) != 1 {
			t.Errorf("host %d has networks %v", h, names)
		}
	}
	again := l.say(1, "meshnet", "up", "-d")
	if again.code != 0 || !strings.Contains(again.out, "runs already") {
		t.Errorf("up again: %+v", again)
	}
	l.life("many up", "five hosts start in the same second, on one of them up five times", one, -1, again.out)
	t.Run("two daemons on one state directory", func(t *testing.T) {
		s := l.on(t).say(1, "meshnet", "up", "-d", "--run-dir", "/run/second", "--port", "17947", "--ovs", "private")
		if s.code != 1 || strings.Count(s.err, "\n") != 1 || !strings.Contains(s.err, "another meshnet daemon uses it") {
			t.Errorf("%+v", s)
		}
		t.Log(strings.TrimSpace(s.err))
	})
	t.Run("peers away", func(t *testing.T) { l.on(t).peersAway() })
	t.Run("cloned machine", func(t *testing.T) { l.on(t).cloned() })
}

// peersAway wants full work on a host that starts while it reaches nobody.
func (l *lab) peersAway() {
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	l.run("container", "2", "a1")
	l.attach(2, "a1", "web")
	l.run("converged")
	l.run("kill", "2")
	l.run("split", "2")
	began := time.Now()
	l.meshnet(2, "up", "-d")
	l.t.Logf("ready alone after %s", time.Since(began).Round(time.Millisecond))
	l.run("container", "2", "a2")
	began = time.Now()
	to := l.attach(2, "a2", "web")
	l.t.Logf("attached alone after %s", time.Since(began).Round(time.Millisecond))
	l.run("in", "2", "a1", "ping", "-c", "1", "-W", "2", to)
	read := l.meshnet(2, "network", "create", "alone")
	l.meshnet(2, "detach", "a2", "web")
	l.run("heal")
	healed := time.Now()
	l.run("converged", "-t", "30")
	l.life("peers away", "a node starts while it reaches nobody: create, attach, detach, ping; then the cut heals", time.Since(healed), -1, read)
	if names := l.meshnet(5, "network", "ls"); !strings.Contains(names, "alone") {
		l.t.Errorf("what was made alone is lost:\n%s", names)
	}
}

// cloned makes host 5 a clone of host 4, state, machine id and name, and wants both to say so.
func (l *lab) cloned() {
	state := func(h int) string { return fmt.Sprintf("/tmp/meshnet-%s/h%d/", l.name, h) }
	l.meshnet(4, "network", "create", "before")
	l.meshnet(5, "down")
	for _, args := range [][]string{
		{"rm", "-rf", state(5) + "state/identity", state(5) + "state/log"},
		{"cp", state(4) + "state/identity", state(4) + "state/log", state(5) + "state/"},
		{"cp", state(4) + "machine-id", state(5) + "machine-id"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			l.t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	began := time.Now()
	l.meshnet(5, "up", "-d", "--name", "h4")
	for _, h := range []int{4, 5} {
		l.within(fmt.Sprintf("host %d knows of its clone", h), 20*time.Second, func() bool {
			return strings.Contains(l.meshnet(h, "status"), "two hosts are node")
		})
	}
	know := time.Since(began)
	s := l.say(5, "meshnet", "network", "create", "no")
	if s.code == 0 || strings.Count(s.err, "\n") != 1 || !strings.Contains(s.err, "192.0.2.4") || !strings.Contains(s.err, "192.0.2.5") {
		l.t.Errorf("the clone with the larger address: %+v", s)
	}
	l.life("cloned machine: both know", "host 5 starts with host 4's state, machine id and name", know, -1, s.err)
	l.meshnet(4, "network", "create", "after")
	l.meshnet(5, "down")
	l.run("exec", "5", "rm", "-rf", "/var/lib/meshnet/identity", "/var/lib/meshnet/log")
	l.meshnet(5, "up", "-d")
	l.run("converged", "-t", "30")
	if s := ask[statusJSON](l, 5, "status"); s.NodesAlive != 5 {
		l.t.Errorf("after the clone became a new node: %+v", s)
	}
}

// TestAddressFollows: a host gets another address while it runs, and a card of another MTU; tunnels
// follow, containers keep theirs.
func TestAddressFollows(t *testing.T) {
	l := threeHosts(t)
	before := ask[[]attachment](l, 2, "ps")
	stop := l.pinging(1, "c1", l.address("c2", "web"))
	time.Sleep(time.Second)
	l.run("exec", "2", "ip", "addr", "del", "192.0.2.2/24", "dev", "eth0")
	time.Sleep(2 * time.Second) // as a lease that ran out
	l.run("exec", "2", "ip", "addr", "add", "192.0.2.102/24", "dev", "eth0")
	l.run("exec", "2", "ip", "route", "replace", "default", "via", "192.0.2.254")
	took := l.within("the others see the new address", 10*time.Second, func() bool {
		return strings.Contains(l.meshnet(1, "nodes"), "192.0.2.102") && strings.Contains(l.meshnet(3, "nodes"), "192.0.2.102")
	})
	l.run("converged", "-t", "10")
	l.run("matrix", "web")
	lost, gap := stop()
	l.life("another address", fmt.Sprintf("the address is gone for 2 s, then there is another; longest silence %.1f s", gap.Seconds()), took, lost, l.logged(2, "underlay"))
	if gap > 10*time.Second {
		t.Errorf("tunnels followed after %s", gap)
	}
	if after := ask[[]attachment](l, 2, "ps"); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	for h := 1; h <= 3; h++ {
		if n := len(ask[[]struct{ Name string }](l, h, "nodes")); n != 3 {
			t.Errorf("host %d knows %d nodes", h, n)
		}
	}
	l.run("exec", "3", "ip", "link", "set", "eth0", "mtu", "1400")
	l.within("the smaller MTU is taken over", 10*time.Second, func() bool {
		return strings.Contains(l.run("in", "3", "c3", "ip", "link"), "mtu 1350")
	})
	l.run("matrix", "web")
}

// TestCutWithoutMDNS: a cut, with mDNS blocked from its beginning on, is healed by those that the state
// names. (-cut 5m in the soak)
func TestCutWithoutMDNS(t *testing.T) {
	l := up(t)
	l.run("converged", "-t", "10")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	for h := 1; h <= 3; h++ {
		l.run("exec", fmt.Sprint(h), "nft", "add table inet nomdns; add chain inet nomdns in { type filter hook input priority 0; }; "+
			"add rule inet nomdns in udp dport 5353 drop")
	}
	l.run("split", "1,2", "3")
	time.Sleep(*longCut)
	for h, alive := range []int{2, 2, 1} {
		if s := ask[statusJSON](l, h+1, "status"); s.NodesAlive != alive {
			t.Errorf("host %d is cut off and sees %d alive", h+1, s.NodesAlive)
		}
	}
	read := l.line(1, "h3", "nodes")
	l.meshnet(3, "network", "create", "right")
	l.run("heal")
	began := time.Now()
	l.within("three agree", 30*time.Second, func() bool {
		s := ask[statusJSON](l, 1, "status")
		return s.NodesAlive == 3 && s.NodesAgreeing == 3 && strings.Contains(l.meshnet(2, "network", "ls"), "right")
	})
	l.life("cut, mDNS blocked", fmt.Sprintf("three nodes cut 2:1 for %s, healed", *longCut), time.Since(began), -1, read)
}

// TestClustersApart: two clusters on one segment, both finding their own by mDNS, know nothing of each
// other.
func TestClustersApart(t *testing.T) {
	l := up(t, "-n", "4", "--no-start")
	clusters := []string{"red", "red", "blue", "blue"}
	for i, c := range clusters {
		l.meshnet(i+1, "up", "-d", "--cluster", c)
	}
	l.meshnet(1, "network", "create", "ofred", "10.2.0.0/16")
	l.meshnet(3, "network", "create", "ofblue", "10.2.0.0/16")
	time.Sleep(6 * time.Second) // more than a round of mDNS
	for i, c := range clusters {
		s := ask[statusJSON](l, i+1, "status")
		names := l.meshnet(i+1, "network", "ls")
		if s.NodesKnown != 2 || s.NodesAgreeing != 2 || strings.Contains(names, "ofred") != (c == "red") || strings.Contains(names, "ofblue") != (c == "blue") {
			t.Errorf("host %d of %s: %+v\n%s", i+1, c, s, names)
		}
	}
	l.life("two clusters on one LAN", "red and blue of two nodes each, both with one subnet", 0, -1, l.line(1, "converged", "status"))
}

// TestFullDisk: a host whose disk is full refuses new attachments in one line, keeps those it has, sees
// what others do, and goes on when there is space; also when it is started meanwhile.
func TestFullDisk(t *testing.T) {
	l := up(t, "--no-start")
	l.run("exec", "2", "mount", "-t", "tmpfs", "-o", "size=4m", "small", "/var/lib/meshnet")
	for h := 1; h <= 3; h++ {
		l.meshnet(h, "up", "-d")
		l.run("container", fmt.Sprint(h), fmt.Sprint("c", h))
	}
	l.run("converged", "-t", "20")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	for h := 1; h <= 3; h++ {
		l.attach(h, fmt.Sprint("c", h), "web")
	}
	stop := l.pinging(1, "c1", l.address("c2", "web"))
	l.run("exec", "2", "sh", "-c", "cat /dev/zero >/var/lib/meshnet/fill 2>/dev/null; true")
	l.run("container", "2", "no")
	var read string
	full := func(when string) {
		t.Helper()
		var s said
		l.within("attach is refused "+when, 60*time.Second, func() bool {
			s = l.say(2, "meshnet", "attach", "no", "web")
			l.say(2, "meshnet", "detach", "no", "web")
			return s.code != 0
		})
		if strings.Count(s.err, "\n") != 1 || !strings.Contains(s.err, "no space left on device") || !strings.Contains(s.err, "free space on /var/lib/meshnet") {
			t.Errorf("%s: %+v", when, s)
		}
		read = s.err
	}
	// What space there was in reserve has been used up when it starts the next time.
	l.run("kill", "2")
	l.run("start", "2")
	full("after a restart")
	l.run("container", "3", "more")
	l.attach(3, "more", "web")
	l.run("in", "2", "c2", "ping", "-c", "2", "-W", "2", l.address("more", "web"))
	l.run("matrix", "web")
	l.run("exec", "2", "rm", "/var/lib/meshnet/fill")
	took := l.within("attach works again", 5*time.Second, func() bool { return l.say(2, "meshnet", "attach", "no", "web").code == 0 })
	l.run("converged", "-t", "10")
	l.run("matrix", "web")
	lost, gap := stop()
	l.life("full disk", fmt.Sprintf("host 2's disk is filled, the daemon killed and started, then space made; longest silence %.1f s", gap.Seconds()), took, lost, read)
	if lost > 0 {
		t.Errorf("%d pings lost", lost)
	}
}

// nextVersion builds the program as a next version might be: its node record has a field, its map a
// kind of record and its log a kind of line that this version does not know.
func nextVersion(t *testing.T) (program string) {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for _, edit := range []struct{ file, at, more string }{
		{"state/wire_records.go", "\tb = appendBytes(b, 8, n.Version)\n", "\tb = appendBytes(b, 90, \"field-of-next\")\n"},
		{"state/apply.go", "\tt.put(keyNode, n.encode())\n", "\tt.put(\"next/1\", []byte(\"\\x01record-of-next\"))\n"},
		{"mesh/node.go", "func (n *Node) introduce() {\n", "\tn.records = append(n.records, record{200, []byte(\"line-of-next\")})\n"},
	} {
		path, err := filepath.Abs(filepath.Join("..", edit.file))
		if err != nil {
			t.Fatal(err)
		}
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(src), edit.at) != 1 {
			t.Fatalf("%s has no %q to build on", edit.file, edit.at)
		}
		edited := filepath.Join(dir, strings.ReplaceAll(edit.file, "/", "_"))
		if err := os.WriteFile(edited, []byte(strings.Replace(string(src), edit.at, edit.at+edit.more, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = edited
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "meshnet")
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay"), "-ldflags", "-X main.version=next", "-o", program, "./cmd/meshnet")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the next version: %v\n%s", err, out)
	}
	return program
}

// TestUpgrade: a next version, with a field and kinds of records that this one does not know, takes over
// host by host without a lost packet; what it writes passes through hosts of this version unharmed, to
// one that joins later too; and the way back is as smooth.
func TestUpgrade(t *testing.T) {
	next := nextVersion(t)
	l := up(t, "-n", "4", "--no-start")
	for h := 1; h <= 3; h++ {
		l.meshnet(h, "up", "-d")
		l.run("container", fmt.Sprint(h), fmt.Sprint("c", h))
	}
	l.run("converged", "-t", "20")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	for h := 1; h <= 3; h++ {
		l.attach(h, fmt.Sprint("c", h), "web")
	}
	before := fmt.Sprint(ask[[]attachment](l, 3, "ps", "-a"))
	var stops []func() (int, time.Duration)
	for h := 1; h <= 3; h++ {
		stops = append(stops, l.pinging(h, fmt.Sprint("c", h), l.address(fmt.Sprint("c", h%3+1), "web")))
	}
	has := func(host int, text string) bool {
		return l.say(host, "grep", "-q", text, "/var/lib/meshnet/log").code == 0
	}
	var slowest time.Duration
	change := func(host int, program, version string) {
		l.meshnet(host, "down")
		began := time.Now()
		l.run("exec", fmt.Sprint(host), program, "up", "-d")
		l.run("converged", "-t", "20")
		slowest = max(slowest, time.Since(began))
		if s := ask[statusJSON](l, host, "status"); s.Node.Version != version || s.NodesAgreeing < 3 {
			t.Errorf("host %d: %+v", host, s)
		}
	}
	this := ask[statusJSON](l, 1, "status").Node.Version
	change(1, next, "next")
	if !has(1, "line-of-next") || !has(2, "record-of-next") || !has(2, "field-of-next") {
		t.Error("host 2 does not hold what the next version says")
	}
	// A fourth host of this version hears of it only from hosts of this version.
	l.meshnet(1, "down")
	l.meshnet(4, "up", "-d")
	l.run("converged", "-t", "20")
	if !has(4, "record-of-next") || !has(4, "field-of-next") {
		t.Error("what the next version says does not pass through this one")
	}
	l.run("exec", "1", next, "up", "-d")
	l.run("converged", "-t", "20")
	change(2, next, "next")
	read := l.line(3, "h2", "nodes")
	change(3, next, "next")
	l.run("container", "4", "c4")
	l.attach(4, "c4", "web")
	l.run("matrix", "web")
	l.meshnet(4, "detach", "c4", "web")
	for h := 3; h >= 1; h-- {
		change(h, "meshnet", this)
	}
	if !has(1, "line-of-next") {
		t.Error("this version lost a line of the next one's log")
	}
	if after := fmt.Sprint(ask[[]attachment](l, 3, "ps", "-a")); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
	for h, stop := range stops {
		lost, gap := stop()
		l.life("upgrade", fmt.Sprintf("host %d to a next version and back beside the others, 7 changes of a daemon; longest silence %.2f s", h+1, gap.Seconds()), slowest, lost, read)
		if lost > 0 {
			t.Errorf("host %d: %d pings lost", h+1, lost)
		}
	}
}

// TestService installs the package on a machine of its own, with systemd and a disk, and lives with it:
// enable, kill, restart, upgrade, reboot, remove, purge.
func TestService(t *testing.T) {
	job := t.TempDir()
	for version, name := range map[string]string{"0.0.1": "one.deb", "0.0.2": "two.deb"} {
		cmd := exec.Command("make", "deb", "VERSION="+version)
		cmd.Dir = ".."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make deb: %v\n%s", err, out)
		}
		made, err := filepath.Glob("../bin/meshnet_" + version + "_*.deb")
		if err != nil || len(made) != 1 {
			t.Fatalf("packages of %s: %v %v", version, made, err)
		}
		if err := os.Rename(made[0], filepath.Join(job, name)); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("make", "build") // as it was
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	script, err := os.ReadFile("service")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(job, "run"), script, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("./machine", job).CombinedOutput()
	log, _ := os.ReadFile(filepath.Join(job, "log"))
	t.Logf("%s\n%s", log, out)
	if err != nil || !strings.Contains(string(log), "purge: the host is as before") {
		t.Errorf("machine: %v", err)
	}
}

// TestLoss: one host in three loses a fifth of its packets while all of them create and remove networks; five
// seconds after the last all have one digest, and say so.
func TestLoss(t *testing.T) {
	const each = 100
	l := up(t)
	l.run("converged", "-t", "10")
	l.run("loss", "2", "20")
	var wg sync.WaitGroup
	for h := 1; h <= 3; h++ {
		wg.Go(func() {
			for i := range each / 3 {
				name := fmt.Sprintf("n%d-%d", h, i)
				if out, err := l.try("exec", fmt.Sprint(h), "meshnet", "network", "create", name); err != nil {
					t.Errorf("create %s: %v %s", name, err, out)
				}
				if out, err := l.try("exec", fmt.Sprint(h), "meshnet", "network", "rm", name); err != nil {
					t.Errorf("rm %s: %v %s", name, err, out)
				}
			}
			if out, err := l.try("exec", fmt.Sprint(h), "meshnet", "network", "create", fmt.Sprint("kept", h)); err != nil {
				t.Errorf("create: %v %s", err, out)
			}
		})
	}
	wg.Wait()
	last := time.Now()
	l.within("one digest", 5*time.Second, func() bool {
		digests := map[string]bool{}
		for h := 1; h <= 3; h++ {
			digests[ask[statusJSON](l, h, "status").Digest] = true
		}
		return len(digests) == 1
	})
	t.Logf("%d creates and removals, one digest %s after the last", 3*(2*(each/3)+1), time.Since(last).Round(time.Millisecond))
	l.run("loss", "2", "0")
	for h := 1; h <= 3; h++ {
		list := l.meshnet(h, "network", "ls")
		for k := 1; k <= 3; k++ {
			if !strings.Contains(list, fmt.Sprint("kept", k)) || strings.Contains(list, "n1-") {
				t.Errorf("host %d lists:\n%s", h, list)
			}
		}
	}
}
