package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// String returns the plan, one object a line, for people and goldens: the host's own objects, then
// network after network in the order of their names, then links and firewall.
func (h *Host) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "bridge %s datapath %s transport %s encap %s\n", h.Bridge, h.Datapath, h.Transport, h.Encap)
	fmt.Fprintf(&b, "underlay %s addr %s port %d mtu %d tso %s\n", h.Device, h.Underlay, h.TunnelPort, h.MTU, onOff(h.TSO))
	if len(h.NICs) > 0 {
		fmt.Fprintf(&b, "nics %s\n", strings.Join(h.NICs, " "))
	}
	if h.FastPath {
		fmt.Fprintf(&b, "fast path on trunk %s\n", cmp.Or(h.Trunk, "none"))
	}
	for _, t := range h.Tunnels {
		fmt.Fprintf(&b, "tunnel %s peer %s remote %s ofport %d\n", t.Name, t.Peer, t.Remote, t.OFPort)
	}
	networks := slices.SortedFunc(maps.Values(h.Networks), func(x, y *Network) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.ID, y.ID))
	})
	for _, n := range networks {
		n.write(&b)
	}
	for _, l := range h.Links {
		fmt.Fprintf(&b, "link %s endpoint %s ifname %s addr %s mac %s mtu %d offloads %s gateway %s sandbox %s inode %d\n",
			l.Name, l.Endpoint, cmp.Or(l.IfName, l.Prefer, "auto"), l.Addr, l.MAC, l.MTU, onOff(l.Offloads), orNone(l.Gateway),
			l.Sandbox.Path, l.Sandbox.Inode)
	}
	h.Gateway.write(&b)
	if h.Firewall.On || len(h.Firewall.Peers) > 0 {
		fmt.Fprintf(&b, "firewall strangers %s port %d gossip %d peers %s\n", onOff(!h.Firewall.On), h.Firewall.Port, h.Firewall.Gossip, addrs(h.Firewall.Peers))
	}
	return b.String()
}

// write writes the network's lines, each with the network's name.
func (n *Network) write(b *strings.Builder) {
	fmt.Fprintf(b, "network %s id %s vni %d subnet %s mtu %d\n", n.Name, n.ID, n.VNI, n.Subnet, n.MTU)
	for _, p := range n.Ports {
		fmt.Fprintf(b, "port %s addr %s mac %s ofport %d endpoint %s link %s\n",
			n.Name, p.Addr, p.MAC, p.OFPort, p.Endpoint, cmp.Or(p.Link, "none"))
	}
	for _, r := range n.Remotes {
		fmt.Fprintf(b, "remote %s addr %s mac %s via %s ofport %d endpoint %s node %s\n",
			n.Name, r.Addr, r.MAC, r.Via, r.OFPort, r.Endpoint, r.Node)
	}
	if n.Router != (Router{}) {
		fmt.Fprintf(b, "router %s addr %s mac %s out %s\n", n.Name, n.Router.Addr, n.Router.MAC, onOff(n.Router.Out))
	}
	if n.Host != (Own{}) {
		fmt.Fprintf(b, "host %s addr %s mac %s endpoint %s\n", n.Name, n.Host.Addr, n.Host.MAC, n.Host.Endpoint)
	}
	if n.Door != (Door{}) {
		fmt.Fprintf(b, "door %s ofport %d near %s far %s\n", n.Name, n.Door.OFPort, n.Door.Near, n.Door.Far)
	}
	if len(n.Flood) > 0 {
		fmt.Fprintf(b, "flood %s ofports %s\n", n.Name, strings.Trim(fmt.Sprint(n.Flood), "[]"))
	}
	d := n.Device
	if d == nil {
		return
	}
	fmt.Fprintf(b, "device %s %s vni %d local %s port %d mtu %d ofport %d\n",
		n.Name, d.Name, d.VNI, d.Local, d.Port, d.MTU, d.OFPort)
	if len(d.Flood) > 0 {
		fmt.Fprintf(b, "flood %s via %s\n", n.Name, addrs(d.Flood))
	}
}

// addrs returns addresses with spaces between them, or none.
func addrs(as []netip.Addr) string {
	if len(as) == 0 {
		return "none"
	}
	return strings.Trim(fmt.Sprint(as), "[]")
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// write writes the gateway's lines; none if there is no gateway.
func (g *Gateway) write(b *strings.Builder) {
	if g == nil {
		return
	}
	fmt.Fprintf(b, "gateway %s port %s ofport %d mac %s mtu %d offloads %s\n",
		g.Name, cmp.Or(g.Port, "tap"), g.OFPort, g.MAC, g.MTU, onOff(g.Offloads))
	for _, w := range g.Ways {
		fmt.Fprintf(b, "way %s mark 0x%x subnet %s via %s mac %s mtu %d out %s host %s\n",
			w.Network, w.Mark, w.Subnet, w.Via, w.MAC, w.MTU, onOff(w.Out), orNone(w.Host))
	}
	fmt.Fprintf(b, "closed %s\n", strings.Trim(fmt.Sprint(g.Closed), "[]"))
	for _, p := range g.Ports {
		fmt.Fprintf(b, "published %s to %s mark 0x%x\n", p.Published, p.Addr, p.Mark)
	}
}

func orNone(a netip.Addr) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}
