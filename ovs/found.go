package ovs

import (
	"fmt"
	"strconv"

	"meshnet/plan"
	"meshnet/state"
)

// found reads what a later plan has to know. Port numbers are known by our marks. Without an error
// its maps are not nil.
func (d *database) found(bridge string) (plan.Found, error) {
	have := d.observe(bridge)
	if have.root == nil {
		return plan.Found{}, fmt.Errorf("read port numbers: %w", errLost)
	}
	f := plan.Found{
		Ports: map[state.EndpointID]uint32{}, Tunnels: map[state.NodeID]uint32{}, Devices: map[state.NetworkID]uint32{},
	}
	for _, p := range have.ports {
		number := p.number()
		if number == 0 {
			continue
		}
		if _, ok := p.iface.ExternalIDs[markGateway]; ok {
			f.Gateway = number
		}
		for mark, value := range p.iface.ExternalIDs {
			id, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				continue // nobody of ours wrote it; the next Apply puts it right
			}
			switch mark {
			case markEndpoint:
				f.Ports[state.EndpointID(id)] = number
			case markPeer:
				f.Tunnels[state.NodeID(id)] = number
			case markNetwork:
				f.Devices[state.NetworkID(id)] = number
			}
		}
	}
	f.Features.TSO = have.root.OtherConfig[keyTSO] == "true"
	return f, nil
}
