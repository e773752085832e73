package netns

import (
	"testing"

	"github.com/vishvananda/netlink"
)

func TestKindOf(t *testing.T) {
	for want, link := range map[string]netlink.Link{
		"": &netlink.Device{}, "tun": &netlink.Tuntap{}, "openvswitch": &netlink.GenericLink{LinkType: "openvswitch"},
	} {
		if got := kindOf(link); got != want {
			t.Errorf("kindOf(%T) = %q, want %q", link, got, want)
		}
	}
}

func TestParseStart(t *testing.T) {
	rest := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	tests := []struct {
		stat string
		want uint64
		ok   bool
	}{
		{"12 (bash)" + rest, 4711, true},
		{"12 (a) (b 1 2 3) x)" + rest, 4711, true},
		{"12 ())" + rest, 4711, true},
		{"12 (bash) S 1 2 3", 0, false},
		{"12 (bash) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20", 0, false},
		{"", 0, false},
		{")", 0, false},
	}
	for _, tt := range tests {
		if got, ok := parseStart([]byte(tt.stat)); got != tt.want || ok != tt.ok {
			t.Errorf("parseStart(%q) = %d, %t; want %d, %t", tt.stat, got, ok, tt.want, tt.ok)
		}
	}
}
