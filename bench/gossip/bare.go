package main

import (
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/memberlist"
)

// bareNode is a set of keys on bare memberlist: what to compare a machine with that knows better. A
// key that is new goes into memberlist's queue, the whole set into its push/pull.
type bareNode struct {
	list  *memberlist.Memberlist
	name  string
	queue *memberlist.TransmitLimitedQueue // nil: keys are only pushed
	push  bool
	seen  func(string)

	mu   sync.Mutex
	keys map[string]bool
}

// newQueue has memberlist's queue only, with its defaults for a LAN.
func newQueue(p place) (node, error) {
	return newBare(p, memberlist.DefaultLANConfig(), &bareNode{queue: &memberlist.TransmitLimitedQueue{}})
}

// newPushQueue has the writer also send the key to every member at once.
func newPushQueue(p place) (node, error) {
	c := memberlist.DefaultLANConfig()
	c.EnableCompression = false
	return newBare(p, c, &bareNode{queue: &memberlist.TransmitLimitedQueue{}, push: true})
}

// newPush has the writer send the key to every member at once, and nothing besides: who misses it
// has to wait for a push/pull. It is the least that a write to all can cost on memberlist.
func newPush(p place) (node, error) {
	c := memberlist.DefaultLANConfig()
	c.EnableCompression = false
	return newBare(p, c, &bareNode{push: true})
}

func newBare(p place, c *memberlist.Config, n *bareNode) (node, error) {
	n.name, n.seen, n.keys = p.addr, p.seen, map[string]bool{}
	if n.queue != nil {
		n.queue.RetransmitMult = c.RetransmitMult
		n.queue.NumNodes = func() int { return n.list.NumMembers() }
	}
	c.Name = p.addr
	c.BindAddr, c.BindPort, c.AdvertisePort = p.addr, port, port
	c.LogOutput = io.Discard
	c.Delegate = n
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, err
	}
	n.list = list
	if p.seed != "" {
		if _, err := list.Join([]string{net.JoinHostPort(p.seed, strconv.Itoa(port))}); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *bareNode) formed(want int) bool { return n.list.NumMembers() == want }

func (n *bareNode) close() { _ = n.list.Shutdown() } // it always returns nil

func (n *bareNode) write(key string) error {
	n.add(key)
	if n.push {
		for _, m := range n.list.Members() {
			if m.Name != n.name {
				if err := n.list.SendBestEffort(m, []byte(key)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// add queues a key that is news and reports whether it is.
func (n *bareNode) add(key string) bool {
	n.mu.Lock()
	had := n.keys[key]
	n.keys[key] = true
	n.mu.Unlock()
	if !had && n.queue != nil {
		n.queue.QueueBroadcast(broadcast(key))
	}
	return !had
}

func (n *bareNode) NotifyMsg(b []byte) {
	if key := string(b); n.add(key) {
		n.seen(key)
	}
}

func (n *bareNode) LocalState(bool) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return []byte(strings.Join(slices.Collect(maps.Keys(n.keys)), "\n"))
}

func (n *bareNode) MergeRemoteState(b []byte, _ bool) {
	for key := range strings.FieldsSeq(string(b)) {
		n.NotifyMsg([]byte(key))
	}
}

func (n *bareNode) NodeMeta(int) []byte { return nil }

func (n *bareNode) GetBroadcasts(overhead, limit int) [][]byte {
	if n.queue == nil {
		return nil
	}
	return n.queue.GetBroadcasts(overhead, limit)
}

type broadcast []byte

func (b broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                       { return b }
func (b broadcast) Finished()                             {}
func (b broadcast) UniqueBroadcast()                      {}
