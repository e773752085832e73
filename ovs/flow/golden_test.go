package flow_test

import (
	"cmp"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"meshnet/ovs/flow"
	"meshnet/plan"
	"meshnet/plan/plantest"
)

var rewrite = flag.Bool("rewrite", false, "write the goldens again")

// flows returns all flows of a host: the base and each network, in the order of names.
func flows(h *plan.Host) [][]flow.Flow {
	sets := [][]flow.Flow{flow.Base(h)}
	networks := slices.SortedFunc(maps.Values(h.Networks), func(a, b *plan.Network) int { return cmp.Compare(a.Name, b.Name) })
	for _, n := range networks {
		sets = append(sets, flow.Compile(n, h))
	}
	return sets
}

func TestGolden(t *testing.T) {
	for _, c := range plantest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			var b strings.Builder
			for _, set := range flows(c.Host()) {
				for _, f := range set {
					b.WriteString(f.String() + "\n")
				}
			}
			path := filepath.Join("testdata", c.Name+".golden")
			if *rewrite {
				if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v; run with -rewrite and read the difference", err)
			}
			if b.String() != string(want) {
				t.Errorf("%s differs; got\n%s\nwant\n%s", path, b.String(), want)
			}
		})
	}
}

// A switch holds one flow of those with equal table, priority and match: no two may be compiled. The
// text of each is read back as it was, and all of them bear our mark.
func TestCompiledFlowsAreDistinct(t *testing.T) {
	for _, c := range plantest.Cases(t) {
		var all []flow.Flow
		for _, set := range flows(c.Host()) {
			if !slices.IsSortedFunc(set, flow.Compare) {
				t.Errorf("%s: not in canonical order: %v", c.Name, set)
			}
			all = append(all, set...)
		}
		slices.SortFunc(all, flow.Compare)
		for i, f := range all {
			if i > 0 && flow.Compare(all[i-1], f) == 0 {
				t.Errorf("%s: twice the same flow:\n%v\n%v", c.Name, all[i-1], f)
			}
			if g, err := flow.Parse(f.String()); err != nil || !g.Equal(f) {
				t.Errorf("%s: %v read back as %v, %v", c.Name, f, g, err)
			}
			if !flow.Ours(f.Cookie) {
				t.Errorf("%s: no mark: %v", c.Name, f)
			}
		}
	}
}

// What came from a tunnel or a device goes straight to local delivery, and nothing there leads into
// a tunnel, a device or an earlier table.
func TestSplitHorizon(t *testing.T) {
	for _, c := range plantest.Cases(t) {
		h := c.Host()
		outer := map[uint32]bool{}
		for _, tun := range h.Tunnels {
			outer[tun.OFPort] = true
		}
		for _, n := range h.Networks {
			if n.Device != nil {
				outer[n.Device.OFPort] = true
			}
		}
		entries := 0
		for _, f := range slices.Concat(flows(h)...) {
			if f.Table == flow.TableClassify && outer[f.Match.InPort] {
				entries++
				if f.Actions[len(f.Actions)-1] != (flow.Goto{Table: flow.TableLocal}) {
					t.Errorf("%s: from outside to elsewhere than local delivery: %v", c.Name, f)
				}
			}
			for _, a := range f.Actions {
				if g, ok := a.(flow.Goto); ok && g.Table <= f.Table {
					t.Errorf("%s: back to an earlier table: %v", c.Name, f)
				}
				out, ok := a.(flow.Output)
				if ok && f.Table == flow.TableLocal && outer[out.Port] {
					t.Errorf("%s: local delivery leads outside: %v", c.Name, f)
				}
				if ok && f.Match.EthType == flow.EthTypeARP {
					t.Errorf("%s: ARP leaves: %v", c.Name, f)
				}
			}
		}
		if entries != len(outer) {
			t.Errorf("%s: %d ways in are classified, want %d", c.Name, entries, len(outer))
		}
	}
}
