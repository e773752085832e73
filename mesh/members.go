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
	name   string // what people call this node
	as     string // what memberlist calls it
	epoch  atomic.Uint32
	digest atomic.Pointer[[16]byte]
	log    *slog.Logger
	list   *memberlist.Memberlist
	// sockets is nil where a test gave another transport.
	sockets *sockets

	inbox   chan []byte
	waiting atomic.Int64  // bytes in inbox
	changed chan struct{} // for the loop, and
	moved   chan struct{} // for rejoin: who is there has changed
	hints   chan hint
	dropped atomic.Uint64 // messages that found the inbox full

	mu sync.Mutex
	// known has of each id the member to send to; lives all members by memberlist's name for them, of
	// which an id has a second one for a while when its host changed its address.
	known map[state.NodeID]*member
	lives map[string]*member
}

type member struct {
	id    state.NodeID
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
		moved:   make(chan struct{}, 1),
		hints:   make(chan hint, 64),
		known:   map[state.NodeID]*member{},
		lives:   map[string]*member{},
	}
	m.epoch.Store(uint32(epoch))
	m.digest.Store(new([16]byte))
	return m
}

// open starts memberlist. It is to be closed by close.
func (m *members) open(ctx context.Context, c *Config) error {
	mc := memberlist.DefaultLANConfig()
	m.as = memberName(m.self, netip.AddrPortFrom(c.Addr, c.Port))
	mc.Name = m.as
	mc.BindAddr, mc.BindPort = c.Addr.String(), int(c.Port)
	mc.AdvertiseAddr, mc.AdvertisePort = c.Addr.String(), int(c.Port)
	mc.Label = clusterHash(c.Cluster)
	mc.SecretKey = c.Key
	mc.GossipInterval, mc.GossipNodes = 200*time.Millisecond, 8
	mc.ProbeInterval, mc.ProbeTimeout = 500*time.Millisecond, 200*time.Millisecond
	mc.SuspicionMult = 4
	mc.PushPullInterval = 60 * time.Second
	mc.DeadNodeReclaimTime = 10 * time.Second
	mc.TCPTimeout = dialMax
	mc.EnableCompression = false
	mc.Delegate, mc.Events, mc.Ping, mc.Alive = m, m, m, m
	mc.Logger = log.New(debugWriter{m.log}, "", 0)
	mc.Transport = c.Packets
	if mc.Transport == nil {
		at := netip.AddrPortFrom(c.Addr, c.Port)
		s, err := listen(ctx, at, m.log)
		if err != nil {
			return fmt.Errorf("listen on %s: %w; free the port or choose another with --port", at, err)
		}
		if len(c.Key) == 0 {
			s.start(mc.Label, m.NotifyMsg)
		} else {
			s.start(mc.Label, nil) // memberlist decrypts
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
	var byes []outgoing
	for _, p := range m.alive() {
		byes = append(byes, outgoing{p, frame(chanBye, m.self, []byte(m.as))})
	}
	m.packets(byes)
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

// targets returns where to send to a member: to all of its lives that answer, as it is not known at once
// which of them is dead. Of them only id, node and addr may be read without the lock; they never change.
func (m *members) targets(id state.NodeID) (to []*member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.known[id]
	if !ok || p.state != state.Alive {
		return nil
	}
	to = append(to, p)
	if len(m.lives) == len(m.known) {
		return to
	}
	for _, q := range m.lives {
		if q.id == id && q != p && q.state == state.Alive {
			to = append(to, q)
		}
	}
	return to
}

// packets sends messages that may get lost.
func (m *members) packets(ms []outgoing) {
	plain := m.sockets != nil && m.sockets.plain()
	var out []userPacket
	for _, o := range ms {
		for _, n := range m.targets(o.to) {
			if plain {
				out = append(out, userPacket{n.addr, o.body})
			} else if err := m.list.SendBestEffort(&n.node, o.body); err != nil {
				m.log.Debug("packet not sent", "peer", o.to, "err", err)
			}
		}
	}
	if len(out) > 0 {
		m.sockets.sendUser(out)
	}
}

// packetTo sends a message to an address, whoever is there.
func (m *members) packetTo(at netip.AddrPort, b []byte) {
	if err := m.list.SendToAddress(memberlist.Address{Addr: at.String()}, b); err != nil {
		m.log.Debug("packet not sent", "addr", at, "err", err)
	}
}

// twins returns the members at other addresses that have this node's id: what others still remember of
// it at an address that it had, or a second host with its identity.
func (m *members) twins() (twins []memberlist.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.lives {
		if p.id == m.self && p.state == state.Alive {
			twins = append(twins, p.node)
		}
	}
	slices.SortFunc(twins, func(a, b memberlist.Node) int { return strings.Compare(a.Name, b.Name) })
	return twins
}

func (m *members) changes() {
	for _, c := range []chan struct{}{m.changed, m.moved} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// left notes that a member said that it stops: by its name, as its host may be there again at another
// address already.
func (m *members) left(id state.NodeID, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.lives[name]
	if !ok || p.id != id || p.state == state.Left {
		return
	}
	p.state, p.since = state.Left, time.Now()
	if m.known[id] == p {
		m.instead(p)
		m.changes()
	}
}

// instead makes another life of a node its member, where one is alive.
func (m *members) instead(p *member) {
	for _, q := range m.lives {
		if q.id == p.id && q.state == state.Alive {
			m.known[p.id] = q
			m.log.Info("peer has another address now", "peer", p.id, "addr", q.addr)
			return
		}
	}
}

// memberName is what memberlist calls a node. With the address in it a host that changed its address
// is a new member at once, which memberlist would refuse until the old one is long dead.
func memberName(id state.NodeID, at netip.AddrPort) string { return id.String() + "@" + at.String() }

// memberID returns whose name it is.
func memberID(name string) (state.NodeID, error) {
	id, _, _ := strings.Cut(name, "@")
	return crdt.ParseNode(id)
}

// NotifyAlive keeps out who does not say what we expect of a member.
func (m *members) NotifyAlive(n *memberlist.Node) error {
	id, err := memberID(n.Name)
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
	id, err := memberID(n.Name)
	said, err2 := decodeMeta(n.Meta)
	addr, ok := netip.AddrFromSlice(n.Addr)
	if err != nil || err2 != nil || !ok || n.Name == m.as {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.lives[n.Name]; !known && len(m.lives) >= membersMax {
		m.clear()
	}
	p := &member{id: id, node: *n, addr: netip.AddrPortFrom(addr.Unmap(), n.Port), name: said.name, epoch: said.epoch, since: time.Now()}
	if was, ok := m.lives[n.Name]; ok && was.state == state.Alive {
		p.since, p.rtt = was.since, was.rtt
	}
	m.lives[n.Name] = p
	if id != m.self {
		m.known[id] = p
	}
	m.changes()
}

// clear forgets who is not alive.
func (m *members) clear() {
	for name, p := range m.lives {
		if p.state != state.Alive {
			delete(m.lives, name)
			if m.known[p.id] == p {
				delete(m.known, p.id)
			}
		}
	}
}

// NotifyUpdate notes new metadata.
func (m *members) NotifyUpdate(n *memberlist.Node) { m.NotifyJoin(n) }

// NotifyLeave notes a member that is dead or has left. Where its host lives on at another address, that
// is the member from now on.
func (m *members) NotifyLeave(n *memberlist.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.lives[n.Name]
	if !ok {
		return
	}
	if p.state == state.Alive {
		p.state, p.since = state.Dead, time.Now()
		m.changes()
	}
	if m.known[p.id] == p {
		m.instead(p)
	}
	if m.known[p.id] != p {
		delete(m.lives, n.Name)
		m.changes()
	}
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
	id, err := memberID(n.Name)
	if err != nil || id == m.self {
		return
	}
	m.mu.Lock()
	if p, ok := m.lives[n.Name]; ok {
		p.rtt = rtt
		// It said that it stops, and was there again before memberlist missed it: nothing else tells.
		if p.state == state.Left && time.Since(p.since) > 2*leaveMax {
			p.state, p.since = state.Alive, time.Now()
			m.known[id] = p
			m.changes()
		}
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
