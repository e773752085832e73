package testlab

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// play is what this program does inside a container.
func play(part string, args []string) int {
	parts := map[string]func([]string) error{
		"sink": sink, "source": source, "pour": pour, "hear": hear, "shout": shout, "forge": forge,
		"who": who, "call": call, "udpwho": udpWho, "udpcall": udpCall, "frame": frame, "sniff": sniff, "tunnel": tunnel,
		"programs": programs,
	}
	if err := parts[part](args); err != nil {
		fmt.Fprintln(os.Stderr, part+":", err)
		return 1
	}
	return 0
}

// sink ADDRESS: takes one TCP connection and prints the SHA-256 of all it brings, and then the longest time in which
// it brought nothing.
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
	var longest time.Duration
	last := time.Now()
	for b := make([]byte, 1<<16); ; {
		n, err := c.Read(b)
		sum.Write(b[:n])
		longest, last = max(longest, time.Since(last)), time.Now()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	fmt.Printf("%x\n%v\n", sum.Sum(nil), longest.Round(time.Millisecond))
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

// poured is what pour says at its end.
type poured struct {
	Sum         string // SHA-256 of all that was sent
	Bytes       int64
	Retransmits uint32 // segments sent again
	Needless    uint32 // of those, what the receiver says it had already (RFC 2883)
}

// pour ADDRESS BYTES PAUSE SECONDS: sends that many pseudo-random bytes after each pause, in seconds, over one TCP
// connection until its input ends, at most a time, and prints what became of them as JSON.
func pour(args []string) error {
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	pause, err := time.ParseDuration(args[2] + "s")
	if err != nil {
		return err
	}
	done, err := ends(args[3])
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp4", args[0], 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Println("ready")
	sum, from, piece := sha256.New(), rand.NewChaCha8([32]byte{}), make([]byte, size)
	var p poured
	for tick := time.NewTicker(pause); ; {
		select {
		case <-done:
			p.Sum = hex.EncodeToString(sum.Sum(nil))
			if p.Retransmits, p.Needless, err = retransmits(c.(*net.TCPConn)); err != nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(p)
		case <-tick.C:
		}
		if _, err := from.Read(piece); err != nil {
			return err
		}
		if _, err := c.Write(piece); err != nil {
			return err
		}
		sum.Write(piece)
		p.Bytes += int64(size)
	}
}

// retransmits reads tcpi_total_retrans and tcpi_dsack_dups of a connection (struct tcp_info, linux/tcp.h).
func retransmits(c *net.TCPConn) (all, needless uint32, err error) {
	const tcpInfo, total, dsack = 11, 100, 216
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var info [256]byte
	size := uint32(len(info))
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, tcpInfo,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	}); err != nil {
		return 0, 0, err
	}
	if errno != 0 || size < dsack+4 {
		return 0, 0, fmt.Errorf("TCP_INFO: %d bytes: %w", size, errno)
	}
	return binary.NativeEndian.Uint32(info[total:]), binary.NativeEndian.Uint32(info[dsack:]), nil
}

// ends returns what is closed when nobody wants to know any more: at the end of the input, or after a
// time.
func ends(most string) (<-chan struct{}, error) {
	seconds, err := strconv.Atoi(most)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	var once sync.Once
	over := func() { once.Do(func() { close(done) }) }
	time.AfterFunc(time.Duration(seconds)*time.Second, over)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // any end of it is the end
		over()
	}()
	return done, nil
}

// lastWord is the datagram that tells hear that what was sent before it is there.
const lastWord = "end"

// hear PORT SECONDS [GROUP ADDRESS]: joins a group by the interface with an address, and counts the
// datagrams that come to a UDP port, until its input ends, at most a time. It prints lastWord when that
// comes, and at its end how often it heard what, as JSON.
func hear(args []string) error {
	done, err := ends(args[1])
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
	go func() {
		<-done
		c.Close()
	}()
	heard := map[string]int{}
	for b := make([]byte, 2048); ; {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			break
		}
		if string(b[:n]) == lastWord {
			fmt.Println(lastWord)
			continue
		}
		heard[string(b[:n])]++
	}
	return json.NewEncoder(os.Stdout).Encode(heard)
}

// shout FROM COUNT TO:PORT…: sends datagrams that say 0, 1, 2, … to each, broadcast allowed, and a last
// word.
func shout(args []string) error {
	n, err := strconv.Atoi(args[1])
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
	for _, to := range args[2:] {
		c, err := d.Dial("udp4", to)
		if err != nil {
			return err
		}
		for i := range n {
			if _, err := fmt.Fprint(c, i); err != nil {
				return err
			}
		}
		// What is not at a wire yet may be overtaken within Open vSwitch.
		time.Sleep(200 * time.Millisecond)
		if _, err := io.WriteString(c, lastWord); err != nil {
			return err
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
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
