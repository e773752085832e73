package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"meshnet/agent"
	"meshnet/plan"
	"meshnet/state"
)

// door is a model of the agent: it keeps networks and attachments, and decides as little as it can.
type door struct {
	mu       sync.Mutex
	networks []agent.Network
	attached []agent.Attachment
	waiting  []string // who never answers
	pending  []string
	passed   uint64 // inode of the last namespace handed over
}

const (
	node1 state.NodeID = 0xa1b2c3d4e5f60001
	node2 state.NodeID = 0xa1b2c3d4e5f60002
	node3 state.NodeID = 0xa1b2c3d4e5f60003
)

var born = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newDoor() *door {
	d := &door{}
	d.networks = []agent.Network{{
		Network: &state.Network{
			ID: 0x1111222233334444, Name: "default", VNI: 1,
			Def: state.Definition{
				Name: "default", Subnet: netip.MustParsePrefix("10.1.0.0/16"), Gateway: netip.MustParseAddr("10.1.0.1"),
			},
			Created: state.Created{At: born.Unix()},
		},
		MTU: 1450, Containers: 2,
	}}
	d.attached = []agent.Attachment{
		d.at(0x51, "c1", "default", "10.1.0.2", node1, agent.Ready),
		d.at(0x52, "c2", "default", "10.1.64.2", node2, agent.Ready),
	}
	d.attached[1].IfName = ""
	return d
}

func (d *door) at(id state.EndpointID, container, network, addr string, node state.NodeID, r agent.Readiness) agent.Attachment {
	a := netip.MustParseAddr(addr)
	for _, n := range d.networks {
		if n.Name == network {
			return agent.Attachment{
				Endpoint: id, Container: container, Network: n.ID, Shown: network,
				Addr: netip.PrefixFrom(a, n.Def.Subnet.Bits()), MAC: state.MACOf(a), IfName: "eth1", Gateway: n.Def.Gateway,
				Node: node, NodeName: fmt.Sprintf("h%d", node&0xf), State: r,
			}
		}
	}
	panic("no network " + network)
}

func (d *door) Nodes() []agent.Node {
	node := func(id state.NodeID, s state.Liveness, tunnel bool, rtt time.Duration) agent.Node {
		return agent.Node{Tunnel: tunnel, Peer: state.Peer{
			ID: id, Name: fmt.Sprintf("h%d", id&0xf), Addr: netip.AddrFrom4([4]byte{192, 168, 7, byte(id)}),
			State: s, RTT: rtt, Version: "0.1.0", Since: born.Add(time.Duration(id&0xf) * time.Minute), Self: id == node1,
		}}
	}
	nodes := []agent.Node{
		node(node1, state.Alive, false, 0), node(node2, state.Alive, true, 412*time.Microsecond),
		node(node3, state.Dead, false, 0),
	}
	nodes[1].Probed, nodes[1].Loss = true, 0.046875
	return nodes
}

func (d *door) Status(context.Context) agent.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := agent.Status{
		Node: d.Nodes()[0], Peers: d.Nodes()[1:], Converged: len(d.pending) == 0,
		Agreement: state.Agreement{Digest: [16]byte{0xab, 0xcd}, Alive: 2, Known: 3, Agreeing: 2},
		Choice: plan.Choice{
			Datapath: "netdev", Transport: state.KernelVXLAN, TSO: true, Private: true,
			Why: "no kernel module openvswitch on this host",
		},
		Underlay: plan.Underlay{Device: "eth0"}, Pending: d.pending,
		Warnings: []string{"no key: anybody on the segment can join"},
		Networks: len(d.networks), Attached: 1, FastPath: true, FastWhy: "the kernel has clsact, eBPF and bpf_redirect_peer",
		Traffic: []agent.Traffic{
			{Traffic: plan.Traffic{Device: "mc-0123456789", Fast: 1000, Bytes: 840_000, Slow: 7, Refused: 1, Returned: 6}, Shown: "default", Container: "c1"},
			{Traffic: plan.Traffic{Device: "mv-0123456789", Fast: 990, Bytes: 830_000, Broken: 1}, Shown: "default"},
		},
	}
	if len(d.pending) > 0 {
		s.Agreement.Agreeing, s.Differ = 1, []string{"h2"}
	}
	return s
}

func (d *door) Networks() []agent.Network {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.networks)
}

func (d *door) Inspect(name string) (agent.Network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.networks {
		if n.Name == name || n.ID.String() == name {
			for _, a := range d.attached {
				if a.Network == n.ID {
					n.Attachments = append(n.Attachments, a)
					n.Members = append(n.Members, a.NodeName)
				}
			}
			return n, nil
		}
	}
	return agent.Network{}, fmt.Errorf("%w: %s; see meshnet network ls", state.ErrNoNetwork, name)
}

func (d *door) PS(all bool) []agent.Attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.attached), func(a agent.Attachment) bool { return !all && a.Node != node1 })
}

func (d *door) Create(_ context.Context, w state.Create) (agent.Network, error) {
	if len(w.Name) > 63 {
		return agent.Network{}, fmt.Errorf("create network %s: %w name: it has %d characters; use 1 to 63", w.Name, state.ErrInvalid, len(w.Name))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.networks {
		if w.Subnet.Overlaps(n.Def.Subnet) && !w.Force {
			return agent.Network{}, fmt.Errorf("create network %s: %w: %v has a part of %v; choose another subnet or use --force",
				w.Name, state.ErrOverlap, n.Name, w.Subnet)
		}
	}
	n := agent.Network{MTU: 1450, Network: &state.Network{
		ID: 0x5555666677778888, Name: w.Name, VNI: 2,
		Def: state.Definition{
			Name: w.Name, Subnet: w.Subnet, Gateway: w.Gateway, Internal: w.Internal, Reserve: w.Reserve, Labels: w.Labels,
		},
		Created: state.Created{At: born.Unix()},
	}}
	if !w.Gateway.IsValid() && !w.NoGateway {
		n.Def.Gateway = w.Subnet.Addr().Next()
	}
	d.networks = append(d.networks, n)
	return n, nil
}

func (d *door) RemoveNetwork(_ context.Context, name string, force bool) (agent.Network, error) {
	n, err := d.Inspect(name)
	if err != nil {
		return n, err
	}
	if len(n.Attachments) > 0 && !force {
		var users []string
		for _, a := range n.Attachments {
			users = append(users, a.Container+" on "+a.NodeName)
		}
		return n, fmt.Errorf("remove network %s: %w by %s; detach them or use --force", name, state.ErrNetworkInUse, strings.Join(users, ", "))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.networks = slices.DeleteFunc(d.networks, func(x agent.Network) bool { return x.ID == n.ID })
	return n, nil
}

func (d *door) Spaces(_ context.Context, name string) ([]agent.Space, error) {
	n, err := d.Inspect(name)
	if err != nil {
		return nil, err
	}
	return []agent.Space{{
		Network: n.Network, Size: 253, Used: 1,
		Blocks: []agent.Block{
			{Prefix: netip.MustParsePrefix("10.2.0.0/26"), Owner: "h1", OwnerID: node1, Used: 1, Free: 61},
			{Prefix: netip.MustParsePrefix("10.2.0.64/26"), Owner: "h3", OwnerID: node3, State: agent.Quarantined, Free: 64,
				Heir: "h1", Left: 90 * time.Second, Waits: []string{"h2"}},
		},
		Addresses: []agent.Address{{Addr: netip.MustParseAddr("10.2.0.5"), Container: "c1", Node: "h1", Since: 1700000000, Shown: true}},
	}}, nil
}

func (d *door) Conflicts() []agent.Conflict {
	return []agent.Conflict{{Shown: "web", Conflict: state.Conflict{
		Kind: state.ConflictAddress, What: "10.2.0.5", Network: 7, Kept: "c1 on h1", Lost: "c2 on h2",
	}}}
}

func (d *door) RemovePeer(_ context.Context, name, _ string, _ bool) (state.Lost, bool, error) {
	if name != "h3" {
		return state.Lost{}, false, state.Refuse(state.ErrNoNode, "there is no node %s; see 'meshnet nodes'", name)
	}
	return state.Lost{Node: node3, Name: "h3"}, false, nil
}

func (d *door) Leave(context.Context) error { return nil }

func (d *door) Attach(_ context.Context, r agent.AttachRequest) (agent.Attachment, []string, error) {
	n, err := d.Inspect(r.Network)
	if err != nil {
		return agent.Attachment{}, nil, err
	}
	if r.Container.NS == nil && !strings.HasPrefix(r.Container.Name, "c") {
		return agent.Attachment{}, nil, fmt.Errorf("%w: %s; docker ps and ip netns list show those there are",
			state.ErrNoContainer, r.Container.Name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := r.Container.NS; f != nil {
		if d.passed, err = inode(f.Name(), f); err != nil {
			return agent.Attachment{}, nil, err
		}
	}
	addr := n.Def.Subnet.Addr().Next().Next()
	if r.Addr.IsValid() {
		addr = r.Addr
	}
	a := d.at(0x99, r.Container.Name, n.Name, addr.String(), node1, agent.Ready)
	a.Names = r.Names
	d.attached = append(d.attached, a)
	return a, d.waiting, nil
}

func (d *door) Detach(_ context.Context, r agent.Ref, network string) ([]agent.Attachment, error) {
	if network != "" {
		if _, err := d.Inspect(network); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var off []agent.Attachment
	d.attached = slices.DeleteFunc(d.attached, func(a agent.Attachment) bool {
		if a.Container == r.Name && a.Node == node1 && (network == "" || a.Shown == network) {
			off = append(off, a)
			return true
		}
		return false
	})
	return off, nil
}
