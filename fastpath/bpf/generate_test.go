package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestGenerated makes everything anew as make generate does, and wants what is in the tree. Other
// versions of clang may make another object of the same source.
func TestGenerated(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the headers that clang is told of are those of amd64")
	}
	for _, tool := range []string{"clang", "llvm-strip"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("MESHNET_REQUIRE") != "" || os.Getenv("CI") == "true" {
				t.Fatalf("%v; apt-get install clang llvm libbpf-dev", err)
			}
			t.Skip(err)
		}
	}
	source, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(source), "//go:generate ")
	line, _, _ = strings.Cut(line, "\n")
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", strings.Replace(line, " -cc ", ` -output-dir "$OUT" -cc `, 1))
	cmd.Env = append(os.Environ(), "GOPACKAGE=bpf", "OUT="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	for _, name := range []string{"fast_bpfel.go", "fast_bpfel.o"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			version, _ := exec.Command("clang", "--version").Output()
			t.Errorf("%s is not what %s makes of fast.c (%v); run make generate", name, bytes.SplitN(version, []byte("\n"), 2)[0], err)
		}
	}
}
