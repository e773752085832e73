package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPackagedSettings: the packaged file names every setting, once, with the default, and all of it
// can be meant.
func TestPackagedSettings(t *testing.T) {
	b, err := os.ReadFile("../../packaging/meshnet.toml")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, m := range regexp.MustCompile(`(?m)^#([a-z-]+) = `).FindAllStringSubmatch(string(b), -1) {
		keys = append(keys, m[1])
	}
	var want []string
	for _, f := range append((&terminal{}).up().Flags, common()...) {
		if name := f.Names()[0]; !slices.Contains(unsettled, name) {
			want = append(want, name)
		}
	}
	slices.Sort(keys)
	slices.Sort(want)
	if !slices.Equal(keys, want) {
		t.Errorf("the file has %q\nup has %q", keys, want)
	}
	nobody := filepath.Join(t.TempDir(), "s")
	for _, text := range []string{string(b), regexp.MustCompile(`(?m)^#([a-z-]+ = )`).ReplaceAllString(string(b), "$1")} {
		if got := command(nobody, "config", "show", "--config", writeFile(t, "meshnet.toml", text)); got.code != 0 {
			t.Error(got)
		}
	}
}

// TestUnit: systemd finds nothing wrong with the unit, and its sandbox is not left open by mistake.
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("MESHNET_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	b, err := os.ReadFile("../../packaging/meshnet.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "meshnet.service")
	// The programs it names are not installed here.
	text := strings.ReplaceAll(string(b), "/usr/bin/meshnet", "/bin/true")
	text = regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(text, "")
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || strings.Contains(string(out), unit) {
		t.Errorf("%v\n%s", err, out)
	}
	out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=55", unit).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(string(out[max(0, len(out)-200):]))
}
