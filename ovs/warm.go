package ovs

import (
	"context"
	"fmt"
	"time"

	"meshnet/ovs/flow"
	"meshnet/ovs/openflow"
	"meshnet/plan"
)

// warmEvery is how often a frame goes through each tunnel of the userspace datapath. ovs-vswitchd
// forgets a neighbour that it did not need for 15 minutes.
const warmEvery = 5 * time.Minute

// warmFrame is an Ethernet frame (IEEE 802 local experimental EtherType 1) to nobody. Sent with VNI
// 0, which no network has, it matches nothing at its peer.
var warmFrame = [60]byte{0: 0x02, 6: 0x02, 12: 0x88, 13: 0xb5}

// warmth is when a frame last went through a tunnel, by the tunnel's port, on one connection: an
// ovs-vswitchd that was restarted knows no neighbours.
type warmth struct {
	conn *ofConn
	at   map[plan.Tunnel]time.Time
}

// warm sends a frame through each tunnel that saw none for a while. Where ovs-vswitchd encapsulates
// it also asks for the MAC of the tunnel's next hop, and drops the packet that made it ask: that
// shall not be a container's.
func (a *apply) warm(ctx context.Context) {
	conn, err := a.s.openflow(ctx)
	if err != nil {
		return // told already
	}
	if a.s.warmth.conn != conn {
		a.s.warmth = warmth{conn: conn, at: map[plan.Tunnel]time.Time{}}
	}
	for _, t := range a.plan.Tunnels {
		if time.Since(a.s.warmth.at[t]) < warmEvery {
			continue
		}
		if err := conn.packetOut(ctx, t.OFPort); err != nil {
			a.failed("warm tunnel "+t.Name, err)
			return
		}
		a.s.warmth.at[t] = time.Now()
	}
}

// packetOut sends [warmFrame] through a tunnel.
func (c *ofConn) packetOut(ctx context.Context, port uint32) error {
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	end, err := c.begin(ctx)
	if err != nil {
		return fmt.Errorf("send a packet: %w", err)
	}
	defer end()
	c.mu.Lock()
	c.xid++
	xid := c.xid
	c.mu.Unlock()
	return c.send(xid, openflow.PacketOut{
		Actions: []flow.Action{flow.SetField{Field: flow.FieldTunID, Value: 0}, flow.Output{Port: port}},
		Data:    warmFrame[:],
	})
}
