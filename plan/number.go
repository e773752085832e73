package plan

import (
	"cmp"
	"iter"
	"maps"
	"slices"

	"meshnet/state"
)

// span is a range of OpenFlow port numbers, both ends included. New ports are numbered from ranges
// of their own, so that a dump of flows can be read: 1 to 39999 is a container, 40001 to 49999 the
// tunnel to a peer, 50001 to 59999 the VXLAN device of a network, 60001 the gateway.
type span struct{ first, last uint32 }

var (
	containerPorts = span{1, 39999}
	tunnelPorts    = span{40001, 49999}
	devicePorts    = span{50001, 59999}
	gatewayPorts   = span{60001, 60009}
)

// portMax is the largest number that OVS gives a port on request (ovs-vswitchd.conf.db(5),
// ofport_request).
const portMax = 65279

// number gives every container, tunnel and device of the plan its port number: the one that the
// switch was found to use, else that of the plan before, else the lowest free one. A port that the
// switch still has keeps its number from others until it is gone.
func (p *planner) number() {
	var endpoints []state.EndpointID
	var networks []state.NetworkID
	for _, m := range p.members {
		networks = append(networks, m.net.ID)
		for _, e := range m.local {
			if !p.facts.Sandboxes[e.ID].Host {
				endpoints = append(endpoints, e.ID)
			}
		}
	}
	var peers []state.NodeID
	if p.host.Transport == state.KernelVXLAN {
		slices.Sort(networks)
	} else {
		networks, peers = nil, p.ends()
	}
	slices.Sort(endpoints)
	ports, tunnels, devices := p.last.numbers()
	found, used := p.facts.Found, numbers{}
	// What is settled comes before what may be chosen.
	p.ports = keep(used, endpoints, found.Ports, nil)
	p.peers = keep(used, peers, found.Tunnels, nil)
	p.devices = keep(used, networks, found.Devices, nil)
	gateways := []string{gatewayName}
	gateway := keep(used, gateways, map[string]uint32{gatewayName: found.Gateway}, nil)
	used.add(maps.Values(found.Ports))
	used.add(maps.Values(found.Tunnels))
	used.add(maps.Values(found.Devices))
	p.ports = keep(used, endpoints, ports, p.ports)
	p.peers = keep(used, peers, tunnels, p.peers)
	p.devices = keep(used, networks, devices, p.devices)
	fill(used, endpoints, containerPorts, p.ports)
	fill(used, peers, tunnelPorts, p.peers)
	fill(used, networks, devicePorts, p.devices)
	if p.last.Gateway != nil {
		gateway = keep(used, gateways, map[string]uint32{gatewayName: p.last.Gateway.OFPort}, gateway)
	}
	fill(used, gateways, gatewayPorts, gateway)
	p.gateway = gateway[gatewayName]
}

// numbers returns the port numbers of a plan.
func (h *Host) numbers() (map[state.EndpointID]uint32, map[state.NodeID]uint32, map[state.NetworkID]uint32) {
	ports := map[state.EndpointID]uint32{}
	tunnels := map[state.NodeID]uint32{}
	devices := map[state.NetworkID]uint32{}
	for id, n := range h.Networks {
		for _, port := range n.Ports {
			ports[port.Endpoint] = port.OFPort
		}
		if n.Device != nil {
			devices[id] = n.Device.OFPort
		}
	}
	for _, t := range h.Tunnels {
		tunnels[t.Peer] = t.OFPort
	}
	return ports, tunnels, devices
}

// numbers are those in use: they are not given again.
type numbers map[uint32]bool

func (used numbers) add(ns iter.Seq[uint32]) {
	for n := range ns {
		used[n] = true
	}
}

// keep adds to got, which may be nil, the numbers that ids without one had before. Of two that had
// one number the first in order keeps it.
func keep[ID cmp.Ordered](used numbers, ids []ID, before, got map[ID]uint32) map[ID]uint32 {
	if got == nil {
		got = make(map[ID]uint32, len(ids))
	}
	for _, id := range ids {
		if n := before[id]; got[id] == 0 && n != 0 && n <= portMax && !used[n] {
			got[id], used[n] = n, true
		}
	}
	return got
}

// fill adds to got the lowest free numbers of a span for ids without one, as far as they go.
func fill[ID cmp.Ordered](used numbers, ids []ID, in span, got map[ID]uint32) {
	next := in.first
	for _, id := range ids {
		if got[id] != 0 {
			continue
		}
		for next <= in.last && used[next] {
			next++
		}
		if next > in.last {
			return
		}
		got[id], used[next] = next, true
	}
}
