package netns

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"meshnet/plan"
	"meshnet/state"
)

// vxlan makes the device of one network. Its entries are there before it goes up, so that it never
// sends anywhere else.
func (r *round) vxlan(n, before *plan.Network, groOff bool) error {
	d := n.Device
	link, err := r.device(d)
	if err != nil {
		return fmt.Errorf("make vxlan %s: %w", d.Name, err)
	}
	if err := r.mtu(link, d.MTU); err != nil {
		return err
	}
	if err := r.ipv6(link, "disable_ipv6", "1"); err != nil {
		return err
	}
	if err := r.offload(link, receive(), !groOff); err != nil {
		return err
	}
	if err := r.entries(link, n, before); err != nil {
		return fmt.Errorf("make entries of vxlan %s: %w", d.Name, err)
	}
	if err := r.alias(link, aliasNetwork+n.ID.String()); err != nil {
		return err
	}
	return r.listen(link, d.Port)
}

// listen sets the device up, which is when it takes its UDP port.
func (r *round) listen(link netlink.Link, port uint16) error {
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := r.abandoned(port); err != nil {
			return err
		}
	}
	err := r.up(link)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w: something else has UDP port %d; ss -ulnp and ip -d link show type vxlan say what; "+
			"end it, or choose another --tunnel-port on all nodes", err, port)
	}
	return err
}

// device returns the VXLAN device of that name, made if need be. One whose fixed attributes differ is
// made anew. That its ageing time is the kernel's default means nothing: permanent entries do not
// age, and there are no others.
func (r *round) device(d *plan.Vxlan) (netlink.Link, error) {
	if have, ok := r.have[d.Name]; ok {
		if !ours(have.Attrs()) || have.Type() != "vxlan" {
			return nil, fmt.Errorf("a device of that name exists that meshnet did not make; rename or remove it")
		}
		if same(have, d) {
			return have, nil
		}
		if err := r.removeNow(have); err != nil {
			return nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group, attrs.MTU = d.Name, group, int(d.MTU)
	made, err := r.create(&netlink.Vxlan{
		LinkAttrs: attrs,
		VxlanId:   int(d.VNI),
		SrcAddr:   d.Local.AsSlice(),
		Port:      int(d.Port),
	})
	if exists(err) {
		return nil, fmt.Errorf("another device has VNI %d on UDP port %d already; remove it or choose another tunnel port: %w", d.VNI, d.Port, err)
	}
	if err != nil {
		return nil, err
	}
	r.did("add", "vxlan %s vni %d local %s port %d", d.Name, d.VNI, d.Local, d.Port)
	return made, nil
}

// abandoned removes the device by which Open vSwitch carried our tunnels on the kernel's datapath, if
// the datapath is gone and left it behind, as when ovs-vswitchd is stopped and the module unloaded. It
// keeps the UDP port. While it serves a datapath it has that for its master, and is left alone.
func (r *round) abandoned(port uint16) error {
	have, ok := r.have[fmt.Sprintf("vxlan_sys_%d", port)]
	if !ok || have.Type() != "vxlan" || have.Attrs().MasterIndex != 0 {
		return nil
	}
	return r.removeNow(have)
}

// same compares what cannot be changed on a VXLAN device, or not on every kernel.
func same(have netlink.Link, d *plan.Vxlan) bool {
	v, ok := have.(*netlink.Vxlan)
	if !ok {
		return false
	}
	local, _ := netip.AddrFromSlice(v.SrcAddr)
	return v.VxlanId == int(d.VNI) && local.Unmap() == d.Local.Unmap() && v.Port == int(d.Port) &&
		!v.Learning && v.Group == nil && v.VtepDevIndex == 0
}

// entry is one line of bridge fdb show: packets for a MAC go to an address. The zero MAC stands for
// all that is not unicast.
type entry struct {
	mac state.MAC
	via netip.Addr
}

// entries makes the forwarding entries of a VXLAN device as planned. If they are known to be as in the
// plan before, only what changed since is written.
func (r *round) entries(link netlink.Link, n, before *plan.Network) error {
	index := link.Attrs().Index
	if before == n && r.mirror.knows(index) {
		return nil
	}
	err := error(nil)
	if before != nil && before.Device != nil && r.mirror.knows(index) {
		gone, came := n.Since(before)
		was, is := before.Device.Flood, n.Device.Flood
		if slices.Equal(was, is) {
			was, is = nil, nil
		}
		have, want := entriesOf(gone, was), entriesOf(came, is)
		err = r.turn(link, have, want)
	} else {
		var have map[entry]bool
		if have, err = forwarding(index); err == nil {
			r.mirror.lose(index)
			err = r.turn(link, have, entriesOf(n.Remotes, n.Device.Flood))
		}
	}
	if err != nil {
		r.mirror.lose(index)
	}
	return err
}

// entriesOf returns the entries of members elsewhere and of what is not unicast.
func entriesOf(remotes []*plan.Remote, flood []netip.Addr) map[entry]bool {
	out := make(map[entry]bool, len(remotes)+len(flood))
	for _, r := range remotes {
		out[entry{r.MAC, r.Via.Unmap()}] = true
	}
	for _, via := range flood {
		out[entry{via: via.Unmap()}] = true
	}
	return out
}

// turn changes some entries of a device into others: what is missing first, then what is too many. A
// unicast MAC has one address, so setting it replaces another.
func (r *round) turn(link netlink.Link, have, want map[entry]bool) error {
	name, index := link.Attrs().Name, link.Attrs().Index
	unicast := make(map[state.MAC]bool, len(want))
	for e := range want {
		if e.mac != (state.MAC{}) {
			unicast[e.mac] = true
		}
	}
	r.mirror.expect(index, func(all map[entry]bool) {
		for e := range have {
			delete(all, e)
		}
		for e := range want {
			all[e] = true
		}
	})
	for _, e := range ordered(want) {
		if have[e] {
			continue
		}
		set := r.h.NeighSet
		if e.mac == (state.MAC{}) {
			set = r.h.NeighAppend
		}
		if err := set(e.neigh(index)); err != nil {
			return fmt.Errorf("set %s dst %s: %w", e.mac, e.via, err)
		}
		r.did("add", "entry %s %s dst %s", name, e.mac, e.via)
	}
	for _, e := range ordered(have) {
		if want[e] || unicast[e.mac] { // replaced above
			continue
		}
		if err := r.h.NeighDel(e.neigh(index)); err != nil && !missing(err) {
			return fmt.Errorf("remove %s dst %s: %w", e.mac, e.via, err)
		}
		r.did("remove", "entry %s %s dst %s", name, e.mac, e.via)
	}
	return nil
}

// forwarding lists the permanent entries of one device; there should be no others, since the device
// does not learn. A request that begins with an ifinfomsg makes the kernel list that device's alone,
// which an ndmsg does not unless the socket asks for strict checks.
func forwarding(index int) (map[entry]bool, error) {
	list, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
		msg.Index = int32(index)
		req.AddData(msg)
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	})
	if err != nil {
		return nil, fmt.Errorf("list entries: %w", err)
	}
	out := make(map[entry]bool, len(list))
	for _, b := range list {
		n, err := netlink.NeighDeserialize(b)
		if err != nil {
			return nil, fmt.Errorf("list entries: %w", err)
		}
		via, ok := netip.AddrFromSlice(n.IP)
		if ok && len(n.HardwareAddr) == 6 && n.LinkIndex == index && n.State&netlink.NUD_PERMANENT != 0 {
			out[entry{state.MAC(n.HardwareAddr), via.Unmap()}] = true
		}
	}
	return out, nil
}

// neigh returns the entry as netlink has it: permanent, of the device itself.
func (e entry) neigh(index int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    index,
		Family:       unix.AF_BRIDGE,
		State:        netlink.NUD_PERMANENT,
		Flags:        netlink.NTF_SELF,
		IP:           e.via.AsSlice(),
		HardwareAddr: net.HardwareAddr(e.mac[:]),
	}
}

// ordered returns entries by MAC and address.
func ordered(set map[entry]bool) []entry {
	out := make([]entry, 0, len(set))
	for e := range set {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b entry) int {
		return cmp.Or(bytes.Compare(a.mac[:], b.mac[:]), a.via.Compare(b.via))
	})
	return out
}
