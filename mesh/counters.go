package mesh

import (
	"context"

	"meshnet/mesh/gossip"
)

// Counters is what a node counts from [Node.Run] on: for status and metrics.
type Counters struct {
	Gossip gossip.Counters
	// Packets and bytes of UDP with all that memberlist puts around messages, membership included,
	// and streams by TCP.
	PacketsIn, PacketsOut, BytesIn, BytesOut uint64
	StreamsIn, StreamsOut                    uint64
	// Faults counts errors of the sockets.
	Faults uint64
	// InboxDropped counts messages that came faster than they were taken in; StreamsDropped those
	// that waited for a stream in vain. What they said is found by comparing documents.
	InboxDropped, StreamsDropped uint64
}

// Counters returns what was counted so far. The node must run.
func (n *Node) Counters(ctx context.Context) (Counters, error) {
	var c Counters
	err := n.call(ctx, func() {
		c.Gossip = n.gossip.Counters()
		c.InboxDropped, c.StreamsDropped = n.members.dropped.Load(), n.streams.dropped.Load()
		if s := n.members.sockets; s != nil {
			t := &s.count
			c.PacketsIn, c.PacketsOut, c.BytesIn, c.BytesOut = t.packetsIn.Load(), t.packetsOut.Load(), t.bytesIn.Load(), t.bytesOut.Load()
			c.StreamsIn, c.StreamsOut, c.Faults = t.streamsIn.Load(), t.streamsOut.Load(), t.faults.Load()
		}
	})
	return c, err
}
