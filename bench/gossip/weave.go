package main

import (
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/weaveworks/mesh"
)

// weaveNode spreads a key by GossipBroadcast, as Weave Net's IPAM and DNS did.
type weaveNode struct {
	router *mesh.Router
	gossip mesh.Gossip
	seen   func(string)

	mu   sync.Mutex
	keys keys
}

func newWeave(p place) (node, error) {
	name, err := mesh.PeerNameFromString(fmt.Sprintf("02:00:00:00:%02x:%02x", p.index>>8, p.index&255))
	if err != nil {
		return nil, err
	}
	r, err := mesh.NewRouter(mesh.Config{
		Host: p.addr, Port: port, ProtocolMinVersion: mesh.ProtocolMinVersion, ConnLimit: 1024, PeerDiscovery: true,
	}, name, p.addr, nil, log.New(io.Discard, "", 0))
	if err != nil {
		return nil, err
	}
	n := &weaveNode{router: r, seen: p.seen, keys: keys{}}
	if n.gossip, err = r.NewGossip("keys", n); err != nil {
		return nil, err
	}
	r.Start()
	if p.seed != "" {
		seeds := []string{net.JoinHostPort(p.seed, strconv.Itoa(port))}
		for _, err := range r.ConnectionMaker.InitiateConnections(seeds, true) {
			return nil, err
		}
	}
	return n, nil
}

// formed asks for the full mesh of connections that weave's discovery of peers builds.
func (n *weaveNode) formed(want int) bool {
	ps := n.router.Peers.Descriptions()
	return len(ps) == want && !slices.ContainsFunc(ps, func(p mesh.PeerDescription) bool { return p.NumConnections != want-1 })
}

func (n *weaveNode) write(key string) error {
	n.add(keys{key: {}})
	n.gossip.GossipBroadcast(keys{key: {}})
	return nil
}

func (n *weaveNode) close() {
	if err := n.router.Stop(); err != nil {
		log.Print("stop node: ", err)
	}
}

// add returns those keys that are news.
func (n *weaveNode) add(ks keys) keys {
	n.mu.Lock()
	defer n.mu.Unlock()
	news := keys{}
	for k := range ks {
		if _, had := n.keys[k]; !had {
			n.keys[k], news[k] = struct{}{}, struct{}{}
		}
	}
	return news
}

func (n *weaveNode) hear(b []byte) keys {
	heard := keys{}
	for k := range strings.SplitSeq(string(b), "\n") {
		heard[k] = struct{}{}
	}
	news := n.add(heard)
	for k := range news {
		n.seen(k)
	}
	return news
}

func (n *weaveNode) OnGossipUnicast(mesh.PeerName, []byte) error { return nil }

func (n *weaveNode) OnGossipBroadcast(_ mesh.PeerName, b []byte) (mesh.GossipData, error) {
	return n.hear(b), nil
}

func (n *weaveNode) OnGossip(b []byte) (mesh.GossipData, error) {
	if news := n.hear(b); len(news) > 0 {
		return news, nil
	}
	return nil, nil
}

func (n *weaveNode) Gossip() mesh.GossipData {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.keys) == 0 {
		return nil
	}
	return maps.Clone(n.keys)
}

// keys is a set that only grows.
type keys map[string]struct{}

func (s keys) Encode() [][]byte {
	return [][]byte{[]byte(strings.Join(slices.Collect(maps.Keys(s)), "\n"))}
}

func (s keys) Merge(o mesh.GossipData) mesh.GossipData {
	m := maps.Clone(s)
	maps.Copy(m, o.(keys))
	return m
}
