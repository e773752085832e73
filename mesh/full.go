package mesh

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"meshnet/ipam"
)

// stuckPause is how often it is tried whether the log can be written again.
const stuckPause = time.Second

// writeLog writes and syncs what waits to be. Where the disk is full the node keeps running and promises
// nothing: what was under way is refused and taken back, what others say is merged and not kept, and
// this node says nothing of what it holds.
func (n *Node) writeLog() error {
	if n.stuck != nil && n.now() < n.retry {
		n.hush()
		return nil
	}
	if len(n.records) > 0 {
		err := n.store.log.add(n.records)
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			n.getStuck(err)
			return nil
		}
		if err != nil {
			return err
		}
		n.records, n.mine = nil, false
	}
	if n.sync {
		if err := n.store.log.sync(); err != nil {
			return err
		}
		n.sync = false
	}
	if n.stuck != nil {
		n.c.Log.Info("log can be written again")
		n.stuck, n.retry = nil, 0
		n.rewant = n.now() + time.Millisecond
		n.step(ipam.Members{Alive: n.alive})
		n.step(ipam.Saw{View: n.view})
	}
	return nil
}

// getStuck refuses what was under way and takes it back, which nobody was told of yet.
func (n *Node) getStuck(err error) {
	n.retry = n.now() + stuckPause
	if n.stuck != nil {
		n.hush()
		return
	}
	n.c.Log.Error("log cannot be written; nothing is attached, detached or promised until it can", "err", err)
	stuck := fmt.Errorf("keep what was asked for: %w", err)
	after := n.after
	n.after = nil
	for id, w := range n.wants {
		if len(w.replies) > 0 {
			delete(n.wants, id)
			n.step(ipam.GiveUp{ID: id})
			for _, to := range w.replies {
				n.answer(to, result{err: stuck})
			}
		}
	}
	for _, r := range after {
		if r.say != nil {
			continue
		}
		if _, kept := n.store.wishes[r.result.out.Endpoint]; kept && r.result.err == nil && !r.result.out.Again {
			n.detach(r.result.out.Endpoint)
		}
		if r.result.err == nil {
			r.result = result{err: stuck}
		}
		n.after = append(n.after, r)
	}
	n.stuck = stuck
	n.refresh()
	n.hush()
}

// hush lets go what would tell others of what is not in the log. They ask again.
func (n *Node) hush() {
	n.outbox = slices.DeleteFunc(n.outbox, func(m outgoing) bool {
		c := channel(m.body[1])
		return c == chanGossip || c == chanIPAM
	})
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
