package fastpath

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"
)

var rewrite = flag.Bool("rewrite", false, "write the goldens again")

// text returns tables, one thing a line.
func text(h *plan.Host) string {
	var b strings.Builder
	port := func(p Port) {
		fmt.Fprintf(&b, "port %s %s other %s", p.Device, p.Kind, p.Other)
		if p.Addr.IsValid() {
			fmt.Fprintf(&b, " mac %s addr %s", p.MAC, p.Addr)
		}
		b.WriteString("\n")
	}
	if p, peers, ok := Outside(h); ok {
		fmt.Fprintf(&b, "port %s %s addr %s udp %d peers %v\n", p.Device, p.Kind, p.Addr, p.UDP, peers)
	}
	for _, p := range slices.Concat(Tunnels(h), Doors(h.Gateway)) {
		port(p)
	}
	for _, n := range inOrder(h) {
		t := Compile(n)
		fmt.Fprintf(&b, "network %s vni %d\n", n.Name, n.VNI)
		for _, p := range t.Ports {
			port(p)
		}
		for _, m := range slices.SortedFunc(maps.Keys(t.Ways), func(a, b Member) int { return slices.Compare(a.MAC[:], b.MAC[:]) }) {
			fmt.Fprintf(&b, "way vni %d mac %s to %s %s", m.VNI, m.MAC, t.Ways[m].Device, t.Ways[m].How)
			if trunk := t.Ways[m].Trunk; trunk != "" {
				fmt.Fprintf(&b, " from peers by %s", trunk)
			}
			b.WriteString("\n")
		}
		if t.Exit != (Exit{}) {
			fmt.Fprintf(&b, "exit not %s far %s near %s\n", t.Exit.Subnet, t.Exit.Far, t.Exit.Near)
		}
		for _, i := range slices.SortedFunc(maps.Keys(t.Entries), func(a, b Inward) int {
			return cmp.Or(a.Addr.Compare(b.Addr), slices.Compare(a.Far[:], b.Far[:]))
		}) {
			e := t.Entries[i]
			fmt.Fprintf(&b, "entry %s %s to %s router %s mac %s except %s\n", i.Far, i.Addr, e.Device, e.Router, e.MAC, e.Except)
		}
	}
	return b.String()
}

// TestGolden shows what plans are compiled to. On transport B nothing is.
func TestGolden(t *testing.T) {
	for _, c := range plantest.Cases(t) {
		c.Facts.Choice.FastPath = true
		got := text(c.Host())
		if c.Facts.Choice.Transport == state.OVSUserspace {
			if strings.Contains(got, "port") || strings.Contains(got, "way") {
				t.Errorf("%s has a fast path:\n%s", c.Name, got)
			}
			continue
		}
		path := filepath.Join("testdata", c.Name+".golden")
		if *rewrite {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v; run with -rewrite and read the difference", err)
		}
		if got != string(want) {
			t.Errorf("%s differs; got\n%s\nwant\n%s", path, got, want)
		}
	}
}

// TestShared: a network that did not change is not compiled again, so it must be the same.
func TestShared(t *testing.T) {
	m, web, f := two(t, true)
	h := plan.For(nil, m.View(), f)
	if a, b := Compile(h.Networks[web]), Compile(h.Networks[web]); fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%v\n%v", a, b)
	}
}
