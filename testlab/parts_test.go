package testlab

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"
)

// play is what this program does inside a container.
func play(part string, args []string) int {
	parts := map[string]func([]string) error{
		"sink": sink, "source": source, "hear": hear, "shout": shout, "forge": forge,
		"who": who, "call": call, "udpwho": udpWho, "udpcall": udpCall, "frame": frame, "sniff": sniff, "tunnel": tunnel,
	}
	if err := parts[part](args); err != nil {
		fmt.Fprintln(os.Stderr, part+":", err)
		return 1
	}
	return 0
}

// sink ADDRESS: takes one TCP connection and prints the SHA-256 of all it brings.
func sink(args []string) error {
	l, err := net.Listen("tcp4", args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, c); err != nil {
		return err
	}
	fmt.Printf("%x\n", sum.Sum(nil))
	return nil
}

// source ADDRESS BYTES SEED: sends pseudo-random bytes and prints their SHA-256.
func source(args []string) error {
	n, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	seed := sha256.Sum256([]byte(args[2]))
	c, err := net.DialTimeout("tcp4", args[0], 10*time.Second)
	if err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(c, sum), rand.NewChaCha8(seed), n); err != nil {
		return err
	}
	fmt.Printf("%x\n", sum.Sum(nil))
	return c.Close()
}

// hear PORT SECONDS [GROUP ADDRESS]: joins a group by the interface with an address, and prints how many datagrams came to a UDP port within a time.
func hear(args []string) error {
	seconds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("udp4", ":"+args[0])
	if err != nil {
		return err
	}
	if len(args) == 4 {
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		join := &syscall.IPMreq{
			Multiaddr: netip.MustParseAddr(args[2]).As4(), Interface: netip.MustParseAddr(args[3]).As4(),
		}
		e := raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptIPMreq(int(fd), syscall.IPPROTO_IP, syscall.IP_ADD_MEMBERSHIP, join)
		})
		if e != nil || err != nil {
			return fmt.Errorf("join %s: %v %w", args[2], e, err)
		}
	}
	fmt.Println("ready")
	if err := c.SetDeadline(time.Now().Add(time.Duration(seconds) * time.Second)); err != nil {
		return err
	}
	n := 0
	for b := make([]byte, 2048); ; n++ {
		if _, _, err := c.ReadFrom(b); err != nil {
			break
		}
	}
	fmt.Println(n)
	return nil
}

// shout FROM TO:PORT COUNT: sends datagrams, broadcast allowed.
func shout(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	d := net.Dialer{
		LocalAddr: &net.UDPAddr{IP: net.ParseIP(args[0])},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_BROADCAST, 1)
			}); e != nil {
				return e
			}
			return err
		},
	}
	c, err := d.Dial("udp4", args[1])
	if err != nil {
		return err
	}
	for i := range n {
		if _, err := fmt.Fprintf(c, "shout %d", i); err != nil {
			return err
		}
	}
	return c.Close()
}

// forge ADDRESS VNI: sends one VXLAN packet (RFC 7348) with an ARP request inside.
func forge(args []string) error {
	vni, err := strconv.ParseUint(args[1], 10, 24)
	if err != nil {
		return err
	}
	c, err := net.Dial("udp4", args[0])
	if err != nil {
		return err
	}
	b := []byte{0x08, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(vni)<<8)
	mac := []byte{0x02, 0x42, 10, 2, 99, 99}
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, mac...)
	b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	b = append(b, mac...)
	b = append(b, netip.MustParseAddr("10.2.99.99").AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = append(b, netip.MustParseAddr("10.2.0.9").AsSlice()...)
	if _, err := c.Write(b); err != nil {
		return err
	}
	return c.Close()
}
