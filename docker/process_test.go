package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestProcess finds a container's oldest process by its control group, as each of Docker's drivers
// names it.
func TestProcess(t *testing.T) {
	id := func(c string) string { return strings.Repeat(c, 64) }
	proc := t.TempDir()
	for _, p := range []struct {
		pid, started int
		cgroup       string
	}{
		{10, 100, "12:memory:/docker/" + id("a") + "\n0::/docker/" + id("a") + "\n"},
		{9, 300, "0::/docker/" + id("a") + "\n"}, // younger: process ids come round again
		{20, 200, "0::/system.slice/docker-" + id("b") + ".scope\n"},
		{30, 200, "0::/docker/" + id("c") + "/init.scope\n"},
		{31, 100, "0::/user.slice/x-" + id("c") + "\n"}, // named like it, and another's
		{40, 50, "0::/\n"},
	} {
		dir := filepath.Join(proc, fmt.Sprint(p.pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		stat := fmt.Sprintf("%d (a) b c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 %d 0 0", p.pid, p.started)
		for name, text := range map[string]string{"cgroup": p.cgroup, "stat": stat} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Mkdir(filepath.Join(proc, "50"), 0o755); err != nil { // it ended this moment
		t.Fatal(err)
	}
	c := &Client{proc: proc}
	for _, tt := range []struct {
		id  string
		pid int
	}{{id("a"), 10}, {id("b"), 20}, {id("c"), 30}, {id("d"), 0}, {"", 0}, {"a", 0}} {
		if pid, found := c.Process(tt.id); pid != tt.pid || found != (tt.pid > 0) {
			t.Errorf("%.3s: process %d, %t; want %d", tt.id, pid, found, tt.pid)
		}
	}
}
