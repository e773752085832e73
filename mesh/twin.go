package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshnet/ipam"
	"meshnet/state"
)

const (
	// renewsMax is how often a minute this node begins a new epoch; more often means that two hosts
	// write under one id.
	renewsMax = 3
	// twinAsk is how often members with this node's id are called, twinMax for how long an answer
	// says that it lives.
	twinAsk, twinMax = time.Second, 10 * time.Second
	// notesMax bounds what is noted for a person.
	notesMax = 8
)

// twin is what a node knows of a second host with its identity: a cloned machine, or a state directory
// that was copied on one machine. Of two that live the one with the larger address writes nothing.
type twin struct {
	twinNext time.Duration // when to call it again; 0: there is none to call
	twinAt   netip.AddrPort
	twinSeen time.Duration // when it answered last; 0: never
	renews   []time.Duration
	many     bool // it was renewed too often, and no other host was found
	muted    bool // as of the last look
	notes    []string
	same     []string // warnings of nodes of the same name
}

// mute reports whether this node writes nothing because another host has its identity.
func (n *Node) mute() bool {
	return n.many || n.twinLives() && state.Yields(n.here(), n.twinAt)
}

func (n *Node) here() netip.AddrPort { return netip.AddrPortFrom(n.c.Addr, n.c.Port) }

// quiet reports whether this node may write nothing now.
func (n *Node) quiet() bool { return n.held || n.mute() }

func (n *Node) twinLives() bool { return n.twinSeen != 0 && n.now()-n.twinSeen < twinMax }

// twinText says that another host has this node's identity, and what to do; empty: none has.
func (n *Node) twinText() string {
	const become = "to become a new node, stop meshnet there, remove its state directory and start it again"
	switch {
	case n.twinLives() && n.mute():
		return fmt.Sprintf("two hosts are node %s, this one at %s and another at %s, because the machine or its state directory %s was copied; "+
			"the one with the larger address, this one, makes no changes; to become a new node, stop meshnet here, remove that directory and start it again",
			n.self, n.here(), n.twinAt, n.c.StateDir)
	case n.twinLives():
		return fmt.Sprintf("two hosts are node %s, this one at %s and another at %s, because the machine or its state directory was copied; "+
			"the other one, with the larger address, makes no changes; %s", n.self, n.here(), n.twinAt, become)
	case n.many:
		return fmt.Sprintf("two hosts seem to be node %s, this one at %s and another, so this one makes no changes; %s", n.self, n.here(), become)
	}
	return ""
}

// nameSame looks for other nodes that are called as this one is.
func (n *Node) nameSame() {
	var ws []string
	for _, node := range n.view.Nodes() {
		switch {
		case node.ID == n.self || node.Name != n.c.Name:
		case node.Addr == n.c.Addr && !slices.Contains(n.alive, node.ID):
			ws = append(ws, fmt.Sprintf("node %s, which is not there, had this host's name and address: if this host lost its disk, give that one up with "+
				"meshnet rmpeer %s", node.ID, node.ID))
		case slices.Contains(n.alive, node.ID):
			ws = append(ws, fmt.Sprintf("node %s, at %s, is called %s too; give one of them --name", node.ID, node.Addr, n.c.Name))
		}
	}
	n.same = ws
}

// note keeps a sentence for status, and logs it.
func (n *Node) note(text string) {
	n.c.Log.Warn(text)
	if !slices.Contains(n.notes, text) && len(n.notes) < notesMax {
		n.notes = append(slices.Clone(n.notes), text)
	}
}

// callTwins says to the members with this node's id that it lives. A host that changed its address
// calls nobody but itself of before, who does not answer.
func (n *Node) callTwins() {
	twins := n.members.twins()
	n.many = n.many && len(n.renewed()) >= renewsMax
	n.twinNext = 0
	if len(twins) > 0 || n.twinLives() || n.many {
		n.twinNext = n.now() + twinAsk
	}
	for i := range twins {
		b := frame(chanTwin, n.self, []byte(n.here().String()))
		if err := n.members.list.SendBestEffort(&twins[i], b); err != nil {
			n.c.Log.Debug("packet not sent", "peer", twins[i].Name, "err", err)
		}
	}
	if n.muted != n.mute() {
		if n.muted = !n.muted; !n.muted {
			n.c.Log.Info("no other host has this node's id any more")
			n.resume()
		}
	}
}

// heardTwin notes that another host has this node's id, and lives.
func (n *Node) heardTwin(body []byte) {
	at, err := netip.ParseAddrPort(string(body))
	if err != nil || at == n.here() {
		return
	}
	first := !n.twinLives()
	n.twinAt, n.twinSeen = at, max(n.now(), 1)
	n.many = false
	n.muted = n.mute()
	if first {
		n.c.Log.Error(n.twinText())
	}
	if first { // it may not be a member here yet
		n.members.packetTo(at, frame(chanTwin, n.self, []byte(n.here().String())))
	}
	if n.twinNext == 0 {
		n.callTwins()
	}
}

// renewed returns when this node began a new epoch within the last minute.
func (n *Node) renewed() []time.Duration {
	n.renews = slices.DeleteFunc(n.renews, func(at time.Duration) bool { return n.now()-at > time.Minute })
	return n.renews
}

// checkEpoch begins a new epoch where others hold writes of this node that it lost, or gave it up.
func (n *Node) checkEpoch() {
	doubt, lost := n.doc.Doubt()
	gone, given := n.view.Forgotten(n.self)
	given = given && gone >= n.doc.Epoch()
	if !lost && !given || n.quiet() || n.leaving.left() {
		return
	}
	now := n.now()
	if n.many = len(n.renewed()) >= renewsMax && !n.twinLives(); n.many {
		n.muted = true
		n.twinNext = now + twinAsk
		return
	}
	n.renews = append(n.renews, now)
	n.store.who.Epoch = max(n.store.who.Epoch, gone, doubt)
	out := n.store.newEpoch()
	switch {
	case given:
		n.note("this node was given up by others with rmpeer while it was away; it has joined again")
	case n.store.fresh: // a person gave it the id of a node that was
		n.c.Log.Info("this node takes up what others know of an earlier one of its id")
	default:
		n.note("others know more of this node than its own state directory did, which was set back to an older copy or lost writes; " +
			"it has written all it has anew")
	}
	if err := n.store.name(); err != nil {
		n.hold(err)
	}
	n.keepRecords(bootRecord(n.store.boot))
	n.members.epoch.Store(uint32(n.store.epoch))
	n.doubtful = false
	n.tell(out)
	n.stale = true
	if lost {
		n.step(ipam.Renewed{Epoch: n.store.epoch})
	}
	if !n.held {
		n.introduce()
	}
	n.rewant = now + time.Millisecond
}
