package mesh

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"meshnet/state"
)

const (
	// twinEvery is how often a host that may be a copy of this one is asked.
	twinEvery = 5 * time.Second
	// twinGone is how long after its last word a copy is taken to be gone.
	twinGone = 20 * time.Second
	// twinTries is how often an address that says nothing is asked: it may be this host's of before.
	twinTries = 6
)

// twin is a living host with this node's id, a copy of its disk. memberlist names the address; the two
// then ask each other by it, since to all others they are one member.
type twin struct {
	at    netip.AddrPort // who is asked; zero: nobody
	heard time.Duration  // when it last said that it lives; 0: never
	asked time.Duration
	tries int // without a word
	next  time.Duration
}

// suspectTwin takes up where memberlist saw this node's id.
func (n *Node) suspectTwin() {
	at, err := netip.ParseAddrPort(n.members.takeTwin())
	if err != nil || at == n.here() || at == n.copy.at {
		return
	}
	n.copy = twin{at: at}
	n.askTwin()
}

func (n *Node) here() netip.AddrPort { return netip.AddrPortFrom(n.c.Addr, n.c.Port) }

// askTwin says to a host that may be a copy that this one lives, and where.
func (n *Node) askTwin() {
	now := n.now()
	if n.copy.tries++; n.copy.tries > twinTries && !n.copied() {
		n.copy = twin{}
		return
	}
	n.copy.asked, n.copy.next = now, now+twinEvery
	n.members.packetTo(n.copy.at, frame(chanTwin, n.self, []byte(n.here().String())))
}

// onTwin takes in that a host with this node's id lives.
func (n *Node) onTwin(body []byte) {
	at, err := netip.ParseAddrPort(string(body))
	if err != nil || at == n.here() {
		return
	}
	now := max(n.now(), 1)
	if !n.copied() || n.copy.at != at {
		n.c.Log.Error("another host has this node's id", "node", n.self, "addr", at)
		n.copy = twin{at: at}
	}
	n.copy.heard, n.copy.tries = now, 0
	if n.copy.asked == 0 || now-n.copy.asked >= time.Second {
		n.askTwin()
	}
}

// copied reports whether a copy of this node lives.
func (n *Node) copied() bool { return n.copy.heard != 0 && n.now()-n.copy.heard < twinGone }

// yields returns why this node makes no changes, if it does not: a copy of it lives that goes first, or
// it lost so many writes to one that there must be.
func (n *Node) yields() error {
	switch {
	case n.copied() && state.Yields(n.here(), n.copy.at):
		return fmt.Errorf("two hosts are node %s, this one at %s and another at %s, so this one makes no changes; "+
			"remove the state directory of one of them", n.self, n.here(), n.copy.at)
	case n.overrun && !n.copied():
		return fmt.Errorf("two hosts write as node %s, this one at %s and another, so this one makes no changes; "+
			"remove the state directory of one of them", n.self, n.here())
	}
	return nil
}

// twinWarning says what a person should know of a copy.
func (n *Node) twinWarning() (string, bool) {
	if err := n.yields(); err != nil {
		return err.Error(), true
	}
	if n.copied() {
		return fmt.Sprintf("two hosts are node %s, this one at %s and another at %s, which makes no changes; "+
			"remove the state directory of one of them", n.self, n.here(), n.copy.at), true
	}
	return "", false
}

// takeTwin returns where a member with this node's id was seen since the last call; empty: nowhere.
func (m *members) takeTwin() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.twin
	m.twin = ""
	return at
}

// packetTo sends a message to an address, whoever is there.
func (m *members) packetTo(at netip.AddrPort, b []byte) {
	if err := m.list.SendToAddress(memberlist.Address{Addr: at.String()}, b); err != nil {
		m.log.Debug("packet not sent", "addr", at, "err", err)
	}
}
