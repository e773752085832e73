package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"

	"meshnet/ovs/flow"
)

// fieldID is the header of a field on the wire: class, number, and length of the value in bytes, without the bit that
// says that a mask follows (OXM; ONF TS-012, section 7.2.2.2, and ovs-fields(7)).
type fieldID uint32

const (
	classOXM fieldID = 0x8000 << 16
	classNXM fieldID = 0x0001 << 16 // of Nicira; class 0 has its older fields

	hasMask fieldID = 1 << 8
)

// The fields of a match; those that actions use have their other names in action.go.
const (
	oxmInPort   = classOXM | 0<<9 | 4
	oxmMetadata = classOXM | 2<<9 | 8
	oxmEthDst   = classOXM | 3<<9 | 6
	oxmEthSrc   = classOXM | 4<<9 | 6
	oxmEthType  = classOXM | 5<<9 | 2
	oxmIPProto  = classOXM | 10<<9 | 1
	oxmIPv4Src  = classOXM | 11<<9 | 4
	oxmIPv4Dst  = classOXM | 12<<9 | 4
	oxmTCPSrc   = classOXM | 13<<9 | 2
	oxmTCPDst   = classOXM | 14<<9 | 2
	oxmUDPSrc   = classOXM | 15<<9 | 2
	oxmUDPDst   = classOXM | 16<<9 | 2
	oxmICMPType = classOXM | 19<<9 | 1
	oxmICMPCode = classOXM | 20<<9 | 1
	oxmARPOp    = classOXM | 21<<9 | 2
	oxmARPSPA   = classOXM | 22<<9 | 4
	oxmARPTPA   = classOXM | 23<<9 | 4
	oxmARPSHA   = classOXM | 24<<9 | 6
	oxmARPTHA   = classOXM | 25<<9 | 6
	oxmTunID    = classOXM | 38<<9 | 8
)

func (id fieldID) bytes() int { return int(id & 0xff) }

// ones is the mask under which the whole field counts.
func (id fieldID) ones() uint64 { return ^uint64(0) >> (64 - 8*id.bytes()) }

// String names the field by class and number.
func (id fieldID) String() string {
	return fmt.Sprintf("field %d of class %#x", id>>9&0x7f, uint32(id>>16))
}

// matchField ties a field on the wire to one of flow.Match. No value is wider than 64 bits; all are in network order,
// right-aligned. A mask of zero means that the match does not ask for the field.
type matchField struct {
	id  fieldID
	get func(*flow.Match) (value, mask uint64)
	set func(m *flow.Match, value, mask uint64) error
}

var errMask = errors.New("mask that meshnet never writes")

// matchFields is in the order of encoding, which is Open vSwitch's own: a field comes after those it depends on.
var matchFields = [...]matchField{
	exact(oxmInPort, func(m *flow.Match) *uint32 { return &m.InPort }),
	mac(oxmEthSrc, func(m *flow.Match) (v, mask *[6]byte) {
		return (*[6]byte)(&m.EthSrc.Value), (*[6]byte)(&m.EthSrc.Mask)
	}),
	mac(oxmEthDst, func(m *flow.Match) (v, mask *[6]byte) {
		return (*[6]byte)(&m.EthDst.Value), (*[6]byte)(&m.EthDst.Mask)
	}),
	exact(oxmEthType, func(m *flow.Match) *uint16 { return &m.EthType }),
	prefix(oxmIPv4Src, func(m *flow.Match) *netip.Prefix { return &m.IPSrc }),
	prefix(oxmIPv4Dst, func(m *flow.Match) *netip.Prefix { return &m.IPDst }),
	exact(oxmIPProto, func(m *flow.Match) *uint8 { return &m.IPProto }),
	port(oxmTCPSrc, flow.ProtoTCP, func(m *flow.Match) *flow.Masked[uint16] { return &m.TPSrc }),
	port(oxmTCPDst, flow.ProtoTCP, func(m *flow.Match) *flow.Masked[uint16] { return &m.TPDst }),
	port(oxmUDPSrc, flow.ProtoUDP, func(m *flow.Match) *flow.Masked[uint16] { return &m.TPSrc }),
	port(oxmUDPDst, flow.ProtoUDP, func(m *flow.Match) *flow.Masked[uint16] { return &m.TPDst }),
	masked(oxmICMPType, func(m *flow.Match) *flow.Masked[uint8] { return &m.ICMPType }),
	masked(oxmICMPCode, func(m *flow.Match) *flow.Masked[uint8] { return &m.ICMPCode }),
	exact(oxmARPOp, func(m *flow.Match) *uint16 { return &m.ARPOp }),
	prefix(oxmARPSPA, func(m *flow.Match) *netip.Prefix { return &m.ARPSPA }),
	prefix(oxmARPTPA, func(m *flow.Match) *netip.Prefix { return &m.ARPTPA }),
	mac(oxmARPSHA, func(m *flow.Match) (v, mask *[6]byte) {
		return (*[6]byte)(&m.ARPSHA.Value), (*[6]byte)(&m.ARPSHA.Mask)
	}),
	mac(oxmARPTHA, func(m *flow.Match) (v, mask *[6]byte) {
		return (*[6]byte)(&m.ARPTHA.Value), (*[6]byte)(&m.ARPTHA.Mask)
	}),
	masked(oxmTunID, func(m *flow.Match) *flow.Masked[uint64] { return &m.TunID }),
	masked(oxmMetadata, func(m *flow.Match) *flow.Masked[uint64] { return &m.Metadata }),
}

// exact is a field whose zero value means any, so that zero itself cannot be asked for.
func exact[T uint8 | uint16 | uint32](id fieldID, at func(*flow.Match) *T) matchField {
	return matchField{
		id: id,
		get: func(m *flow.Match) (uint64, uint64) {
			if *at(m) == 0 {
				return 0, 0
			}
			return uint64(*at(m)), id.ones()
		},
		set: func(m *flow.Match, value, mask uint64) error {
			if mask != id.ones() || value == 0 {
				return errMask
			}
			*at(m) = T(value)
			return nil
		},
	}
}

func masked[T uint8 | uint16 | uint64](id fieldID, at func(*flow.Match) *flow.Masked[T]) matchField {
	return matchField{
		id: id,
		get: func(m *flow.Match) (uint64, uint64) {
			return uint64(at(m).Value), uint64(at(m).Mask)
		},
		set: func(m *flow.Match, value, mask uint64) error {
			*at(m) = flow.Masked[T]{Value: T(value), Mask: T(mask)}
			return nil
		},
	}
}

func mac(id fieldID, at func(*flow.Match) (value, mask *[6]byte)) matchField {
	return matchField{
		id: id,
		get: func(m *flow.Match) (uint64, uint64) {
			value, mask := at(m)
			return fromMAC(*value), fromMAC(*mask)
		},
		set: func(m *flow.Match, value, mask uint64) error {
			v, ma := at(m)
			*v, *ma = toMAC(value), toMAC(mask)
			return nil
		},
	}
}

// prefix is an IPv4 address whose mask is a prefix.
func prefix(id fieldID, at func(*flow.Match) *netip.Prefix) matchField {
	return matchField{
		id: id,
		get: func(m *flow.Match) (uint64, uint64) {
			p := at(m)
			if p.Bits() <= 0 || !p.Addr().Is4() {
				return 0, 0
			}
			a := p.Addr().As4()
			return uint64(binary.BigEndian.Uint32(a[:])), uint64(^uint32(0) << (32 - p.Bits()))
		},
		set: func(m *flow.Match, value, mask uint64) error {
			n := bits.LeadingZeros32(^uint32(mask))
			if uint32(mask) != uint32(uint64(^uint32(0))<<(32-n)) {
				return errMask
			}
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], uint32(value))
			*at(m) = netip.PrefixFrom(netip.AddrFrom4(a), n)
			return nil
		},
	}
}

// port is a port of one transport protocol.
func port(id fieldID, proto uint8, at func(*flow.Match) *flow.Masked[uint16]) matchField {
	f := masked(id, at)
	return matchField{
		id: id,
		get: func(m *flow.Match) (uint64, uint64) {
			if m.IPProto != proto {
				return 0, 0
			}
			return f.get(m)
		},
		set: func(m *flow.Match, value, mask uint64) error {
			if m.IPProto != proto {
				return errors.New("port without its protocol")
			}
			return f.set(m, value, mask)
		},
	}
}

// checkMatch refuses what a switch would not be told about at all, so that no flow matches more than it says.
func checkMatch(m *flow.Match) error {
	if (!m.TPSrc.Any() || !m.TPDst.Any()) && m.IPProto != flow.ProtoTCP && m.IPProto != flow.ProtoUDP {
		return fmt.Errorf("match on a port of protocol %d: only TCP and UDP have ports", m.IPProto)
	}
	for _, p := range []netip.Prefix{m.IPSrc, m.IPDst, m.ARPSPA, m.ARPTPA} {
		if p.IsValid() && !p.Addr().Is4() {
			return fmt.Errorf("match on %v: not an IPv4 prefix", p)
		}
	}
	return nil
}

// appendMatch appends a match with its header and padding.
func appendMatch(b []byte, m *flow.Match) ([]byte, error) {
	if err := checkMatch(m); err != nil {
		return b, err
	}
	start := len(b)
	b = appendRawMatch(b, nil)[:start+4] // without the padding of an empty one
	for i := range matchFields {
		f := &matchFields[i]
		value, mask := f.get(m)
		if value&^mask != 0 {
			return b, fmt.Errorf("match on %v: value %#x has bits outside its mask %#x", f.id, value, mask)
		}
		switch mask {
		case 0:
		case f.id.ones():
			b = appendField(b, f.id, value)
		default:
			b = binary.BigEndian.AppendUint32(b, uint32(f.id|hasMask)+uint32(f.id.bytes()))
			b = appendNumber(b, value, f.id.bytes())
			b = appendNumber(b, mask, f.id.bytes())
		}
	}
	n := len(b) - start
	binary.BigEndian.PutUint16(b[start+2:], uint16(n))
	return appendZeros(b, pad8(n)), nil
}

// appendRawMatch appends the encoded fields of a match with header and padding.
func appendRawMatch(b, fields []byte) []byte {
	const kindOXM = 1
	n := 4 + len(fields)
	b = binary.BigEndian.AppendUint16(b, kindOXM)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, fields...)
	return appendZeros(b, pad8(n))
}

// takeMatch returns the encoded fields of the match at the front of r, which are those of r itself.
func takeMatch(r *reader) []byte {
	kind, n := r.u16(), int(r.u16())
	if r.err == nil && (kind != 1 || n < 4) {
		r.err = fmt.Errorf("match of kind %d and %d bytes", kind, n)
	}
	fields := r.take(n - 4)
	r.skip(pad8(n))
	return fields
}

// decodeMatch reads encoded fields. Its error means: not a match that this package would write.
func decodeMatch(b []byte) (flow.Match, error) {
	var m flow.Match
	var seen uint64
	r := &reader{b: b}
	for len(r.b) > 0 {
		raw := fieldID(r.u32())
		id, value, mask := raw, uint64(0), uint64(0)
		if raw&hasMask != 0 {
			id = raw&^(hasMask|0xff) | fieldID(raw.bytes()/2)
		}
		i := matchFieldIndex(id)
		if r.err != nil || i < 0 || raw&hasMask != 0 && raw.bytes() != 2*id.bytes() {
			return flow.Match{}, fmt.Errorf("match on %v, which meshnet never writes", raw)
		}
		value, mask = readNumber(r, id.bytes()), id.ones()
		if raw&hasMask != 0 {
			mask = readNumber(r, id.bytes())
		}
		if r.err != nil {
			return flow.Match{}, fmt.Errorf("match on %v: %w", id, r.err)
		}
		if seen&(1<<i) != 0 || mask == 0 || value&^mask != 0 {
			return flow.Match{}, fmt.Errorf("match on %v: %w", id, errMask)
		}
		seen |= 1 << i
		if err := matchFields[i].set(&m, value, mask); err != nil {
			return flow.Match{}, fmt.Errorf("match on %v: %w", id, err)
		}
	}
	return m, nil
}

func matchFieldIndex(id fieldID) int {
	for i := range matchFields {
		if matchFields[i].id == id {
			return i
		}
	}
	return -1
}

// appendField appends a field with its whole value.
func appendField(b []byte, id fieldID, value uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(id))
	return appendNumber(b, value, id.bytes())
}

func appendNumber(b []byte, v uint64, n int) []byte {
	var buf [8]byte
	binary.BigEndian.PutUint64(buf[:], v)
	return append(b, buf[8-n:]...)
}

// readNumber reads n bytes, at most 8.
func readNumber(r *reader, n int) uint64 {
	var buf [8]byte
	copy(buf[8-n:], r.take(n))
	return binary.BigEndian.Uint64(buf[:])
}

func fromMAC(m [6]byte) uint64 {
	return uint64(binary.BigEndian.Uint16(m[:]))<<32 | uint64(binary.BigEndian.Uint32(m[2:]))
}

func toMAC(v uint64) (m [6]byte) {
	binary.BigEndian.PutUint16(m[:], uint16(v>>32))
	binary.BigEndian.PutUint32(m[2:], uint32(v))
	return m
}
