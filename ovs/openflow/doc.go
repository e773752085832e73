// Package openflow turns the few OpenFlow messages that meshnet needs into bytes and bytes into messages.
//
// It speaks OpenFlow 1.4 (wire version 5) as Open vSwitch 2.8 and later do without being asked: hello, echo,
// features, barrier, error, flow modification, bundle and flow statistics, the last two being all it takes to
// write a flow table in one piece and to read it back, and packet-out. 1.4 and not 1.5, because Open vSwitch changed what it
// says in a flow statistics reply of 1.5 between its releases (a new form of the counters in 2.10, registers in
// pairs, a packet type in the match), and that reply is what we compare our flows with; nothing of 1.5 is needed.
// [Append] and [Decode] are the whole of it. A match or an action is one of the closed set of package flow. What
// another hand wrote and this package cannot say in those words is no error of the dump it stands in: it
// becomes a [Foreign].
//
// The package has no connection, no state and no opinion: who sends what when is package ovs. It does not check
// what a switch would refuse (prerequisites of a field, a table that does not exist); the switch does.
//
// Sources: ONF TS-012 (OpenFlow Switch Specification 1.4.0) and, for the extensions of Nicira, ovs-fields(7),
// ovs-actions(7) and the errors listed by ovs-ofctl(8). All functions may be called concurrently; nothing they return
// shares memory with what they were given.
package openflow
