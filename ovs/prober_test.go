package ovs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"meshnet/ovs/flow"
	"meshnet/ovs/ovstest"
	"meshnet/plan"
	"meshnet/state"
)

// TestProbes has two bridges with our flows, joined as by a tunnel: what one sends the other answers
// without a daemon, until the way is cut.
func TestProbes(t *testing.T) {
	t.Parallel()
	in := ovstest.Start(t)
	ctx, cancel := context.WithCancel(context.Background())
	h := twoBridges(t, in)
	sw := &Switch{prober: newProber(in.Mgmt("here"))}
	sw.prober.aim(h)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		sw.prober.run(ctx)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	until := func(what string, ok func(p state.Path, known bool) bool) {
		t.Helper()
		for end := time.Now().Add(bound); ; <-time.After(20 * time.Millisecond) {
			p, known := sw.Paths()[2]
			if ok(p, known) {
				t.Logf("%s: %+v", what, p)
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %+v", what, p)
			}
		}
	}
	up := func(p state.Path, known bool) bool { return known && p.Up && p.RTT > 0 }
	until("answered", up)
	in.Vsctl("set", "interface", "to-here", "options:peer=nowhere")
	until("cut", func(p state.Path, _ bool) bool { return !p.Up && p.Loss > 0 })
	in.Vsctl("set", "interface", "to-here", "options:peer=to-there")
	until("joined again", up)
	in.Kill(ovstest.Switchd)
	until("switch dead", func(p state.Path, _ bool) bool { return !p.Up })
}

// twoBridges makes the bridges here and there, joined as by a tunnel, and returns the plan of both: 2
// is the other.
func twoBridges(t testing.TB, in *ovstest.Instance) *plan.Host {
	t.Helper()
	ctx := context.Background()
	h := &plan.Host{
		Transport: state.OVSUserspace,
		Tunnels:   []plan.Tunnel{{Peer: 2, OFPort: 40001}},
		Networks: map[state.NetworkID]*plan.Network{1: {
			ID: 1, VNI: 7, Ports: []plan.Port{{MAC: state.MAC{2, 1}}},
		}},
	}
	addRemote(h.Networks[1], 2, state.MAC{2, 2}, 40001)
	for _, way := range [][2]string{{"here", "there"}, {"there", "here"}} {
		in.Vsctl("add-br", way[0], "--", "set", "bridge", way[0], "datapath_type=dummy", "fail_mode=secure",
			"protocols=[OpenFlow13,OpenFlow14]", "--", "add-port", way[0], "to-"+way[1], "--",
			"set", "interface", "to-"+way[1], "type=patch", "options:peer=to-"+way[0], "ofport_request=40001")
		conn, err := dialOpenFlow(ctx, in.Mgmt(way[0]), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Change(ctx, flow.Base(h), nil); err != nil {
			t.Fatal(err)
		}
		conn.Close() // nobody is there to answer but the switch
	}
	return h
}

// BenchmarkProbe is one probe there and back: what the daemon does, and what ovs-vswitchd does for both
// ends.
func BenchmarkProbe(b *testing.B) {
	in := ovstest.Start(b)
	p := newProber(in.Mgmt("here"))
	p.aim(twoBridges(b, in))
	line := p.dial(b.Context())
	if line == nil {
		b.Fatal("no connection")
	}
	defer line.close()
	probes, _ := p.step()
	before := cpuTime(b, in.PID(ovstest.Switchd))
	for b.Loop() {
		if !line.send(probes[0]) {
			b.Fatal("the connection ended")
		}
		<-line.in
	}
	b.ReportMetric(float64((cpuTime(b, in.PID(ovstest.Switchd))-before).Microseconds())/float64(b.N), "vswitchd-µs/op")
}

// cpuTime returns what a process has used, by /proc/PID/stat: fields 14 and 15 in hundredths of seconds
// (proc(5)).
func cpuTime(b *testing.B, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+2:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func addRemote(n *plan.Network, peer state.NodeID, mac state.MAC, port uint32) {
	n.Remotes = append(n.Remotes, &plan.Remote{Node: peer, MAC: mac, OFPort: port})
}
