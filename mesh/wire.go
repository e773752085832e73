package mesh

import (
	"encoding/binary"
	"errors"

	"meshnet/crdt"
	"meshnet/state"
)

// channel tells whom in a node a message is for.
type channel uint8

const (
	chanGossip channel = 1 + iota // gossip.Machine
	chanIPAM                      // ipam.Machine
	chanAck                       // how far a node's host has applied the receiver's writes
	chanAckAsk                    // send an ack
	chanAsk                       // send your digest; with a number that the answer repeats
	chanTell                      // a digest
	chanBye                       // the sender stops on purpose
	chanTwin                      // the sender has the receiver's id; where it is, as text
)

const (
	// frameVersion is the first byte of every message between nodes.
	frameVersion = 1
	frameLen     = 1 + 1 + 8
	// packetMax is the largest message that goes as a packet, in bytes.
	packetMax = 1350
)

var errFrame = errors.New("message is cut short or of another version")

// frame puts version, channel and sender before a body: memberlist does not tell who sent.
func frame(c channel, from state.NodeID, body []byte) []byte {
	b := make([]byte, 0, frameLen+len(body))
	b = append(b, frameVersion, byte(c))
	b = binary.BigEndian.AppendUint64(b, uint64(from))
	return append(b, body...)
}

func unframe(b []byte) (c channel, from state.NodeID, body []byte, err error) {
	if len(b) < frameLen || b[0] != frameVersion {
		return 0, 0, nil, errFrame
	}
	return channel(b[1]), state.NodeID(binary.BigEndian.Uint64(b[2:])), b[frameLen:], nil
}

// encodeAck: the receiver's epoch, and up to which seq its writes are on the sender's host.
func encodeAck(epoch crdt.Epoch, seq crdt.Seq) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(epoch))
	return binary.BigEndian.AppendUint64(b, uint64(seq))
}

func decodeAck(b []byte) (epoch crdt.Epoch, seq crdt.Seq, err error) {
	if len(b) < 12 {
		return 0, 0, errFrame
	}
	return crdt.Epoch(binary.BigEndian.Uint32(b)), crdt.Seq(binary.BigEndian.Uint64(b[4:])), nil
}

func encodeTell(nonce uint64, digest [16]byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, nonce), digest[:]...)
}

func decodeTell(b []byte) (nonce uint64, digest [16]byte, err error) {
	if len(b) < 24 {
		return 0, digest, errFrame
	}
	copy(digest[:], b[8:])
	return binary.BigEndian.Uint64(b), digest, nil
}

func decodeAsk(b []byte) (nonce uint64, err error) {
	if len(b) < 8 {
		return 0, errFrame
	}
	return binary.BigEndian.Uint64(b), nil
}

// nameMax is the longest human name in a node's metadata, in bytes.
const nameMax = 64

// meta is what a node says of itself to the failure detector.
type meta struct {
	id    state.NodeID
	epoch crdt.Epoch
	name  string
}

func (m meta) encode() []byte {
	b := []byte{frameVersion}
	b = binary.BigEndian.AppendUint64(b, uint64(m.id))
	b = binary.BigEndian.AppendUint32(b, uint32(m.epoch))
	b = append(b, byte(len(m.name)))
	return append(b, m.name...)
}

// decodeMeta leaves what follows the fields it knows to a later version.
func decodeMeta(b []byte) (m meta, err error) {
	if len(b) < 14 || b[0] != frameVersion || len(b) < 14+int(b[13]) || b[13] > nameMax {
		return meta{}, errFrame
	}
	return meta{
		id:    state.NodeID(binary.BigEndian.Uint64(b[1:])),
		epoch: crdt.Epoch(binary.BigEndian.Uint32(b[9:])),
		name:  string(b[14 : 14+int(b[13])]),
	}, nil
}
