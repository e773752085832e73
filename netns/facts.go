package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// dumpTries is how often a dump is asked for again that the kernel says was not of one moment.
const dumpTries = 10

// bridge is the name of our bridge's own interface.
const bridge = "meshnet"

// dump lists something by netlink. While many devices come and go the kernel gives up on one
// consistent list and says so; then it is asked again.
func dump[T any](list func() (T, error)) (T, error) {
	var got T
	var err error
	for range dumpTries {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
	return got, err
}

// Interfaces returns the interfaces of this host in the order of their indexes. Default is set for
// the interfaces of the preferred default route only: the lowest metric, IPv4 before IPv6.
func Interfaces() ([]plan.LinkFacts, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	byLink := make(map[int][]netip.Prefix)
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			byLink[a.LinkIndex] = append(byLink[a.LinkIndex], p)
		}
	}
	ways, err := defaults()
	if err != nil {
		return nil, err
	}
	docker := dockerBridges(links)
	out := make([]plan.LinkFacts, 0, len(links))
	for _, link := range links {
		a := link.Attrs()
		out = append(out, plan.LinkFacts{
			Name:    a.Name,
			Index:   a.Index,
			Kind:    kindOf(link),
			MTU:     uint32(a.MTU),
			Up:      a.Flags&net.FlagUp != 0,
			Ours:    ours(a) || a.Name == bridge,
			Docker:  docker[a.Index] || docker[a.MasterIndex],
			Addrs:   byLink[a.Index],
			Default: slices.Contains(ways, a.Index),
		})
	}
	slices.SortFunc(out, func(a, b plan.LinkFacts) int { return a.Index - b.Index })
	return out, nil
}

// Routes returns the destinations that this host has a route to, sorted, each once. Default routes
// are left out, for they lead everywhere, and so are our own.
func Routes() ([]netip.Prefix, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 && r.Protocol != routeProtocol {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(out), nil
}

// defaults returns the indexes of the interfaces by which the preferred default route leaves.
func defaults() ([]int, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		best := -1
		for i, r := range routes {
			p, ok := prefixOf(r.Dst)
			if all := r.Dst == nil || ok && p.Bits() == 0; !all || r.Type != unix.RTN_UNICAST {
				continue
			}
			if best < 0 || r.Priority < routes[best].Priority {
				best = i
			}
		}
		if best >= 0 {
			return outOf(routes[best]), nil
		}
	}
	return nil, nil
}

func outOf(r netlink.Route) []int {
	if len(r.MultiPath) == 0 {
		return []int{r.LinkIndex}
	}
	var out []int
	for _, hop := range r.MultiPath {
		out = append(out, hop.LinkIndex)
	}
	return out
}

// dockerBridges returns the indexes of the bridges that Docker made. It names them docker0,
// docker_gwbridge, or br- and the first twelve hexadecimal digits of the network's id.
func dockerBridges(links []netlink.Link) map[int]bool {
	out := make(map[int]bool)
	for _, link := range links {
		if link.Type() != "bridge" {
			continue
		}
		a := link.Attrs()
		id, isNet := strings.CutPrefix(a.Name, "br-")
		isNet = isNet && len(id) == 12 && strings.Trim(id, "0123456789abcdef") == ""
		if isNet || a.Name == "docker0" || a.Name == "docker_gwbridge" {
			out[a.Index] = true
		}
	}
	return out
}

// kindOf returns what ip -d link shows; empty for hardware.
func kindOf(link netlink.Link) string {
	switch k := link.Type(); k {
	case "device":
		return ""
	case "tuntap":
		return "tun"
	default:
		return k
	}
}

// prefixOf converts an address with a mask, host bits kept.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), ones), true
}
