package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"meshnet/state"
)

// namesMax is how many nodes a warning names.
const namesMax = 5

// Warnings says what the nodes' records and this host's facts do not agree in, a clause each, for
// status: packets between such nodes are lost, or smaller than they could be.
func Warnings(v *state.View, f Facts) []string {
	self, ok := v.Node(f.Self)
	if !ok {
		return nil
	}
	var encap, port, less, more []string
	for _, n := range v.Nodes() {
		if n.ID == f.Self {
			continue
		}
		if n.Encap != self.Encap {
			encap = append(encap, fmt.Sprintf("%s %s", n.Name, n.Encap))
		}
		if n.TunnelPort != self.TunnelPort {
			port = append(port, fmt.Sprintf("%s %d", n.Name, n.TunnelPort))
		}
		switch {
		case n.MTU == 0:
		case n.MTU < f.Underlay.MTU:
			less = append(less, fmt.Sprintf("%s %d", n.Name, n.MTU))
		case n.MTU > f.Underlay.MTU:
			more = append(more, n.Name)
		}
	}
	var out []string
	say := func(names []string, format string, args ...any) {
		if len(names) > 0 {
			out = append(out, fmt.Sprintf(format, append([]any{list5(names)}, args...)...))
		}
	}
	say(encap, "other encapsulation on %s, here %s: no packets pass between them; start all nodes with one --encap", self.Encap)
	say(port, "other tunnel port on %s, here %d: no packets pass between them; start all nodes with one --tunnel-port", self.TunnelPort)
	mtu := overlayMTU(v, f)
	say(less, "underlay MTU is smaller on %s than the %d here: containers have %d bytes on every node", f.Underlay.MTU, mtu)
	if len(less) == 0 {
		say(more, "underlay MTU is larger on %s than the %d here: containers have %d bytes on every node", f.Underlay.MTU, mtu)
	}
	for _, n := range v.Networks() {
		if n.Def.MTU > mtu {
			out = append(out, fmt.Sprintf("network %s asks for MTU %d, but the underlay allows %d: its containers have that", n.Name, n.Def.MTU, mtu))
		}
	}
	return out
}

// list5 joins names, the first of them, with commas.
func list5(names []string) string {
	slices.SortFunc(names, cmp.Compare)
	if len(names) > namesMax {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:namesMax], ", "), len(names)-namesMax)
	}
	return strings.Join(names, ", ")
}
