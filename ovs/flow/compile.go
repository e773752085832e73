package flow

import (
	"net/netip"
	"slices"

	"meshnet/plan"
	"meshnet/state"
)

// Priorities within a table.
const (
	prioDeny  uint16 = 110 // exceptions from what follows
	prioExact uint16 = 100
	prioGroup uint16 = 90 // multicast and broadcast
	prioMiss  uint16 = 0
)

// Types of ICMP messages (RFC 792).
const (
	icmpEchoReply = 0
	icmpEcho      = 8
)

// Base returns the flows that do not belong to a network, in canonical order: table misses and
// tunnel classification.
func Base(h *plan.Host) []Flow {
	var fs []Flow
	add := func(table uint8, prio uint16, m Match, as ...Action) {
		fs = append(fs, Flow{Table: table, Priority: prio, Cookie: BaseCookie, Match: m, Actions: as})
	}
	// Drops are written out although a miss drops anyway: they count.
	add(TableClassify, prioMiss, Match{})
	add(TableGuard, prioMiss, Match{})
	add(TableARP, prioMiss, Match{})
	add(TableHost, prioMiss, Match{})
	add(TableRemote, prioMiss, Match{}, Goto{TableLocal})
	add(TableLocal, prioMiss, Match{})
	add(TableGateway, prioMiss, Match{})
	for _, t := range h.Tunnels {
		add(TableClassify, prioExact, Match{InPort: t.OFPort},
			Move{FieldTunID, FieldMetadata}, Goto{TableLocal})
	}
	probes(add)
	slices.SortFunc(fs, Compare)
	return fs
}

// CountBase returns how many flows [Base] returns.
func CountBase(h *plan.Host) int { return len(Base(&plan.Host{})) + len(h.Tunnels) }

// ProbeAnswer is the source of a probe that was answered. No network card has a MAC that is locally
// administered and spells mesh.
var ProbeAnswer = state.MAC{0x02, 'm', 'e', 's', 'h', 0}

// probes answers the probes of package echo and hands over answers. Only what came from a peer gets
// as far as this table with that type: a container's is dropped by its guard.
func probes(add func(table uint8, prio uint16, m Match, as ...Action)) {
	m := Match{EthType: EthTypeProbe}
	add(TableLocal, prioDeny, m, Move{FieldEthSrc, FieldEthDst}, SetMAC(FieldEthSrc, ProbeAnswer), OutputInPort{})
	m.EthSrc = ExactMAC(ProbeAnswer)
	add(TableLocal, prioDeny+1, m, Controller{})
}

// Compile returns the flows of one network on a host in canonical order. Of h only the transport
// counts: a network that is the same pointer in two plans of one transport has the same flows.
func Compile(n *plan.Network, h *plan.Host) []Flow {
	c := newCompiler(n, h)
	c.common()
	for _, r := range n.Remotes {
		c.remote(r)
	}
	slices.SortFunc(c.flows, Compare)
	return c.flows
}

// Change returns what to add to and remove from the flows of a network when its plan changes on a
// host whose transport does not, each in canonical order: [Diff] of the two compiled, at the cost of
// what changed and of the local members.
func Change(was, is *plan.Network, h *plan.Host) (add, remove []Flow) {
	gone, came := is.Since(was)
	if was.VNI != is.VNI || was.ID != is.ID || was.Host.Addr != is.Host.Addr {
		return Diff(Compile(was, h), Compile(is, h)) // each remote has other flows now
	}
	old, now := newCompiler(was, h), newCompiler(is, h)
	old.common()
	now.common()
	for _, r := range gone {
		old.remote(r)
	}
	for _, r := range came {
		now.remote(r)
	}
	return Diff(old.flows, now.flows)
}

// Count returns how many flows [Compile] returns.
func Count(n *plan.Network, h *plan.Host) int {
	c := newCompiler(n, h)
	c.common()
	each := 2
	if n.Host != (plan.Own{}) {
		each = 3
	}
	return len(c.flows) + each*len(n.Remotes)
}

func newCompiler(n *plan.Network, h *plan.Host) *compiler {
	return &compiler{
		net: n, cookie: Cookie(n.ID), vni: uint64(n.VNI),
		device: h.Transport == state.KernelVXLAN,
	}
}

// common adds all but the flows of the remotes.
func (c *compiler) common() {
	n := c.net
	if c.device {
		c.add(TableClassify, prioExact, Match{InPort: n.Device.OFPort},
			SetField{FieldMetadata, c.vni}, Goto{TableLocal})
	}
	for _, p := range n.Ports {
		c.guard(p)
		c.answer(p.Addr, p.MAC)
		c.add(TableLocal, prioExact, c.to(ExactMAC(p.MAC)), Output{p.OFPort})
		if n.Door != (plan.Door{}) {
			c.fromHost(p.Addr, p.MAC, TableLocal)
		}
	}
	c.gateway()
	c.host()
	c.groups()
}

// remote adds the flows of a member elsewhere.
func (c *compiler) remote(r *plan.Remote) {
	c.answer(r.Addr, r.MAC)
	c.add(TableRemote, prioExact, c.to(ExactMAC(r.MAC)), c.tunnels(r.OFPort)...)
	if c.net.Host != (plan.Own{}) {
		c.fromHost(r.Addr, r.MAC, TableRemote)
	}
}

// compiler collects the flows of one network.
type compiler struct {
	net    *plan.Network
	cookie uint64
	vni    uint64
	device bool // peers are behind the network's VXLAN device, not behind tunnels
	flows  []Flow
}

func (c *compiler) add(table uint8, prio uint16, m Match, as ...Action) {
	c.flows = append(c.flows, Flow{Table: table, Priority: prio, Cookie: c.cookie, Match: m, Actions: as})
}

// to matches the frames of this network to a MAC.
func (c *compiler) to(dst Masked[state.MAC]) Match {
	return Match{Metadata: Exact64(c.vni), EthDst: dst}
}

// guard lets a container send what is its own, and nothing else.
func (c *compiler) guard(p plan.Port) {
	c.add(TableClassify, prioExact, Match{InPort: p.OFPort},
		SetField{FieldMetadata, c.vni}, Goto{TableGuard})
	arp := Match{InPort: p.OFPort, EthType: EthTypeARP}
	// Who asks for its own address looks for a duplicate or wants to be heard; neither is needed
	// where the plan knows every address, and an answer would look like a duplicate.
	own := arp
	own.ARPTPA = Host(p.Addr)
	c.add(TableGuard, prioDeny, own)
	arp.EthSrc, arp.ARPSHA = ExactMAC(p.MAC), ExactMAC(p.MAC)
	for _, sender := range []netip.Addr{netip.IPv4Unspecified(), p.Addr} {
		arp.ARPSPA = Host(sender)
		c.add(TableGuard, prioExact, arp, Goto{TableARP})
	}
	c.add(TableGuard, prioExact, Match{
		InPort: p.OFPort, EthSrc: ExactMAC(p.MAC), EthType: EthTypeIPv4, IPSrc: Host(p.Addr),
	}, Goto{TableRemote})
}

// answer turns a request for a known address into its answer and sends it back.
func (c *compiler) answer(addr netip.Addr, mac state.MAC) {
	c.add(TableARP, prioExact, Match{
		Metadata: Exact64(c.vni), EthType: EthTypeARP, ARPOp: ARPRequest, ARPTPA: Host(addr),
	},
		Move{FieldEthSrc, FieldEthDst},
		SetMAC(FieldEthSrc, mac),
		SetField{FieldARPOp, uint64(ARPReply)},
		Move{FieldARPSHA, FieldARPTHA},
		Move{FieldARPSPA, FieldARPTPA},
		SetMAC(FieldARPSHA, mac),
		SetAddr(FieldARPSPA, addr),
		OutputInPort{},
	)
}

// gateway answers for the network's gateway and leads from it to the host's own stack.
func (c *compiler) gateway() {
	r, door := c.net.Router, c.net.Door
	if r == (plan.Router{}) {
		return
	}
	c.answer(r.Addr, r.MAC)
	c.add(TableRemote, prioExact, c.to(ExactMAC(r.MAC)), Goto{TableGateway})
	within := Match{Metadata: Exact64(c.vni), EthType: EthTypeIPv4, IPDst: c.net.Subnet}
	echo := within
	echo.IPDst, echo.IPProto = Host(r.Addr), ProtoICMP
	echo.ICMPType, echo.ICMPCode = Exact8(icmpEcho), Exact8(0)
	c.add(TableGateway, prioDeny, echo,
		Move{FieldEthSrc, FieldEthDst},
		SetMAC(FieldEthSrc, r.MAC),
		Move{FieldIPSrc, FieldIPDst},
		SetAddr(FieldIPSrc, r.Addr),
		SetField{FieldICMPType, icmpEchoReply},
		SetField{FieldTTL, 64},
		OutputInPort{},
	)
	if !r.Out || door == (plan.Door{}) {
		return
	}
	c.add(TableGateway, prioExact, within)
	out := within
	out.IPDst = netip.Prefix{}
	c.add(TableGateway, prioGroup, out,
		SetMAC(FieldEthSrc, door.Far), SetMAC(FieldEthDst, door.Near), Output{door.OFPort})
}

// host leads from the host's own stack into the network, under the gateway's MAC or that of the
// host's own address, and to that address.
func (c *compiler) host() {
	door, own := c.net.Door, c.net.Host
	if door == (plan.Door{}) {
		return
	}
	in := Match{InPort: door.OFPort, EthDst: ExactMAC(door.Far), EthType: EthTypeIPv4}
	enter := []Action{SetField{FieldMetadata, c.vni}, Goto{TableHost}}
	if c.net.Router.Out {
		c.add(TableClassify, prioExact, in, append([]Action{SetMAC(FieldEthSrc, c.net.Router.MAC)}, enter...)...)
	}
	if own == (plan.Own{}) {
		return
	}
	in.IPSrc = Host(own.Addr)
	c.add(TableClassify, prioDeny, in, append([]Action{SetMAC(FieldEthSrc, own.MAC)}, enter...)...)
	c.answer(own.Addr, own.MAC)
	c.add(TableLocal, prioExact, c.to(ExactMAC(own.MAC)),
		SetMAC(FieldEthSrc, door.Far), SetMAC(FieldEthDst, door.Near), Output{door.OFPort})
}

// fromHost finds the MAC of a member for a packet from the host's own stack. Those of remote members
// are for what the host itself sends: it does not route from elsewhere to other hosts.
func (c *compiler) fromHost(addr netip.Addr, mac state.MAC, next uint8) {
	m := Match{Metadata: Exact64(c.vni), EthType: EthTypeIPv4, IPDst: Host(addr)}
	if next == TableRemote {
		m.IPSrc = Host(c.net.Host.Addr)
	}
	c.add(TableHost, prioExact, m, SetMAC(FieldEthDst, mac), Goto{next})
}

// groups sends multicast and broadcast once to every peer with members, and to all local members.
// OVS leaves out the port that a packet came from.
func (c *compiler) groups() {
	remote := c.net.Flood
	if c.device && len(c.net.Device.Flood) > 0 {
		remote = []uint32{c.net.Device.OFPort} // the device itself makes the copies
	}
	if len(remote) > 0 {
		c.add(TableRemote, prioGroup, c.to(Multicast), append(c.tunnels(remote...), Goto{TableLocal})...)
	}
	var local []Action
	for _, p := range c.net.Ports {
		local = append(local, Output{p.OFPort})
	}
	c.add(TableLocal, prioGroup, c.to(Multicast), local...)
}

// tunnels sends to peers: by the ports of their tunnels with the VNI, or by the device, which adds
// its own.
func (c *compiler) tunnels(ports ...uint32) []Action {
	var as []Action
	if !c.device {
		as = append(as, SetField{FieldTunID, c.vni})
	}
	for _, p := range ports {
		as = append(as, Output{p})
	}
	return as
}
