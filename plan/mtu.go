package plan

import "meshnet/state"

// What encapsulation adds to a packet on the underlay, bytes: IPv4 (20) or IPv6 (40), UDP (8), VXLAN
// or Geneve without options (8), and the inner Ethernet header (14).
const (
	overhead4 = 50
	overhead6 = 70
)

// mtuMin is the least MTU of the overlay, bytes: what every IPv4 host takes in (RFC 791, section
// 3.2). It keeps one wrong node record from stopping a mesh.
const mtuMin = 576

// overlayMTU returns the MTU of the overlay, bytes: that of the smallest underlay of all nodes less
// the overhead, for a container does not know which node its packets go to.
func overlayMTU(v *state.View, f Facts) uint32 {
	overhead := uint32(overhead4)
	if f.Underlay.Addr.Is6() {
		overhead = overhead6
	}
	least := f.Underlay.MTU
	for _, n := range v.Nodes() {
		if n.ID != f.Self && n.MTU != 0 {
			least = min(least, n.MTU)
		}
	}
	return max(least, mtuMin+overhead) - overhead
}
