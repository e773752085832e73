package netns

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"meshnet/plan"
	"meshnet/state"
)

// chain is a base chain of our table.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    [][]expr.Any
}

// chains returns the rules as planned:
//
//   - input: what comes to the tunnel port from peers is done with first, from others it is dropped (a
//     kernel VXLAN device takes a packet from anybody; loopback is left alone), and so is what
//     containers send to the ports of meshnet itself.
//   - forward: nothing passes from network to network, nor from elsewhere into one but to published
//     ports; nobody forges a packet for a peer's tunnel port under this host's address.
//   - marks: packets from the gateway bear the mark of their network, and so does all that belongs to
//     their connections. What does not come from there is done with before the rules of networks: each
//     packet of the host goes by here.
//   - untracked-in, untracked-out: packets of the tunnels themselves make no connections. Masquerading
//     has the kernel look for one for each packet of the host.
//   - The others: published ports, and masquerading under this host's address.
func chains(f plan.Firewall, g *plan.Gateway) []chain {
	input := chain{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nil}
	forward := chain{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nil}
	for _, p := range peerSets() {
		if f.On { // first and by itself: each tunnel packet goes by here
			elsewhere := []expr.Any{}
			if g != nil {
				elsewhere = not(fromDevice(g.Name))
			}
			input.add(family(p.family), protocol(unix.IPPROTO_UDP), toPort(f.Port), load(p.source, p.length),
				lookup(p.name, false), elsewhere, accept())
		}
		forward.add(family(p.family), protocol(unix.IPPROTO_UDP), toPort(f.Port), load(p.dest, p.length),
			lookup(p.name, false), counted(drop()))
	}
	if f.On {
		input.add(not(fromDevice("lo")), protocol(unix.IPPROTO_UDP), toPort(f.Port), counted(drop()))
	}
	if g == nil {
		return []chain{input, forward}
	}
	from, to := fromDevice(g.Name), toDevice(g.Name)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		if proto == unix.IPPROTO_UDP && !f.On {
			input.add(from, protocol(proto), toPort(f.Port), counted(drop()))
		}
		if f.Gossip == 0 {
			continue
		}
		input.add(from, protocol(proto), toPort(f.Gossip), counted(drop()))
		for _, p := range peerSets() {
			forward.add(family(p.family), from, protocol(proto), toPort(f.Gossip), load(p.dest, p.length),
				lookup(p.name, false), counted(drop()))
		}
	}
	forward.add(from, to, counted(drop()))
	forward.add(to, ctBits(expr.CtKeySTATUS, ctDNAT), accept())
	forward.add(to, ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	forward.add(to, counted(drop()))
	forward.add(from, ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	for _, p := range g.Closed {
		forward.add(family(unix.NFPROTO_IPV4), from, toSubnet(p), counted(drop()))
	}
	untrackedIn := chain{"untracked-in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nil}
	untrackedOut := chain{"untracked-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, nil}
	tunnel := join(protocol(unix.IPPROTO_UDP), toPort(f.Port), []expr.Any{&expr.Notrack{}})
	untrackedIn.add(not(from), tunnel) // what a container sends to such a port is its own
	untrackedOut.add(tunnel)
	return append([]chain{input, forward, untrackedIn, untrackedOut}, routing(g)...)
}

// ctDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ctDNAT = 1 << 5

// routing returns the chains that mark, publish and masquerade.
func routing(g *plan.Gateway) []chain {
	mark := chain{"marks", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, nil}
	reroute := chain{"reroute", nftables.ChainTypeRoute, nftables.ChainHookOutput, nftables.ChainPriorityMangle, nil}
	publish := chain{"publish", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nil}
	here := chain{"publish-here", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, nil}
	masquerade := chain{"outward", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nil}
	elsewhere := not(fromDevice(g.Name))
	for _, p := range g.Ports {
		proto := byte(unix.IPPROTO_TCP)
		if p.Proto == state.UDP {
			proto = unix.IPPROTO_UDP
		}
		match := [][]expr.Any{family(unix.NFPROTO_IPV4), protocol(proto), toPort(p.HostPort), toHost()} // the dearest last
		fresh := ctBits(expr.CtKeySTATE, expr.CtStateBitNEW)
		mark.add(join(elsewhere, join(match...), fresh, setCtMark(p.Mark)))
		reroute.add(join(join(match...), fresh, setCtMark(p.Mark)))
		publish.add(join(elsewhere, join(match...), dnat(p)))
		here.add(join(join(match...), dnat(p)))
	}
	mark.add(elsewhere, ourCtMark(), restoreMark())
	mark.add(elsewhere, accept()) // of this chain
	for _, w := range g.Ways {
		mark.add(sourceMAC(w.MAC), setMark(w.Mark))
		// Of two networks with one subnet one may have this connection already: the other's ends.
		mark.add(sourceMAC(w.MAC), ctMark(expr.CmpOpNeq, 0), ctMark(expr.CmpOpNeq, w.Mark), counted(drop()))
	}
	mark.add(saveMark())
	reroute.add(ourCtMark(), restoreMark())
	masquerade.add(family(unix.NFPROTO_IPV4), ourMark(), not(toDevice(g.Name)), []expr.Any{&expr.Masq{}})
	return []chain{mark, reroute, publish, here, masquerade}
}

func (c *chain) add(parts ...[]expr.Any) { c.rules = append(c.rules, join(parts...)) }

func join(parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// What follows are the parts of rules, as nft(8) would write them.

func compare(load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

// not turns the comparison at the end of a part around.
func not(part []expr.Any) []expr.Any {
	last := *part[len(part)-1].(*expr.Cmp)
	last.Op = expr.CmpOpNeq
	return append(part[:len(part)-1:len(part)-1], &last)
}

func ifName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func family(f byte) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, []byte{f})
}

func fromDevice(name string) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, ifName(name))
}

func toDevice(name string) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, ifName(name))
}

func protocol(p byte) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, []byte{p})
}

func toPort(port uint16) []expr.Any {
	return compare(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		binaryutil.BigEndian.PutUint16(port))
}

// load loads an address of the network header.
func load(offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

func lookup(set string, invert bool) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set, Invert: invert}}
}

// toSubnet matches an IPv4 destination.
func toSubnet(p netip.Prefix) []expr.Any {
	mask := make([]byte, 4)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(load(16, 4),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()})
}

func sourceMAC(m state.MAC) []expr.Any {
	return compare(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}, m[:])
}

// toHost matches what is addressed to this host: fib daddr type local (RTN_LOCAL is 2).
func toHost() []expr.Any {
	return compare(&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, native(unix.RTN_LOCAL))
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// ctBits matches a connection with one of the bits.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bits), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
	}
}

func ctMark(op expr.CmpOp, mark uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: native(mark)}}
}

// isOurs compares what is loaded with what all our marks have in common.
func isOurs() []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(plan.MarkMask), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(plan.Mark(0))},
	}
}

func ourCtMark() []expr.Any {
	return append([]expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}}, isOurs()...)
}

func ourMark() []expr.Any {
	return append([]expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}}, isOurs()...)
}

func setMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: native(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

func setCtMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: native(mark)},
		&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1},
	}
}

// saveMark gives the connection the packet's mark.
func saveMark() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1},
	}
}

// restoreMark gives the packet the connection's mark.
func restoreMark() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

func dnat(p plan.Published) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: p.Addr.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(p.Port)},
		&expr.NAT{ // as the kernel shows it: a range of one
			Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegAddrMax: 1, RegProtoMin: 2, RegProtoMax: 2,
			Specified: true,
		},
	}
}

func counted(verdict []expr.Any) []expr.Any { return append([]expr.Any{&expr.Counter{}}, verdict...) }

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
