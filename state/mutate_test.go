package state

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var mutate = flag.Bool("mutate", false, "put each fault of testdata/mutations.txt into the code and see its test fail")

// mutation is one fault: text of a file that is replaced, and the test that has to notice.
type mutation struct {
	name, file string
	pkg, test  string
	flags      []string
	old, new   string
}

func readMutations(t *testing.T) (all []*mutation) {
	t.Helper()
	b, err := os.ReadFile("testdata/mutations.txt")
	if err != nil {
		t.Fatal(err)
	}
	var m *mutation
	for i, line := range strings.Split(string(b), "\n") {
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "" || line[0] == '#':
		case word == "==":
			name, _, _ := strings.Cut(rest, ":")
			m = &mutation{name: name}
			all = append(all, m)
		case m == nil:
			t.Fatalf("testdata/mutations.txt:%d: %q before the first fault", i+1, line)
		case line[0] == '-':
			m.old += line[1:] + "\n"
		case line[0] == '+':
			m.new += line[1:] + "\n"
		case word == "file":
			m.file = rest
		case word == "test":
			f := strings.Fields(rest)
			if len(f) < 2 {
				t.Fatalf("testdata/mutations.txt:%d: want a package and a test", i+1)
			}
			m.pkg, m.test, m.flags = f[0], f[1], f[2:]
		default:
			t.Fatalf("testdata/mutations.txt:%d: %q is not understood", i+1, line)
		}
	}
	return all
}

// apply returns the file with the fault. Lines may be cut short at both ends, so that a fault shows only
// what it changes.
func (m *mutation) apply(t *testing.T) (src string, ok bool) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", m.file))
	if err != nil {
		t.Error(err)
		return "", false
	}
	old, fresh := strings.TrimSuffix(m.old, "\n"), strings.TrimSuffix(m.new, "\n")
	if n := strings.Count(string(b), old); old == "" || n != 1 {
		t.Errorf("it does not apply any more: %s has %d places like\n%s\nwrite it anew in testdata/mutations.txt", m.file, n, old)
		return "", false
	}
	return strings.Replace(string(b), old, fresh, 1), true
}

// TestMutations sees that every fault still applies and names a test that exists and, with -mutate, that
// this test fails with the fault in.
func TestMutations(t *testing.T) {
	began := time.Now()
	all := readMutations(t)
	for _, m := range all {
		t.Run(m.name, func(t *testing.T) {
			src, ok := m.apply(t)
			if !ok {
				return
			}
			if !m.hasTest(t) {
				t.Fatalf("package %s has no %s; name the test that notices the fault in testdata/mutations.txt", m.pkg, m.test)
			}
			if *mutate {
				m.run(t, src)
			}
		})
	}
	if *mutate {
		t.Logf("%d faults in %s", len(all), time.Since(began).Round(time.Second))
	}
}

func (m *mutation) hasTest(t *testing.T) bool {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join("..", m.pkg, "*_test.go"))
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), "\nfunc "+m.test+"(t *testing.T)") {
			return true
		}
	}
	return false
}

// run builds the package with the fault laid over its file and runs the test, which has to fail.
func (m *mutation) run(t *testing.T, src string) {
	dir := t.TempDir()
	path, err := filepath.Abs(filepath.Join("..", m.file))
	if err != nil {
		t.Fatal(err)
	}
	faulty := filepath.Join(dir, filepath.Base(m.file))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: faulty}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{faulty: []byte(src), filepath.Join(dir, "overlay"): overlay} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"test", "-overlay", filepath.Join(dir, "overlay"), "-vet=off", "-count", "1", "-timeout", "2m", "-run", "^" + m.test + "$", "../" + m.pkg}
	if m.pkg != "mesh" {
		args = append(args, "-rapid.nofailfile", "-rapid.checks", "2000") // a law is met by chance in a hundred, now and then
	}
	out, err := exec.CommandContext(t.Context(), "go", append(args, m.flags...)...).CombinedOutput()
	switch {
	case err == nil:
		t.Errorf("%s passes with the fault in", m.test)
	case strings.Contains(string(out), "[build failed]"), strings.Contains(string(out), "[setup failed]"):
		t.Errorf("the fault does not build:\n%s", out)
	case !strings.Contains(string(out), "--- FAIL: "+m.test) && !strings.Contains(string(out), "panic: "):
		t.Errorf("%s did not fail, but:\n%s", m.test, out)
	}
}
