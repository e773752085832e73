package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"meshnet/mesh"
	"meshnet/state"
)

// meshnetNode is one of ours, with a container on the network `web`. A write changes that container's
// endpoint record, or attaches one more container.
type meshnetNode struct {
	*mesh.Node
	p      place
	dir    string
	cancel context.CancelFunc
	ended  chan error
	attach bool
	web    state.NetworkID
	mine   state.EndpointID // the container's
	down   bool             // as it was written last
}

// change is what a key stands for where writes change records: the key, the endpoint and its state.
// The harness has one key under way at a time.
type change struct {
	key  string
	id   state.EndpointID
	down bool
}

var underWay atomic.Pointer[change]

var webSubnet = netip.MustParsePrefix("10.2.0.0/16")

func newMeshnet(p place) (node, error)       { return startMeshnet(p, false) }
func newMeshnetAttach(p place) (node, error) { return startMeshnet(p, true) }

func startMeshnet(p place, attach bool) (node, error) {
	dir, err := os.MkdirTemp("", "bench-gossip-")
	if err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	c := mesh.Config{
		StateDir: dir, Name: fmt.Sprintf("h%d", p.index), Addr: netip.MustParseAddr(p.addr), Port: port,
		TunnelPort: 14789, MTU: 1500, Version: "bench", DefaultSubnet: netip.MustParsePrefix("10.1.0.0/16"),
		MachineID: "/nonexistent", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if p.seed != "" {
		c.Join = []string{p.seed}
	}
	m, err := mesh.New(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &meshnetNode{Node: m, p: p, dir: dir, cancel: cancel, ended: make(chan error, 1), attach: attach}
	go func() { n.ended <- m.Run(ctx) }()
	go func() {
		for v := range m.Watch(ctx) {
			c := underWay.Load()
			if c == nil {
				continue
			}
			if e, ok := v.Endpoint(c.id); ok && e.Down == c.down {
				p.seen(c.key)
			}
		}
	}()
	return n, nil
}

func endpointOf(key string) state.EndpointID {
	h := fnv.New64a()
	io.WriteString(h, key)
	return state.EndpointID(h.Sum64())
}

// formed: it sees all members alive and the records of all.
func (n *meshnetNode) formed(want int) bool {
	alive := 0
	for _, p := range n.Peers() {
		if p.State == state.Alive {
			alive++
		}
	}
	return alive == want && len(n.View().Nodes()) == want
}

func (n *meshnetNode) digest() string { d := n.View().Digest(); return string(d[:]) }

func (n *meshnetNode) prepare(first bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if first {
		if _, err := n.Do(ctx, state.Create{Name: "web", Subnet: webSubnet}); err != nil {
			return err
		}
	}
	if err := until("the network is known", 10*time.Second, func() bool {
		nw, ok := n.View().ByName("web")
		if ok {
			n.web = nw.ID
		}
		return ok
	}); err != nil {
		return err
	}
	for {
		out, err := n.Do(ctx, n.attachment("prepare", 0))
		if n.mine = out.Endpoint; err == nil || ctx.Err() != nil {
			return err // what an overloaded machine refuses is asked for again
		}
	}
}

func (n *meshnetNode) prepared() bool {
	nw, ok := n.View().Network(n.web)
	return ok && len(nw.Members()) == len(n.View().Nodes())
}

func (n *meshnetNode) attachment(container string, id state.EndpointID) state.Attach {
	return state.Attach{ID: id, Network: n.web, Container: container, IfName: "eth1",
		Source: state.Source{Kind: state.SourcePath, Path: "/run/netns/" + container, Inode: 4026532000}}
}

func (n *meshnetNode) write(key string) error {
	if n.attach {
		underWay.Store(&change{key, endpointOf(key), false})
		_, err := n.Do(context.Background(), n.attachment(key, endpointOf(key)))
		return err
	}
	n.down = !n.down
	underWay.Store(&change{key, n.mine, n.down})
	_, err := n.Do(context.Background(), state.Report{ID: n.mine, Down: n.down})
	return err
}

func (n *meshnetNode) close() {
	n.cancel()
	if err := <-n.ended; err != nil {
		fmt.Fprintln(os.Stderr, "stop node:", err)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		fmt.Fprintln(os.Stderr, "stop node:", err)
	}
}
