package main

import (
	"io"
	"net"
	"strconv"

	"github.com/containerd/log"
	"github.com/hashicorp/serf/serf"
	"github.com/moby/moby/v2/daemon/libnetwork/networkdb"
)

// ours is compared with the others.
const ours = "meshnet"

// order is the systems as they are measured and printed. Of slow ones fewer writes are measured.
var order = []struct {
	name  string
	start func(place) (node, error)
	slow  bool
}{
	{ours, newMeshnet, false},
	{ours + " attach", newMeshnetAttach, false},
	{"weave mesh", newWeave, false},
	{"push only", newPush, false},
	{"push + memberlist queue", newPushQueue, false},
	{"memberlist", newQueue, true},
	{"serf", newSerf, true},
	{"networkdb", newNetworkDB, true},
}

// fewer says how many writes are measured of a system where others' are so many.
func fewer(system string, writes int) int {
	for _, s := range order {
		if s.name == system && s.slow {
			return min(writes, max(slowWrites, writes/20))
		}
	}
	return writes
}

const slowWrites = 10

var systems = func() map[string]func(place) (node, error) {
	m := map[string]func(place) (node, error){}
	for _, s := range order {
		m[s.name] = s.start
	}
	return m
}()

func names() []string {
	var ns []string
	for _, s := range order {
		ns = append(ns, s.name)
	}
	return ns
}

// serfNode spreads a key as a user event.
type serfNode struct{ s *serf.Serf }

func newSerf(p place) (node, error) {
	events := make(chan serf.Event, 4096)
	c := serf.DefaultConfig()
	c.NodeName = p.addr
	c.EventCh = events
	c.LogOutput = io.Discard
	c.MemberlistConfig.BindAddr, c.MemberlistConfig.BindPort, c.MemberlistConfig.AdvertisePort = p.addr, port, port
	c.MemberlistConfig.LogOutput = io.Discard
	s, err := serf.Create(c)
	if err != nil {
		return nil, err
	}
	go func() {
		for e := range events {
			if u, ok := e.(serf.UserEvent); ok {
				p.seen(u.Name)
			}
		}
	}()
	if p.seed != "" {
		if _, err := s.Join([]string{net.JoinHostPort(p.seed, strconv.Itoa(port))}, false); err != nil {
			return nil, err
		}
	}
	return serfNode{s}, nil
}

func (n serfNode) formed(want int) bool   { return n.s.Memberlist().NumMembers() == want }
func (n serfNode) write(key string) error { return n.s.UserEvent(key, nil, false) }
func (n serfNode) close()                 { _ = n.s.Shutdown() } // the process ends anyway

const (
	swarmNetwork = "web"
	swarmTable   = "endpoint_table"
)

// swarmNode spreads a key as a table entry of one network that all are on, as Swarm's overlay driver
// spreads its endpoints.
type swarmNode struct{ db *networkdb.NetworkDB }

func newNetworkDB(p place) (node, error) {
	log.L.Logger.SetOutput(io.Discard)
	c := networkdb.DefaultConfig()
	c.BindAddr, c.AdvertiseAddr, c.BindPort = p.addr, p.addr, port
	db, err := networkdb.New(c)
	if err != nil {
		return nil, err
	}
	if p.seed != "" {
		if err := db.Join([]string{net.JoinHostPort(p.seed, strconv.Itoa(port))}); err != nil {
			return nil, err
		}
	}
	if err := db.JoinNetwork(swarmNetwork); err != nil {
		return nil, err
	}
	events, _ := db.Watch(swarmTable, swarmNetwork)
	go func() {
		for e := range events.C {
			if w, ok := e.(networkdb.WatchEvent); ok && w.IsCreate() {
				p.seen(w.Key)
			}
		}
	}()
	return swarmNode{db}, nil
}

func (n swarmNode) formed(want int) bool {
	return len(n.db.ClusterPeers()) == want && len(n.db.Peers(swarmNetwork)) == want
}

func (n swarmNode) write(key string) error {
	return n.db.CreateEntry(swarmTable, swarmNetwork, key, []byte("v"))
}

func (n swarmNode) close() {} // its Close waits for a broadcast; the process ends anyway
