package ovs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshnet/ovs/ovstest"
	"meshnet/plan"
	"meshnet/state"
)

// shortDir returns a directory whose name leaves room for a Unix socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ovs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// private returns a switch with an instance of its own on the dummy datapath, which ends with the
// test.
func private(t *testing.T, tso bool) (*Switch, string) {
	t.Helper()
	ovstest.Start(t) // skips where there is no Open vSwitch
	dir := shortDir(t)
	sw, err := New(Config{
		Choice: plan.Choice{Private: true, TSO: tso}, RunDir: dir, HostRunDir: filepath.Join(dir, "host"),
		Bridge: "meshnet", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	sw.own.switchArgs = []string{"--enable-dummy=system", "--disable-system", "--disable-system-route"}
	sw.devices = func() (map[string]int, error) { return map[string]int{"mc-c1": 1, "mc-c2": 2, "mc-g1": 3}, nil }
	t.Cleanup(func() {
		for _, program := range []string{switchProgram, serverProgram} {
			if err := sw.own.stop(context.Background(), program); err != nil {
				t.Error(err)
			}
		}
	})
	return sw, dir
}

// eventually applies at each drift until it succeeds.
func eventually(t *testing.T, sw *Switch, h *plan.Host) plan.Found {
	t.Helper()
	var err error
	for end := time.Now().Add(bound); time.Now().Before(end); {
		var found plan.Found
		if _, found, err = sw.Apply(context.Background(), h); err == nil {
			return found
		}
		select {
		case <-sw.Drift():
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("apply: %v", err)
	return plan.Found{}
}

func TestPrivateInstance(t *testing.T) {
	t.Parallel()
	sw, _ := private(t, true)
	h := tunnelHost(state.OVSUserspace)

	t.Log("started by Run, left by Run")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- sw.Run(ctx) }()
	found := eventually(t, sw, h)
	if !found.Features.TSO || found.Ports[c1] != 11 {
		t.Errorf("found %+v", found)
	}
	pid, ok := sw.own.pid(switchProgram)
	if !ok {
		t.Fatal("ovs-vswitchd does not run")
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if now, ok := sw.own.pid(switchProgram); !ok || now != pid {
		t.Errorf("after Run ovs-vswitchd is process %d, %v; want %d", now, ok, pid)
	}
	if sid, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err != nil {
		t.Error(err)
	} else if session := strings.Fields(string(sid))[5]; session != strconv.Itoa(pid) {
		t.Errorf("ovs-vswitchd is in session %s, want its own, %d", session, pid)
	}

	t.Log("found again by a later Run")
	run(t, sw)
	steps, _, err := sw.Apply(context.Background(), h)
	if err != nil || len(steps) > 0 {
		t.Errorf("steps %q, error %v; want nothing to do", steps, err)
	}

	t.Log("started again when dead")
	for _, program := range []string{switchProgram, serverProgram} {
		pid, _ := sw.own.pid(program)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(bound); ; {
			if now, ok := sw.own.pid(program); ok && now != pid {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s is not started again", program)
			}
			<-time.After(5 * time.Millisecond)
		}
		eventually(t, sw, h)
	}
}

// TestDying: a killed process has no arguments any more, and devices until its last thread has ended.
func TestDying(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, args string
		tasks      []string
		want       bool
	}{
		{"runs", "ovs-vswitchd\x00--detach\x00", []string{"7 (ovs-vswitchd) S 1"}, false},
		{"ends", "", []string{"7 (ovs-vswitchd) D 1"}, true},
		{"its first thread has ended", "", []string{"7 (ovs-vswitchd) Z 1", "8 (handler (1) Z) R 1"}, true},
		{"somebody else has its pid", "", []string{"7 (kworker/0:1) I 2"}, false},
		{"is not reaped", "", []string{"7 (ovs-vswitchd) Z 1"}, false},
		{"is gone", "", nil, false},
	} {
		dir := t.TempDir()
		for i, task := range c.tasks {
			at := filepath.Join(dir, "task", strconv.Itoa(7+i))
			if err := errors.Join(os.MkdirAll(at, 0o755), os.WriteFile(filepath.Join(at, "stat"), []byte(task), 0o644),
				os.WriteFile(filepath.Join(dir, "stat"), []byte(c.tasks[0]), 0o644),
				os.WriteFile(filepath.Join(dir, "cmdline"), []byte(c.args), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if got := dying(dir); got != c.want {
			t.Errorf("%s: %t", c.what, got)
		}
	}
}

// TestBridgeNotMade: an ovs-vswitchd that runs and has not made the bridge is started anew.
func TestBridgeNotMade(t *testing.T) {
	t.Parallel()
	sw, _ := private(t, true)
	sw.unmadeMax = 100 * time.Millisecond
	h := tunnelHost(state.OVSUserspace)
	run(t, sw)
	eventually(t, sw, h)
	pid, _ := sw.own.pid(switchProgram)
	// As it is then: no bridge answers, and no connection is left.
	if err := os.Remove(sw.mgmt); err != nil {
		t.Fatal(err)
	}
	sw.mu.Lock()
	sw.flow.Close()
	sw.mu.Unlock()
	for end := time.Now().Add(bound); ; {
		if now, ok := sw.own.pid(switchProgram); ok && now != pid {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it runs on without a bridge")
		}
		<-time.After(5 * time.Millisecond)
	}
	eventually(t, sw, h)
}

func TestPurge(t *testing.T) {
	t.Parallel()
	sw, dir := private(t, false)
	h := tunnelHost(state.OVSUserspace)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- sw.Run(ctx) }()
	eventually(t, sw, h)
	stop()
	<-ended

	host := ovstest.Start(t)
	host.Vsctl("add-br", "meshnet", "--", "set", "bridge", "meshnet", "datapath_type=dummy", "external_ids:meshnet=1",
		"--", "add-br", "theirs", "--", "set", "bridge", "theirs", "datapath_type=dummy")
	c := PurgeConfig{RunDir: dir, HostRunDir: host.Dir, Bridge: "meshnet"}
	steps, err := Purge(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := "remove bridge meshnet, remove bridge meshnet, stop ovs-vswitchd, stop ovsdb-server, remove " + privateDir(dir)
	if got := strings.Join(strs(steps), ", "); got != want {
		t.Errorf("steps %s, want %s", got, want)
	}
	if got := host.Vsctl("list-br"); got != "theirs" {
		t.Errorf("bridges of the host: %s", got)
	}
	if _, err := os.Stat(privateDir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", privateDir(dir), err)
	}
	if sw.own.running(switchProgram) || sw.own.running(serverProgram) {
		t.Error("a daemon is left")
	}
	if steps, err := Purge(context.Background(), c); err != nil || len(steps) > 0 {
		t.Errorf("twice: %q, %v", steps, err)
	}
}

// TestPurgeAsleep: an instance that is stopped keeps our bridge, which is said; nobody else's is.
func TestPurgeAsleep(t *testing.T) {
	t.Parallel()
	host := ovstest.Start(t)
	host.Vsctl("add-br", "meshnet", "--", "set", "bridge", "meshnet", "datapath_type=dummy", "external_ids:meshnet=1",
		"--", "add-br", "theirs", "--", "set", "bridge", "theirs", "datapath_type=dummy")
	host.Kill(ovstest.Switchd)
	host.Kill(ovstest.Server)
	c := PurgeConfig{RunDir: shortDir(t), HostRunDir: host.Dir, HostDB: filepath.Join(host.Dir, "conf.db"), Bridge: "meshnet"}
	if _, err := Purge(context.Background(), c); err == nil || !strings.Contains(err.Error(), "start it and purge again") {
		t.Errorf("our bridge is in its database: %v", err)
	}
	c.Bridge = "theirs"
	if _, err := Purge(context.Background(), c); err != nil {
		t.Error(err)
	}
	c.HostDB = filepath.Join(host.Dir, "none.db")
	c.Bridge = "meshnet"
	if _, err := Purge(context.Background(), c); err != nil {
		t.Error(err)
	}
}

// TestStopSparesStrangers: a pidfile may be older than the process that has its pid now.
func TestStopSparesStrangers(t *testing.T) {
	t.Parallel()
	in := instance{dir: shortDir(t)}
	if err := os.WriteFile(in.pidFile(switchProgram), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if in.running(switchProgram) {
		t.Fatal("this test passes for ovs-vswitchd")
	}
	if err := in.stop(context.Background(), switchProgram); err != nil {
		t.Fatal(err) // and this process would be gone
	}
}

func TestUnreadableDatabase(t *testing.T) {
	t.Parallel()
	sw, dir := private(t, true)
	if err := os.MkdirAll(privateDir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(privateDir(dir), "conf.db"), []byte("no database\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, sw)
	eventually(t, sw, tunnelHost(state.OVSUserspace))
}

// TestTSOChanges: ovs-vswitchd reads it only when it starts.
func TestTSOChanges(t *testing.T) {
	t.Parallel()
	sw, _ := private(t, true)
	ctx := context.Background()
	if err := sw.own.ensure(ctx, false); err != nil {
		t.Fatal(err)
	}
	before, _ := sw.own.pid(switchProgram)
	if err := sw.own.ensure(ctx, false); err != nil {
		t.Fatal(err)
	}
	if same, _ := sw.own.pid(switchProgram); same != before {
		t.Error("restarted for nothing")
	}
	if err := sw.own.ensure(ctx, true); err != nil {
		t.Fatal(err)
	}
	if after, ok := sw.own.pid(switchProgram); !ok || after == before {
		t.Errorf("process %d, %v; want another than %d", after, ok, before)
	}
}

// TestLeaveOther: a switch that was on the host's instance and has one of its own now leaves nothing
// behind there.
func TestLeaveOther(t *testing.T) {
	t.Parallel()
	host := ovstest.Start(t)
	sw, _ := private(t, false)
	sw.config.HostRunDir = host.Dir
	host.Vsctl("add-br", "meshnet", "--", "set", "bridge", "meshnet", "datapath_type=dummy", "external_ids:meshnet=1")
	run(t, sw)
	eventually(t, sw, tunnelHost(state.OVSUserspace))
	if got := host.Vsctl("list-br"); got != "" {
		t.Errorf("bridges of the host: %s", got)
	}
}

// TestLeaveOtherLater: what could not be removed when the switch started is removed when it can be.
func TestLeaveOtherLater(t *testing.T) {
	t.Parallel()
	host := ovstest.Start(t)
	host.Vsctl("add-br", "meshnet", "--", "set", "bridge", "meshnet", "datapath_type=dummy", "external_ids:meshnet=1")
	sw, _ := private(t, false)
	sw.config.HostRunDir = shortDir(t)
	socket := filepath.Join(sw.config.HostRunDir, "db.sock")
	mute, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	met := make(chan struct{}, 1)
	go func() {
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			c.Close() // no OVSDB is spoken here
			select {
			case met <- struct{}{}:
			default:
			}
		}
	}()
	run(t, sw)
	eventually(t, sw, tunnelHost(state.OVSUserspace))
	<-met
	if err := mute.Close(); err != nil { // which removes the socket
		t.Fatal(err)
	}
	// Meanwhile it does not run at all.
	<-time.After(3 * absent / 2)
	if err := os.Symlink(host.DB, socket); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(bound); host.Vsctl("list-br") != ""; <-time.After(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("bridges of the host: %s", host.Vsctl("list-br"))
		}
	}
}

// TestPurgeStuck: a private ovs-vswitchd that does not answer goes too, and with it all of the instance.
func TestPurgeStuck(t *testing.T) {
	t.Parallel()
	sw, dir := private(t, false)
	ctx := context.Background()
	if err := sw.own.ensure(ctx, false); err != nil {
		t.Fatal(err)
	}
	db, err := dialDB(ctx, sw.own.address())
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	h := tunnelHost(state.OVSUserspace)
	have := db.observe("meshnet")
	if err := db.transact(ctx, (difference{addBridge: true}).first(h, have)); err != nil {
		t.Fatal(err)
	}
	pid, _ := sw.own.pid(switchProgram)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := purgePrivate(ctx, *sw.own, "meshnet"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(privateDir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", privateDir(dir), err)
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	host := ovstest.Start(t)
	dir := shortDir(t)
	ctx := context.Background()
	c := ProbeConfig{RunDir: dir, HostRunDir: filepath.Join(dir, "none"), UnderlayDevice: "br-phy"}
	module, err := kernelDatapath(ctx)
	if err != nil {
		t.Fatal(err)
	}
	probe := func(want plan.OVSFacts) {
		t.Helper()
		want.Installed, want.Module = true, module
		got, err := Probe(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	probe(plan.OVSFacts{})
	c.HostRunDir = host.Dir
	probe(plan.OVSFacts{HostRunning: true})
	host.Vsctl("add-br", "br-dp", "--", "set", "bridge", "br-dp", "datapath_type=dummy",
		"--", "add-br", "meshnet", "--", "set", "bridge", "meshnet", "datapath_type=netdev", "external_ids:meshnet=1")
	probe(plan.OVSFacts{HostRunning: true})
	host.Vsctl("add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev",
		"--", "add-port", "br-phy", "nic1", "--", "add-port", "br-phy", "nic0", "--", "set", "interface", "nic0", "type=system",
		"--", "add-port", "br-phy", "patch0", "--", "set", "interface", "patch0", "type=patch", "options:peer=none",
		"--", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")
	probe(plan.OVSFacts{HostRunning: true, HostNetdev: true, HostTSO: true, UnderlayOn: "br-phy", UnderlayNetdev: true,
		UnderlayNICs: []string{"nic0", "nic1"}})
	c.UnderlayDevice = "eth0"
	probe(plan.OVSFacts{HostRunning: true, HostNetdev: true, HostTSO: true})
	c.HostRunDir, c.OVSDB = "", "unix:"+host.DB
	probe(plan.OVSFacts{HostRunning: true, HostNetdev: true, HostTSO: true})
	host.Kill(ovstest.Switchd)
	probe(plan.OVSFacts{})

	sw, dir := private(t, false)
	if err := sw.own.ensure(ctx, false); err != nil {
		t.Fatal(err)
	}
	c.RunDir = dir
	probe(plan.OVSFacts{PrivateRunning: true})
}

func TestGenericFamily(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{"nlctrl": true, "meshnet-none": false} {
		if got, err := genericFamily(name); err != nil || got != want {
			t.Errorf("genericFamily(%s) = %v, %v; want %v", name, got, err, want)
		}
	}
}

// TestHostScriptEnvironment wants the host's instance where we then look for it, whatever instance the
// variables of the shell that meshnet was started from are about.
func TestHostScriptEnvironment(t *testing.T) {
	cmd := hostScript([]string{"PATH=/bin", "OVS_RUNDIR=/run/other", "OVS_LOGDIR=/l", "OVS_DBDIR=/d", "OVS_SYSCONFDIR=/s"}, "/run/openvswitch")
	if want := []string{"PATH=/bin", "OVS_RUNDIR=/run/openvswitch"}; !slices.Equal(cmd.Env, want) {
		t.Errorf("got %q, want %q", cmd.Env, want)
	}
}

// An ovs-vswitchd without a bridge has no thread that handles packets, one with a bridge has.
func TestDeaf(t *testing.T) {
	t.Parallel()
	in := ovstest.Start(t)
	pid := in.PID(ovstest.Switchd)
	if got := pidIn(in.Dir, switchProgram); got != pid {
		t.Errorf("process %d, want %d", got, pid)
	}
	if !deaf("/proc", pid) {
		t.Error("not deaf without a bridge")
	}
	in.Vsctl("add-br", "br")
	if deaf("/proc", pid) {
		t.Error("deaf with a bridge")
	}
	if deaf("/proc", 0) || deaf("/proc", os.Getpid()) || pidIn("/nowhere", switchProgram) != 0 {
		t.Error("deaf, and no ovs-vswitchd")
	}
}
