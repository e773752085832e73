package mesh

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"meshnet/ipam"
	"meshnet/state"
)

// mendDelay is how long after the state directory took nothing it is tried again.
const mendDelay = time.Second

// fullness is what a node knows of a state directory that takes nothing more: a full disk mostly. It is
// in one of two states then.
//
// Full: the space in reserve cannot be filled up. Nobody is promised anything new here. What this node
// gives back and owes to others still goes to the log, into the reserve; what others say is merged and
// shown, but not logged.
//
// Held as well: the log did not take something of this node's own. Nothing is sent, as others could
// hear of what this node may not know later.
type fullness struct {
	full     error         // why; nil: all is well
	held     bool          // own records wait to be written
	lossy    bool          // the log lacks what others said, or more
	mendNext time.Duration // when to try again; 0: no need
}

// promises reports whether a wish asks for something to be kept for longer.
func promises(w state.Wish) bool {
	switch w.(type) {
	case state.Detach, state.Report:
		return false
	}
	return true
}

// refusal is the answer to a wish meanwhile.
func (n *Node) refusal() error {
	remedy := "look after the disk of"
	if errors.Is(n.full, syscall.ENOSPC) || errors.Is(n.full, syscall.EDQUOT) {
		remedy = "free space on"
	}
	return fmt.Errorf("the state directory takes nothing more (%w), so nothing new can be promised; %s %s", n.full, remedy, n.c.StateDir)
}

// suspend notes why the state directory takes nothing.
func (n *Node) suspend(why error) {
	if n.mendNext == 0 {
		n.c.Log.Error("the state directory takes nothing more; nothing new is promised until there is space", "path", n.c.StateDir, "err", why)
	}
	n.full = why
	n.mendNext = n.now() + mendDelay
}

// hold notes why something of this node's own is not in the log. What is under way is refused and taken
// back, and nobody is told of it.
func (n *Node) hold(why error) {
	n.full = why
	after := n.after
	n.after = nil
	for _, id := range slices.Sorted(maps.Keys(n.wants)) {
		w := n.wants[id]
		for _, to := range w.replies {
			n.answer(to, result{err: n.refusal()})
		}
		if w.replies = nil; !n.wished(id) {
			delete(n.wants, id)
			n.step(ipam.GiveUp{ID: id})
		}
	}
	for _, r := range after {
		if r.say != nil {
			continue
		}
		if r.result.err == nil && !r.result.out.Again && n.wished(r.result.out.Endpoint) {
			n.detach(r.result.out.Endpoint)
		}
		if r.result.err == nil {
			r.result = result{err: n.refusal()}
		}
		n.after = append(n.after, r)
	}
	n.suspend(why)
	n.held = true
	n.outbox = nil // any message may get lost
}

// wished reports whether this host was asked for an attachment.
func (n *Node) wished(id state.EndpointID) bool {
	_, ok := n.store.wishes[id]
	return ok
}

// write puts what waits into the log.
func (n *Node) write() {
	if n.held {
		n.outbox = nil
		return
	}
	if len(n.records) == 0 && !n.sync {
		return
	}
	l := n.store.log
	err := l.add(n.records)
	if err == nil && n.sync {
		err = l.sync()
	}
	switch {
	case err != nil && (n.mine || n.sync):
		n.hold(err)
		return
	case err != nil: // others have it
		n.records, n.lossy = nil, true
		n.suspend(err)
		return
	}
	n.records, n.mine, n.sync = nil, false, false
	if n.full != nil {
		return // mend looks after it
	}
	if err := l.reserve(); err != nil {
		n.suspend(err)
		return
	}
	if n.store.outgrown() {
		if err := n.store.rewrite(); err != nil {
			n.c.Log.Warn("the log cannot be written anew; it goes on growing", "err", err)
			n.store.lively = l.size // not again at once
		}
	}
}

// mend tries whether the state directory takes what waits, and goes on then.
func (n *Node) mend() {
	if err := n.store.mend(n.records, n.sync, n.lossy); err != nil {
		n.suspend(err)
		return
	}
	n.c.Log.Info("the state directory takes writes again", "path", n.c.StateDir)
	held := n.held
	n.fullness, n.records, n.mine, n.sync = fullness{}, nil, false, false
	if held && !n.quiet() {
		n.resume()
	}
}

// resume makes up for what was not done while this node could write nothing.
func (n *Node) resume() {
	n.stale = true
	n.refresh() // a new epoch first, if need be
	n.introduce()
	n.refresh()
	n.step(ipam.Members{Alive: n.alive})
	n.takeUp()
	if n.settled {
		n.step(ipam.Settled{At: time.Now().Unix()})
	} else if n.window <= n.now() {
		n.settle()
	}
}

// reply is a result that waits for the log, or what is said when it is written.
type reply struct {
	to     chan<- result
	result result
	node   *Node
	say    func()
}

func (r reply) done() {
	if r.say != nil {
		r.say()
		return
	}
	if r.result.err == nil {
		r.result.out.Version = r.node.view.Version()
	}
	r.to <- r.result
}
