package state

import (
	"iter"
	"slices"
)

// list is pointers in an order that tells them all apart. It is immutable: [list.edit] makes another
// that shares all but the chunks that it changes, so that a change of one among n costs a search, one
// chunk and n/chunkMax pointers to chunks. The zero value is empty.
type list[T any] struct {
	chunks []*chunk[T] // none empty
	n      int
}

type chunk[T any] struct{ items []*T }

const (
	// chunkMax is how many elements a chunk has at most: about the square root of the longest list
	// that is meant, so that a chunk and the list of chunks cost the same to copy.
	chunkMax = 256
	// chunkMin is below how many elements a chunk that changes is joined with the next.
	chunkMin = chunkMax / 4
)

func (l list[T]) all() iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for _, c := range l.chunks {
			for _, e := range c.items {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// from yields the elements from the first on for which past is not negative. past compares an element
// with where to begin and follows the list's order.
func (l list[T]) from(past func(*T) int) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		i, _ := slices.BinarySearchFunc(l.chunks, 0, func(c *chunk[T], _ int) int { return past(c.items[len(c.items)-1]) })
		for ; i < len(l.chunks); i++ {
			items := l.chunks[i].items
			j, _ := slices.BinarySearchFunc(items, 0, func(e *T, _ int) int { return past(e) })
			for _, e := range items[j:] {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// first returns the first element for which past is not negative.
func (l list[T]) first(past func(*T) int) (*T, bool) {
	for e := range l.from(past) {
		return e, true
	}
	return nil, false
}

// edit returns the list without the elements out, which are its own, and with those of in; both in
// the list's order.
func (l list[T]) edit(out, in []*T, compare func(a, b *T) int) list[T] {
	if len(out)+len(in) == 0 {
		return l
	}
	edited := list[T]{chunks: make([]*chunk[T], 0, len(l.chunks)+1+len(in)/chunkMin), n: l.n - len(out) + len(in)}
	at := 0
	for len(out)+len(in) > 0 {
		next := earlier(out, in, compare)
		// The chunk that has or would have it: the last that begins no later, else the first.
		i, found := slices.BinarySearchFunc(l.chunks[at:], next, func(c *chunk[T], e *T) int { return compare(c.items[0], e) })
		if i += at; !found && i > at {
			i--
		}
		edited.chunks = append(edited.chunks, l.chunks[at:i]...)
		var items []*T
		if at = i; at < len(l.chunks) {
			items = l.chunks[at].items
			at++
		}
		for {
			m, n := len(out), len(in)
			if at < len(l.chunks) {
				m, n = until(out, l.chunks[at].items[0], compare), until(in, l.chunks[at].items[0], compare)
			}
			items = merge(items, out[:m], in[:n], compare)
			out, in = out[m:], in[n:]
			if len(items) >= chunkMin || at == len(l.chunks) {
				break
			}
			items = append(items, l.chunks[at].items...)
			at++
		}
		edited.chunks = appendChunks(edited.chunks, items)
	}
	edited.chunks = append(edited.chunks, l.chunks[at:]...)
	return edited
}

// earlier returns the first of two sorted lists that are not both empty.
func earlier[T any](a, b []*T, compare func(a, b *T) int) *T {
	if len(b) == 0 || len(a) > 0 && compare(a[0], b[0]) < 0 {
		return a[0]
	}
	return b[0]
}

// until returns how many elements of a sorted list lie before e.
func until[T any](list []*T, e *T, compare func(a, b *T) int) int {
	i, _ := slices.BinarySearchFunc(list, e, compare)
	return i
}

// merge returns a sorted copy of a sorted list without the elements out, which are its own, and with
// those of in.
func merge[T any](items, out, in []*T, compare func(a, b *T) int) []*T {
	merged := make([]*T, 0, len(items)+len(in)-len(out))
	for len(out)+len(in) > 0 {
		i := until(items, earlier(out, in, compare), compare)
		merged = append(merged, items[:i]...)
		items = items[i:]
		if len(out) > 0 && len(items) > 0 && items[0] == out[0] {
			items, out = items[1:], out[1:]
			continue
		}
		merged = append(merged, in[0])
		in = in[1:]
	}
	return append(merged, items...)
}

// appendChunks cuts elements into chunks of about one size. It keeps the slice.
func appendChunks[T any](chunks []*chunk[T], items []*T) []*chunk[T] {
	for parts := (len(items) + chunkMax - 1) / chunkMax; parts > 0; parts-- {
		n := len(items) / parts
		chunks = append(chunks, &chunk[T]{items[:n:n]})
		items = items[n:]
	}
	return chunks
}

// differ yields what one list has and the other has not, as (was, nil) and (nil, is), and pairs of
// elements of one place that are not the same. It passes over the chunks that both share.
func differ[T any](was, is list[T], compare func(a, b *T) int) iter.Seq2[*T, *T] {
	return func(yield func(was, is *T) bool) {
		a, b := cursor[T]{chunks: was.chunks}, cursor[T]{chunks: is.chunks}
		for {
			for a.at == 0 && b.at == 0 && len(a.chunks) > 0 && len(b.chunks) > 0 && a.chunks[0] == b.chunks[0] {
				a.chunks, b.chunks = a.chunks[1:], b.chunks[1:]
			}
			x, y := a.peek(), b.peek()
			if x == nil && y == nil {
				return
			}
			c := 0
			switch {
			case y == nil:
				c = -1
			case x == nil:
				c = 1
			default:
				c = compare(x, y)
			}
			if c <= 0 {
				a.next()
			} else {
				x = nil
			}
			if c >= 0 {
				b.next()
			} else {
				y = nil
			}
			if x != y && !yield(x, y) {
				return
			}
		}
	}
}

// cursor is a place in a list.
type cursor[T any] struct {
	chunks []*chunk[T]
	at     int // in the first of them
}

func (c *cursor[T]) peek() *T {
	if len(c.chunks) == 0 {
		return nil
	}
	return c.chunks[0].items[c.at]
}

func (c *cursor[T]) next() {
	if c.at++; c.at == len(c.chunks[0].items) {
		c.chunks, c.at = c.chunks[1:], 0
	}
}

// change is what a record was when the last view was made and what it is now; nil is not there.
type change[T any] struct{ was, now *T }

// noted returns the change with a later record in its place. was is the record until now: that of
// the last view unless it changed since.
func (c change[T]) noted(again bool, was, now *T) change[T] {
	if !again {
		c.was = was
	}
	c.now = now
	return c
}

// emptied returns a map without its entries: another where there were many, since to range over a map
// costs what it once held.
func emptied[K comparable, V any](m map[K]V) map[K]V {
	if len(m) > chunkMax {
		return make(map[K]V)
	}
	clear(m)
	return m
}

// sides returns what changes take out of a list and what they put in, each in its order.
func sides[K comparable, T any](changes map[K]change[T], compare func(a, b *T) int) (out, in []*T) {
	for _, c := range changes {
		if c.was == c.now {
			continue
		}
		if c.was != nil {
			out = append(out, c.was)
		}
		if c.now != nil {
			in = append(in, c.now)
		}
	}
	slices.SortFunc(out, compare)
	slices.SortFunc(in, compare)
	return out, in
}

// since returns what two lists in one order do not share, in that order. Chunks that both have are not
// looked into.
func (l list[T]) since(old list[T], compare func(a, b *T) int) (gone, came []*T) {
	type place struct {
		chunks []*chunk[T]
		items  []*T // what is left of the first chunk
	}
	next := func(p *place) {
		for len(p.items) == 0 && len(p.chunks) > 0 {
			p.items, p.chunks = p.chunks[0].items, p.chunks[1:]
		}
	}
	was, is := place{chunks: old.chunks}, place{chunks: l.chunks}
	for {
		for len(was.items)+len(is.items) == 0 && len(was.chunks) > 0 && len(is.chunks) > 0 && was.chunks[0] == is.chunks[0] {
			was.chunks, is.chunks = was.chunks[1:], is.chunks[1:]
		}
		next(&was)
		next(&is)
		if len(was.items) == 0 && len(is.items) == 0 {
			return gone, came
		}
		c := 0
		switch {
		case len(was.items) == 0:
			c = 1
		case len(is.items) == 0:
			c = -1
		case was.items[0] == is.items[0]:
			was.items, is.items = was.items[1:], is.items[1:]
			continue
		default:
			c = compare(was.items[0], is.items[0])
		}
		if c <= 0 {
			gone, was.items = append(gone, was.items[0]), was.items[1:]
		}
		if c >= 0 {
			came, is.items = append(came, is.items[0]), is.items[1:]
		}
	}
}
