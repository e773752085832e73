package ipam

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The model is a set of addresses within 10.0.0.0/24.

func drawPrefix(t *rapid.T, name string) netip.Prefix {
	b := rapid.IntRange(24, 32).Draw(t, name+" bits")
	n := rapid.Uint32Range(0, 255).Draw(t, name+" address")
	return netip.PrefixFrom(address(0x0a000000|n), b).Masked()
}

func addresses(spans []span) []uint32 {
	var out []uint32
	for _, s := range spans {
		for n := s.lo; ; n++ {
			out = append(out, n)
			if n == s.hi {
				break
			}
		}
	}
	return out
}

func drawSpace(t *rapid.T) (blocks []netip.Prefix, busy []span, free []uint32) {
	for range rapid.IntRange(0, 6).Draw(t, "blocks") {
		p := drawPrefix(t, "block")
		if !slices.ContainsFunc(blocks, p.Overlaps) {
			blocks = append(blocks, p)
		}
	}
	slices.SortFunc(blocks, compare)
	taken := map[uint32]bool{}
	for range rapid.IntRange(0, 20).Draw(t, "busy") {
		lo := rapid.Uint32Range(0x0a000000, 0x0a0000ff).Draw(t, "lo")
		hi := min(lo+rapid.Uint32Range(0, 9).Draw(t, "len"), 0x0a0000ff)
		busy = append(busy, span{lo, hi})
		for n := lo; n <= hi; n++ {
			taken[n] = true
		}
	}
	slices.SortFunc(busy, func(a, b span) int { return int(a.lo) - int(b.lo) })
	for _, p := range blocks {
		for _, n := range addresses([]span{spanOf(p)}) {
			if !taken[n] {
				free = append(free, n)
			}
		}
	}
	return blocks, busy, free
}

func TestGapsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks, busy, want := drawSpace(t)
		got := gaps(blocks, busy)
		if !slices.Equal(addresses(got), want) {
			t.Fatalf("gaps(%v, %v) = %v, want addresses %v", blocks, busy, got, want)
		}
		if count(got) != uint64(len(want)) {
			t.Fatalf("count %d, want %d", count(got), len(want))
		}
		for _, s := range got {
			if !slices.ContainsFunc(blocks, func(p netip.Prefix) bool { return spanOf(p).lo <= s.lo && s.hi <= spanOf(p).hi }) {
				t.Fatalf("gap %v crosses a border of %v", s, blocks)
			}
		}
	})
}

func TestPickAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks, busy, free := drawSpace(t)
		from := rapid.Uint32Range(0x0a000000, 0x0a000100).Draw(t, "from")
		got, ok := pick(gaps(blocks, busy), from)
		if ok != (len(free) > 0) {
			t.Fatalf("ok %v with %d free", ok, len(free))
		}
		if !ok {
			return
		}
		want := free[0]
		if i, _ := slices.BinarySearch(free, from); i < len(free) {
			want = free[i]
		}
		if got != want {
			t.Fatalf("pick from %x: %x, want %x", from, got, want)
		}
	})
}

func TestHoleAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks, busy, free := drawSpace(t)
		length := rapid.IntRange(24, 32).Draw(t, "length")
		near := rapid.Uint32Range(0x09ffff00, 0x0a0001ff).Draw(t, "near")
		step := uint32(size(netip.PrefixFrom(address(0), length)))
		var best uint32
		found := false
		for base := uint32(0x0a000000); base < 0x0a000100; base += step {
			all := true
			for n := base; n < base+step && all; n++ {
				_, all = slices.BinarySearch(free, n)
			}
			inOne := slices.ContainsFunc(blocks, func(p netip.Prefix) bool {
				return contains(p, netip.PrefixFrom(address(base), length))
			})
			if all && inOne && (!found || distance(uint64(base), uint64(near)) < distance(uint64(best), uint64(near))) {
				best, found = base, true
			}
		}
		got, ok := hole(gaps(blocks, busy), length, near)
		if ok != found || ok && got != netip.PrefixFrom(address(best), length) {
			t.Fatalf("hole %v %v, want %v %v", got, ok, address(best), found)
		}
	})
}

func TestCarveAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		outer, inner := drawPrefix(t, "outer"), drawPrefix(t, "inner")
		if !contains(outer, inner) {
			outer, inner = inner, outer
		}
		if !contains(outer, inner) {
			return
		}
		parts := append(carve(outer, inner), inner)
		slices.SortFunc(parts, compare)
		next := spanOf(outer).lo
		for _, p := range parts {
			if p != p.Masked() || spanOf(p).lo != next {
				t.Fatalf("carve(%v, %v): %v", outer, inner, parts)
			}
			next = spanOf(p).hi + 1
		}
		if next != spanOf(outer).hi+1 {
			t.Fatalf("carve(%v, %v) does not fill: %v", outer, inner, parts)
		}
		if !slices.IsSortedFunc(carve(outer, inner), compare) {
			t.Fatalf("carve(%v, %v) is not in order", outer, inner)
		}
	})
}

func TestWholeSpace(t *testing.T) {
	all := netip.MustParsePrefix("0.0.0.0/0")
	free := gaps([]netip.Prefix{all}, []span{{0, 0}, {^uint32(0), ^uint32(0)}})
	if len(free) != 1 || free[0] != (span{1, ^uint32(0) - 1}) {
		t.Fatal(free)
	}
	if p, ok := hole(free, 32, ^uint32(0)); !ok || p.Addr() != netip.MustParseAddr("255.255.255.254") {
		t.Fatal(p, ok)
	}
	if _, ok := hole(free, 0, 0); ok {
		t.Fatal("a hole with busy addresses")
	}
	if got := len(carve(all, netip.MustParsePrefix("10.0.0.1/32"))); got != 32 {
		t.Fatal(got)
	}
}
