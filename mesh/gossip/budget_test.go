package gossip_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/mesh/gossip"
	"meshnet/state"
)

// pair is two members of a mesh of a thousand hosts with fifty containers each, who hold all of it.
type pair struct {
	t     *testing.T
	docs  [2]*state.Doc
	ms    [2]*gossip.Machine
	now   time.Duration
	bytes int      // of all messages
	sent  [][]byte // the bodies
}

const (
	hosts      = 1000
	containers = 50
)

func hostID(i int) state.NodeID { return state.NodeID(uint64(i+1) * 0x9e3779b97f4a7c15) }

func newPair(t *testing.T) *pair {
	p := &pair{t: t}
	for i := range p.docs {
		p.docs[i] = state.NewDoc(hostID(i), 1, crdt.Actor(i+1))
	}
	made, err := p.docs[0].Apply(state.CreateNetwork{Def: state.Definition{Name: "web", Subnet: netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	p.docs[1].Merge(made)
	net := p.docs[0].View().Networks()[0].ID
	for i := range hosts {
		d := state.NewDoc(hostID(i), 1, crdt.Actor(i+1))
		if i < len(p.docs) {
			d = p.docs[i]
		} else {
			d.Merge(made)
		}
		cs := []state.Change{state.PutNode{Node: state.Node{Name: fmt.Sprint("host", i), Addr: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})}}}
		for k := range containers {
			cs = append(cs, state.PutEndpoint{Endpoint: state.Endpoint{
				ID: state.EndpointID(i*containers + k + 1), Network: net, Container: "c",
				Addr: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(k + 1)}),
			}})
		}
		out, err := d.Apply(cs...)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range p.docs {
			if other != d {
				other.Merge(out)
			}
		}
	}
	for i := range p.ms {
		p.ms[i] = gossip.New(gossip.Config{Self: hostID(i), Doc: p.docs[i], Seed: uint64(i + 1)})
		p.step(i, gossip.Members{Alive: []state.NodeID{hostID(1 - i)}}, false)
	}
	if p.docs[0].Digest() != p.docs[1].Digest() {
		t.Fatal("not equal to begin with")
	}
	return p
}

// step tells a machine something, and the other at once what it sends, unless that is lost.
func (p *pair) step(i int, ev gossip.Event, lost bool) {
	if p.ms[i] == nil {
		return
	}
	for _, a := range p.ms[i].Step(p.now, ev) {
		var body []byte
		switch a := a.(type) {
		case gossip.Send:
			body = a.Body
		case gossip.Stream:
			body = a.Body
		default:
			continue
		}
		p.bytes += len(body)
		p.sent = append(p.sent, body)
		if !lost {
			p.step(1-i, gossip.Packet{From: hostID(i), Body: body}, false)
		}
	}
}

// run lets time pass.
func (p *pair) run(d time.Duration) {
	for end := p.now + d; ; {
		who, next := -1, end
		for i, m := range p.ms {
			if at := m.Next(); at != 0 && at <= next {
				who, next = i, at
			}
		}
		if p.now = max(p.now, next); who < 0 {
			return
		}
		p.step(who, gossip.Tick{}, false)
	}
}

// TestEqualCostsADigest: a round between equal replicas is one message of 16 bytes and its head.
func TestEqualCostsADigest(t *testing.T) {
	p := newPair(t)
	p.run(10 * time.Second) // the greeting is over
	p.bytes, p.sent = 0, nil
	p.run(10 * time.Second)
	if len(p.sent) < 14 || len(p.sent) > 30 {
		t.Errorf("%d messages of two members in 10 s", len(p.sent))
	}
	for _, body := range p.sent {
		if len(body) > 16+4 {
			t.Errorf("a message of %d bytes between equals: %x", len(body), body)
		}
	}
	t.Logf("%d messages, %d bytes of two members in 10 s", len(p.sent), p.bytes)
}

// TestMissedOpCosts2kB: a replica that missed an op gets it for at most 2 kB of messages, all told.
func TestMissedOpCosts2kB(t *testing.T) {
	p := newPair(t)
	p.run(10 * time.Second)
	p.bytes, p.sent = 0, nil
	out, err := p.docs[0].Apply(state.PutNode{Node: state.Node{Name: "renamed", Addr: netip.MustParseAddr("192.0.2.1")}})
	if err != nil {
		t.Fatal(err)
	}
	p.step(0, gossip.Local{Out: out}, true)
	for p.docs[0].Digest() != p.docs[1].Digest() {
		if p.now > time.Minute {
			t.Fatal("never equal again")
		}
		p.run(5 * time.Millisecond)
	}
	if p.bytes > 2000 {
		t.Errorf("%d bytes", p.bytes)
	}
	t.Logf("%d bytes in %d messages, the lost push included", p.bytes, len(p.sent))
}
