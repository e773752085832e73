package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshnet/api"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// inode returns the inode of an open file.
func inode(name string, f *os.File) (uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("stat %s: %w", name, err)
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// serve opens a door on a socket of its own until the test ends.
func serve(t *testing.T, d api.Door) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(context.Background())
	s, err := api.Listen(api.Config{
		Path: socket, Door: d, Version: "0.1.0", RunDir: filepath.Dir(socket), Stop: cancel, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return socket
}

type result struct {
	out, err string
	code     int
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\n--- stdout\n%s--- stderr\n%s", r.code, r.out, r.err)
}

func command(socket string, args ...string) result {
	var out, errs bytes.Buffer
	term := &terminal{out: &out, err: &errs, now: func() time.Time { return born.Add(time.Hour) }}
	args = slices.Concat([]string{"meshnet", "--socket", socket}, args)
	code := term.run(context.Background(), args)
	return result{out.String(), errs.String(), code}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

var goroutinesRE = regexp.MustCompile(`"goroutines": \d+`)

// TestVerbs shows what each verb prints: testdata/NAME.txt. A line of the script is a command.
func TestVerbs(t *testing.T) {
	for _, test := range []struct {
		name    string
		door    func(*door)
		scripts []string
	}{
		{"status", nil, []string{"status", "status --json"}},
		{"status-pending", func(d *door) { d.pending = []string{"switch: reach Open vSwitch: not connected"} }, []string{"status", "status --json"}},
		{"nodes", nil, []string{"nodes", "nodes --json"}},
		{"ps", nil, []string{"ps", "ps -a", "ps --json -a", "ps c2 -a", "info", "ps nobody --json"}},
		{"network-ls", nil, []string{"network ls", "network list --json"}},
		{"network-inspect", nil, []string{"network inspect default", "network info default --json", "network inspect 1111222233334444", "network inspect nil", "network inspect"}},
		{"network-create", nil, []string{
			"network create web 10.2.0.0/16 --label a=b --reserve 10.2.0.16/30 --reserve 10.2.1.1",
			"network inspect web",
			"network create db 10.3.0.0/16 --gateway none --internal --json",
		}},
		{"network-create-bad", nil, []string{
			"network create web 10.2.0.0", "network create web 10.1.2.0/24", "network create " + strings.Repeat("n", 64) + " 10.9.0.0/16",
			"network create", "network create web 10.2.0.0/16 more", "network create web --gateway x", "network create web --label x",
			"network create web --reserve 10.2.0.9-10.2.0.1", "network create web --mtu 70000", "network create web --mtu many",
			"network create web 10.1.2.0/24 --json",
		}},
		{"network-rm", nil, []string{"network rm default", "network rm default --json", "network delete default --force", "network rm default", "network rm"}},
		{"attach", nil, []string{
			"attach c9", "attach c8 default --ip 10.1.0.77 --json --alias www", "attach c1 nosuch", "attach xyz default", "attach",
			"attach c1 default more", "attach c1 --ip here", "attach c1 --mac 1", "attach c1 --wait soon", "attach c1 --wait 1h",
			"attach c1 --pid 1 --netns /proc/self/ns/net", "attach --netns /nowhere", "attach --pid 0", "attach ''",
		}},
		{"attach-late", func(d *door) { d.waiting = []string{"h2", "h3"} }, []string{"attach c9 --wait 500ms", "attach c9 --json"}},
		{"detach", nil, []string{"detach c1 --json", "detach c1", "detach c1 default", "detach c1 nosuch", "detach", "detach a b c"}},
		{"expose", nil, []string{"expose default", "hide default --json", "hide default", "expose nosuch", "expose", "expose default --json", "hide"}},
		{"publish", nil, []string{
			"publish default c1 18080:80", "publish default c1 15353:5353/udp --json", "ps --json", "unpublish default c1 18080",
			"publish default c7 18080:80", "publish default c1 18080", "publish default c1 0:80", "publish default c1 1:80/sctp", "publish default",
			"unpublish default c1 x", "publish default c1 70000:1", "unpublish default c1 15353:5353/udp --json",
		}},
		{"events", nil, []string{"events", "events --json", "events --since 20m", "events --since 2026-03-01T12:30:00Z --json", "events --since x"}},
		{"doctor", nil, []string{"doctor more", "doctor --advertise x"}},
		{"usage", nil, []string{"bogus", "bogus --json", "network bogus", "ps --bogus", "status more", "--bogus", "help bogus", "completion csh", "completion"}},
		{"help", nil, []string{"", "help", "help attach", "network", "help network rm", "up --help", "down --help", "publish --help", "expose --help"}},
		{"cluster", nil, []string{"cluster", "cluster --json", "cluster join h2", "cluster more", "cluster join"}},
		{"run", nil, []string{
			"run", "run --help", "run -n nosuch img", "run -n default --ip 10.9.0.1 img", "run -n default --network host img", "run -n",
			"run -n default -it", "run -n default --name",
		}},
		{"version", nil, []string{"version", "version --json"}},
		{"ipam", nil, []string{"ipam default", "ipam default --json", "ipam nosuch", "ipam a b"}},
		{"conflicts", nil, []string{"conflicts", "conflicts --json", "conflicts all"}},
		{"rmpeer", nil, []string{"rmpeer h3", "rmpeer h3 --json", "rmpeer h9", "rmpeer", "rmpeer --help"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDoor()
			if test.door != nil {
				test.door(d)
			}
			socket := serve(t, d)
			var b strings.Builder
			for _, script := range test.scripts {
				args := strings.Fields(script)
				for i := range args {
					args[i] = strings.ReplaceAll(args[i], "''", "")
				}
				fmt.Fprintf(&b, "$ meshnet %s\n%v\n", script, command(socket, args...))
			}
			own := fmt.Sprintf("\"pid\": %d,\n", os.Getpid())
			text := strings.ReplaceAll(b.String(), own, "\"pid\": 4242,\n")
			golden(t, test.name+".txt", goroutinesRE.ReplaceAllString(text, `"goroutines": 42`))
		})
	}
}

// TestOneLine: every failure is one line on stderr, says what and why, and is JSON on stdout if asked.
func TestOneLine(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "s")
	for _, test := range []struct {
		args string
		code int
	}{
		{"status", 3}, {"ps", 3}, {"nodes", 3}, {"network ls", 3}, {"network create web", 3}, {"network rm web", 3},
		{"attach c1", 3}, {"detach c1", 3}, {"ipam", 3}, {"conflicts", 3}, {"rmpeer h3", 3}, {"leave", 3}, {"network inspect web", 3}, {"network inspect", 2}, {"nothing", 2}, {"attach", 2},
		{"attach c1 --pid x", 2}, {"completion tcsh", 2}, {"up now", 2}, {"down --hard", 2},
	} {
		got := command(nobody, append(strings.Fields(test.args), "--json")...)
		if got.code != test.code || strings.Count(got.err, "\n") != 1 || !strings.HasPrefix(got.err, "meshnet: ") ||
			!strings.Contains(got.err, " failed: ") || !strings.Contains(got.err, "; ") {
			t.Errorf("%s: %v", test.args, got)
		}
		var said struct{ Error string }
		if err := json.Unmarshal([]byte(got.out), &said); err != nil || "meshnet: "+said.Error+"\n" != got.err {
			t.Errorf("%s: stdout %q, stderr %q", test.args, got.out, got.err)
		}
	}
}

// TestNamespace hands a namespace over by process and by path.
func TestNamespace(t *testing.T) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	own, err := inode(f.Name(), f)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--pid", fmt.Sprint(os.Getpid())}, {"--netns", "/proc/self/ns/net"}, {"default", "--netns=/proc/self/ns/net"},
	} {
		d := newDoor()
		got := command(serve(t, d), append([]string{"attach"}, args...)...)
		if got.code != 0 || d.passed != own {
			t.Errorf("attach %v: the daemon got inode %d, want %d: %v", args, d.passed, own, got)
		}
	}
}

func TestArrange(t *testing.T) {
	app := (&terminal{}).app()
	for _, test := range []struct{ in, want string }{
		{"attach c1 web --json", "attach --json -- c1 web"},
		{"--json attach c1 web", "attach --json -- c1 web"},
		{"--socket /s attach c1", "attach --socket /s -- c1"},
		{"attach c1 --ip 10.2.0.7 web --wait=1s", "attach --ip 10.2.0.7 --wait=1s -- c1 web"},
		{"network --json ls", "network ls --json"},
		{"network create web --force 10.2.0.0/16", "network create --force -- web 10.2.0.0/16"},
		{"attach network ls", "attach -- network ls"},
		{"attach -- --json -x", "attach -- --json -x"},
		{"ps -a", "ps -a"},
		{"attach c1 --ip", "attach --ip -- c1"},
		{"network nonsense ls --json", "network --json -- nonsense ls"},
		{"", ""},
	} {
		got := arrange(app, append([]string{"meshnet"}, strings.Fields(test.in)...))
		if want := append([]string{"meshnet"}, strings.Fields(test.want)...); !slices.Equal(got, want) {
			t.Errorf("arrange(%q) = %q, want %q", test.in, got, want)
		}
	}
}

// TestCompletion lets bash complete with what the program printed.
func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "meshnet"), ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, test := range []struct{ line, want string }{
		{"meshnet netw", "network"}, {"meshnet network in", "inspect info"}, {"meshnet attach --ifn", "--ifname"}, {"meshnet ", "status"},
	} {
		words := strings.Split(test.line, " ")
		script := `source <(meshnet completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _meshnet; echo "${COMPREPLY[@]}"`
		cmd := exec.Command("bash", append([]string{"-c", script, "bash"}, words...)...)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), test.want) {
			t.Errorf("complete %q: %q %v, want %s", test.line, out, err, test.want)
		}
	}
	// What is installed for zsh is read in the middle of the first completion, and has to answer that too.
	if got := command("/nowhere", "completion", "zsh"); !strings.HasSuffix(got.out, "[[ ${funcstack[1]} != _meshnet ]] || _meshnet\n") {
		t.Errorf("completion zsh leaves the first one out:\n%s", got.out)
	}
	for _, shell := range []string{"zsh", "fish"} {
		if got := command("/nowhere", "completion", shell); got.code != 0 || !strings.Contains(got.out, "meshnet") {
			t.Errorf("completion %s: %v", shell, got)
		}
	}
}
