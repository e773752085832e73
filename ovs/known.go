package ovs

import (
	"maps"
	"slices"

	"meshnet/plan"
)

// known is what an Apply saw of the rows when nothing was left to be done about them. While the database
// tells of no change it is so still, and a plan with the same ports need not be compared with it: with a
// thousand tunnels that takes longer than all else.
type known struct {
	db      *database
	news    <-chan struct{} // closed when the database has changed since
	plan    *plan.Host
	devices map[string]int
	found   plan.Found
}

// holds reports whether the rows are as a plan wants them.
func (k known) holds(db *database, h *plan.Host, devices map[string]int) bool {
	return k.db == db && !ended(k.news) && samePorts(k.plan, h) && maps.Equal(k.devices, devices)
}

// samePorts reports whether [wanted] and the bridge of two plans are the same.
func samePorts(a, b *plan.Host) bool {
	if a.Bridge != b.Bridge || a.Datapath != b.Datapath || a.Encap != b.Encap || a.Underlay != b.Underlay ||
		a.TunnelPort != b.TunnelPort || len(a.Networks) != len(b.Networks) {
		return false
	}
	if !slices.Equal(a.Tunnels, b.Tunnels) || door(a) != door(b) ||
		!slices.EqualFunc(a.Links, b.Links, func(x, y plan.Link) bool { return x.Name == y.Name }) {
		return false
	}
	for id, n := range a.Networks {
		o := b.Networks[id]
		if o != n && (o == nil || !slices.Equal(n.Ports, o.Ports) || device(n) != device(o)) {
			return false
		}
	}
	return true
}

// row is what of a device of the host is in the database.
type row struct {
	name, id string
	number   uint32
	mtu      uint32 // of a tap
}

func door(h *plan.Host) row {
	if h.Gateway == nil {
		return row{}
	}
	r := row{name: h.Gateway.Switch(), id: h.Gateway.Name, number: h.Gateway.OFPort}
	if h.Gateway.Tap() {
		r.mtu = h.Gateway.MTU
	}
	return r
}

func device(n *plan.Network) row {
	if n.Device == nil {
		return row{}
	}
	return row{name: n.Device.Switch(), id: n.ID.String(), number: n.Device.OFPort}
}
