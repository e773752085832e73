package crdt

import (
	"cmp"
	"slices"
)

// numMax bounds sequence numbers and dots, so that arithmetic on them cannot overflow. Higher ones
// are nobody's and ignored.
const numMax = 1 << 62

// valid reports whether a span may be counted with.
func (s Span) valid() bool { return s.From > 0 && s.From <= s.To && s.To <= numMax }

// spansHave reports whether x is in a list of ascending spans that do not touch.
func spansHave(list []Span, x uint64) bool {
	i, found := spanAt(list, x)
	return found && list[i].From <= x
}

// spanAt finds the first span that ends at x or beyond.
func spanAt(list []Span, x uint64) (int, bool) {
	i, _ := slices.BinarySearchFunc(list, x, func(s Span, x uint64) int { return cmp.Compare(s.To, x) })
	return i, i < len(list)
}

// spansAdd returns the list with the span added. It may write to the list.
func spansAdd(list []Span, s Span) []Span {
	i, _ := spanAt(list, s.From-1) // the first that touches s or lies beyond it
	j := i
	for j < len(list) && list[j].From <= s.To+1 {
		s.From, s.To = min(s.From, list[j].From), max(s.To, list[j].To)
		j++
	}
	return slices.Replace(list, i, j, s)
}

// spansMinus returns what of the span s is not in the list.
func spansMinus(s Span, list []Span) []Span {
	var out []Span
	i, _ := spanAt(list, s.From)
	for ; i < len(list) && list[i].From <= s.To; i++ {
		if s.From < list[i].From {
			out = append(out, Span{s.From, list[i].From - 1})
		}
		s.From = list[i].To + 1
	}
	if s.From <= s.To {
		out = append(out, s)
	}
	return out
}
