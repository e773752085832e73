package echo

import (
	"cmp"
	"maps"
	"slices"

	"meshnet/ovs/flow"
	"meshnet/plan"
	"meshnet/state"
)

// Target is how to get a frame to a peer.
type Target struct {
	Peer     state.NodeID
	Port     uint32 // OpenFlow port
	VNI      uint32 // 0: the port is a device that adds its own
	Src, Dst state.MAC
}

// Targets returns the peers that a host has a way to, in their order: by the first network of the plan
// that both have members on.
func Targets(h *plan.Host) []Target {
	ways := map[state.NodeID]Target{}
	for _, id := range slices.Sorted(maps.Keys(h.Networks)) {
		n := h.Networks[id]
		if len(n.Ports) == 0 || n.Ports[0].MAC == flow.ProbeAnswer {
			continue
		}
		for _, r := range n.Remotes {
			if _, known := ways[r.Node]; known {
				continue
			}
			t := Target{Peer: r.Node, Port: r.OFPort, Src: n.Ports[0].MAC, Dst: r.MAC}
			if n.Device == nil {
				t.VNI = n.VNI
			}
			ways[r.Node] = t
		}
	}
	return slices.SortedFunc(maps.Values(ways), func(a, b Target) int { return cmp.Compare(a.Peer, b.Peer) })
}
