// Command gossip measures how fast one write on one node is seen on every other node, what a write
// and idleness cost, and how fast a mesh forms: meshnet beside weaveworks/mesh, Swarm's networkdb,
// serf, and plain uses of memberlist.
//
// Each cluster is a number of nodes in one process of its own, on 127.1.0.1 and up, in a network
// namespace of its own, so that the counters of its loopback device count that cluster and nothing
// else. Garbage is collected seldom, in every system: see gcPercent. Systems are measured in turn, pass
// after pass, so that what the machine does besides hits all alike; what counts are the ratios within a
// pass. It is a module of its own: the product does not need its peers.
//
// A write is one record: meshnet changes an endpoint's, written to its log first, and it is seen when a
// node's View has it; networkdb creates an entry of a table; serf fires a user event; the others add a
// key to a set that all hold. "meshnet attach" is all of an attach beside: address, log, records.
package main
