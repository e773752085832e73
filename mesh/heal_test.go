package mesh

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"meshnet/netns/nstest"
	"meshnet/state"
)

var (
	forms = flag.Int("forms", 2, "how often fifty nodes form a mesh")
	heals = flag.Int("heals", 1, "how often each cut is healed")
	falls = flag.Int("losses", 1, "how often one of twenty nodes falls silent")
)

const (
	// formMax and healMax are what the design asks for.
	formMax = 2 * time.Second
	healMax = 30 * time.Second
	// deadMax is how soon all see that a node is silent; mostly it is a quarter of that.
	deadMax = 15 * time.Second
)

// seedFor names a run: what it names differs from run to run and is the same when it is run again. The
// scheduler and the node ids are not seeded.
func seedFor(n int, cut time.Duration, run int) *rand.Rand {
	var b [32]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	binary.LittleEndian.PutUint64(b[8:], uint64(cut))
	binary.LittleEndian.PutUint64(b[16:], uint64(run))
	return rand.New(rand.NewChaCha8(b))
}

// TestForm: fifty nodes that start at once and know one of them see each other and have one digest
// within two seconds, and all that they started ends: a bubble does not end before its goroutines.
func TestForm(t *testing.T) {
	for run := range *forms {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			defer l.end()
			l.edit = func(_ int, c *Config) { c.Join = []string{addr(0).String()} }
			for i := range 50 {
				l.start(i)
			}
			formed := l.await("formed", formMax, l.converged)
			for _, h := range l.nodes {
				if n := len(h.View().Nodes()); n != 50 {
					t.Errorf("run %d: %s knows %d nodes", run, h.c.Name, n)
				}
				<-h.Ready()
			}
			l.await("one default", 5*time.Second, l.converged)
			for _, h := range l.nodes {
				if nw := h.View().Networks(); len(nw) != 1 || nw[0].Name != defaultName {
					t.Errorf("run %d: %s has %d networks", run, h.c.Name, len(nw))
				}
			}
			t.Logf("run %d: formed in %s", run, formed)
		})
	}
}

// TestSeenDead: of twenty nodes one falls silent, and nobody takes it for alive any more soon after.
func TestSeenDead(t *testing.T) {
	for run := range *falls {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			defer l.end()
			for i := range 20 {
				l.start(i)
			}
			l.await("formed", formMax, l.converged)
			r := seedFor(20, 0, run)
			time.Sleep(5*time.Second + time.Duration(r.Int64N(int64(time.Second))))
			lost := r.IntN(20)
			l.net.Split([]netip.Addr{addr(lost)})
			seen := l.await("seen dead by all", deadMax, func() bool {
				return !slices.ContainsFunc(l.nodes, func(h *host) bool {
					return h.i != lost && slices.Contains(h.members.alive(), l.nodes[lost].self)
				})
			})
			t.Logf("run %d: seen dead by all after %s", run, seen)
		})
	}
}

// TestHeal: ten nodes that were cut six from four are one mesh within 30 s after the heal, however
// long the cut, with what was written on both sides.
func TestHeal(t *testing.T) {
	for _, cut := range []time.Duration{5 * time.Second, 15 * time.Second, 30 * time.Second, 2 * time.Minute,
		10 * time.Minute, time.Hour} {
		t.Run(cut.String(), func(t *testing.T) {
			for run := range *heals {
				synctest.Test(t, func(t *testing.T) { healOnce(t, cut, run) })
			}
		})
	}
}

func healOnce(t *testing.T, cut time.Duration, run int) {
	const n = 10
	r := seedFor(n, cut, run)
	l := newLab(t)
	defer l.end()
	for i := range n {
		l.start(i)
	}
	l.await("formed", formMax, l.converged)
	for _, h := range l.nodes {
		<-h.Ready()
	}
	l.await("one default", 5*time.Second, l.converged)
	order := r.Perm(n)
	var side []netip.Addr
	for _, i := range order[:4] {
		side = append(side, addr(i))
	}
	l.net.Split(side)
	time.Sleep(time.Second)
	l.nodes[order[0]].do(t, state.Create{Name: "left", Subnet: netip.MustParsePrefix("10.20.0.0/16")})
	l.nodes[order[9]].do(t, state.Create{Name: "right", Subnet: netip.MustParsePrefix("10.21.0.0/16")})
	time.Sleep(cut + time.Duration(r.Int64N(int64(10*time.Second))))
	if cut > time.Minute && l.converged() {
		t.Error("the cut did not cut")
	}
	l.net.Heal()
	healed := l.await("one mesh", healMax, l.converged)
	for _, h := range l.nodes {
		for _, name := range []string{"left", "right", defaultName} {
			if _, ok := h.View().ByName(name); !ok {
				t.Errorf("%s does not know %s", h.c.Name, name)
			}
		}
	}
	t.Logf("run %d: healed in %s", run, healed)
}

// TestHealAfterLoss: a mesh that loses a fifth of its packets stays one, and what is written comes
// everywhere.
func TestHealAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 5 {
			l.start(i)
		}
		l.await("formed", formMax, l.converged)
		for _, h := range l.nodes {
			<-h.Ready()
		}
		l.net.Lose(0.2)
		for k := range 30 {
			l.nodes[k%5].do(t, state.Create{Name: fmt.Sprintf("n%d", k)})
		}
		l.await("one digest", 5*time.Second, func() bool {
			digests := map[[16]byte]bool{}
			for _, h := range l.nodes {
				digests[h.View().Digest()] = true
			}
			return len(digests) == 1 && len(l.nodes[0].View().Networks()) == 31
		})
		c, err := l.nodes[0].Counters(t.Context())
		if err != nil || c.Gossip.Digests == 0 || c.Gossip.Pushed == 0 || c.Gossip.Differing == 0 || c.InboxDropped != 0 {
			t.Errorf("%+v, %v", c, err)
		}
	})
}

// TestRememberedPeers: a node that lost its log and has no seeds finds the others by what it wrote
// beside it; where the file is spoilt, it starts all the same.
func TestRememberedPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 3 {
			l.start(i)
		}
		l.await("formed", formMax, l.converged)
		time.Sleep(2 * rememberPause)
		l.stop(2)
		dir := filepath.Join(l.dir, "2", "state")
		peers, err := loadPeers(dir)
		must(t, err)
		if len(peers) != 2 || peers[0].Addr() != addr(0) || peers[1].Addr() != addr(1) {
			t.Errorf("remembered %v", peers)
		}
		must(t, os.Remove(filepath.Join(dir, "log")))
		l.edit = func(_ int, c *Config) { c.Join = nil }
		l.start(2)
		l.await("back without log and seeds", healMax, l.converged)
		l.stop(2)
		must(t, os.WriteFile(peersPath(dir), []byte("{"), 0o600))
		if _, err := loadPeers(dir); err == nil {
			t.Error("a spoilt file was read")
		}
		l.start(2)
		l.await("back by the state", healMax, l.converged)
	})
}

// TestRememberedAreTried: while nobody is there those on disk are tried, and then no more; who is alive
// is written there.
func TestRememberedAreTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		there := map[state.NodeID]netip.AddrPort{}
		known := netip.AddrPortFrom(addr(7), 1)
		tried, kept := 0, []netip.AddrPort(nil)
		r := &rejoin{
			self: candidate{1, netip.AddrPortFrom(addr(0), 1)}, port: 1, remembered: []netip.AddrPort{known},
			log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
			nodes:    func() map[state.NodeID]netip.AddrPort { return nil },
			renamed:  func() bool { return false },
			remember: func(ps []netip.AddrPort) error { kept = ps; return nil },
			alive: func() map[state.NodeID]netip.AddrPort {
				mu.Lock()
				defer mu.Unlock()
				return there
			},
			join: func(to string) error {
				mu.Lock()
				defer mu.Unlock()
				if tried++; to != known.String() {
					t.Errorf("%s was tried", to)
				}
				there = map[state.NodeID]netip.AddrPort{3: netip.AddrPortFrom(addr(8), 1)}
				return nil
			},
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r.run(ctx)
		if tried != 1 || !slices.Equal(kept, []netip.AddrPort{netip.AddrPortFrom(addr(8), 1)}) {
			t.Errorf("%d tries, remembered %v", tried, kept)
		}
	})
}

// TestRejoinIdle: while nothing happens nobody is looked for, and a node that the state names from some
// moment on is tried soon after.
func TestRejoinIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const named = time.Hour
		began, looks, tried := time.Now(), 0, time.Duration(0)
		late := func() bool { return time.Since(began) >= named }
		told := false
		r := &rejoin{
			self: candidate{1, netip.AddrPortFrom(addr(0), 1)}, seeds: []string{addr(2).String()}, port: 1,
			log: slog.New(slog.NewTextHandler(io.Discard, nil)),
			nodes: func() map[state.NodeID]netip.AddrPort {
				looks++
				if !late() {
					return nil
				}
				return map[state.NodeID]netip.AddrPort{4: netip.AddrPortFrom(addr(3), 1)}
			},
			renamed: func() bool { was := told; told = late(); return told != was },
			alive: func() map[state.NodeID]netip.AddrPort {
				return map[state.NodeID]netip.AddrPort{3: netip.AddrPortFrom(addr(2), 1)}
			},
			remember: func([]netip.AddrPort) error { return nil },
			join:     func(string) error { tried = cmp.Or(tried, time.Since(began)); return nil },
		}
		ctx, cancel := context.WithTimeout(t.Context(), named-time.Minute)
		defer cancel()
		r.run(ctx)
		if looks > 2 {
			t.Errorf("%d looks while nothing happened", looks)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		r.run(ctx)
		if tried < named || tried > named+rejoinLookIdle+2*rejoinWaitMin {
			t.Errorf("tried after %s, want it soon after %s", tried, named)
		}
	})
}

// TestRejoinTries: an address that answers nothing is tried after about 1, 2, 4, 8, 10, 10 … s for
// ever, each by at most one goroutine, and none is tried that is there.
func TestRejoinTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		began := time.Now()
		r := &rejoin{
			self: candidate{1, netip.AddrPortFrom(addr(0), 1)}, seeds: []string{addr(1).String(), addr(2).String()}, port: 1,
			log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
			nodes: func() map[state.NodeID]netip.AddrPort { return nil }, renamed: func() bool { return false },
			alive: func() map[state.NodeID]netip.AddrPort {
				return map[state.NodeID]netip.AddrPort{3: netip.AddrPortFrom(addr(2), 1)}
			},
			remember: func([]netip.AddrPort) error { return nil },
			join: func(to string) error {
				if to != netip.AddrPortFrom(addr(1), 1).String() {
					t.Errorf("%s was tried", to)
				}
				at = append(at, time.Since(began))
				time.Sleep(dialMax)
				return errors.New("nobody there")
			},
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		r.run(ctx)
		for i := 1; i < len(at); i++ {
			want := min(rejoinWaitMin<<min(i-1, 8), rejoinWaitMax)
			if d := at[i] - at[i-1] - dialMax; d < want*3/4 || d > want*5/4+rejoinLook {
				t.Errorf("try %d came %s after the one before, want about %s", i, d, want)
			}
		}
		if len(at) < 200 {
			t.Errorf("%d tries in an hour", len(at))
		}
	})
}

// TestSockets: packets and streams pass, are counted, and all ends with Shutdown.
func TestSockets(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var ss [2]*sockets
	for i := range ss {
		s, err := listen(ctx, netip.MustParseAddrPort(fmt.Sprintf("127.77.0.%d:17946", i+1)), log)
		must(t, err)
		s.start("", nil)
		ss[i] = s
	}
	if _, err := listen(ctx, netip.MustParseAddrPort("127.77.0.1:17946"), log); err == nil {
		t.Error("two listen on one address")
	}
	const to = "127.77.0.2:17946"
	for _, n := range []int{1, 1350, 60000} {
		_, err := ss[0].WriteTo(slices.Repeat([]byte{byte(n)}, n), to)
		must(t, err)
		p := <-ss[1].PacketCh()
		if len(p.Buf) != n || cap(p.Buf) > 2*n+64 || p.From.String() != "127.77.0.1:17946" {
			t.Errorf("%d bytes of %d in a slice of %d, from %s", len(p.Buf), n, cap(p.Buf), p.From)
		}
	}
	if _, err := ss[0].WriteTo([]byte("x"), "localhost:1"); err == nil {
		t.Error("a name was resolved")
	}
	c, err := ss[0].DialTimeout(to, time.Second)
	must(t, err)
	peer := <-ss[1].StreamCh()
	go c.Write([]byte("hello"))
	b := make([]byte, 5)
	if _, err := io.ReadFull(peer, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	cancel()
	must(t, peer.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := peer.Read(b); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the stream outlives its context")
	}
	must(t, errors.Join(ss[0].Shutdown(), ss[1].Shutdown(), ss[1].Shutdown()))
	if n, m := ss[0].count.packetsOut.Load(), ss[1].count.packetsIn.Load(); n != 3 || m != 3 || ss[1].count.bytesIn.Load() != 61351 {
		t.Errorf("%d packets out, %d in, %d bytes in", n, m, ss[1].count.bytesIn.Load())
	}
}

// TestUserMessage: what memberlist sends as a user message is taken from the socket as it is, and no packet
// of another cluster, cut short or changed; and one sent past memberlist is the same.
func TestUserMessage(t *testing.T) {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	sender, err := listen(t.Context(), netip.MustParseAddrPort("127.77.0.1:17946"), quiet)
	must(t, err)
	sender.start("", nil)
	taker, err := listen(t.Context(), netip.MustParseAddrPort("127.77.0.2:17946"), quiet)
	must(t, err)
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label, c.Transport, c.Logger = "sender", "one", sender, log.New(io.Discard, "", 0)
	c.AdvertiseAddr, c.AdvertisePort = "127.77.0.1", 17946
	list, err := memberlist.Create(c)
	must(t, err)
	bodies := make(chan []byte, 1)
	taker.start("one", func(b []byte) { bodies <- b })
	to := &memberlist.Node{Name: "taker", Addr: net.IPv4(127, 77, 0, 2), Port: 17946, PMax: memberlist.ProtocolVersionMax}
	must(t, list.SendBestEffort(to, []byte("hello")))
	if b := <-bodies; string(b) != "hello" {
		t.Errorf("%q", b)
	}
	other, err := listen(t.Context(), netip.MustParseAddrPort("127.77.0.3:17946"), quiet)
	must(t, err)
	other.start("two", func(b []byte) { t.Errorf("of another cluster: %q", b) })
	to.Addr = net.IPv4(127, 77, 0, 3)
	must(t, list.SendBestEffort(to, []byte("hello")))
	packet := (<-other.PacketCh()).Buf
	taker.sendUser([]userPacket{{netip.MustParseAddrPort("127.77.0.3:17946"), []byte("hello")}})
	if ours := (<-other.PacketCh()).Buf; !slices.Equal(ours, packet) {
		t.Errorf("memberlist sends %q, this %q", packet, ours)
	}
	must(t, errors.Join(list.Shutdown(), taker.Shutdown(), other.Shutdown()))
	label := []byte{labelMsg, 3, 'o', 'n', 'e'}
	if b, ok := userMessage(packet, label); !ok || string(b) != "hello" {
		t.Errorf("%q is a user message: %q, %t", packet, b, ok)
	}
	for i := range packet {
		if b, ok := userMessage(packet[:i], label); ok {
			t.Errorf("cut at %d: %q", i, b)
		}
		bad := slices.Clone(packet)
		bad[i] ^= 1
		if b, ok := userMessage(bad, label); ok {
			t.Errorf("changed at %d: %q", i, b)
		}
	}
}

// TestSendUser: of messages that are sent at once each gets where it is to, whatever becomes of another.
func TestSendUser(t *testing.T) {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	var ss [3]*sockets
	got := make(chan string, 8)
	for i := range ss {
		s, err := listen(t.Context(), netip.MustParseAddrPort(fmt.Sprintf("127.77.0.%d:17946", i+1)), quiet)
		must(t, err)
		s.start("one", func(b []byte) { got <- fmt.Sprint(i, " ", string(b)) })
		ss[i] = s
	}
	at := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, 0, byte(i + 1)}), 17946)
	}
	same, long := []byte("same"), bytes.Repeat([]byte("x"), packetMax)
	for _, ps := range [][]userPacket{
		{{at(1), same}, {netip.AddrPortFrom(at(1).Addr(), 0), same}, {at(2), same}, {at(2), long}, {at(1), []byte("last")}},
		{{at(1), same}},
		{{netip.MustParseAddrPort("[::1]:1"), same}},
	} {
		ss[0].sendUser(ps)
	}
	want := []string{"1 last", "1 same", "1 same", "2 " + string(long), "2 same"}
	var have []string
	for range want {
		have = append(have, <-got)
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("got %.20q, want %.20q", have, want)
	}
	if n := ss[0].count.packetsOut.Load(); n != 5 {
		t.Errorf("%d packets counted", n)
	}
	for _, s := range ss {
		must(t, s.Shutdown())
	}
	if len(got) > 0 {
		t.Errorf("one more: %.20q", <-got)
	}
}

// TestLinkChanges: a node is found by mDNS also after its interface was removed and made again.
func TestLinkChanges(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	ip := func(lines ...string) {
		for _, args := range lines {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v: %s", args, err, out)
			}
		}
	}
	up := []string{"link add d0 type veth peer d1", "addr add 198.51.100.1/24 dev d0", "link set d1 up",
		"link set d0 multicast on up", "route add 224.0.0.0/4 dev d0"}
	ip(up...)
	iface, err := net.InterfaceByName("d0")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	discoveryOf := func(id state.NodeID, found chan candidate) *discovery {
		return &discovery{
			self:    candidate{id, netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(id))},
			cluster: clusterHash("x"), iface: *iface, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
			alone: func() bool { return true }, found: found, moved: make(chan struct{}, 1),
		}
	}
	first, tried := discoveryOf(7, nil), make(chan struct{})
	ended := make(chan struct{})
	go func() { first.announce(ctx, tried); close(ended) }()
	<-tried
	found := make(chan candidate, 16)
	second := discoveryOf(8, found)
	heard := func() bool {
		must(t, second.browse(ctx, time.Second))
		select {
		case c := <-found:
			return c == first.self
		default:
			return false
		}
	}
	for !heard() {
		must(t, ctx.Err())
	}
	ip(append([]string{"link del d0"}, up...)...)
	select {
	case <-first.moved: // it registers anew and has the rounds begin again
	case <-time.After(4 * linkLook):
		t.Fatal("the change of the link was not noticed")
	}
	for !heard() {
		must(t, ctx.Err())
	}
	cancel()
	<-ended
}

// TestSilence: after 30 s without anybody a node without seeds says once that multicast may be
// blocked; a node that was heard, has seeds or has company does not.
func TestSilence(t *testing.T) {
	for _, tt := range []struct {
		seeded, heard, alone bool
		want                 int
	}{{false, false, true, 1}, {true, false, true, 0}, {false, true, true, 0}, {false, false, false, 0}} {
		synctest.Test(t, func(t *testing.T) {
			var b strings.Builder
			d := discovery{log: slog.New(slog.NewTextHandler(&b, nil)), seeded: tt.seeded, alone: func() bool { return tt.alone }}
			d.heard.Store(tt.heard)
			began := time.Now()
			d.warn(t.Context())
			if n := strings.Count(b.String(), "--join"); n != tt.want {
				t.Errorf("%+v: %d warnings: %s", tt, n, b.String())
			}
			if tt.want == 1 && time.Since(began) != silenceMax {
				t.Errorf("after %s", time.Since(began))
			}
		})
	}
}

// BenchmarkTransport compares our sockets with memberlist's own, in bytes allocated a packet.
func BenchmarkTransport(b *testing.B) {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	ours, err := listen(b.Context(), netip.MustParseAddrPort("127.77.0.1:17946"), quiet)
	if err != nil {
		b.Fatal(err)
	}
	ours.start("", nil)
	theirs, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{"127.77.0.2"}, BindPort: 17946,
		Logger: log.New(io.Discard, "", 0)})
	if err != nil {
		b.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		t    memberlist.Transport
		addr string
	}{{"ours", ours, "127.77.0.1:17946"}, {"memberlist", theirs, "127.77.0.2:17946"}} {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			packet := make([]byte, 200)
			for b.Loop() {
				if _, err := tt.t.WriteTo(packet, tt.addr); err != nil {
					b.Fatal(err)
				}
				<-tt.t.PacketCh()
			}
		})
	}
	if err := errors.Join(ours.Shutdown(), theirs.Shutdown()); err != nil {
		b.Fatal(err)
	}
}
