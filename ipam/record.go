package ipam

import (
	"fmt"
	"net/netip"

	"meshnet/crdt"
	"meshnet/state"
)

// entryKind tells what an entry of a record says. Numbers are never given a new meaning.
type entryKind uint8

const (
	entBorn    entryKind = iota + 1 // the log begins, in this epoch
	entMet                          // a node exists
	entPut                          // a block record of this node is so from now on
	entRemove                       // a block record of this node is gone
	entAlloc                        // an endpoint has an address
	entFree                         // and gave it back
	entWitness                      // another node's block was seen
	entDrop                         // a network is gone
)

// entry is one thing that a step made so. What its kind needs is set.
type entry struct {
	kind     entryKind
	epoch    crdt.Epoch       // entBorn
	node     state.NodeID     // entMet, entWitness
	block    state.Block      // entPut, entWitness
	network  state.NetworkID  // entRemove, entFree, entDrop
	prefix   netip.Prefix     // entRemove
	endpoint state.Endpoint   // entAlloc
	id       state.EndpointID // entFree
	alloc    uint64           // entFree
}

// encodeRecord makes one record of all that a step made so, so that a log holds all of it or none.
func encodeRecord(es []entry) Record {
	w := writer{version}
	for i := range es {
		b := es[i].encode()
		w.uvar(uint64(len(b)))
		w = append(w, b...)
	}
	return Record(w)
}

func (e *entry) encode() []byte {
	w := writer{byte(e.kind)}
	switch e.kind {
	case entBorn:
		w.uvar(uint64(e.epoch))
	case entMet:
		w.u64(uint64(e.node))
	case entPut:
		w.block(&e.block)
	case entRemove:
		w.u64(uint64(e.network))
		w.prefix(e.prefix)
	case entAlloc:
		w.endpoint(&e.endpoint)
	case entFree:
		w.u64(uint64(e.network))
		w.u64(uint64(e.id))
		w.uvar(e.alloc)
	case entWitness:
		w.u64(uint64(e.node))
		w.block(&e.block)
	case entDrop:
		w.u64(uint64(e.network))
	}
	return w
}

// decodeRecord returns the entries of a record. Those of kinds it does not know are left out.
func decodeRecord(b Record) ([]entry, error) {
	in := reader{b: b}
	if in.byte() == 0 {
		in.fail("no version")
	}
	var es []entry
	for len(in.b) > 0 && in.err == nil {
		part := reader{b: in.take(uint64(in.length()))}
		e, known := decodeEntry(&part)
		if part.err != nil {
			return nil, fmt.Errorf("address record, entry of kind %d: %w", e.kind, part.err)
		}
		if known {
			es = append(es, e)
		}
	}
	if in.err != nil {
		return nil, fmt.Errorf("address record: %w", in.err)
	}
	return es, nil
}

func decodeEntry(in *reader) (e entry, known bool) {
	e = entry{kind: entryKind(in.byte())}
	switch e.kind {
	case entBorn:
		e.epoch = crdt.Epoch(in.uvar())
	case entMet:
		e.node = in.node()
	case entPut:
		e.block = in.block()
	case entRemove:
		e.network = state.NetworkID(in.u64())
		e.prefix = in.prefix()
	case entAlloc:
		e.endpoint = in.endpoint()
	case entFree:
		e.network = state.NetworkID(in.u64())
		e.id = state.EndpointID(in.u64())
		e.alloc = in.uvar()
	case entWitness:
		e.node = in.node()
		e.block = in.block()
	case entDrop:
		e.network = state.NetworkID(in.u64())
	default:
		return e, false
	}
	return e, true
}
