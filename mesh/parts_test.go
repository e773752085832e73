package mesh

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"meshnet/crdt"
	"meshnet/ipam"
	"meshnet/netns/nstest"
	"meshnet/state"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

var fullWish = state.Attach{
	ID: 0xfedcba9876543210, Network: 0x8000000000000001, Container: "c1",
	Source: state.Source{Kind: state.SourceDocker, Docker: strings.Repeat("ab", 32), Path: "/p", PID: 7, Started: 1 << 60, Inode: 1 << 61},
	Addr:   netip.MustParseAddr("10.2.0.5"), MAC: state.MAC{2, 0x42, 10, 2, 0, 5}, IfName: "eth1",
	Names: []string{"a", "b"}, NoDefaultRoute: true,
}

// TestLogBytes: what one version wrote the next one reads.
func TestLogBytes(t *testing.T) {
	rs := []record{
		bootRecord(boot{Boot: "9f8a", Node: "00000000000000ff", Epoch: 3, Actor: 1<<63 + 1}),
		{recState, []byte{1, 2, 3}},
		{recAttach, encodeWish(fullWish)},
		{recDetach, []byte(fullWish.ID.String())},
		{recIPAM, nil},
		heardRecord(1700000000),
		{recAlone, nil},
	}
	path := filepath.Join(t.TempDir(), "log")
	l := &logFile{path: path, open: openDisk}
	must(t, errors.Join(l.replace(rs[:2]), l.reserve(), l.add(rs[2:]), l.sync(), l.close()))
	b, err := os.ReadFile(path)
	must(t, err)
	golden := filepath.Join("testdata", "log-1.hex")
	if *rewrite {
		must(t, os.WriteFile(golden, []byte(hex.Dump(b)), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if hex.Dump(b) != string(want) {
		t.Errorf("the log's bytes changed:\n%s", hex.Dump(b))
	}
	p, err := readLog(path)
	must(t, err)
	got := p.records
	if !p.whole || p.damaged || p.size != int64(len(b)) || len(got) != len(rs) {
		t.Fatalf("%d records, whole %t", len(got), p.whole)
	}
	if last, ok := lastBoot(got); !ok || last.Epoch != 3 || last.Actor != 1<<63+1 {
		t.Errorf("boot %+v", last)
	}
	if w, err := decodeWish(got[2].body); err != nil || !reflect.DeepEqual(w, fullWish) {
		t.Errorf("%+v, %v", w, err)
	}
	given := fullWish
	given.Given = "eth2"
	if w, err := decodeWish(encodeWish(given)); err != nil || !reflect.DeepEqual(w, given) {
		t.Errorf("%+v, %v", w, err)
	}
	// Cut or spoilt anywhere, what is before that is read.
	ends := map[int]int{len(logMagic): 0}
	for i, r := range rs {
		end := len(logMagic)
		for _, q := range rs[:i] {
			end += recordHead + len(q.body)
		}
		ends[end+recordHead+len(r.body)] = i + 1
	}
	for i := range b {
		p, err := parseLog(b[:i])
		n, border := ends[i]
		if err != nil || p.damaged || p.whole != border || border && len(p.records) != n {
			t.Fatalf("cut at %d: %d records, whole %t, damaged %t, %v", i, len(p.records), p.whole, p.damaged, err)
		}
		spoilt := slices.Clone(b)
		spoilt[i] ^= 0x10
		p, err = parseLog(spoilt)
		if errors.Is(err, errNewer) && i == len(logName) {
			continue // the version
		}
		last := i >= len(b)-recordHead // a record without a body cannot be told from a torn one
		if err != nil || p.whole || len(p.records) < len(rs)-2 || len(p.records) > len(rs) || !p.damaged && !last && i < len(b)-2*recordHead-len(rs[3].body) {
			t.Fatalf("spoilt at %d: %d records, whole %t, damaged %t, %v", i, len(p.records), p.whole, p.damaged, err)
		}
	}
	for _, text := range []string{"meshnet log 2\nx", "meshnet log 10\n"} {
		if _, err := parseLog([]byte(text)); !errors.Is(err, errNewer) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(logMagic))
	f.Add(appendRecord([]byte(logMagic), record{recState, []byte("x")}))
	f.Add(append([]byte(logMagic), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseLog(b)
		if err != nil || p.whole && p.damaged || p.size > int64(len(b)) {
			return
		}
		again := []byte(logMagic)
		for _, r := range p.records {
			again = appendRecord(again, r)
		}
		if p.whole && string(again) != string(b) || !p.damaged && !strings.HasPrefix(string(b), string(again)) && p.size > 0 {
			t.Errorf("%d records written again differ", len(p.records))
		}
	})
}

// FuzzReplay: a log that verifies may hold anything, of a later version or of a fault; reading it ends in
// an error or in a document, a set of wishes and records of ipam.
func FuzzReplay(f *testing.F) {
	for _, r := range []record{
		bootRecord(boot{Boot: "9f8a", Node: "00000000000000ff", Epoch: 3, Actor: 1}), {recAttach, encodeWish(fullWish)}, {recDetach, []byte(fullWish.ID.String())},
		{recIPAM, []byte{1, 2, 3}}, heardRecord(1700000000), {recAlone, nil}, {200, []byte("later")},
		stateRecords(state.Out{Ops: []crdt.Op{{Node: 9, Epoch: 1, Seq: 1, Key: []byte("node"), Value: []byte{1}}}})[0],
	} {
		f.Add(byte(r.kind), r.body, byte(0), []byte(nil))
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte, kind2 byte, body2 []byte) {
		s := &stored{doc: state.NewDoc(9, 1, 1), wishes: map[state.EndpointID]state.Attach{}, bodies: map[state.EndpointID][]byte{}}
		rs := []record{{recordKind(kind), body}, {recordKind(kind2), body2}}
		lastBoot(rs)
		for _, r := range rs {
			if err := s.replay(r); err != nil {
				return
			}
		}
		again := &stored{doc: state.NewDoc(9, 1, 1), wishes: map[state.EndpointID]state.Attach{}, bodies: map[state.EndpointID][]byte{}}
		for _, r := range s.records() { // what it would write is read as it was
			if err := again.replay(r); err != nil {
				t.Fatal(err)
			}
		}
		if len(again.wishes) != len(s.wishes) || len(again.ipam) != len(s.ipam) || again.heard != s.heard {
			t.Fatalf("%d wishes, %d records, heard %d; read again %d, %d, %d", len(s.wishes), len(s.ipam), s.heard, len(again.wishes), len(again.ipam), again.heard)
		}
		ipam.New(ipam.Config{Self: 9, Epoch: 1, Records: s.ipam})
	})
}

func TestReportIsToldFirst(t *testing.T) {
	n, err := New(Config{StateDir: t.TempDir(), Addr: addr(0), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	n.start = time.Now()
	def := state.Definition{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16")}
	n.apply(state.CreateNetwork{Def: def, At: 1})
	n.refresh()
	web, _ := n.view.ByName("web")
	n.apply(state.PutEndpoint{Endpoint: state.Endpoint{ID: 7, Network: web.ID, Container: "c", Addr: netip.MustParseAddr("10.2.0.2"), IfName: "eth0"}})
	n.refresh()
	other := state.NewDoc(9, 1, 9)
	news, err := other.Apply(state.PutNode{Node: state.Node{Name: "other", Addr: addr(1)}})
	if err != nil {
		t.Fatal(err)
	}
	n.learnt(n.doc.Merge(state.In(news)))
	reply := make(chan result, 1)
	n.do(state.Report{ID: 7, Down: true}, reply)
	if !n.stale || !n.mine || !n.unseen {
		t.Errorf("stale %v, mine %v, unseen %v: the report is to be told before others' news is followed up", n.stale, n.mine, n.unseen)
	}
	n.deliver()
	if r := <-reply; r.err != nil {
		t.Fatal(r.err)
	}
	if e, ok := n.view.Endpoint(7); !ok || !e.Down {
		t.Errorf("endpoint %+v, %v", e, ok)
	}
	if _, ok := n.view.Node(9); !ok {
		t.Error("the other's record is not shown")
	}
}

// TestSteps: what is asked for waits for the node to run, and is refused once its loop has ended: the log
// is closed then.
func TestSteps(t *testing.T) {
	n, err := New(Config{StateDir: t.TempDir(), Addr: addr(0), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	taken := 0
	step := func() { taken++ }
	if err := n.call(ended, step); !errors.Is(err, context.Canceled) {
		t.Errorf("before it runs: %v", err)
	}
	n.start = time.Now()
	n.loop(ended)
	if err := n.call(t.Context(), step); !errors.Is(err, errStopped) {
		t.Errorf("after it ran: %v", err)
	}
	if taken != 0 {
		t.Errorf("%d steps taken", taken)
	}
}

// TestStepPanics: it ends the process, even if who took it recovers.
func TestStepPanics(t *testing.T) {
	if os.Getenv("STEP_PANICS") == "" {
		c := exec.Command(os.Args[0], "-test.run", "^TestStepPanics$")
		c.Env = append(os.Environ(), "STEP_PANICS=1")
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "half a step") || !strings.Contains(string(out), "TestStepPanics") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	n := &Node{}
	func() {
		defer func() { recover() }()
		n.take(func() { panic("half a step") })
	}()
}

func FuzzReceive(f *testing.F) {
	f.Add(frame(chanAck, 2, encodeAck(1, 2)))
	f.Add(frame(chanTell, 2, encodeTell(1, [16]byte{})))
	f.Add(frame(chanAsk, 2, make([]byte, 8)))
	f.Add(frame(chanBye, 2, nil))
	f.Add(frame(chanIPAM, 2, []byte{1, 1}))
	f.Add(frame(chanGossip, 2, []byte{1, 2, 3}))
	f.Add(meta{2, 3, "name"}.encode())
	f.Add([]byte{})
	dir := f.TempDir()
	n, err := New(Config{StateDir: dir, Addr: addr(0), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		f.Fatal(err)
	}
	n.start = time.Now()
	f.Fuzz(func(t *testing.T, b []byte) {
		n.receive(b)
		n.refresh()
		n.records, n.heard, n.outbox, n.after = nil, nil, nil, nil
		decodeMeta(b)
		decodeWish(b)
	})
}

func TestParseText(t *testing.T) {
	d := discovery{self: candidate{7, netip.MustParseAddrPort("192.0.2.1:17946")}, cluster: clusterHash("")}
	good := d.text()
	c, err := parseText(d.self.id.String(), good, d.cluster)
	if err != nil || c != d.self {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err := parseText("0000000000000008", good, d.cluster); err == nil {
		t.Error("another instance's record accepted")
	}
	for i, bad := range map[int][]string{
		0: {"id=", "id=7", "id=0000000000000000", "id=zzzzzzzzzzzzzzzz", "x"},
		1: {"addr=", "addr=0.0.0.0", "addr=127.0.0.1", "addr=224.0.0.1", "addr=host", "addr=fe80::1%eth0"},
		2: {"port=0", "port=65536", "port=-1", "port="},
		3: {"cluster=" + clusterHash("other"), "cluster="},
		4: {"v=2", "v="},
	} {
		for _, b := range bad {
			text := slices.Clone(good)
			text[i] = b
			if _, err := parseText(d.self.id.String(), text, d.cluster); err == nil {
				t.Errorf("%q accepted", b)
			}
		}
	}
	for _, s := range good {
		if len(s) > 255 {
			t.Errorf("%q is too long for a TXT string", s)
		}
	}
}

func FuzzParseText(f *testing.F) {
	f.Add("0000000000000007", "id=0000000000000007\naddr=192.0.2.1\nport=1\ncluster=c\nv=1")
	f.Add("", "=\n\nid")
	f.Fuzz(func(t *testing.T, instance, text string) {
		c, err := parseText(instance, strings.Split(text, "\n"), "c")
		if err == nil && (c.id == 0 || c.addr.Port() == 0 || !c.addr.Addr().IsValid()) {
			t.Errorf("%+v", c)
		}
	})
}

func TestMeta(t *testing.T) {
	m := meta{1 << 63, 9, strings.Repeat("n", nameMax)}
	b := m.encode()
	if len(b) > memberlist.MetaMaxSize {
		t.Errorf("%d bytes of metadata", len(b))
	}
	if got, err := decodeMeta(append(b, 1, 2, 3)); err != nil || got != m {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range b {
		if _, err := decodeMeta(b[:i]); err == nil {
			t.Errorf("cut at %d accepted", i)
		}
	}
}

// TestStreams: a peer that does not read holds up its own messages only, and too many are dropped.
func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		sent := map[string]int{}
		s := newStreams(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)), func(to *memberlist.Node, b []byte) error {
			if to.Name == "hole" {
				<-ctx.Done()
				return ctx.Err()
			}
			sent[to.Name]++
			return nil
		})
		for range 3 * streamsWaiting {
			s.add(memberlist.Node{Name: "hole"}, nil)
		}
		synctest.Wait()
		for range streamsWaiting {
			s.add(memberlist.Node{Name: "well"}, nil)
		}
		synctest.Wait()
		if sent["well"] != streamsWaiting {
			t.Errorf("%d messages to the peer that reads", sent["well"])
		}
		if s.dropped.Load() == 0 {
			t.Error("nothing dropped")
		}
		cancel()
		s.wait()
	})
}

func TestWithPort(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1:17946", "192.0.2.1:5": "192.0.2.1:5", "host": "host:17946", "host:5": "host:5",
		"2001:db8::1": "[2001:db8::1]:17946", "[2001:db8::1]:5": "[2001:db8::1]:5",
	} {
		if got := withPort(in, 17946); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestRejoinWait(t *testing.T) {
	r := rejoin{started: time.Now().Add(-time.Hour), alive: func() map[state.NodeID]netip.AddrPort { return nil }}
	for failed, want := range []time.Duration{1, 2, 4, 8, 10, 10, 10, 10, 10, 10, 10, 10} {
		want *= time.Second
		for range 100 {
			if d := r.wait(failed); d < want*3/4 || d > want*5/4 {
				t.Errorf("after %d failures %s, want about %s", failed, d, want)
			}
		}
	}
}

// TestDiscovery: three nodes on one link that know nothing of each other meet by mDNS, on real
// sockets, and stop without leaving anything behind.
func TestDiscovery(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	for _, args := range []string{"link add d0 type veth peer d1", "addr add 198.51.100.1/24 dev d0", "addr add 198.51.100.2/24 dev d0",
		"addr add 198.51.100.3/24 dev d0", "link set d1 up", "link set d0 multicast on up", "route add 224.0.0.0/4 dev d0"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	iface, err := net.InterfaceByName("d0")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	var nodes []*Node
	dir := t.TempDir()
	began := time.Now()
	for i := range 3 {
		n, err := New(Config{
			StateDir: filepath.Join(dir, fmt.Sprint(i)), Addr: netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}),
			MDNS: true, Interface: iface, DefaultSubnet: netip.MustParsePrefix("10.1.0.0/16"), MachineID: "/nonexistent",
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		must(t, err)
		nodes = append(nodes, n)
		go func() { ended <- n.Run(ctx) }()
	}
	for poll := time.NewTicker(2 * time.Millisecond); ; <-poll.C {
		met := 0
		for _, n := range nodes {
			met += len(n.members.alive())
		}
		if met == 6 && nodes[0].View().Digest() == nodes[1].View().Digest() && nodes[1].View().Digest() == nodes[2].View().Digest() {
			break
		}
		if time.Since(began) > 8*time.Second {
			t.Fatalf("%d of 6 members met", met)
		}
	}
	if c, err := nodes[0].Counters(ctx); err != nil || c.PacketsIn == 0 || c.PacketsOut == 0 || c.BytesIn == 0 || c.StreamsIn+c.StreamsOut == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	t.Logf("three nodes met and agree after %s", time.Since(began))
	for _, n := range nodes {
		select {
		case <-n.Ready():
		case <-time.After(5 * time.Second):
			t.Fatal("no default network")
		}
	}
	t.Logf("default after %s", time.Since(began))
	cancel()
	began = time.Now()
	for range nodes {
		must(t, <-ended)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	} else {
		t.Logf("stopped in %s", took)
	}
}

// TestBackBeforeMissed: a member that said that it stops, and was started again before memberlist missed it,
// is alive again with the next ping that it answers. One that still answers while it stops is not.
func TestBackBeforeMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMembers(1, "h1", 1, slog.New(slog.DiscardHandler))
		digest := [16]byte{}
		m.digest.Store(&digest)
		at := netip.MustParseAddrPort("192.0.2.2:17946")
		n := &memberlist.Node{Name: memberName(2, at), Addr: at.Addr().AsSlice(), Port: at.Port(), Meta: meta{2, 1, "h2"}.encode()}
		m.NotifyJoin(n)
		m.left(2, n.Name)
		m.NotifyPingComplete(n, time.Millisecond, nil)
		if len(m.alive()) != 0 {
			t.Error("alive while it stops")
		}
		time.Sleep(2*leaveMax + time.Second)
		m.NotifyPingComplete(n, time.Millisecond, nil)
		if len(m.alive()) != 1 {
			t.Error("not alive although it answers")
		}
	})
}
