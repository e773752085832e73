package flow

import (
	"meshnet/plan"
)

// Compile returns the flows of one network on a host, and Base those of the bridge itself. Both in
// canonical order.
func Compile(n *plan.Network, h *plan.Host) []Flow { panic("todo") }

// Base returns the flows that do not belong to a network: table misses and tunnel classification.
func Base(h *plan.Host) []Flow { panic("todo") }

// Flow is one OpenFlow flow. Two flows with equal Table, Priority and Match are the same flow with,
// perhaps, other actions.
type Flow struct {
	Table    uint8
	Priority uint16
	Cookie   uint64
	Match    Match
	Actions  []Action
}

// Match and Action are comparable values; see match.go.
type Match struct{ todo struct{} }

// Action is one of a closed set.
type Action interface{ action() }

// Diff returns what to remove from and add to have, so that it becomes want. A flow whose actions or
// cookie differ is in add only: adding replaces.
func Diff(have, want []Flow) (add, remove []Flow) { panic("todo") }
