package main

import (
	"net/netip"
	"testing"
)

// FuzzParseRange: what is taken for a range is one, of IPv4 addresses in order.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"10.2.0.0/24", "10.2.0.1-10.2.0.9", "10.2.0.1", "0.0.0.0/0", "10.2.0.9-10.2.0.1", "::/0", "-", "10.0.0.1-::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := parseRange(s)
		if !ok {
			return
		}
		from, err := netip.ParseAddr(r.From)
		to, err2 := netip.ParseAddr(r.To)
		if err != nil || err2 != nil || !from.Is4() || !to.Is4() || to.Less(from) {
			t.Errorf("%q is read as %v", s, r)
		}
	})
}
