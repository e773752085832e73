// Package ipam decides which node may use which address of a network's subnet.
//
// The space of a subnet is owned in blocks, each by one node; only the owner divides a block or
// gives it away, in one round trip and ahead of need, so that attaching waits for nobody. A
// [Machine] per node takes in what happened and answers with block and endpoint records for the
// merged state, lines for the log and messages to other nodes' machines. What it promises to others
// is synced before it is said, so that no address is given out twice under one root (the act of
// taking a whole subnet), whatever is lost, doubled or late, and across crashes.
//
// What belonged to a node that was given up is inherited by the last node of its lineage, after a
// quarantine and an answer of everybody ever met. Where roots were taken apart one counts, and the owners
// under it give the others' containers the addresses that they have. docs/decisions/addresses.md and
// apart.md say what each step is for; model_test.go explores them.
//
// It does no I/O, knows no clock and starts no goroutine. A Machine is for one goroutine.
package ipam
