package ovs

import (
	"context"
	"fmt"
	"time"

	"meshnet/ovs/flow"
	"meshnet/ovs/openflow"
	"meshnet/plan"
	"meshnet/state"
)

// warmAfter is how long after the first frame through a tunnel of the userspace datapath another goes,
// the longest for ever: ovs-vswitchd forgets a neighbour that it did not need for 15 minutes. The first
// may not be enough: it learns a neighbour from an ARP reply that it has to look at, and one that a
// datapath flow of before the tunnel passes on it does not see.
var warmAfter = [...]time.Duration{50 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond, 2 * time.Second, 5 * time.Minute}

// warmFrame is an Ethernet frame (IEEE 802 local experimental EtherType 1) to nobody, with VNI 0, which no network
// has. A peer may return it as it does probes; package echo drops what is no answer to one.
var warmFrame = [60]byte{0: 0x02, 6: 0x02, 12: 0x88, 13: 0xb5}

// warmth is how often frames went through a tunnel and when the next is due, by the tunnel's port, on
// one connection: an ovs-vswitchd that was restarted knows no neighbours.
type warmth struct {
	conn *ofConn
	of   map[plan.Tunnel]warmed
}

type warmed struct {
	sent int
	due  time.Time
}

// warm sends a frame through each tunnel for which one is due. Where ovs-vswitchd encapsulates it also
// asks for the MAC of the tunnel's next hop, and drops the packet that made it ask: that shall not be a
// container's. It returns how long nothing is due. The caller holds s.applying.
func (s *Switch) warm(ctx context.Context, h *plan.Host) (time.Duration, error) {
	idle := warmAfter[len(warmAfter)-1]
	if h == nil || h.Transport != state.OVSUserspace {
		return idle, nil
	}
	conn, err := s.openflow(ctx)
	if err != nil {
		return idle, nil // Apply tells of it
	}
	if s.warmth.conn != conn {
		s.warmth = warmth{conn: conn, of: map[plan.Tunnel]warmed{}}
	}
	now := time.Now()
	for _, t := range h.Tunnels {
		w := s.warmth.of[t]
		if !now.Before(w.due) {
			if err := conn.packetOut(ctx, t.OFPort); err != nil {
				return idle, fmt.Errorf("warm tunnel %s: %w", t.Name, err)
			}
			w.due = now.Add(warmAfter[min(w.sent, len(warmAfter)-1)])
			w.sent++
			s.warmth.of[t] = w
		}
		idle = min(idle, w.due.Sub(now))
	}
	return idle, nil
}

// keepWarm warms the tunnels of the last plan again when it is due, until ctx ends.
func (s *Switch) keepWarm(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.cold:
		case <-timer.C:
		}
		s.applying.Lock()
		next, _ := s.warm(ctx, s.last) // what fails here is tried again
		s.applying.Unlock()
		timer.Reset(next)
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
