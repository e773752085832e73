package openflow

import (
	"encoding/binary"

	"meshnet/ovs/flow"
)

// PacketOut has the switch carry out actions on a packet that the controller made. The switch answers only with an
// [Error], if it refuses it.
type PacketOut struct {
	Actions []flow.Action // no [flow.Goto]
	Data    []byte        // an Ethernet frame without its check sequence
}

// portController is where the packet is said to have come from.
const portController = 0xfffffffd

func appendPacketOut(b []byte, m PacketOut) ([]byte, error) {
	b = binary.BigEndian.AppendUint32(b, noBuffer)
	b = binary.BigEndian.AppendUint32(b, portController)
	size := len(b)
	b = appendZeros(b, 8) // length of the actions, padding
	start := len(b)
	for _, a := range m.Actions {
		var err error
		if b, err = appendAction(b, a); err != nil {
			return b, err
		}
	}
	binary.BigEndian.PutUint16(b[size:], uint16(len(b)-start))
	return append(b, m.Data...), nil
}

func decodePacketOut(r *reader) (Message, error) {
	r.skip(8) // buffer, port
	n := int(r.u16())
	r.skip(6)
	var m PacketOut
	for actions := (&reader{b: r.take(n)}); len(actions.b) > 0; {
		a, err := decodeAction(actions)
		if err != nil {
			return nil, err
		}
		m.Actions = append(m.Actions, a)
	}
	m.Data = r.rest()
	return m, r.err
}
