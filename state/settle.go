package state

import (
	"cmp"
	"slices"
	"strings"
)

// settled is what a network shows that depends on the other networks.
type settled struct {
	net     *netModel
	record  Created
	removed bool
	name    string
	vni     uint32
}

// before orders networks in the same way everywhere: by when they were created, then by id.
func (s *settled) before(t *settled) int {
	return cmp.Or(cmp.Compare(s.record.Lamport, t.record.Lamport), cmp.Compare(s.record.At, t.record.At),
		cmp.Compare(s.net.id, t.net.id))
}

// settle gives each live network a name and a VNI of its own. The result is in the order of ids.
func (m *model) settle() (nets []*settled, conflicts []Conflict) {
	for _, n := range m.nets {
		if rec, removed, ok := n.shows(); ok {
			nets = append(nets, &settled{net: n, record: rec, removed: removed, name: rec.Def.Name, vni: rec.VNI})
		}
	}
	slices.SortFunc(nets, (*settled).before)
	conflicts = append(settleVNIs(nets), settleNames(nets)...)
	slices.SortFunc(nets, func(a, b *settled) int { return cmp.Compare(a.net.id, b.net.id) })
	return nets, conflicts
}

// settleVNIs leaves a VNI to the first that recorded it; the others take their next free probe.
func settleVNIs(nets []*settled) (conflicts []Conflict) {
	holder := make(map[uint32]*settled, len(nets))
	var losers []*settled
	for _, s := range nets {
		if _, taken := holder[s.vni]; taken || s.vni == 0 || s.vni > vniMax {
			losers = append(losers, s)
			continue
		}
		holder[s.vni] = s
	}
	for _, s := range losers {
		was := s.vni
		s.vni = freeVNI(s.net.id, func(v uint32) bool { return holder[v] != nil })
		holder[s.vni] = s
		if first := holder[was]; first != nil {
			conflicts = append(conflicts, Conflict{
				Kind: ConflictVNI, What: decimal(was), Network: s.net.id,
				Kept: first.net.id.String(), Lost: s.net.id.String() + ", now " + decimal(s.vni),
			})
		}
	}
	return conflicts
}

// settleNames leaves a name to the first network that has it, one with a definition before one
// without; the others add ~ and as much of their id as tells them apart, at least four digits.
func settleNames(nets []*settled) (conflicts []Conflict) {
	byName := slices.Clone(nets)
	slices.SortStableFunc(byName, func(a, b *settled) int {
		return cmp.Or(strings.Compare(a.record.Def.Name, b.record.Def.Name), compareBool(a.removed, b.removed))
	})
	taken := make(map[string]bool, len(nets))
	var first *settled
	for _, s := range byName {
		if first == nil || first.name != s.record.Def.Name {
			first = s
			continue
		}
		for n := 4; n <= 16; n += 4 {
			s.name = first.name + "~" + s.net.id.String()[:n]
			if !taken[s.name] {
				break
			}
		}
		taken[s.name] = true
		conflicts = append(conflicts, Conflict{
			Kind: ConflictName, What: first.name, Network: s.net.id,
			Kept: first.net.id.String(), Lost: s.net.id.String() + ", now " + s.name,
		})
	}
	return conflicts
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
