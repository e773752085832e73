package testlab

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var inGuest = flag.Bool("guest", false, "this is the guest of testlab/vm: run only what needs its kernel")

// guestMax is the time the guest may take. It needs a few minutes on two idle cores.
const guestMax = 25 * time.Minute

// TestGuest runs this program again under Debian's own kernel, which has the module openvswitch, and
// there the parts of guestParts.
func TestGuest(t *testing.T) {
	if *inGuest {
		guestParts(t)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), guestMax)
	defer cancel()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "./vm", self, "-test.run=^TestGuest$", "-test.v", "-lab", "-guest")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("in the guest:\n%s", out)
	if err != nil {
		t.Errorf("testlab/vm: %v", err)
	}
	if !bytes.Contains(out, []byte("--- PASS: TestGuest/")) {
		t.Error("the guest ran no test")
	}
}

// guestParts is one lab whose hosts go from transport to transport with their containers attached. To
// start three hosts takes most of the time here, so the parts follow each other in one.
func guestParts(t *testing.T) {
	hideModule(t)
	l := threeHosts(t)
	t.Run("no module", func(t *testing.T) {
		l := l.on(t)
		for h := 1; h <= 3; h++ {
			l.wantTransport(h, "kernel-vxlan")
			if l.nothingOfC(h) == "" {
				t.Errorf("host %d has transport C, and nothing of it is found: what looks for the rest of it later is blind", h)
			}
		}
		l.reach()
	})
	showModule(t)
	t.Run("module loaded", func(t *testing.T) {
		l := l.on(t)
		all(1, 3, func(h int) { l.again(h) })
		for h := 1; h <= 3; h++ {
			l.wantTransport(h, "ovs-kernel")
			if left := l.nothingOfC(h); left != "" {
				t.Errorf("host %d moved to the kernel's datapath, and still has\n%s", h, left)
			}
			if l.nothingOfA(h) == "" {
				t.Errorf("host %d has transport A, and nothing of it is found", h)
			}
		}
		l.run("converged", "-t", "60")
		l.reach()
	})
	t.Run("OVSKernel", func(t *testing.T) {
		t.Run("tunnels", func(t *testing.T) { l.on(t).tunnels() })
		t.Run("full mesh", func(t *testing.T) { l.on(t).fullMesh() })
		t.Run("large packets", func(t *testing.T) { l.on(t).largestPacket(1450) })
		t.Run("transfer", func(t *testing.T) { l.on(t).transfer(20_000_000) })
		t.Run("isolation", func(t *testing.T) { l.on(t).isolation() })
		t.Run("daemon killed", func(t *testing.T) { l.on(t).restartTouchesNothing() })
	})
	t.Run("mixed", func(t *testing.T) {
		l := l.on(t)
		l.again(3, "--datapath", "netdev")
		l.wantTransport(3, "kernel-vxlan")
		l.wantTransport(1, "ovs-kernel")
		if left := l.nothingOfA(3); left != "" {
			t.Errorf("host 3 moved to --datapath netdev, and still has\n%s", left)
		}
		l.run("converged", "-t", "60")
		l.reach()
		t.Run("tunnels", func(t *testing.T) { l.on(t).tunnels() })
		t.Run("large packets", func(t *testing.T) { l.on(t).largestPacket(1450) })
		t.Run("transfer", func(t *testing.T) { l.on(t).transfer(5_000_000) })
	})
	t.Run("module removed", func(t *testing.T) {
		l := l.on(t)
		all(1, 2, func(h int) { l.stopHostSwitch(h) })
		hideModule(t)
		all(1, 2, func(h int) { l.again(h) })
		for h := 1; h <= 2; h++ {
			l.wantTransport(h, "kernel-vxlan")
			if left := l.nothingOfA(h); left != "" {
				t.Errorf("host %d lost the kernel's datapath, and still has\n%s", h, left)
			}
		}
		l.run("converged", "-t", "60")
		l.reach()
	})
}

// all calls f for hosts from to to at once.
func all(from, to int, f func(host int)) {
	done := make(chan struct{})
	for h := from; h <= to; h++ {
		go func() {
			defer func() { done <- struct{}{} }()
			f(h)
		}()
	}
	for h := from; h <= to; h++ {
		<-done
	}
}

// hideModule makes this a kernel without the module openvswitch.
func hideModule(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("modprobe", "-r", "vport_vxlan", "openvswitch").CombinedOutput(); err != nil {
		t.Fatalf("modprobe -r openvswitch: %v: %s", err, out)
	}
	conf := []byte("install openvswitch /bin/false\n")
	if err := os.WriteFile("/etc/modprobe.d/testlab.conf", conf, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("modprobe", "-q", "openvswitch").Run(); err == nil {
		t.Fatal("the module openvswitch can still be loaded")
	}
}

// showModule takes back hideModule. The module is not loaded by it: that is for up to do.
func showModule(t *testing.T) {
	t.Helper()
	if err := os.Remove("/etc/modprobe.d/testlab.conf"); err != nil {
		t.Fatal(err)
	}
}

// again stops the daemon of a host and starts it with other flags. A host that takes longer than up
// waits is waited for: the guest is slow.
func (l *lab) again(host int, flags ...string) {
	l.t.Helper()
	h := strconv.Itoa(host)
	if out, err := l.try("exec", h, "meshnet", "down"); err != nil {
		l.t.Errorf("%v\n%s", err, out) // not Fatal: may run beside others
	}
	_, err := l.try(append([]string{"exec", h, "meshnet", "up", "-d"}, flags...)...)
	for end := time.Now().Add(4 * time.Minute); err != nil; time.Sleep(time.Second) {
		out, _ := l.try("exec", h, "meshnet", "status", "--json")
		if strings.Contains(out, `"pending": []`) {
			return
		}
		if time.Now().After(end) {
			l.t.Errorf("%v\n%s", err, out)
			return
		}
	}
}

func (l *lab) wantTransport(host int, want string) {
	l.t.Helper()
	if s := ask[statusJSON](l, host, "status"); s.Transport != want {
		l.t.Errorf("host %d: transport %s, want %s", host, s.Transport, want)
	}
}

// nothingOfC returns what a host has of transport C and its private Open vSwitch.
func (l *lab) nothingOfC(host int) string {
	l.t.Helper()
	return l.findings(host, `ip -br link show type vxlan | grep '^mv-'
		ip -br link | grep -E '^(mc|mv|mesh)[so]'
		nft list table inet meshnet | grep 'saddr != @peers'
		ls -d /run/meshnet/ovs
		pgrep -af '^(/usr/sbin/)?(ovs-vswitchd|ovsdb-server) .*/run/meshnet/ovs/'
		ip -br link show ovs-netdev`)
}

// nothingOfA returns what a host has of transport A: the bridge in the host's Open vSwitch and what
// the kernel's datapath has of it.
func (l *lab) nothingOfA(host int) string {
	l.t.Helper()
	return l.findings(host, `[ ! -S /run/openvswitch/db.sock ] || ovs-vsctl --db=unix:/run/openvswitch/db.sock list-br | grep -w meshnet
		ip -br link show type openvswitch 2>/dev/null | grep -w meshnet && ! ovs-vsctl br-exists meshnet
		ip -br link | grep -w vxlan_sys_14789`)
}

// findings runs a shell script on a host whose every output is something found.
func (l *lab) findings(host int, script string) string {
	l.t.Helper()
	return strings.TrimSpace(l.run("exec", strconv.Itoa(host), "bash", "-c", "{ "+script+"\n} 2>/dev/null; true"))
}

// stopHostSwitch stops the host's own Open vSwitch and takes its datapath out of the kernel, as before
// a module is unloaded.
func (l *lab) stopHostSwitch(host int) {
	h := strconv.Itoa(host)
	for _, args := range [][]string{
		{"meshnet", "down"},
		{"env", "OVS_RUNDIR=/run/openvswitch", "/usr/share/openvswitch/scripts/ovs-ctl", "--delete-bridges", "stop"},
		{"ovs-dpctl", "del-dp", "system@ovs-system"},
	} {
		if out, err := l.try(append([]string{"exec", h}, args...)...); err != nil {
			l.t.Errorf("%v\n%s", err, out)
		}
	}
}

var seqRE = regexp.MustCompile(`icmp_seq=(\d+) ttl`)

// restartTouchesNothing kills the daemon of host 1 under a gentle ping and wants no packet lost and no
// flow or port touched when it is back. That the eyes see a flow touched is shown last, by a container
// that comes.
func (l *lab) restartTouchesNothing() {
	ports := l.run("exec", "1", "ovs-ofctl", "-O", "OpenFlow15", "dump-ports-desc", "meshnet")
	var flows, rows, pings bytes.Buffer
	var watchers []*exec.Cmd
	watch := func(out *bytes.Buffer, args ...string) {
		cmd := l.command(args...)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			l.t.Fatal(err)
		}
		watchers = append(watchers, cmd)
	}
	watch(&pings, "in", "1", "c1", "ping", "-i", "0.2", l.address("c2", "web"))
	watch(&flows, "exec", "1", "ovs-ofctl", "-O", "OpenFlow13", "monitor", "meshnet", "watch:!initial,!own")
	watch(&rows, "exec", "1", "ovsdb-client", "monitor", "unix:/run/openvswitch/db.sock", "Open_vSwitch", "Interface", "name,ofport,ofport_request,options,external_ids")
	time.Sleep(5 * time.Second) // a ping and two monitors have started; the guest is slow
	quiet := strings.Count(rows.String(), "\n")
	l.run("kill", "1")
	l.run("start", "1")
	l.run("converged", "-t", "60")
	time.Sleep(2 * time.Second) // the last replies
	if n := strings.Count(flows.String(), "event="); n != 0 {
		l.t.Errorf("%d flows touched:\n%s", n, flows.String())
	}
	if strings.Count(rows.String(), "\n") != quiet {
		l.t.Errorf("ports touched:\n%s", rows.String())
	}
	if now := l.run("exec", "1", "ovs-ofctl", "-O", "OpenFlow15", "dump-ports-desc", "meshnet"); portNames(now) != portNames(ports) {
		l.t.Errorf("ports before %s\nafter %s", ports, now)
	}
	lost(l.t, pings.String())
	l.run("container", "1", "late")
	l.attach(1, "late", "web")
	l.run("converged", "-t", "60")
	if !strings.Contains(flows.String(), "event=") || strings.Count(rows.String(), "\n") == quiet {
		l.t.Errorf("a container came, and nobody saw it: flows %q, rows %q", flows.String(), rows.String())
	}
	l.meshnet(1, "detach", "late")
	l.run("rmcontainer", "1", "late")
	for _, w := range watchers {
		stop(l.t, w)
	}
}

// lost wants an answer to each packet of a ping up to the last one answered.
func lost(t testing.TB, out string) {
	t.Helper()
	var seen []int
	for _, m := range seqRE.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, n)
	}
	slices.Sort(seen)
	seen = slices.Compact(seen)
	if len(seen) < 10 || seen[len(seen)-1] != len(seen) {
		t.Errorf("%d packets of %v answered:\n%s", len(seen), seen[max(0, len(seen)-1):], out)
	}
	t.Logf("ping: %d of %d answered", len(seen), len(seen))
}

// stop ends a command of the lab with all that it started.
func stop(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	for _, p := range descendants(cmd.Process.Pid) {
		if proc, err := os.FindProcess(p); err == nil {
			_ = proc.Kill() // it has ended already: fine
		}
	}
	_ = cmd.Wait() // killed: says so
}

// descendants returns a process and its children's, deepest first.
func descendants(pid int) []int {
	var all []int
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) // none if it has ended
	for _, c := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(c); err == nil {
			all = append(all, descendants(n)...)
		}
	}
	return append(all, pid)
}
