package crdt

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
)

// Shared is a map that every node writes: an add that a remove had not seen survives it. What adds
// of different actors wrote to one key at once is all kept, and one of it is read by rule. The zero
// value is not usable.
type Shared struct {
	actor Actor
	live  map[string][]Entry // by dot
	keys  map[Dot]string
	dots  map[Actor][]uint64 // the keys of keys, ascending
	seen  map[Actor][]Span
	clock uint64
	sum   hash
	watch func(string)

	digest digest
}

// NewShared returns an empty map that actor writes to. watch, which may be nil, is called with each
// key whose entries changed, while the call that changes them runs; it may read but not write.
func NewShared(actor Actor, watch func(string)) *Shared {
	if watch == nil {
		watch = func(string) {}
	}
	return &Shared{
		actor: actor, watch: watch,
		live: make(map[string][]Entry),
		keys: make(map[Dot]string),
		dots: make(map[Actor][]uint64),
		seen: make(map[Actor][]Span),
	}
}

// Renew makes actor the writer from now on.
func (s *Shared) Renew(actor Actor) { s.actor = actor }

// Clock returns the highest lamport of any entry known so far.
func (s *Shared) Clock() uint64 { return s.clock }

// Add writes a key, in the place of what is known of it, and keeps both slices. lamport, created and
// the dot order what different actors wrote to one key.
func (s *Shared) Add(key, value []byte, lamport uint64, created int64) Delta {
	d := s.over(key)
	dot := Dot{s.actor, 1}
	if spans := s.seen[s.actor]; len(spans) > 0 {
		dot.N = spans[len(spans)-1].To + 1
	}
	d.Entries = []Entry{{Dot: dot, Key: key, Value: value, Lamport: lamport, Created: created}}
	d.Seen = seenAdd(d.Seen, dot)
	s.Merge(d)
	return d
}

// Remove removes what is known of a key; false if nothing is.
func (s *Shared) Remove(key []byte) (Delta, bool) {
	d := s.over(key)
	s.Merge(d)
	return d, !d.Empty()
}

// over returns the delta that has seen all that is known of a key.
func (s *Shared) over(key []byte) Delta {
	var d Delta
	for _, e := range s.live[string(key)] {
		d.Seen = seenAdd(d.Seen, e.Dot)
	}
	return d
}

// Merge takes in a delta and returns what of it was news. It keeps the slices of its entries.
func (s *Shared) Merge(d Delta) Delta {
	theirs := make(map[Actor][]Span, len(d.Seen))
	for _, a := range d.Seen {
		for _, sp := range a.Spans {
			if sp.valid() {
				theirs[a.Actor] = spansAdd(theirs[a.Actor], sp)
			}
		}
	}
	held := make(map[Dot]bool, len(d.Entries))
	var news Delta
	touched := make(map[string]bool)
	for _, e := range d.Entries {
		if e.Dot.N == 0 || e.Dot.N > numMax {
			continue
		}
		theirs[e.Dot.Actor] = spansAdd(theirs[e.Dot.Actor], Span{e.Dot.N, e.Dot.N})
		held[e.Dot] = true
		if s.add(e) {
			news.Entries = append(news.Entries, e)
			touched[string(e.Key)] = true
		}
	}
	for _, dot := range s.dropped(theirs, held) {
		touched[s.keys[dot]] = true
		s.drop(dot)
		news.Seen = seenAdd(news.Seen, dot)
	}
	for _, actor := range slices.Sorted(maps.Keys(theirs)) {
		for _, sp := range theirs[actor] {
			for _, fresh := range spansMinus(sp, s.seen[actor]) {
				news.Seen = seenSpan(news.Seen, actor, fresh)
			}
		}
		s.see(actor, theirs[actor])
	}
	for _, e := range news.Entries {
		news.Seen = seenAdd(news.Seen, e.Dot)
	}
	slices.SortFunc(news.Entries, compareEntries)
	for _, key := range slices.Sorted(maps.Keys(touched)) {
		s.watch(key)
	}
	return news
}

// add takes in an entry if its dot is new. Two entries with one dot are the work of two writers with
// one identity; that all may hold the same one, the greater is kept.
func (s *Shared) add(e Entry) bool {
	if old, ok := s.keys[e.Dot]; ok {
		i := slices.IndexFunc(s.live[old], func(x Entry) bool { return x.Dot == e.Dot })
		if bytes.Compare(appendEntry(nil, e), appendEntry(nil, s.live[old][i])) <= 0 {
			return false
		}
		s.drop(e.Dot)
	} else if spansHave(s.seen[e.Dot.Actor], e.Dot.N) {
		return false
	}
	list := s.live[string(e.Key)]
	i, _ := slices.BinarySearchFunc(list, e, compareEntries)
	s.live[string(e.Key)] = slices.Insert(slices.Clone(list), i, e)
	s.keys[e.Dot] = string(e.Key)
	dots := s.dots[e.Dot.Actor]
	i, _ = slices.BinarySearch(dots, e.Dot.N)
	s.dots[e.Dot.Actor] = slices.Insert(dots, i, e.Dot.N)
	s.sum.mix(hashOf(appendEntry(nil, e)))
	s.clock = max(s.clock, e.Lamport)
	return true
}

// dropped lists the live dots that were seen and are not held.
func (s *Shared) dropped(seen map[Actor][]Span, held map[Dot]bool) []Dot {
	var out []Dot
	for actor, spans := range seen {
		dots := s.dots[actor]
		for _, sp := range spans {
			i, _ := slices.BinarySearch(dots, sp.From)
			for ; i < len(dots) && dots[i] <= sp.To; i++ {
				if dot := (Dot{actor, dots[i]}); !held[dot] {
					out = append(out, dot)
				}
			}
		}
	}
	slices.SortFunc(out, compareDots)
	return out
}

func (s *Shared) drop(dot Dot) {
	key := s.keys[dot]
	delete(s.keys, dot)
	dots := s.dots[dot.Actor]
	j, _ := slices.BinarySearch(dots, dot.N)
	if s.dots[dot.Actor] = slices.Delete(dots, j, j+1); len(dots) == 1 {
		delete(s.dots, dot.Actor)
	}
	list := s.live[key]
	i := slices.IndexFunc(list, func(e Entry) bool { return e.Dot == dot })
	s.sum.mix(hashOf(appendEntry(nil, list[i])))
	if len(list) == 1 {
		delete(s.live, key)
		return
	}
	s.live[key] = slices.Delete(slices.Clone(list), i, i+1)
}

func (s *Shared) see(actor Actor, spans []Span) {
	list := s.seen[actor]
	if len(list) > 0 {
		s.sum.mix(hashSeen(actor, list))
	}
	for _, sp := range spans {
		list = spansAdd(list, sp)
	}
	s.seen[actor] = list
	s.sum.mix(hashSeen(actor, list))
}

// Value returns the entry that a key shows: the lowest (lamport, created, dot).
func (s *Shared) Value(key string) (Entry, bool) {
	list := s.live[key]
	if len(list) == 0 {
		return Entry{}, false
	}
	return slices.MinFunc(list, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Lamport, b.Lamport), cmp.Compare(a.Created, b.Created), compareDots(a.Dot, b.Dot))
	}), true
}

// Values returns all live entries of a key by dot. The caller must not write to the slice.
func (s *Shared) Values(key string) []Entry { return s.live[key] }

// Full returns all there is as one delta.
func (s *Shared) Full() Delta {
	var d Delta
	for _, list := range s.live {
		d.Entries = append(d.Entries, list...)
	}
	slices.SortFunc(d.Entries, compareEntries)
	for _, actor := range slices.Sorted(maps.Keys(s.seen)) {
		d.Seen = append(d.Seen, Seen{actor, slices.Clone(s.seen[actor])})
	}
	return d
}

// Digest is equal on two replicas exactly when they hold the same entries and have seen the same
// dots.
func (s *Shared) Digest() [16]byte {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], s.sum[0])
	binary.BigEndian.PutUint64(b[8:], s.sum[1])
	return s.digest.of(b[:])
}

func compareDots(a, b Dot) int {
	return cmp.Or(cmp.Compare(a.Actor, b.Actor), cmp.Compare(a.N, b.N))
}

func compareEntries(a, b Entry) int {
	return cmp.Or(bytes.Compare(a.Key, b.Key), compareDots(a.Dot, b.Dot))
}

func appendEntry(b []byte, e Entry) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(e.Dot.Actor))
	b = binary.BigEndian.AppendUint64(b, e.Dot.N)
	b = binary.BigEndian.AppendUint64(b, e.Lamport)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Created))
	for _, part := range [][]byte{e.Key, e.Value, e.Ext} {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	return b
}

func hashSeen(actor Actor, spans []Span) hash {
	b := binary.BigEndian.AppendUint64([]byte("seen"), uint64(actor))
	for _, sp := range spans {
		b = binary.BigEndian.AppendUint64(b, sp.From)
		b = binary.BigEndian.AppendUint64(b, sp.To)
	}
	return hashOf(b)
}

func seenAdd(list []Seen, d Dot) []Seen { return seenSpan(list, d.Actor, Span{d.N, d.N}) }

// seenSpan returns the list with one more span, in the order of actors. It may write to the list.
func seenSpan(list []Seen, actor Actor, sp Span) []Seen {
	i, found := slices.BinarySearchFunc(list, actor, func(s Seen, a Actor) int { return cmp.Compare(s.Actor, a) })
	if !found {
		list = slices.Insert(list, i, Seen{Actor: actor})
	}
	list[i].Spans = spansAdd(list[i].Spans, sp)
	return list
}

// Split returns deltas of one entry each and of the removals, that joined in any order are d. Unlike
// d itself, some of them may arrive and others not.
func (d Delta) Split() []Delta {
	left := make(map[Actor][]Span, len(d.Seen))
	for _, a := range d.Seen {
		left[a.Actor] = slices.Clone(a.Spans)
	}
	var out []Delta
	for _, e := range d.Entries {
		out = append(out, Delta{Entries: []Entry{e}})
		var rest []Span
		for _, sp := range left[e.Dot.Actor] {
			rest = append(rest, spansMinus(sp, []Span{{e.Dot.N, e.Dot.N}})...)
		}
		left[e.Dot.Actor] = rest
	}
	for _, actor := range slices.Sorted(maps.Keys(left)) {
		for spans := range slices.Chunk(left[actor], 32) {
			out = append(out, Delta{Seen: []Seen{{actor, spans}}})
		}
	}
	return out
}
