package crdt

import (
	"fmt"
	"strconv"
)

// Node names a replica: 64 random bits minted with its state directory. Zero is nobody.
type Node uint64

// String returns the node as 16 hexadecimal digits, the form people and JSON see.
func (n Node) String() string { return fmt.Sprintf("%016x", uint64(n)) }

// ParseNode is the inverse of [Node.String].
func ParseNode(s string) (Node, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("node id %q: want 16 hexadecimal digits", s)
	}
	return Node(n), nil
}

// Epoch counts the lives of one replica's map. It starts at 1; a higher epoch replaces a lower one whole.
type Epoch uint32

// Next returns a later epoch. chance is random: two lives that began from one copy of a disk then write
// in different epochs, and who holds the one hears of the other.
func (e Epoch) Next(chance uint16) Epoch {
	if next := uint64(e) + 1 + uint64(chance); next < 1<<32 {
		return Epoch(next)
	}
	return 1<<32 - 1
}

// Seq numbers the ops of one replica in one epoch, from 1, without gaps at the writer.
type Seq uint64

// Op is one write of one replica to its own map. It is immutable once made: holders may share its
// slices but never write to them, and a relay passes it on with the fields it does not know (Ext).
type Op struct {
	Node  Node
	Epoch Epoch
	Seq   Seq
	// Closes lists the seqs this op makes superfluous: the previous write of the same key and, if
	// that was never sent, those it closed in turn. In ascending order.
	Closes []Seq
	// Whole is how many ops, from seq 1, are the map as it stood when the epoch began. Readers go
	// on showing the epoch before until they hold them all. Zero in epoch 1.
	Whole Seq
	Key   []byte
	// Value nil: the key is removed. An empty value is a value.
	Value []byte
	// Ext is the encoded fields of a newer version, kept and relayed as received.
	Ext []byte
}

// Head is how far one replica's map is known: every seq up to Seq of Epoch.
type Head struct {
	Node  Node
	Epoch Epoch
	Seq   Seq
}

// Actor names a writer of [Shared]: 64 random bits, minted anew after any doubt about what an
// earlier actor of the same replica has sent.
type Actor uint64

// Dot names one add to [Shared].
type Dot struct {
	Actor Actor
	N     uint64
}

// Span is the seqs, or the dots of one actor, From to To, both included.
type Span struct{ From, To uint64 }

// Entry is one add to [Shared] that lives.
type Entry struct {
	Dot     Dot
	Key     []byte
	Value   []byte
	Lamport uint64 // with Created and Dot it orders the values of one key: the lowest is read
	Created int64
	// Ext is the encoded fields of a newer version, kept and relayed as received.
	Ext []byte
}

// Seen is a set of dots of one actor: ascending spans that do not touch.
type Seen struct {
	Actor Actor
	Spans []Span
}

// Delta is a change to [Shared]: the entries it adds and the dots it has seen. An entry whose dot a
// delta has seen and does not hold was removed. The dots of its own entries are seen whether Seen
// names them or not. Immutable.
type Delta struct {
	Entries []Entry // in the order of (key, dot)
	Seen    []Seen  // in the order of actors
}

// Empty reports whether the delta says nothing.
func (d Delta) Empty() bool { return len(d.Entries) == 0 && len(d.Seen) == 0 }

// Patch brings one replica's map, in one epoch, from a head to another. Its sender knows every seq
// up to Head and in Cloud. Of those beyond From the ops of Ops and Needs live; of those up to From
// the ones in Dead ceased to live since or, with Listed, all but the ones in Live. It takes effect
// on a replica that is at From or beyond and holds the ops that Needs names; on others only Ops do.
// Immutable.
type Patch struct {
	Node   Node
	Epoch  Epoch
	Whole  Seq // see [Op]
	From   Seq
	Head   Seq
	Cloud  []Span
	Ops    []Op  // ascending; removals only beyond Head; without Closes
	Needs  []Seq // ascending: ops that live and are sent beside the patch
	Listed bool
	Dead   []Seq // ascending
	Live   []Seq // ascending
}
