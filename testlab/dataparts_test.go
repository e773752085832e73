package testlab

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"meshnet/fastpath/fasttest"
)

// who ADDRESS COUNT: takes TCP connections and prints who each comes from.
func who(args []string) error {
	l, err := net.Listen("tcp4", args[0])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for range n {
		if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		c, err := l.Accept()
		if err != nil {
			return err
		}
		host, _, err := net.SplitHostPort(c.RemoteAddr().String())
		if err != nil {
			return err
		}
		fmt.Println(host)
		fmt.Fprintln(c, host)
		c.Close()
	}
	return nil
}

// call ADDRESS: connects by TCP within 3 s and prints what it is told.
func call(args []string) error {
	c, err := net.DialTimeout("tcp4", args[0], 3*time.Second)
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	fmt.Print(string(b))
	return err
}

// udpWho PORT: takes one datagram within 30 s, prints who it comes from and answers.
func udpWho(args []string) error {
	c, err := net.ListenPacket("udp4", ":"+args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	b := make([]byte, 2048)
	_, from, err := c.ReadFrom(b)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		return err
	}
	fmt.Println(host)
	_, err = c.WriteTo([]byte(host), from)
	return err
}

// udpCall ADDRESS: sends a datagram and prints the answer, which has to come within 3 s.
func udpCall(args []string) error {
	c, err := net.Dial("udp4", args[0])
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	b := make([]byte, 2048)
	n, err := c.Read(b)
	fmt.Println(string(b[:n]))
	return err
}

// packets opens a packet(7) socket on an interface.
func packets(name string, proto uint16) (fd int, to *syscall.SockaddrLinklayer, err error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, nil, err
	}
	order := proto<<8 | proto>>8
	fd, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, int(order))
	to = &syscall.SockaddrLinklayer{Protocol: order, Ifindex: i.Index}
	if err == nil {
		err = syscall.Bind(fd, to)
	}
	return fd, to, err
}

// frame INTERFACE HEX…: sends frames as they are.
func frame(args []string) error {
	fd, to, err := packets(args[0], 0x0003)
	if err != nil {
		return err
	}
	for _, text := range args[1:] {
		b, err := hex.DecodeString(text)
		if err != nil {
			return err
		}
		if err := syscall.Sendto(fd, b, 0, to); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond) // so that none is taken for lost with a full queue
	}
	return nil
}

// sniff INTERFACE ETHERTYPE SECONDS [TEXT]: counts the frames of a type, with a text in them, that come in, until its
// input ends, at most a time, and prints how many came from which MAC, as JSON.
func sniff(args []string) error {
	proto, err := strconv.ParseUint(args[1], 0, 16)
	if err != nil {
		return err
	}
	done, err := ends(args[2])
	if err != nil {
		return err
	}
	text := []byte(strings.Join(args[3:], ""))
	fd, _, err := packets(args[0], uint16(proto))
	if err != nil {
		return err
	}
	wait := syscall.NsecToTimeval(int64(100 * time.Millisecond))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	fmt.Println("ready")
	seen := map[string]int{}
	for b := make([]byte, 2048); ; {
		n, from, err := syscall.Recvfrom(fd, b, 0)
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
			select {
			case <-done:
				return json.NewEncoder(os.Stdout).Encode(seen)
			default:
				continue
			}
		}
		if err != nil {
			return err
		}
		if l, ok := from.(*syscall.SockaddrLinklayer); ok && l.Pkttype != syscall.PACKET_OUTGOING && n >= 12 && bytes.Contains(b[:n], text) {
			seen[net.HardwareAddr(b[6:12]).String()]++
		}
	}
}

// tunnel ADDRESS VNI HEX: sends a frame in a VXLAN packet (RFC 7348).
func tunnel(args []string) error {
	vni, err := strconv.ParseUint(args[1], 10, 24)
	if err != nil {
		return err
	}
	b, err := hex.DecodeString(args[2])
	if err != nil {
		return err
	}
	c, err := net.Dial("udp4", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	head := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, uint32(vni)<<8)
	_, err = c.Write(append(head, b...))
	fmt.Fprintln(os.Stderr, "sent", len(b))
	return err
}

// programs list|remove: the devices that carry an eBPF program at their ingress, one a line; or removes all of these
// programs.
func programs(args []string) error {
	devices, err := fasttest.Carriers()
	if err != nil {
		return err
	}
	for _, d := range devices {
		fmt.Println(d.Name)
		if args[0] == "remove" {
			err = errors.Join(err, d.Clear())
		}
	}
	return err
}

// datagram returns a frame with an IPv4 UDP packet, without a checksum of UDP.
func datagram(from, to, src, dst string, port int, text string) string {
	mac := func(s string) []byte {
		m, err := net.ParseMAC(s)
		if err != nil {
			panic(err)
		}
		return m
	}
	payload := []byte(text)
	ip := []byte{0x45, 0, 0, byte(28 + len(payload)), 0, 1, 0, 0, 64, 17, 0, 0}
	ip = append(ip, netip.MustParseAddr(src).AsSlice()...)
	ip = append(ip, netip.MustParseAddr(dst).AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	b := append(append(mac(to), mac(from)...), 0x08, 0x00)
	b = append(b, ip...)
	b = binary.BigEndian.AppendUint16(b, 4000)
	b = binary.BigEndian.AppendUint16(b, uint16(port))
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	return hex.EncodeToString(append(b, payload...))
}

// forgedText is in what arp makes: what is asked for meanwhile is answered.
const forgedText = "forged"

// arp returns a frame that says that an address has a MAC (RFC 826).
func arp(op byte, from, to, sender, target string) string {
	m, err := net.ParseMAC(from)
	if err != nil {
		panic(err)
	}
	d, err := net.ParseMAC(to)
	if err != nil {
		panic(err)
	}
	b := append(append([]byte(d), m...), 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, op)
	b = append(append(b, m...), netip.MustParseAddr(sender).AsSlice()...)
	b = append(append(b, d...), netip.MustParseAddr(target).AsSlice()...)
	return hex.EncodeToString(append(b, forgedText...)) // as padding
}
