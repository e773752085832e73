package fastpath

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshnet/fastpath/bpf"
	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"
)

// wanted returns what the maps should hold, compiled from the whole plan.
func wanted(t testing.TB, h *plan.Host) contents {
	t.Helper()
	have, err := readDevices()
	if err != nil {
		t.Fatal(err)
	}
	c := empty()
	ports := Doors(h.Gateway)
	for _, n := range h.Networks {
		table := Compile(n)
		ports = append(ports, table.Ports...)
		for who, way := range table.Ways {
			c.members[who.encode()], _ = way.encode(have.index)
		}
		if table.Exit != (Exit{}) {
			c.exits[n.VNI] = table.Exit.encode()
		}
		for who, e := range table.Entries {
			c.entries[who.encode()] = e.encode(have.index(e.Device))
		}
	}
	if p, peers, ok := Outside(h); ok && have.index(p.Device) != 0 {
		c.ports[have.index(p.Device)] = p.encode(0)
		for _, peer := range peers {
			c.peers[bigEndian(peer)] = bpf.FastPeer{Ifindex: have.index(p.Device)}
		}
	}
	for _, p := range ports {
		c.ports[have.index(p.Device)] = p.encode(have.index(p.Other))
	}
	return c
}

// TestChanges: whatever members come, go, move or change their MAC, the maps hold what the whole plan
// compiled anew says, although only what changed was written.
func TestChanges(t *testing.T) {
	apart(t)
	r := rand.New(rand.NewPCG(1, 1))
	m := plantest.NewMesh(t, 3)
	nets := []state.NetworkID{m.Create("web", "10.2.0.0/16"), m.Create("db", "10.2.0.0/16")}
	f := plantest.Facts(state.KernelVXLAN)
	f.Choice.FastPath = true
	inode := uint64(1)
	p := New(nil)
	var last *plan.Host
	for step := range 150 {
		node, net := 1+r.IntN(3), nets[r.IntN(2)]
		addr := netip.AddrFrom4([4]byte{10, 2, 0, byte(2 + r.IntN(6))})
		id := state.EndpointID(net)>>16<<8 | state.EndpointID(addr.As4()[3])
		old, there := m.View().Endpoint(id)
		switch {
		case there && r.IntN(2) == 0:
			owner := int(old.Node / plantest.Node(1))
			m.Apply(owner, state.RemoveEndpoint{ID: id})
			delete(f.Sandboxes, id)
		case there && old.Node == plantest.Node(1) && r.IntN(2) == 0:
			inode++ // its container starts anew, with another veth
			f.Sandboxes[id] = plan.Sandbox{Path: fmt.Sprint("/run/netns/", inode), Inode: inode}
		case !there:
			mac := state.MACOf(addr)
			if r.IntN(5) == 0 {
				mac[5] ^= 0x80
			}
			m.Apply(node, state.PutEndpoint{Endpoint: state.Endpoint{ID: id, Network: net, Container: fmt.Sprint("c", id), Addr: addr, MAC: mac, Alloc: 1, At: 1}})
			if inode++; node == 1 {
				f.Sandboxes[id] = plan.Sandbox{Path: fmt.Sprint("/run/netns/", inode), Inode: inode, Host: r.IntN(6) == 0}
			}
		}
		if r.IntN(20) == 0 {
			f.Choice.FastPath = !f.Choice.FastPath
		}
		if r.IntN(20) == 0 {
			p = New(nil) // another daemon
		}
		h := plan.For(last, m.View(), f)
		host(t, h)
		apply(t, p, h)
		last = h
		if !h.FastPath {
			bare(t)
			continue
		}
		now, err := p.program.read()
		if err != nil {
			t.Fatal(err)
		}
		if want := wanted(t, h); !now.equal(want) || !now.equal(p.has) {
			t.Fatalf("step %d: the maps hold %v, want %v", step, now, want)
		}
		if same, err := p.intact(); !same || err != nil {
			t.Fatalf("step %d: not as left: %v", step, err)
		}
	}
}

// TestFull: what finds no room goes through the switch, which is said once, and gets onto the fast path
// once there is room.
func TestFull(t *testing.T) {
	apart(t)
	m, web, facts := two(t, true)
	for i := range 20 {
		m.Attach(2, web, fmt.Sprintf("10.2.1.%d", i))
	}
	var log bytes.Buffer
	p := New(slog.New(slog.NewTextHandler(&log, nil)))
	p.room = 8
	h := plan.For(nil, m.View(), facts)
	host(t, h)
	apply(t, p, h)
	apply(t, p, h)
	held := func() int {
		c, err := p.program.read()
		if err != nil {
			t.Fatal(err)
		}
		return len(c.members)
	}
	if n := held(); n >= 20 || n < 8 || strings.Count(log.String(), "full") != 1 {
		t.Errorf("%d members where there is room for 8; log %s", n, log.String())
	}
	for i := range 20 {
		m.Apply(2, state.RemoveEndpoint{ID: plantest.Endpoint(2, fmt.Sprintf("10.2.1.%d", i))})
	}
	apply(t, p, plan.For(h, m.View(), facts))
	if n, want := held(), 4; n != want { // two here, one elsewhere, the gateway
		t.Errorf("%d members, want %d", n, want)
	}
}

// TestProbe: what the tests do can be done.
func TestProbe(t *testing.T) {
	root(t)
	if f := Probe(); !f.Can || f.Lack != "" {
		t.Errorf("%+v", f)
	}
}

// TestWithoutPeer: where there is no bpf_redirect_peer the program loads without it, and still sends
// frames on.
func TestWithoutPeer(t *testing.T) {
	apart(t)
	p, err := load(false, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := comparison{old: true, machine: machineOf(t, p), indexes: someDevices(t, 100), seed: 1, reasons: map[string]int{}}
	if err := c.compare(t, 2000); err != nil {
		t.Fatal(err)
	}
	if c.reasons["fast inside"] == 0 {
		t.Error("nothing goes into a container")
	}
}

// TestUpgrade: a program of another daemon's version makes room for ours, and its maps for ours.
func TestUpgrade(t *testing.T) {
	apart(t)
	m, _, facts := two(t, true)
	h := plan.For(nil, m.View(), facts)
	host(t, h)
	old := New(nil)
	old.room = 64 // other maps: not compatible
	apply(t, old, h)
	was, err := old.program.id()
	if err != nil {
		t.Fatal(err)
	}
	p := New(nil)
	apply(t, p, h)
	quiet(t, p, h)
	if is, err := p.program.id(); err != nil || is == was {
		t.Errorf("program %d, was %d: %v", is, was, err)
	}
	if same, err := p.intact(); !same || err != nil {
		t.Errorf("not as it should be: %v", err)
	}
}

// TestTraffic: what came in is counted for the device and who it belongs to.
func TestTraffic(t *testing.T) {
	p, h, _, web, _ := begun(t)
	a := h.Networks[web].Ports[0]
	send(t, a.Link, ping("10.2.0.5", "10.2.0.7"))
	send(t, a.Link, ping("10.2.0.9", "10.2.0.7"))
	count(t, p, a.Link, bpf.FastReasonFAST)
	count(t, p, a.Link, bpf.FastReasonREFUSED)
	for _, c := range p.Traffic() {
		switch c.Device {
		case a.Link:
			if c.Endpoint != a.Endpoint || c.Network != web || c.Fast != 1 || c.Refused != 1 || c.Slow != 0 || c.Bytes != 60 {
				t.Errorf("%+v", c)
			}
		default:
			if c.Fast != 0 || strings.Contains(c.Device, "s") && c.Returned != 0 {
				t.Errorf("%+v", c)
			}
		}
	}
	if n := len(p.Traffic()); n != 4 { // two containers, the VXLAN device, the gateway
		t.Errorf("%d devices", n)
	}
}

// TestRunRemoves: while Run runs, twins are removed by it, and one that is wanted again meanwhile stays.
func TestRunRemoves(t *testing.T) {
	p, h, m, web, facts := begun(t)
	p.running = true // and nobody does it
	off := facts
	off.Choice.FastPath = false
	apply(t, p, plan.For(h, m.View(), off))
	if len(p.doomed) == 0 {
		t.Fatal("nothing waits for its removal")
	}
	apply(t, p, h)
	reap := func() (held time.Duration) {
		for more := true; more; {
			var n time.Duration
			more, n = p.reap()
			held += n
		}
		return held
	}
	reap()
	twin := h.Networks[web].Ports[0].Twin.Slow
	if _, err := netlink.LinkByName(twin); err != nil {
		t.Errorf("%s: %v", twin, err)
	}
	if same, err := p.intact(); !same || err != nil {
		t.Errorf("not as it should be: %v", err)
	}
	m.Apply(1, state.RemoveEndpoint{ID: h.Networks[web].Ports[0].Endpoint})
	next := plan.For(h, m.View(), facts)
	apply(t, p, next)
	if len(p.doomed) != 1 || reap() != 0 {
		t.Error("containers that come and go wait for a switch by which nothing goes")
	}
	apply(t, p, plan.For(next, m.View(), off))
	if reap() == 0 {
		t.Error("the switch, by which all goes now, is not left the kernel's lock")
	}
	bare(t)
}
