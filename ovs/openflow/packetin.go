package openflow

import (
	"encoding/binary"
)

// SetConfig says how much of a packet that matches no flow the switch hands over, in bytes. Open vSwitch sends nothing
// unasked to a connection that somebody opened to it, packet-in among it, until this is not 0 (ovs-ofctl(8), monitor).
type SetConfig struct{ MissLen uint16 }

// PacketIn is a packet that the action [flow.Controller] handed over.
type PacketIn struct {
	Cookie uint64 // of the flow that did
	Data   []byte // an Ethernet frame without its check sequence
}

// reasonAction: a flow said so.
const reasonAction = 1

// appendPacketIn appends a packet-in that matched nothing in particular.
func appendPacketIn(b []byte, m PacketIn) []byte {
	b = binary.BigEndian.AppendUint32(b, noBuffer)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Data)))
	b = append(b, reasonAction, 0)
	b = binary.BigEndian.AppendUint64(b, m.Cookie)
	b = append(b, 0, 1, 0, 4, 0, 0, 0, 0) // an empty match, padded
	b = append(b, 0, 0)
	return append(b, m.Data...)
}

// decodePacketIn leaves out where the packet came from, which its flow knew.
func decodePacketIn(r *reader) (Message, error) {
	r.skip(8) // buffer, length, reason, table
	m := PacketIn{Cookie: r.u64()}
	r.skip(2)
	n := int(r.u16())
	r.skip(max(n+pad8(n)-4, 4)) // the match, whose length does not cover its padding
	r.skip(2)
	m.Data = r.rest()
	return m, r.err
}
