package plan

import (
	"fmt"
	"net/netip"

	"meshnet/state"
)

// nameMax is the longest name of a device, characters (IFNAMSIZ less the final zero).
const nameMax = 15

// vniMax is the largest VXLAN network identifier (RFC 7348, section 5).
const vniMax = 1<<24 - 1

// Check panics when the plan contradicts itself: a port number twice, a link without a network, an
// address outside its subnet. A failure is a bug of ours.
func (h *Host) Check() { h.CheckSince(nil) }

// CheckSince is [Host.Check] for a host whose earlier plan was checked: of networks that it shares with
// it, and of members that a network shares with its earlier plan, only the numbers and names are
// looked at.
func (h *Host) CheckSince(last *Host) {
	if last == nil {
		last = &Host{}
	}
	c := checker{
		last: last, host: h, ports: map[uint32]string{}, names: map[string]bool{},
		links: map[state.EndpointID]string{}, tunnels: map[uint32]bool{},
	}
	c.say(h.Transport != state.NoTransport || len(h.Networks) == 0, "networks without a transport")
	for _, t := range h.Tunnels {
		c.port(t.OFPort, t.Name)
		c.name(t.Name)
		if !t.Remote.IsValid() || t.Remote == h.Underlay || h.Transport == state.KernelVXLAN {
			c.say(false, "tunnel %s to %s by transport %s", t.Name, t.Remote, h.Transport)
		}
		c.tunnels[t.OFPort] = true
	}
	vnis := map[uint32]bool{}
	for id, n := range h.Networks {
		c.say(id == n.ID, "network %s under id %s", n.ID, id)
		c.say(n.VNI > 0 && n.VNI <= vniMax && !vnis[n.VNI], "VNI %d of network %s", n.VNI, n.Name)
		vnis[n.VNI] = true
		c.network(n)
	}
	if g := h.Gateway; g != nil {
		c.port(g.OFPort, g.Switch())
		c.name(g.Name)
		if !g.Tap() {
			c.name(g.Port)
		}
		c.twin(g.Twin)
	}
	for _, l := range h.Links {
		name, ok := c.links[l.Endpoint]
		c.twin(l.Twin)
		c.say(ok && name == l.Name, "link %s of endpoint %s without a port", l.Name, l.Endpoint)
		delete(c.links, l.Endpoint)
	}
	c.say(len(c.links) == 0, "ports without links: %v", c.links)
}

// checker collects what has to be unique.
type checker struct {
	last    *Host
	host    *Host
	ports   map[uint32]string // user by number
	names   map[string]bool
	links   map[state.EndpointID]string // names of links that ports want
	tunnels map[uint32]bool             // by number
}

func (c *checker) say(ok bool, format string, args ...any) {
	if !ok {
		panic("plan contradicts itself: " + fmt.Sprintf(format, args...))
	}
}

func (c *checker) port(n uint32, user string) {
	if other, twice := c.ports[n]; twice || n == 0 || n > portMax { // say is not called for nothing: it would cost a list of arguments for each port
		c.say(false, "port number %d of %s; another of that number: %q", n, user, other)
	}
	c.ports[n] = user
}

func (c *checker) name(name string) {
	if name == "" || len(name) > nameMax || c.names[name] {
		c.say(false, "name %q of a device, which is too long or there twice", name)
	}
	c.names[name] = true
}

func (c *checker) twin(t Twin) {
	c.say((t != Twin{}) == c.host.FastPath, "twin %v with fast path %t", t, c.host.FastPath)
	if c.host.FastPath {
		c.name(t.Slow)
		c.name(t.Port)
	}
}

func (c *checker) network(n *Network) {
	c.say(len(n.Ports) > 0 || n.Host != (Own{}), "network %s without a member here", n.Name)
	if d := n.Door; d != (Door{}) {
		c.say(c.host.Gateway != nil && c.host.Gateway.OFPort == d.OFPort, "door %d of network %s without a gateway", d.OFPort, n.Name)
	}
	c.say((n.Device != nil) == (c.host.Transport == state.KernelVXLAN), "device of network %s on %s", n.Name, c.host.Transport)
	if d := n.Device; d != nil {
		c.port(d.OFPort, d.Name)
		c.name(d.Name)
		c.twin(d.Twin)
		c.say(d.VNI == n.VNI, "VNI %d of %s", d.VNI, d.Name)
	}
	for _, p := range n.Ports {
		c.port(p.OFPort, p.Endpoint.String())
		if p.Link != "" {
			c.name(p.Link)
			c.links[p.Endpoint] = p.Link
		}
	}
	old := c.last.Networks[n.ID]
	if old == n {
		return
	}
	c.members(n, old)
	for _, p := range n.Flood {
		c.say(c.tunnels[p], "flood to %d in network %s", p, n.Name)
	}
}

// members looks at who is on a network. Those that came since old are held against the local members
// only: what one list in the order of addresses has, and whose MACs come from them, is no other's.
func (c *checker) members(n, old *Network) {
	addrs, macs := map[netip.Addr]bool{}, map[state.MAC]bool{}
	unique := func(a netip.Addr, m state.MAC) {
		c.say(n.Subnet.Contains(a) && !addrs[a], "address %s in network %s", a, n.Name)
		c.say(!macs[m], "MAC %s in network %s twice", m, n.Name)
		addrs[a], macs[m] = true, true
	}
	if n.Router != (Router{}) {
		unique(n.Router.Addr, n.Router.MAC)
	}
	if n.Host != (Own{}) {
		unique(n.Host.Addr, n.Host.MAC)
	}
	for _, p := range n.Ports {
		unique(p.Addr, p.MAC)
	}
	came := n.Remotes
	if old != nil && !n.odd && !old.odd {
		_, came = n.Since(old)
	}
	for _, r := range came {
		unique(r.Addr, r.MAC)
		way := c.tunnels[r.OFPort] || n.Device != nil && n.Device.OFPort == r.OFPort
		c.say(way, "way %d to %s of network %s", r.OFPort, r.Addr, n.Name)
	}
}
