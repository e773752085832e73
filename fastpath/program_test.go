package fastpath

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/fastpath/bpf"
	"meshnet/ovs/flow"
	"meshnet/ovs/ovstest"
	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"
)

// root skips a test that has to load a program where it may not, and fails it where it was asked for.
func root(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("MESHNET_REQUIRE") != "" || os.Getenv("CI") == "true" {
		t.Fatal("loading a program needs root")
	}
	t.Skip("loading a program needs root")
}

// apart puts the test's thread into a network namespace of its own.
func apart(t testing.TB) {
	t.Helper()
	root(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine, its namespace too
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// skb is struct __sk_buff of linux/bpf.h, as far as a test run of a program reads and writes it.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TCIndex                                  uint32
	CB                                                                          [5]uint32
	Hash, TCClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, TStamp                                                            uint64
	WireLen, GSOSegs                                                            uint32
	SK                                                                          uint64
	GSOSize                                                                     uint32
	_                                                                           [4]byte
	HWTStamp                                                                    uint64
}

// machine is the program, loaded, with the tables of a host in its maps and a device for each of
// theirs.
type machine struct {
	*program
	host  *plan.Host
	index map[string]uint32 // of devices
	port  map[uint32]uint32 // OpenFlow port by index
	local []string          // the devices of containers here

	under     string        // the device that tunnel packets come in by
	mac       []byte        // and its MAC
	wraps     bool          // what is for peers is sent by it
	trunkless *plan.Network // its VXLAN device is not there
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	p, err := load(true, 0)
	if err != nil {
		t.Fatal(err)
	}
	return machineOf(t, p)
}

func machineOf(t testing.TB, p *program) *machine {
	t.Cleanup(p.close)
	return &machine{program: p, index: map[string]uint32{}}
}

// show fills the maps with the tables of a host.
func (m *machine) show(t testing.TB, h *plan.Host, devices []uint32) {
	t.Helper()
	m.host, m.index, m.port, m.local = h, map[string]uint32{}, map[uint32]uint32{}, nil
	next := 0
	at := func(name string) uint32 {
		if m.index[name] == 0 {
			m.index[name] = devices[next]
			next++
		}
		return m.index[name]
	}
	m.wipe(t)
	put := func(to *ebpf.Map, k, v any) {
		if err := to.Put(k, v); err != nil {
			t.Fatal(err)
		}
	}
	p, peers, ok := Outside(h)
	if !ok {
		t.Fatal("no tunnel packets")
	}
	l, err := netlink.LinkByIndex(int(at(p.Device)))
	if err != nil {
		t.Fatal(err)
	}
	m.under, m.mac = p.Device, l.Attrs().HardwareAddr
	put(m.ports, at(p.Device), p.encode(0))
	by := l
	if !m.wraps { // one that none are reached by
		if by, err = netlink.LinkByIndex(int(at(trunk(inOrder(h)[0])))); err != nil {
			t.Fatal(err)
		}
	}
	route(t, by, p.Addr)
	for _, peer := range peers {
		put(m.peers, bigEndian(peer), bpf.FastPeer{Ifindex: uint32(by.Attrs().Index)})
	}
	for _, p := range Tunnels(h) {
		put(m.ports, at(p.Device), p.encode(0))
	}
	for _, tunnel := range h.Tunnels { // a device of each to speak of
		m.port[at(tunnel.Name)] = tunnel.OFPort
	}
	for _, p := range Doors(h.Gateway) {
		put(m.ports, at(p.Device), p.encode(at(p.Other)))
	}
	if g := h.Gateway; g != nil {
		m.port[at(g.Port)], m.port[at(g.Name)] = g.OFPort, g.OFPort
	}
	for _, n := range inOrder(h) {
		table := Compile(n)
		for _, p := range table.Ports {
			put(m.ports, at(p.Device), p.encode(at(p.Other)))
		}
		for who, way := range table.Ways {
			w, _ := way.encode(at)
			if n == m.trunkless {
				w.Trunk = 0
			}
			put(m.members, who.encode(), w)
		}
		if table.Exit != (Exit{}) {
			put(m.exits, n.VNI, table.Exit.encode())
		}
		for who, e := range table.Entries {
			put(m.entries, who.encode(), e.encode(at(e.Device)))
		}
		if n.Device != nil {
			m.port[at(n.Device.Name)] = n.Device.OFPort
		} else { // what comes of it by the device of all tunnels is seen at one of its own
			p := Port{Kind: Trunk, VNI: n.VNI}
			put(m.ports, at(arrival(n)), p.encode(0))
		}
		for _, p := range n.Ports {
			m.port[at(p.Link)] = p.OFPort
			m.local = append(m.local, p.Link)
		}
	}
}

// arrival is the device that has the program see what comes from peers for a network.
func arrival(n *plan.Network) string {
	if n.Device != nil {
		return n.Device.Name
	}
	return "from peers " + n.Name
}

// route makes the peers of a tunnel end be reached by a device.
func route(t testing.TB, l netlink.Link, own netip.Addr) {
	t.Helper()
	to := &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	old, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range old {
		if a.IP.Equal(to.IP) && a.LinkIndex != l.Attrs().Index {
			if err := netlink.AddrDel(nil, &a); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = errors.Join(netlink.AddrReplace(l, to), netlink.LinkSetUp(l),
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)) // or the program is told no route
	if err != nil {
		t.Fatal(err)
	}
}

func (m *machine) wipe(t testing.TB) {
	t.Helper()
	has, err := m.read()
	if err != nil {
		t.Fatal(err)
	}
	_, a := dropAll(m.ports, has.ports, nil)
	_, b := dropAll(m.members, has.members, nil)
	_, c := dropAll(m.exits, has.exits, nil)
	_, d := dropAll(m.entries, has.entries, nil)
	_, e := dropAll(m.peers, has.peers, nil)
	if err := errors.Join(slices.Concat(a, b, c, d, e)...); err != nil {
		t.Fatal(err)
	}
	var f bpf.FastFlow
	for err = m.late.NextKey(nil, &f); err == nil; err = m.late.NextKey(nil, &f) {
		if err := m.late.Delete(f); err != nil {
			t.Fatal(err)
		}
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
}

// short reports whether a frame has not room for the header that its type promises. The kernel runs no
// program on such a one unless it really came by a device.
func short(frame []byte) bool {
	switch binary.BigEndian.Uint16(frame[12:]) {
	case flow.EthTypeIPv4:
		return len(frame) < 14+20
	case flow.EthTypeIPv6:
		return len(frame) < 14+40
	}
	return false
}

// seen is what the program made of a frame.
type seen struct {
	why   bpf.FastReason
	to    uint32 // index
	how   bpf.FastHow
	frame []byte
}

// run has the program see a frame at a device.
func (m *machine) run(t testing.TB, device string, frame []byte) seen {
	t.Helper()
	in := skb{Ifindex: m.index[device]}
	var out skb
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: &in, ContextOut: &out}
	code, err := m.prog.Run(&o)
	if err != nil {
		t.Fatalf("run with %x: %v", frame, err)
	}
	if code != 7 { // TC_ACT_REDIRECT
		t.Fatalf("verdict %d", code)
	}
	return seen{bpf.FastReason(out.CB[0]), out.CB[1], bpf.FastHow(out.CB[2]), o.DataOut}
}

// someDevices makes network devices to speak of and returns their indexes.
func someDevices(t testing.TB, n int) []uint32 {
	t.Helper()
	for i := range (n + 1) / 2 {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("a%d", i)
		v := netlink.NewVeth(attrs)
		v.PeerName = fmt.Sprintf("b%d", i)
		if err := netlink.LinkAdd(v); err != nil {
			t.Fatal(err)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var out []uint32
	for _, l := range links {
		if l.Type() == "veth" {
			out = append(out, uint32(l.Attrs().Index))
		}
	}
	return out
}

// world is a plan that has, by chance, equal addresses on several networks, members without a
// container, and members on several hosts.
func world(t testing.TB, r *rand.Rand, on state.Transport) *plan.Host {
	m := plantest.NewMesh(t, 3)
	var own, hosts []state.EndpointID
	id := state.EndpointID(1)
	for i := range 1 + r.IntN(3) {
		subnet := netip.MustParsePrefix([]string{"10.2.0.0/24", "10.2.0.0/16", "10.3.0.0/24"}[r.IntN(3)])
		net := m.CreateDef(state.Definition{Name: fmt.Sprintf("n%d", i), Subnet: subnet, Internal: r.IntN(4) == 0})
		taken := map[netip.Addr]bool{}
		for n := 1; n <= 3; n++ {
			for range 1 + r.IntN(2) {
				a := subnet.Addr().As4()
				a[3] = byte(2 + r.IntN(5))
				addr := netip.AddrFrom4(a)
				if taken[addr] {
					continue
				}
				taken[addr] = true
				e := state.Endpoint{ID: id, Network: net, Container: fmt.Sprint("c", id), Addr: addr, MAC: state.MACOf(addr), Alloc: 1, At: 1}
				if r.IntN(8) == 0 {
					e.MAC[5] ^= 0x80
				}
				m.Apply(n, state.PutEndpoint{Endpoint: e})
				switch r.IntN(8) * boolInt(n == 1) {
				case 0:
				case 1:
					hosts = append(hosts, id)
				default:
					own = append(own, id)
				}
				id++
			}
		}
	}
	f := plantest.Facts(on, own...)
	for _, id := range hosts {
		f.Sandboxes[id] = plan.Sandbox{Host: true}
	}
	f.Choice.FastPath = true
	h := plan.For(nil, m.View(), f)
	h.Check()
	return h
}

// inOrder returns the networks of a host in the order of their names.
func inOrder(h *plan.Host) []*plan.Network {
	return slices.SortedFunc(maps.Values(h.Networks), func(a, b *plan.Network) int { return strings.Compare(a.Name, b.Name) })
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// frame is a frame that is nearly right: for each of its fields the right value, that of somebody
// else, or none of anybody.
func frame(r *rand.Rand, h *plan.Host, device string) []byte {
	var own *plan.Port // that speaks
	var macs []state.MAC
	var addrs []netip.Addr
	for _, n := range inOrder(h) {
		for _, p := range n.Ports {
			macs, addrs = append(macs, p.MAC), append(addrs, p.Addr)
			if p.Link == device {
				own = &p
			}
		}
		for _, p := range n.Remotes {
			macs, addrs = append(macs, p.MAC), append(addrs, p.Addr)
		}
	}
	for _, n := range inOrder(h) {
		macs, addrs = append(macs, n.Router.MAC), append(addrs, n.Router.Addr)
		if n.Door != (plan.Door{}) {
			macs = append(macs, n.Door.Far, n.Door.Far, n.Door.Near)
		}
		if n.Host != (plan.Own{}) {
			macs, addrs = append(macs, n.Host.MAC), append(addrs, n.Host.Addr)
		}
	}
	slices.SortFunc(macs, func(a, b state.MAC) int { return slices.Compare(a[:], b[:]) })
	slices.SortFunc(addrs, netip.Addr.Compare)
	macs = append(macs, state.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, state.MAC{1, 0, 0x5e, 0, 0, 1}, state.MAC{2, 9, 9, 9, 9, 9}, state.MAC{})
	addrs = append(addrs, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("10.2.0.200"), netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("239.1.1.1"))
	src, dst := r.IntN(len(macs)), r.IntN(len(macs))
	from, to := r.IntN(len(addrs)), r.IntN(len(addrs))
	if r.IntN(4) > 0 { // a MAC and its address belong together
		from = slices.IndexFunc(addrs, func(a netip.Addr) bool { return state.MACOf(a) == macs[src] })
		from = max(from, 0)
	}
	if own != nil && r.IntN(2) == 0 {
		src = slices.Index(macs, own.MAC)
		from = slices.Index(addrs, own.Addr)
	}
	aimed := r.IntN(3) == 0
	if aimed {
		if mac, addr, ok := aim(r, h, device); ok {
			dst, to = slices.Index(macs, mac), slices.Index(addrs, addr)
		}
	}
	b := slices.Concat(macs[dst][:], macs[src][:])
	if r.IntN(12) == 0 { // tagged
		b = append(b, 0x81, 0, byte(r.IntN(16)), byte(r.IntN(4)))
	}
	like := r.IntN(20) == 0 // what would be IPv4, under another type
	kind := []uint16{flow.EthTypeIPv4, flow.EthTypeIPv4, flow.EthTypeIPv4, flow.EthTypeIPv4, flow.EthTypeIPv4, flow.EthTypeIPv4,
		flow.EthTypeARP, flow.EthTypeIPv6, 0x88cc, 0x0100, 0x8100}[r.IntN(11)]
	b = binary.BigEndian.AppendUint16(b, kind)
	if aimed {
		kind = flow.EthTypeIPv4
	}
	switch {
	case like:
		b = ipv4(r, b, addrs[from], addrs[to])
	case kind == flow.EthTypeARP:
		b = append(b, 0, 1, 8, 0, 6, 4, 0, byte(1+r.IntN(3)))
		b = slices.Concat(b, macs[src][:], addrs[from].AsSlice(), make([]byte, 6), addrs[to].AsSlice())
	case kind == flow.EthTypeIPv4:
		b = ipv4(r, b, addrs[from], addrs[to])
	default:
		b = append(b, make([]byte, r.IntN(60))...)
	}
	if r.IntN(12) == 0 { // cut off
		b = b[:14+r.IntN(len(b)-13)]
	}
	return b
}

// aim returns whom a frame may well be for: from the gateway a container, from a container the world or a member elsewhere.
func aim(r *rand.Rand, h *plan.Host, device string) (state.MAC, netip.Addr, bool) {
	for _, n := range inOrder(h) {
		if n.Door == (plan.Door{}) || len(n.Ports) == 0 {
			continue
		}
		p := n.Ports[r.IntN(len(n.Ports))]
		switch {
		case h.Gateway.Port == device && r.IntN(2) == 0:
			return n.Door.Far, p.Addr, true
		case p.Link == device && r.IntN(2) == 0:
			return n.Router.MAC, netip.MustParseAddr([]string{"8.8.8.8", "192.0.2.99", "10.2.0.200"}[r.IntN(3)]), true
		case p.Link == device && len(n.Remotes) > 0:
			to := n.Remotes[r.IntN(len(n.Remotes))]
			return to.MAC, to.Addr, true
		}
	}
	return state.MAC{}, netip.Addr{}, false
}

func ipv4(r *rand.Rand, b []byte, from, to netip.Addr) []byte {
	proto := []uint8{flow.ProtoICMP, flow.ProtoTCP, flow.ProtoUDP, 47}[r.IntN(4)]
	options := 0
	if r.IntN(8) == 0 {
		options = 4 * r.IntN(11)
	}
	payload := 20 + r.IntN(40)
	ip := make([]byte, 20+options+payload)
	ip[0] = 0x40 | byte(5+options/4)
	total := len(ip)
	switch r.IntN(24) {
	case 0:
		ip[0] = byte(r.IntN(256))
	case 1:
		total = r.IntN(len(ip) + 10)
	case 2: // padding
		total -= r.IntN(10)
	case 3:
		binary.BigEndian.PutUint16(ip[6:], []uint16{0x2000, 0x0001, 0x4000, 0x8000, 0x2005}[r.IntN(5)])
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(total))
	ip[1], ip[8], ip[9] = byte(r.IntN(256)), 64, proto
	copy(ip[12:], from.AsSlice())
	copy(ip[16:], to.AsSlice())
	return append(b, ip...)
}

// TestNeverMorePermissive feeds frames to the program and to the pipeline: what the program sends on
// itself the pipeline delivers, with the same MACs and else unchanged, by the port of that very device
// and no other; what is plainly fit for the fast path takes it. A model stands for the pipeline, and a
// real switch for the model, for a part of the frames. Of tunnel packets it takes those, and only those,
// in which a peer sends this host such a frame, and makes just that frame of them.
func TestNeverMorePermissive(t *testing.T) {
	apart(t)
	seed := uint64(1)
	if s := os.Getenv("MESHNET_SEED"); s != "" {
		fmt.Sscan(s, &seed)
	}
	frames := 100_000
	if testing.Short() {
		frames = 10_000
	}
	c := comparison{machine: newMachine(t), switches: ovstest.Start(t), indexes: someDevices(t, 100), seed: seed, reasons: map[string]int{}}
	if err := c.compare(t, frames); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d frames, %d of them asked of a real switch, and as many tunnel packets: %v", frames, c.asked, c.reasons)
	for _, want := range []string{"fast out", "fast keyed", "wrapped", "fast inside", "fast host", "fast entry", "slow", "unknown", "refused", "broken", "taken", "left", "left though from a peer"} {
		if c.reasons[want] < frames/250 {
			t.Errorf("only %d frames went %s: the test says little", c.reasons[want], want)
		}
	}
}

// comparison holds the program against the pipeline.
type comparison struct {
	*machine
	switches *ovstest.Instance // nil: the model is not held against a real switch
	indexes  []uint32          // of devices
	seed     uint64
	reasons  map[string]int
	asked    int
	old      bool // without bpf_redirect_peer, so no tunnel packets are taken
}

const worlds = 20

// compare feeds frames on different hosts, and returns the first difference.
func (c *comparison) compare(t *testing.T, frames int) error {
	for w := range worlds {
		r := rand.New(rand.NewPCG(c.seed, uint64(w)))
		h := world(t, r, []state.Transport{state.KernelVXLAN, state.KernelVXLAN, state.OVSKernel, state.OVSKernel, state.OVSKernel}[w%5])
		from := speakers(h)
		if len(from) == 0 {
			continue
		}
		c.trunkless, c.wraps = nil, w%2 == 1 && !c.old
		if w%4 == 3 {
			c.trunkless = inOrder(h)[0]
		}
		c.show(t, h, c.indexes)
		bridge := fmt.Sprint("br", w)
		if c.switches != nil {
			install(t, c.switches, bridge, h)
		}
		tables := pipelineOf(h)
		for i := range frames / worlds {
			device := from[r.IntN(len(from))]
			b := frame(r, h, device)
			if short(b) {
				b = append(b, make([]byte, 54)...)
			}
			ports, want := tables.outputs(t, c.port[c.index[device]], 0, b)
			if err := c.judge(t, device, b, ports, want); err != nil {
				return fmt.Errorf("seed %d, world %d, frame %d: %w", c.seed, w, i, err)
			}
			if c.switches == nil || i%100 != 0 {
				continue
			}
			c.asked++
			trace := c.switches.Appctl("ofproto/trace", bridge, fmt.Sprintf("in_port=%d", c.port[c.index[device]]), hex.EncodeToString(b))
			if got := traced(trace); !slices.Equal(got, ports) {
				return fmt.Errorf("seed %d, world %d, frame %d: the model sends %x from %s to %v, Open vSwitch to %v\n%s", c.seed, w, i, b, device, ports, got, trace)
			}
		}
		for i := range frames / worlds {
			if err := c.unwraps(t, wrapped(r, h, c.mac, uint16(2+i)), tables); err != nil { // 1 is of [machine.prime]
				return fmt.Errorf("seed %d, world %d, packet %d: %w", c.seed, w, i, err)
			}
		}
	}
	return nil
}

// judge says what is wrong with what the program makes of a frame, given where it leaves the pipeline,
// and as what.
func (c *comparison) judge(t *testing.T, device string, b []byte, ports []string, want []byte) error {
	got := c.run(t, device, b)
	if got.to == c.index[c.under] {
		c.reasons["wrapped"]++
		var err error
		if got, err = c.unpacked(device, got); err != nil {
			return fmt.Errorf("at %s the fast path makes of %x %x: %w", device, b, got.frame, err)
		}
	} else if c.wraps && got.why == bpf.FastReasonFAST && (got.how == bpf.FastHowOUT || got.how == bpf.FastHowKEYED) {
		return fmt.Errorf("at %s the fast path sends %x by the VXLAN device", device, b)
	}
	c.reasons[c.word(got, device)]++
	if got.how == bpf.FastHowKEYED {
		got.to = c.keyed(t, device, b)
	}
	if got.why != bpf.FastReasonFAST {
		if got.to != c.other(t, device) || !bytes.Equal(got.frame, b) {
			return fmt.Errorf("at %s %x is not fast (%d), and does not go to the twin as it came", device, b, got.why)
		}
		return nil
	}
	if to := []string{fmt.Sprint(c.port[got.to])}; !slices.Equal(ports, to) || !bytes.Equal(got.frame, want) {
		return fmt.Errorf("at %s the fast path sends %x to port %s as %x, the pipeline to %v as %x", device, b, to[0], got.frame, ports, want)
	}
	// A container gets it inside, and the host's own stack from its end; a peer from the device.
	inside := slices.ContainsFunc(c.local, func(name string) bool { return c.index[name] == got.to })
	host := c.host.Gateway != nil && c.index[c.host.Gateway.Name] == got.to
	if inside != (got.how == bpf.FastHowLOCAL) || host != (got.how == bpf.FastHowHOST) {
		return fmt.Errorf("at %s the fast path sends %x to device %d in the manner %d", device, b, got.to, got.how)
	}
	return nil
}

// keyed is the tunnel whose peer the device of all tunnels is told for a frame; a test run cannot look at what
// it is told.
func (c *comparison) keyed(t *testing.T, device string, frame []byte) uint32 {
	var p bpf.FastPort
	if err := c.ports.Lookup(c.index[device], &p); err != nil {
		t.Fatal(err)
	}
	var way bpf.FastWay
	if err := c.members.Lookup(bpf.FastMember{Vni: p.Vni, Mac: [6]uint8(frame[:6])}, &way); err != nil {
		t.Fatal(err)
	}
	return c.tunnelTo(address(way.Peer))
}

// tunnelTo is the device that stands for the tunnel to a peer.
func (c *comparison) tunnelTo(peer netip.Addr) uint32 {
	for _, tunnel := range c.host.Tunnels {
		if tunnel.Remote == peer {
			return c.index[tunnel.Name]
		}
	}
	return 0
}

// word says which way a frame went.
func (c *comparison) word(got seen, device string) string {
	if got.why == bpf.FastReasonFAST {
		if c.host.Gateway != nil && device == c.host.Gateway.Port {
			return "fast entry"
		}
		return "fast " + []string{"out", "inside", "host", "keyed"}[got.how]
	}
	return []string{"", "slow", "unknown", "refused", "broken"}[got.why]
}

// unpacked is what a peer's VXLAN device makes of a tunnel packet that the program sent for a frame: as if
// that had gone by the device of its network here.
func (c *comparison) unpacked(device string, got seen) (seen, error) {
	b := got.frame
	if len(b) < 14+wrapping+14+20 || binary.BigEndian.Uint16(b[12:]) != flow.EthTypeIPv4 {
		return got, errors.New("no tunnel packet")
	}
	ip, udp, vxlan, inner := b[14:34], b[34:42], b[42:50], b[50:]
	from, to := netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	length := func(at []byte) int { return int(binary.BigEndian.Uint16(at)) }
	congestion := inner[15] & 3
	if congestion == 3 {
		congestion = 2
	}
	switch {
	case ip[0] != 0x45 || ip[1] != congestion || length(ip[2:]) != len(b)-14 || length(ip[6:]) != 0 || ip[8] != 64 || ip[9] != flow.ProtoUDP || fold(ip) != 0xffff:
		return got, fmt.Errorf("IPv4 header %x", ip)
	case length(udp) < 32768 || length(udp[2:]) != int(c.host.TunnelPort) || length(udp[4:]) != len(b)-34 || length(udp[6:]) != 0:
		return got, fmt.Errorf("UDP header %x", udp)
	case from != c.host.Underlay || !bytes.Equal(vxlan[:4], []byte{8, 0, 0, 0}) || vxlan[7] != 0 || got.how != bpf.FastHowOUT:
		return got, fmt.Errorf("from %s, VXLAN header %x, manner %d", from, vxlan, got.how)
	}
	for _, n := range c.host.Networks {
		for _, r := range n.Remotes {
			own := slices.ContainsFunc(n.Ports, func(p plan.Port) bool { return p.Link == device })
			if own && n.VNI == binary.BigEndian.Uint32(vxlan[4:])>>8 && r.Via == to && bytes.Equal(r.MAC[:], inner[:6]) {
				if n.Device == nil {
					return seen{got.why, c.tunnelTo(to), got.how, inner}, nil
				}
				return seen{got.why, c.index[n.Device.Name], got.how, inner}, nil
			}
		}
	}
	return got, fmt.Errorf("network %x, peer %s", vxlan[4:7], to)
}

// wrapping is the length of what stands before the frame in a tunnel packet, its Ethernet header left out.
const wrapping = 36

// speakers returns the devices that frames come in by, as often as they are to speak.
func speakers(h *plan.Host) []string {
	var from []string
	for _, n := range inOrder(h) {
		if n.Device != nil {
			from = append(from, n.Device.Name)
		}
		for _, p := range n.Ports {
			if p.Link != "" {
				from = append(from, p.Link, p.Link)
			}
		}
	}
	if g := h.Gateway; g != nil {
		from = append(from, g.Port, g.Port)
	}
	slices.Sort(from)
	return from
}

// other returns the index of a device's twin.
func (m *machine) other(t testing.TB, device string) uint32 {
	var p bpf.FastPort
	if err := m.ports.Lookup(m.index[device], &p); err != nil {
		t.Fatal(err)
	}
	return p.Other
}

// install puts ports and flows of a host on a bridge of its own.
func install(t *testing.T, in *ovstest.Instance, bridge string, h *plan.Host) {
	t.Helper()
	args := []string{"add-br", bridge, "--", "set", "bridge", bridge, "fail_mode=secure"}
	all := flow.Base(h)
	port := func(n uint32) {
		name := fmt.Sprintf("%s-%d", bridge, n)
		args = append(args, "--", "add-port", bridge, name, "--", "set", "interface", name, "type=dummy", fmt.Sprintf("ofport_request=%d", n))
	}
	for _, n := range inOrder(h) {
		for _, p := range n.Ports {
			port(p.OFPort)
		}
		if n.Device != nil {
			port(n.Device.OFPort)
		}
		all = append(all, flow.Compile(n, h)...)
	}
	if h.Gateway != nil {
		port(h.Gateway.OFPort)
	}
	for _, tunnel := range h.Tunnels {
		port(tunnel.OFPort)
	}
	in.Vsctl(args...)
	var b strings.Builder
	for _, f := range all {
		b.WriteString(f.String() + "\n")
	}
	file := filepath.Join(in.Dir, bridge+".flows")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	in.Ofctl("add-flows", bridge, file)
}

// TestContext: the struct that test runs are told of is as large as the kernel's.
func TestContext(t *testing.T) {
	if n := unsafe.Sizeof(skb{}); n != 192 {
		t.Errorf("%d bytes", n)
	}
}
