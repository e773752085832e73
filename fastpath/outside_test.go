package fastpath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"meshnet/fastpath/bpf"
	"meshnet/plan"
)

// tunneled is a packet at the device that tunnel packets come in by, and what the kernel knows beside it.
type tunneled struct {
	bytes []byte
	gso   uint32 // size of segments; 0: it is one
	late  bool   // a packet of its flow went by the host's stack just now
	quiet bool   // one did long ago
}

// wrapped is a tunnel packet that is nearly right: with a frame of [frame], from a peer to this host, and
// mostly one thing, or none, that is not as it should be. Each of a world is a flow of its own.
func wrapped(r *rand.Rand, h *plan.Host, to []byte, flow uint16) tunneled {
	networks := inOrder(h)
	n := networks[r.IntN(len(networks))]
	inner := frame(r, h, arrival(n))
	if r.IntN(2) == 0 && len(n.Ports) > 0 { // for a container here
		copy(inner, n.Ports[r.IntN(len(n.Ports))].MAC[:])
	}
	vni := n.VNI
	peers := h.Firewall.Peers
	var p tunneled
	if len(peers) == 0 {
		peers = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
	}
	ip := make([]byte, 20)
	ip[0], ip[1], ip[8], ip[9] = 0x45, byte(r.IntN(256))&0xfe, 64, 17
	binary.BigEndian.PutUint16(ip[4:], uint16(r.Uint32()))
	copy(ip[12:], peers[r.IntN(len(peers))].AsSlice())
	copy(ip[16:], h.Underlay.AsSlice())
	udp := make([]byte, 8)
	binary.BigEndian.PutUint16(udp, flow)
	binary.BigEndian.PutUint16(udp[2:], h.TunnelPort)
	if r.IntN(2) == 0 {
		binary.BigEndian.PutUint16(udp[6:], uint16(r.Uint32()))
	}
	vxlan := []byte{8, 0, 0, 0, 0, 0, 0, 0}
	eth := slices.Concat(to, []byte{2, 0, 0, 0, 0, 1, 8, 0})
	sum, cut := true, false
	length, datagram := 20+8+8+len(inner), 8+8+len(inner)
	switch r.IntN(48) {
	case 0: // another sender, or receiver
		copy(ip[12+4*r.IntN(2):], []netip.Addr{netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("10.2.0.5"), {}, h.Underlay, peers[0]}[r.IntN(5)].AsSlice())
	case 1:
		ip[12+r.IntN(8)] ^= 1 << r.IntN(8)
	case 2: // another MAC
		copy(eth, [][]byte{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, {2, 9, 9, 9, 9, 9}, inner[:6]}[r.IntN(4)])
	case 3: // another type
		copy(eth[12:], [][]byte{{0x86, 0xdd}, {8, 6}, {0x88, 0xcc}, {0x81, 0}}[r.IntN(4)])
	case 4: // tagged
		eth = slices.Insert(eth, 12, 0x81, 0, 0, byte(r.IntN(4)))
	case 5:
		ip[0] = []byte{0x55, 0x65, 0x05, 0x44, 0x46, 0x4f}[r.IntN(6)]
	case 6: // options
		ip = append(ip, make([]byte, 4*(1+r.IntN(10)))...)
		ip[0] = 0x40 | byte(len(ip)/4)
		length += len(ip) - 20
	case 7:
		binary.BigEndian.PutUint16(ip[6:], []uint16{0x2000, 1, 0x4000, 0x8000, 0x2005, 0x1000}[r.IntN(6)])
	case 8:
		length += []int{-1, 1, -20, 8, -length}[r.IntN(5)]
	case 9:
		datagram += []int{-1, 1, -8, 8, -datagram}[r.IntN(5)]
	case 10:
		sum = false
	case 11:
		ip[9] = []byte{6, 1, 136, 0}[r.IntN(4)]
	case 12:
		binary.BigEndian.PutUint16(udp[2:], []uint16{4789, h.TunnelPort + 1, 0, h.TunnelPort ^ 0x8000}[r.IntN(4)])
	case 13, 14: // congestion
		ip[1] |= byte(1 + 2*r.IntN(2))
	case 15:
		vxlan[r.IntN(4)] ^= 1 << r.IntN(8)
	case 16:
		vxlan[7] = 1 << r.IntN(8)
	case 17:
		vni = []uint32{0, 1, vni + 1, networks[r.IntN(len(networks))].VNI, vni ^ 1<<r.IntN(24)}[r.IntN(5)] & 0xffffff
	case 18, 19:
		cut = true
	case 20: // padding
		inner = append(inner, make([]byte, 1+r.IntN(20))...)
	case 21:
		p.gso = 1 + uint32(r.IntN(1400))
	case 22, 23:
		p.late = true
	case 24, 25:
		p.quiet = true
	}
	binary.BigEndian.PutUint32(vxlan[4:], vni<<8|uint32(vxlan[7]))
	binary.BigEndian.PutUint16(ip[2:], uint16(length))
	binary.BigEndian.PutUint16(udp[4:], uint16(datagram))
	binary.BigEndian.PutUint16(ip[10:], ^fold(ip))
	if !sum {
		ip[10+r.IntN(2)] ^= 1 << r.IntN(8)
	}
	p.bytes = slices.Concat(eth, ip, udp, vxlan, inner)
	if cut { // at any place; the kernel runs no program on less than the header that the type promises
		p.bytes = p.bytes[:34+r.IntN(len(p.bytes)-34)]
		if r.IntN(2) == 0 && len(p.bytes) >= 42 { // and the lengths say so
			binary.BigEndian.PutUint16(p.bytes[16:], uint16(len(p.bytes)-14))
			binary.BigEndian.PutUint16(p.bytes[38:], uint16(len(p.bytes)-34))
			clear(p.bytes[24:26])
			binary.BigEndian.PutUint16(p.bytes[24:], ^fold(p.bytes[14:34]))
		}
	}
	if binary.BigEndian.Uint16(p.bytes[12:]) == 0x86dd && len(p.bytes) < 54 {
		p.bytes = append(p.bytes, make([]byte, 54)...)
	}
	return p
}

// fold is the sum of RFC 1071.
func fold(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// carried is what a packet carries as a host's VXLAN device would take it, and its network; nil: nothing,
// or it is left to that device. peer: it is a tunnel packet of a peer; late: it, or one of its flow before,
// is left to that device for it is of segments, but of TCP, or was on a congested way.
func (p tunneled) carried(h *plan.Host, to []byte) (n *plan.Network, inner []byte, peer, late bool) {
	b := p.bytes
	u16 := func(at int) int { return int(binary.BigEndian.Uint16(b[at:])) }
	if len(b) < 42 || !bytes.Equal(b[:6], to) || u16(12) != 0x0800 || b[14] != 0x45 || b[23] != 17 || u16(20)&^0xc000 != 0 {
		return nil, nil, false, false
	}
	from, dst := netip.AddrFrom4([4]byte(b[26:30])), netip.AddrFrom4([4]byte(b[30:34]))
	if dst != h.Underlay || u16(36) != int(h.TunnelPort) || !slices.Contains(h.Firewall.Peers, from) {
		return nil, nil, false, false
	}
	congested := b[15]&3 == 1 || b[15]&3 == 3
	if u16(16) != len(b)-14 || u16(38) != len(b)-34 || fold(b[14:34]) != 0xffff || len(b) < 84 {
		return nil, nil, true, false
	}
	if !bytes.Equal(b[42:46], []byte{8, 0, 0, 0}) || b[49] != 0 {
		return nil, nil, true, false
	}
	late = congested || p.gso != 0 && b[73] != 6 || p.late
	vni := binary.BigEndian.Uint32(b[46:]) >> 8
	for _, n := range h.Networks {
		if n.VNI == vni {
			return n, b[50:], true, late
		}
	}
	return nil, nil, true, late
}

// flow is what tells apart what must stay in order.
func (p tunneled) flow() bpf.FastFlow {
	return bpf.FastFlow{Peer: binary.NativeEndian.Uint32(p.bytes[26:]), Port: binary.NativeEndian.Uint16(p.bytes[34:])}
}

// taken has the program see a packet.
func (m *machine) taken(t testing.TB, p tunneled) (got seen, ok bool, err error) {
	t.Helper()
	in := skb{Ifindex: m.index[m.under], GSOSize: p.gso}
	var out skb
	o := ebpf.RunOptions{Data: p.bytes, DataOut: make([]byte, len(p.bytes)+256), Context: &in, ContextOut: &out}
	code, err := m.prog.Run(&o)
	switch {
	case err != nil:
		t.Fatalf("run with %x: %v", p.bytes, err)
	case code == 7: // TC_ACT_REDIRECT
		return seen{bpf.FastReason(out.CB[0]), out.CB[1], bpf.FastHow(out.CB[2]), o.DataOut}, true, nil
	case code != math.MaxUint32: // TC_ACT_UNSPEC: others' filters are asked
		return seen{}, false, fmt.Errorf("verdict %d on %x", code, p.bytes)
	}
	return seen{frame: o.DataOut}, false, nil
}

// prime has the program see a packet of another flow that goes by the host's stack, for it asks of none what went
// there before while nothing goes there.
func (m *machine) prime(t testing.TB) {
	t.Helper()
	if len(m.host.Firewall.Peers) == 0 {
		return
	}
	r := rand.New(rand.NewPCG(1, 1))
	for {
		p := wrapped(r, m.host, m.mac, 1)
		if _, _, _, late := p.carried(m.host, m.mac); late && !p.late {
			m.taken(t, p)
			return
		}
	}
}

// unwraps says what is wrong with what the program makes of a packet.
func (c *comparison) unwraps(t *testing.T, p tunneled, tables pipeline) error {
	if len(p.bytes) >= 42 && (p.late || p.quiet) {
		when := uint64(math.MaxUint64 / 2) // not in the life of this machine
		if p.quiet {
			when = 0
		}
		c.prime(t)
		if err := c.late.Put(p.flow(), when); err != nil {
			t.Fatal(err)
		}
	}
	got, taken, err := c.taken(t, p)
	if err != nil {
		return err
	}
	if c.old {
		if taken || !bytes.Equal(got.frame, p.bytes) {
			return fmt.Errorf("%x is taken", p.bytes)
		}
		return nil
	}
	n, inner, peer, late := p.carried(c.host, c.mac)
	fit := n != nil && !late && n != c.trunkless && !short(inner)
	var ports []string
	if fit { // as the program sees it at the network's VXLAN device
		at := c.run(t, arrival(n), inner)
		fit = at.why == bpf.FastReasonFAST && at.how == bpf.FastHowLOCAL
		in, tun := c.port[c.index[arrival(n)]], uint64(0)
		if n.Device == nil {
			from := netip.AddrFrom4([4]byte(p.bytes[26:30]))
			in, tun = c.port[c.tunnelTo(from)], uint64(n.VNI)
		}
		ports, _ = tables.outputs(t, in, tun, inner)
	}
	if fit && p.gso != 0 { // in a test run the kernel does not know them for TCP's, and cannot unwrap them
		fit, late = false, true
	}
	switch {
	case taken != fit:
		return fmt.Errorf("taken: %t, fit to be: %t: %x (%+v)", taken, fit, p.bytes, p)
	case !taken && !bytes.Equal(got.frame, p.bytes):
		return fmt.Errorf("%x was left, but as %x", p.bytes, got.frame)
	case taken && (!bytes.Equal(got.frame, inner) || !slices.Equal(ports, []string{fmt.Sprint(c.port[got.to])}) || got.how != bpf.FastHowLOCAL):
		return fmt.Errorf("%x is taken as %x, to port %d in the manner %d; the pipeline sends it to %v", p.bytes, got.frame, c.port[got.to], got.how, ports)
	}
	switch {
	case taken:
		c.reasons["taken"]++
	case peer:
		c.reasons["left though from a peer"]++
	default:
		c.reasons["left"]++
	}
	if late {
		var when uint64
		if err := c.late.Lookup(p.flow(), &when); err != nil {
			return fmt.Errorf("%x goes by the host's stack, and may be overtaken: %w", p.bytes, err)
		}
	}
	return nil
}
