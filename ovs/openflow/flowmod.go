package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"

	"meshnet/ovs/flow"
)

// Command is what a [FlowMod] does.
type Command uint8

// The commands. The strict ones concern the one flow with that table, priority and match; the others all flows of the
// table that match no more than it says, whatever their priority.
const (
	Add          Command = 0 // replaces the same flow
	Modify       Command = 1
	ModifyStrict Command = 2
	Delete       Command = 3
	DeleteStrict Command = 4
)

// FlowMod changes a table.
type FlowMod struct {
	Command Command
	Flow    flow.Flow // a deletion does not look at its actions

	// CookieMask says which bits of Flow.Cookie a flow must have to be modified or deleted. Add ignores it.
	CookieMask uint64

	// RawMatch takes the place of Flow.Match if it is not nil: that of a [Foreign].
	RawMatch []byte
}

// FlowStatsRequest asks for all flows of all tables whose cookie equals Cookie under CookieMask.
type FlowStatsRequest struct{ Cookie, CookieMask uint64 }

// FlowStatsReply is a part of the answer to [FlowStatsRequest].
type FlowStatsReply struct {
	Flows   []flow.Flow
	Foreign []Foreign
	More    bool // another part follows
}

// Foreign is a flow that this package would not have written: with a field, an action or a timeout that meshnet does
// not use. A FlowMod with Command DeleteStrict and its RawMatch removes it.
type Foreign struct {
	Table    uint8
	Priority uint16
	Cookie   uint64
	RawMatch []byte // not nil
	Why      error  // what is strange
}

// Delete returns the modification that removes f and no other flow, provided that the mark in its cookie has not
// changed.
func (f Foreign) Delete() FlowMod {
	return FlowMod{
		Command: DeleteStrict, CookieMask: flow.CookieMask, RawMatch: f.RawMatch,
		Flow: flow.Flow{Table: f.Table, Priority: f.Priority, Cookie: f.Cookie},
	}
}

const (
	anyTable = 0xff
	anyPort  = 0xffffffff // and any group
	noBuffer = 0xffffffff
)

func appendFlowMod(b []byte, m FlowMod) ([]byte, error) {
	be := binary.BigEndian
	b = be.AppendUint64(b, m.Flow.Cookie)
	b = be.AppendUint64(b, m.CookieMask)
	b = append(b, m.Flow.Table, byte(m.Command))
	b = be.AppendUint32(b, 0) // timeouts
	b = be.AppendUint16(b, m.Flow.Priority)
	b = be.AppendUint32(b, noBuffer)
	b = be.AppendUint32(b, anyPort)
	b = be.AppendUint32(b, anyPort) // group
	b = be.AppendUint32(b, 0)       // flags, importance
	if m.RawMatch != nil {
		b = appendRawMatch(b, m.RawMatch)
	} else {
		var err error
		if b, err = appendMatch(b, &m.Flow.Match); err != nil {
			return b, err
		}
	}
	if m.Command == Delete || m.Command == DeleteStrict {
		return b, nil
	}
	return appendInstructions(b, m.Flow.Actions)
}

func decodeFlowMod(r *reader) (Message, error) {
	var m FlowMod
	m.Flow.Cookie, m.CookieMask = r.u64(), r.u64()
	m.Flow.Table, m.Command = r.u8(), Command(r.u8())
	r.skip(4)
	m.Flow.Priority = r.u16()
	r.skip(16)
	fields := takeMatch(r)
	if r.err != nil {
		return nil, r.err
	}
	if m.Command > DeleteStrict {
		return nil, fmt.Errorf("command %d", m.Command)
	}
	var err error
	if m.Flow.Match, err = decodeMatch(fields); err != nil {
		return nil, err
	}
	if m.Flow.Actions, err = decodeInstructions(r.b); err != nil {
		return nil, err
	}
	return m, nil
}

// appendFlowStatsReply encodes a part of a dump, for what plays the switch in a test. A Foreign cannot be encoded.
func appendFlowStatsReply(b []byte, m FlowStatsReply) ([]byte, error) {
	be := binary.BigEndian
	b = be.AppendUint16(b, multipartFlow)
	flags := uint16(0)
	if m.More {
		flags = multipartMore
	}
	b = be.AppendUint16(b, flags)
	b = appendZeros(b, 4)
	if len(m.Foreign) > 0 {
		return b, errors.New("a flow that is foreign cannot be encoded")
	}
	for _, f := range m.Flows {
		start := len(b)
		b = append(b, 0, 0, f.Table, 0)
		b = appendZeros(b, 8) // duration
		b = be.AppendUint16(b, f.Priority)
		b = appendZeros(b, 10) // timeouts, flags, importance
		b = be.AppendUint64(b, f.Cookie)
		b = appendZeros(b, 16) // counters
		var err error
		if b, err = appendMatch(b, &f.Match); err != nil {
			return b, err
		}
		if b, err = appendInstructions(b, f.Actions); err != nil {
			return b, err
		}
		if n := len(b) - start; n <= MaxLen {
			be.PutUint16(b[start:], uint16(n))
		} // else the whole message is too long, which Append says
	}
	return b, nil
}

func decodeFlowStatsReply(r *reader) (Message, error) {
	if kind := r.u16(); r.err == nil && kind != multipartFlow {
		return nil, fmt.Errorf("multipart type %d is not known here", kind)
	}
	m := FlowStatsReply{More: r.u16()&multipartMore != 0}
	r.skip(4)
	for len(r.b) > 0 {
		n := int(r.u16())
		entry := &reader{b: r.take(n - 2)}
		f, fields, why := decodeFlowStats(entry)
		if r.err != nil || entry.err != nil {
			return nil, fmt.Errorf("flow of %d bytes: %w", n, errors.Join(r.err, entry.err))
		}
		if why == nil {
			m.Flows = append(m.Flows, f)
			continue
		}
		m.Foreign = append(m.Foreign, Foreign{
			Table: f.Table, Priority: f.Priority, Cookie: f.Cookie, Why: why,
			RawMatch: append([]byte{}, fields...),
		})
	}
	return m, r.err
}

// decodeFlowStats reads one flow after its length. If the flow could not be made out, r.err is set; if it is
// none that this package would write, why says so, and fields (which are those of r) are those of its match.
func decodeFlowStats(r *reader) (f flow.Flow, fields []byte, why error) {
	f.Table = r.u8()
	r.skip(9) // padding, duration
	f.Priority = r.u16()
	timeouts, flags := r.u32(), r.u32()
	r.skip(2)
	f.Cookie = r.u64()
	r.skip(16) // counters
	fields = takeMatch(r)
	if r.err != nil {
		return f, nil, nil
	}
	if timeouts != 0 || flags != 0 {
		return f, fields, errors.New("a timeout, a flag or an importance, which meshnet never sets")
	}
	if f.Match, why = decodeMatch(fields); why != nil {
		return f, fields, why
	}
	f.Actions, why = decodeInstructions(r.b)
	return f, fields, why
}
