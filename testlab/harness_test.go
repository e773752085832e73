package testlab

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var withLab = flag.Bool("lab", false, "run the lab's tests (root, Open vSwitch)")

// TestMain runs the tests only when asked to. In a container of the lab the same program plays the
// parts of helpers_test.go.
func TestMain(m *testing.M) {
	if part := os.Getenv("TESTLAB_PART"); part != "" {
		os.Exit(play(part, os.Args[1:]))
	}
	flag.Parse()
	if !*withLab {
		fmt.Println("testlab: the lab's tests run with -lab")
		return
	}
	if os.Getuid() != 0 {
		fmt.Println("testlab: must be root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// lab is one running lab.
type lab struct {
	t    testing.TB
	name string
}

// up starts a lab of its own name and ends it with the test, which then fails if anything is left.
func up(t *testing.T, args ...string) *lab {
	t.Helper()
	l := &lab{t, fmt.Sprintf("t%d", os.Getpid())}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range []string{"1", "2", "3"} {
				log, _ := l.try("logs", h)
				t.Logf("log of host %s:\n%s", h, tail(log, 60))
				if log, err := l.try("exec", h, "tail", "-n", "40", "/run/meshnet/ovs/ovs-vswitchd.log"); err == nil {
					t.Logf("log of its own ovs-vswitchd:\n%s", log)
				}
			}
		}
		l.run("down")
		l.nothingLeft()
	})
	l.run(append([]string{"up"}, args...)...)
	return l
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (l *lab) command(args ...string) *exec.Cmd {
	if *inGuest {
		if cmd := l.direct(args); cmd != nil {
			return cmd
		}
	}
	cmd := exec.Command("./lab", args...)
	cmd.Env = append(os.Environ(), "MESHNET_LAB="+l.name)
	return cmd
}

// direct is lab exec and lab in as the script carries them out, without the script: in the guest bash
// takes longer than most of what is run. It is nil for other commands, and where the script is to say
// what is wrong. It knows no Docker.
func (l *lab) direct(args []string) *exec.Cmd {
	if len(args) < 3 || args[0] != "exec" && args[0] != "in" {
		return nil
	}
	dir := l.dir()
	text, err := os.ReadFile(filepath.Join(dir, "h"+args[1], "init"))
	if err != nil {
		return nil
	}
	init := strings.TrimSpace(string(text))
	root, run, net := "/proc/"+init+"/root", "/run/meshnet/ovs", "-n"
	if _, err := os.Stat(root + "/run/openvswitch/meshnet.mgmt"); err == nil {
		run = "/run/openvswitch"
	}
	rest := args[2:]
	if args[0] == "in" {
		net, rest = "-n"+root+"/run/netns/"+args[2], args[3:]
	}
	cmd := exec.Command("nsenter", append([]string{"-t", init, "-m", "-u", net, "-p", "--wd=/", "--"}, rest...)...)
	cmd.Env = append(os.Environ(), "MESHNET_LAB="+l.name, "OVS_RUNDIR="+run, "PATH="+dir+"/bin:"+os.Getenv("PATH"))
	return cmd
}

// commandMax bounds a command of the lab; the longest one waits four minutes.
const commandMax = 10 * time.Minute

// try runs a command of the lab and returns what it printed on standard output.
func (l *lab) try(args ...string) (string, error) {
	cmd := l.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Start()
	if err == nil {
		late := time.AfterFunc(commandMax, func() { end(cmd) })
		err = cmd.Wait()
		if !late.Stop() {
			err = fmt.Errorf("not done after %v: %w", commandMax, err)
		}
	}
	if err != nil {
		err = fmt.Errorf("lab %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), err
}

// run is try for what must succeed.
func (l *lab) run(args ...string) string {
	l.t.Helper()
	out, err := l.try(args...)
	if err != nil {
		l.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// converged waits until all hosts have one digest and nothing pending.
func (l *lab) converged() {
	l.t.Helper()
	l.run("converged", "-t", fmt.Sprint(slow(30)))
}

// slow returns how many seconds of patience to have where seconds are enough on this machine: the
// guest is emulated, and never measures speed.
func slow(seconds int) int {
	if *inGuest {
		return 20 * seconds
	}
	return seconds
}

// meshnet runs meshnet on a host.
func (l *lab) meshnet(host int, args ...string) string {
	l.t.Helper()
	return l.run(append([]string{"exec", fmt.Sprint(host), "meshnet"}, args...)...)
}

// ask runs meshnet with --json on a host and reads what it prints.
func ask[T any](l *lab, host int, args ...string) T {
	l.t.Helper()
	var v T
	out := l.meshnet(host, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		l.t.Fatalf("meshnet %v: %v\n%s", args, err, out)
	}
	return v
}

// attach attaches a container and returns its address without the prefix length.
func (l *lab) attach(host int, container, network string) string {
	l.t.Helper()
	a := ask[struct{ Address string }](l, host, "attach", container, network, "--wait", fmt.Sprintf("%ds", slow(2)))
	address, _, _ := strings.Cut(a.Address, "/")
	return address
}

// part prepares a run of this program in a part, inside a container, or on a host if container is
// empty.
func (l *lab) part(host int, container, part string, args ...string) *exec.Cmd {
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		l.t.Fatal(err)
	}
	where := []string{"exec", fmt.Sprint(host)}
	if container != "" {
		where = []string{"in", fmt.Sprint(host), container}
	}
	where = append(where, "env", "TESTLAB_PART="+part, self)
	return l.command(append(where, args...)...)
}

// nothingLeft fails the test if a namespace, process, link or file of the lab is still there.
func (l *lab) nothingLeft() {
	l.t.Helper()
	if _, err := os.Stat(l.dir()); err == nil {
		l.t.Errorf("/tmp/meshnet-%s is still there", l.name)
	}
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil || strings.Contains(string(out), "mn-"+l.name) {
		l.t.Errorf("namespaces left (%v): %s", err, out)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range procs {
		line, _ := os.ReadFile(p)
		if env, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "environ")); strings.Contains(string(env), "MESHNET_LAB="+l.name) {
			l.t.Errorf("process left: %s %q", p, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), l.dir()) {
		l.t.Errorf("mounts left (%v)", err)
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/mn-" + l.name + "*")
	if err != nil || len(left) > 0 {
		l.t.Errorf("control groups left (%v): %v", err, left)
	}
}
