package fastpath

import (
	"bytes"
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/fastpath/bpf"
	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"
)

// host makes the devices of a plan as package netns would: a veth whose other end is in a namespace of
// its own for each container, for each network another veth in the place of its VXLAN device, and one for
// the card that tunnel packets come in by.
func host(t testing.TB, h *plan.Host) {
	t.Helper()
	veth := func(name, peer, alias string, mtu uint32) {
		if _, err := netlink.LinkByName(name); err == nil {
			return
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, int(mtu)
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerMTU = peer, mtu
		if err := netlink.LinkAdd(v); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{name, peer} {
			// A device that comes up says so by IPv6, which would be counted.
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := netlink.LinkSetAlias(v, alias); err != nil {
			t.Fatal(err)
		}
	}
	veth(h.Device, "x"+h.Device[1:], "", 9000)
	if g := h.Gateway; g != nil && !g.Tap() {
		veth(g.Port, g.Name, "meshnet:gateway", g.MTU)
	}
	for _, n := range h.Networks {
		if n.Device != nil {
			veth(n.Device.Name, "x"+n.Device.Name[1:], "meshnet:network="+n.ID.String(), n.MTU)
		}
		for _, p := range n.Ports {
			veth(p.Link, "x"+p.Link[1:], "meshnet:endpoint="+p.Endpoint.String(), n.MTU)
		}
	}
}

// two is a host on transport C with two containers on a network that has a third elsewhere.
func two(t testing.TB, on bool) (*plantest.Mesh, state.NetworkID, plan.Facts) {
	return twoOn(t, state.KernelVXLAN, on)
}

// twoOn is [two] on another transport.
func twoOn(t testing.TB, transport state.Transport, on bool) (*plantest.Mesh, state.NetworkID, plan.Facts) {
	m := plantest.NewMesh(t, 2)
	web := m.Create("web", "10.2.0.0/16")
	a, b := m.Attach(1, web, "10.2.0.5"), m.Attach(1, web, "10.2.0.6")
	m.Attach(2, web, "10.2.0.7")
	f := plantest.Facts(transport, a.ID, b.ID)
	f.Choice.FastPath = on
	return m, web, f
}

// begun gives a host of its own, of [two], the fast path.
func begun(t *testing.T) (*Path, *plan.Host, *plantest.Mesh, state.NetworkID, plan.Facts) {
	t.Helper()
	return begin(t, false)
}

// begin is begun; if sent, something was sent by the devices before.
func begin(t *testing.T, sent bool) (*Path, *plan.Host, *plantest.Mesh, state.NetworkID, plan.Facts) {
	t.Helper()
	return beginWith(t, New(nil), sent)
}

func beginWith(t *testing.T, p *Path, sent bool) (*Path, *plan.Host, *plantest.Mesh, state.NetworkID, plan.Facts) {
	t.Helper()
	apart(t)
	m, web, facts := two(t, true)
	h := plan.For(nil, m.View(), facts)
	host(t, h)
	if sent {
		for _, name := range devicesOf(h) {
			sendBy(t, name, ping("10.2.0.5", "10.2.0.7"))
		}
	}
	apply(t, p, h)
	return p, h, m, web, facts
}

// devicesOf returns the devices of networks and containers.
func devicesOf(h *plan.Host) (names []string) {
	for _, n := range h.Networks {
		names = append(names, n.Device.Name)
		for _, p := range n.Ports {
			names = append(names, p.Link)
		}
	}
	return names
}

// bothWays runs a test with the program attached by filters and, where there is TCX, by that.
func bothWays(t *testing.T, test func(t *testing.T, sent bool)) {
	t.Run("new", func(t *testing.T) { test(t, false) })
	t.Run("sent", func(t *testing.T) { test(t, true) })
}

func apply(t *testing.T, p *Path, h *plan.Host) []plan.Step {
	t.Helper()
	h.Check()
	steps, _, err := p.Apply(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

// quiet wants an Apply that finds nothing to do.
func quiet(t *testing.T, p *Path, h *plan.Host) {
	t.Helper()
	if steps := apply(t, p, h); len(steps) > 0 {
		t.Errorf("there was something to do: %v", steps)
	}
}

// send puts a frame on a device's other end, so that it comes in by the device.
func send(t *testing.T, device string, frame []byte) {
	t.Helper()
	sendBy(t, "x"+device[1:], frame)
}

// sendBy sends a frame by a device.
func sendBy(t *testing.T, device string, frame []byte) {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Protocol: 0x0300}); err != nil {
		t.Fatal(err)
	}
}

// count returns how many frames came in by a device for a reason, once there are some or a second is
// over.
func count(t *testing.T, p *Path, device string, why bpf.FastReason) (n uint64) {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		var each []bpf.FastCount
		if err := p.program.counted.Lookup(uint32(l.Attrs().Index), &each); err != nil {
			t.Fatal(err)
		}
		n = 0
		for _, c := range each {
			n += c.Packets[why]
		}
		if n > 0 {
			return n
		}
		time.Sleep(10 * time.Millisecond) // real devices: no bubble
	}
	return 0
}

// ping is a frame of one member to another.
func ping(from, to string) []byte {
	src, dst := netAddr(from), netAddr(to)
	b := slices.Concat(dst.mac[:], src.mac[:], []byte{8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0}, src.ip, dst.ip, make([]byte, 8))
	return append(b, make([]byte, 18)...)
}

type member struct {
	mac state.MAC
	ip  net.IP
}

func netAddr(s string) member {
	ip := net.ParseIP(s).To4()
	return member{state.MAC{2, 0x42, ip[0], ip[1], ip[2], ip[3]}, ip}
}

// TestPath takes a host through its life: frames, a second apply, a daemon's restart, a member that
// goes, off and on, and purge.
func TestPath(t *testing.T) { bothWays(t, takeThroughLife) }

func takeThroughLife(t *testing.T, sent bool) {
	p, h, m, web, facts := begin(t, sent)
	quiet(t, p, h)
	n := h.Networks[web]
	a, b := n.Ports[0], n.Ports[1]
	send(t, a.Link, ping("10.2.0.5", "10.2.0.7"))
	send(t, n.Device.Name, ping("10.2.0.7", "10.2.0.6"))
	send(t, b.Link, ping("10.2.0.9", "10.2.0.5"))
	send(t, b.Link, ping("10.2.0.6", "10.2.0.5")[:30])
	everybody := ping("10.2.0.6", "10.2.255.255")
	copy(everybody, bytes.Repeat([]byte{0xff}, 6))
	send(t, b.Link, everybody)
	send(t, b.Link, ping("10.2.0.6", "10.2.0.1"))
	send(t, a.Link, slices.Insert(ping("10.2.0.5", "10.2.0.6"), 12, 0x81, 0, 0, 7))
	for _, c := range []struct {
		device string
		why    bpf.FastReason
	}{{a.Link, bpf.FastReasonFAST}, {n.Device.Name, bpf.FastReasonFAST}, {b.Link, bpf.FastReasonREFUSED}, {b.Link, bpf.FastReasonBROKEN}, {b.Link, bpf.FastReasonSLOW}, {a.Link, bpf.FastReasonSLOW}, {b.Link, bpf.FastReasonUNKNOWN}} {
		if n := count(t, p, c.device, c.why); n != 1 {
			t.Errorf("%d frames by %s for reason %d, want 1", n, c.device, c.why)
		}
	}

	again := New(nil) // another daemon
	quiet(t, again, h)
	m.Apply(1, state.RemoveEndpoint{ID: b.Endpoint})
	next := plan.For(h, m.View(), facts)
	apply(t, again, next)
	quiet(t, again, next)
	var way bpf.FastWay
	gone := Member{n.VNI, b.MAC}.encode()
	if err := again.program.members.Lookup(gone, &way); err == nil {
		t.Error("a member that is gone is still on the fast path")
	}
	if _, err := netlink.LinkByName(b.Twin.Slow); err == nil {
		t.Error("the twin of a member that is gone is still there")
	}

	facts.Choice.FastPath = false
	off := plan.For(next, m.View(), facts)
	apply(t, again, off)
	quiet(t, again, off)
	bare(t)
	facts.Choice.FastPath = true
	apply(t, again, plan.For(off, m.View(), facts))
	quiet(t, again, plan.For(off, m.View(), facts))
	if _, err := New(nil).Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	bare(t)
}

// bare wants no filter, clsact or twin on any device.
func bare(t *testing.T) {
	t.Helper()
	have, err := readDevices()
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range have.links {
		if strings.HasPrefix(l.Attrs().Alias, aliasTwin) {
			t.Errorf("twin %s is left", name)
		}
		if programs, err := heard(uint32(l.Attrs().Index)); hasTCX() && (err != nil || len(programs) > 0) {
			t.Errorf("programs %v on %s are left: %v", programs, name, err)
		}
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				t.Errorf("clsact on %s is left", name)
			}
		}
	}
}

// TestDrift breaks what Apply made in each way that nothing tells of, and wants it seen and mended.
func TestDrift(t *testing.T) { bothWays(t, drifts) }

func drifts(t *testing.T, sent bool) {
	p, h, _, web, _ := begin(t, sent)
	n := h.Networks[web]
	a := n.Ports[0]
	link := func(name string) netlink.Link {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	index := func(name string) uint32 { return uint32(link(name).Attrs().Index) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	id, err := p.program.id()
	must(err)
	p.verify(p.intact)
	remove := func(name string) func() {
		return func() {
			if clsacted(t, name) {
				must(netlink.QdiscDel(clsact(link(name))))
				return
			}
			_, err := dismiss(index(name), []ebpf.ProgramID{id}, 0)
			must(err)
		}
	}
	for what, breaks := range map[string]func(){
		"": func() {},
		"program removed": func() {
			filters, err := filtersOf(link(a.Link))
			must(err)
			if len(filters) == 0 {
				remove(a.Link)()
				return
			}
			must(netlink.FilterDel(filters[0]))
		},
		"program of the tunnel removed": remove(n.Device.Name),
		"program of a twin removed":     remove(a.Twin.Slow),
		"member redirected": func() {
			must(p.program.members.Put(Member{n.VNI, a.MAC}.encode(), bpf.FastWay{Ifindex: index(n.Device.Name)}))
		},
		"member added": func() { must(p.program.members.Put(bpf.FastMember{Vni: 9}, bpf.FastWay{Ifindex: 1})) },
		"port loosened": func() {
			must(p.program.ports.Put(index(a.Link), bpf.FastPort{Kind: bpf.FastKindTRUNK, Vni: n.VNI, Other: index(a.Twin.Slow)}))
		},
		"port deleted":                func() { must(p.program.ports.Delete(index(a.Twin.Slow))) },
		"twin down":                   func() { must(netlink.LinkSetDown(link(a.Twin.Port))) },
		"peer added":                  func() { must(p.program.peers.Put(uint32(9), bpf.FastPeer{})) },
		"program of the card removed": remove(h.Device),
		"another way for what comes by the tunnel": func() {
			must(p.program.members.Put(Member{n.VNI, a.MAC}.encode(), bpf.FastWay{Ifindex: index(a.Link), How: uint32(bpf.FastHowLOCAL)}))
		},
	} {
		breaks()
		for n := range mapsEvery {
			p.verify(p.look(n + 1))
		}
		select {
		case <-p.Drift():
			if what == "" {
				t.Error("drift without a cause")
			}
		default:
			if what != "" {
				t.Errorf("%s: no drift", what)
			}
		}
		apply(t, p, h)
		if same, err := p.intact(); err != nil || !same {
			t.Errorf("%s: not mended: %v", what, err)
		}
		quiet(t, p, h)
	}
}

// TestYield: what is new gets a filter; devices by which something was sent get, and give up, the program
// without clsact coming or going under them.
func TestYield(t *testing.T) {
	p, h, m, _, facts := begun(t)
	if !hasTCX() {
		if err := p.Yield(t.Context()); err != nil {
			t.Error(err)
		}
		quiet(t, p, h)
		return
	}
	devices := devicesOf(h)
	has := func(what string, filter, tcx bool) {
		t.Helper()
		for _, name := range devices {
			filters, err := filtersOf(must(t, name))
			if err != nil || (len(filters) > 0) != filter || listening(t, p, name) != tcx || clsacted(t, name) != filter {
				t.Errorf("%s: %s: filters %v, %v, by TCX %t, clsact %t; want %t, %t", what, name, filters, err, listening(t, p, name), clsacted(t, name), filter, tcx)
			}
		}
	}
	has("new", true, false)
	p = New(nil) // another daemon, which is to switch it off
	if err := p.Yield(t.Context()); err != nil {
		t.Fatal(err)
	}
	has("ready", false, true)
	paused := func() {
		t.Helper()
		if p.paused == 0 {
			t.Error("the kernel's lock was not left to others")
		}
		p.paused = 0
	}
	paused()
	facts.Choice.FastPath = false
	off := plan.For(h, m.View(), facts)
	apply(t, p, off)
	paused()
	bare(t)
	if err := p.Yield(t.Context()); err != nil {
		t.Fatal(err)
	}
	quiet(t, p, off)
	for _, name := range devices { // by which something is sent now
		sendBy(t, name, ping("10.2.0.5", "10.2.0.7"))
	}
	facts.Choice.FastPath = true
	on := plan.For(off, m.View(), facts)
	apply(t, p, on)
	has("on again", false, true)
	quiet(t, p, on)
	if same, err := p.intact(); err != nil || !same {
		t.Errorf("not as left: %v", err)
	}
	quiet(t, New(nil), on)
	if _, err := p.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	bare(t)
}

// clsacted reports whether a device has clsact.
func clsacted(t *testing.T, device string) bool {
	t.Helper()
	qdiscs, err := netlink.QdiscList(must(t, device))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "clsact" })
}

// TestForeign: a device under a twin's name, and other filters, are left alone.
func TestForeign(t *testing.T) {
	apart(t)
	m, web, facts := two(t, true)
	h := plan.For(nil, m.View(), facts)
	host(t, h)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Alias = h.Networks[web].Ports[0].Twin.Slow, "somebody's"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	p := New(nil)
	if _, _, err := p.Apply(t.Context(), h); err == nil || !strings.Contains(err.Error(), attrs.Name) {
		t.Errorf("a foreign device under a twin's name: %v", err)
	}
	if _, err := p.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(attrs.Name); err != nil {
		t.Error("the foreign device is gone")
	}
}

// TestPause: others have the lock for as long as it was held, but not for ever, and not when all is to end.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, began := New(nil), time.Now()
		for range 1000 {
			p.pause(t.Context(), 25*time.Millisecond)
		}
		if got := time.Since(began); got != pausedMax {
			t.Errorf("paused %s, want %s", got, pausedMax)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		pause(ctx, time.Hour)
		if got := time.Since(began); got != pausedMax {
			t.Errorf("paused %s after the end", got)
		}
	})
}

// TestRun: the watch ends with its context.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(nil).Run(ctx); err != nil {
		t.Error(err)
	}
}
