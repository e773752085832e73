package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"meshnet/state"
)

// Groups of netlink that are listened to (linux/rtnetlink.h, linux/netfilter/nfnetlink.h).
const (
	groupLink    = 1
	groupNeigh   = 3
	groupAddr4   = 5
	groupRoute4  = 7
	groupRule4   = 8
	groupAddr6   = 9
	groupConf4   = 24
	groupNFT     = 7
	rtmNewConf   = 80  // RTM_NEWNETCONF
	allNamespace = 0x8 // NETLINK_LISTEN_ALL_NSID
)

// changed is what netlink says may have changed since somebody last looked.
type changed struct {
	links, gateway, firewall bool
	boxes                    map[int]bool // numbers of containers' namespaces, as the kernel counts here
	everything               bool
}

func (c *changed) any() bool {
	return c.links || c.gateway || c.firewall || c.everything || len(c.boxes) > 0
}

// mirror is what is known to be as planned, as long as netlink is listened to. It is shared by who
// applies and who listens.
type mirror struct {
	mu       sync.Mutex
	live     bool // netlink is listened to
	gateway  bool // as planned
	firewall bool
	entries  map[int]map[entry]bool // of VXLAN devices, by index: as planned and nothing else
}

// forget makes that everything is read again.
func (m *mirror) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gateway, m.firewall, m.entries = false, false, map[int]map[entry]bool{}
}

func (m *mirror) listen(live bool) {
	m.forget()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live = live
}

// holds reports whether one of the flags of a mirror may be trusted.
func (m *mirror) holds(flag *bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live && *flag
}

func (m *mirror) set(flag *bool, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*flag = ok
}

// expect says what the entries of a device will be, before they are changed.
func (m *mirror) expect(index int, change func(map[entry]bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries[index] == nil {
		m.entries[index] = map[entry]bool{}
	}
	change(m.entries[index])
}

// knows reports whether the entries of a device may be trusted to be as expected.
func (m *mirror) knows(index int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live && m.entries[index] != nil
}

func (m *mirror) lose(index int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, index)
}

// surprised reports whether an entry of a VXLAN device came or went that should not have.
func (m *mirror) surprised(n *netlink.Neigh, gone bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	want, ours := m.entries[n.LinkIndex]
	via, ok := netip.AddrFromSlice(n.IP)
	if !ours || !ok || len(n.HardwareAddr) != 6 {
		return false
	}
	e := entry{state.MAC(n.HardwareAddr), via.Unmap()}
	if want[e] != gone {
		return false
	}
	delete(m.entries, n.LinkIndex)
	return true
}

// listener is a netlink socket that is read by one goroutine.
type listener struct{ *os.File }

// listenTo opens a netlink socket for groups. all asks for the events of other namespaces too, as far
// as the kernel numbers them here: those that a veth leads to.
func listenTo(family int, all bool, groups ...uint) (*listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)); err != nil {
			f.Close()
			return nil, fmt.Errorf("listen to netlink group %d: %w", g, err)
		}
	}
	// Both may fail: less is buffered then, and what happens inside containers is seen at the next look.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer)
	if all {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, allNamespace, 1)
	}
	return &listener{f}, nil
}

// read hands messages over until the socket is closed or fails. box is the number of the namespace
// that they come from, -1 for this one.
func (l *listener) read(take func(box int, m *unix.NlMsghdr, body []byte)) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	buf, oob := make([]byte, 1<<16), make([]byte, 128)
	for {
		var n, oobn int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, failed = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err := errors.Join(err, failed); err != nil {
			return err // with ENOBUFS some were lost
		}
		box := boxOf(oob[:oobn])
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			native := nl.NativeEndian()
			h := &unix.NlMsghdr{Len: native.Uint32(b), Type: native.Uint16(b[4:])}
			size := int(h.Len)
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				break
			}
			take(box, h, b[unix.NLMSG_HDRLEN:size])
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// boxOf returns the namespace number of a control message.
func boxOf(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_NETLINK && m.Header.Type == allNamespace && len(m.Data) >= 4 {
			return int(int32(nl.NativeEndian().Uint32(m.Data)))
		}
	}
	return -1
}

// subscribe listens to netlink until ctx ends or it fails.
func (l *Links) subscribe(ctx context.Context) error {
	route, err := listenTo(unix.NETLINK_ROUTE, true, groupLink, groupNeigh, groupAddr4, groupAddr6, groupRoute4, groupRule4, groupConf4)
	if err != nil {
		return err
	}
	nft, err := listenTo(unix.NETLINK_NETFILTER, false, groupNFT)
	if err != nil { // without nftables there is nothing to see
		nft = nil
	}
	var readers sync.WaitGroup
	failed := make(chan error, 2)
	news := &gathered{poke: make(chan struct{}, 1)}
	readers.Go(func() { failed <- route.read(func(box int, h *unix.NlMsghdr, b []byte) { l.take(news, box, h, b) }) })
	if nft != nil {
		readers.Go(func() {
			failed <- nft.read(func(int, *unix.NlMsghdr, []byte) { news.add(func(c *changed) { c.firewall = true }) })
		})
	}
	l.mu.Lock()
	clear(l.clean)
	l.mirror.listen(true)
	l.mu.Unlock()
	defer readers.Wait()
	defer func() {
		l.mirror.listen(false)
		route.Close()
		if nft != nil {
			nft.Close()
		}
	}()
	news.add(func(c *changed) { c.everything = true }) // what was missed before is not known
	return l.attend(ctx, news, failed)
}

// attend looks at what changed until ctx ends or a reader fails.
func (l *Links) attend(ctx context.Context, news *gathered, failed <-chan error) error {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	waiting := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-news.poke:
			if !waiting {
				waiting = true
				timer.Reset(driftWait)
			}
		case <-poll.C: // the older iptables tell nobody
			news.add(func(c *changed) { c.firewall = true })
		case <-timer.C:
			waiting = false
			l.compare(news.get())
		}
	}
}

// gathered is what readers saw and nobody looked at yet.
type gathered struct {
	mu   sync.Mutex
	what changed
	poke chan struct{}
}

func (g *gathered) add(f func(*changed)) {
	g.mu.Lock()
	f(&g.what)
	some := g.what.any()
	g.mu.Unlock()
	if some {
		select {
		case g.poke <- struct{}{}:
		default:
		}
	}
}

func (g *gathered) get() changed {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.what
	g.what = changed{}
	return c
}

// take notes what a message of rtnetlink(7) may mean.
func (l *Links) take(news *gathered, box int, h *unix.NlMsghdr, b []byte) {
	w := l.last.Load()
	if w == nil {
		return
	}
	if box >= 0 {
		if w.boxes[box] && h.Type != unix.RTM_NEWNEIGH && h.Type != unix.RTM_DELNEIGH {
			news.add(func(c *changed) {
				if c.boxes == nil {
					c.boxes = map[int]bool{}
				}
				c.boxes[box] = true
			})
		}
		return
	}
	switch h.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		m := nl.DeserializeIfInfomsg(b)
		if link, err := netlink.LinkDeserialize(h, b); err != nil || m == nil || w.concerns(link.Attrs()) {
			news.add(func(c *changed) { c.links, c.gateway = true, true })
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		m := nl.DeserializeIfAddrmsg(b)
		if int(m.Index) == w.index || w.all[int(m.Index)] {
			news.add(func(c *changed) { c.links, c.gateway = true, true })
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWRULE, unix.RTM_DELRULE, rtmNewConf:
		if w.gateway != 0 {
			news.add(func(c *changed) { c.gateway = true })
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := netlink.NeighDeserialize(b)
		if err != nil {
			return
		}
		if n.LinkIndex == w.gateway && w.gateway != 0 {
			news.add(func(c *changed) { c.gateway = true })
		}
		if n.Family == unix.AF_BRIDGE && l.mirror.surprised(n, h.Type == unix.RTM_DELNEIGH) {
			l.signal()
		}
	}
}
