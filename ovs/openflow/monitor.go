package openflow

import (
	"encoding/binary"
	"fmt"
)

// FlowMonitorRequest asks to be told, for as long as the connection lasts, whenever a flow of any table is added,
// removed or given other actions (ONF TS-012, section 7.3.5.19). Open vSwitch can since 2.16; an older one answers with
// an [Error].
type FlowMonitorRequest struct{ ID uint32 }

// FlowUpdates says what others than this connection did to flows. The first one, with the XID of the request, is
// empty; the others have XID 0.
type FlowUpdates struct {
	Cookies []uint64 // of the flows that were added, removed or changed, as often as they were
	Gap     bool     // the switch has more to tell than we read, and told some of it not
}

func (FlowMonitorRequest) message() {}
func (FlowUpdates) message()        {}

const (
	multipartFlowMonitor = 16

	// What to tell: additions, removals and changes of others, without the actions.
	monitorFlags = 1<<1 | 1<<2 | 1<<3

	updateAdded    = 1
	updateModified = 3
	updatePaused   = 5
)

func appendFlowMonitorRequest(b []byte, m FlowMonitorRequest) []byte {
	be := binary.BigEndian
	b = be.AppendUint16(b, multipartFlowMonitor)
	b = appendZeros(b, 6) // flags, padding
	b = be.AppendUint32(b, m.ID)
	b = be.AppendUint32(b, anyPort)
	b = be.AppendUint32(b, anyPort) // group
	b = be.AppendUint16(b, monitorFlags)
	b = append(b, anyTable, 0) // command: add
	return appendRawMatch(b, nil)
}

// decodeFlowMonitorRequest reads one after its kind.
func decodeFlowMonitorRequest(r *reader) (Message, error) {
	r.skip(6)
	m := FlowMonitorRequest{ID: r.u32()}
	r.skip(12)
	takeMatch(r)
	return m, r.end()
}

// appendFlowUpdates encodes updates as changes of flows without a match, for what plays the switch in a test.
func appendFlowUpdates(b []byte, m FlowUpdates) []byte {
	be := binary.BigEndian
	b = be.AppendUint16(b, multipartFlowMonitor)
	b = appendZeros(b, 6)
	for _, c := range m.Cookies {
		b = be.AppendUint16(b, 32)
		b = be.AppendUint16(b, updateModified)
		b = appendZeros(b, 12)
		b = be.AppendUint64(b, c)
		b = appendRawMatch(b, nil)
	}
	if m.Gap {
		b = be.AppendUint16(b, 8)
		b = be.AppendUint16(b, updatePaused)
		b = appendZeros(b, 4)
	}
	return b
}

// decodeFlowUpdates reads one. What this connection itself did comes in short and is left out.
func decodeFlowUpdates(r *reader) (Message, error) {
	r.skip(8)
	var m FlowUpdates
	for len(r.b) > 0 {
		n := int(r.u16())
		entry := &reader{b: r.take(n - 2)}
		switch event := entry.u16(); {
		case event >= updateAdded && event <= updateModified:
			entry.skip(12) // table, reason, timeouts, priority, padding
			m.Cookies = append(m.Cookies, entry.u64())
		case event == updatePaused:
			m.Gap = true
		}
		if r.err != nil || entry.err != nil {
			return nil, fmt.Errorf("update of %d bytes is cut short", n)
		}
	}
	return m, r.err
}
