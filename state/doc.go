// Package state says what the mesh has agreed on: networks, the containers on them, the nodes that
// run them and the blocks of addresses that these own.
//
// [Doc] keeps the records in two lattices of package crdt: what a node says of itself and its own
// containers in its Owned map, networks and nodes given up for good in the Shared one. [Doc.Apply]
// checks and makes changes, [Doc.Merge] takes in what others said and cannot fail. What has to be
// unique (a name, a VNI, an address) is settled when it is read: [View] is a pure function of the
// records, the same on every node that has the same ones, and shares with the view before what did
// not change. [Encode] and [Decode] are the bytes of messages; those of every version are in
// testdata/wire and stay readable.
//
// The package does no I/O, has no clock and decides no address: time and chance are in the changes
// that it is given. It does not know who is alive. A Doc belongs to one goroutine; views, networks
// and records are immutable and may be read from any.
package state
