package echo

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"meshnet/ovs/flow"
	"meshnet/plan"
	"meshnet/state"
)

var here, there = state.MAC{2, 0x42, 10, 1, 0, 2}, state.MAC{2, 0x42, 10, 1, 0, 3}

func targets(n int) []Target {
	var ts []Target
	for i := range n {
		ts = append(ts, Target{Peer: state.NodeID(i + 1), Port: uint32(40001 + i), VNI: 7, Src: here, Dst: there})
	}
	return ts
}

// answer does to a probe what the flows of a peer do.
func answer(frame []byte) []byte {
	a := append([]byte{}, frame...)
	copy(a[atDst:], a[atSrc:atType])
	copy(a[atSrc:], flow.ProbeAnswer[:])
	return a
}

// run steps a machine for a while; each probe comes back after what back says, or never if it says
// less than zero.
func run(m *Machine, from, to time.Duration, back func(Probe) time.Duration) (sent int) {
	type reply struct {
		at    time.Duration
		frame []byte
	}
	var replies []reply
	for now := from; now < to; now += time.Millisecond {
		for len(replies) > 0 && replies[0].at <= now {
			m.Heard(now, replies[0].frame)
			replies = replies[1:]
		}
		probes, _ := m.Step(now)
		for _, p := range probes {
			sent++
			if d := back(p); d >= 0 {
				replies = append(replies, reply{now + d, answer(p.Frame)})
			}
		}
	}
	return sent
}

func always(d time.Duration) func(Probe) time.Duration { return func(Probe) time.Duration { return d } }

func TestAnswered(t *testing.T) {
	m := New(1)
	m.Aim(targets(3))
	if sent := run(m, 0, 10*time.Second, always(3*time.Millisecond)); sent < 28 || sent > 31 {
		t.Errorf("%d probes in 10 s to 3 peers", sent)
	}
	paths := m.Paths()
	if len(paths) != 3 {
		t.Fatalf("%v", paths)
	}
	for id, p := range paths {
		if want := (state.Path{Up: true, RTT: 3 * time.Millisecond}); p != want {
			t.Errorf("peer %v: %+v, want %+v", id, p, want)
		}
	}
}

func TestLost(t *testing.T) {
	m := New(1)
	m.Aim(targets(2))
	if len(m.Paths()) != 0 {
		t.Error("something is known before anything was sent")
	}
	dead := func(p Probe) time.Duration {
		if p.Peer == 2 {
			return -1
		}
		return time.Millisecond
	}
	run(m, 0, 6*time.Second, dead)
	if p := m.Paths(); !p[1].Up || p[1].Loss != 0 || p[2].Up || p[2].Loss != 1 {
		t.Errorf("%+v", p)
	}
	run(m, 6*time.Second, 12*time.Second, always(time.Millisecond))
	if p := m.Paths()[2]; !p.Up || p.Loss <= 0 || p.Loss >= 1 {
		t.Errorf("back: %+v", p)
	}
	run(m, 12*time.Second, 20*time.Second, dead)
	if p := m.Paths()[2]; p.Up {
		t.Errorf("gone again: %+v", p)
	}
	run(m, 20*time.Second, 90*time.Second, always(time.Millisecond))
	if p := m.Paths()[2]; !p.Up || p.Loss != 0 {
		t.Errorf("what was lost long ago still counts: %+v", p)
	}
}

// TestLoss loses one in four.
func TestLoss(t *testing.T) {
	m := New(1)
	m.Aim(targets(1))
	n := 0
	run(m, 0, 70*time.Second, func(Probe) time.Duration {
		if n++; n%4 == 0 {
			return -1
		}
		return time.Millisecond
	})
	if p := m.Paths()[1]; !p.Up || math.Abs(p.Loss-0.25) > 0.03 {
		t.Errorf("%+v", p)
	}
}

// TestRate wants a bound on what all probes cost, however many peers there are.
func TestRate(t *testing.T) {
	for peers, want := range map[int]int{1: 10, 10: 100, 20: 200, 100: 200, 1000: 200} {
		m := New(1)
		m.Aim(targets(peers))
		if sent := run(m, 0, 10*time.Second, always(time.Millisecond)); sent < want-1 || sent > want+1 {
			t.Errorf("%d peers: %d probes in 10 s, want %d", peers, sent, want)
		}
		if len(m.flights) > 2 {
			t.Errorf("%d peers: %d probes are waited for", peers, len(m.flights))
		}
	}
}

func TestAimKeepsWhatIsKnown(t *testing.T) {
	m := New(1)
	m.Aim(targets(3))
	run(m, 0, 5*time.Second, always(time.Millisecond))
	fewer := targets(3)[1:]
	fewer[0].Port = 9
	m.Aim(fewer)
	if p := m.Paths(); len(p) != 2 || !p[2].Up || !p[3].Up {
		t.Errorf("%+v", p)
	}
	m.Aim(nil)
	if _, wait := m.Step(6 * time.Second); wait <= 0 || len(m.Paths()) != 0 {
		t.Errorf("without targets: wait %v, %v", wait, m.Paths())
	}
}

// TestForged: frames that are no answers to what was sent change nothing, and nothing panics.
func TestForged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(1)
		m.Aim(targets(2))
		probes, _ := m.Step(0)
		f := answer(probes[0].Frame)
		at := rapid.IntRange(atSrc, atNumber+7).Draw(t, "at")
		f[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		m.Heard(time.Millisecond, f)
		m.Heard(time.Millisecond, f[:rapid.IntRange(0, len(f)).Draw(t, "cut")])
		m.Heard(time.Millisecond, probes[0].Frame)
		if len(m.Paths()) != 0 {
			t.Fatalf("a frame changed at byte %d was taken for an answer", at)
		}
		m.Heard(time.Millisecond, answer(probes[0].Frame))
		m.Heard(time.Second, answer(probes[0].Frame)) // twice is the same as once
		if p := m.Paths()[1]; !p.Up || p.RTT != time.Millisecond {
			t.Fatalf("%+v", p)
		}
	})
}

func TestTargets(t *testing.T) {
	network := func(id state.NetworkID, device bool, nodes ...state.NodeID) *plan.Network {
		n := &plan.Network{ID: id, VNI: uint32(id) * 10, Ports: []plan.Port{{MAC: here}}}
		if device {
			n.Device = &plan.Vxlan{}
		}
		n.Remotes = remotes(uint32(id), nodes)
		return n
	}
	for _, device := range []bool{false, true} {
		h := &plan.Host{Networks: map[state.NetworkID]*plan.Network{
			1: network(1, device, 5, 3, 5), 2: network(2, device, 3, 4),
		}}
		got := Targets(h)
		want := []struct {
			peer state.NodeID
			port uint32
			vni  uint32
		}{{3, 1, 10}, {4, 2, 20}, {5, 1, 10}}
		if len(got) != len(want) {
			t.Fatalf("%+v", got)
		}
		for i, w := range want {
			if device {
				w.vni = 0
			}
			if g := got[i]; g.Peer != w.peer || g.Port != w.port || g.VNI != w.vni || g.Src != here || g.Dst != there {
				t.Errorf("device %v: got %+v, want %+v", device, g, w)
			}
		}
	}
}

func remotes(port uint32, nodes []state.NodeID) (rs []*plan.Remote) {
	for _, id := range nodes {
		rs = append(rs, &plan.Remote{Node: id, MAC: there, OFPort: port})
	}
	return rs
}
