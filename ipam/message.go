package ipam

import (
	"fmt"
	"net/netip"

	"meshnet/crdt"
	"meshnet/state"
)

// messageKind tells what one machine says to another. Numbers are never given a new meaning.
type messageKind uint8

const (
	msgAsk     messageKind = iota + 1 // give me addresses
	msgGive                           // here: an offer that my map holds, synced
	msgRefuse                         // I cannot
	msgWitness                        // this is my block: store it
	msgStored                         // stored, synced
	msgRoot                           // you come before me: take the root
	msgWait                           // I answer; wait for me
)

// refusal tells why a request for addresses came to nothing.
type refusal uint8

const (
	refuseNone    refusal = iota // nothing free
	refuseResting                // nothing free, but some will be within the cooldown
	refuseScarce                 // too little to give ahead of need
	refuseUsed                   // the wanted address is in use, by Text
	refuseLater                  // the asker is not known yet
)

// message is one message, decoded. What a kind needs is set.
type message struct {
	kind    messageKind
	network state.NetworkID
	seq     uint64     // msgAsk, and repeated in its answers
	epoch   crdt.Epoch // msgAsk: the asker's
	born    crdt.Epoch // msgAsk: since when its log is whole
	urgent  bool       // msgAsk: a container waits
	bits    uint8      // msgAsk: of the block wished for
	exact   netip.Addr // msgAsk: this address alone; invalid: any
	why     refusal    // msgRefuse
	text    string     // msgRefuse: the container
	block   state.Block
}

func (m *message) encode() []byte {
	w := writer{version, byte(m.kind)}
	w.u64(uint64(m.network))
	switch m.kind {
	case msgAsk:
		w.uvar(m.seq)
		w.uvar(uint64(m.epoch))
		w.uvar(uint64(m.born))
		w.flag(m.urgent)
		w.byte(m.bits)
		w.flag(m.exact.IsValid())
		if m.exact.IsValid() {
			w.addr(number(m.exact))
		}
	case msgRefuse:
		w.uvar(m.seq)
		w.byte(byte(m.why))
		w.text(m.text)
	case msgGive:
		w.uvar(m.seq)
		w.block(&m.block)
	case msgWitness, msgStored:
		w.block(&m.block)
	}
	return w
}

func decodeMessage(b []byte) (message, error) {
	in := reader{b: b}
	v := in.byte()
	m := message{kind: messageKind(in.byte()), network: state.NetworkID(in.u64())}
	switch m.kind {
	case msgAsk:
		m.seq = in.uvar()
		m.epoch = crdt.Epoch(in.uvar())
		m.born = crdt.Epoch(in.uvar())
		m.urgent = in.flag()
		m.bits = in.byte()
		if in.flag() {
			m.exact = address(in.addr())
		}
		if m.bits > 32 {
			in.fail("block length above 32")
		}
	case msgRefuse:
		m.seq = in.uvar()
		m.why = refusal(in.byte())
		m.text = in.text()
	case msgGive:
		m.seq = in.uvar()
		m.block = in.block()
	case msgWitness, msgStored:
		m.block = in.block()
	case msgRoot, msgWait:
	default:
		in.fail("unknown kind")
	}
	if v == 0 {
		in.fail("no version")
	}
	if in.err != nil {
		return message{}, fmt.Errorf("address message of kind %d: %w", m.kind, in.err)
	}
	return m, nil
}
