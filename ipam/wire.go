package ipam

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"meshnet/crdt"
	"meshnet/state"
)

// version begins every record and message. Later versions only add fields at the end, which
// earlier ones skip, and kinds, which earlier ones ignore.
const version = 1

// lineageMax bounds how many grantors a block remembers: the latest.
const lineageMax = 32

var errShort = errors.New("too short")

// writer appends fields.
type writer []byte

func (w *writer) byte(b byte)    { *w = append(*w, b) }
func (w *writer) u64(n uint64)   { *w = binary.BigEndian.AppendUint64(*w, n) }
func (w *writer) uvar(n uint64)  { *w = binary.AppendUvarint(*w, n) }
func (w *writer) varint(n int64) { *w = binary.AppendVarint(*w, n) }
func (w *writer) text(s string)  { w.uvar(uint64(len(s))); *w = append(*w, s...) }
func (w *writer) addr(n uint32)  { *w = binary.BigEndian.AppendUint32(*w, n) }
func (w *writer) root(r state.Root) {
	w.u64(uint64(r.Creator))
	w.varint(r.At)
}

func (w *writer) flag(b bool) {
	if b {
		w.byte(1)
	} else {
		w.byte(0)
	}
}

func (w *writer) prefix(p netip.Prefix) {
	w.addr(number(p.Addr()))
	w.byte(byte(p.Bits()))
}

// block appends all of a block but its writer.
func (w *writer) block(b *state.Block) {
	w.u64(uint64(b.Network))
	w.prefix(b.Prefix)
	w.root(b.Root)
	w.flag(b.Sealed)
	w.uvar(b.Ver)
	w.byte(byte(b.Kind))
	w.byte(byte(b.State))
	w.u64(uint64(b.To))
	w.uvar(uint64(b.ToEpoch))
	w.uvar(uint64(len(b.Lineage)))
	for _, n := range b.Lineage {
		w.u64(uint64(n))
	}
}

// endpoint appends what an allocation fixes of an endpoint.
func (w *writer) endpoint(e *state.Endpoint) {
	w.u64(uint64(e.ID))
	w.u64(uint64(e.Network))
	w.text(e.Container)
	w.addr(number(e.Addr))
	*w = append(*w, e.MAC[:]...)
	w.text(e.IfName)
	w.uvar(uint64(len(e.Names)))
	for _, n := range e.Names {
		w.text(n)
	}
	w.uvar(e.Alloc)
	w.varint(e.At)
}

// reader takes fields off the front; after the first that is not there all are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.b)) {
		r.err = errShort
		r.b = nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) addr() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uvar() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.err = errShort
		return 0
	}
	r.take(uint64(n))
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.err = errShort
		return 0
	}
	r.take(uint64(n))
	return v
}

// length reads how many items of at least one byte follow.
func (r *reader) length() int {
	n := r.uvar()
	if n > uint64(len(r.b)) {
		r.err = errShort
		return 0
	}
	return int(n)
}

func (r *reader) text() string { return string(r.take(uint64(r.length()))) }

func (r *reader) flag() bool { return r.byte() != 0 }

func (r *reader) root() state.Root {
	return state.Root{Creator: state.NodeID(r.u64()), At: r.varint()}
}

func (r *reader) node() state.NodeID { return state.NodeID(r.u64()) }

func (r *reader) prefix() netip.Prefix {
	a, bits := r.addr(), r.byte()
	if bits > 32 {
		r.fail("prefix length above 32")
		return netip.Prefix{}
	}
	return netip.PrefixFrom(address(a), int(bits)).Masked()
}

func (r *reader) fail(why string) {
	if r.err == nil {
		r.err = errors.New(why)
	}
}

func (r *reader) block() state.Block {
	b := state.Block{
		Network: state.NetworkID(r.u64()),
		Prefix:  r.prefix(),
		Root:    r.root(),
		Sealed:  r.flag(),
		Ver:     r.uvar(),
		Kind:    state.BlockKind(r.byte()),
		State:   state.BlockState(r.byte()),
		To:      r.node(),
		ToEpoch: crdt.Epoch(r.uvar()),
	}
	if b.Kind > state.Offer || b.State > state.Pending {
		r.fail("block of an unknown kind")
	}
	n := r.length()
	if n > lineageMax {
		r.fail("lineage too long")
	}
	for range n {
		if r.err != nil {
			break
		}
		b.Lineage = append(b.Lineage, r.node())
	}
	return b
}

func (r *reader) endpoint() state.Endpoint {
	e := state.Endpoint{
		ID:        state.EndpointID(r.u64()),
		Network:   state.NetworkID(r.u64()),
		Container: r.text(),
		Addr:      address(r.addr()),
	}
	copy(e.MAC[:], r.take(6))
	e.IfName = r.text()
	for range r.length() {
		if r.err != nil {
			break
		}
		e.Names = append(e.Names, r.text())
	}
	e.Alloc = r.uvar()
	e.At = r.varint()
	return e
}
