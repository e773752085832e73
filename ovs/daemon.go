package ovs

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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	serverProgram = "ovsdb-server"
	switchProgram = "ovs-vswitchd"
	toolProgram   = "ovsdb-tool"

	// schemaFile and ctlScript are where all distributions put them.
	schemaFile = "/usr/share/openvswitch/vswitch.ovsschema"
	ctlScript  = "/usr/share/openvswitch/scripts/ovs-ctl"

	// keyTSO is read by ovs-vswitchd once, when it starts.
	keyTSO = "userspace-tso-enable"

	// startMax bounds the start of one daemon, or of the host's service, as systemd's own limit does.
	// stopMax bounds a daemon's end after SIGTERM.
	startMax = 90 * time.Second
	stopMax  = 5 * time.Second

	// vacateMax bounds the wait for a killed ovs-vswitchd to give up what it has.
	vacateMax = 10 * time.Second
)

// ErrNotInstalled says that a program of Open vSwitch is not on this host.
var ErrNotInstalled = errors.New("not installed; apt-get install openvswitch-switch")

// privateDir returns where a private instance has its sockets, database and logs. With OVS_RUNDIR,
// OVS_LOGDIR and OVS_DBDIR set to it, ovs-vsctl, ovs-ofctl and ovs-appctl speak to that instance.
func privateDir(runDir string) string { return filepath.Join(runDir, "ovs") }

// instance is an Open vSwitch of our own. Its daemons are no children: they go on when we end, and
// are found again by pidfile.
type instance struct {
	dir        string
	switchArgs []string // more arguments of ovs-vswitchd, for tests
}

func (in instance) address() string { return "unix:" + filepath.Join(in.dir, "db.sock") }

// ensure starts what of the instance does not run. tso is put into the database before ovs-vswitchd
// starts; one that runs with the other setting is restarted.
func (in instance) ensure(ctx context.Context, tso bool) error {
	if err := os.MkdirAll(in.dir, 0o755); err != nil {
		return fmt.Errorf("make a directory for Open vSwitch: %w", err)
	}
	if !in.running(serverProgram) {
		if err := in.startServer(ctx); err != nil {
			return err
		}
	}
	changed, err := in.prepare(ctx, tso)
	if err != nil {
		return err
	}
	if changed {
		if err := in.stop(ctx, switchProgram); err != nil {
			return err
		}
	}
	if in.running(switchProgram) {
		return nil
	}
	if err := in.vacated(ctx); err != nil {
		return err
	}
	return in.start(ctx, switchProgram, append([]string{in.address()}, in.switchArgs...)...)
}

// vacated returns when the process that the pidfile of ovs-vswitchd names has ended altogether, or after
// [vacateMax]. One that was killed has no arguments any more before it gives up its devices, and an
// ovs-vswitchd that starts meanwhile finds them busy, makes no bridge and does not try again.
func (in instance) vacated(ctx context.Context) error {
	dir := filepath.Join("/proc", strconv.Itoa(pidIn(in.dir, switchProgram))) // none has the pid 0
	for end := time.Now().Add(vacateMax); dying(dir) && time.Now().Before(end); {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// dying reports whether a process of which proc(5) has the directory is an ovs-vswitchd that was killed and has
// threads that have not ended.
func dying(dir string) bool {
	if args, err := os.ReadFile(filepath.Join(dir, "cmdline")); err != nil || len(args) > 0 {
		return false
	}
	if name, _ := nameAndState(filepath.Join(dir, "stat")); name != switchProgram {
		return false
	}
	tasks, err := filepath.Glob(filepath.Join(dir, "task", "*", "stat"))
	return err == nil && slices.ContainsFunc(tasks, func(task string) bool {
		_, state := nameAndState(task)
		return !strings.ContainsRune("\x00ZXx", state)
	})
}

// nameAndState reads both from a stat file of proc(5), whose name may hold anything; nothing from one that ended.
func nameAndState(path string) (name string, state rune) {
	stat, err := os.ReadFile(path)
	if err != nil {
		return "", 0
	}
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || shut < open || len(stat) < shut+3 {
		return "", 0
	}
	return string(stat[open+1 : shut]), rune(stat[shut+2])
}

// prepare writes into the database what ovs-vswitchd has to find there when it starts, and reports
// whether it was otherwise.
func (in instance) prepare(ctx context.Context, tso bool) (changed bool, err error) {
	db, err := dialDB(ctx, in.address())
	if err != nil {
		return false, err
	}
	defer db.close()
	if err := db.addRoot(ctx); err != nil {
		return false, fmt.Errorf("initialize the database: %w", err)
	}
	root := db.root()
	if root == nil {
		return false, errLost
	}
	if (root.OtherConfig[keyTSO] == "true") == tso {
		return false, nil
	}
	tx := &transaction{}
	tx.setMap(tableRoot, root.UUID, "other_config", map[string]string{keyTSO: strconv.FormatBool(tso)}, keyTSO)
	if err := db.transact(ctx, tx.ops); err != nil {
		return false, fmt.Errorf("set %s: %w", keyTSO, err)
	}
	return true, nil
}

// startServer starts ovsdb-server, on a new database if there is none or if it does not read the one
// there is: all in it can be derived again.
func (in instance) startServer(ctx context.Context) error {
	file := filepath.Join(in.dir, "conf.db")
	args := []string{file, "--remote=punix:" + filepath.Join(in.dir, "db.sock")}
	if _, err := os.Stat(file); err == nil {
		first := in.start(ctx, serverProgram, args...)
		if first == nil {
			return nil
		}
		if err := os.Rename(file, file+".bad"); err != nil {
			return errors.Join(first, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("find the Open vSwitch database: %w", err)
	}
	if err := in.run(ctx, toolProgram, "create", file, schemaFile); err != nil {
		return err
	}
	return in.start(ctx, serverProgram, args...)
}

// start starts a daemon in a session of its own and returns when it is ready.
func (in instance) start(ctx context.Context, program string, args ...string) error {
	args = append(args, "--detach", "--no-chdir", "-vconsole:err", "-vsyslog:err",
		"--pidfile="+in.pidFile(program), "--log-file="+filepath.Join(in.dir, program+".log"))
	path, err := findProgram(program)
	if err != nil {
		return err
	}
	path, args = service{systemdDir, "/proc/self/cgroup"}.unit(in, program, path, args)
	return in.command(ctx, path, args)
}

// run runs a program of Open vSwitch to its end.
func (in instance) run(ctx context.Context, program string, args ...string) error {
	path, err := findProgram(program)
	if err != nil {
		return err
	}
	return in.command(ctx, path, args)
}

func (in instance) command(ctx context.Context, path string, args []string) error {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), in.environ()...)
	return runCommand(ctx, cmd)
}

// runCommand runs a command for at most [startMax]. Its error holds what it printed.
func runCommand(ctx context.Context, cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// A daemon that got detached may keep these open for a moment.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", filepath.Base(cmd.Path), err)
	}
	ctx, cancel := context.WithTimeout(ctx, startMax)
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it has ended already: fine
	err := cmd.Wait()
	stop()
	cancel()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("run %s: %w: %s", filepath.Base(cmd.Path), err, lastLine(out.String()))
	}
	return nil
}

// stop ends a daemon and returns when it is gone. One that does not run is no error.
func (in instance) stop(ctx context.Context, program string) error {
	signal := syscall.SIGTERM
	began := time.Now()
	for {
		pid, ok := in.pid(program)
		if !ok {
			return nil
		}
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop %s, pid %d: %w", program, pid, err)
		}
		if time.Since(began) > stopMax {
			signal = syscall.SIGKILL
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("stop %s, pid %d: %w", program, pid, ctx.Err())
		}
	}
}

func (in instance) pidFile(program string) string { return pidFile(in.dir, program) }

func pidFile(dir, program string) string { return filepath.Join(dir, program+".pid") }

// pidIn returns the process that the pidfile of a program in a directory names, whoever has that id by now; 0:
// none.
func pidIn(dir, program string) int {
	text, err := os.ReadFile(pidFile(dir, program))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text))) // 0 if it is none
	return pid
}

func (in instance) running(program string) bool {
	_, ok := in.pid(program)
	return ok
}

// pid returns the process that a pidfile names, if it is that program of this instance: a pid may
// long be somebody else's.
func (in instance) pid(program string) (int, bool) {
	pid := pidIn(in.dir, program)
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return 0, false
	}
	name, rest, _ := strings.Cut(string(args), "\x00")
	return pid, filepath.Base(name) == program && strings.Contains(rest, in.pidFile(program))
}

// startHost starts the host's own instance, with its sockets in dir, by its service, or without
// systemd by Open vSwitch's script.
func startHost(ctx context.Context, dir string) error {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		debian := runCommand(ctx, exec.Command("systemctl", "start", "openvswitch-switch.service"))
		if debian == nil {
			return nil
		}
		if err := runCommand(ctx, exec.Command("systemctl", "start", "openvswitch.service")); err != nil {
			return errors.Join(debian, err)
		}
		return nil
	}
	return runCommand(ctx, hostScript(os.Environ(), dir))
}

// hostScript starts the host's instance by ovs-ctl(8). Variables that say where another instance is,
// as people set them for ovs-vsctl, must not lead it there.
func hostScript(environ []string, dir string) *exec.Cmd {
	cmd := exec.Command(ctlScript, "start", "--system-id=random")
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if !(strings.HasPrefix(name, "OVS_") && strings.HasSuffix(name, "DIR")) {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, "OVS_RUNDIR="+dir)
	return cmd
}

// findProgram looks for a program where distributions put it, which is not always on the PATH.
func findProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: %w", name, ErrNotInstalled)
}

// answers reports whether somebody listens on a Unix socket.
func answers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// switchAnswers reports whether an ovs-vswitchd with its sockets in dir answers.
func switchAnswers(dir string) bool {
	sockets, err := filepath.Glob(filepath.Join(dir, switchProgram+".*ctl"))
	if err != nil {
		return false // dir is no pattern of ours
	}
	for _, s := range sockets {
		if answers(s) {
			return true
		}
	}
	return false
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
