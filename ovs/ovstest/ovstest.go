// Package ovstest runs a real Open vSwitch for a test: ovsdb-server and ovs-vswitchd in a temporary
// directory, without privilege, on the dummy datapath.
//
// Every port is a dummy, so any name is a device that is there, and no packet leaves the process:
// what would become of one is asked with ofproto/trace. As root the daemons run as nobody, which
// shows that they need no privilege. They are the test's children and end with it, whatever becomes
// of it. An Instance may be used by several goroutines, except Kill and Restart.
package ovstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The daemons of an instance.
const (
	Server  = "ovsdb-server"
	Switchd = "ovs-vswitchd"
)

const (
	schema = "/usr/share/openvswitch/vswitch.ovsschema"
	// wait bounds how long a daemon may take to answer. It is generous because tests share a
	// machine; an idle one answers in 50 ms.
	wait = 20 * time.Second
	// nobody is the user that daemons run as when the test is root.
	nobody = 65534
)

// Instance is one running Open vSwitch.
type Instance struct {
	Dir string // of sockets, database and logs: OVS_RUNDIR
	DB  string // the OVSDB socket, as a path

	t       testing.TB
	path    map[string]string // of each program
	daemons map[string]*daemon
}

// daemon is a running child.
type daemon struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has been waited for
}

// Start starts an instance with an empty database and ends it with the test. Without Open vSwitch on
// the machine the test is skipped, or fails where CI=true or MESHNET_REQUIRE names ovs.
func Start(t testing.TB) *Instance {
	t.Helper()
	in := &Instance{t: t, path: map[string]string{}, daemons: map[string]*daemon{}}
	for _, p := range []string{Server, Switchd, "ovsdb-tool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"} {
		path, err := find(p)
		if err != nil {
			missing(t, err)
		}
		in.path[p] = path
	}
	// Not t.TempDir: its name holds the test's, and a Unix socket's path is at most 107 bytes.
	dir, err := os.MkdirTemp("", "ovstest-")
	if err != nil {
		t.Fatal(err)
	}
	in.Dir, in.DB = dir, filepath.Join(dir, "db.sock")
	t.Cleanup(func() {
		for _, name := range []string{Switchd, Server} {
			in.Kill(name)
		}
		if t.Failed() {
			t.Logf("Open vSwitch's log of this test:\n%s", in.log())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if drops() {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	in.NewDB()
	in.Restart(Server)
	in.Vsctl("--no-wait", "init")
	in.Restart(Switchd)
	return in
}

// Mgmt returns the path of a bridge's OpenFlow socket.
func (in *Instance) Mgmt(bridge string) string { return filepath.Join(in.Dir, bridge+".mgmt") }

// PID returns the process id of a daemon, Server or Switchd, that was started.
func (in *Instance) PID(name string) int { return in.daemons[name].cmd.Process.Pid }

// Vsctl runs ovs-vsctl and returns what it printed, without space around it. The test fails if the
// command does.
func (in *Instance) Vsctl(args ...string) string {
	in.t.Helper()
	return in.must("ovs-vsctl", append([]string{"--db=unix:" + in.DB, "--timeout=20"}, args...)...)
}

// Ofctl runs a command of ovs-ofctl on a bridge, in OpenFlow 1.5. The test fails if it does.
func (in *Instance) Ofctl(command, bridge string, args ...string) string {
	in.t.Helper()
	args = append([]string{"-O", "OpenFlow15", command, "unix:" + in.Mgmt(bridge)}, args...)
	return in.must("ovs-ofctl", args...)
}

// Appctl runs a command of ovs-vswitchd, such as ofproto/trace. The test fails if it does.
func (in *Instance) Appctl(args ...string) string {
	in.t.Helper()
	return in.must("ovs-appctl", append([]string{"-t", filepath.Join(in.Dir, Switchd+".ctl")}, args...)...)
}

// Kill ends a daemon with SIGKILL and returns when it is gone. One that does not run is no error.
func (in *Instance) Kill(name string) {
	d := in.daemons[name]
	if d == nil {
		return
	}
	delete(in.daemons, name)
	// An error means that it ended by itself, which the next line waits for too.
	_ = d.cmd.Process.Kill()
	<-d.ended
}

// Restart starts a daemon, after killing the one that runs, and returns when it answers.
func (in *Instance) Restart(name string) {
	in.t.Helper()
	in.Kill(name)
	args := []string{"--no-chdir", "--log-file=" + in.logFile(name),
		"--pidfile=" + filepath.Join(in.Dir, name+".pid"), "--unixctl=" + filepath.Join(in.Dir, name+".ctl")}
	if name == Server {
		args = append(args, "--remote=punix:"+in.DB, filepath.Join(in.Dir, "conf.db"))
	} else {
		args = append(args, "--enable-dummy=system", "--disable-system", "--disable-system-route", "unix:"+in.DB)
	}
	d := &daemon{cmd: exec.Command(in.path[name], args...), ended: make(chan struct{})}
	d.cmd.Env = in.env()
	d.cmd.Stderr = new(bytes.Buffer)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: credential()}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread that forked ends, so this goroutine
		// keeps its thread until the daemon has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := d.cmd.Start()
		started <- err
		if err == nil {
			_ = d.cmd.Wait() // how a killed process ended is of no interest
		}
		close(d.ended)
	}()
	if err := <-started; err != nil {
		in.t.Fatalf("start %s: %v", name, err)
	}
	in.daemons[name] = d
	in.await(name, d)
}

// NewDB puts an empty database where the present one is. The server must not be running.
func (in *Instance) NewDB() {
	in.t.Helper()
	db := filepath.Join(in.Dir, "conf.db")
	if err := os.Remove(db); err != nil && !errors.Is(err, fs.ErrNotExist) {
		in.t.Fatal(err)
	}
	in.must("ovsdb-tool", "create", db, schema)
}

// await returns when a daemon has done its first round of work.
func (in *Instance) await(name string, d *daemon) {
	in.t.Helper()
	for end := time.Now().Add(wait); ; {
		// vswitchd answers its control socket from its main loop; it may be asked before it has read
		// the database, so its first configuration is awaited by ovs-vsctl below.
		if c, err := net.Dial("unix", filepath.Join(in.Dir, name+".ctl")); err == nil {
			c.Close()
			break
		}
		select {
		case <-d.ended:
			in.t.Fatalf("%s ended at once: %s\n%s", name, d.cmd.Stderr, in.log())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(end) {
			in.t.Fatalf("%s does not answer after %v\n%s", name, wait, in.log())
		}
	}
	if name == Switchd {
		in.Vsctl("set", "Open_vSwitch", ".", "external_ids:ovstest=started")
		in.Vsctl("remove", "Open_vSwitch", ".", "external_ids", "ovstest")
	}
}

func (in *Instance) must(program string, args ...string) string {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, in.path[program], args...)
	cmd.Env = in.env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential()}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		in.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

func (in *Instance) env() []string {
	return append(os.Environ(), "OVS_RUNDIR="+in.Dir, "OVS_LOGDIR="+in.Dir, "OVS_DBDIR="+in.Dir)
}

func (in *Instance) logFile(name string) string { return filepath.Join(in.Dir, name+".log") }

// log returns the warnings that both daemons logged.
func (in *Instance) log() string {
	var b strings.Builder
	for _, name := range []string{Server, Switchd} {
		text, err := os.ReadFile(in.logFile(name))
		if err != nil {
			continue // it never got so far
		}
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "|INFO|") {
				fmt.Fprintf(&b, "%s: %s", name, line)
			}
		}
	}
	return b.String()
}

// find looks for a program where distributions put it, which is not always on a user's PATH.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", err
}

func missing(t testing.TB, err error) {
	t.Helper()
	if required() {
		t.Fatalf("Open vSwitch is required here: %v; apt-get install openvswitch-switch", err)
	}
	t.Skipf("needs Open vSwitch: %v; apt-get install openvswitch-switch", err)
}

func required() bool {
	for _, r := range strings.Split(os.Getenv("MESHNET_REQUIRE"), ",") {
		if r == "ovs" {
			return true
		}
	}
	ci, _ := strconv.ParseBool(os.Getenv("CI")) // anything that is no truth value is not CI
	return ci
}

// drops reports whether the daemons run as nobody: the test is root and, unlike the root of a user
// namespace with one user in it, can become somebody else.
func drops() bool {
	if os.Geteuid() != 0 {
		return false
	}
	users, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(users))
	return err == nil && len(f) == 3 && f[2] == "4294967295"
}

func credential() *syscall.Credential {
	if !drops() {
		return nil
	}
	return &syscall.Credential{Uid: nobody, Gid: nobody}
}
