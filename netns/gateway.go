package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// aliasGateway marks the gateway: its tap, or both ends of its veth.
const aliasGateway = "meshnet:gateway"

const (
	// rulePriority is that of our routing rules: before those that lead to the main table (32766).
	rulePriority = 0x6d65
	// routeProtocol marks our routes (see ip-route(8), RTPROTO); 'm'.
	routeProtocol = 'm'
	// marks is what all our marks, which number our tables, have in common.
	marks = plan.MarkMask
)

// gateway makes the veth or tap between the bridge and this host's own stack and all that leads to it:
// neighbours, addresses, routes, rules and forwarding. g is nil where there is to be none.
func (r *round) gateway(g *plan.Gateway) error {
	var errs []error
	var near netlink.Link
	if g != nil {
		var err error
		if near, err = r.door(g); err != nil {
			return fmt.Errorf("make gateway %s: %w", g.Name, err)
		}
		errs = append(errs, r.neighbours(near, g), r.hostAddresses(near, g))
	}
	errs = append(errs, r.routes(near, g), r.rules(g))
	if g != nil {
		errs = append(errs, r.forwarding())
	}
	return errors.Join(errs...)
}

// door makes the gateway's tap or both ends of its veth, up, and returns the host's.
func (r *round) door(g *plan.Gateway) (netlink.Link, error) {
	ends, err := r.doorEnds(g)
	if err != nil {
		return nil, err
	}
	near := ends[0]
	if slices.Compare(near.Attrs().HardwareAddr, g.MAC[:]) != 0 {
		if err := r.change(func() error { return r.h.LinkSetHardwareAddr(near, g.MAC[:]) }); err != nil {
			return nil, fmt.Errorf("set MAC of %s: %w", g.Name, err)
		}
		r.did("set", "%s address %s", g.Name, g.MAC)
	}
	for _, link := range slices.Backward(ends) {
		err := errors.Join(r.mtu(link, g.MTU), r.ipv6(link, "disable_ipv6", "1"), r.alias(link, aliasGateway))
		if !g.Tap() { // whose offloads are up to who opens it: TUNSETOFFLOAD
			err = errors.Join(err, r.checksums(link, g.Offloads))
		}
		if err == nil {
			err = r.up(link)
		}
		if err != nil {
			return nil, err
		}
	}
	// The way back to a sender is in the table of its mark, also when its path is checked.
	return near, r.ipv4(g.Name, "src_valid_mark", "1")
}

// doorEnds returns the tap, or both ends of the veth, the host's first. What is ours and otherwise is made anew.
func (r *round) doorEnds(g *plan.Gateway) ([]netlink.Link, error) {
	near, port := r.have[g.Name], r.have[g.Port]
	for _, link := range []netlink.Link{near, port} {
		if link != nil && !ours(link.Attrs()) && !(g.Tap() && isTap(link)) {
			return nil, fmt.Errorf("a device %s exists that meshnet did not make; rename or remove it", link.Attrs().Name)
		}
	}
	ends, fits := []netlink.Link{near}, near != nil
	if g.Tap() {
		// One without our mark is ovs-vswitchd's: it makes what is not there when it gets the port, or starts with it in its
		// database, as after a reboot.
		fits = fits && ours(near.Attrs()) && isTap(near)
	} else {
		ends = append(ends, port)
		fits = fits && port != nil && near.Type() == "veth" && near.Attrs().ParentIndex == port.Attrs().Index
	}
	if fits {
		return ends, nil
	}
	for _, link := range ends {
		if link == nil {
			continue
		}
		if err := r.removeNow(link); err != nil {
			return nil, err
		}
	}
	if g.Tap() {
		return r.makeTap(g)
	}
	return r.makeVeth(g)
}

func isTap(link netlink.Link) bool {
	tap, ok := link.(*netlink.Tuntap)
	return ok && tap.Mode == netlink.TUNTAP_MODE_TAP
}

func (r *round) makeVeth(g *plan.Gateway) ([]netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group, attrs.MTU, attrs.HardwareAddr = g.Name, group, int(g.MTU), g.MAC[:]
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU = g.Port, g.MTU
	near, err := r.create(veth)
	if err != nil {
		return nil, err
	}
	port, err := r.h.LinkByName(g.Port)
	if err != nil {
		return nil, fmt.Errorf("read %s back: %w", g.Port, err)
	}
	r.have[g.Port] = port
	if err := r.change(func() error { return r.h.LinkSetGroup(port, group) }); err != nil {
		return nil, fmt.Errorf("mark %s: %w", g.Port, err)
	}
	r.did("add", "veth %s %s", g.Name, g.Port)
	return []netlink.Link{near, port}, nil
}

// makeTap makes a tap that outlives who has it open. ovs-vswitchd opens it when it is told of the port.
func (r *round) makeTap(g *plan.Gateway) ([]netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = g.Name
	tap, err := r.create(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_TUN_EXCL})
	if err != nil {
		return nil, err
	}
	if err := r.change(func() error { return r.h.LinkSetGroup(tap, group) }); err != nil {
		return nil, fmt.Errorf("mark %s: %w", g.Name, err)
	}
	r.did("add", "tap %s", g.Name)
	return []netlink.Link{tap}, nil
}

// ipv4 writes a setting under net.ipv4.conf.
func (r *round) ipv4(name, key, value string) error {
	return r.sysctl(filepath.Join("/proc/sys/net/ipv4/conf", name, key), value)
}

// sysctl writes a setting if it is otherwise.
func (s *space) sysctl(path, value string) error {
	have, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err == nil {
		err = s.change(func() error { return os.WriteFile(path, []byte(value), 0) })
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	s.did("set", "%s %s", strings.TrimPrefix(path, "/proc/sys/"), value)
	return nil
}

// neighbours makes the next hops of all networks neighbours for good.
func (r *round) neighbours(near netlink.Link, g *plan.Gateway) error {
	index := near.Attrs().Index
	have, err := dump(func() ([]netlink.Neigh, error) { return r.h.NeighList(index, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", g.Name, err)
	}
	want := map[netip.Addr]plan.Way{}
	for _, w := range g.Ways {
		want[w.Via] = w
	}
	for _, n := range have {
		via, _ := netip.AddrFromSlice(n.IP)
		w, ok := want[via.Unmap()]
		switch {
		case ok && n.State == netlink.NUD_PERMANENT && slices.Compare(n.HardwareAddr, w.MAC[:]) == 0:
			delete(want, w.Via)
		case !ok && n.State == netlink.NUD_PERMANENT:
			if err := r.change(func() error { return r.h.NeighDel(&n) }); err != nil && !missing(err) {
				return fmt.Errorf("remove neighbour %s of %s: %w", via, g.Name, err)
			}
			r.did("remove", "neighbour %s of %s", via, g.Name)
		}
	}
	for _, w := range g.Ways {
		if _, missing := want[w.Via]; !missing {
			continue
		}
		err := r.change(func() error {
			return r.h.NeighSet(&netlink.Neigh{
				LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: w.Via.AsSlice(),
				HardwareAddr: w.MAC[:],
			})
		})
		if err != nil {
			return fmt.Errorf("set neighbour %s of %s: %w", w.Via, g.Name, err)
		}
		r.did("add", "neighbour %s of %s", w.Via, g.Name)
	}
	return nil
}

// hostAddresses makes this host's own addresses on networks the only ones of the gateway.
func (r *round) hostAddresses(near netlink.Link, g *plan.Gateway) error {
	have, err := dump(func() ([]netlink.Addr, error) { return r.h.AddrList(near, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", g.Name, err)
	}
	want := map[netip.Prefix]bool{}
	for _, w := range g.Ways {
		if w.Host.IsValid() {
			want[netip.PrefixFrom(w.Host, 32)] = true
		}
	}
	for _, a := range have {
		p, ok := prefixOf(a.IPNet)
		if ok && want[p] {
			delete(want, p)
			continue
		}
		if err := r.change(func() error { return r.h.AddrDel(near, &a) }); err != nil && !missing(err) && !noAddress(err) {
			return fmt.Errorf("take the address %s from %s: %w", a.IPNet, g.Name, err)
		}
		r.did("set", "%s without address %s", g.Name, a.IPNet)
	}
	for p := range want {
		err := r.change(func() error { return r.h.AddrAdd(near, &netlink.Addr{IPNet: ipNet(p)}) })
		if err != nil && !exists(err) {
			return fmt.Errorf("give %s the address %s: %w", g.Name, p, err)
		}
		r.did("set", "%s address %s", g.Name, p)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// way is a route of ours.
type way struct {
	table uint32
	dst   netip.Prefix
	via   netip.Addr
	src   netip.Addr // invalid: the kernel chooses
	mtu   int
	index int
}

// routes makes our routes as planned: each network's subnet in the table of its mark, and in the main
// table where this host has an address on the network.
func (r *round) routes(near netlink.Link, g *plan.Gateway) error {
	have, err := r.ourRoutes()
	if err != nil {
		return err
	}
	want := map[way]bool{}
	if g != nil {
		index := near.Attrs().Index
		for _, w := range g.Ways {
			one := way{table: w.Mark, dst: w.Subnet, via: w.Via, src: w.Host, mtu: int(w.MTU), index: index}
			want[one] = true
			if w.Host.IsValid() {
				one.table = unix.RT_TABLE_MAIN
				want[one] = true
			}
		}
	}
	for w := range have {
		if want[w] {
			continue
		}
		if err := r.change(func() error { return r.h.RouteDel(w.route()) }); err != nil && !missing(err) && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", w.dst, err)
		}
		r.did("remove", "route %s via %s table %d", w.dst, w.via, w.table)
	}
	var errs []error
	for w := range want {
		if have[w] {
			continue
		}
		if err := r.change(func() error { return r.h.RouteAdd(w.route()) }); exists(err) {
			errs = append(errs, fmt.Errorf("add route to %s: this host has another one; remove it, or meshnet hide the network", w.dst))
			continue
		} else if err != nil {
			errs = append(errs, fmt.Errorf("add route to %s: %w", w.dst, err))
			continue
		}
		r.did("add", "route %s via %s table %d", w.dst, w.via, w.table)
	}
	return errors.Join(errs...)
}

// ourRoutes returns the routes that bear our mark.
func (r *round) ourRoutes() (map[way]bool, error) {
	filter := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}
	list, err := dump(func() ([]netlink.Route, error) {
		return r.h.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := map[way]bool{}
	for _, have := range list {
		dst, ok := prefixOf(have.Dst)
		if table := uint32(have.Table); !ok || table&marks != plan.Mark(0) && table != unix.RT_TABLE_MAIN {
			continue
		}
		via, _ := netip.AddrFromSlice(have.Gw)
		src, _ := netip.AddrFromSlice(have.Src)
		out[way{uint32(have.Table), dst, via.Unmap(), src.Unmap(), have.MTU, have.LinkIndex}] = true
	}
	return out, nil
}

func (w way) route() *netlink.Route {
	r := &netlink.Route{
		Table: int(w.table), Dst: ipNet(w.dst), Gw: w.via.AsSlice(), MTU: w.mtu, LinkIndex: w.index,
		Protocol: routeProtocol, Flags: int(netlink.FLAG_ONLINK),
	}
	if w.src.IsValid() {
		r.Src = w.src.AsSlice()
	}
	return r
}

// rules makes our routing rules as planned: what bears a network's mark goes by its table.
func (r *round) rules(g *plan.Gateway) error {
	list, err := dump(func() ([]netlink.Rule, error) { return r.h.RuleList(netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list routing rules: %w", err)
	}
	want := map[uint32]bool{}
	if g != nil {
		for _, w := range g.Ways {
			want[w.Mark] = true
		}
	}
	for _, rule := range list {
		if rule.Mark&marks != plan.Mark(0) || uint32(rule.Table) != rule.Mark || rule.Priority != rulePriority {
			continue
		}
		if want[rule.Mark] {
			delete(want, rule.Mark)
			continue
		}
		if err := r.change(func() error { return r.h.RuleDel(markRule(rule.Mark)) }); err != nil && !missing(err) {
			return fmt.Errorf("remove routing rule of mark %#x: %w", rule.Mark, err)
		}
		r.did("remove", "rule fwmark %#x", rule.Mark)
	}
	for mark := range want {
		if err := r.change(func() error { return r.h.RuleAdd(markRule(mark)) }); err != nil && !exists(err) {
			return fmt.Errorf("add routing rule of mark %#x: %w", mark, err)
		}
		r.did("add", "rule fwmark %#x", mark)
	}
	return nil
}

func markRule(mark uint32) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Mark, rule.Table = netlink.FAMILY_V4, rulePriority, mark, int(mark)
	return rule
}

const forwardPath = "/proc/sys/net/ipv4/ip_forward"

// forwarding makes this host forward IPv4 packets, and notes that it did not, for the purge.
func (r *round) forwarding() error {
	have, err := os.ReadFile(forwardPath)
	if err != nil {
		return fmt.Errorf("read whether this host forwards packets: %w", err)
	}
	if strings.TrimSpace(string(have)) == "1" {
		return nil
	}
	if r.note == "" {
		return errors.New("let this host forward packets: there is no run directory to note it in")
	}
	err = r.change(func() error { return os.WriteFile(r.note, have, 0o644) })
	if err != nil {
		return fmt.Errorf("note that this host did not forward packets: %w", err)
	}
	return r.sysctl(forwardPath, "1")
}

// restoreForwarding undoes [round.forwarding], unless Docker is there, which would have turned it on
// by itself.
func (r *round) restoreForwarding() error {
	if r.note == "" {
		return nil
	}
	was, err := os.ReadFile(r.note)
	if absent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read whether this host forwarded packets: %w", err)
	}
	if _, docker := r.have["docker0"]; !docker {
		if err := r.sysctl(forwardPath, strings.TrimSpace(string(was))); err != nil {
			return err
		}
	}
	return os.Remove(r.note)
}
