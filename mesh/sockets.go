package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/net/ipv4"
)

const (
	// packetBuf is the largest packet read, in bytes; UDP has no larger ones.
	packetBuf = 64 << 10
	// packetsWaiting and streamsOpen are how many packets and streams wait for memberlist. Packets
	// then wait in the socket, whose buffer of at most socketBuf bytes the kernel keeps.
	packetsWaiting = 256
	streamsOpen    = 16
	socketBuf      = 2 << 20
	// faultPause is how long a socket rests after an error, which a broken interface may give at
	// every call.
	faultPause = 50 * time.Millisecond
)

// sockets is memberlist's transport over UDP and TCP. Unlike memberlist's own it reads into one
// buffer and hands on what was read, not 64 KiB a packet; it resolves no names; it counts; and its
// streams end with ctx, so that a peer that does not answer does not keep a daemon from stopping.
type sockets struct {
	ctx     context.Context
	udp     *net.UDPConn
	tcp     *net.TCPListener
	log     *slog.Logger
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
	count   traffic
	// label begins every packet of the cluster, and direct takes the bodies of user messages as soon as
	// they are read. nil: all goes through memberlist.
	label  []byte
	direct func([]byte)
	// What is sent at once, kept for the next time.
	outMu sync.Mutex
	batch *ipv4.PacketConn
	msgs  []ipv4.Message
	out   []byte
}

// traffic counts what passed the sockets, with what memberlist put around it.
type traffic struct {
	packetsIn, packetsOut, bytesIn, bytesOut, streamsIn, streamsOut, faults atomic.Uint64
}

var _ memberlist.NodeAwareTransport = (*sockets)(nil)

// listen opens both sockets at an address. [sockets.start] starts to read, [sockets.Shutdown] ends it.
func listen(ctx context.Context, at netip.AddrPort, log *slog.Logger) (*sockets, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	for size := socketBuf; size > 0 && udp.SetReadBuffer(size) != nil; size /= 2 {
	}
	s := &sockets{
		ctx: ctx, udp: udp, tcp: tcp, log: log, batch: ipv4.NewPacketConn(udp),
		packets: make(chan *memberlist.Packet, packetsWaiting),
		streams: make(chan net.Conn, streamsOpen),
		done:    make(chan struct{}),
	}
	return s, nil
}

// start reads. Bodies of plain user messages of a cluster go to direct, which must not block and may
// keep them; with direct nil all goes to memberlist.
func (s *sockets) start(cluster string, direct func([]byte)) {
	if direct != nil {
		s.label, s.direct = append([]byte{labelMsg, byte(len(cluster))}, cluster...), direct
	}
	s.wg.Go(s.read)
	s.wg.Go(s.accept)
}

// How memberlist 0.7 frames a packet: a label, a checksum (CRC-32, IEEE) of the rest, the kind of message.
const (
	userMsg  = 8
	crcMsg   = 12
	labelMsg = 244
)

// userMessage returns the body of a packet that is one user message and nothing else, whole and with
// this cluster's label. Through memberlist such a message passes two goroutines more.
func userMessage(packet, label []byte) ([]byte, bool) {
	b, ok := bytes.CutPrefix(packet, label)
	if !ok || len(b) < 6 || b[0] != crcMsg || b[5] != userMsg || crc32.ChecksumIEEE(b[5:]) != binary.BigEndian.Uint32(b[1:]) {
		return nil, false
	}
	return b[6:], true
}

// plain reports whether user messages are sent and taken as they are, past memberlist.
func (s *sockets) plain() bool { return s.direct != nil }

// userPacket is a user message on its way.
type userPacket struct {
	to   netip.AddrPort
	body []byte
}

// sendUser sends user messages framed as memberlist would, all in one system call, and keeps none of
// them: memberlist makes three copies of each and parses the address anew.
func (s *sockets) sendUser(ps []userPacket) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	s.out = s.out[:0]
	var framed []byte
	for i, p := range ps {
		if i == 0 || !sameSlice(p.body, ps[i-1].body) { // news is the same for all
			framed = s.frame(p.body)
		}
		s.put(i, p.to, framed)
	}
	for at := 0; at < len(ps); {
		n, err := s.batch.WriteBatch(s.msgs[at:len(ps)], 0) // an error is the first one's
		if err != nil {
			s.log.Debug("packet not sent", "addr", ps[at].to, "err", err)
			at++
			continue
		}
		for _, m := range s.msgs[at : at+n] {
			s.count.packetsOut.Add(1)
			s.count.bytesOut.Add(uint64(m.N))
		}
		at += n
	}
}

// frame appends a framed message to out and returns it.
func (s *sockets) frame(body []byte) []byte {
	from := len(s.out)
	s.out = append(append(s.out, s.label...), crcMsg, 0, 0, 0, 0, userMsg)
	s.out = append(s.out, body...)
	b := s.out[from:]
	binary.BigEndian.PutUint32(b[len(s.label)+1:], crc32.ChecksumIEEE(b[len(s.label)+5:]))
	return b
}

// put makes the message at a place of msgs.
func (s *sockets) put(i int, to netip.AddrPort, b []byte) {
	if i == len(s.msgs) {
		s.msgs = append(s.msgs, ipv4.Message{Buffers: make([][]byte, 1), Addr: new(net.UDPAddr)})
	}
	s.msgs[i].Buffers[0] = b
	addr := s.msgs[i].Addr.(*net.UDPAddr)
	if ip := to.Addr(); ip.Is4() {
		b := ip.As4()
		addr.IP = append(addr.IP[:0], b[:]...)
	} else {
		b := ip.As16()
		addr.IP = append(addr.IP[:0], b[:]...)
	}
	addr.Port, addr.Zone = int(to.Port()), to.Addr().Zone()
}

func sameSlice(a, b []byte) bool { return len(a) == len(b) && len(a) > 0 && &a[0] == &b[0] }

// read hands on packets until the socket is closed.
func (s *sockets) read() {
	buf := make([]byte, packetBuf)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if s.rest("read packet", err) {
				continue
			}
			return
		}
		if n == 0 {
			continue
		}
		s.count.packetsIn.Add(1)
		s.count.bytesIn.Add(uint64(n))
		if s.direct != nil {
			if body, ok := userMessage(buf[:n], s.label); ok {
				s.direct(slices.Clone(body))
				continue
			}
		}
		p := &memberlist.Packet{Buf: slices.Clone(buf[:n]), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
		select {
		case s.packets <- p:
		case <-s.done:
			return
		}
	}
}

// accept hands on streams until the socket is closed.
func (s *sockets) accept() {
	for {
		c, err := s.tcp.AcceptTCP()
		if err != nil {
			if s.rest("accept stream", err) {
				continue
			}
			return
		}
		s.count.streamsIn.Add(1)
		select {
		case s.streams <- c:
		case <-s.done:
			c.Close()
			return
		}
	}
}

// rest pauses after a fault and reports whether to go on.
func (s *sockets) rest(what string, err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	s.count.faults.Add(1)
	s.log.Debug(what, "err", err)
	select {
	case <-time.After(faultPause):
		return true
	case <-s.done:
		return false
	}
}

// FinalAdvertiseAddr returns what was configured; this transport chooses no address.
func (s *sockets) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, 0, fmt.Errorf("advertise: %w", err)
	}
	return addr.Unmap().AsSlice(), port, nil
}

// PacketCh delivers packets.
func (s *sockets) PacketCh() <-chan *memberlist.Packet { return s.packets }

// StreamCh delivers streams.
func (s *sockets) StreamCh() <-chan net.Conn { return s.streams }

// WriteTo sends a packet.
func (s *sockets) WriteTo(b []byte, addr string) (time.Time, error) {
	return s.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a packet to a numeric address. It does not keep b.
func (s *sockets) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	addr, err := netip.ParseAddrPort(to.Addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send packet: %w", err)
	}
	err = s.send(b, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()))
	return time.Now(), err
}

func (s *sockets) send(b []byte, to netip.AddrPort) error {
	n, err := s.udp.WriteToUDPAddrPort(b, to)
	if err == nil {
		s.count.packetsOut.Add(1)
		s.count.bytesOut.Add(uint64(n))
	}
	return err
}

// DialTimeout opens a stream.
func (s *sockets) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return s.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream that ends with the transport's context.
func (s *sockets) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	c, err := d.DialContext(s.ctx, "tcp", to.Addr)
	if err != nil {
		return nil, err
	}
	s.count.streamsOut.Add(1)
	return &dialed{c, context.AfterFunc(s.ctx, func() { c.Close() })}, nil
}

// Shutdown closes the sockets and returns when nothing reads them any more. Streams that nobody took
// are closed.
func (s *sockets) Shutdown() (err error) {
	s.once.Do(func() {
		close(s.done)
		err = errors.Join(s.udp.Close(), s.tcp.Close())
		s.wg.Wait()
		for len(s.streams) > 0 {
			(<-s.streams).Close()
		}
	})
	return err
}

// dialed is a stream that its context may end.
type dialed struct {
	net.Conn
	stop func() bool
}

// Close ends the stream.
func (c *dialed) Close() error {
	c.stop()
	return c.Conn.Close()
}
