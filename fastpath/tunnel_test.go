package fastpath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"
)

// tunnel makes the device of all tunnels, as the kernel's datapath would.
func tunnel(t *testing.T, h *plan.Host) netlink.Link {
	t.Helper()
	vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: h.Trunk, MTU: 65000, TxQLen: -1}, FlowBased: true, Port: int(h.TunnelPort)}
	if err := errors.Join(netlink.LinkAdd(vx), netlink.LinkSetUp(vx)); err != nil {
		t.Fatal(err)
	}
	return must(t, h.Trunk)
}

// beside gives a host of its own, of [two], the fast path beside the kernel's datapath, with a program; nil: the one
// that it has.
func beside(t *testing.T, with *program) (*Path, *plan.Host, *plan.Network) {
	t.Helper()
	apart(t)
	m, web, f := twoOn(t, state.OVSKernel, true)
	h := plan.For(nil, m.View(), f)
	host(t, h)
	card := must(t, h.Device)
	route(t, card, h.Underlay)
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: card.Attrs().Index, IP: plantest.Addr(2).AsSlice(),
		HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, State: netlink.NUD_PERMANENT}); err != nil {
		t.Fatal(err)
	}
	p := New(nil)
	p.program = with
	apply(t, p, h)
	quiet(t, p, h)
	return p, h, h.Networks[web]
}

// stop keeps the program from the card, so that all goes by the device of all tunnels.
func stop(t *testing.T, p *Path, h *plan.Host) {
	t.Helper()
	card := must(t, h.Device)
	if err := netlink.QdiscAdd(clsact(card)); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	err := netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: card.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL, Handle: 1},
		Fd:          foreign(t).FD(), Name: "somebody's", DirectAction: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, p, h)
}

// TestTunnel sends frames from a member at a peer to a container, and back, beside the kernel's datapath, by
// the device of all tunnels and, where it can be, by the card: what is fit arrives as it was, and nothing else.
func TestTunnel(t *testing.T) {
	for _, by := range []string{"card", "tunnel"} {
		t.Run(by, func(t *testing.T) {
			p, h, n := beside(t, nil)
			tunnel(t, h)
			p.forget()
			apply(t, p, h)
			quiet(t, p, h)
			if by == "tunnel" {
				stop(t, p, h)
			}
			if err := errors.Join(arrives(t, h, n), leaves(t, h, n)); err != nil {
				t.Error(err)
			}
			var fast uint64
			for _, x := range p.Traffic() {
				if x.Device == h.Trunk {
					fast = x.Fast
				}
			}
			if fast != 3 {
				t.Errorf("%d frames counted by %s, want 3", fast, h.Trunk)
			}
		})
	}
}

// arrives sends packets to this host, and says what is wrong with what arrives in a container.
func arrives(t *testing.T, h *plan.Host, n *plan.Network) error {
	t.Helper()
	at := inside(t, n.Ports[0].Link)
	peer := plantest.Addr(2)
	frame, last := ping("10.2.0.7", "10.2.0.5"), ping("10.2.0.7", "10.2.0.5")
	last[len(last)-1] = 9
	large := slices.Concat(frame[:14], []byte{0x45, 0, 0x17, 0x70}, frame[18:42], make([]byte, 6000-28))
	other := netip.MustParseAddr("192.0.2.77") // of this host, too
	if err := netlink.AddrAdd(must(t, h.Device), &netlink.Addr{IPNet: &net.IPNet{IP: other.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Fatal(err)
	}
	to := *h
	to.Underlay = other
	for _, b := range [][]byte{
		wrap(t, h, peer, n.VNI, frame),
		wrap(t, h, netip.MustParseAddr("192.0.2.99"), n.VNI, frame),
		wrap(t, h, peer, n.VNI^1, frame),
		wrap(t, &to, peer, n.VNI, frame),
		wrap(t, h, peer, n.VNI, ping("10.2.0.7", "10.2.0.99")),
		wrap(t, h, peer, n.VNI, ping("10.2.0.6", "10.2.0.7")), // back to the peer
		wrap(t, h, peer, n.VNI, slices.Insert(slices.Clone(frame), 12, 0x81, 0, 0, 7)),
		wrap(t, h, peer, n.VNI, large),
		wrap(t, h, peer, n.VNI, last),
	} {
		send(t, h.Device, b)
	}
	for _, want := range [][]byte{frame, large, last} {
		if got := arrived(t, at); !bytes.Equal(got, want) {
			return fmt.Errorf("%.100x arrived as %.100x", want, got)
		}
	}
	return nil
}

// leaves sends from a container to a member at a peer, and says what is wrong with what comes there.
func leaves(t *testing.T, h *plan.Host, n *plan.Network) error {
	t.Helper()
	var at, outer int
	atPeer(t, h, n.VNI, func(vx netlink.Link) (err error) {
		if at, err = listener(vx); err != nil {
			return err
		}
		end, err := netlink.LinkByName("x" + h.Device[1:])
		if err == nil {
			outer, err = listener(end)
		}
		return err
	})
	defer unix.Close(at)
	defer unix.Close(outer)
	header, frame := segments("10.2.0.6", "10.2.0.7", unix.IPPROTO_TCP, make([]byte, 5500), 1000)
	for _, c := range []struct {
		what          string
		header, frame []byte
	}{{"a frame", make([]byte, 10), ping("10.2.0.6", "10.2.0.7")}, {"segments", header, frame}} {
		by := &unix.SockaddrLinklayer{Ifindex: must(t, "x"+n.Ports[1].Link[1:]).Attrs().Index, Protocol: 0x0300}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err == nil {
			err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1), unix.Sendto(fd, slices.Concat(c.header, c.frame), 0, by), unix.Close(fd))
		}
		if err != nil {
			t.Fatal(err)
		}
		got := arrived(t, at)
		if len(got) < 10 || got[1]&^0x80 != c.header[1] || !bytes.Equal(got[4:6], c.header[4:6]) || !bytes.Equal(got[10:], c.frame) {
			return fmt.Errorf("%s: %x %.100x arrived as %.110x", c.what, c.header, c.frame, got)
		}
		ip := arrived(t, outer)[10+14:]
		if ip[8] != 64 || !bytes.Equal(ip[26:28], []byte{0, 0}) || !bytes.Equal(ip[12:16], h.Underlay.AsSlice()) {
			return fmt.Errorf("%s: left as %.60x", c.what, ip)
		}
	}
	return nil
}

// TestTunnelMutations breaks one check after the other of what is done at the device of all tunnels, which a
// test run of the program cannot show, and wants it noticed.
func TestTunnelMutations(t *testing.T) {
	for _, m := range []struct{ check, is, broken string }{
		{"peers", "!known || bpf_htonl(key.local_ipv4)", "!peer || bpf_htonl(key.local_ipv4)"},
		{"this host's tunnel end", " || bpf_htonl(key.local_ipv4) != tunnel->ip", ""},
		{"network of what comes", "{.vni = key.tunnel_id, .kind = TRUNK}", "{.vni = key.tunnel_id | 1, .kind = TRUNK}"},
		{"network of what is sent", ".tunnel_id = vni, ", ".tunnel_id = vni ^ 1, "},
		{"peer of what is sent", ".remote_ipv4 = bpf_ntohl(way->peer)", ".remote_ipv4 = bpf_ntohl(way->peer) ^ 1"},
		{"sender of what is sent", ".local_ipv4 = bpf_ntohl(tunnel->ip)", ".local_ipv4 = bpf_ntohl(tunnel->ip) ^ 12"},
		{"time to live", ".tunnel_ttl = 64", ".tunnel_ttl = 63"},
		{"checksum", "BPF_F_ZERO_CSUM_TX | ", ""},
	} {
		t.Run(m.check, func(t *testing.T) {
			source := readSource(t)
			if strings.Count(source, m.is) != 1 {
				t.Fatalf("%q is not once in fast.c", m.is)
			}
			apart(t)
			program, err := loadSpec(compiled(t, strings.Replace(source, m.is, m.broken, 1)), true, 0)
			if err != nil {
				t.Fatal(err)
			}
			p, h, n := beside(t, program)
			tunnel(t, h)
			p.forget()
			apply(t, p, h)
			stop(t, p, h)
			if err := errors.Join(arrives(t, h, n), leaves(t, h, n)); err == nil {
				t.Error("nobody notices that it is broken")
			}
		})
	}
}

// TestTunnelComes: the device of all tunnels is the switch's, which makes it with the first peer, and may make it
// anew. What is for peers goes to the switch until it is there.
func TestTunnelComes(t *testing.T) {
	p, h, n := beside(t, nil)
	stop(t, p, h)
	elsewhereWay := func() bool {
		var way [16]byte
		return p.program.members.Lookup(Member{n.VNI, n.Remotes[0].MAC}.encode(), &way) == nil
	}
	if elsewhereWay() {
		t.Error("a way by a device that is not there")
	}
	for range 2 {
		l := tunnel(t, h)
		p.verify(p.intact)
		select {
		case <-p.Drift():
		default:
			t.Error("nobody sees that it is there")
		}
		apply(t, p, h)
		quiet(t, p, h)
		if !elsewhereWay() {
			t.Error("no way by it")
		}
		if err := netlink.LinkDel(l); err != nil {
			t.Fatal(err)
		}
	}
	tunnel(t, h)
	if _, err := New(nil).Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := netlink.QdiscDel(clsact(must(t, h.Device))); err != nil { // somebody's
		t.Fatal(err)
	}
	bare(t)
	must(t, h.Trunk)
}
