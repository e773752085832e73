package testlab

import (
	"flag"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var soak = flag.Bool("soak", false, "run the lab's tests with Docker and in the guest for long")

// rounds is how often each case is run: a few times, or many with -soak.
func rounds(few, many int) int {
	if *soak {
		return many
	}
	return few
}

// docker runs docker on a host.
func (l *lab) docker(host int, args ...string) string {
	l.t.Helper()
	return strings.TrimSpace(l.run(append([]string{"exec", fmt.Sprint(host), "docker"}, args...)...))
}

// inside describes all that meshnet made in a container: names, MACs, addresses and routes of its
// interfaces, a line each, sorted; and what ps says of it.
func (l *lab) inside(host int, container string) string {
	// One command, as each costs an exec by Docker.
	out, err := l.try("in", fmt.Sprint(host), container, "sh", "-c",
		`for d in /sys/class/net/eth[1-9]*; do n=${d##*/}; echo $n $(cat $d/address) mtu $(cat $d/mtu) $(ip -4 -o addr show dev $n | sed 's/.*inet \([^ ]*\).*/\1/'); done; ip route | grep 'dev eth[1-9]'`)
	if err != nil {
		return "not to be entered"
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

type named struct {
	Container, Address, MAC, IfName, State string
	Names                                  []string
}

func (l *lab) names(host int, container string) string {
	var lines []string
	for _, a := range ask[[]named](l, host, "ps") {
		if a.Container == container {
			lines = append(lines, fmt.Sprint(a))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// started returns when Docker started a container.
func (l *lab) started(host int, container string) time.Time {
	l.t.Helper()
	at, err := time.Parse(time.RFC3339Nano, l.docker(host, "inspect", "-f", "{{.State.StartedAt}}", container))
	if err != nil {
		l.t.Fatal(err)
	}
	return at
}

// back waits until a container is as it was, and returns how long after from that was.
func (l *lab) back(host int, container, was string, from func() time.Time) time.Duration {
	l.t.Helper()
	now := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if now = l.inside(host, container); now == was {
			return time.Since(from())
		}
	}
	l.t.Fatalf("%s was\n%s\nand is\n%s", container, was, now)
	return 0
}

// TestAttachmentSurvives restarts a container, Docker, the daemon and the host, each in every order that
// matters: address, MAC, interface, routes and names are as before.
func TestAttachmentSurvives(t *testing.T) {
	l := up(t, "-n", "2", "--docker")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	l.docker(1, "run", "-d", "--name", "c1", "--restart", "always", "--stop-signal", "KILL", "busybox", "sleep", "100000")
	l.run("exec", "2", "docker", "run", "-d", "--name", "c2", "busybox", "sleep", "100000")
	l.meshnet(1, "attach", "c1", "web", "--ip", "10.2.0.10", "--alias", "www")
	l.meshnet(1, "attach", "c1", "default")
	l.attach(2, "c2", "web")
	was, names := l.inside(1, "c1"), l.names(1, "c1")
	if !strings.Contains(was, "eth1 02:42:0a:02:00:0a mtu 1450 10.2.0.10/16") || !strings.Contains(names, "www") || strings.Count(names, "ready") != 2 {
		t.Fatalf("c1 is\n%s\n%s", was, names)
	}
	kill := func() {
		if *soak {
			// Docker waits twice as long each time with the next start of what ran for less than 10 s.
			time.Sleep(time.Until(l.started(1, "c1").Add(11 * time.Second)))
		}
		pid := l.docker(1, "inspect", "-f", "{{.State.Pid}}", "c1")
		l.run("exec", "1", "kill", "-9", pid)
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if now := l.docker(1, "inspect", "-f", "{{.State.Pid}}", "c1"); now != pid && now != "0" {
				return
			}
		}
		t.Fatal("Docker does not start c1 again")
	}
	cases := []struct {
		name   string
		do     func()
		limit  time.Duration
		stays  bool // the container runs on
		always bool // the daemon is not there meanwhile anyhow
	}{
		{name: "restart", do: func() { l.docker(1, "restart", "-t", "0", "c1") }, limit: 2 * time.Second},
		{name: "killed, restart policy", do: kill, limit: 2 * time.Second},
		{name: "pause", do: func() { l.docker(1, "pause", "c1"); l.docker(1, "unpause", "c1") }, limit: 2 * time.Second, stays: true},
		{name: "stop and start", do: func() { l.docker(1, "stop", "c1"); l.docker(1, "start", "c1") }, limit: 2 * time.Second},
		{name: "dockerd restart", do: func() { l.run("docker", "1", "stop"); l.run("docker", "1", "start") }, limit: 5 * time.Second},
		{name: "dockerd killed", do: func() { l.run("docker", "1", "kill"); l.run("docker", "1", "start") }, limit: 5 * time.Second},
		{name: "reboot", do: func() { l.run("reboot", "1") }, limit: 5 * time.Second, always: true},
		{name: "dockerd restart, live-restore", do: func() {
			l.run("docker", "1", "stop")
			if got := l.inside(1, "c1"); got != "not to be entered" {
				t.Errorf("Docker is stopped and answers: %s", got)
			}
			l.run("docker", "1", "start", "--live-restore")
		}, limit: 5 * time.Second, stays: true},
	}
	table := "case                            daemon     seconds\n"
	for _, c := range cases {
		if c.name == "dockerd restart, live-restore" {
			l.run("docker", "1", "stop")
			l.run("docker", "1", "start", "--live-restore")
			l.back(1, "c1", was, time.Now)
		}
		for _, down := range []bool{false, true} {
			if down && c.always {
				continue
			}
			n := rounds(1, 10) // with the daemon there, and without
			if c.always {
				n *= 2
			}
			for range n {
				before := l.started(1, "c1")
				if down {
					l.run("kill", "1")
				}
				c.do()
				from := func() time.Time { return l.started(1, "c1") }
				if c.stays {
					now := time.Now()
					from = func() time.Time { return now }
				}
				daemon := "up"
				if down || c.always {
					daemon = "down"
				}
				if down {
					l.run("start", "1")
				}
				if down || c.always {
					now := time.Now()
					from = func() time.Time { return now }
				}
				took := l.back(1, "c1", was, from)
				table += fmt.Sprintf("%-32s%-10s%8.2f\n", c.name, daemon, took.Seconds())
				if took > c.limit {
					t.Errorf("%s, daemon %s: back after %v", c.name, daemon, took)
				}
				if same := l.started(1, "c1").Equal(before); same != c.stays {
					t.Errorf("%s: c1 started anew: %t", c.name, !same)
				}
				l.run("in", "1", "c1", "ping", "-c", "1", "-W", "2", l.address("c2", "web"))
				if now := l.names(1, "c1"); now != names {
					t.Errorf("%s: ps had\n%s\nand has\n%s", c.name, names, now)
				}
			}
		}
	}
	t.Log("\n" + table)
	// Renamed, known or not; the wish stays the container's.
	for _, down := range []bool{false, true} {
		if down {
			l.run("kill", "1")
		}
		l.docker(1, "rename", "c1", "front")
		if down {
			l.run("start", "1")
		}
		l.until("renamed", func() bool { return l.names(1, "front") == strings.ReplaceAll(names, "{c1 ", "{front ") })
		if l.inside(1, "front") != was {
			t.Errorf("renamed c1 is %s", l.inside(1, "front"))
		}
		l.docker(1, "rename", "front", "c1")
		l.until("renamed back", func() bool { return l.names(1, "c1") == names })
	}
	l.docker(1, "rm", "-f", "c1")
	l.until("removed", func() bool { return l.names(1, "c1") == "" })
}

// until waits for something that takes a moment.
func (l *lab) until(what string, f func() bool) {
	l.t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	l.t.Fatalf("not %s in time", what)
}

// TestRunContainer is meshnet run: the interface is there before the first process, and all of docker run
// works.
func TestRunContainer(t *testing.T) {
	l := up(t, "-n", "2", "--docker")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	l.docker(2, "run", "-d", "--name", "c2", "busybox", "sleep", "100000")
	there := l.attach(2, "c2", "web")
	run := func(args ...string) (string, int) {
		cmd := l.command(append([]string{"exec", "1", "meshnet", "run"}, args...)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	want := func(code int, text string, args ...string) {
		t.Helper()
		out, got := run(args...)
		if got != code || !strings.Contains(out, text) {
			t.Errorf("run %s: exit %d, want %d and %q:\n%s", strings.Join(args, " "), got, code, text, out)
		}
	}
	// The very first packet of the first process arrives on the other host and is answered; it is not
	// sent again, only waited for, as the machine may be busy.
	for range rounds(5, 50) {
		want(0, "1 packets received", "-n", "web", "--rm", "busybox", "ping", "-c", "1", "-W", "5", there)
	}
	want(7, "", "-n", "web", "--rm", "busybox", "sh", "-c", "exit 7")
	want(127, "no-such-program", "-n", "web", "--rm", "busybox", "no-such-program")
	want(0, "lab.example", "-n", "web", "--rm", "-h", "lab.example", "busybox", "hostname")
	want(0, "nameserver 9.9.9.9", "-n", "web", "--rm", "--dns", "9.9.9.9", "busybox", "cat", "/etc/resolv.conf")
	want(0, "10.2.0.5/16", "-n", "web", "--ip", "10.2.0.5", "--rm", "--user", "1000:1000", "--read-only", "--cap-drop", "ALL", "busybox", "ip", "addr")
	want(0, "eth0", "-n", "web", "--rm", "--network", "none", "busybox", "ip", "-o", "addr")
	want(0, "eth2", "-n", "web,default", "--rm", "--init", "busybox", "ip", "-o", "addr")
	want(0, "x y", "--rm", "--entrypoint", "echo", "busybox", "x", "y")
	want(0, "hello", "--rm", "-e", "A=hello", "busybox", "sh", "-c", "echo $A")
	want(1, "there is no network nowhere", "-n", "nowhere", "--rm", "busybox", "true")
	want(2, "10.9.0.1", "-n", "web", "--ip", "10.9.0.1", "--rm", "busybox", "true")
	want(2, "host's network", "-n", "web", "--network", "host", "busybox", "true")
	want(125, "--no-such-flag", "-n", "web", "--no-such-flag=1", "busybox", "true")

	want(0, "", "-n", "web", "--ip", "10.2.0.6", "-d", "--name", "keeper", "busybox", "sleep", "100000")
	l.until("attached", func() bool { return strings.Contains(l.names(1, "keeper"), "10.2.0.6/16") })
	want(125, "10.2.0.6", "-n", "web", "--ip", "10.2.0.6", "--rm", "busybox", "true")
	want(0, "0% packet loss", "-n", "web", "--rm", "busybox", "ping", "-c", "1", "10.2.0.6")

	// -p: the port is Docker's and answers on the host.
	want(0, "", "-n", "web", "-d", "--name", "web1", "-p", "8080:80", "busybox", "sh", "-c", "echo published > /index.html; httpd -f -p 80 -h /")
	l.until("published", func() bool {
		out, _ := l.try("exec", "1", "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/index.html")
		return strings.TrimSpace(out) == "published"
	})
	// Signals reach the image's own program, which is the first process.
	want(0, "", "-n", "web", "-d", "--name", "trap", "busybox", "sh", "-c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done")
	l.until("ready", func() bool { return strings.Contains(l.docker(1, "logs", "trap"), "ready") })
	l.docker(1, "stop", "-t", "5", "trap")
	if code := l.docker(1, "inspect", "-f", "{{.State.ExitCode}}", "trap"); code != "42" {
		t.Errorf("ended by a signal with %s", code)
	}
	// At every start, and while the daemon is away the container waits.
	want(0, "", "-n", "web", "-d", "--name", "loop", "--restart", "always", "busybox", "ping", "-c", "1", "-W", "5", there)
	l.until("restarted", func() bool { return l.docker(1, "inspect", "-f", "{{.RestartCount}}", "loop") >= "3" })
	l.run("kill", "1")
	l.docker(1, "restart", "-t", "0", "keeper")
	time.Sleep(500 * time.Millisecond)
	if got := l.run("exec", "1", "cat", "/proc/"+l.docker(1, "inspect", "-f", "{{.State.Pid}}", "keeper")+"/cmdline"); !strings.Contains(got, "await") {
		t.Errorf("without its network the first process is %q", got)
	}
	l.run("start", "1")
	l.until("on", func() bool {
		return strings.HasPrefix(l.run("exec", "1", "cat", "/proc/"+l.docker(1, "inspect", "-f", "{{.State.Pid}}", "keeper")+"/cmdline"), "sleep")
	})
	logs := l.docker(1, "logs", "loop")
	if strings.Contains(logs, "100% packet loss") || strings.Contains(logs, "bad address") {
		t.Errorf("a start without the network:\n%s", logs)
	}
	l.docker(1, "rm", "-f", "loop", "keeper", "trap", "web1")
	l.until("all gone", func() bool { return len(ask[[]attachment](l, 1, "ps")) == 0 })
}

// TestContainerLabels attaches by labels alone, with the daemon there or not.
func TestContainerLabels(t *testing.T) {
	l := up(t, "-n", "1", "--docker")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	l.meshnet(1, "network", "create", "db", "10.3.0.0/16")
	l.docker(1, "run", "-d", "--name", "c1", "--label", "meshnet.network=web,db", "--label", "meshnet.ip=10.3.0.9", "--label", "meshnet.alias=www",
		"busybox", "sleep", "100000")
	attached := func(c string) func() bool {
		return func() bool {
			n := l.names(1, c)
			return strings.Count(n, "ready") == 2 && strings.Contains(n, "10.3.0.9/16") && strings.Count(n, "www") == 2
		}
	}
	l.until("attached", attached("c1"))
	l.run("kill", "1")
	l.docker(1, "rm", "-f", "c1")
	l.docker(1, "run", "-d", "--name", "c3", "--label", "meshnet.network=db,web", "--label", "meshnet.ip=10.3.0.9", "--label", "meshnet.alias=www",
		"busybox", "sleep", "100000")
	l.run("start", "1")
	l.until("attached by the daemon that came later", func() bool { return attached("c3")() || strings.Contains(l.meshnet(1, "status"), "10.3.0.9") })
	l.docker(1, "run", "-d", "--name", "c4", "--label", "meshnet.network=nowhere", "busybox", "sleep", "100000")
	l.until("warned", func() bool {
		return strings.Contains(strings.Join(ask[struct{ Warnings []string }](l, 1, "status").Warnings, "\n"), "container c4: there is no network nowhere")
	})
	l.meshnet(1, "network", "create", "nowhere", "10.4.0.0/16")
	l.until("attached later", func() bool { return strings.Contains(l.names(1, "c4"), "ready") })
	// Shared and the host's.
	l.docker(1, "run", "-d", "--name", "side", "--network", "container:c4", "busybox", "sleep", "100000")
	if a := l.attach(1, "side", "nowhere"); a != l.address("c4", "nowhere") || strings.Count(l.meshnet(1, "ps"), "nowhere") != 1 {
		t.Errorf("the sidecar has %s", a)
	}
	l.docker(1, "run", "-d", "--name", "bare", "--network", "host", "busybox", "sleep", "100000")
	if out, err := l.command("exec", "1", "meshnet", "attach", "bare", "web").CombinedOutput(); err == nil || !strings.Contains(string(out), "host's network") {
		t.Errorf("attach with the host's network: %v %s", err, out)
	}
}

// TestNoDocker: everything else works, and status says so once.
func TestNoDocker(t *testing.T) {
	l := up(t, "-n", "1")
	l.run("container", "1", "c1")
	l.attach(1, "c1", "default")
	s := ask[struct {
		Converged bool
		Warnings  []string
	}](l, 1, "status")
	if n := strings.Count(strings.Join(s.Warnings, "\n"), "Docker"); n != 1 || !s.Converged {
		t.Errorf("status %+v", s)
	}
	if log := l.run("logs", "1"); strings.Contains(strings.ToLower(log), "docker") {
		t.Errorf("the log speaks of it:\n%s", log)
	}
}

// TestPodman attaches containers of Podman by name, by the path of their namespace and by label. Podman
// removes, restarts and renames them, with the daemon there or not.
func TestPodman(t *testing.T) {
	if _, err := exec.LookPath("podman"); err != nil {
		t.Fatal("podman is not installed: testlab/deps podman")
	}
	l := up(t, "-n", "2")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	l.run("container", "2", "c2")
	there := l.attach(2, "c2", "web")
	if s := l.say(1, "meshnet", "attach", "p1", "web"); s.code != 1 || !strings.Contains(s.err, "systemctl enable --now podman.socket") {
		t.Errorf("while Podman's service does not run: %+v", s)
	}
	dir := l.dir() + "/podman"
	flags := []string{"podman", "--root", dir + "/root", "--runroot", "/run/containers", "--tmpdir", "/run/libpod", "--runtime", "runc",
		"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", "vfs"}
	podman := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(l.run(slices.Concat([]string{"exec", "1"}, flags, args)...))
	}
	l.run("exec", "1", "sh", "-c", "mkdir -p /run/podman; setsid "+strings.Join(flags, " ")+
		" system service --time 0 unix:///run/podman/podman.sock >/run/podman.log 2>&1 </dev/null &")
	l.until("Podman answers", func() bool { return l.say(1, "test", "-S", "/run/podman/podman.sock").code == 0 })
	l.run("exec", "1", "sh", "-c", "mkdir -p /run/image/bin && cp $(command -v busybox) /run/image/bin/ && for a in sh sleep ip ping; do ln -s busybox /run/image/bin/$a; done && tar -C /run/image -cf /run/image.tar .")
	podman("import", "/run/image.tar", "busybox")
	run := func(name string, more ...string) {
		t.Helper()
		podman(append(append([]string{"run", "-d", "--network", "none", "--name", name}, more...), "busybox", "/bin/sleep", "100000")...)
	}
	ping := func(name string) {
		t.Helper()
		l.until(name+" is connected", func() bool {
			return l.say(1, "nsenter", "-n", "-t", podman("inspect", "-f", "{{.State.Pid}}", name), "ping", "-c", "1", "-W", "1", there).code == 0
		})
	}
	run("p1")
	l.attach(1, "p1", "web")
	ping("p1")
	was := l.names(1, "p1")
	for _, down := range []bool{false, true} {
		if down {
			l.run("kill", "1")
		}
		podman("restart", "-t", "0", "p1")
		if down {
			l.run("start", "1")
		}
		l.until("back", func() bool { return l.names(1, "p1") == was })
		ping("p1")
	}
	run("p2", "--label", "meshnet.network=web", "--label", "meshnet.ip=10.2.0.9")
	ping("p2")
	if now := l.names(1, "p2"); !strings.Contains(now, "10.2.0.9/16") {
		t.Errorf("p2 is %s", now)
	}
	run("p3")
	l.meshnet(1, "attach", "--netns", "/proc/"+podman("inspect", "-f", "{{.State.Pid}}", "p3")+"/ns/net", "web")
	ping("p3")
	podman("rename", "p1", "front")
	l.until("renamed", func() bool { return l.names(1, "front") != "" })
	podman("rm", "-f", "-t", "0", "front")
	l.until("removed", func() bool { return l.names(1, "front") == "" })
	l.run("kill", "1")
	podman("rm", "-f", "-t", "0", "p2", "p3")
	l.run("start", "1")
	l.until("all are gone", func() bool { return l.names(1, "p2") == "" })
}

var errorRE = regexp.MustCompile(`error: `)

// TestRemovedAtOnce removes fifty containers while the daemon is down.
func TestRemovedAtOnce(t *testing.T) {
	l := up(t, "-n", "1", "--docker")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	l.meshnet(1, "network", "create", "tight", "10.9.0.0/26")
	before := l.counts(1)
	const n = 50
	l.run("exec", "1", "bash", "-c", fmt.Sprintf(`seq %d | xargs -P 4 -I{} docker run -d --name x{} --label meshnet.network=tight busybox sleep 100000 >/dev/null`, n))
	l.until("attached", func() bool { return strings.Count(l.meshnet(1, "ps"), "ready") == n })
	l.run("kill", "1")
	l.run("exec", "1", "bash", "-c", "docker ps -aq | xargs docker rm -f >/dev/null")
	l.run("start", "1")
	l.until("gone", func() bool { return len(ask[[]attachment](l, 1, "ps", "-a")) == 0 })
	l.run("converged")
	if got := l.counts(1); got.ports != before.ports || got.links != before.links {
		t.Errorf("before %+v, after %+v", before, got)
	}
	if show := l.run("exec", "1", "ovs-vsctl", "show"); errorRE.MatchString(show) {
		t.Errorf("ports with errors:\n%s", show)
	}
	if *soak {
		// After the cooldown the addresses are free: a network with no more than these has room.
		time.Sleep(65 * time.Second)
		l.run("exec", "1", "bash", "-c", fmt.Sprintf(`seq %d | xargs -P 4 -I{} docker run -d --name y{} --label meshnet.network=tight busybox sleep 100000 >/dev/null`, n))
		l.until("attached again", func() bool { return strings.Count(l.meshnet(1, "ps"), "ready") == n })
		l.run("exec", "1", "bash", "-c", "docker ps -aq | xargs docker rm -f >/dev/null")
		l.until("gone again", func() bool { return len(ask[[]attachment](l, 1, "ps", "-a")) == 0 })
		l.run("converged")
	}
	if flows := l.run("exec", "1", "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "meshnet"); strings.Contains(flows, "10.9.") {
		t.Errorf("flows of containers:\n%s", flows)
	}
}

// counts is what an attachment may leave behind.
type counts struct{ rss, goroutines, files, threads, ports, links, namespaces int }

func (l *lab) counts(host int) counts {
	l.t.Helper()
	number := func(script string) int {
		n, err := strconv.Atoi(strings.TrimSpace(l.run("exec", fmt.Sprint(host), "bash", "-c", script)))
		if err != nil {
			l.t.Fatal(err)
		}
		return n
	}
	s := ask[struct{ PID, Goroutines int }](l, host, "status")
	return counts{
		rss:        number(fmt.Sprintf("awk '/VmRSS/ { print $2 }' /proc/%d/status", s.PID)),
		goroutines: s.Goroutines,
		files:      number(fmt.Sprintf("ls /proc/%d/fd | wc -l", s.PID)),
		threads:    number(fmt.Sprintf("ls /proc/%d/task | wc -l", s.PID)),
		ports:      number("ovs-vsctl list-ports meshnet | wc -l"),
		links:      number("ip -o link | wc -l"),
		namespaces: number("lsns -t net -n -o NS | wc -l"),
	}
}

// TestAttachDetach attaches and detaches for long: nothing grows.
func TestAttachDetach(t *testing.T) {
	l := up(t, "-n", "1", "--docker")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	for i := range 4 {
		l.docker(1, "run", "-d", "--name", fmt.Sprint("c", i), "busybox", "sleep", "100000")
	}
	n := rounds(100, 1000)
	turn := func(n int) {
		l.run("exec", "1", "bash", "-c", fmt.Sprintf(
			`for i in $(seq %d); do for c in 0 1 2 3; do { meshnet attach c$c web && meshnet detach c$c web; } >/dev/null & done; wait || exit 1; done`, (n+3)/4))
	}
	turn(40) // what is made once is made
	before := l.counts(1)
	turn(n)
	l.run("converged")
	after := l.counts(1)
	t.Logf("%d attach and detach\n%-12s%10s%10s\n%-12s%10d%10d\n%-12s%10d%10d\n%-12s%10d%10d\n%-12s%10d%10d\n%-12s%10d%10d\n%-12s%10d%10d\n%-12s%10d%10d", n,
		"", "before", "after", "RSS kB", before.rss, after.rss, "goroutines", before.goroutines, after.goroutines, "files", before.files, after.files,
		"threads", before.threads, after.threads, "OVS ports", before.ports, after.ports, "links", before.links, after.links,
		"namespaces", before.namespaces, after.namespaces)
	if after.goroutines > before.goroutines+5 || after.files > before.files+3 || after.ports != before.ports || after.links != before.links ||
		after.namespaces != before.namespaces || after.rss > before.rss+16<<10 {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
}

// TestTranscript is SocketPlane's own demonstration, with meshnet's verbs and the old words.
func TestTranscript(t *testing.T) {
	l := up(t, "-n", "3", "--docker")
	l.run("converged")
	var said strings.Builder
	host := func(h int, line string) string {
		t.Helper()
		// A terminal of its own, as people have one.
		cmd := l.command("exec", fmt.Sprint(h), "script", "-qec", line, "/dev/null")
		out, err := cmd.Output()
		text := strings.ReplaceAll(string(out), "\r", "")
		fmt.Fprintf(&said, "h%d$ %s\n%s", h, line, text)
		if err != nil {
			t.Errorf("%s: %v\n%s", line, err, text)
		}
		return text
	}
	contains := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("no %q in\n%s", w, text)
			}
		}
	}
	contains(host(1, "meshnet network list"), "default", "10.1.0.0/16")
	contains(host(1, "meshnet network create web 10.2.0.0/16"), "web", "10.2.0.0/16")
	contains(host(2, "meshnet network list"), "default", "web")
	contains(host(1, "meshnet run -n default -it busybox ip a"), "inet 10.1.")
	first := host(1, "meshnet run -n web -it --name w1 busybox ip a")
	second := host(2, "meshnet run -n web -it busybox ip a")
	contains(first, "inet 10.2.")
	contains(second, "inet 10.2.")
	contains(host(1, "meshnet run -n web -it busybox sh -c 'test -t 0 && test -t 1 && echo a terminal'"), "a terminal")
	contains(host(3, "meshnet nodes"), "h1", "h2", "h3", "alive")
	contains(host(3, "meshnet cluster"), "h1", "h2", "h3", "alive")
	contains(host(1, "meshnet info w1"), "w1", "web")
	contains(host(1, "meshnet network info web"), "10.2.0.0/16")
	t.Log("\n" + said.String())
	if _, err := exec.LookPath("script"); err != nil {
		t.Error(err)
	}
}
