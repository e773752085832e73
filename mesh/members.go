package mesh

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"meshnet/crdt"
	"meshnet/state"
)

const (
	// inboxLen and inboxBytes bound the messages that wait for the loop; more are dropped.
	inboxLen   = 4096
	inboxBytes = 32 << 20
	// membersMax bounds how many members are remembered, dead ones included.
	membersMax = 8192
	// dialMax bounds how long opening and using a stream may take.
	dialMax = 5 * time.Second
	// leaveMax bounds the wait for somebody to hear that we leave.
	leaveMax = 300 * time.Millisecond
)

// members is the shell around memberlist: who is there, and messages to and from them. Its callbacks
// run on memberlist's goroutines and never block.
type members struct {
	self   state.NodeID
	name   string
	epoch  atomic.Uint32
	digest atomic.Pointer[[16]byte]
	log    *slog.Logger
	list   *memberlist.Memberlist
	// sockets is nil where a test gave another transport.
	sockets *sockets

	inbox   chan []byte
	waiting atomic.Int64 // bytes in inbox
	changed chan struct{}
	count   atomic.Uint64 // of changes
	hints   chan hint
	dropped atomic.Uint64 // messages that found the inbox full

	mu    sync.Mutex
	known map[state.NodeID]*member
	twin  string // where a member with our id was seen; empty: nowhere
}

type member struct {
	node  memberlist.Node // a copy
	addr  netip.AddrPort
	name  string
	epoch crdt.Epoch
	state state.Liveness
	since time.Time
	rtt   time.Duration
}

// hint is part of a member's digest that came with a probe.
type hint struct {
	from   state.NodeID
	digest [8]byte
}

func newMembers(self state.NodeID, name string, epoch crdt.Epoch, log *slog.Logger) *members {
	m := &members{
		self: self, name: name, log: log,
		inbox:   make(chan []byte, inboxLen),
		changed: make(chan struct{}, 1),
		hints:   make(chan hint, 64),
		known:   map[state.NodeID]*member{},
	}
	m.epoch.Store(uint32(epoch))
	m.digest.Store(new([16]byte))
	return m
}

// open starts memberlist. It is to be closed by close.
func (m *members) open(ctx context.Context, c *Config) error {
	mc := memberlist.DefaultLANConfig()
	mc.Name = m.self.String()
	mc.BindAddr, mc.BindPort = c.Addr.String(), int(c.Port)
	mc.AdvertiseAddr, mc.AdvertisePort = c.Addr.String(), int(c.Port)
	mc.Label = clusterHash(c.Cluster)
	mc.SecretKey = c.Key
	mc.GossipInterval, mc.GossipNodes = 100*time.Millisecond, 4
	mc.ProbeInterval, mc.ProbeTimeout = 500*time.Millisecond, 200*time.Millisecond
	mc.SuspicionMult = 4
	mc.PushPullInterval = 60 * time.Second
	mc.DeadNodeReclaimTime = 10 * time.Second
	mc.TCPTimeout = dialMax
	mc.EnableCompression = false
	mc.Delegate, mc.Events, mc.Ping, mc.Alive, mc.Conflict = m, m, m, m, m
	mc.Logger = log.New(debugWriter{m.log}, "", 0)
	mc.Transport = c.Packets
	if mc.Transport == nil {
		at := netip.AddrPortFrom(c.Addr, c.Port)
		s, err := listen(ctx, at, m.log)
		if err != nil {
			return fmt.Errorf("listen on %s: %w; free the port or choose another with --port", at, err)
		}
		m.sockets = s
		mc.Transport = s
	}
	list, err := memberlist.Create(mc)
	if err != nil {
		return errors.Join(fmt.Errorf("start gossip: %w", err), mc.Transport.Shutdown())
	}
	m.list = list
	return nil
}

// close leaves the mesh on purpose, so that others need not find out.
func (m *members) close() {
	for _, p := range m.alive() {
		m.packet(p, frame(chanBye, m.self, nil))
	}
	if err := m.list.Leave(leaveMax); err != nil {
		m.log.Debug("nobody heard that this node leaves", "err", err)
	}
	if err := m.list.Shutdown(); err != nil {
		m.log.Debug("gossip did not shut down", "err", err)
	}
}

// alive returns the members that answer, this node excluded, ascending.
func (m *members) alive() []state.NodeID {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := make([]state.NodeID, 0, len(m.known))
	for id, p := range m.known {
		if p.state == state.Alive {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// all returns every member known, dead ones included.
func (m *members) all() map[state.NodeID]member {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[state.NodeID]member, len(m.known))
	for id, p := range m.known {
		all[id] = *p
	}
	return all
}

// target returns where to send to a member.
func (m *members) target(id state.NodeID) (memberlist.Node, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.known[id]
	if !ok || p.state != state.Alive {
		return memberlist.Node{}, false
	}
	return p.node, true
}

// packet sends a message that may get lost.
func (m *members) packet(to state.NodeID, b []byte) {
	n, ok := m.target(to)
	if !ok {
		return
	}
	if err := m.list.SendBestEffort(&n, b); err != nil {
		m.log.Debug("packet not sent", "peer", to, "err", err)
	}
}

func (m *members) changes() {
	m.count.Add(1)
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// left notes that a member said that it stops.
func (m *members) left(id state.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.known[id]; ok && p.state != state.Left {
		p.state, p.since = state.Left, time.Now()
		m.changes()
	}
}

// NotifyAlive keeps out who does not say what we expect of a member.
func (m *members) NotifyAlive(n *memberlist.Node) error {
	id, err := crdt.ParseNode(n.Name)
	if err != nil {
		return err
	}
	said, err := decodeMeta(n.Meta)
	if err != nil {
		return fmt.Errorf("metadata of %s: %w", n.Name, err)
	}
	if said.id != id {
		return fmt.Errorf("%s says it is %s", n.Name, said.id)
	}
	return nil
}

// NotifyJoin notes a member that is alive.
func (m *members) NotifyJoin(n *memberlist.Node) {
	id, err := crdt.ParseNode(n.Name)
	said, err2 := decodeMeta(n.Meta)
	addr, ok := netip.AddrFromSlice(n.Addr)
	if err != nil || err2 != nil || !ok || id == m.self {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.known[id]; !known && len(m.known) >= membersMax {
		for old, p := range m.known {
			if p.state != state.Alive {
				delete(m.known, old)
			}
		}
	}
	p := &member{node: *n, addr: netip.AddrPortFrom(addr.Unmap(), n.Port), name: said.name, epoch: said.epoch, since: time.Now()}
	if was, ok := m.known[id]; ok && was.state == state.Alive {
		p.since, p.rtt = was.since, was.rtt
	}
	m.known[id] = p
	m.changes()
}

// NotifyUpdate notes new metadata.
func (m *members) NotifyUpdate(n *memberlist.Node) { m.NotifyJoin(n) }

// NotifyLeave notes a member that is dead or has left.
func (m *members) NotifyLeave(n *memberlist.Node) {
	id, err := crdt.ParseNode(n.Name)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.known[id]; ok && p.state == state.Alive {
		p.state, p.since = state.Dead, time.Now()
		m.changes()
	}
}

// NotifyConflict notes two hosts with one id.
func (m *members) NotifyConflict(_, other *memberlist.Node) {
	if other.Name != m.self.String() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.twin = other.Address()
	m.changes()
}

// NodeMeta says who this node is.
func (m *members) NodeMeta(int) []byte {
	return meta{m.self, crdt.Epoch(m.epoch.Load()), m.name}.encode()
}

// NotifyMsg takes a message from another node. It keeps the slice, which neither our transport nor
// memberlist uses again.
func (m *members) NotifyMsg(b []byte) {
	if m.waiting.Add(int64(len(b))) <= inboxBytes {
		select {
		case m.inbox <- b:
			return
		default:
		}
	}
	m.waiting.Add(-int64(len(b)))
	m.dropped.Add(1)
}

// GetBroadcasts returns none: what is to reach all goes by package gossip.
func (m *members) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState returns none: what is to become equal does so by package gossip.
func (m *members) LocalState(bool) []byte { return nil }

// MergeRemoteState takes none.
func (m *members) MergeRemoteState([]byte, bool) {}

// AckPayload sends half of the digest with each answer to a probe.
func (m *members) AckPayload() []byte { return m.digest.Load()[:8] }

// NotifyPingComplete notes how far a member is, in time and in state.
func (m *members) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, payload []byte) {
	id, err := crdt.ParseNode(n.Name)
	if err != nil {
		return
	}
	m.mu.Lock()
	if p, ok := m.known[id]; ok {
		p.rtt = rtt
	}
	m.mu.Unlock()
	if len(payload) == 8 && [8]byte(payload) != [8]byte(m.digest.Load()[:8]) {
		select {
		case m.hints <- hint{id, [8]byte(payload)}:
		default:
		}
	}
}

// debugWriter turns memberlist's log lines into ours.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(b []byte) (int, error) {
	w.log.Debug(strings.TrimSpace(string(b)))
	return len(b), nil
}
