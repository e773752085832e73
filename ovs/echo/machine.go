package echo

import (
	"math/bits"
	"slices"
	"time"

	"meshnet/state"
)

const (
	// every is the time between two probes of one peer in a small mesh, gapMin that between any two.
	every  = time.Second
	gapMin = 50 * time.Millisecond
	// patience is how long an answer may take.
	patience = 2 * time.Second
	// misses in a row make a way that went one that does not.
	misses = 3
	// window is over how many probes losses are counted: the bits of a word.
	window = 64
	// smooth is the weight of the past in a round trip: that of RFC 6298, section 2.
	smooth = 8
)

// Probe is a frame to send.
type Probe struct {
	Target
	Frame []byte
}

// Machine sends probes and hears their answers. Time is that of any clock that does not jump.
type Machine struct {
	nonce   uint64
	number  uint64
	targets []Target
	next    int           // index of the target whose turn it is
	due     time.Duration // when
	flights []flight      // not answered yet, in the order in which they were sent
	paths   map[state.NodeID]*path
}

// flight is a probe that is on its way.
type flight struct {
	number uint64
	peer   state.NodeID
	at     time.Duration
}

// path is what is known of the way to one peer.
type path struct {
	rtt    time.Duration
	past   uint64 // a bit a probe, the last one lowest: 1 was lost
	count  int    // probes in past
	missed int    // in a row
	heard  bool   // ever
}

// New returns a machine without targets. Answers to other nonces are not its own.
func New(nonce uint64) *Machine {
	return &Machine{nonce: nonce, paths: map[state.NodeID]*path{}}
}

// Aim replaces the targets, which must be in the order of peers. What is known of peers that remain
// is kept.
func (m *Machine) Aim(ts []Target) {
	if slices.Equal(ts, m.targets) {
		return
	}
	m.targets = slices.Clone(ts)
	old := m.paths
	m.paths = make(map[state.NodeID]*path, len(ts))
	for _, t := range ts {
		if p := old[t.Peer]; p != nil {
			m.paths[t.Peer] = p
		} else {
			m.paths[t.Peer] = &path{}
		}
	}
	m.flights = slices.DeleteFunc(m.flights, func(f flight) bool { return m.paths[f.peer] == nil })
	if m.next >= len(ts) {
		m.next = 0
	}
}

// Step gives up what took too long and returns the probe that is due, if one is, and how long to wait
// for the next step.
func (m *Machine) Step(now time.Duration) (send []Probe, wait time.Duration) {
	for len(m.flights) > 0 && now-m.flights[0].at >= patience {
		m.paths[m.flights[0].peer].saw(false, 0)
		m.flights = m.flights[1:]
	}
	if len(m.targets) == 0 {
		return nil, every
	}
	if now < m.due {
		return nil, m.due - now
	}
	t := m.targets[m.next]
	m.next = (m.next + 1) % len(m.targets)
	m.number++
	m.flights = append(m.flights, flight{m.number, t.Peer, now})
	gap := max(every/time.Duration(len(m.targets)), gapMin)
	m.due = now + gap
	return []Probe{{t, frame(t, m.nonce, m.number)}}, gap
}

// Heard takes a frame. What is no answer to one of the probes on their way changes nothing.
func (m *Machine) Heard(now time.Duration, frame []byte) {
	nonce, number, ok := parse(frame)
	if !ok || nonce != m.nonce {
		return
	}
	i, found := slices.BinarySearchFunc(m.flights, number, func(f flight, n uint64) int {
		return int(int64(f.number - n))
	})
	if found {
		m.paths[m.flights[i].peer].saw(true, now-m.flights[i].at)
		m.flights = slices.Delete(m.flights, i, i+1)
	}
}

// Paths returns what is known: of peers that answered, or did not often enough.
func (m *Machine) Paths() map[state.NodeID]state.Path {
	known := map[state.NodeID]state.Path{}
	for id, p := range m.paths {
		if p.heard || p.missed >= misses {
			known[id] = state.Path{
				Up: p.heard && p.missed < misses, RTT: p.rtt,
				Loss: float64(bits.OnesCount64(p.past)) / float64(p.count),
			}
		}
	}
	return known
}

// saw counts what became of one probe.
func (p *path) saw(answered bool, rtt time.Duration) {
	p.past <<= 1
	p.count = min(p.count+1, window)
	switch {
	case !answered:
		p.past |= 1
		p.missed++
	case !p.heard:
		p.rtt = rtt
	default:
		p.rtt += (rtt - p.rtt) / smooth
	}
	if answered {
		p.heard, p.missed = true, 0
	}
}
