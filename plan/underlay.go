package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// LinkFacts is an interface of the host, as package netns reads it.
type LinkFacts struct {
	Name    string
	Index   int
	Kind    string // as ip -d link shows: veth, bridge, …; empty for hardware
	MTU     uint32
	Up      bool
	Ours    bool // bears our mark
	Docker  bool // docker0, or a bridge or veth that Docker made
	Addrs   []netip.Prefix
	Default bool // the preferred default route leaves by it
}

// Underlay is the interface that carries gossip and tunnels.
type Underlay struct {
	Device string
	Index  int
	Addr   netip.Addr
	Prefix netip.Prefix // of Addr, as on the interface
	MTU    uint32       // bytes
}

// ChooseUnderlay picks the interface that carries gossip and tunnels: the one with the advertised
// address or the given name, else the default route's, else the only one up with a global address
// that neither meshnet nor Docker made. Of an interface's addresses it takes the first global one,
// IPv4 before IPv6. The error lists what there is.
func ChooseUnderlay(w Wants, links []LinkFacts) (Underlay, error) {
	u, err := chooseUnderlay(w, links)
	if err != nil {
		return Underlay{}, fmt.Errorf("choose the underlay interface: %w", err)
	}
	return u, nil
}

func chooseUnderlay(w Wants, links []LinkFacts) (Underlay, error) {
	switch {
	case w.Advertise.IsValid():
		return withAddress(w, links)
	case w.Iface != "":
		return withName(w.Iface, links)
	}
	var found, byDefault []LinkFacts
	for _, l := range links {
		if _, ok := l.global(); !ok || !l.Up || l.Ours || l.Docker {
			continue
		}
		found = append(found, l)
		if l.Default {
			byDefault = append(byDefault, l)
		}
	}
	if len(byDefault) == 1 {
		found = byDefault
	}
	switch len(found) {
	case 0:
		return Underlay{}, fmt.Errorf("none is up with a global address; bring one up, or name one with --iface or --advertise (%s)", list(links))
	case 1:
		p, _ := found[0].global()
		return found[0].underlay(p), nil
	}
	return Underlay{}, fmt.Errorf("several have a global address; name one with --iface or --advertise (%s)", list(found))
}

// Stays reports whether an underlay that was chosen is still there: the same device with the same
// address and MTU. That the device is down for a moment is no reason to look for another.
func (u Underlay) Stays(links []LinkFacts) bool {
	for _, l := range links {
		if l.Name == u.Device && l.Index == u.Index {
			return l.MTU == u.MTU && slices.Contains(l.Addrs, u.Prefix)
		}
	}
	return false
}

// withAddress picks the interface that has the advertised address, whatever kind of address it is.
func withAddress(w Wants, links []LinkFacts) (Underlay, error) {
	for _, l := range links {
		for _, p := range l.Addrs {
			if p.Addr().Unmap() != w.Advertise.Unmap() || w.Iface != "" && w.Iface != l.Name {
				continue
			}
			if !l.Up {
				return Underlay{}, fmt.Errorf("--advertise %s: %s is down; bring it up", w.Advertise, l.Name)
			}
			return l.underlay(p), nil
		}
	}
	on := "this host"
	if w.Iface != "" {
		on = w.Iface
	}
	return Underlay{}, fmt.Errorf("--advertise %s: %s has no such address; take one of these (%s)", w.Advertise, on, list(links))
}

func withName(name string, links []LinkFacts) (Underlay, error) {
	for _, l := range links {
		if l.Name != name {
			continue
		}
		p, ok := l.global()
		switch {
		case !l.Up:
			return Underlay{}, fmt.Errorf("--iface %s: it is down; bring it up", name)
		case !ok:
			return Underlay{}, fmt.Errorf("--iface %s: it has no global address; give it one, or take another (%s)", name, list(links))
		}
		return l.underlay(p), nil
	}
	return Underlay{}, fmt.Errorf("--iface %s: no such interface; take one of these (%s)", name, list(links))
}

// global returns the first global unicast address, IPv4 before IPv6.
func (l *LinkFacts) global() (netip.Prefix, bool) {
	var first netip.Prefix
	for _, p := range l.Addrs {
		a := p.Addr().Unmap()
		if !a.IsGlobalUnicast() {
			continue
		}
		if a.Is4() {
			return p, true
		}
		if !first.IsValid() {
			first = p
		}
	}
	return first, first.IsValid()
}

func (l *LinkFacts) underlay(p netip.Prefix) Underlay {
	return Underlay{Device: l.Name, Index: l.Index, Addr: p.Addr().Unmap(), Prefix: p, MTU: l.MTU}
}

// list names interfaces with their addresses for an error.
func list(links []LinkFacts) string {
	var words []string
	for _, l := range links {
		word := l.Name
		for _, p := range l.Addrs {
			word += " " + p.String()
		}
		if !l.Up {
			word += " down"
		}
		words = append(words, word)
	}
	if len(words) == 0 {
		return "no interface at all"
	}
	return strings.Join(words, ", ")
}
