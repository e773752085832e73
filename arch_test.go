// Package meshnet_test holds the architecture: which package may import which, which library is
// known to whom, what a pure package may not use, and how large things may grow.
package meshnet_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	functionLinesMax = 70
	fileLinesMax     = 700
)

// house says of each package what it may import of ours. A package not named here does not exist.
var house = map[string][]string{
	"crdt":        {},
	"state":       {"crdt"},
	"ipam":        {"crdt", "state"},
	"mesh/gossip": {"crdt", "state"},
	"plan":        {"state"},
	"ovs/flow":    {"plan", "state"},
	"mesh":        {"crdt", "ipam", "mesh/gossip", "state"},

	"ovs/openflow": {"ovs/flow"},
	"ovs/echo":     {"ovs/flow", "plan", "state"},
	"ovs":          {"ovs/echo", "ovs/flow", "ovs/openflow", "plan", "state"},
	"netns":        {"plan", "state"},
	"fastpath":     {"fastpath/bpf", "plan", "state"},
	"fastpath/bpf": {},
	"agent":        {"plan", "state"},
	"api":          {"agent", "plan", "state"},
	"docker":       {"agent", "plan", "state"},
	"cmd/meshnet": {"agent", "api", "crdt", "docker", "fastpath", "ipam", "mesh", "mesh/gossip", "netns", "ovs", "ovs/flow",
		"ovs/openflow", "plan", "state"},
	"testlab": {},

	"mesh/meshtest":     {},
	"fastpath/fasttest": {},
	"mesh/sim":          {}, // tests only
	"plan/plantest":     {"crdt", "plan", "state"},
	"ovs/ovstest":       {},
	"netns/nstest":      {},

	// Measured beside its peers in a module of its own, so that the product's has none of them.
	"bench/gossip": {"mesh", "state"},
	// Measures what it costs to carry out a plan.
	"bench/program": {"crdt", "fastpath", "netns", "ovs", "plan", "state"},
}

// pure packages compute: the same input gives the same output.
var pure = []string{"crdt", "state", "ipam", "mesh/gossip", "plan", "ovs/flow", "ovs/openflow", "ovs/echo"}

// owners says which packages know a library. Their tests' helpers are named where they need it.
var owners = map[string][]string{
	"github.com/hashicorp/memberlist": {"mesh", "mesh/meshtest", "bench/gossip"},
	"github.com/libp2p/zeroconf/v2":   {"mesh"},
	"github.com/ovn-org/libovsdb":     {"ovs"},
	"github.com/vishvananda/netlink":  {"netns", "fastpath", "fastpath/fasttest"},
	"github.com/cilium/ebpf":          {"fastpath", "fastpath/bpf", "fastpath/fasttest"},
	"github.com/vishvananda/netns":    {"netns"},
	"github.com/safchain/ethtool":     {"netns"},
	"github.com/google/nftables":      {"netns"},
	"golang.org/x/sys":                {"netns", "netns/nstest", "fastpath", "fastpath/fasttest"},
	"github.com/moby/moby/client":     {"docker"},
	"github.com/moby/moby/api":        {"docker"},
	"github.com/urfave/cli/v2":        {"cmd/meshnet"},
	"github.com/BurntSushi/toml":      {"cmd/meshnet"},
}

// impure is what a pure package may not import: clocks are allowed for their types only.
var impure = []string{"context", "io/fs", "log", "log/slog", "math/rand", "math/rand/v2", "net/http", "os", "os/exec", "sync",
	"sync/atomic", "syscall", "crypto/rand"}

type file struct {
	dir, path string
	lines     int
	test      bool
	ast       *ast.File
}

var fset = token.NewFileSet()

func files(t *testing.T) []file {
	t.Helper()
	var all []file
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, file{filepath.ToSlash(filepath.Dir(path)), path, strings.Count(string(src), "\n"),
			strings.HasSuffix(path, "_test.go"), f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func imports(f file) []string {
	var paths []string
	for _, i := range f.ast.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		paths = append(paths, p)
	}
	return paths
}

func TestImports(t *testing.T) {
	for _, f := range files(t) {
		if f.dir == "." && !f.test {
			t.Errorf("%s: no Go code in the module root", f.path)
		}
		allowed, known := house[f.dir]
		if !known && f.dir != "." {
			t.Errorf("%s: package %s is not in the house", f.path, f.dir)
		}
		for _, p := range imports(f) {
			ours, isOurs := strings.CutPrefix(p, "meshnet/")
			if isOurs && !f.test && !slices.Contains(allowed, ours) {
				t.Errorf("%s: %s may not import %s", f.path, f.dir, ours)
			}
			for library, who := range owners {
				if (p == library || strings.HasPrefix(p, library+"/")) && !slices.Contains(who, f.dir) {
					t.Errorf("%s: %s is known to %v only", f.path, library, who)
				}
			}
		}
	}
}

func TestPurity(t *testing.T) {
	for _, f := range files(t) {
		if f.test || !slices.Contains(pure, f.dir) {
			continue
		}
		for _, p := range imports(f) {
			if slices.Contains(impure, p) {
				t.Errorf("%s: a pure package may not import %s", f.path, p)
			}
			if strings.Contains(p, ".") {
				t.Errorf("%s: a pure package knows no library, not %s", f.path, p)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a pure package starts no goroutine", fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" &&
					slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}, n.Sel.Name) {
					t.Errorf("%s: a pure package is told the time", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

func TestSizes(t *testing.T) {
	for _, f := range files(t) {
		if f.test {
			continue
		}
		if f.lines > fileLinesMax {
			t.Errorf("%s: %d lines, at most %d", f.path, f.lines, fileLinesMax)
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if fn.Name.Name == "init" && fn.Recv == nil {
				t.Errorf("%s: no init", fset.Position(fn.Pos()))
			}
			if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > functionLinesMax {
				t.Errorf("%s: %s has %d lines, at most %d", fset.Position(fn.Pos()), fn.Name.Name, n, functionLinesMax)
			}
		}
	}
}

// TestPackageComments wants each package's comment once, so that there is one place to read.
func TestPackageComments(t *testing.T) {
	comments := map[string]int{}
	for _, f := range files(t) {
		if f.test {
			continue
		}
		comments[f.dir] += 0
		if f.ast.Doc != nil {
			comments[f.dir]++
		}
	}
	for dir, n := range comments {
		if n != 1 {
			t.Errorf("package %s has %d package comments, want 1", dir, n)
		}
	}
}
