package gossip

import (
	"encoding/binary"
	"errors"

	"meshnet/crdt"
)

const (
	// PacketMax is the largest body of a [Send] in bytes. With the sender's frame, the transport's
	// checksum, cipher and label it stays within an Ethernet frame.
	PacketMax = 1300
	// StreamMax is about the largest body of a [Stream] in bytes; a single larger op makes an
	// exception.
	StreamMax = 256 << 10

	// pushMax is what of a packet a push has for its news.
	pushMax = PacketMax - 10

	// version is the first byte of every message. Messages of another version are dropped.
	version = 1
	// bodyMax bounds what is looked at.
	bodyMax = 4 << 20
)

// kind is the second byte of a message.
type kind uint8

const (
	// kindPush carries news: whose it is, then the news.
	kindPush kind = 1 + iota
	// kindDigest carries flags and 16 bytes that are equal exactly when documents are.
	kindDigest
	// kindBuckets answers a digest that differs, where heads do not fit in a packet.
	kindBuckets
	// kindHeads says how far its sender is, in the buckets of a mask.
	kindHeads
	// kindWant asks for what a holder of these heads lacks.
	kindWant
	// kindAnswer carries what was asked for.
	kindAnswer
)

const (
	// flagReply in a digest: reply with yours also when they are equal.
	flagReply = 1 << iota
	// flagShared in a want: send the shared records too.
	flagShared
	// flagMore in an answer: there was more than fits; ask again.
	flagMore
)

// Errors of decoding; counted, never shown.
var (
	errShort   = errors.New("message is cut short")
	errOrder   = errors.New("heads are out of order")
	errVersion = errors.New("message has another version")
)

// headLen is what an encoded head takes at least.
const headLen = 8 + 1 + 1

type digestMsg struct {
	flags  byte
	digest [16]byte
}

type bucketsMsg struct {
	nodes  [32]uint64
	shared uint64
}

type headsMsg struct {
	mask   uint32
	shared uint64
	heads  []crdt.Head
}

type wantMsg struct {
	flags byte
	heads []crdt.Head
}

func open(b []byte) (kind, []byte, error) {
	if len(b) < 2 || len(b) > bodyMax {
		return 0, nil, errShort
	}
	if b[0] != version {
		return 0, nil, errVersion
	}
	return kind(b[1]), b[2:], nil
}

func encodePush(origin crdt.Node, state []byte) []byte {
	b := make([]byte, 0, 10+len(state))
	b = append(b, version, byte(kindPush))
	b = binary.BigEndian.AppendUint64(b, uint64(origin))
	return append(b, state...)
}

func decodePush(b []byte) (origin crdt.Node, state []byte, err error) {
	if len(b) < 8 {
		return 0, nil, errShort
	}
	return crdt.Node(binary.BigEndian.Uint64(b)), b[8:], nil
}

func (m digestMsg) encode() []byte {
	b := make([]byte, 0, 19)
	b = append(b, version, byte(kindDigest), m.flags)
	return append(b, m.digest[:]...)
}

func decodeDigest(b []byte) (m digestMsg, err error) {
	if len(b) < 17 {
		return m, errShort
	}
	m.flags = b[0]
	copy(m.digest[:], b[1:])
	return m, nil
}

func (m bucketsMsg) encode() []byte {
	b := make([]byte, 0, 2+33*8)
	b = append(b, version, byte(kindBuckets))
	for _, h := range m.nodes {
		b = binary.BigEndian.AppendUint64(b, h)
	}
	return binary.BigEndian.AppendUint64(b, m.shared)
}

func decodeBuckets(b []byte) (m bucketsMsg, err error) {
	if len(b) < 33*8 {
		return m, errShort
	}
	for i := range m.nodes {
		m.nodes[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	m.shared = binary.BigEndian.Uint64(b[32*8:])
	return m, nil
}

func (m headsMsg) encode() []byte {
	b := make([]byte, 0, 14+len(m.heads)*14)
	b = append(b, version, byte(kindHeads))
	b = binary.BigEndian.AppendUint32(b, m.mask)
	b = binary.BigEndian.AppendUint64(b, m.shared)
	return appendHeads(b, m.heads)
}

func decodeHeadsMsg(b []byte) (m headsMsg, err error) {
	if len(b) < 12 {
		return m, errShort
	}
	m.mask = binary.BigEndian.Uint32(b)
	m.shared = binary.BigEndian.Uint64(b[4:])
	m.heads, err = decodeHeads(b[12:])
	return m, err
}

func (m wantMsg) encode() []byte {
	b := make([]byte, 0, 3+len(m.heads)*14)
	b = append(b, version, byte(kindWant), m.flags)
	return appendHeads(b, m.heads)
}

func decodeWant(b []byte) (m wantMsg, err error) {
	if len(b) < 1 {
		return m, errShort
	}
	m.flags = b[0]
	m.heads, err = decodeHeads(b[1:])
	return m, err
}

func encodeAnswer(flags byte, state []byte) []byte {
	b := make([]byte, 0, 3+len(state))
	b = append(b, version, byte(kindAnswer), flags)
	return append(b, state...)
}

func decodeAnswer(b []byte) (flags byte, state []byte, err error) {
	if len(b) < 1 {
		return 0, nil, errShort
	}
	return b[0], b[1:], nil
}

// appendHeads writes heads, which are in ascending order of (node, epoch).
func appendHeads(b []byte, hs []crdt.Head) []byte {
	b = binary.AppendUvarint(b, uint64(len(hs)))
	for _, h := range hs {
		b = binary.BigEndian.AppendUint64(b, uint64(h.Node))
		b = binary.AppendUvarint(b, uint64(h.Epoch))
		b = binary.AppendUvarint(b, uint64(h.Seq))
	}
	return b
}

// decodeHeads reads heads and refuses any that are not in strictly ascending order. What follows them
// is left for a later version.
func decodeHeads(b []byte) ([]crdt.Head, error) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b))/headLen {
		return nil, errShort
	}
	b = b[k:]
	hs := make([]crdt.Head, 0, n)
	for range n {
		if len(b) < headLen {
			return nil, errShort
		}
		h := crdt.Head{Node: crdt.Node(binary.BigEndian.Uint64(b))}
		b = b[8:]
		e, k := binary.Uvarint(b)
		if k <= 0 || e > 1<<32-1 {
			return nil, errShort
		}
		b = b[k:]
		s, k := binary.Uvarint(b)
		if k <= 0 {
			return nil, errShort
		}
		b = b[k:]
		h.Epoch, h.Seq = crdt.Epoch(e), crdt.Seq(s)
		if len(hs) > 0 && compareHeads(hs[len(hs)-1], h) >= 0 {
			return nil, errOrder
		}
		hs = append(hs, h)
	}
	return hs, nil
}
