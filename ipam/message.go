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
	msgMeet                           // store that I exist
	msgMet                            // stored, synced
	msgInquire                        // these nodes were given up: store that, and tell what you know of these ranges
	msgTestify                        // stored, synced; and this is all I know
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
	epoch   crdt.Epoch // msgAsk: the asker's; msgMeet, msgInquire: the sender's; repeated in msgMet
	born    crdt.Epoch // msgAsk: since when its log is whole
	urgent  bool       // msgAsk: a container waits
	bits    uint8      // msgAsk: of the block wished for
	exact   netip.Addr // msgAsk: this address alone; invalid: any
	why     refusal    // msgRefuse
	text    string     // msgRefuse: the container
	block   state.Block
	held    bool           // msgAsk: a container of the asker has the wanted address
	ranges  []netip.Prefix // msgInquire
	losses  []state.Forget // msgInquire, msgTestify: by node
	met     []known        // msgTestify: who exists, by node
	records []state.Block  // msgTestify: of any node, of these ranges
	past    []bool         // msgTestify, of each record: of a life that was given up
	highs   []high         // msgTestify: that the sender held
}

// known is a node and the latest epoch in which it is known.
type known struct {
	node  state.NodeID
	epoch crdt.Epoch
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
		switch {
		case !m.exact.IsValid():
			w.byte(0)
		case !m.held:
			w.byte(1)
			w.addr(number(m.exact))
		default:
			w.byte(2)
			w.addr(number(m.exact))
		}
	case msgMeet, msgMet:
		w.uvar(uint64(m.epoch))
	case msgInquire:
		m.encodeInquiry(&w)
	case msgTestify:
		m.encodeTestimony(&w)
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

func (m *message) encodeInquiry(w *writer) {
	w.uvar(m.seq)
	w.uvar(uint64(m.epoch))
	w.losses(m.losses)
	w.uvar(uint64(len(m.ranges)))
	for _, p := range m.ranges {
		w.prefix(p)
	}
}

func (m *message) encodeTestimony(w *writer) {
	w.uvar(m.seq)
	w.losses(m.losses)
	w.uvar(uint64(len(m.met)))
	for _, k := range m.met {
		w.u64(uint64(k.node))
		w.uvar(uint64(k.epoch))
	}
	w.uvar(uint64(len(m.records)))
	for i := range m.records {
		w.u64(uint64(m.records[i].Node))
		w.flag(m.past[i])
		w.block(&m.records[i])
	}
	w.uvar(uint64(len(m.highs)))
	for _, h := range m.highs {
		w.prefix(h.prefix)
		w.root(h.root)
		w.uvar(h.ver)
	}
}

func (w *writer) losses(ls []state.Forget) {
	w.uvar(uint64(len(ls)))
	for _, l := range ls {
		w.u64(uint64(l.Node))
		w.uvar(uint64(l.Epoch))
		w.u64(uint64(l.Heir))
	}
}

func (r *reader) losses() (ls []state.Forget) {
	for range r.length() {
		l := state.Forget{Node: r.node(), Epoch: crdt.Epoch(r.uvar()), Heir: r.node()}
		if r.err != nil || l.Node == 0 || l.Epoch == 0 {
			r.fail("loss of no node")
			break
		}
		ls = append(ls, l)
	}
	return ls
}

func (m *message) decodeInquiry(in *reader) {
	m.seq = in.uvar()
	m.epoch = crdt.Epoch(in.uvar())
	m.losses = in.losses()
	for range in.length() {
		if in.err != nil {
			break
		}
		m.ranges = append(m.ranges, in.prefix())
	}
}

func (m *message) decodeTestimony(in *reader) {
	m.seq = in.uvar()
	m.losses = in.losses()
	for range in.length() {
		if in.err != nil {
			break
		}
		m.met = append(m.met, known{in.node(), crdt.Epoch(in.uvar())})
	}
	for range in.length() {
		if in.err != nil {
			break
		}
		node, past := in.node(), in.flag()
		m.past = append(m.past, past)
		b := in.block()
		b.Node = node
		m.records = append(m.records, b)
	}
	for range in.length() {
		if in.err != nil {
			break
		}
		m.highs = append(m.highs, high{in.prefix(), in.root(), in.uvar()})
	}
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
		if exact := in.byte(); exact != 0 {
			m.exact, m.held = address(in.addr()), exact == 2
		}
		if m.bits > 32 {
			in.fail("block length above 32")
		}
	case msgMeet, msgMet:
		m.epoch = crdt.Epoch(in.uvar())
	case msgInquire:
		m.decodeInquiry(&in)
	case msgTestify:
		m.decodeTestimony(&in)
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
