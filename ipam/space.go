package ipam

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// span is the IPv4 addresses from lo to hi, both included.
type span struct{ lo, hi uint32 }

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func spanOf(p netip.Prefix) span {
	lo := number(p.Addr())
	return span{lo, lo + uint32(size(p)-1)}
}

// size is how many addresses a prefix has.
func size(p netip.Prefix) uint64 { return 1 << (32 - p.Bits()) }

// count is how many addresses disjoint spans have.
func count(spans []span) uint64 {
	var n uint64
	for _, s := range spans {
		n += uint64(s.hi-s.lo) + 1
	}
	return n
}

// compare orders prefixes by address, a prefix before those it contains.
func compare(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// contains reports whether all of inner is in outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// carve returns what is left of outer without inner, which it contains, in ascending order.
func carve(outer, inner netip.Prefix) []netip.Prefix {
	var below, above []netip.Prefix
	for b := outer.Bits() + 1; b <= inner.Bits(); b++ {
		lo := number(inner.Addr()) &^ (1<<(32-b) - 1)
		buddy := netip.PrefixFrom(address(lo^1<<(32-b)), b)
		if buddy.Addr().Less(inner.Addr()) {
			below = append(below, buddy)
		} else {
			above = append(above, buddy)
		}
	}
	for i := len(above) - 1; i >= 0; i-- {
		below = append(below, above[i])
	}
	return below
}

// gaps returns the addresses of the blocks that are in no busy span. Blocks are disjoint, both are
// in ascending order; busy spans may overlap. No gap crosses a block's border.
func gaps(blocks []netip.Prefix, busy []span) []span {
	var out []span
	i := 0
	for _, p := range blocks {
		s := spanOf(p)
		at, end := uint64(s.lo), uint64(s.hi)
		// A span that reaches into this block may reach into the next: i moves only past those that end.
		for i < len(busy) && busy[i].hi < s.lo {
			i++
		}
		for j := i; j < len(busy) && uint64(busy[j].lo) <= end; j++ {
			if lo := uint64(busy[j].lo); lo > at {
				out = append(out, span{uint32(at), uint32(lo - 1)})
			}
			at = max(at, uint64(busy[j].hi)+1)
		}
		if at <= end {
			out = append(out, span{uint32(at), uint32(end)})
		}
	}
	return out
}

// pick returns the first free address at or after from, or else the first of all.
func pick(free []span, from uint32) (uint32, bool) {
	for _, s := range free {
		if s.hi >= from {
			return max(s.lo, from), true
		}
	}
	if len(free) == 0 {
		return 0, false
	}
	return free[0].lo, true
}

// hole returns the aligned block of a length that lies in a free span and begins nearest to near,
// the lower of two.
func hole(free []span, length int, near uint32) (netip.Prefix, bool) {
	step := uint64(1) << (32 - length)
	best, found := uint64(0), false
	for _, s := range free {
		lo := (uint64(s.lo) + step - 1) / step * step
		if lo+step-1 > uint64(s.hi) {
			continue
		}
		hi := (uint64(s.hi)+1)/step*step - step
		at := min(max(uint64(near)/step*step, lo), hi)
		for _, c := range [2]uint64{at, min(at+step, hi)} {
			if !found || distance(c, uint64(near)) < distance(best, uint64(near)) {
				best, found = c, true
			}
		}
	}
	if !found {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(address(uint32(best)), length), true
}

func distance(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// log2 is the logarithm of n > 0, rounded down.
func log2(n uint64) int { return bits.Len64(n) - 1 }
