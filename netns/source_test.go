package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"meshnet/netns"
	"meshnet/netns/nstest"
	"meshnet/plan"
	"meshnet/state"
)

// sleeper starts a process in a namespace.
func sleeper(t *testing.T, b plan.Sandbox) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("nsenter", "--net="+b.Path, "sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	within(t, "the process is in its namespace", func() bool {
		f, s, err := netns.FromPID(cmd.Process.Pid)
		if err != nil {
			return false
		}
		f.Close()
		return s.Inode == b.Inode
	})
	return cmd
}

func TestNamedNamespace(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	b := box(t, "c1")
	s, found, err := netns.FindNamed("c1")
	want := state.Source{Kind: state.SourcePath, Path: "/run/netns/c1", Inode: b.Inode}
	if err != nil || !found || s != want {
		t.Fatalf("c1: %+v, %t, %v; want %+v", s, found, err, want)
	}
	if got, err := netns.Open(s); err != nil || got != b {
		t.Errorf("open: %+v, %v; want %+v", got, err, b)
	}
	for _, name := range []string{"c2", "", ".", "..", "../netns/c1", "/run/netns/c1", "c1/x"} {
		if s, found, err := netns.FindNamed(name); found || err != nil {
			t.Errorf("FindNamed(%q): %+v, %v; want nothing", name, s, err)
		}
	}
	if err := os.WriteFile("/run/netns/plain", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := netns.FindNamed("plain"); err == nil || !strings.Contains(err.Error(), "not a network namespace") {
		t.Errorf("a plain file: %v", err)
	}
	if err := os.Symlink("/proc/self/ns/net", "/run/netns/own"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := netns.FindNamed("own"); err == nil || !strings.Contains(err.Error(), "container has the host's network") {
		t.Errorf("our own namespace: %v", err)
	}
	nstest.Delete(t, "c1")
	if _, err := netns.Open(s); !errors.Is(err, netns.ErrGone) {
		t.Errorf("open after it was deleted: %v; want ErrGone", err)
	}
	s.Inode = box(t, "c1").Inode + 1 // the kernel may give the old number again, or the one after it
	if _, err := netns.Open(s); !errors.Is(err, netns.ErrGone) {
		t.Errorf("open of %s with another inode: %v; want ErrGone", s.Path, err)
	}
}

func TestProcess(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	b := box(t, "c1")
	cmd := sleeper(t, b)
	f, s, err := netns.FromPID(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s.Kind != state.SourceProcess || s.PID != uint32(cmd.Process.Pid) || s.Started == 0 || s.Inode != b.Inode {
		t.Errorf("source %+v", s)
	}
	inode := s.Inode
	s.Inode = 0
	held, err := netns.Hold(f, s)
	if err != nil || held.Inode != inode {
		t.Fatalf("hold: %+v, %v", held, err)
	}
	got, err := netns.Open(held)
	if err != nil || got.Inode != inode || got.Path == "" {
		t.Errorf("open: %+v, %v", got, err)
	}
	recycled := held
	recycled.Started++
	if _, err := netns.Open(recycled); !errors.Is(err, netns.ErrGone) {
		t.Errorf("open with another start: %v; want ErrGone", err)
	}
	moved := held
	moved.Inode++
	if _, err := netns.Open(moved); !errors.Is(err, netns.ErrGone) {
		t.Errorf("open with another inode: %v; want ErrGone", err)
	}
	cmd.Process.Kill()
	within(t, "the process is gone", func() bool {
		_, err := netns.Open(held) // a zombie first
		return errors.Is(err, netns.ErrGone)
	})
	cmd.Wait()
	if _, err := netns.Open(held); !errors.Is(err, netns.ErrGone) {
		t.Errorf("open after the process ended: %v; want ErrGone", err)
	}
	if _, _, err := netns.FromPID(cmd.Process.Pid); !errors.Is(err, netns.ErrGone) {
		t.Errorf("FromPID after the process ended: %v; want ErrGone", err)
	}
	for _, pid := range []int{0, -1, 1 << 23, 1 << 40} {
		if _, _, err := netns.FromPID(pid); err == nil || !strings.Contains(err.Error(), "want a process id") {
			t.Errorf("FromPID(%d): %v", pid, err)
		}
	}
}

// firstThread, in the environment, makes TestProcessWithoutFirstThread the process it is about.
const firstThread = "MESHNET_FIRST_THREAD"

// endFirstThread ends the thread that the process is named after, and lets the others live.
func endFirstThread() {
	for range 100 {
		first := make(chan bool)
		go func() {
			runtime.LockOSThread()
			first <- unix.Gettid() == os.Getpid()
			if unix.Gettid() == os.Getpid() {
				unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
			}
			select {}
		}()
		if <-first {
			select {}
		}
	}
	panic("the first thread does not come up")
}

// A process lives on without its first thread: one that pthread_exit(3) ended, or, for a moment, the one
// that execve(2) ends where another thread calls it. /proc/PID/ns is empty then.
func TestProcessWithoutFirstThread(t *testing.T) {
	if os.Getenv(firstThread) != "" {
		endFirstThread()
	}
	if !nstest.Inside(t) {
		return
	}
	b := box(t, "c1")
	cmd := exec.Command("nsenter", "--net="+b.Path, os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), firstThread+"=ends")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	path := fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	within(t, "its first thread ended", func() bool {
		_, err := os.Stat(path)
		return errors.Is(err, fs.ErrNotExist)
	})
	f, s, err := netns.FromPID(cmd.Process.Pid)
	if err != nil {
		t.Fatalf("FromPID: %v", err)
	}
	defer f.Close()
	if s.Inode != b.Inode {
		t.Errorf("FromPID: namespace %d, want %d", s.Inode, b.Inode)
	}
	if got, err := netns.Open(s); err != nil || got.Path != path || got.Inode != b.Inode {
		t.Errorf("Open: %+v, %v", got, err)
	}
	if err := netns.Tell(plan.Sandbox{Path: path, Inode: b.Inode}, "nobody", nil); err == nil || errors.Is(err, netns.ErrGone) {
		t.Errorf("Tell: %v; want that nobody listens", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := netns.Open(s); !errors.Is(err, netns.ErrGone) {
		t.Errorf("after its end: %v; want ErrGone", err)
	}
}

func TestHoldRefuses(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	one, two := box(t, "one"), box(t, "two")
	open := func(path string) (*os.File, state.Source) {
		t.Helper()
		f, s, err := netns.FromPath(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f, s
	}
	f, _ := open(one.Path)
	_, other := open(two.Path)
	if _, err := netns.Hold(f, other); !errors.Is(err, netns.ErrGone) || !strings.Contains(err.Error(), "that the daemon sees too") {
		t.Errorf("a path that leads elsewhere: %v", err)
	}
	own, s := open("/proc/self/ns/net")
	if _, err := netns.Hold(own, s); err == nil || !strings.Contains(err.Error(), "container has the host's network") {
		t.Errorf("our own namespace: %v", err)
	}
	if _, err := netns.Hold(f, state.Source{Kind: state.SourceDocker}); err == nil {
		t.Error("a source that is neither path nor process was held")
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := netns.Hold(null, s); err == nil || !strings.Contains(err.Error(), "not a network namespace") {
		t.Errorf("/dev/null: %v", err)
	}
}

func TestFromPath(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	b := box(t, "one")
	t.Chdir("/run")
	f, s, err := netns.FromPath("netns/one")
	if err != nil || s.Path != b.Path || s.Inode != b.Inode {
		t.Errorf("relative path: %+v, %v; want %+v", s, err, b)
	}
	f.Close()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/proc/self/ns/mnt", "/run", "/dev/null"} {
		if _, _, err := netns.FromPath(path); err == nil || !strings.Contains(err.Error(), "not a network namespace") {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"/run/netns/nobody", "/dev/null/x"} {
		if _, _, err := netns.FromPath(path); !errors.Is(err, netns.ErrGone) {
			t.Errorf("%s: %v; want ErrGone", path, err)
		}
	}
}

func TestInterfaces(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	for _, cmd := range []string{
		"ip link add near mtu 1400 type veth peer name far",
		"ip addr add 192.0.2.1/24 dev near", "ip link set near up", "ip link set far up",
		"ip link add second type bridge", "ip addr add 198.51.100.1/24 dev second", "ip link set second up",
		"ip route add default via 192.0.2.2 metric 100", "ip route add default via 198.51.100.2 metric 50",
		"ip link add docker0 type bridge", "ip link add br-0123456789ab type bridge", "ip link add br-lan type bridge",
		"ip link add vethd type veth peer name inside", "ip link set vethd master docker0",
		"ip link add mc-0000000001 group 1835365224 type veth peer name m1",
		"ip link add mv-0000000001 type vxlan id 1 dstport 14789", "ip link set mv-0000000001 alias meshnet:network=0000000000000001",
		"ip link add meshnet type bridge",
	} {
		run(t, plan.Sandbox{}, strings.Fields(cmd)...)
	}
	got, err := netns.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	by := make(map[string]plan.LinkFacts)
	last := 0
	for _, l := range got {
		if l.Index <= last {
			t.Errorf("%s is out of order", l.Name)
		}
		last = l.Index
		by[l.Name] = l
	}
	kinds := map[string]string{"lo": "", "near": "veth", "second": "bridge", "mv-0000000001": "vxlan"}
	for name, kind := range kinds {
		if by[name].Kind != kind {
			t.Errorf("%s has kind %q, want %q", name, by[name].Kind, kind)
		}
	}
	set := func(f func(plan.LinkFacts) bool) (names []string) {
		for _, l := range got {
			if f(l) {
				names = append(names, l.Name)
			}
		}
		slices.Sort(names)
		return names
	}
	if got, want := set(func(l plan.LinkFacts) bool { return l.Ours }), []string{"mc-0000000001", "meshnet", "mv-0000000001"}; !slices.Equal(got, want) {
		t.Errorf("ours %v, want %v", got, want)
	}
	if got, want := set(func(l plan.LinkFacts) bool { return l.Docker }), []string{"br-0123456789ab", "docker0", "vethd"}; !slices.Equal(got, want) {
		t.Errorf("Docker's %v, want %v", got, want)
	}
	if got, want := set(func(l plan.LinkFacts) bool { return l.Default }), []string{"second"}; !slices.Equal(got, want) {
		t.Errorf("default routes by %v, want %v", got, want)
	}
	near := by["near"]
	if near.MTU != 1400 || !near.Up || by["m1"].Up || !slices.Contains(near.Addrs, netip.MustParsePrefix("192.0.2.1/24")) {
		t.Errorf("near is %+v, m1 is %+v", near, by["m1"])
	}
}

func TestRoutes(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	for _, cmd := range []string{
		"ip link add near type veth peer name far", "ip link set near up", "ip link set far up",
		"ip addr add 192.0.2.1/24 dev near",
		"ip route add default via 192.0.2.2", "ip route add 10.0.0.0/8 via 192.0.2.3", "ip route add 10.0.0.0/16 via 192.0.2.3",
		"ip route add blackhole 172.16.0.0/12", "ip route add 10.0.0.0/8 via 192.0.2.4 metric 7",
	} {
		run(t, plan.Sandbox{}, strings.Fields(cmd)...)
	}
	got, err := netns.Routes()
	if err != nil {
		t.Fatal(err)
	}
	got = slices.DeleteFunc(got, func(p netip.Prefix) bool { return p.Addr().Is6() })
	var want []netip.Prefix
	for _, s := range []string{"10.0.0.0/8", "10.0.0.0/16", "172.16.0.0/12", "192.0.2.0/24"} {
		want = append(want, netip.MustParsePrefix(s))
	}
	if !slices.Equal(got, want) {
		t.Errorf("routes %v, want %v", got, want)
	}
}
