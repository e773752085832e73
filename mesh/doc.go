// Package mesh is a node's share in the mesh: it keeps the node's document equal with the other
// members' and carries out the wishes that change it.
//
// A [Node] knows memberlist, zeroconf and the state directory, and decides nothing about networking:
// what the document means is package state's, who may use an address is package ipam's, and what to
// tell whom is package gossip's. One goroutine owns these three and the log; what happens reaches it
// over bounded queues, and nothing is sent or answered before the log holds what it says. Failure
// detection serves membership only and never changes the document.
//
// All methods of Node may be called concurrently.
package mesh
