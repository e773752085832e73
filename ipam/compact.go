package ipam

import (
	"net/netip"
	"slices"

	"meshnet/state"
)

// Compact returns records of which [New] makes the same machine, without what later ones made
// meaningless: an allocation that was given back and whose address was given out again. What it cannot
// read it leaves as it is. It shares memory with records, which it does not write to.
func Compact(records []Record) []Record {
	lines := make([]line, len(records))
	for i, r := range records {
		lines[i] = readLine(r)
	}
	gone := pairs(lines)
	out := make([]Record, 0, len(records))
	for i, l := range lines {
		r := records[i]
		if slices.ContainsFunc(l.entries, func(e *entry) bool { return gone[e] }) {
			if r = l.without(gone); r == nil {
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// line is a record taken apart. An entry that is not known is nil.
type line struct {
	entries []*entry
	parts   [][]byte // each entry's bytes
}

// readLine returns an empty line for what does not decode.
func readLine(r Record) line {
	if _, err := decodeRecord(r); err != nil {
		return line{}
	}
	in := reader{b: r}
	in.byte()
	var l line
	for len(in.b) > 0 && in.err == nil {
		b := in.take(uint64(in.length()))
		part := reader{b: b}
		e, known := decodeEntry(&part)
		l.parts = append(l.parts, b)
		if known {
			l.entries = append(l.entries, &e)
		} else {
			l.entries = append(l.entries, nil)
		}
	}
	return l
}

// without returns the record of what is left of a line; nil if nothing is.
func (l line) without(gone map[*entry]bool) Record {
	w := writer{version}
	for i, b := range l.parts {
		if !gone[l.entries[i]] {
			w.uvar(uint64(len(b)))
			w = append(w, b...)
		}
	}
	if len(w) == 1 {
		return nil
	}
	return Record(w)
}

// pairs returns the allocations and their ends that say nothing any more. The last of an address is
// kept, given back or not: it says what rests, and what number the next one has.
func pairs(lines []line) map[*entry]bool {
	type place struct {
		network state.NetworkID
		addr    netip.Addr
	}
	type number struct {
		network state.NetworkID
		id      state.EndpointID
		alloc   uint64
	}
	gone := map[*entry]bool{}
	last := map[place][2]*entry{} // an allocation and its end
	open := map[number]place{}
	for _, l := range lines {
		for _, e := range l.entries {
			switch {
			case e == nil:
			case e.kind == entAlloc:
				at := place{e.endpoint.Network, e.endpoint.Addr}
				if was := last[at]; was[1] != nil && was[0].endpoint.Alloc < e.endpoint.Alloc {
					gone[was[0]], gone[was[1]] = true, true
				}
				last[at] = [2]*entry{e, nil}
				open[number{at.network, e.endpoint.ID, e.endpoint.Alloc}] = at
			case e.kind == entFree:
				n := number{e.network, e.id, e.alloc}
				at, ok := open[n]
				delete(open, n)
				if was := last[at]; ok && was[0] != nil && was[1] == nil && was[0].endpoint.ID == e.id && was[0].endpoint.Alloc == e.alloc {
					last[at] = [2]*entry{was[0], e}
				}
			}
		}
	}
	return gone
}
