// Package meshtest is a network in memory for tests of memberlist and what stands on it. Packets
// travel over channels after a delay, streams over pipes; hosts are cut from each other and packets
// lost as a test asks. It starts no goroutine but timers and reads package time only, so it works in
// a testing/synctest bubble. It does not shape bandwidth. All of it may be called concurrently.
package meshtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// queueLen is how many packets and streams wait for a host; more packets are lost.
const queueLen = 4096

// Network connects hosts.
type Network struct {
	delay time.Duration

	mu    sync.Mutex
	hosts map[netip.AddrPort]*Host
	side  map[netip.Addr]int // by host; nil: not split
	loss  float64
	rand  *rand.Rand
	pipes map[*pipe]struct{}
	bytes uint64
}

// New returns a network without hosts. delay is how long a packet takes one way.
func New(delay time.Duration, seed uint64) *Network {
	return &Network{
		delay: delay,
		hosts: map[netip.AddrPort]*Host{},
		rand:  rand.New(rand.NewPCG(seed, 1)),
		pipes: map[*pipe]struct{}{},
	}
}

// Split cuts the groups from each other; hosts that are in none form one more group. Streams between
// groups break.
func (n *Network) Split(groups ...[]netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = map[netip.Addr]int{}
	for i, g := range groups {
		for _, a := range g {
			n.side[a] = i + 1
		}
	}
	for p := range n.pipes {
		if n.side[p.from] != n.side[p.to] {
			p.Conn.Close()
			delete(n.pipes, p)
		}
	}
}

// Heal undoes [Network.Split].
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = nil
}

// Lose makes a share of all packets get lost, 0 to 1.
func (n *Network) Lose(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// Bytes returns how many bytes were sent in packets.
func (n *Network) Bytes() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bytes
}

// Host is a network card: memberlist's transport.
type Host struct {
	net     *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
}

var _ memberlist.NodeAwareTransport = (*Host)(nil)

// Host returns a new host with an address that no host has now.
func (n *Network) Host(addr netip.AddrPort) *Host {
	h := &Host{net: n, addr: addr,
		packets: make(chan *memberlist.Packet, queueLen),
		streams: make(chan net.Conn, queueLen),
		done:    make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, taken := n.hosts[addr]; taken {
		panic("meshtest: address taken: " + addr.String())
	}
	n.hosts[addr] = h
	return h
}

// reach returns the host at an address unless it is cut off or there is none.
func (n *Network) reach(from netip.AddrPort, to string) *Host {
	addr, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.side[from.Addr()] != n.side[addr.Addr()] {
		return nil
	}
	return n.hosts[addr]
}

// FinalAdvertiseAddr returns the host's address.
func (h *Host) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return h.addr.Addr().AsSlice(), int(h.addr.Port()), nil
}

// WriteTo sends a packet.
func (h *Host) WriteTo(b []byte, addr string) (time.Time, error) {
	return h.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a packet. It gets lost where its receiver is cut off or has too many waiting.
func (h *Host) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	now := time.Now()
	h.net.mu.Lock()
	h.net.bytes += uint64(len(b))
	lost := h.net.rand.Float64() < h.net.loss
	h.net.mu.Unlock()
	peer := h.net.reach(h.addr, to.Addr)
	if peer == nil || lost {
		return now, nil
	}
	p := &memberlist.Packet{Buf: bytes.Clone(b), From: net.UDPAddrFromAddrPort(h.addr)}
	time.AfterFunc(h.net.delay, func() {
		p.Timestamp = time.Now()
		select {
		case <-peer.done:
		case peer.packets <- p:
		default:
		}
	})
	return now, nil
}

// PacketCh delivers packets.
func (h *Host) PacketCh() <-chan *memberlist.Packet { return h.packets }

// DialTimeout opens a stream.
func (h *Host) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return h.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream. Where there is nobody it fails after the timeout, as with a host
// that is switched off.
func (h *Host) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	peer := h.net.reach(h.addr, to.Addr)
	if peer == nil {
		select {
		case <-time.After(timeout):
		case <-h.done:
		}
		return nil, fmt.Errorf("dial %s: timeout", to.Addr)
	}
	ours, theirs := net.Pipe()
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.hosts[peer.addr] != peer || len(peer.streams) == queueLen {
		return nil, fmt.Errorf("dial %s: refused", to.Addr)
	}
	peer.streams <- theirs // only ever sent to with the lock held, so there is room
	p := &pipe{Conn: ours, net: h.net, from: h.addr.Addr(), to: peer.addr.Addr()}
	h.net.pipes[p] = struct{}{}
	return p, nil
}

// StreamCh delivers streams.
func (h *Host) StreamCh() <-chan net.Conn { return h.streams }

// Shutdown takes the host off the network. Streams that nobody took break, as they wait for a reader.
func (h *Host) Shutdown() error {
	h.once.Do(func() {
		h.net.mu.Lock()
		defer h.net.mu.Unlock()
		delete(h.net.hosts, h.addr)
		close(h.done)
		for len(h.streams) > 0 {
			(<-h.streams).Close()
		}
	})
	return nil
}

// pipe is one end of a stream that a split can break.
type pipe struct {
	net.Conn
	net      *Network
	from, to netip.Addr
}

// Close ends the stream.
func (p *pipe) Close() error {
	p.net.mu.Lock()
	delete(p.net.pipes, p)
	p.net.mu.Unlock()
	return p.Conn.Close()
}
