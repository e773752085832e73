package testlab

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var inGuest = flag.Bool("guest", false, "this is the guest of testlab/vm: run only what needs its kernel")

// guestMax is the time the guest may take. It needs a few minutes on two idle cores.
const guestMax = 25 * time.Minute

// guestSoakMax is the time that the whole set may take there.
const guestSoakMax = 90 * time.Minute

// TestGuest runs this program again under Debian's own kernel, which has the module openvswitch, and
// there the parts of guestParts. With -soak it runs there the data plane's tests too, whole.
func TestGuest(t *testing.T) {
	if *inGuest {
		guestParts(t)
		return
	}
	guest(t, guestMax, "TestGuest")
	if *soak {
		guest(t, guestSoakMax, "TestDataPlane|TestDrift|TestPurge|TestMoves|TestGeneve|TestMixedMTU")
	}
}

// guest runs tests of this program in the guest.
func guest(t *testing.T, most time.Duration, tests string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "./vm", self, "-test.run=^("+tests+")$", "-test.v", "-test.timeout="+most.String(), "-lab", "-guest")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out := &quoted{to: t.Output()}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		t.Errorf("testlab/vm: %v", err)
	}
	for _, test := range strings.Split(tests, "|") {
		if !bytes.Contains(out.all.Bytes(), []byte("--- PASS: "+test+" ")) {
			t.Errorf("%s did not pass in the guest", test)
		}
	}
}

// quoted passes on what is written as it comes, each line with a mark before it, and keeps it.
type quoted struct {
	to   io.Writer
	all  bytes.Buffer
	line int // where in all the line begins that is not passed on yet
}

func (q *quoted) Write(p []byte) (int, error) {
	q.all.Write(p)
	for {
		text := q.all.Bytes()[q.line:]
		end := bytes.IndexByte(text, '\n')
		if end < 0 {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(q.to, "guest: %s\n", text[:end]); err != nil {
			return 0, err
		}
		q.line += end + 1
	}
}

// guestParts is one lab whose hosts go from transport to transport with their containers attached. To
// start three hosts takes most of the time here, so the parts follow each other in one.
func guestParts(t *testing.T) {
	hideModule(t)
	l := threeHosts(t)
	l.withRouter()
	l.withInner()
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
			l.fast(h, true, "the kernel has")
		}
		l.converged()
		l.reach()
	})
	t.Run("A", func(t *testing.T) {
		t.Run("tunnels", func(t *testing.T) { l.on(t).tunnels() })
		t.Run("full mesh", func(t *testing.T) { l.on(t).fullMesh() })
		t.Run("large packets", func(t *testing.T) { l.on(t).largestPacket(1450) })
		t.Run("transfer", func(t *testing.T) { l.on(t).transfer(10_000_000) })
		l.play(t, "isolation", "broadcast", "spoofed", "forged", "multicast", "gateway", "published")
		t.Run("card", func(t *testing.T) { l.on(t).atCard() })
		t.Run("daemon", func(t *testing.T) { l.on(t).daemonEnds("killed") })
		for _, d := range drifts(layout{transport: "ovs-kernel"}) {
			if slices.Contains([]string{"one flow deleted", "tunnels removed", "nft flushed", "programs removed"}, d.what) {
				t.Run(d.what, func(t *testing.T) { l.on(t).drift(d) })
			}
		}
		t.Run("fast path off", func(t *testing.T) {
			l := l.on(t)
			all(1, 3, func(h int) { l.again(h, "--fastpath", "off") })
			for h := 1; h <= 3; h++ {
				l.fast(h, false, "--fastpath off")
				if left := l.nothingOfFast(h); left != "" {
					t.Errorf("host %d has no fast path, and still\n%s", h, left)
				}
			}
			l.converged()
			l.play(t, "reach", "spoofed", "forged")
			all(1, 3, func(h int) { l.again(h) })
			l.converged()
		})
	})
	t.Run("A and C", func(t *testing.T) {
		l := l.on(t)
		l.again(2, "--datapath", "netdev")
		l.wantTransport(2, "kernel-vxlan")
		l.wantTransport(1, "ovs-kernel")
		if left := l.nothingOfA(2); left != "" {
			t.Errorf("host 2 moved to --datapath netdev, and still has\n%s", left)
		}
		l.converged()
		l.play(t, "reach", "spoofed", "forged", "multicast")
		t.Run("tunnels", func(t *testing.T) { l.on(t).tunnels() })
		t.Run("large packets", func(t *testing.T) { l.on(t).largestPacket(1450) })
		t.Run("transfer", func(t *testing.T) { l.on(t).transfer(5_000_000) })
	})
	t.Run("module removed", func(t *testing.T) {
		l := l.on(t)
		for _, h := range []int{1, 3} {
			l.stopHostSwitch(h)
		}
		hideModule(t)
		all(1, 2, func(i int) { l.again(2*i - 1) })
		for _, h := range []int{1, 3} {
			l.wantTransport(h, "kernel-vxlan")
			if left := l.nothingOfA(h); left != "" {
				t.Errorf("host %d lost the kernel's datapath, and still has\n%s", h, left)
			}
		}
		l.converged()
		l.reach()
	})
}

// play runs some of the scenarios.
func (l *lab) play(t *testing.T, names ...string) {
	for _, s := range scenarios() {
		if slices.Contains(names, s.name) {
			t.Run(s.name, func(t *testing.T) { s.run(l.on(t)) })
		}
	}
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

// again stops the daemon of a host and starts it with other flags.
func (l *lab) again(host int, flags ...string) {
	l.t.Helper()
	h := strconv.Itoa(host)
	if out, err := l.try("exec", h, "meshnet", "down"); err != nil {
		l.t.Errorf("%v\n%s", err, out) // not Fatal: may run beside others
	}
	l.begin(host, flags...)
}

// begin starts the daemon of a host with flags. In the guest, which is slow, one that takes longer than
// up waits is waited for.
func (l *lab) begin(host int, flags ...string) {
	l.t.Helper()
	h := strconv.Itoa(host)
	_, err := l.try(append([]string{"exec", h, "meshnet", "up", "-d"}, flags...)...)
	for end := time.Now().Add(time.Duration(slow(12)) * time.Second); err != nil; time.Sleep(time.Second) {
		out, _ := l.try("exec", h, "meshnet", "status", "--json")
		if strings.Contains(out, `"pending": []`) {
			return
		}
		if time.Now().After(end) || !*inGuest {
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
		ip -br link | grep -E '^mv[so]'
		nft list table inet meshnet | grep 'saddr @peers'
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

// stop ends a command of the lab with all that it started.
func stop(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	end(cmd)
	_ = cmd.Wait() // killed: says so
}

// end kills a command with all that it started.
func end(cmd *exec.Cmd) {
	for _, p := range descendants(cmd.Process.Pid) {
		if proc, err := os.FindProcess(p); err == nil {
			_ = proc.Kill() // it has ended already: fine
		}
	}
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
