package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"meshnet/netns"
	"meshnet/netns/nstest"
	"meshnet/plan"
	"meshnet/state"
)

// mark is the group number of our devices, written out: it is on the hosts of people.
const mark = 1835365224

func newLinks(t *testing.T) *netns.Links {
	t.Helper()
	l, err := netns.New(netns.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func box(t *testing.T, name string) plan.Sandbox {
	t.Helper()
	path := nstest.Add(t, name)
	f, s, err := netns.FromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return plan.Sandbox{Path: s.Path, Inode: s.Inode}
}

func link(n int, b plan.Sandbox) plan.Link {
	a := netip.AddrFrom4([4]byte{10, 2, 0, byte(n)})
	return plan.Link{
		Endpoint: state.EndpointID(n), Name: fmt.Sprintf("mc-%010x", n), Sandbox: b,
		Addr: netip.PrefixFrom(a, 16), MAC: state.MACOf(a), MTU: 1450, Offloads: true,
	}
}

func device(n int) *plan.Network {
	return &plan.Network{ID: state.NetworkID(n), VNI: uint32(n), Device: &plan.Vxlan{
		Name: fmt.Sprintf("mv-%010x", n), VNI: uint32(n), Local: netip.MustParseAddr("192.0.2.1"), Port: 14789, MTU: 1450,
		Flood: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")},
	}, Remotes: []*plan.Remote{
		{Addr: netip.MustParseAddr("10.2.0.7"), MAC: state.MAC{2, 0x42, 10, 2, 0, 7}, Via: netip.MustParseAddr("192.0.2.2")},
		{Addr: netip.MustParseAddr("10.2.0.8"), MAC: state.MAC{2, 0x42, 10, 2, 0, 8}, Via: netip.MustParseAddr("192.0.2.3")},
	}}
}

func host(links []plan.Link, networks ...*plan.Network) *plan.Host {
	h := &plan.Host{TSO: true, Links: links, Networks: make(map[state.NetworkID]*plan.Network)}
	for _, n := range networks {
		h.Networks[n.ID] = n
	}
	return h
}

// apply applies and wants no error.
func apply(t *testing.T, l *netns.Links, h *plan.Host) ([]string, plan.Found) {
	t.Helper()
	steps, found, err := l.Apply(t.Context(), h)
	if err != nil {
		t.Fatalf("apply: %v (after %v)", err, steps)
	}
	return said(steps), found
}

func said(steps []plan.Step) []string {
	var out []string
	for _, s := range steps {
		out = append(out, s.String())
	}
	return out
}

// settled applies and wants nothing to be done.
func settled(t *testing.T, l *netns.Links, h *plan.Host) {
	t.Helper()
	if steps, _ := apply(t, l, h); len(steps) != 0 {
		t.Errorf("applied again: %q; want nothing to do", steps)
	}
}

func get(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("device %s: %v", name, err)
	}
	return l
}

func present(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// at gives a netlink handle in a namespace.
func at(t *testing.T, b plan.Sandbox) *netlink.Handle {
	t.Helper()
	ns, err := vns.GetFromPath(b.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// run runs a command, in a namespace if b has one.
func run(t *testing.T, b plan.Sandbox, args ...string) string {
	t.Helper()
	if b.Path != "" {
		args = append([]string{"nsenter", "--net=" + b.Path}, args...)
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// checkEnd compares the container's end of a link with the plan.
func checkEnd(t *testing.T, l plan.Link, name string) {
	t.Helper()
	h := at(t, l.Sandbox)
	end, err := h.LinkByName(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	a := end.Attrs()
	if a.HardwareAddr.String() != l.MAC.String() || a.MTU != int(l.MTU) || a.Flags&net.FlagUp == 0 {
		t.Errorf("%s has MAC %s, MTU %d, flags %s; want %s, %d, up", name, a.HardwareAddr, a.MTU, a.Flags, l.MAC, l.MTU)
	}
	if want := "meshnet:container=" + l.Endpoint.String(); a.Alias != want {
		t.Errorf("%s has alias %q, want %q", name, a.Alias, want)
	}
	addrs, err := h.AddrList(end, netlink.FAMILY_ALL)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != l.Addr.String() {
		t.Errorf("%s has addresses %v, %v; want %s alone", name, addrs, err, l.Addr)
	}
	for key, want := range map[string]string{"accept_ra": "0", "addr_gen_mode": "1"} {
		if got := strings.TrimSpace(run(t, l.Sandbox, "cat", "/proc/sys/net/ipv6/conf/"+name+"/"+key)); got != want {
			t.Errorf("%s of %s is %s, want %s", key, name, got, want)
		}
	}
	routes, err := h.RouteList(end, netlink.FAMILY_V4)
	if err != nil || len(routes) != 1 || routes[0].Dst.String() != l.Addr.Masked().String() {
		t.Errorf("routes by %s: %v, %v; want the subnet alone", name, routes, err)
	}
}

func checkHostEnd(t *testing.T, l plan.Link) {
	t.Helper()
	a := get(t, l.Name).Attrs()
	if a.MTU != int(l.MTU) || a.Flags&net.FlagUp == 0 || a.Alias != "meshnet:endpoint="+l.Endpoint.String() || a.Group != mark {
		t.Errorf("%s has MTU %d, flags %s, alias %q, group %d", l.Name, a.MTU, a.Flags, a.Alias, a.Group)
	}
	if a.OperState != netlink.OperUp {
		t.Errorf("%s is %s, want up", l.Name, a.OperState)
	}
	quiet(t, l.Name)
}

// quiet wants no IPv6 on a device of the host.
func quiet(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
	if err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Errorf("disable_ipv6 of %s: %q, %v; want 1", name, b, err)
	}
}

func checkDevice(t *testing.T, n *plan.Network) {
	t.Helper()
	d := n.Device
	v, ok := get(t, d.Name).(*netlink.Vxlan)
	if !ok {
		t.Fatalf("%s is not a vxlan device", d.Name)
	}
	a := v.Attrs()
	if v.VxlanId != int(d.VNI) || v.SrcAddr.String() != d.Local.String() || v.Port != int(d.Port) || v.Learning {
		t.Errorf("%s: VNI %d local %s port %d learning %t", d.Name, v.VxlanId, v.SrcAddr, v.Port, v.Learning)
	}
	if a.MTU != int(d.MTU) || a.Flags&net.FlagUp == 0 || a.Alias != "meshnet:network="+n.ID.String() || a.Group != mark {
		t.Errorf("%s has MTU %d, flags %s, alias %q, group %d", d.Name, a.MTU, a.Flags, a.Alias, a.Group)
	}
	quiet(t, d.Name)
	var want []string
	for _, f := range n.Remotes {
		want = append(want, f.MAC.String()+" "+f.Via.String())
	}
	for _, via := range d.Flood {
		want = append(want, "00:00:00:00:00:00 "+via.String())
	}
	slices.Sort(want)
	if got := entries(t, d.Name); !slices.Equal(got, want) {
		t.Errorf("entries of %s: %q, want %q", d.Name, got, want)
	}
}

// entries asks bridge(8) for what is in a forwarding table.
func entries(t *testing.T, name string) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(run(t, plan.Sandbox{}, "bridge", "fdb", "show", "dev", name)) {
		// MAC dst ADDRESS self permanent
		if f := strings.Fields(line); len(f) != 5 || f[1] != "dst" || f[3] != "self" || f[4] != "permanent" {
			t.Errorf("entry %q; want a permanent one with an address", line)
		} else {
			out = append(out, f[0]+" "+f[2])
		}
	}
	slices.Sort(out)
	return out
}

func offload(t *testing.T, b plan.Sandbox, name, feature string) bool {
	t.Helper()
	for line := range strings.Lines(run(t, b, "ethtool", "-k", name)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), feature+": "); ok {
			return strings.HasPrefix(value, "on")
		}
	}
	t.Fatalf("%s has no %s", name, feature)
	return false
}

func TestApplyMakesWhatThePlanSays(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	one, two := link(5, box(t, "one")), link(6, box(t, "two"))
	two.IfName = "mesh0"
	h := host([]plan.Link{one, two}, device(2), device(3))
	h.Networks[3].Device.Port = 14790
	_, found := apply(t, l, h)
	if want := map[state.EndpointID]string{5: "eth0", 6: "mesh0"}; !reflect.DeepEqual(found.IfNames, want) {
		t.Errorf("names %v, want %v", found.IfNames, want)
	}
	if len(found.Gone) != 0 {
		t.Errorf("gone %v, want none", found.Gone)
	}
	checkEnd(t, one, "eth0")
	checkEnd(t, two, "mesh0")
	checkHostEnd(t, one)
	checkHostEnd(t, two)
	checkDevice(t, h.Networks[2])
	checkDevice(t, h.Networks[3])
	if !offload(t, one.Sandbox, "eth0", "tx-checksumming") || !offload(t, plan.Sandbox{}, one.Name, "tx-checksumming") {
		t.Error("checksum offload is off")
	}
	if !offload(t, plan.Sandbox{}, h.Networks[2].Device.Name, "generic-receive-offload") {
		t.Error("GRO is off")
	}
	settled(t, l, h)
	settled(t, newLinks(t), h) // and so is it after a restart
}

func TestApplyWithoutSegmentationOffload(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	one := link(5, box(t, "one"))
	one.Offloads = false
	h := host([]plan.Link{one}, device(2))
	h.TSO = false
	apply(t, l, h)
	dev := h.Networks[2].Device.Name
	if offload(t, one.Sandbox, "eth0", "tx-checksumming") || offload(t, plan.Sandbox{}, one.Name, "tx-checksumming") {
		t.Error("checksum offload is on")
	}
	if offload(t, plan.Sandbox{}, dev, "generic-receive-offload") {
		t.Error("GRO is on")
	}
	settled(t, l, h)
	h.TSO, h.Links[0].Offloads = true, true
	apply(t, l, h)
	if !offload(t, one.Sandbox, "eth0", "tx-checksumming") || !offload(t, plan.Sandbox{}, one.Name, "tx-checksumming") {
		t.Error("checksum offload is off after it was wanted again")
	}
	if !offload(t, plan.Sandbox{}, dev, "generic-receive-offload") {
		t.Error("GRO is off after it was wanted again")
	}
	settled(t, l, h)
}

// Each fault is put right, and nothing else is touched.
func TestApplyPutsBack(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	one := link(5, box(t, "one"))
	h := host([]plan.Link{one}, device(2))
	h.Firewall = plan.Firewall{On: true, Port: 14789, Peers: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	apply(t, l, h)
	vx, here, there := h.Networks[2].Device.Name, plan.Sandbox{}, one.Sandbox
	tests := []struct {
		name  string
		in    plan.Sandbox
		fault string
		steps int // at most
	}{
		{"veth", here, "ip link del " + one.Name, 10},
		{"veth from inside", there, "ip link del eth0", 10},
		{"host end down", here, "ip link set " + one.Name + " down", 1},
		{"host end MTU", here, "ip link set " + one.Name + " mtu 1500", 1},
		{"host end alias", here, "ip link set " + one.Name + " alias other", 1},
		{"host end IPv6", here, "sysctl -qw net.ipv6.conf." + one.Name + ".disable_ipv6=0", 1},
		{"host end offload", here, "ethtool -K " + one.Name + " tx off", 2},
		{"address", there, "ip addr flush dev eth0", 1},
		{"another address", there, "ip addr add 10.2.0.77/16 dev eth0", 1},
		{"another address before ours", there, "ip addr replace 10.2.0.5/24 dev eth0", 2},
		{"other subnet", there, "ip addr add 10.3.0.77/16 dev eth0", 1},
		{"MAC", there, "ip link set eth0 address 02:00:00:00:00:01", 1},
		{"MTU", there, "ip link set eth0 mtu 1400", 1},
		{"down", there, "ip link set eth0 down", 1},
		{"router advertisements", there, "sysctl -qw net.ipv6.conf.eth0.accept_ra=2", 1},
		{"offload", there, "ethtool -K eth0 tx off", 2},
		{"segmentation", there, "ethtool -K eth0 tso off", 1},
		{"vxlan", here, "ip link del " + vx, 9},
		{"vxlan down", here, "ip link set " + vx + " down", 1},
		{"vxlan MTU", here, "ip link set " + vx + " mtu 1500", 1},
		{"vxlan alias", here, "ip link set " + vx + " alias other", 1},
		{"vxlan GRO", here, "ethtool -K " + vx + " gro off", 1},
		{"entry gone", here, "bridge fdb del 02:42:0a:02:00:07 dev " + vx, 1},
		{"entry elsewhere", here, "bridge fdb replace 02:42:0a:02:00:07 dev " + vx + " dst 192.0.2.9", 1},
		{"entry too many", here, "bridge fdb add 02:42:0a:02:00:99 dev " + vx + " dst 192.0.2.9", 1},
		{"entry not permanent", here, "bridge fdb replace 02:42:0a:02:00:07 dev " + vx + " dst 192.0.2.2 dynamic", 1},
		{"flood gone", here, "bridge fdb del 00:00:00:00:00:00 dev " + vx + " dst 192.0.2.2", 1},
		{"flood too many", here, "bridge fdb append 00:00:00:00:00:00 dev " + vx + " dst 192.0.2.9", 1},
		{"table", here, "nft delete table inet meshnet", 1},
		{"rule", here, "nft flush chain inet meshnet input", 1},
		{"rule too many", here, "nft add rule inet meshnet input udp dport 14789 accept", 1},
		{"chain too many", here, "nft add chain inet meshnet other", 1},
		{"policy", here, "nft chain inet meshnet input { policy drop; }", 1},
		{"peer gone", here, "nft delete element inet meshnet peers { 192.0.2.2 }", 1},
		{"peer too many", here, "nft add element inet meshnet peers { 192.0.2.9 }", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, tt.in, strings.Fields(tt.fault)...)
			steps, _ := apply(t, l, h)
			if len(steps) == 0 || len(steps) > tt.steps {
				t.Errorf("did %d things, want 1 to %d: %q", len(steps), tt.steps, steps)
			}
			checkEnd(t, one, "eth0")
			checkHostEnd(t, one)
			checkDevice(t, h.Networks[2])
			checkTable(t, h.Firewall)
			if !offload(t, there, "eth0", "tcp-segmentation-offload") || !offload(t, here, one.Name, "tcp-segmentation-offload") || !offload(t, here, vx, "generic-receive-offload") {
				t.Error("offloads are off")
			}
			settled(t, l, h)
		})
	}
}

// In another namespace it gets the name it had before, unless that is taken there or insisted on.
func TestPreferredNames(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	b := box(t, "one")
	run(t, b, "ip", "link", "add", "eth0", "type", "bridge")
	links := []plan.Link{link(5, b), link(6, b), link(7, b), link(8, b)}
	links[1].Prefer, links[2].Prefer, links[3].Prefer = "eth1", "eth0", "eth3"
	h := host(links)
	_, found := apply(t, l, h)
	if want := map[state.EndpointID]string{5: "eth4", 6: "eth1", 7: "eth2", 8: "eth3"}; !reflect.DeepEqual(found.IfNames, want) {
		t.Errorf("names %v, want %v", found.IfNames, want)
	}
	h.Links[0].Prefer = "eth9" // only for an interface that has no name yet
	if _, found = apply(t, l, h); found.IfNames[5] != "eth4" {
		t.Errorf("name %q, want eth4 still", found.IfNames[5])
	}
	settled(t, l, h)
}

// The interface keeps its name where the plan leaves it open, and gets the wished one where not.
func TestInterfaceNames(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	b := box(t, "one")
	run(t, b, "ip", "link", "add", "eth0", "type", "bridge")
	h := host([]plan.Link{link(5, b), link(6, b)})
	_, found := apply(t, l, h)
	if want := map[state.EndpointID]string{5: "eth1", 6: "eth2"}; !reflect.DeepEqual(found.IfNames, want) {
		t.Fatalf("names %v, want %v", found.IfNames, want)
	}
	h.Links = h.Links[1:]
	apply(t, l, h)
	if _, found = apply(t, l, h); found.IfNames[6] != "eth2" {
		t.Errorf("name %q after the other went, want eth2 still", found.IfNames[6])
	}
	h.Links[0].IfName = "net0"
	if _, found = apply(t, l, h); found.IfNames[6] != "net0" {
		t.Errorf("name %q, want net0", found.IfNames[6])
	}
	checkEnd(t, h.Links[0], "net0")
	settled(t, l, h)
	h.Links[0].IfName = "eth0"
	_, _, err := l.Apply(t.Context(), h)
	if err == nil || !strings.Contains(err.Error(), "has an interface eth0 already") {
		t.Errorf("taking the name of a foreign interface: %v", err)
	}
	if foreign, err := at(t, b).LinkByName("eth0"); err != nil || foreign.Type() != "bridge" {
		t.Errorf("the foreign eth0: %v, %v", foreign, err)
	}
}

func TestForeignDevicesAreNotTouched(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	b := box(t, "one")
	for _, cmd := range []string{
		"ip link add foreign type veth peer name foreign1",
		"ip link set foreign alias weave:endpoint=1",
		"ip link add mv-0000000002 type bridge",
		"ip link add mc-0000000005 type bridge",
		"ip link add mc-0000000066 type bridge",
		// The end of a veth of another meshnet, if this host is itself a container.
		"ip link add outer type veth peer name outer1",
		"ip link set outer alias meshnet:container=0000000000000001",
	} {
		run(t, plan.Sandbox{}, strings.Fields(cmd)...)
	}
	before := run(t, plan.Sandbox{}, "ip", "-d", "link")
	nft := "table inet other {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n}\n"
	run(t, plan.Sandbox{}, "nft", nft)
	h := host([]plan.Link{link(5, b)}, device(2))
	steps, _, err := l.Apply(t.Context(), h)
	if err == nil || strings.Count(err.Error(), "that meshnet did not make") != 2 || len(steps) != 0 {
		t.Errorf("names that are taken: did %v, %v", steps, err)
	}
	apply(t, l, host([]plan.Link{link(6, b)}, device(3)))
	if _, err := l.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := run(t, plan.Sandbox{}, "ip", "-d", "link"); after != before {
		t.Errorf("devices before:\n%s\nafter:\n%s", before, after)
	}
	if after := run(t, plan.Sandbox{}, "nft", "list", "ruleset"); after != nft {
		t.Errorf("tables before:\n%s\nafter:\n%s", nft, after)
	}
}

func TestPurgeLeavesNothing(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	b := box(t, "one")
	h := host([]plan.Link{link(5, b), link(6, b)}, device(2))
	h.Firewall = plan.Firewall{On: true, Port: 14789}
	apply(t, newLinks(t), h)
	steps, err := newLinks(t).Purge(t.Context())
	if err != nil || len(steps) != 4 {
		t.Errorf("purge did %v, %v; want four things", steps, err)
	}
	links, err := netlink.LinkList()
	if err != nil || len(links) != 1 {
		t.Errorf("devices left: %v, %v", links, err)
	}
	if links, err := at(t, b).LinkList(); err != nil || len(links) != 1 {
		t.Errorf("interfaces left in the container: %v, %v", links, err)
	}
	if left := run(t, plan.Sandbox{}, "nft", "list", "ruleset"); left != "" {
		t.Errorf("tables left: %s", left)
	}
	if steps, err := newLinks(t).Purge(t.Context()); err != nil || len(steps) != 0 {
		t.Errorf("purge again did %v, %v", steps, err)
	}
}

// A daemon may die after any request to the kernel. The first makes the pair; each state that can be
// left behind is completed, or goes if the plan has no such link any more.
func TestHalfMadePairs(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	states := []string{
		"",
		"ip link set %[1]s alias meshnet:container=0000000000000005",
		"ip link set %[1]s alias meshnet:container=0000000000000005; ip link set %[1]s name eth0",
		"ip link set %[1]s alias meshnet:container=0000000000000005; ip link set %[1]s name eth0; ip addr add 10.2.0.5/16 dev eth0",
		"ip link set %[1]s alias meshnet:container=0000000000000005; ip link set %[1]s name eth0; ip link set eth0 up",
	}
	half := func(t *testing.T, l plan.Link, state string) {
		t.Helper()
		run(t, plan.Sandbox{}, strings.Fields(fmt.Sprintf("ip link add %[1]s group %[2]d mtu 1450 type veth peer name %[1]s netns %[3]s",
			l.Name, mark, strings.TrimPrefix(l.Sandbox.Path, "/run/netns/")))...)
		if state != "" {
			run(t, l.Sandbox, "sh", "-ec", fmt.Sprintf(state, l.Name))
		}
	}
	for i, state := range states {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			l := newLinks(t)
			one := link(5, box(t, "one"))
			half(t, one, state)
			index := get(t, one.Name).Attrs().Index
			h := host([]plan.Link{one})
			apply(t, l, h)
			checkEnd(t, one, "eth0")
			checkHostEnd(t, one)
			if now := get(t, one.Name).Attrs().Index; now != index {
				t.Errorf("device %d was made anew as %d", index, now)
			}
			settled(t, l, h)
			apply(t, l, host(nil))
			half(t, one, state)
			apply(t, l, host(nil))
			if present(one.Name) {
				t.Error("a half-made pair that is not in the plan stays")
			}
		})
	}
}

// The other end is somewhere else: the pair is of no use and made anew.
func TestPairOfAnotherContainer(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	one, two := link(5, box(t, "one")), box(t, "two")
	h := host([]plan.Link{one})
	apply(t, l, h)
	index := get(t, one.Name).Attrs().ParentIndex
	run(t, one.Sandbox, "ip", "link", "set", "eth0", "netns", "two")
	// A foreign veth with the same index, as in another namespace may well be.
	run(t, one.Sandbox, "ip", "link", "add", "foreign", "index", strconv.Itoa(index), "type", "veth", "peer", "name", "foreign1")
	apply(t, l, h)
	if foreign, err := at(t, one.Sandbox).LinkByName("foreign"); err != nil || foreign.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("the foreign veth: %v, %v", foreign, err)
	}
	checkEnd(t, one, "eth0")
	checkHostEnd(t, one)
	if links, err := at(t, two).LinkList(); err != nil || len(links) != 1 {
		t.Errorf("the other container has %v, %v; want lo alone", links, err)
	}
	settled(t, l, h)
}

func TestContainersThatAreGone(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	one, two, three := link(5, box(t, "one")), link(6, box(t, "two")), link(7, box(t, "three"))
	h := host([]plan.Link{one, two, three})
	apply(t, l, h)
	nstest.Delete(t, "one")
	h.Links[1].Sandbox.Inode++ // as if the path had been given to another namespace
	_, found := apply(t, l, h)
	if want := []state.EndpointID{5, 6}; !slices.Equal(found.Gone, want) {
		t.Errorf("gone %v, want %v", found.Gone, want)
	}
	if found.IfNames[7] != "eth0" || len(found.IfNames) != 1 {
		t.Errorf("names %v, want that of 7 alone", found.IfNames)
	}
}

func TestTwentyLinksAtOnce(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	var links []plan.Link
	for i := range 20 {
		b := box(t, fmt.Sprintf("box%d", i))
		links = append(links, link(i+1, b))
	}
	h := host(links)
	began := time.Now()
	apply(t, l, h)
	t.Logf("20 links made in %v", time.Since(began))
	for _, one := range links {
		checkEnd(t, one, "eth0")
		checkHostEnd(t, one)
	}
	began = time.Now()
	settled(t, l, h)
	t.Logf("20 links looked at in %v", time.Since(began))
}

// What cannot be done for one does not keep the others from it.
func TestOneFailureDoesNotStopTheRest(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	one, two := link(5, box(t, "one")), link(6, box(t, "two"))
	one.Sandbox.Path = "/proc/thread-self/ns/net"
	f, s, err := netns.FromPath(one.Sandbox.Path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	one.Sandbox.Inode = s.Inode
	h := host([]plan.Link{one, two}, device(2), device(3))
	h.Networks[2].Device.MTU = 1 << 30
	_, found, err := l.Apply(t.Context(), h)
	if err == nil || !strings.Contains(err.Error(), "the host's network") || !strings.Contains(err.Error(), "mv-0000000002") {
		t.Errorf("error %v; want both failures", err)
	}
	if found.IfNames[6] != "eth0" {
		t.Errorf("names %v", found.IfNames)
	}
	checkEnd(t, two, "eth0")
	checkDevice(t, h.Networks[3])
	if present(one.Name) {
		t.Error("a link into our own namespace was made")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.Apply(ctx, h); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: %v", err)
	}
}

// Attributes that cannot be changed on a device are changed by making it anew, also when the old
// device of another network has the VNI that the new one wants.
func TestVxlanAnew(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	for name, change := range map[string]func(*plan.Vxlan){
		"VNI":   func(d *plan.Vxlan) { d.VNI = 77 },
		"local": func(d *plan.Vxlan) { d.Local = netip.MustParseAddr("192.0.2.99") },
		"port":  func(d *plan.Vxlan) { d.Port = 14999 },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLinks(t)
			h := host(nil, device(2))
			apply(t, l, h)
			change(h.Networks[2].Device)
			apply(t, l, h)
			checkDevice(t, h.Networks[2])
			settled(t, l, h)
			apply(t, l, host(nil))
		})
	}
	t.Run("learning", func(t *testing.T) {
		l := newLinks(t)
		h := host(nil, device(2))
		apply(t, l, h)
		run(t, plan.Sandbox{}, "ip", "link", "set", "mv-0000000002", "type", "vxlan", "learning")
		apply(t, l, h)
		checkDevice(t, h.Networks[2])
	})
	t.Run("same VNI, other network", func(t *testing.T) {
		l := newLinks(t)
		started(t, l)
		apply(t, l, host(nil, device(2)))
		h := host(nil, device(9))
		h.Networks[9].Device.VNI = 2
		apply(t, l, h)
		checkDevice(t, h.Networks[9])
	})
	t.Run("what Open vSwitch left", func(t *testing.T) {
		const sys = "vxlan_sys_14789"
		apply(t, newLinks(t), host(nil))
		run(t, plan.Sandbox{}, "ip", "link", "add", sys, "type", "vxlan", "external", "dstport", "14789")
		run(t, plan.Sandbox{}, "ip", "link", "add", "ovs-system", "up", "type", "bridge") // plays the datapath
		run(t, plan.Sandbox{}, "ip", "link", "set", sys, "master", "ovs-system", "up")
		l := newLinks(t)
		_, _, err := l.Apply(t.Context(), host(nil, device(60)))
		if err == nil || !strings.Contains(err.Error(), "something else has UDP port 14789") {
			t.Errorf("while it serves a datapath: error %v", err)
		}
		run(t, plan.Sandbox{}, "ip", "link", "set", sys, "nomaster")
		h := host(nil, device(60))
		apply(t, l, h)
		checkDevice(t, h.Networks[60])
		if _, err := netlink.LinkByName(sys); err == nil {
			t.Errorf("%s is still there", sys)
		}
		apply(t, l, host(nil))
	})
	t.Run("taken by a foreign device", func(t *testing.T) {
		l := newLinks(t)
		run(t, plan.Sandbox{}, "ip", "link", "add", "theirs", "type", "vxlan", "id", "50", "dstport", "14789", "local", "192.0.2.1")
		_, _, err := l.Apply(t.Context(), host(nil, device(50)))
		if err == nil || !strings.Contains(err.Error(), "another device has VNI 50 on UDP port 14789") {
			t.Errorf("error %v", err)
		}
	})
}

// started runs Run until the end of the test.
func started(t *testing.T, l *netns.Links) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

// within polls until something holds.
func within(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(5 * time.Second); !holds(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// A removal is answered before it is done. A link that is wanted again before its removal came about
// stays or is made anew, whichever it is.
func TestRemovalInTheBackground(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	started(t, l)
	b := box(t, "one")
	var links []plan.Link
	for i := range 10 {
		links = append(links, link(i+1, b))
	}
	all := host(links)
	apply(t, l, all)
	steps, _ := apply(t, l, host(nil))
	if len(steps) != 10 {
		t.Errorf("did %q, want ten removals", steps)
	}
	if !slices.ContainsFunc(links, func(l plan.Link) bool { return present(l.Name) }) {
		t.Error("Apply returned only when all ten were gone")
	}
	apply(t, l, all)
	for _, one := range links {
		checkHostEnd(t, one)
	}
	settled(t, l, all)
	kept, others := links[5], slices.Delete(slices.Clone(links), 5, 6)
	index := get(t, kept.Name).Attrs().Index
	apply(t, l, host(nil))
	apply(t, l, host(links[5:6]))
	within(t, "all links but one gone", func() bool {
		return !slices.ContainsFunc(others, func(l plan.Link) bool { return present(l.Name) })
	})
	settled(t, l, host(links[5:6]))
	if now := get(t, kept.Name).Attrs().Index; now != index {
		t.Errorf("the one whose removal was taken back is device %d, was %d", now, index)
	}
	apply(t, l, host(nil))
	within(t, "all links gone", func() bool { return !slices.ContainsFunc(links, func(l plan.Link) bool { return present(l.Name) }) })
	settled(t, l, host(nil))
}

// A container that leaves one network and joins another gets the same interface name again.
func TestNameOfARemovedInterface(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	started(t, l)
	b, other := box(t, "one"), box(t, "other")
	one, two, three := link(1, b), link(2, b), link(3, b)
	two.IfName, three.IfName = "net0", "net0"
	var many []plan.Link // removed first
	for i := range 5 {
		many = append(many, link(100+i, other))
	}
	for range 3 {
		apply(t, l, host(append([]plan.Link{one, two}, many...)))
		if _, found := apply(t, l, host([]plan.Link{link(4, b), three})); found.IfNames[4] != "eth0" || found.IfNames[3] != "net0" {
			t.Errorf("names %v, want eth0 and net0", found.IfNames)
		}
		checkEnd(t, three, "net0")
		apply(t, l, host(nil))
	}
}

// Run ends only when what Apply promised to remove is gone.
func TestRunRemovesWhatIsLeft(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	b := box(t, "one")
	apply(t, l, host([]plan.Link{link(1, b), link(2, b), link(3, b)}))
	apply(t, l, host(nil))
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if links, err := netlink.LinkList(); err != nil || len(links) != 1 {
		t.Errorf("devices left: %v, %v", links, err)
	}
}

func TestDrift(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	run(t, plan.Sandbox{}, "ip", "link", "add", "up0", "type", "bridge")
	run(t, plan.Sandbox{}, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	l := newLinks(t)
	started(t, l)
	h := host([]plan.Link{link(5, box(t, "one"))}, device(2))
	h.Device = "up0"
	apply(t, l, h)
	name, vx := h.Links[0].Name, h.Networks[2].Device.Name
	for _, fault := range []string{
		"ip link set " + name + " down",
		"ip link set " + name + " mtu 1400",
		"ip link del " + name,
		"ip link set " + vx + " down",
		"ip link del " + vx,
		"ip addr add 192.0.2.7/24 dev up0",
		"ip addr del 192.0.2.1/24 dev up0",
		"ip link del up0",
	} {
		quietFor(t, l)
		run(t, plan.Sandbox{}, strings.Fields(fault)...)
		select {
		case <-l.Drift():
		case <-time.After(5 * time.Second):
			t.Fatalf("no drift after %s", fault)
		}
		apply(t, l, h)
	}
	run(t, plan.Sandbox{}, "ip", "link", "add", "foreign", "type", "bridge")
	quietFor(t, l)
}

// quietFor wants no drift: neither our own changes nor foreign devices are any. The bound is a few
// times what a drift takes to be told.
func quietFor(t *testing.T, l *netns.Links) {
	t.Helper()
	select {
	case <-l.Drift():
		t.Fatal("drift, but nothing had changed")
	case <-time.After(150 * time.Millisecond):
	}
}

func checkTable(t *testing.T, f plan.Firewall) {
	t.Helper()
	var four, six []string
	for _, a := range f.Peers {
		if a.Is4() {
			four = append(four, a.String())
		} else {
			six = append(six, a.String())
		}
	}
	set := func(name, kind string, elements []string) string {
		s := "\tset " + name + " {\n\t\ttype " + kind + "\n"
		if len(elements) > 0 {
			s += "\t\telements = { " + strings.Join(elements, ", ") + " }\n"
		}
		return s + "\t}\n\n"
	}
	port := strconv.Itoa(int(f.Port))
	want := "table inet meshnet {\n" + set("peers", "ipv4_addr", four) + set("peers6", "ipv6_addr", six) +
		"\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n" +
		"\t\tudp dport " + port + " ip saddr @peers accept\n" +
		"\t\tudp dport " + port + " ip6 saddr @peers6 accept\n" +
		"\t\tiifname != \"lo\" udp dport " + port + " counter drop\n\t}\n" +
		"\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n" +
		"\t\tudp dport " + port + " ip daddr @peers counter drop\n" +
		"\t\tudp dport " + port + " ip6 daddr @peers6 counter drop\n\t}\n}\n"
	got := run(t, plan.Sandbox{}, "nft", "-s", "list", "table", "inet", "meshnet")
	if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
}

func TestFirewallTable(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	h := host(nil)
	var peers []netip.Addr
	for _, s := range []string{"192.0.2.2", "192.0.2.3", "2001:db8::2"} {
		peers = append(peers, netip.MustParseAddr(s))
	}
	h.Firewall = plan.Firewall{On: true, Port: 14789, Peers: peers}
	apply(t, l, h)
	checkTable(t, h.Firewall)
	settled(t, l, h)
	handle := run(t, plan.Sandbox{}, "nft", "-a", "list", "table", "inet", "meshnet")
	h.Firewall.Peers = peers[1:]
	steps, _ := apply(t, l, h)
	if want := []string{"set nftables set peers without 192.0.2.2"}; !slices.Equal(steps, want) {
		t.Errorf("did %q, want %q", steps, want)
	}
	checkTable(t, h.Firewall)
	h.Firewall.Peers = peers
	apply(t, l, h)
	if now := run(t, plan.Sandbox{}, "nft", "-a", "list", "table", "inet", "meshnet"); now != handle {
		t.Errorf("the table was written anew for a change of peers:\n%s\nbefore:\n%s", now, handle)
	}
	h.Firewall.Port = 4000
	apply(t, l, h)
	checkTable(t, h.Firewall)
	var many []netip.Addr
	for i := range 3000 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	h.Firewall.Peers = many
	apply(t, l, h)
	settled(t, l, h)
	h.Firewall = plan.Firewall{}
	apply(t, l, h)
	if left := run(t, plan.Sandbox{}, "nft", "list", "ruleset"); left != "" {
		t.Errorf("tables left: %s", left)
	}
	settled(t, l, h)
}

// The table drops what strangers send to the tunnel port, and nothing else.
func TestFirewallDropsStrangers(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	b := box(t, "one")
	for _, cmd := range []string{
		"ip link add near type veth peer name far netns one",
		"ip addr add 192.0.2.1/24 dev near", "ip link set near up",
	} {
		run(t, plan.Sandbox{}, strings.Fields(cmd)...)
	}
	for _, cmd := range []string{"ip addr add 192.0.2.2/24 dev far", "ip addr add 192.0.2.3/24 dev far", "ip link set far up"} {
		run(t, b, strings.Fields(cmd)...)
	}
	h := host(nil)
	h.Firewall = plan.Firewall{On: true, Port: 14789, Peers: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	apply(t, l, h)
	tunnel, other := listen(t, 14789), listen(t, 14788)
	send := func(b plan.Sandbox, from, to string, port int) {
		t.Helper()
		run(t, b, "bash", "-c", fmt.Sprintf("true; exec 3<>/dev/udp/%s/%d; echo %s >&3", to, port, from))
	}
	// bash cannot choose a source address; the route does.
	from := func(src string) {
		t.Helper()
		run(t, b, "ip", "route", "replace", "192.0.2.1/32", "dev", "far", "src", src)
		send(b, src, "192.0.2.1", 14789)
		send(b, src, "192.0.2.1", 14788)
	}
	from("192.0.2.3")
	from("192.0.2.2")
	send(plan.Sandbox{}, "self", "192.0.2.1", 14789)
	expect(t, tunnel, "192.0.2.2", "self")
	expect(t, other, "192.0.2.3", "192.0.2.2")
	settled(t, l, h) // the counter has counted, and is no difference
}

func listen(t *testing.T, port int) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// expect wants these datagrams first, in any order: what comes by two devices may overtake.
func expect(t *testing.T, c *net.UDPConn, want ...string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	var got []string
	for range want {
		n, err := c.Read(b)
		if err != nil {
			t.Error(err)
		}
		got = append(got, strings.TrimSpace(string(b[:n])))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("received %q, want %q", got, want)
	}
}

// A pair carries packets, and a container says nothing that it was not made to say.
func TestPairIsQuiet(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l := newLinks(t)
	one := link(5, box(t, "one"))
	run(t, one.Sandbox, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=0")
	apply(t, l, host([]plan.Link{one}))
	// What came out of the container so far was received by the host's end.
	within(t, "both ends up", func() bool { return get(t, one.Name).Attrs().OperState == netlink.OperUp })
	if s := get(t, one.Name).Attrs().Statistics; s.TxPackets != 0 {
		t.Errorf("the host's end sent %d packets, want none", s.TxPackets)
	}
	run(t, one.Sandbox, "bash", "-c", "exec 3<>/dev/udp/10.2.0.9/9; echo x >&3")
	within(t, "an ARP request at the host's end", func() bool { return get(t, one.Name).Attrs().Statistics.RxPackets > 0 })
}
