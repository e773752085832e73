package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"
)

// Nodes that cannot exchange packets, or only small ones, are named.
func TestWarnings(t *testing.T) {
	m := plantest.NewMesh(t, 4)
	facts := plantest.Facts(state.OVSUserspace)
	if w := plan.Warnings(m.View(), facts); len(w) > 0 {
		t.Errorf("four alike: %q", w)
	}
	for n, change := range map[int]func(*state.Node){
		2: func(r *state.Node) { r.Encap = state.Geneve },
		3: func(r *state.Node) { r.TunnelPort = 4789 },
		4: func(r *state.Node) { r.MTU = 1400 },
	} {
		r := plantest.Record(n)
		change(&r)
		m.Apply(n, state.PutNode{Node: r})
	}
	m.CreateDef(state.Definition{Name: "big", Subnet: netip.MustParsePrefix("10.2.0.0/16"), MTU: 1400})
	w := plan.Warnings(m.View(), facts)
	for i, words := range [][]string{
		{"encapsulation", "host2 geneve", "--encap"}, {"tunnel port", "host3 4789", "--tunnel-port"},
		{"smaller on host4 1400", "1350"}, {"network big", "1400", "1350"},
	} {
		if i >= len(w) || slices.ContainsFunc(words, func(s string) bool { return !strings.Contains(w[i], s) }) {
			t.Fatalf("warning %d of %q lacks one of %q", i, w, words)
		}
	}
	if len(w) != 4 {
		t.Errorf("%q", w)
	}
	facts.Underlay.MTU = 1300
	if w := plan.Warnings(m.View(), facts); !strings.Contains(w[2], "larger on host2, host3, host4 than the 1300 here") {
		t.Errorf("%q", w)
	}
}
