package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnet/netns"
	"meshnet/netns/nstest"
	"meshnet/plan"
)

func TestSplitRun(t *testing.T) {
	for _, tt := range []struct {
		args, own, rest string
		fails           bool
	}{
		{args: "-n web -it ubuntu /bin/bash", own: "-n=[web]", rest: "-it ubuntu /bin/bash"}, // SocketPlane's line
		{args: "-n web --ip 10.2.0.5 -- --ip 1.2.3.4 ubuntu", own: "--ip=[10.2.0.5] -n=[web]", rest: "--ip 1.2.3.4 ubuntu"},
		{args: "--no-default-route -n=web,db --alias a --alias b ubuntu -n x", own: "--alias=[a b] --no-default-route=[] -n=[web,db]", rest: "ubuntu -n x"},
		{args: "ubuntu", rest: "ubuntu"},
		{args: "--", rest: ""},
		{args: "-n", fails: true},
		{args: "--ip= ubuntu", fails: true},
	} {
		own, rest, err := splitRun(strings.Fields(tt.args))
		var got []string
		for k, v := range own {
			got = append(got, k+"=["+strings.Join(v, " ")+"]")
		}
		slices.Sort(got)
		if (err != nil) != tt.fails || err == nil && (strings.Join(got, " ") != tt.own || strings.Join(rest, " ") != tt.rest) {
			t.Errorf("%s: %q, %q, %v", tt.args, got, rest, err)
		}
	}
}

func TestParseDockerRun(t *testing.T) {
	for _, tt := range []struct {
		args, flags, image, command string
		pull, platform, network     string
		entrypoint                  string // with a = before it, when given
	}{
		{args: "-it ubuntu /bin/bash -l", flags: "-it", image: "ubuntu", command: "/bin/bash -l"},
		{args: "-itp 80:80 --rm -e A=b -eC=d --env=E ubuntu", flags: "-itp 80:80 --rm -e A=b -eC=d --env=E", image: "ubuntu"},
		{args: "-d=false -h host --dns 1.1.1.1 -p8080:80 img", flags: "-d=false -h host --dns 1.1.1.1 -p8080:80", image: "img"},
		{args: "--entrypoint sh img -c ls", image: "img", command: "-c ls", entrypoint: "=sh"},
		{args: "--entrypoint= img ls", image: "img", command: "ls", entrypoint: "="},
		{args: "--pull always --platform=linux/arm64 --net none --sig-proxy=false img", flags: "--platform=linux/arm64 --net none --sig-proxy=false",
			image: "img", pull: "always", platform: "linux/arm64", network: "none"},
		{args: "--name x -- img --rm", flags: "--name x", image: "img", command: "--rm"},
		{args: "--restart always -v /a:/b --init img", flags: "--restart always -v /a:/b --init", image: "img"},
	} {
		r, err := parseDockerRun(strings.Fields(tt.args))
		entrypoint := ""
		if r.entrypoint != nil {
			entrypoint = "=" + *r.entrypoint
		}
		if err != nil || strings.Join(r.flags, " ") != tt.flags || r.image != tt.image || strings.Join(r.command, " ") != tt.command ||
			r.pull != tt.pull || r.platform != tt.platform || r.network != tt.network || entrypoint != tt.entrypoint {
			t.Errorf("%s: %+v, entrypoint %s, %v", tt.args, r, entrypoint, err)
		}
	}
	for _, args := range []string{"", "-it", "--name", "--", "-p"} {
		if r, err := parseDockerRun(strings.Fields(args)); err == nil {
			t.Errorf("%q: %+v", args, r)
		}
	}
}

// TestProcess holds Docker's rule of entrypoint and command.
func TestProcess(t *testing.T) {
	sh, none := "sh", ""
	for _, tt := range []struct {
		given                              *string
		args, entrypoint, command, process string
	}{
		{nil, "", "e1 e2", "c1", "e1 e2 c1"},
		{nil, "a b", "e1", "c1", "e1 a b"},
		{nil, "a", "", "c1", "a"},
		{nil, "", "", "c1 c2", "c1 c2"},
		{&sh, "", "e1", "c1", "sh"},
		{&sh, "-c x", "e1", "c1", "sh -c x"},
		{&none, "", "e1", "c1", ""},
		{&none, "a", "e1", "c1", "a"},
	} {
		r := dockerRun{entrypoint: tt.given, command: strings.Fields(tt.args)}
		if got := strings.Join(r.process(strings.Fields(tt.entrypoint), strings.Fields(tt.command)), " "); got != tt.process {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

var flagRE = regexp.MustCompile(`(?m)^ +(?:-(\w), )? *--([a-z0-9-]+)(?: (\S+))?`)

// TestDockerSwitches: the docker command installed here has no flag without a value that we take for
// one with.
func TestDockerSwitches(t *testing.T) {
	out, err := exec.Command("docker", "run", "--help").Output()
	if err != nil {
		if os.Getenv("MESHNET_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("docker is not installed: ", err)
	}
	all := flagRE.FindAllStringSubmatch(string(out), -1)
	if len(all) < 50 {
		t.Fatalf("read %d flags of docker run --help:\n%s", len(all), out)
	}
	for _, f := range all {
		for _, name := range f[1:3] {
			if name != "" && slices.Contains(dockerSwitches, name) != (f[3] == "") {
				t.Errorf("flag %s has value %q", name, f[3])
			}
		}
	}
}

// TestArrangeRun: what follows run is not touched, what is before it is found.
func TestArrangeRun(t *testing.T) {
	app := (&terminal{out: io.Discard, err: io.Discard, now: time.Now}).app()
	app.Setup()
	got := arrange(app, strings.Fields("meshnet --socket /s run -n web -it img ls --json"))
	if want := strings.Fields("meshnet --socket /s run -n web -it img ls --json"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestWaiter: the waiter goes on when it is told, says why it never will, and ends by signals.
func TestWaiter(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	var stderr bytes.Buffer
	term := &terminal{out: io.Discard, err: &stderr, now: time.Now}
	tell := func(line string) {
		for range 1000 {
			c, err := net.Dial("unix", "@"+waiterSocket)
			if err != nil {
				time.Sleep(time.Millisecond)
				continue
			}
			io.WriteString(c, line)
			c.Close()
			return
		}
		t.Error("nobody listens")
	}
	go func() {
		tell("") // somebody who says nothing
		tell("nonsense\n")
		tell("ready\n")
	}()
	if err := term.waitForNetwork("web"); err != nil {
		t.Error(err)
	}
	go tell("never address 10.2.0.5 is taken\n")
	var f *failure
	if err := term.waitForNetwork("web"); !errors.As(err, &f) || f.Code != exitNetwork || f.Error() != "run failed: address 10.2.0.5 is taken" {
		t.Errorf("told why not: %v", err)
	}
	if err := become([]string{"/nowhere/program"}); !errors.As(err, &f) || f.Code != exitNoSuchFile {
		t.Errorf("start nothing: %v", err)
	}
	if err := become([]string{"no-such-program"}); !errors.As(err, &f) || f.Code != exitNoSuchFile {
		t.Errorf("start nothing: %v", err)
	}
	if err := become([]string{"/etc/passwd"}); !errors.As(err, &f) || f.Code != exitNoExec {
		t.Errorf("start what is no program: %v", err)
	}
}

// TestInterfaces counts what meshnet made and set up.
func TestInterfaces(t *testing.T) {
	dir := t.TempDir()
	for name, files := range map[string][2]string{
		"eth0": {"", "up"}, "eth1": {"meshnet:container=0000000000000001", "up"}, "eth2": {"meshnet:container=2", "down"},
	} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for i, file := range []string{"ifalias", "operstate"} {
			if err := os.WriteFile(filepath.Join(dir, name, file), []byte(files[i]+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := interfaces(dir); n != 1 {
		t.Errorf("%d interfaces", n)
	}
}

// TestRelease tells a waiter that listens late, and leaves alone what is none.
func TestRelease(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	if out, err := exec.Command("ip", "netns", "add", "c1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, late := range []bool{false, true} {
		cmd := exec.Command("nsenter", "--net=/run/netns/c1", "bash", "-c", "exec -a "+waiterPath+" "+os.Args[0]+" "+waiterVerb+" web true")
		cmd.Env = os.Environ()
		if late {
			cmd.Env = append(cmd.Env, "MESHNET_TEST_LATE=1")
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		box := boxOf(t, cmd.Process.Pid)
		if err := (&containers{}).Release(context.Background(), box, ""); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("late %t: %v: %s", late, err, stderr.String())
		}
	}
	cmd := exec.Command("nsenter", "--net=/run/netns/c1", "sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	box := boxOf(t, cmd.Process.Pid)
	began := time.Now()
	if err := (&containers{}).Release(context.Background(), box, ""); err != nil || time.Since(began) > tellMax/2 {
		t.Errorf("told who does not wait: %v after %v", err, time.Since(began))
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := (&containers{}).Release(context.Background(), box, ""); err != nil {
		t.Errorf("told a container that is gone: %v", err)
	}
}

// boxOf waits until a process is in the namespace and returns it.
func boxOf(t *testing.T, pid int) plan.Sandbox {
	t.Helper()
	want, _, err := netns.FindNamed("c1")
	if err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		f, s, err := netns.FromPID(pid)
		if err == nil {
			f.Close()
			if s.Inode == want.Inode {
				return plan.Sandbox{Path: fmt.Sprintf("/proc/%d/ns/net", pid), Inode: s.Inode}
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it does not enter the namespace")
	return plan.Sandbox{}
}

// TestMain is also the waiter of TestRelease.
func TestMain(m *testing.M) {
	if isWaiter(os.Args) {
		if os.Getenv("MESHNET_TEST_LATE") != "" {
			time.Sleep(200 * time.Millisecond)
		}
		main()
	}
	os.Exit(m.Run())
}
