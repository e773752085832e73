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
	entForget                       // a node was given up; if it is this one, its blocks with it
	entEstate                       // what a node that was given up had
	entSettled                      // a part of that has a later owner
	entMetBy                        // another node has stored that this one exists
)

// entry is one thing that a step made so. What its kind needs is set.
type entry struct {
	kind     entryKind
	epoch    crdt.Epoch       // entBorn, entForget, entMet: 0 in a record of an early version
	node     state.NodeID     // entMet, entWitness, entForget, entEstate, entSettled, entMetBy
	heir     state.NodeID     // entForget: named by a person; 0: none
	name     string           // entForget: what people called it
	block    state.Block      // entPut, entWitness, entEstate
	network  state.NetworkID  // entRemove, entFree, entDrop, entSettled
	prefix   netip.Prefix     // entRemove, entSettled
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
		if e.epoch != 0 {
			w.uvar(uint64(e.epoch))
		}
	case entMetBy:
		w.u64(uint64(e.node))
	case entForget:
		w.u64(uint64(e.node))
		w.uvar(uint64(e.epoch))
		w.u64(uint64(e.heir))
		w.text(e.name)
	case entSettled:
		w.u64(uint64(e.network))
		w.u64(uint64(e.node))
		w.prefix(e.prefix)
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
	case entWitness, entEstate:
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
		if len(in.b) > 0 {
			e.epoch = crdt.Epoch(in.uvar())
		}
	case entMetBy:
		e.node = in.node()
	case entForget:
		e.node = in.node()
		e.epoch = crdt.Epoch(in.uvar())
		e.heir = in.node()
		e.name = in.text()
	case entSettled:
		e.network = state.NetworkID(in.u64())
		e.node = in.node()
		e.prefix = in.prefix()
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
	case entWitness, entEstate:
		e.node = in.node()
		e.block = in.block()
		e.block.Node = e.node
	case entDrop:
		e.network = state.NetworkID(in.u64())
	default:
		return e, false
	}
	return e, true
}
