package openflow

import (
	"encoding/binary"
	"fmt"
)

// FlowCountRequest asks how many flows of all tables have a cookie that equals Cookie under CookieMask
// (an aggregate request, ONF TS-012, section 7.3.5.4).
type FlowCountRequest struct{ Cookie, CookieMask uint64 }

// FlowCountReply is the answer to [FlowCountRequest].
type FlowCountReply struct{ Flows uint32 }

func (FlowCountRequest) message() {}
func (FlowCountReply) message()   {}

// The kinds of multipart messages.
const (
	multipartFlow      = 1
	multipartAggregate = 2
)

func appendMultipartRequest(b []byte, kind uint16, cookie, mask uint64) []byte {
	be := binary.BigEndian
	b = be.AppendUint16(b, kind)
	b = appendZeros(b, 6) // flags, padding
	b = append(b, anyTable, 0, 0, 0)
	b = be.AppendUint32(b, anyPort)
	b = be.AppendUint32(b, anyPort) // group
	b = appendZeros(b, 4)
	b = be.AppendUint64(b, cookie)
	b = be.AppendUint64(b, mask)
	return appendRawMatch(b, nil)
}

func decodeMultipartRequest(r *reader) (Message, error) {
	kind := r.u16()
	if kind == multipartFlowMonitor {
		return decodeFlowMonitorRequest(r)
	}
	r.skip(22)
	cookie, mask := r.u64(), r.u64()
	takeMatch(r)
	switch kind {
	case multipartFlow:
		return FlowStatsRequest{Cookie: cookie, CookieMask: mask}, r.end()
	case multipartAggregate:
		return FlowCountRequest{Cookie: cookie, CookieMask: mask}, r.end()
	}
	return nil, fmt.Errorf("multipart type %d is not known here", kind)
}

func appendFlowCountReply(b []byte, m FlowCountReply) []byte {
	b = binary.BigEndian.AppendUint16(b, multipartAggregate)
	b = appendZeros(b, 6+16) // flags, padding; packets, bytes
	b = binary.BigEndian.AppendUint32(b, m.Flows)
	return appendZeros(b, 4)
}

// decodeMultipartReply reads the answer to any request.
func decodeMultipartReply(r *reader) (Message, error) {
	kind := uint16(multipartFlow)
	if len(r.b) >= 2 {
		kind = binary.BigEndian.Uint16(r.b)
	}
	switch kind {
	case multipartFlowMonitor:
		return decodeFlowUpdates(r)
	case multipartAggregate:
	default:
		return decodeFlowStatsReply(r)
	}
	r.skip(24)
	m := FlowCountReply{Flows: r.u32()}
	r.skip(4)
	return m, r.end()
}
