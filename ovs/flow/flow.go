package flow

import (
	"cmp"
	"slices"

	"meshnet/state"
)

// The pipeline's tables.
const (
	TableClassify uint8 = 0
	TableGuard    uint8 = 10
	TableARP      uint8 = 20
	TableHost     uint8 = 25
	TableRemote   uint8 = 30
	TableLocal    uint8 = 40
	TableGateway  uint8 = 50
)

// Mark is in the upper 16 bits of the cookie of every flow of ours.
const Mark uint64 = 0x6d65

// CookieMask covers [Mark] in a cookie: with it and [BaseCookie] a request for statistics or a
// deletion concerns our flows only.
const CookieMask uint64 = 0xffff << 48

// BaseCookie is the cookie of the flows that belong to no network.
const BaseCookie = Mark << 48

// Cookie returns the cookie of a network's flows: our mark and 48 bits of the network's id, which
// is a hash.
func Cookie(id state.NetworkID) uint64 {
	low := uint64(id) &^ CookieMask
	if low == 0 {
		low = 1
	}
	return BaseCookie | low
}

// Ours reports whether a cookie bears our mark.
func Ours(cookie uint64) bool { return cookie&CookieMask == BaseCookie }

// Flow is one OpenFlow flow. Two flows with equal Table, Priority and Match are the same flow with,
// perhaps, other actions: a switch holds one of them.
type Flow struct {
	Table    uint8
	Priority uint16
	Cookie   uint64
	Match    Match
	Actions  []Action // in order; empty drops
}

// Compare orders flows canonically: by table, falling priority and match. It is 0 for the same flow,
// whatever its cookie and actions.
func Compare(a, b Flow) int {
	return cmp.Or(
		cmp.Compare(a.Table, b.Table),
		cmp.Compare(b.Priority, a.Priority),
		a.Match.compare(&b.Match),
	)
}

// Equal reports whether two flows are the same with the same cookie and actions.
func (f Flow) Equal(g Flow) bool {
	return f.Table == g.Table && f.Priority == g.Priority && f.Cookie == g.Cookie &&
		f.Match == g.Match && slices.Equal(f.Actions, g.Actions)
}

// Diff returns what to remove from and add to have, so that it becomes want, each in canonical
// order. A flow whose actions or cookie differ is in add only: adding replaces. Neither slice may
// hold the same flow twice; their order does not matter and they are not written to.
func Diff(have, want []Flow) (add, remove []Flow) {
	have, want = sorted(have), sorted(want)
	for len(have) > 0 && len(want) > 0 {
		switch c := Compare(have[0], want[0]); {
		case c < 0:
			remove = append(remove, have[0])
			have = have[1:]
		case c > 0:
			add = append(add, want[0])
			want = want[1:]
		default:
			if !have[0].Equal(want[0]) {
				add = append(add, want[0])
			}
			have, want = have[1:], want[1:]
		}
	}
	return append(add, want...), append(remove, have...)
}

// sorted returns flows in canonical order: the slice itself when it is so already.
func sorted(flows []Flow) []Flow {
	if slices.IsSortedFunc(flows, Compare) {
		return flows
	}
	flows = slices.Clone(flows)
	slices.SortFunc(flows, Compare)
	return flows
}
