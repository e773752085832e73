package ovs

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshnet/ovs/ovstest"
	"meshnet/plan"
	"meshnet/state"
)

// bound is how long a test waits for what the code does by itself.
const bound = 20 * time.Second

// rig is a Switch on a real Open vSwitch. Every port of the dummy datapath is there, so the host's
// devices are what the test says.
type rig struct {
	*testing.T
	ovs *ovstest.Instance
	sw  *Switch

	mu      sync.Mutex
	devices map[string]int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{T: t, ovs: ovstest.Start(t), devices: map[string]int{}}
	sw, err := New(Config{HostRunDir: r.ovs.Dir, Bridge: "meshnet", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	sw.devices = func() (map[string]int, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		all := map[string]int{}
		for name, index := range r.devices {
			all[name] = index
		}
		return all, nil
	}
	r.sw = sw
	run(t, sw)
	return r
}

// run runs a switch until the test ends.
func run(t *testing.T, sw *Switch) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- sw.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// device makes devices of the host, or makes them again.
func (r *rig) device(names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range names {
		r.devices[name] = r.devices[name] + 100
	}
}

// apply applies a plan and fails if that does.
func (r *rig) apply(h *plan.Host) ([]string, plan.Found) {
	r.Helper()
	steps, found, err := r.sw.Apply(context.Background(), h)
	if err != nil {
		r.Fatalf("apply: %v", err)
	}
	return strs(steps), found
}

// settled fails unless applying a plan again does nothing.
func (r *rig) settled(h *plan.Host) {
	r.Helper()
	if steps, _ := r.apply(h); len(steps) > 0 {
		r.Fatalf("applied again: %q, want nothing", steps)
	}
}

// drift waits for the next drift.
func (r *rig) drift() {
	r.Helper()
	select {
	case <-r.sw.Drift():
	case <-time.After(bound):
		r.Fatal("no drift")
	}
}

// quiet takes the drifts that are due and fails if there is no end of them.
func (r *rig) quiet() {
	r.Helper()
	for range 10 {
		select {
		case <-r.sw.Drift():
		case <-time.After(5 * debounce):
			return
		}
	}
	r.Fatal("drift without end")
}

// again does what the agent does: applies at each drift, until it succeeds and good is true.
func (r *rig) again(h *plan.Host, good func() bool) {
	r.Helper()
	var err error
	for end := time.Now().Add(bound); time.Now().Before(end); {
		select {
		case <-r.sw.Drift():
		case <-time.After(time.Second):
		}
		if _, _, err = r.sw.Apply(context.Background(), h); err == nil && good() {
			return
		}
	}
	r.Fatalf("not right again after %v; last error: %v", bound, err)
}

// trace says what becomes of a packet.
func (r *rig) trace(packet string) string {
	r.Helper()
	return r.ovs.Appctl("ofproto/trace", "meshnet", packet)
}

// flows returns all flows, sorted: a switch lists them in any order.
func (r *rig) flows() string {
	r.Helper()
	flows := strings.Split(r.ovs.Ofctl("dump-flows", "meshnet", "--no-stats"), "\n")
	slices.Sort(flows)
	return strings.Join(flows, "\n")
}

// column returns a column of the named record, as ovs-vsctl prints it.
func (r *rig) column(table, record, column string) string {
	r.Helper()
	return r.ovs.Vsctl("get", table, record, column)
}

func (r *rig) equal(what, got, want string) {
	r.Helper()
	if got != want {
		r.Errorf("%s = %s, want %s", what, got, want)
	}
}

func strs(steps []plan.Step) []string {
	var s []string
	for _, step := range steps {
		s = append(s, step.String())
	}
	return s
}

// The plans of these tests: this host has 192.0.2.1 and two peers.
const (
	web, green = state.NetworkID(0x1111), state.NetworkID(0x2222)
	c1, c2     = state.EndpointID(0xc1), state.EndpointID(0xc2)
	g1         = state.EndpointID(0x91)
	peer2      = state.NodeID(0xa2)
	peer3      = state.NodeID(0xa3)
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// tunnelHost is a plan of the transports with tunnel ports: web has two members here and one behind
// each peer, green has the same subnet and one member here and one behind peer 2.
func tunnelHost(transport state.Transport) *plan.Host {
	h := &plan.Host{
		Bridge: "meshnet", Datapath: "dummy", Transport: transport,
		Underlay: addr("192.0.2.1"), Device: "eth0", TunnelPort: 14789, MTU: 1450,
		Tunnels: []plan.Tunnel{
			{Peer: peer2, Name: "mt-00000000a2", Remote: addr("192.0.2.2"), OFPort: 2},
			{Peer: peer3, Name: "mt-00000000a3", Remote: addr("192.0.2.3"), OFPort: 3},
		},
		Networks: map[state.NetworkID]*plan.Network{
			web: {
				ID: web, Name: "web", VNI: 0x77, Subnet: netip.MustParsePrefix("10.2.0.0/16"),
				Ports:   []plan.Port{local(c1, "mc-c1", 11, "10.2.0.1"), local(c2, "mc-c2", 12, "10.2.0.2")},
				Remotes: []*plan.Remote{remote(0xd3, peer2, "10.2.0.3", 2), remote(0xd4, peer3, "10.2.0.4", 3)},
				Flood:   []uint32{2, 3},
			},
			green: {
				ID: green, Name: "green", VNI: 0x88, Subnet: netip.MustParsePrefix("10.2.0.0/16"),
				Ports:   []plan.Port{local(g1, "mc-g1", 21, "10.2.0.1")},
				Remotes: []*plan.Remote{remote(0xe3, peer2, "10.2.0.3", 2)},
				Flood:   []uint32{2},
			},
		},
	}
	link(h)
	return h
}

// deviceHost is the same on the transport with a VXLAN device for each network.
func deviceHost() *plan.Host {
	h := tunnelHost(state.KernelVXLAN)
	h.Tunnels = nil
	number := uint32(40)
	for _, id := range []state.NetworkID{web, green} {
		n := h.Networks[id]
		n.Flood = nil
		n.Device = &plan.Vxlan{Name: "mv-" + n.Name, VNI: n.VNI, Local: h.Underlay, Port: h.TunnelPort, MTU: h.MTU, OFPort: number}
		for i := range n.Remotes {
			n.Remotes[i].OFPort = number
		}
		number++
	}
	return h
}

func local(id state.EndpointID, link string, number uint32, a string) plan.Port {
	return plan.Port{Endpoint: id, Link: link, OFPort: number, Addr: addr(a), MAC: state.MACOf(addr(a))}
}

func remote(id state.EndpointID, node state.NodeID, a string, number uint32) *plan.Remote {
	return &plan.Remote{Endpoint: id, Node: node, Addr: addr(a), MAC: state.MACOf(addr(a)), OFPort: number}
}

// link gives every port of a plan its link.
func link(h *plan.Host) {
	h.Links = nil
	for _, n := range h.Networks {
		for _, p := range n.Ports {
			h.Links = append(h.Links, plan.Link{Endpoint: p.Endpoint, Name: p.Link})
		}
	}
}

// changed returns a copy of a plan with another network in it, as plan.For makes it.
func changed(h *plan.Host, id state.NetworkID, edit func(*plan.Network)) *plan.Host {
	next := *h
	next.Networks = map[state.NetworkID]*plan.Network{}
	for id, n := range h.Networks {
		next.Networks[id] = n
	}
	n := *h.Networks[id]
	edit(&n)
	next.Networks[id] = &n
	link(&next)
	return &next
}

func TestApplyTunnels(t *testing.T) {
	t.Parallel()
	for _, transport := range []state.Transport{state.OVSKernel, state.OVSUserspace} {
		t.Run(transport.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.device("mc-c1", "mc-c2", "mc-g1")
			h := tunnelHost(transport)
			steps, found := r.apply(h)
			for _, want := range []string{"add bridge meshnet", "add port mc-c1", "add port mt-00000000a2"} {
				if !strings.Contains(fmt.Sprintf("%q", steps), want) {
					t.Errorf("steps %q lack %q", steps, want)
				}
			}
			if found.Ports[c1] != 11 || found.Ports[g1] != 21 || found.Tunnels[peer2] != 2 || found.Tunnels[peer3] != 3 {
				t.Errorf("found %+v", found)
			}
			r.equal("fail_mode", r.column("bridge", "meshnet", "fail_mode"), "secure")
			r.equal("protocols", r.column("bridge", "meshnet", "protocols"), "[OpenFlow13, OpenFlow14, OpenFlow15]")
			r.equal("other_config", r.column("bridge", "meshnet", "other_config"), `{disable-in-band="true"}`)
			r.equal("type", r.column("interface", "mt-00000000a3", "type"), "vxlan")
			r.equal("options", r.column("interface", "mt-00000000a3", "options"),
				`{dst_port="14789", key=flow, local_ip="192.0.2.1", remote_ip="192.0.2.3"}`)
			r.equal("mark", r.column("interface", "mt-00000000a3", "external_ids"), `{meshnet-peer="00000000000000a3"}`)
			r.equal("mark", r.column("interface", "mc-c1", "external_ids:meshnet-endpoint"), `"00000000000000c1"`)
			r.settled(h)
			r.quiet()
			r.settled(h)
		})
	}
}

func TestApplyGeneve(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSKernel)
	r.apply(h)
	g := *h
	g.Encap = state.Geneve
	r.apply(&g)
	r.equal("type", r.column("interface", "mt-00000000a2", "type"), "geneve")
	r.equal("number", r.column("interface", "mt-00000000a2", "ofport"), "2")
	r.settled(&g)
}

// TestTraceTunnels asks the switch what becomes of packets under the plan of A and B.
func TestTraceTunnels(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	r.apply(tunnelHost(state.OVSUserspace))
	r.underlay()
	for _, c := range []struct{ name, packet, want, not string }{
		{"to a remote member", packet(11, "10.2.0.1", "10.2.0.3"), "frag=0x4000),udp(src=0,dst=14789,csum=0x0),vxlan(flags=0x8000000,vni=0x77)", "192.0.2.3"},
		{"of the other network with the same addresses", packet(21, "10.2.0.1", "10.2.0.3"), "vxlan(flags=0x8000000,vni=0x88)", "0x77"},
		{"to a local member", packet(11, "10.2.0.1", "10.2.0.2"), "output:12", "tun_id"},
		{"to a local member of another network", packet(21, "10.2.0.1", "10.2.0.2"), "Datapath actions: drop", "output"},
		{"with a spoofed address", packet(11, "10.2.0.9", "10.2.0.3"), "Datapath actions: drop", "output"},
		{"with a spoofed MAC", "in_port=11,ip,dl_src=02:42:0a:02:00:02,dl_dst=02:42:0a:02:00:03,nw_src=10.2.0.1,nw_dst=10.2.0.3",
			"Datapath actions: drop", "output"},
		{"from a tunnel to a local member", tunnelled(0x77, "10.2.0.3", "10.2.0.1"), "output:11", "output:3"},
		{"from a tunnel to the other network", tunnelled(0x88, "10.2.0.3", "10.2.0.1"), "output:21", "output:11"},
		{"from a tunnel to a remote member", tunnelled(0x77, "10.2.0.3", "10.2.0.4"), "Datapath actions: drop", "output"},
		{"an ARP request", "in_port=11,arp,arp_op=1,dl_src=02:42:0a:02:00:01,dl_dst=ff:ff:ff:ff:ff:ff," +
			"arp_sha=02:42:0a:02:00:01,arp_spa=10.2.0.1,arp_tpa=10.2.0.3", "IN_PORT", "output:2"},
	} {
		out := r.trace(c.packet)
		if !strings.Contains(out, c.want) || strings.Contains(out, c.not) {
			t.Errorf("%s: want %q and not %q in\n%s", c.name, c.want, c.not, out)
		}
	}
}

// underlay gives the switch a bridge with the underlay address and the peers' MAC addresses, as the
// userspace datapath needs them to encapsulate.
func (r *rig) underlay() {
	r.Helper()
	r.ovs.Vsctl("add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=dummy",
		"--", "add-port", "br-phy", "eth0")
	r.ovs.Appctl("netdev-dummy/ip4addr", "br-phy", "192.0.2.1/24")
	r.ovs.Appctl("ovs/route/add", "192.0.2.0/24", "br-phy")
	r.ovs.Appctl("tnl/neigh/set", "br-phy", "192.0.2.2", "aa:55:aa:55:00:02")
	r.ovs.Appctl("tnl/neigh/set", "br-phy", "192.0.2.3", "aa:55:aa:55:00:03")
	// Open vSwitch takes a local address only from the kernel's table of local routes.
	r.ovs.Vsctl("remove", "interface", "mt-00000000a2", "options", "local_ip",
		"--", "remove", "interface", "mt-00000000a3", "options", "local_ip")
}

func TestTraceDevices(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1", "mv-web", "mv-green")
	h := deviceHost()
	_, found := r.apply(h)
	if found.Devices[web] != 40 || found.Devices[green] != 41 {
		t.Errorf("found %+v", found)
	}
	r.settled(h)
	for _, c := range []struct{ name, packet, want, not string }{
		{"to a remote member", packet(11, "10.2.0.1", "10.2.0.4"), "output:40", "output:41"},
		{"of the other network", packet(21, "10.2.0.1", "10.2.0.3"), "output:41", "output:40"},
		{"from a device to a local member", packet(40, "10.2.0.3", "10.2.0.2"), "output:12", "output:40"},
		{"from a device to a remote member", packet(40, "10.2.0.3", "10.2.0.4"), "Datapath actions: drop", "output"},
	} {
		out := r.trace(c.packet)
		if !strings.Contains(out, c.want) || strings.Contains(out, c.not) {
			t.Errorf("%s: want %q and not %q in\n%s", c.name, c.want, c.not, out)
		}
	}
}

// packet is an IPv4 packet between two addresses of the plan, as ofproto/trace takes it.
func packet(port int, src, dst string) string {
	return fmt.Sprintf("in_port=%d,ip,dl_src=%v,dl_dst=%v,nw_src=%s,nw_dst=%s,nw_ttl=64",
		port, state.MACOf(addr(src)), state.MACOf(addr(dst)), src, dst)
}

// tunnelled is one that comes from peer 2.
func tunnelled(vni int, src, dst string) string {
	return fmt.Sprintf("tun_id=%#x,%s", vni, packet(2, src, dst))
}

func TestApplyDifference(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1", "mc-c9")
	h := tunnelHost(state.OVSUserspace)
	r.apply(h)

	t.Log("a member goes, another comes, with one network only touched")
	next := changed(h, web, func(n *plan.Network) {
		n.Ports = []plan.Port{n.Ports[0], local(0xc9, "mc-c9", 19, "10.2.0.9")}
	})
	steps, found := r.apply(next)
	if got := strings.Join(steps, ", "); !strings.HasPrefix(got, "remove port mc-c2, add port mc-c9, flows +") ||
		!strings.HasSuffix(got, "of network web") || len(steps) != 3 {
		t.Errorf("steps %s", got)
	}
	if _, ok := found.Ports[c2]; ok || found.Ports[0xc9] != 19 {
		t.Errorf("found %+v", found.Ports)
	}
	r.settled(next)

	t.Log("a port in the place of another, as with twins: no flow changes, and ovs-vswitchd has a few turns to catch up")
	turns := func(h *plan.Host) int {
		read := func() (n int) {
			if _, err := fmt.Sscan(r.ovs.Appctl("coverage/read-counter", "ofproto_recv_openflow"), &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		before := read()
		r.apply(h)
		return read() - before
	}
	r.device("mc-x9")
	swap := changed(next, web, func(n *plan.Network) {
		n.Ports = []plan.Port{n.Ports[0], local(0xc9, "mc-x9", 19, "10.2.0.9")}
	})
	if same, swapped := turns(next), turns(swap); same >= catchUpTurns || swapped < catchUpTurns || swapped >= 2*catchUpTurns {
		t.Errorf("%d messages for nothing, %d for a port in the place of another", same, swapped)
	}
	r.apply(next)

	t.Log("a peer goes")
	gone := *next
	gone.Tunnels = next.Tunnels[:1]
	if steps, _ := r.apply(&gone); strings.Join(steps, ", ") != "remove port mt-00000000a3, flows +0 -1 of the bridge" {
		t.Errorf("steps %q", steps)
	}

	t.Log("everything goes")
	nothing := gone
	nothing.Tunnels, nothing.Networks, nothing.Links = nil, nil, nil
	r.apply(&nothing)
	r.equal("ports", r.ovs.Vsctl("list-ports", "meshnet"), "")
	if strings.Contains(r.flows(), "metadata=") {
		t.Errorf("flows are left:\n%s", r.flows())
	}
}

func TestApplyLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	r.apply(h)
	r.ovs.Vsctl("add-br", "other", "--", "set", "bridge", "other", "datapath_type=dummy",
		"--", "add-port", "meshnet", "mirror", "--", "set", "interface", "mirror", "external_ids:theirs=1",
		"--", "set", "bridge", "meshnet", "external_ids:theirs=1", "other_config:theirs=1",
		"--", "set", "interface", "mc-c1", "external_ids:theirs=1")
	r.ovs.Vsctl("set", "bridge", "meshnet", "stp_enable=true", "--", "set", "interface", "mc-c1", "ofport_request=77")
	r.ovs.Ofctl("add-flow", "meshnet", "table=99,cookie=0x7,actions=drop")
	r.drift()
	if steps, _ := r.apply(h); strings.Join(steps, ", ") != "set bridge meshnet, set port mc-c1" {
		t.Errorf("steps %q", steps)
	}
	r.settled(h)
	r.equal("foreign port", r.column("interface", "mirror", "external_ids"), `{theirs="1"}`)
	r.equal("foreign key", r.column("interface", "mc-c1", "external_ids:theirs"), `"1"`)
	r.equal("number", r.column("interface", "mc-c1", "ofport"), "11")
	r.equal("foreign key", r.column("bridge", "meshnet", "external_ids:theirs"), `"1"`)
	r.equal("foreign key", r.column("bridge", "meshnet", "other_config:theirs"), `"1"`)
	if !strings.Contains(r.flows(), "table=99") {
		t.Errorf("foreign flow is gone:\n%s", r.flows())
	}
}

func TestApplyRefusesForeignBridge(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.ovs.Vsctl("add-br", "meshnet", "--", "set", "bridge", "meshnet", "datapath_type=dummy")
	_, _, err := r.sw.Apply(context.Background(), tunnelHost(state.OVSUserspace))
	if err == nil || !strings.Contains(err.Error(), "ovs-vsctl del-br meshnet") {
		t.Errorf("error %v, want one that says what to do", err)
	}
	r.equal("ports", r.ovs.Vsctl("list-ports", "meshnet"), "")
}

func TestApplyNameTaken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	r.ovs.Vsctl("add-br", "other", "--", "set", "bridge", "other", "datapath_type=dummy", "--", "add-port", "other", "mc-c2")
	h := tunnelHost(state.OVSUserspace)
	_, found, err := r.sw.Apply(context.Background(), h)
	if err == nil || !strings.Contains(err.Error(), "mc-c2") {
		t.Errorf("error %v, want one that names mc-c2", err)
	}
	if found.Ports[c1] != 11 {
		t.Errorf("the other ports were not made: %+v", found.Ports)
	}
	r.ovs.Vsctl("del-port", "other", "mc-c2")
	r.again(h, func() bool { return strings.Contains(r.ovs.Vsctl("list-ports", "meshnet"), "mc-c2") }) // the mirror follows a moment later
}

func TestApplyMissingDevice(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	_, found, err := r.sw.Apply(context.Background(), h)
	if err == nil || !strings.Contains(err.Error(), "mc-c2") {
		t.Errorf("error %v, want one that names mc-c2", err)
	}
	if found.Ports[c1] != 11 || !strings.Contains(r.flows(), "0x77") {
		t.Errorf("the rest was not made: %+v", found)
	}
	// A member whose container is not there is not waited for.
	without := *h
	without.Links = h.Links[:0:0]
	for _, l := range h.Links {
		if l.Name != "mc-c2" {
			without.Links = append(without.Links, l)
		}
	}
	r.apply(&without)
}

// TestDeviceMadeAgain: the port must leave the database in one transaction and come back in another.
func TestDeviceMadeAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	r.apply(h)
	before := r.column("interface", "mc-c1", "_uuid")
	r.device("mc-c1")
	steps, found := r.apply(h)
	r.equal("steps", strings.Join(steps, ", "), "remove port mc-c1, add port mc-c1")
	if found.Ports[c1] != 11 {
		t.Errorf("found %+v", found.Ports)
	}
	if r.column("interface", "mc-c1", "_uuid") == before {
		t.Error("the row is the same")
	}
	r.settled(h)
}

// TestPortFails: what ovs-vswitchd cannot make is reported, and tried again with pauses.
func TestPortFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	h.Tunnels[1].Remote = h.Tunnels[0].Remote // one tunnel twice
	for range 3 {
		_, _, err := r.sw.Apply(context.Background(), h)
		if err == nil || !strings.Contains(err.Error(), "add port mt-") {
			t.Errorf("error %v, want one that names the tunnel", err)
		}
	}
	r.quiet()
	r.apply(tunnelHost(state.OVSUserspace))
}

// TestOtherNumber: a port that does not get the number it asked for is found with the one it has.
func TestOtherNumber(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	r.apply(&plan.Host{Bridge: "meshnet", Datapath: "dummy", Transport: state.OVSUserspace})
	r.ovs.Vsctl("add-port", "meshnet", "theirs", "--", "set", "interface", "theirs", "ofport_request=11")
	_, found := r.apply(h)
	number, ok := found.Ports[c1]
	if !ok || number == 11 || number == 0 {
		t.Fatalf("found %+v, want another number than 11", found.Ports)
	}
	follow := changed(h, web, func(n *plan.Network) {
		n.Ports = []plan.Port{local(c1, "mc-c1", number, "10.2.0.1"), n.Ports[1]}
	})
	r.apply(follow)
	r.quiet()
	r.settled(follow)
}

func TestDriftByHand(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	r.apply(h)
	r.quiet()

	t.Log("a port deleted by hand")
	r.ovs.Vsctl("del-port", "mc-c2")
	r.drift()
	if steps, _ := r.apply(h); strings.Join(steps, ", ") != "add port mc-c2" {
		t.Errorf("steps %q", steps)
	}
	r.equal("number", r.column("interface", "mc-c2", "ofport"), "12")

	t.Log("flows deleted by hand")
	before := r.flows()
	r.ovs.Ofctl("del-flows", "meshnet", "table=40")
	r.drift()
	r.apply(h)
	r.equal("flows", r.flows(), before)

	t.Log("a flow edited by hand")
	r.quiet()
	r.ovs.Ofctl("mod-flows", "meshnet", "table=40,metadata=0x77,dl_dst=02:42:0a:02:00:01,actions=drop")
	if r.flows() == before {
		t.Fatal("nothing was edited")
	}
	r.drift()
	r.apply(h)
	r.equal("flows", r.flows(), before)
	r.quiet()

	t.Log("a flow of others")
	r.ovs.Ofctl("add-flow", "meshnet", "cookie=0x77,table=0,priority=7,in_port=777,actions=drop")
	r.ovs.Ofctl("del-flows", "meshnet", "cookie=0x77/-1")
	select {
	case <-r.sw.Drift():
		t.Error("drift by a flow of others")
	case <-time.After(5 * debounce):
	}

	t.Log("the bridge deleted by hand")
	r.ovs.Vsctl("del-br", "meshnet")
	r.again(h, func() bool { return r.flows() == before })
	r.settled(h)
}

func TestSwitchKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	r.apply(h)
	before := r.flows()
	r.quiet()

	t.Log("killed, changed meanwhile, started")
	r.ovs.Kill(ovstest.Switchd)
	r.drift()
	next := changed(h, web, func(n *plan.Network) { n.Ports = n.Ports[:1] })
	if _, _, err := r.sw.Apply(context.Background(), next); err == nil {
		t.Error("no error without ovs-vswitchd")
	}
	r.ovs.Restart(ovstest.Switchd)
	r.again(next, func() bool { return strings.Contains(r.flows(), "0x77") })
	r.settled(next)
	r.apply(h)
	r.equal("flows", r.flows(), before)
}

// TestServerKilled: without a database ovs-vswitchd serves no OpenFlow either, but goes on forwarding.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	r.apply(h)
	before := r.flows()
	r.quiet()
	r.ovs.Kill(ovstest.Server)
	r.drift()
	r.ovs.Restart(ovstest.Server)
	r.again(h, func() bool { return true })
	r.settled(h)
	r.equal("flows", r.flows(), before)
}

func TestDatabaseWiped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.device("mc-c1", "mc-c2", "mc-g1")
	h := tunnelHost(state.OVSUserspace)
	r.apply(h)
	before := r.flows()
	r.ovs.Kill(ovstest.Switchd)
	r.ovs.Kill(ovstest.Server)
	r.ovs.NewDB()
	r.ovs.Restart(ovstest.Server)
	r.ovs.Vsctl("--no-wait", "init")
	r.ovs.Restart(ovstest.Switchd)
	r.again(h, func() bool { return r.flows() == before })
	r.equal("number", r.column("interface", "mc-c1", "ofport"), "11")
	r.settled(h)
}

func TestNewChecks(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	for name, c := range map[string]Config{
		"no name":          {Log: log},
		"no logger":        {Bridge: "meshnet"},
		"no run directory": {Bridge: "meshnet", Log: log, Choice: plan.Choice{Private: true}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// A host that stood still is not taken for one whose switch was dead meanwhile.
func TestPatience(t *testing.T) {
	var p patience
	at := time.Unix(0, 0)
	for _, step := range []struct{ wait, want time.Duration }{
		{0, 0}, {2 * time.Second, 2 * time.Second}, {20 * time.Millisecond, 2020 * time.Millisecond}, {95 * time.Second, 6020 * time.Millisecond},
	} {
		at = at.Add(step.wait)
		if got := p.look(at); got != step.want {
			t.Errorf("after %v more: %v, want %v", step.wait, got, step.want)
		}
	}
}
