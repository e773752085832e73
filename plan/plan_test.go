package plan_test

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"meshnet/plan"
	"meshnet/plan/plantest"
	"meshnet/state"

	"pgregory.net/rapid"
)

var rewrite = flag.Bool("rewrite", false, "write the goldens again")

func TestGolden(t *testing.T) {
	for _, c := range plantest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			golden(t, c.Name, c.Host().String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run with -rewrite and read the difference", err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got\n%s\nwant\n%s", path, got, want)
	}
}

func network(t *testing.T, h *plan.Host, name string) *plan.Network {
	t.Helper()
	for _, n := range h.Networks {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("no network %s in\n%s", name, h)
	return nil
}

func next(last *plan.Host, v *state.View, f plan.Facts) *plan.Host {
	h := plan.For(last, v, f)
	h.Check()
	return h
}

// A change in one network leaves the plans of the others as they are, by pointer; what concerns all
// makes all anew.
func TestUnchangedNetworksAreShared(t *testing.T) {
	for _, tr := range []state.Transport{state.OVSKernel, state.KernelVXLAN} {
		m := plantest.NewMesh(t, 2)
		web, db := m.Create("web", "10.2.0.0/16"), m.Create("db", "10.3.0.0/16")
		a, b := m.Attach(1, web, "10.2.0.5"), m.Attach(1, db, "10.3.0.5")
		f := plantest.Facts(tr, a.ID, b.ID)
		one := next(nil, m.View(), f)

		m.Attach(2, web, "10.2.0.6")
		two := next(one, m.View(), f)
		if network(t, one, "web") == network(t, two, "web") {
			t.Errorf("%s: new member, old plan", tr)
		}
		if network(t, one, "db") != network(t, two, "db") {
			t.Errorf("%s: a member elsewhere made another network's plan anew", tr)
		}

		f.Sandboxes = maps.Clone(f.Sandboxes)
		f.Sandboxes[a.ID] = plan.Sandbox{Path: "/proc/7/ns/net", Inode: 7}
		three := next(two, m.View(), f)
		if network(t, two, "db") != network(t, three, "db") || network(t, two, "web") == network(t, three, "web") {
			t.Errorf("%s: a new sandbox must make its own network's plan anew and no other", tr)
		}
		if l, k := two.Links[0].Name, three.Links[0].Name; l == k && two.Links[1].Name == three.Links[1].Name {
			t.Errorf("%s: link names stay over a new sandbox", tr)
		}

		rec := plantest.Record(2)
		rec.Addr = plantest.Addr(22)
		m.Apply(2, state.PutNode{Node: rec})
		four := next(three, m.View(), f)
		if via := network(t, four, "web").Remotes[0].Via; via != rec.Addr {
			t.Errorf("%s: a peer moved, the way is still %s", tr, via)
		}
		f.Underlay.MTU = 1400
		five := next(four, m.View(), f)
		if got := network(t, five, "db").MTU; got != 1350 {
			t.Errorf("%s: MTU %d after the underlay's fell to 1400", tr, got)
		}
		if again := next(five, m.View(), f); again.String() != five.String() || network(t, again, "web") != network(t, five, "web") {
			t.Errorf("%s: planned again, not the same", tr)
		}
	}
}

// found is what a switch with the plan on it reports.
func found(h *plan.Host) plan.Found {
	f := plan.Found{
		Ports:   map[state.EndpointID]uint32{},
		Tunnels: map[state.NodeID]uint32{},
		Devices: map[state.NetworkID]uint32{},
	}
	for _, t := range h.Tunnels {
		f.Tunnels[t.Peer] = t.OFPort
	}
	for id, n := range h.Networks {
		for _, p := range n.Ports {
			f.Ports[p.Endpoint] = p.OFPort
		}
		if n.Device != nil {
			f.Devices[id] = n.Device.OFPort
		}
	}
	return f
}

// kept returns an error when an object that both have changed its port number.
func kept(a, b plan.Found) error {
	return errorsOf(moved(a.Ports, b.Ports), moved(a.Tunnels, b.Tunnels), moved(a.Devices, b.Devices))
}

func moved[K comparable](a, b map[K]uint32) string {
	for k, n := range a {
		if m, ok := b[k]; ok && m != n {
			return fmt.Sprintf("%v had %d and has %d", k, n, m)
		}
	}
	return ""
}

func errorsOf(ss ...string) error {
	for _, s := range ss {
		if s != "" {
			return fmt.Errorf("%s", s)
		}
	}
	return nil
}

// Whatever happens: the plan does not contradict itself, numbers stay, and a plan made from the one
// before is the plan made from nothing on a switch that has the one before.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := plantest.NewMesh(t, 3)
		nets := []state.NetworkID{m.Create("web", "10.2.0.0/24"), m.Create("db", "10.2.0.0/24")}
		f := plantest.Facts(rapid.SampledFrom([]state.Transport{
			state.OVSKernel, state.OVSUserspace, state.KernelVXLAN,
		}).Draw(rt, "transport"))
		live := map[state.EndpointID]int{}
		var last *plan.Host
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			step(rt, m, nets, live, f)
			v := m.View()
			h := next(last, v, f)
			if last != nil {
				if err := kept(found(last), found(h)); err != nil {
					rt.Fatalf("%v\nbefore\n%safter\n%s", err, last, h)
				}
				g := f
				g.Found = found(last)
				if fresh, shared := next(nil, v, g), next(last, v, g); fresh.String() != shared.String() {
					rt.Fatalf("from nothing\n%sfrom the plan before\n%s", fresh, shared)
				}
			}
			last = h
		}
	})
}

// step makes one thing happen on a random node.
func step(rt *rapid.T, m *plantest.Mesh, nets []state.NetworkID, live map[state.EndpointID]int, f plan.Facts) {
	node := rapid.IntRange(1, 3).Draw(rt, "node")
	switch rapid.IntRange(0, 6).Draw(rt, "what") {
	case 0, 1, 2:
		i := rapid.IntRange(0, 1).Draw(rt, "net")
		last := byte(rapid.IntRange(2, 8).Draw(rt, "addr"))
		e := state.Endpoint{
			ID: state.EndpointID(node<<16 | i<<8 | int(last)), Network: nets[i], Container: "c",
			Addr: netip.AddrFrom4([4]byte{10, 2, 0, last}), MAC: state.MAC{2, 0, 0, 0, 0, byte(rapid.IntRange(0, 4).Draw(rt, "mac"))},
			At: int64(rapid.IntRange(0, 3).Draw(rt, "at")), Alloc: 1,
		}
		if m.Try(node, state.PutEndpoint{Endpoint: e}) == nil {
			live[e.ID] = node
		}
	case 3:
		if len(live) > 0 {
			id := rapid.SampledFrom(slices.Sorted(maps.Keys(live))).Draw(rt, "gone")
			m.Apply(live[id], state.RemoveEndpoint{ID: id})
			delete(live, id)
		}
	case 4:
		rec := plantest.Record(node)
		rec.Addr = plantest.Addr(rapid.IntRange(1, 3).Draw(rt, "underlay"))
		m.Apply(node, state.PutNode{Node: rec})
	case 5:
		if len(live) > 0 {
			id := rapid.SampledFrom(slices.Sorted(maps.Keys(live))).Draw(rt, "restarted")
			f.Sandboxes[id] = plan.Sandbox{Path: "/proc/1/ns/net", Inode: rapid.Uint64().Draw(rt, "inode")}
		}
	case 6: // what two sides of a split both claim
		if rapid.Bool().Draw(rt, "cut") {
			m.Cut()
		} else {
			m.Heal()
		}
	}
}

func TestNumbersFollowTheSwitch(t *testing.T) {
	m := plantest.NewMesh(t, 3)
	web := m.Create("web", "10.2.0.0/16")
	a, b, c := m.Attach(1, web, "10.2.0.5"), m.Attach(1, web, "10.2.0.6"), m.Attach(1, web, "10.2.0.7")
	f := plantest.Facts(state.OVSKernel)
	last := next(nil, m.View(), f)
	f.Found = plan.Found{
		Ports: map[state.EndpointID]uint32{
			a.ID: 2,      // not as planned: the switch is right
			c.ID: 65280,  // no number that a port has
			999:  4,      // still there, to be removed
			998:  500000, // nothing
		},
		Tunnels: map[state.NodeID]uint32{plantest.Node(3): 7},
	}
	got := found(next(last, m.View(), f))
	want := plan.Found{
		// b had 2, which is a's; 3 is c's from before, 4 is in use.
		Ports:   map[state.EndpointID]uint32{a.ID: 2, b.ID: 1, c.ID: 3},
		Tunnels: map[state.NodeID]uint32{plantest.Node(2): 40001, plantest.Node(3): 7},
	}
	if !maps.Equal(got.Ports, want.Ports) || !maps.Equal(got.Tunnels, want.Tunnels) {
		t.Errorf("got %v %v, want %v %v", got.Ports, got.Tunnels, want.Ports, want.Tunnels)
	}
	d := m.Attach(1, web, "10.2.0.8")
	if n := found(next(last, m.View(), f)).Ports[d.ID]; n != 5 {
		t.Errorf("a new port has number %d, want 5: 1 to 3 are taken and 4 is still in the switch", n)
	}
}

// TestTunnelsOfAnotherTransport: a plan shares the tunnels of the one before where the peers are the same, but not
// with one that had none.
func TestTunnelsOfAnotherTransport(t *testing.T) {
	m := plantest.NewMesh(t, 3)
	a := m.Attach(1, m.Create("web", "10.2.0.0/16"), "10.2.0.5")
	without := next(nil, m.View(), plantest.Facts(state.KernelVXLAN, a.ID))
	h := next(without, m.View(), plantest.Facts(state.OVSKernel, a.ID))
	if len(h.Tunnels) != 2 {
		t.Errorf("tunnels %v, want two", h.Tunnels)
	}
	if again := next(h, m.View(), plantest.Facts(state.OVSKernel, a.ID)); &again.Tunnels[0] != &h.Tunnels[0] {
		t.Error("the same tunnels are planned anew")
	}
	if back := next(h, m.View(), plantest.Facts(state.KernelVXLAN, a.ID)); len(back.Tunnels) != 0 {
		t.Errorf("tunnels %v, want none", back.Tunnels)
	}
}

func TestDeviceNumberFollowsTheSwitch(t *testing.T) {
	m := plantest.NewMesh(t, 2)
	web := m.Create("web", "10.2.0.0/16")
	m.Attach(1, web, "10.2.0.5")
	m.Attach(2, web, "10.2.0.6")
	f := plantest.Facts(state.KernelVXLAN)
	last := next(nil, m.View(), f)
	f.Found.Devices = map[state.NetworkID]uint32{web: 7}
	n := network(t, next(last, m.View(), f), "web")
	if n.Device.OFPort != 7 || n.Remotes[0].OFPort != 7 {
		t.Errorf("device %d, remote %d, want 7", n.Device.OFPort, n.Remotes[0].OFPort)
	}
}

// A host that was installed anew has a second record with its old address.
func TestTwoNodesOneAddress(t *testing.T) {
	m := plantest.NewMesh(t, 3)
	web := m.Create("web", "10.2.0.0/16")
	m.Attach(1, web, "10.2.0.5")
	m.Attach(2, web, "10.2.0.6")
	m.Attach(3, web, "10.2.0.7")
	rec := plantest.Record(3)
	rec.Addr = plantest.Addr(2)
	m.Apply(3, state.PutNode{Node: rec})
	h := next(nil, m.View(), plantest.Facts(state.OVSKernel))
	n := network(t, h, "web")
	if len(h.Tunnels) != 1 || len(n.Remotes) != 2 || len(n.Flood) != 1 {
		t.Errorf("want one tunnel for two nodes:\n%s", h)
	}
	h = next(nil, m.View(), plantest.Facts(state.KernelVXLAN))
	if d := network(t, h, "web").Device; len(network(t, h, "web").Remotes) != 2 || len(d.Flood) != 1 || len(h.Firewall.Peers) != 1 {
		t.Errorf("want one address for two nodes:\n%s", h)
	}
	// Our own address: what is left of us from before is not a way.
	rec.Addr = plantest.Addr(1)
	m.Apply(3, state.PutNode{Node: rec})
	if n := network(t, next(nil, m.View(), plantest.Facts(state.OVSKernel)), "web"); len(n.Remotes) != 1 {
		t.Errorf("a way to ourselves: %v", n.Remotes)
	}
}

func TestNoWay(t *testing.T) {
	m := plantest.NewMesh(t, 2)
	web := m.Create("web", "10.2.0.0/16")
	m.Attach(1, web, "10.2.0.5")
	m.Attach(2, web, "10.2.0.6")
	for _, bad := range []netip.Addr{netip.MustParseAddr("2001:db8::1"), plantest.Addr(1)} {
		rec := plantest.Record(2)
		rec.Addr = bad
		m.Apply(2, state.PutNode{Node: rec})
		for _, tr := range []state.Transport{state.OVSKernel, state.KernelVXLAN} {
			h := next(nil, m.View(), plantest.Facts(tr))
			n := network(t, h, "web")
			if len(h.Tunnels)+len(n.Remotes)+len(n.Flood)+len(h.Firewall.Peers) > 0 {
				t.Errorf("%s: a way to %s:\n%s", tr, bad, h)
			}
		}
	}
}

func TestForgottenNode(t *testing.T) {
	m := plantest.NewMesh(t, 2)
	web := m.Create("web", "10.2.0.0/16")
	m.Attach(1, web, "10.2.0.5")
	m.Attach(2, web, "10.2.0.6")
	f := plantest.Facts(state.OVSKernel)
	last := next(nil, m.View(), f)
	if len(last.Tunnels) != 1 {
		t.Fatalf("no tunnel:\n%s", last)
	}
	m.Apply(1, state.Forget{Node: plantest.Node(2), Epoch: 1})
	if h := next(last, m.View(), f); len(h.Tunnels)+len(network(t, h, "web").Remotes) > 0 {
		t.Errorf("still there:\n%s", h)
	}
}

// Of two members with one MAC the lower address has it, wherever they are.
func TestOneMACTwice(t *testing.T) {
	m := plantest.NewMesh(t, 2)
	web := m.Create("web", "10.2.0.0/16")
	mac := state.MAC{2, 0, 0, 0, 0, 1}
	put := func(n int, addr string, mac state.MAC) {
		m.Apply(n, state.PutEndpoint{Endpoint: state.Endpoint{
			ID: plantest.Endpoint(n, addr), Network: web, Container: "c", Addr: netip.MustParseAddr(addr), MAC: mac, At: 1,
		}})
	}
	put(1, "10.2.0.5", mac)
	put(2, "10.2.0.4", mac)
	put(1, "10.2.0.6", state.MAC{2, 0, 0, 0, 0, 2})
	n := network(t, next(nil, m.View(), plantest.Facts(state.OVSKernel)), "web")
	if len(n.Ports) != 1 || n.Ports[0].Addr != netip.MustParseAddr("10.2.0.6") ||
		len(n.Remotes) != 1 || n.Remotes[0].Addr != netip.MustParseAddr("10.2.0.4") {
		t.Errorf("ports %v remotes %v", n.Ports, n.Remotes)
	}
}

func TestMTU(t *testing.T) {
	for _, tc := range []struct {
		own, peer, network uint32
		v6                 bool
		want               uint32
	}{
		{own: 1500, peer: 1500, want: 1450},
		{own: 1500, peer: 1500, v6: true, want: 1430},
		{own: 9000, peer: 1500, want: 1450},
		{own: 1400, peer: 9000, want: 1350},
		{own: 9000, peer: 9000, want: 8950}, // its own record says 1500 still
		{own: 9000, peer: 9000, network: 1450, want: 1450},
		{own: 1500, peer: 1500, network: 9000, want: 1450},
		{own: 1500, peer: 0, want: 1450},
		{own: 1500, peer: 1, want: 576},
	} {
		m := plantest.NewMesh(t, 2)
		rec := plantest.Record(2)
		rec.MTU = tc.peer
		m.Apply(2, state.PutNode{Node: rec})
		net := m.CreateDef(state.Definition{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16"), MTU: tc.network})
		e := m.Attach(1, net, "10.2.0.5")
		f := plantest.Facts(state.KernelVXLAN, e.ID)
		f.Underlay.MTU = tc.own
		if tc.v6 {
			f.Underlay.Addr = netip.MustParseAddr("2001:db8::1")
		}
		h := next(nil, m.View(), f)
		n := network(t, h, "web")
		if n.MTU != tc.want || n.Device.MTU != tc.want || h.Links[0].MTU != tc.want {
			t.Errorf("%+v: network %d device %d link %d", tc, n.MTU, n.Device.MTU, h.Links[0].MTU)
		}
	}
}

func TestCheckPanicsOnContradictions(t *testing.T) {
	for name, spoil := range map[string]func(h *plan.Host, n *plan.Network){
		"port number twice":          func(h *plan.Host, n *plan.Network) { h.Tunnels[0].OFPort = n.Ports[0].OFPort },
		"port number zero":           func(_ *plan.Host, n *plan.Network) { n.Ports[0].OFPort = 0 },
		"port number too large":      func(_ *plan.Host, n *plan.Network) { n.Ports[0].OFPort = 65280 },
		"tunnel name twice":          func(h *plan.Host, _ *plan.Network) { h.Tunnels[0].Name = h.Tunnels[1].Name },
		"name too long":              func(h *plan.Host, _ *plan.Network) { h.Tunnels[0].Name = "mt-0123456789abc" },
		"tunnel to ourselves":        func(h *plan.Host, _ *plan.Network) { h.Tunnels[0].Remote = h.Underlay },
		"tunnels and devices":        func(h *plan.Host, _ *plan.Network) { h.Transport = state.KernelVXLAN },
		"address outside its subnet": func(_ *plan.Host, n *plan.Network) { n.Ports[0].Addr = netip.MustParseAddr("10.9.0.1") },
		"address twice":              func(_ *plan.Host, n *plan.Network) { n.Remotes[0].Addr = n.Ports[0].Addr },
		"MAC twice":                  func(_ *plan.Host, n *plan.Network) { n.Remotes[0].MAC = n.Ports[0].MAC },
		"way that is not there":      func(_ *plan.Host, n *plan.Network) { n.Remotes[0].OFPort = 3 },
		"flood that is not there":    func(_ *plan.Host, n *plan.Network) { n.Flood[0] = 3 },
		"VNI zero":                   func(_ *plan.Host, n *plan.Network) { n.VNI = 0 },
		"VNI twice": func(h *plan.Host, n *plan.Network) {
			for _, o := range h.Networks {
				o.VNI = n.VNI
			}
		},
		"network under another id": func(h *plan.Host, n *plan.Network) { n.ID++ },
		"network without a member": func(h *plan.Host, n *plan.Network) { n.Ports = nil },
		"link without a port":      func(_ *plan.Host, n *plan.Network) { n.Ports[0].Link = "" },
		"port without a link":      func(h *plan.Host, _ *plan.Network) { h.Links = h.Links[1:] },
		"device without transport": func(_ *plan.Host, n *plan.Network) { n.Device = &plan.Vxlan{VNI: n.VNI, Name: "mv-1", OFPort: 50001} },
	} {
		t.Run(name, func(t *testing.T) {
			var h *plan.Host
			for _, c := range plantest.Cases(t) {
				if c.Name == "three-ovs-kernel" {
					h = c.Host()
				}
			}
			spoil(h, network(t, h, "web"))
			defer func() {
				if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "contradicts") {
					t.Errorf("Check let it pass: %v", r)
				}
			}()
			h.Check()
		})
	}
}
