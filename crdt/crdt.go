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

// Delta is a change to [Shared]: the dots it adds with their entries and the dots it has seen.
// Immutable.
type Delta struct{ todo struct{} }

// Patch brings one replica's map from a head to another: the live ops beyond the old head and which
// seqs up to it still live, or which of them were removed. Immutable.
type Patch struct{ todo struct{} }
