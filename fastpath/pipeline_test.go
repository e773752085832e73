package fastpath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"meshnet/ovs/flow"
	"meshnet/plan"
	"meshnet/state"
)

// packet is what a switch reads of a frame (Open vSwitch, lib/flow.c, miniflow_extract, with
// vlan-limit 1) and what it knows beside it.
type packet struct {
	in                     uint32
	tun, metadata          uint64
	ethSrc, ethDst         state.MAC
	ethType                uint16
	ipSrc, ipDst           netip.Addr
	proto                  uint8
	arpOp                  uint16
	spa, tpa               netip.Addr
	sha, tha               state.MAC
	icmpType, icmpCode     uint8
	tpSrc, tpDst           uint16
	icmp, transport, isIP4 bool
}

func extract(in uint32, b []byte) packet {
	zero := netip.AddrFrom4([4]byte{})
	p := packet{in: in, ipSrc: zero, ipDst: zero, spa: zero, tpa: zero}
	copy(p.ethDst[:], b[0:6])
	copy(p.ethSrc[:], b[6:12])
	b = b[12:]
	p.ethType = binary.BigEndian.Uint16(b)
	b = b[2:]
	if (p.ethType == 0x8100 || p.ethType == 0x88a8) && len(b) >= 4 {
		p.ethType = binary.BigEndian.Uint16(b[2:])
		b = b[4:]
	}
	switch {
	case p.ethType == flow.EthTypeIPv4:
		p.ipv4(b)
	case p.ethType == flow.EthTypeARP:
		p.arp(b)
	}
	return p
}

func (p *packet) ipv4(b []byte) {
	if len(b) < 20 {
		return
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || len(b) < header || total > len(b) || header > total {
		return
	}
	p.isIP4 = true
	p.ipSrc, p.ipDst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.proto = b[9]
	later := binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	b = b[header:total]
	switch {
	case later:
	case (p.proto == flow.ProtoTCP && len(b) >= 20) || (p.proto == flow.ProtoUDP && len(b) >= 8):
		p.transport = true
		p.tpSrc, p.tpDst = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case p.proto == flow.ProtoICMP && len(b) >= 8:
		p.icmp = true
		p.icmpType, p.icmpCode = b[0], b[1]
	}
}

func (p *packet) arp(b []byte) {
	if len(b) < 28 || binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != 0x0800 || b[4] != 6 || b[5] != 4 {
		return
	}
	p.spa, p.tpa = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if op := binary.BigEndian.Uint16(b[6:]); op <= 0xff {
		p.arpOp = op
	}
	if p.arpOp == 1 || p.arpOp == 2 {
		copy(p.sha[:], b[8:14])
		copy(p.tha[:], b[18:24])
	}
}

func num[T uint8 | uint16 | uint64](m flow.Masked[T], v T) bool { return v&m.Mask == m.Value }

func mac(m flow.Masked[state.MAC], v state.MAC) bool {
	for i := range v {
		if v[i]&m.Mask[i] != m.Value[i] {
			return false
		}
	}
	return true
}

func prefix(m netip.Prefix, a netip.Addr) bool { return !m.IsValid() || m.Contains(a) }

// matches is flow.Match as the OpenFlow specification means it.
func (p *packet) matches(m flow.Match) bool {
	switch {
	case m.InPort != 0 && m.InPort != p.in, m.EthType != 0 && m.EthType != p.ethType,
		m.IPProto != 0 && m.IPProto != p.proto, m.ARPOp != 0 && m.ARPOp != p.arpOp:
		return false
	}
	return num(m.TunID, p.tun) && num(m.Metadata, p.metadata) && mac(m.EthSrc, p.ethSrc) && mac(m.EthDst, p.ethDst) &&
		prefix(m.IPSrc, p.ipSrc) && prefix(m.IPDst, p.ipDst) && prefix(m.ARPSPA, p.spa) && prefix(m.ARPTPA, p.tpa) &&
		mac(m.ARPSHA, p.sha) && mac(m.ARPTHA, p.tha) && num(m.ICMPType, p.icmpType) && num(m.ICMPCode, p.icmpCode) &&
		num(m.TPSrc, p.tpSrc) && num(m.TPDst, p.tpDst)
}

// pipeline is the flow tables of a host as a model.
type pipeline map[uint8][]flow.Flow

func pipelineOf(h *plan.Host) pipeline {
	tables := pipeline{}
	all := flow.Base(h)
	for _, n := range h.Networks {
		all = append(all, flow.Compile(n, h)...)
	}
	slices.SortStableFunc(all, func(a, b flow.Flow) int { return int(b.Priority) - int(a.Priority) })
	for _, f := range all {
		tables[f.Table] = append(tables[f.Table], f)
	}
	return tables
}

// outputs returns the ports that a frame leaves by, in order, given the network that its tunnel says, and what it is then; nothing if more than its
// MACs was changed.
func (ts pipeline) outputs(t testing.TB, in uint32, tun uint64, frame []byte) (ports []string, out []byte) {
	p := extract(in, frame)
	p.tun = tun
	same := true
	for table, more := uint8(0), true; more; {
		more = false
		at := slices.IndexFunc(ts[table], func(f flow.Flow) bool { return p.matches(f.Match) })
		if at < 0 {
			break
		}
		for _, a := range ts[table][at].Actions {
			switch a := a.(type) {
			case flow.Output:
				if a.Port != in {
					ports = append(ports, fmt.Sprint(a.Port))
				}
			case flow.OutputInPort:
				ports = append(ports, "IN_PORT")
			case flow.SetField:
				switch a.Field {
				case flow.FieldMetadata:
					p.metadata = a.Value
				case flow.FieldTunID:
					p.tun = a.Value
				case flow.FieldEthSrc:
					p.ethSrc = macOf(a.Value)
				case flow.FieldEthDst:
					p.ethDst = macOf(a.Value)
				default:
					same = false
				}
			case flow.Move:
				if a.From == flow.FieldTunID && a.To == flow.FieldMetadata {
					p.metadata = p.tun
				} else {
					same = false
				}
			case flow.Goto:
				table, more = a.Table, true
			default:
				t.Fatalf("the model does not know the action %s", a)
			}
		}
	}
	if !same {
		return ports, nil
	}
	return ports, slices.Concat(p.ethDst[:], p.ethSrc[:], frame[12:])
}

func macOf(v uint64) (m state.MAC) {
	copy(m[:], binary.BigEndian.AppendUint64(nil, v)[2:])
	return m
}

// traced returns the ports of the last line of ofproto/trace that says what leaves, as the model writes
// them.
func traced(trace string) []string {
	var ports []string
	for line := range strings.Lines(trace) {
		line = strings.TrimSpace(line)
		switch port, ok := strings.CutPrefix(line, "output:"); {
		case ok:
			ports = append(ports, port)
		case line == "IN_PORT":
			ports = append(ports, line)
		case strings.Contains(line, "skipping output"):
			ports = ports[:len(ports)-1]
		}
	}
	return ports
}
