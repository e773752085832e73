package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// ifNameMax bounds the search for a free ethN.
const ifNameMax = 1024

// errBroken says that the end of a veth is not in the container where it should be.
var errBroken = errors.New("the other end is not in the container")

// pair is a veth that the plan wants and its end on the host.
type pair struct {
	plan.Link
	host netlink.Link
}

// sandbox makes the links into one container.
func (r *round) sandbox(links []plan.Link) {
	ns, err := openSandbox(links[0].Sandbox)
	if errors.Is(err, ErrGone) {
		for _, l := range links {
			r.found.Gone = append(r.found.Gone, l.Endpoint)
		}
		return
	}
	if err != nil {
		for _, l := range links {
			r.fail(fmt.Errorf("make link %s: %w", l.Name, err))
		}
		return
	}
	defer ns.Close()
	if r.isTidy(links) {
		return
	}
	var pairs []pair
	for _, l := range links {
		host, err := r.hostEnd(l, ns)
		if err != nil {
			r.fail(fmt.Errorf("make link %s: %w", l.Name, err))
			continue
		}
		pairs = append(pairs, pair{l, host})
	}
	before := len(r.errs)
	broken := r.finish(pairs, ns)
	if len(broken) == 0 && len(r.errs) == before && len(pairs) == len(links) {
		r.keepTidy(pairs)
	}
	if r.looking {
		if len(broken) > 0 {
			r.fail(errDiffers)
		}
		return
	}
	pairs = pairs[:0]
	for _, p := range broken {
		err := r.removeNow(p.host)
		if err == nil {
			p.host, err = r.hostEnd(p.Link, ns)
		}
		if err != nil {
			r.fail(fmt.Errorf("make link %s anew: %w", p.Name, err))
			continue
		}
		pairs = append(pairs, p)
	}
	for _, p := range r.finish(pairs, ns) {
		r.fail(fmt.Errorf("make link %s: %w", p.Name, errBroken))
	}
}

// isTidy reports whether a container is known to be as planned, and makes the hosts' ends so.
func (r *round) isTidy(links []plan.Link) bool {
	t, ok := r.clean[links[0].Sandbox]
	live := true
	if !ok || !r.mirror.holds(&live) || !slices.Equal(t.links, links) {
		return false
	}
	pairs := make([]pair, 0, len(links))
	for i, l := range links {
		host, ok := r.have[l.Name]
		if !ok || host.Attrs().Index != t.hosts[i] {
			return false
		}
		pairs = append(pairs, pair{l, host})
	}
	for i, p := range pairs {
		if err := r.finishHost(p); err != nil {
			r.fail(fmt.Errorf("make link %s: %w", p.Name, err))
			continue
		}
		r.found.IfNames[p.Endpoint] = t.names[i]
	}
	return true
}

// keepTidy notes that a container is as planned.
func (r *round) keepTidy(pairs []pair) {
	var t tidy
	for _, p := range pairs {
		t.links = append(t.links, p.Link)
		t.hosts = append(t.hosts, p.host.Attrs().Index)
		t.names = append(t.names, r.found.IfNames[p.Endpoint])
	}
	r.clean[pairs[0].Sandbox] = t
}

// hostEnd returns the host's end of a link. If there is none the pair is made, its other end at once
// in the container; both ends are down, and the host's bears the first part of our mark.
func (r *round) hostEnd(l plan.Link, ns *os.File) (netlink.Link, error) {
	if have, ok := r.have[l.Name]; ok {
		if !ours(have.Attrs()) || have.Type() != "veth" {
			return nil, fmt.Errorf("a device of that name exists that meshnet did not make; rename or remove it")
		}
		return have, nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group, attrs.MTU = l.Name, group, int(l.MTU)
	veth := netlink.NewVeth(attrs)
	veth.PeerName = l.Name
	veth.PeerNamespace = netlink.NsFd(int(ns.Fd()))
	veth.PeerHardwareAddr = net.HardwareAddr(l.MAC[:])
	veth.PeerMTU = l.MTU
	made, err := r.create(veth)
	if err != nil {
		return nil, err
	}
	r.did("add", "veth %s", l.Name)
	return made, r.removals.clear(made.Attrs().NetNsID)
}

// finish makes both ends of pairs as planned, the container's first: when the host's end is up,
// packets flow. It returns the pairs of which the other end is not in the container.
func (r *round) finish(pairs []pair, ns *os.File) (broken []pair) {
	if len(pairs) == 0 {
		return nil
	}
	errs := make([]error, len(pairs))
	names := make([]string, len(pairs))
	in := inside{space: space{looking: r.looking}}
	err := within(ns, func() error {
		if err := in.read(); err != nil {
			return err
		}
		defer in.close()
		for i, p := range pairs {
			names[i], errs[i] = in.end(p)
		}
		return nil
	})
	r.steps = append(r.steps, in.steps...)
	if err != nil {
		r.fail(fmt.Errorf("make link %s: %w", pairs[0].Name, err))
		return nil
	}
	for i, p := range pairs {
		err := errs[i]
		if errors.Is(err, errBroken) {
			broken = append(broken, p)
			continue
		}
		if err == nil {
			err = r.finishHost(p)
		}
		if err != nil {
			r.fail(fmt.Errorf("make link %s: %w", p.Name, err))
			continue
		}
		r.found.IfNames[p.Endpoint] = names[i]
	}
	return broken
}

// finishHost sets the host's end. The alias comes late: it says that all before is done.
func (r *round) finishHost(p pair) error {
	if err := r.mtu(p.host, p.MTU); err != nil {
		return err
	}
	if err := r.ipv6(p.host, "disable_ipv6", "1"); err != nil {
		return err
	}
	if err := r.checksums(p.host, p.Offloads); err != nil {
		return err
	}
	if err := r.alias(p.host, aliasEndpoint+p.Endpoint.String()); err != nil {
		return err
	}
	return r.up(p.host)
}

// checksums turns the offloads of a veth on or off.
func (s *space) checksums(link netlink.Link, on bool) error {
	if err := s.offload(link, txChecksum(), on); err != nil || !on {
		return err
	}
	return s.offload(link, segmentation(), true)
}

// inside is the namespace of a container, for the thread that is in it.
type inside struct {
	space
	links map[int]netlink.Link
	names map[string]bool
	addrs []netlink.Addr
	// routes are those of IPv4.
	routes []netlink.Route
}

func (in *inside) read() error {
	if err := in.open(); err != nil {
		return err
	}
	links, err := dump(in.h.LinkList)
	if err == nil {
		in.addrs, err = dump(func() ([]netlink.Addr, error) { return in.h.AddrList(nil, netlink.FAMILY_V4) })
	}
	if err == nil {
		in.routes, err = dump(func() ([]netlink.Route, error) { return in.h.RouteList(nil, netlink.FAMILY_V4) })
	}
	if err != nil {
		in.close()
		return fmt.Errorf("list interfaces of the container: %w", err)
	}
	in.links, in.names = make(map[int]netlink.Link), make(map[string]bool)
	for _, link := range links {
		a := link.Attrs()
		in.links[a.Index] = link
		in.names[a.Name] = true
		for _, alt := range a.AltNames {
			in.names[alt] = true
		}
	}
	return nil
}

// end makes the container's end of a pair as planned and returns its name. It has its name and MAC
// before it goes up and makes no IPv6 address of its own, so that it says nothing unasked.
func (in *inside) end(p pair) (string, error) {
	link, err := in.find(p)
	if err != nil {
		return "", err
	}
	if err := in.alias(link, aliasContainer+p.Endpoint.String()); err != nil {
		return "", err
	}
	if err := in.rename(link, p); err != nil {
		return "", err
	}
	a := link.Attrs()
	if slices.Compare(a.HardwareAddr, p.MAC[:]) != 0 {
		if err := in.change(func() error { return in.h.LinkSetHardwareAddr(link, p.MAC[:]) }); err != nil {
			return "", fmt.Errorf("set MAC of %s: %w", a.Name, err)
		}
		in.did("set", "%s address %s", a.Name, p.MAC)
	}
	if err := in.mtu(link, p.MTU); err != nil {
		return "", err
	}
	// 1 is IN6_ADDR_GEN_MODE_NONE: no link-local address, so neither solicitations nor detection of duplicates.
	if err := in.ipv6(link, "addr_gen_mode", "1"); err != nil {
		return "", err
	}
	if err := in.ipv6(link, "accept_ra", "0"); err != nil {
		return "", err
	}
	if err := in.checksums(link, p.Offloads); err != nil {
		return "", err
	}
	if err := in.address(link, p.Addr); err != nil {
		return "", err
	}
	if err := in.up(link); err != nil {
		return "", err
	}
	return a.Name, in.defaultRoute(link, p.Gateway)
}

// defaultRoute makes the container's default route lead to the gateway, or not by this link if
// there is none. One that others made stays, and comes first.
func (in *inside) defaultRoute(link netlink.Link, gateway netip.Addr) error {
	a := link.Attrs()
	has, foreign := false, false
	for _, r := range in.routes {
		if p, ok := prefixOf(r.Dst); r.Dst != nil && (!ok || p.Bits() > 0) {
			continue
		}
		via, _ := netip.AddrFromSlice(r.Gw)
		switch {
		case r.Protocol != routeProtocol:
			foreign = true
		case r.LinkIndex != a.Index:
			// of another network of ours: that link is looked at too
		case gateway.IsValid() && via.Unmap() == gateway:
			has = true
		default:
			if err := in.change(func() error { return in.h.RouteDel(&r) }); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove default route by %s: %w", a.Name, err)
			}
			in.did("remove", "default route by %s", a.Name)
		}
	}
	if has || foreign || !gateway.IsValid() {
		return nil
	}
	err := in.change(func() error {
		return in.h.RouteAdd(&netlink.Route{
			LinkIndex: a.Index, Gw: gateway.AsSlice(), Protocol: routeProtocol,
			Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		})
	})
	if err != nil && !exists(err) {
		return fmt.Errorf("add default route by %s: %w", a.Name, err)
	}
	in.did("add", "default route via %s", gateway)
	return nil
}

// find returns the container's end of a pair. Indexes alone would not do: they count anew in every
// namespace. It bears the alias, or still the name it was made with.
func (in *inside) find(p pair) (netlink.Link, error) {
	link, ok := in.links[p.host.Attrs().ParentIndex]
	if !ok || link.Type() != "veth" {
		return nil, errBroken
	}
	if a := link.Attrs(); a.Alias != aliasContainer+p.Endpoint.String() && a.Name != p.Name {
		return nil, errBroken
	}
	return link, nil
}

// rename gives the container's end its name: the wished one, else the one it has, else the one it had
// before if that is free, else the first free of eth0, eth1, …
func (in *inside) rename(link netlink.Link, p pair) error {
	a := link.Attrs()
	want := p.IfName
	if want == "" {
		want = a.Name
		if want == p.Name && p.Prefer != "" && !in.names[p.Prefer] {
			want = p.Prefer
		}
		for i := 0; want == p.Name && i < ifNameMax; i++ {
			if name := fmt.Sprintf("eth%d", i); !in.names[name] {
				want = name
			}
		}
	}
	if a.Name == want {
		return nil
	}
	if in.names[want] {
		return fmt.Errorf("the container has an interface %s already; choose another name", want)
	}
	// Before Linux 6.2 an interface that is up cannot be renamed.
	if a.Flags&net.FlagUp != 0 {
		if err := in.change(func() error { return in.h.LinkSetDown(link) }); err != nil {
			return fmt.Errorf("set %s down: %w", a.Name, err)
		}
		a.Flags &^= net.FlagUp
	}
	if err := in.change(func() error { return in.h.LinkSetName(link, want) }); err != nil {
		return fmt.Errorf("rename %s to %s: %w", a.Name, want, err)
	}
	in.did("set", "%s name %s", a.Name, want)
	delete(in.names, a.Name)
	in.names[want] = true
	a.Name = want
	return nil
}

// address makes want the only IPv4 address of the container's end.
func (in *inside) address(link netlink.Link, want netip.Prefix) error {
	a, has := link.Attrs(), false
	var others []netlink.Addr
	for _, have := range in.addrs {
		if have.LinkIndex != a.Index {
			continue
		}
		if p, ok := prefixOf(have.IPNet); ok && p == want {
			has = true
		} else {
			others = append(others, have)
		}
	}
	for _, old := range others {
		if err := in.change(func() error { return in.h.AddrDel(link, &old) }); err != nil && !missing(err) && !noAddress(err) {
			return fmt.Errorf("take the address %s from %s: %w", old.IPNet, a.Name, err)
		}
		in.did("set", "%s without address %s", a.Name, old.IPNet)
	}
	if has && len(others) == 0 {
		return nil
	}
	// Last, and also if it was there: a secondary address went with its primary one.
	mask := net.CIDRMask(want.Bits(), want.Addr().BitLen())
	err := in.change(func() error {
		return in.h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: want.Addr().AsSlice(), Mask: mask}})
	})
	if exists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("give %s the address %s: %w", a.Name, want, err)
	}
	in.did("set", "%s address %s", a.Name, want)
	return nil
}
