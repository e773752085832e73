package fastpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/fastpath/bpf"
	"meshnet/plan"
	"meshnet/plan/plantest"
)

// must returns a device.
func must(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// atCard runs a test with the program at the card by TCX, where the kernel has that, and by a filter; daemon makes
// what is one there.
func atCard(t *testing.T, test func(t *testing.T, daemon func() *Path)) {
	for _, newer := range []bool{true, false} {
		if newer && !hasTCX() {
			continue
		}
		t.Run(map[bool]string{true: "TCX", false: "filter"}[newer], func(t *testing.T) {
			test(t, func() *Path {
				p := New(nil)
				p.newer = newer
				return p
			})
		})
	}
}

// elsewhere puts the other end of a device into a network namespace of its own, as it is on a real host,
// and does something there with it.
func elsewhere(t *testing.T, device string, do func(end netlink.Link) error) {
	t.Helper()
	end := must(t, "x"+device[1:])
	space, moved, done := make(chan string), make(chan struct{}), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			close(space)
			done <- err
			return
		}
		space <- fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		<-moved
		// A device that comes up says so by IPv6, which would be heard.
		err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
		if err == nil {
			err = os.WriteFile("/proc/sys/net/ipv6/conf/"+end.Attrs().Name+"/disable_ipv6", []byte("1"), 0)
		}
		var l netlink.Link
		if err == nil {
			l, err = netlink.LinkByName(end.Attrs().Name)
		}
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err == nil {
			err = do(l)
		}
		done <- err
	}()
	if path, ok := <-space; ok {
		ns, err := os.Open(path)
		if err == nil {
			err = netlink.LinkSetNsFd(end, int(ns.Fd()))
			ns.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		close(moved)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// The kernel learns of the carrier some time after it is back, and sends nothing by the device until then.
	for end := time.Now().Add(10 * time.Second); must(t, device).Attrs().OperState != netlink.OperUp; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not come up", device)
		}
	}
}

// inside returns a socket that gets what arrives in a container, for a second at most.
func inside(t *testing.T, link string) (fd int) {
	t.Helper()
	elsewhere(t, link, func(netlink.Link) (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0x0300); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// arrived returns the next frame at a socket; nil: none in a second.
func arrived(t *testing.T, fd int) []byte {
	t.Helper()
	b := make([]byte, 10000)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return nil
	}
	return b[:n]
}

// wrap is a frame in a tunnel packet of a peer.
func wrap(t *testing.T, h *plan.Host, from netip.Addr, vni uint32, inner []byte) []byte {
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(36+len(inner)))
	ip = slices.Concat(ip, from.AsSlice(), h.Underlay.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^fold(ip))
	udp := []byte{200, 1, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(udp[2:], h.TunnelPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(16+len(inner)))
	vxlan := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
	mac := must(t, h.Device).Attrs().HardwareAddr
	return slices.Concat(mac, net.HardwareAddr{2, 0, 0, 0, 0, 1}, []byte{8, 0}, ip, udp, vxlan, inner)
}

// scattered sends a packet of which only the first bytes can be read in place where it arrives (packet(7),
// PACKET_VNET_HDR: hdr_len; the kernel heeds it in packets of more than a page).
func scattered(t *testing.T, device string, packet []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		t.Fatal(err)
	}
	header := []byte{0, 0, 14, 0, 0, 0, 0, 0, 0, 0}
	to := &unix.SockaddrLinklayer{Ifindex: must(t, "x"+device[1:]).Attrs().Index, Protocol: 0x0300}
	if err := unix.Sendto(fd, append(header, packet...), 0, to); err != nil {
		t.Fatal(err)
	}
}

// TestUnderlay sends tunnel packets to a real device: what is in those that are fit arrives in the
// container, and nothing of the others does.
func TestUnderlay(t *testing.T) { atCard(t, takesAtCard) }

func takesAtCard(t *testing.T, daemon func() *Path) {
	p, h, _, web, _ := beginWith(t, daemon(), false)
	n := h.Networks[web]
	at := inside(t, n.Ports[0].Link)
	peer := plantest.Addr(2)
	frame := ping("10.2.0.7", "10.2.0.5")
	large := slices.Concat(frame[:14], []byte{0x45, 0, 0x17, 0x70}, frame[18:42], make([]byte, 6000-28))
	for i := range large[42:] {
		large[42+i] = byte(i)
	}
	packet := wrap(t, h, peer, n.VNI, frame)
	sent := 0
	want := func(what string, inner []byte) {
		t.Helper()
		sent++
		if got := arrived(t, at); !bytes.Equal(got, inner) {
			t.Errorf("%s: %x arrived as %.200x", what, inner[:min(len(inner), 100)], got)
		}
	}
	send(t, h.Device, packet)
	want("plain", frame)
	scattered(t, h.Device, wrap(t, h, peer, n.VNI, large))
	want("scattered", large)
	send(t, h.Device, wrap(t, h, peer, n.VNI, large))
	want("large", large)
	// In the kernel's order: what arrives is the last of them.
	send(t, h.Device, slices.Insert(slices.Clone(packet), 12, 0x81, 0, 0, 7))
	send(t, h.Device, wrap(t, h, netip.MustParseAddr("192.0.2.99"), n.VNI, frame))
	send(t, h.Device, wrap(t, h, peer, n.VNI+1, frame))
	send(t, h.Device, packet[:80])
	scattered(t, h.Device, wrap(t, h, peer, n.VNI+1, large))
	last := ping("10.2.0.7", "10.2.0.5")
	last[len(last)-1] = 9
	send(t, h.Device, wrap(t, h, peer, n.VNI, last))
	want("after those that are not fit", last)
	var fast, bytes uint64
	for _, x := range p.Traffic() {
		if x.Device == n.Device.Name {
			fast, bytes = x.Fast, x.Bytes
		}
		if x.Device == h.Device {
			t.Errorf("the card is shown: %+v", x)
		}
	}
	if fast != uint64(sent) || bytes != uint64(2*len(frame)+2*len(large)) {
		t.Errorf("%d frames, %d bytes counted by %s, want %d, %d", fast, bytes, n.Device.Name, sent, 2*len(frame)+2*len(large))
	}
}

// segments is what is to be cut into TCP segments, or UDP datagrams, with so many bytes, as a sender with
// offload makes it: behind a virtio_net_hdr (packet(7), PACKET_VNET_HDR), its checksum yet to be made.
func segments(from, to string, proto byte, payload []byte, size uint16) (header, frame []byte) {
	length, sum := uint16(20), uint16(16)
	header = []byte{1, 1} // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4
	if proto == unix.IPPROTO_UDP {
		length, sum = 8, 6
		header[1] = 5 // VIRTIO_NET_HDR_GSO_UDP_L4
	}
	frame = slices.Concat(ping(from, to)[:34], make([]byte, length), payload)
	ip, l4 := frame[14:34], frame[34:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(frame)-14))
	ip[9] = proto
	binary.BigEndian.PutUint16(ip[10:], ^fold(ip))
	if proto == unix.IPPROTO_UDP {
		l4[1], l4[3] = 7, 7
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	} else {
		l4[12], l4[13] = 5<<4, 0x10 // ACK
	}
	binary.BigEndian.PutUint16(l4[sum:], fold(pseudo(ip, len(l4))))
	for _, v := range []uint16{34 + length, size, 34, sum} {
		header = binary.NativeEndian.AppendUint16(header, v)
	}
	return header, frame
}

// canCutDatagrams reports whether the kernel takes segments of UDP from a packet socket (Linux 6.2,
// VIRTIO_NET_HDR_GSO_UDP_L4).
func canCutDatagrams() bool { return since(6, 2) }

// pseudo is the pseudo-header of RFC 9293, section 3.1.
func pseudo(ip []byte, length int) []byte {
	return binary.BigEndian.AppendUint16(slices.Concat(ip[12:20], []byte{0, ip[9]}), uint16(length))
}

// atPeer does something with the VXLAN device that a peer has of a network.
func atPeer(t *testing.T, h *plan.Host, vni uint32, do func(vx netlink.Link) error) {
	t.Helper()
	card := must(t, h.Device)
	elsewhere(t, h.Device, func(end netlink.Link) error {
		peer := plantest.Addr(2)
		vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx", TxQLen: -1}, VxlanId: int(vni), SrcAddr: peer.AsSlice(),
			Group: h.Underlay.AsSlice(), Port: int(h.TunnelPort), VtepDevIndex: end.Attrs().Index}
		to := &net.IPNet{IP: peer.AsSlice(), Mask: net.CIDRMask(24, 32)}
		if err := errors.Join(netlink.AddrAdd(end, &netlink.Addr{IPNet: to}), netlink.LinkAdd(vx), netlink.LinkSetUp(vx), netlink.NeighSet(&netlink.Neigh{
			LinkIndex: end.Attrs().Index, IP: h.Underlay.AsSlice(), HardwareAddr: card.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
		})); err != nil {
			return err
		}
		return do(vx)
	})
}

// listener is a socket that gets what a device sends and gets, each frame behind a virtio_net_hdr, for a second
// at most.
func listener(device netlink.Link) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return 0, err
	}
	return fd, errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: device.Attrs().Index}))
}

// TestWrap sends frames of a container to a member at a peer: they come out of that peer's VXLAN device as
// they were, segments of offload as large as they were. Where there is no route by the card, or a peer is not
// one, they go by the VXLAN device here.
func TestWrap(t *testing.T) { atCard(t, wraps) }

func wraps(t *testing.T, daemon func() *Path) {
	p, h, _, web, _ := beginWith(t, daemon(), false)
	n := h.Networks[web]
	card, own := must(t, h.Device), n.Ports[0]
	var at int
	atPeer(t, h, n.VNI, func(vx netlink.Link) (err error) {
		at, err = listener(vx)
		return err
	})
	defer unix.Close(at)
	here, err := listener(must(t, "x"+n.Device.Name[1:]))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(here)
	plain := ping("10.2.0.5", "10.2.0.7")
	congested := ping("10.2.0.5", "10.2.0.7")
	congested[15] = 3
	noHeader := make([]byte, 10)
	header, frame := segments("10.2.0.5", "10.2.0.7", unix.IPPROTO_TCP, make([]byte, 5500), 1000)
	datagrams, many := segments("10.2.0.5", "10.2.0.7", unix.IPPROTO_UDP, make([]byte, 5500), 1000)
	want := func(what string, at int, header, frame []byte) {
		t.Helper()
		by := &unix.SockaddrLinklayer{Ifindex: must(t, "x"+own.Link[1:]).Attrs().Index, Protocol: 0x0300}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err == nil {
			defer unix.Close(fd)
			err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1), unix.Sendto(fd, slices.Concat(header, frame), 0, by))
		}
		if err != nil {
			t.Fatal(err)
		}
		got := arrived(t, at)
		if len(got) < 10 || got[1]&^0x80 != header[1] || !bytes.Equal(got[4:6], header[4:6]) || !bytes.Equal(got[10:], frame) {
			t.Errorf("%s: %x %.100x arrived as %.110x", what, header, frame, got)
		}
	}
	want("without a route", here, noHeader, plain)
	route(t, card, h.Underlay)
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: card.Attrs().Index, IP: plantest.Addr(2).AsSlice(),
		HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, State: netlink.NUD_PERMANENT}); err != nil {
		t.Fatal(err)
	}
	want("a frame", at, noHeader, plain)
	want("segments", at, header, frame)
	if canCutDatagrams() {
		want("datagrams", at, datagrams, many)
	}
	want("congested", at, noHeader, congested)
	way, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: card.Attrs().Index}, netlink.RT_FILTER_OIF)
	if err != nil || len(way) != 1 {
		t.Fatalf("%v, %v", way, err)
	}
	small, other := way[0], netlink.Route{Dst: &net.IPNet{IP: plantest.Addr(2).AsSlice(), Mask: net.CIDRMask(32, 32)}, LinkIndex: must(t, n.Device.Name).Attrs().Index}
	small.MTU, small.MTULock = len(plain)-14+50-1, true // which the kernel looks at when it forwards only where it is locked
	for _, c := range []struct {
		what   string
		change func() error
		at     int
	}{
		{"a better route by another device", func() error { return netlink.RouteAdd(&other) }, here},
		{"without it", func() error { return netlink.RouteDel(&other) }, at},
		{"the route gone", func() error { return netlink.RouteDel(&way[0]) }, here},
		{"too long for the route", func() error { return netlink.RouteAdd(&small) }, here},
		{"not too long for it", func() error { small.MTU++; return netlink.RouteReplace(&small) }, at},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // a tick of the kernel, in which it is not asked again
		want(c.what, c.at, noHeader, plain)
	}
	next := *h
	next.Firewall.Peers = nil
	apply(t, p, &next)
	want("no peer", here, noHeader, plain)
	apply(t, p, h)
	want("a peer again", at, noHeader, plain)
}

// TestSegments sends segments of offload by a peer's VXLAN device: those of TCP are taken, arrive as many
// and as large as they were, and what a container sends on by a device that has no offload is cut as its
// sender would have cut it, with right checksums. Those of UDP are left to the host's stack.
func TestSegments(t *testing.T) { atCard(t, takesSegments) }

func takesSegments(t *testing.T, daemon func() *Path) {
	p, h, _, web, _ := beginWith(t, daemon(), false)
	n := h.Networks[web]
	const size = 1000
	payload := make([]byte, 5500)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	at := 0
	var tap *os.File
	elsewhere(t, n.Ports[0].Link, func(end netlink.Link) error {
		out := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI, Queues: 1}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: -1}}
		for _, l := range []netlink.Link{out, bridge} {
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		tap = out.Fds[0]
		for _, l := range []netlink.Link{out, end} {
			if err := netlink.LinkSetMaster(l, bridge); err != nil {
				return err
			}
		}
		var err error
		at, err = listener(end)
		return err
	})
	defer unix.Close(at)
	defer tap.Close()
	header, frame := segments("10.2.0.7", "10.2.0.5", unix.IPPROTO_TCP, payload, size)
	datagrams, left := segments("10.2.0.7", "10.2.0.5", unix.IPPROTO_UDP, payload, size)
	atPeer(t, h, n.VNI, func(vx netlink.Link) error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		by := &unix.SockaddrLinklayer{Ifindex: vx.Attrs().Index, Protocol: 0x0300}
		many := func() error {
			if !canCutDatagrams() {
				return nil
			}
			return unix.Sendto(fd, slices.Concat(datagrams, left), 0, by)
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			many(), unix.Sendto(fd, slices.Concat(header, frame), 0, by))
	})
	got := arrived(t, at)
	for len(got) > 10 && got[10]&1 != 0 { // the bridge asks who listens to what
		got = arrived(t, at)
	}
	if len(got) < 10 || got[1]&^0x80 != 1 || binary.NativeEndian.Uint16(got[4:]) != size || !bytes.Equal(got[10:], frame) {
		t.Errorf("%x %.100x of %d bytes, sent %x %.100x of %d", got[:min(10, len(got))], got[min(10, len(got)):], len(got), header, frame, len(frame))
	}
	if fast := count(t, p, n.Device.Name, bpf.FastReasonFAST); fast != 1 {
		t.Errorf("%d taken", fast)
	}
	var cut []byte
	for len(cut) < len(payload) {
		one := make([]byte, 10000)
		wait := []unix.PollFd{{Fd: int32(tap.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(wait, 1000); n != 1 {
			t.Fatalf("%d bytes of %d came out: %v", len(cut), len(payload), err)
		}
		k, err := tap.Read(one)
		if err != nil {
			t.Fatal(err)
		}
		one = one[:k]
		if k < 54 || one[23] != unix.IPPROTO_TCP {
			continue
		}
		tcp := one[34:]
		if k-54 != min(size, len(payload)-len(cut)) || fold(one[14:34]) != 0xffff ||
			fold(append(pseudo(one[14:34], len(tcp)), tcp...)) != 0xffff {
			t.Errorf("after %d bytes: %d bytes, %.60x", len(cut), k, one)
		}
		cut = append(cut, one[54:]...)
	}
	if !bytes.Equal(cut, payload) {
		t.Error("other bytes came out")
	}
}

// listening reports whether our program is at the ingress of a device, once: by TCX the last of all, or where that
// is not to be had by a filter.
func listening(t *testing.T, p *Path, device string) bool {
	t.Helper()
	l := must(t, device)
	id, err := p.program.id()
	if err != nil {
		t.Fatal(err)
	}
	if !p.tcx {
		filters, err := filtersOf(l)
		if err != nil || len(filters) > 1 {
			t.Errorf("filters of %s: %v, %v", device, filters, err)
		}
		return len(filters) > 0 && filters[0].Id == int(id)
	}
	all, err := heard(uint32(l.Attrs().Index))
	if err != nil {
		t.Fatal(err)
	}
	at := slices.Index(all, id)
	if at >= 0 && at != len(all)-1 {
		t.Errorf("programs of %s: %v, and not ours, %d, is the last", device, all, id)
	}
	return at >= 0
}

// drifted wants drift to be seen, or not, and what is then to be done to be done once.
func drifted(t *testing.T, p *Path, h *plan.Host, what string, want bool) {
	t.Helper()
	p.verify(p.cardIntact)
	select {
	case <-p.Drift():
		if !want {
			t.Errorf("%s: drift without a cause", what)
		}
	default:
		if want {
			t.Errorf("%s: no drift", what)
		}
	}
	apply(t, p, h)
	quiet(t, p, h)
	p.verify(p.cardIntact)
	select {
	case <-p.Drift():
		t.Errorf("%s: it is not mended", what)
	default:
	}
}

// TestUnderlayLeft: tunnel packets are not taken where they would pass by what is not meshnet's, and are
// again when that is gone.
func TestUnderlayLeft(t *testing.T) { atCard(t, leavesToOthers) }

func leavesToOthers(t *testing.T, daemon func() *Path) {
	p, h, _, _, _ := beginWith(t, daemon(), false)
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	policy := func(dir netlink.Dir) *netlink.XfrmPolicy {
		return &netlink.XfrmPolicy{Src: all, Dst: all, Dir: dir, Proto: netlink.XFRM_PROTO_ESP}
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: -1}}
	ok(netlink.LinkAdd(bridge))
	theirs := foreign(t)
	card := func() netlink.Link { return must(t, h.Device) }
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: card().Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL, Handle: 1,
		},
		Fd: theirs.FD(), Name: "somebody's", DirectAction: true,
	}
	attach := link.RawAttachProgramOptions{Target: card().Attrs().Index, Program: theirs, Attach: ebpf.AttachTCXIngress}
	type change struct {
		what       string
		begin, end func()
		is, drift  bool
	}
	changes := []change{
		{"nothing", func() {}, func() {}, true, false},
		{"a policy for what is forwarded", func() { ok(netlink.XfrmPolicyAdd(policy(netlink.XFRM_DIR_FWD))) }, func() { ok(netlink.XfrmPolicyDel(policy(netlink.XFRM_DIR_FWD))) }, true, false},
		{"a policy for what is sent", func() { ok(netlink.XfrmPolicyAdd(policy(netlink.XFRM_DIR_OUT))) }, func() { ok(netlink.XfrmPolicyDel(policy(netlink.XFRM_DIR_OUT))) }, false, true},
		{"a policy", func() { ok(netlink.XfrmPolicyAdd(policy(netlink.XFRM_DIR_IN))) }, func() { ok(netlink.XfrmPolicyDel(policy(netlink.XFRM_DIR_IN))) }, false, true},
		{"a bridge", func() { ok(netlink.LinkSetMaster(card(), bridge)) }, func() { ok(netlink.LinkSetNoMaster(card())) }, false, true},
		{"a filter", func() { ok(netlink.FilterAdd(filter)) }, func() { ok(netlink.QdiscDel(clsact(card()))) }, false, true},
	}
	if p.tcx {
		changes = slices.Concat([]change{
			{"clsact alone", func() { ok(netlink.QdiscAdd(clsact(card()))) }, func() {}, true, false},
		}, changes, []change{
			{"another's program after ours", func() { ok(link.RawAttachProgram(attach)) }, func() {}, true, true},
			{"another's program before ours", func() {}, func() { ok(link.RawDetachProgram(link.RawDetachProgramOptions(attach))) }, true, false},
		})
	} else {
		changes = append(changes, change{"no clsact", func() { ok(netlink.QdiscDel(clsact(card()))) }, func() {}, true, true})
	}
	for _, c := range changes {
		c.begin()
		drifted(t, p, h, c.what, c.drift)
		if is := listening(t, p, h.Device); is != (c.is || !p.tcx) { // a filter stays, so that clsact need not come again
			t.Errorf("%s: there: %t", c.what, is)
		}
		if ports := p.has.ports[uint32(card().Attrs().Index)]; (ports.Udp != 0) != c.is {
			t.Errorf("%s: the card in the maps: %+v", c.what, ports)
		}
		c.end()
		drifted(t, p, h, "the end of "+c.what, !c.is)
		if !listening(t, p, h.Device) {
			t.Errorf("after %s: not taken", c.what)
		}
	}
	other, err := load(true, 0) // of another release
	ok(err)
	defer other.close()
	_, err = other.behind(card(), p.tcx)
	ok(err)
	drifted(t, p, h, "another program", true)
	if all, err := heard(uint32(card().Attrs().Index)); p.tcx && (err != nil || len(all) != 1) || !listening(t, p, h.Device) {
		t.Errorf("after another program: %v, %v", all, err)
	}
	// What others have there stays.
	if p.tcx {
		ok(link.RawAttachProgram(attach))
	} else {
		ok(netlink.FilterAdd(filter))
	}
	apply(t, p, h)
	_, err = New(nil).Purge(t.Context())
	ok(err)
	if p.tcx {
		if all, err := heard(uint32(card().Attrs().Index)); err != nil || len(all) != 1 {
			t.Errorf("purged, and there is %v, %v; want another's alone", all, err)
		}
		ok(link.RawDetachProgram(link.RawDetachProgramOptions(attach)))
	} else {
		if all, err := netlink.FilterList(card(), netlink.HANDLE_MIN_INGRESS); err != nil || len(all) != 1 {
			t.Errorf("purged, and there is %v, %v; want another's alone", all, err)
		}
		ok(netlink.QdiscDel(clsact(card())))
	}
	bare(t)
}

// foreign is a program that lets all pass.
func foreign(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebodys", Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestUnderlayMoves: another card, or another one of the same name, takes the place of the first, also for
// a daemon that comes after.
func TestUnderlayMoves(t *testing.T) { atCard(t, movesWithCard) }

func movesWithCard(t *testing.T, daemon func() *Path) {
	p, h, m, _, facts := beginWith(t, daemon(), false)
	if err := netlink.LinkDel(must(t, h.Device)); err != nil {
		t.Fatal(err)
	}
	apply(t, p, h)
	quiet(t, p, h)
	host(t, h)
	drifted(t, p, h, "another card of the name", true)
	if !listening(t, p, h.Device) {
		t.Error("another card of the name: not taken")
	}
	facts.Underlay.Device = "eth1"
	next := plan.For(h, m.View(), facts)
	host(t, next)
	apply(t, p, next)
	quiet(t, p, next)
	if is, there := listening(t, p, "eth0"), listening(t, p, "eth1"); is || !there {
		t.Errorf("taken at the old card: %t, at the new one: %t", is, there)
	}
	again := daemon()
	apply(t, again, h)
	quiet(t, again, h)
	if is, there := listening(t, again, "eth0"), listening(t, again, "eth1"); !is || there {
		t.Errorf("another daemon: taken at the card: %t, at that of before: %t", is, there)
	}
}
