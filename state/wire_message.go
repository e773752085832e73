package state

import (
	"encoding/binary"
	"slices"

	"meshnet/crdt"
)

// A message is a version byte and fields: 1 ops, 2 patches, 3 shared deltas, each repeated.
const messageFields = "rrr"

const (
	numOp = 1 + iota
	numPatch
	numDelta
)

// Encode cuts what is to be told into messages of at most limit bytes each, an op that is larger
// alone in its own. Shared deltas and patches are split likewise, so that each message alone does no
// harm when others are lost.
func Encode(o Out, limit int) [][]byte {
	w := writer{limit: limit}
	for i := range o.Ops {
		w.put(numOp, encodeOp(&o.Ops[i]))
	}
	for i := range o.Patches {
		w.patch(o.Patches[i])
	}
	for _, d := range o.Shared {
		w.delta(d)
	}
	return w.end()
}

// writer fills messages.
type writer struct {
	limit int
	done  [][]byte
	parts [numDelta + 1][][]byte // of the message being filled, by field
	size  int
}

// overhead is the version byte; fieldMax is the tag of a field and its length.
const (
	overhead = 1
	fieldMax = 1 + binary.MaxVarintLen32
)

// put adds one field to the message being filled, or to the next.
func (w *writer) put(num int, b []byte) {
	n := fieldMax + len(b)
	if w.size > 0 && overhead+w.size+n > w.limit {
		w.flush()
	}
	w.parts[num] = append(w.parts[num], b)
	w.size += n
}

func (w *writer) flush() {
	b := make([]byte, 1, overhead+w.size)
	b[0] = version
	for num, parts := range w.parts {
		for _, p := range parts {
			b = appendField(b, num, p)
		}
	}
	w.done = append(w.done, b)
	w.parts, w.size = [numDelta + 1][][]byte{}, 0
}

func (w *writer) end() [][]byte {
	if w.size > 0 {
		w.flush()
	}
	return w.done
}

func (w *writer) fits(b []byte) bool { return overhead+fieldMax+len(b) <= w.limit }

// patch writes a patch whole or, where it is too long, its ops apart and then the rest, which takes
// effect only where the ops came.
func (w *writer) patch(p crdt.Patch) {
	b := encodePatch(&p)
	if w.fits(b) || len(p.Ops) == 0 {
		w.put(numPatch, b)
		return
	}
	for _, op := range p.Ops {
		op.Whole = p.Whole
		w.put(numOp, encodeOp(&op))
	}
	p = p.Apart()
	w.put(numPatch, encodePatch(&p))
}

// delta writes a delta whole or, where it is too long, as deltas of one entry with its dot, and of
// the spans that were removed. Joined in any order they are the delta.
func (w *writer) delta(d crdt.Delta) {
	if b := encodeDelta(d); w.fits(b) {
		w.put(numDelta, b)
		return
	}
	for _, part := range d.Split() {
		w.put(numDelta, encodeDelta(part))
	}
}

const opFields = "uuububp"

// encodeOp writes an op, without what is zero: the fields that a patch says for all of its ops.
func encodeOp(op *crdt.Op) []byte {
	b := make([]byte, 0, 40+len(op.Key)+len(op.Value)+len(op.Ext))
	b = appendUint(b, 1, uint64(op.Node))
	b = appendUint(b, 2, uint64(op.Epoch))
	b = appendUint(b, 3, uint64(op.Seq))
	b = appendPacked(b, 4, op.Closes)
	b = appendUint(b, 5, uint64(op.Whole))
	b = appendBytes(b, 6, op.Key)
	if op.Value != nil {
		b = appendField(b, 7, op.Value)
	}
	return append(b, op.Ext...)
}

// decodeOp copies what it keeps.
func decodeOp(b []byte) (op crdt.Op, err error) {
	ext, err := scan(b, opFields, func(f field) (err error) {
		switch f.num {
		case 1:
			op.Node = crdt.Node(f.uint)
		case 2:
			return small(&op.Epoch, f)
		case 3:
			op.Seq = crdt.Seq(f.uint)
		case 4:
			op.Closes, err = readPacked[crdt.Seq](f)
		case 5:
			op.Whole = crdt.Seq(f.uint)
		case 6:
			op.Key = f.bytes
		case 7:
			op.Value = f.bytes
		}
		return err
	})
	if err != nil || op.Seq == 0 || len(op.Key) == 0 {
		return crdt.Op{}, errWire
	}
	kept := make([]byte, 0, len(op.Key)+len(op.Value)+len(ext))
	kept, op.Key = keep(kept, op.Key)
	if op.Value != nil {
		kept, op.Value = keep(kept, op.Value)
	}
	if ext != nil {
		_, op.Ext = keep(kept, ext)
	}
	return op, nil
}

// keep appends a part to a slice that has room for it and returns both.
func keep(to, part []byte) (all, kept []byte) {
	n := len(to)
	to = append(to, part...)
	return to, to[n:len(to):len(to)]
}

const patchFields = "uuuuubrbubb"

func encodePatch(p *crdt.Patch) []byte {
	b := appendUint(nil, 1, uint64(p.Node))
	b = appendUint(b, 2, uint64(p.Epoch))
	b = appendUint(b, 3, uint64(p.Whole))
	b = appendUint(b, 4, uint64(p.From))
	b = appendUint(b, 5, uint64(p.Head))
	b = appendBytes(b, 6, packSpans(p.Cloud))
	for i := range p.Ops {
		op := p.Ops[i]
		op.Node, op.Epoch, op.Whole = 0, 0, 0
		b = appendField(b, 7, encodeOp(&op))
	}
	b = appendPacked(b, 8, p.Needs)
	b = appendBool(b, 9, p.Listed)
	b = appendPacked(b, 10, p.Dead)
	return appendPacked(b, 11, p.Live)
}

func decodePatch(b []byte) (p crdt.Patch, err error) {
	_, err = scan(b, patchFields, func(f field) (err error) {
		switch f.num {
		case 1:
			p.Node = crdt.Node(f.uint)
		case 2:
			return small(&p.Epoch, f)
		case 3:
			p.Whole = crdt.Seq(f.uint)
		case 4:
			p.From = crdt.Seq(f.uint)
		case 5:
			p.Head = crdt.Seq(f.uint)
		case 6:
			p.Cloud, err = readSpans(f.bytes)
		case 7:
			var op crdt.Op
			op, err = decodeOp(f.bytes)
			if op.Node != 0 || op.Epoch != 0 || op.Whole != 0 {
				return errWire
			}
			op.Node, op.Epoch, op.Whole = p.Node, p.Epoch, p.Whole
			p.Ops = append(p.Ops, op)
		case 8:
			p.Needs, err = readPacked[crdt.Seq](f)
		case 9:
			return readBool(&p.Listed, f)
		case 10:
			p.Dead, err = readPacked[crdt.Seq](f)
		case 11:
			p.Live, err = readPacked[crdt.Seq](f)
		}
		return err
	})
	if err == nil && (p.Node == 0 || p.Epoch == 0) {
		err = errWire
	}
	return p, err
}

// packSpans writes, for each span, its distance from the end of the one before and its length.
func packSpans(list []crdt.Span) (b []byte) {
	var last uint64
	for _, s := range list {
		b = binary.AppendUvarint(b, s.From-last)
		b = binary.AppendUvarint(b, s.To-s.From)
		last = s.To
	}
	return b
}

func readSpans(b []byte) (list []crdt.Span, err error) {
	var last uint64
	for len(b) > 0 {
		gap, n := uvarint(b)
		if n <= 0 {
			return nil, errWire
		}
		b = b[n:]
		long, n := uvarint(b)
		if n <= 0 {
			return nil, errWire
		}
		b = b[n:]
		s := crdt.Span{From: last + gap, To: last + gap + long}
		if gap == 0 || s.From < last || s.To < s.From {
			return nil, errWire
		}
		last = s.To
		list = append(list, s)
	}
	return list, nil
}

const (
	deltaFields = "rr"
	entryFields = "uubbuu"
	seenFields  = "ub"
)

func encodeDelta(d crdt.Delta) (b []byte) {
	for i := range d.Entries {
		b = appendField(b, 1, encodeEntry(&d.Entries[i]))
	}
	for _, s := range d.Seen {
		p := appendUint(nil, 1, uint64(s.Actor))
		b = appendField(b, 2, appendBytes(p, 2, packSpans(s.Spans)))
	}
	return b
}

func encodeEntry(e *crdt.Entry) []byte {
	b := appendUint(nil, 1, uint64(e.Dot.Actor))
	b = appendUint(b, 2, e.Dot.N)
	b = appendBytes(b, 3, e.Key)
	b = appendBytes(b, 4, e.Value)
	b = appendUint(b, 5, e.Lamport)
	b = appendUint(b, 6, uint64(e.Created))
	return append(b, e.Ext...)
}

func decodeDelta(b []byte) (d crdt.Delta, err error) {
	_, err = scan(b, deltaFields, func(f field) error {
		if f.num == 1 {
			e, err := decodeEntry(f.bytes)
			d.Entries = append(d.Entries, e)
			return err
		}
		var s crdt.Seen
		_, err := scan(f.bytes, seenFields, func(f field) (err error) {
			if f.num == 1 {
				s.Actor = crdt.Actor(f.uint)
				return nil
			}
			s.Spans, err = readSpans(f.bytes)
			return err
		})
		if err == nil && (s.Actor == 0 || len(s.Spans) == 0) {
			return errWire
		}
		d.Seen = append(d.Seen, s)
		return err
	})
	return d, err
}

// decodeEntry copies what it keeps.
func decodeEntry(b []byte) (e crdt.Entry, err error) {
	ext, err := scan(b, entryFields, func(f field) error {
		switch f.num {
		case 1:
			e.Dot.Actor = crdt.Actor(f.uint)
		case 2:
			e.Dot.N = f.uint
		case 3:
			e.Key = slices.Clone(f.bytes)
		case 4:
			e.Value = slices.Clone(f.bytes)
		case 5:
			e.Lamport = f.uint
		case 6:
			e.Created = int64(f.uint)
		}
		return nil
	})
	e.Ext = slices.Clone(ext)
	if err == nil && (e.Dot.Actor == 0 || e.Dot.N == 0 || len(e.Key) == 0) {
		err = errWire
	}
	return e, err
}

// Decode is the inverse of [Encode] for one message. It copies what it keeps and allocates no more
// than a small multiple of the message. Fields of a later version at the top of the message, of a
// patch or of a delta are passed over; those of ops, entries and record values are kept.
func Decode(b []byte) (In, error) {
	var in In
	_, err := record(b, messageFields, func(f field) error {
		switch f.num {
		case numOp:
			op, err := decodeOp(f.bytes)
			if err == nil && (op.Node == 0 || op.Epoch == 0) {
				return errWire
			}
			in.Ops = append(in.Ops, op)
			return err
		case numPatch:
			p, err := decodePatch(f.bytes)
			in.Patches = append(in.Patches, p)
			return err
		default:
			d, err := decodeDelta(f.bytes)
			in.Shared = append(in.Shared, d)
			return err
		}
	})
	if err != nil {
		return In{}, err
	}
	return in, nil
}
