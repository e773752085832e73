package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"

	"meshnet/ovs/flow"
)

// Instructions and actions on the wire (ONF TS-012, sections 7.2.3 and 7.2.4) and the one action of Nicira that
// OpenFlow has only since 1.5 (move; ovs-actions(7)).
const (
	instructionGoto  = 1
	instructionApply = 4

	actionOutput       = 0
	actionSetField     = 25
	actionExperimenter = 0xffff
	niciraMove         = 6

	portInPort = 0xfffffff8

	// noBufferLen has the switch hand over whole packets rather than keep them.
	noBufferLen = 0xffff

	portMax = 0xffffff00 // the largest number of a real port; above are words like in_port and controller
)

// The older names of fields, which Open vSwitch uses in a move.
const (
	nxmEthDst = 1<<9 | 6
	nxmEthSrc = 2<<9 | 6
	nxmIPSrc  = 7<<9 | 4
	nxmIPDst  = 8<<9 | 4
	nxmICMP   = 13<<9 | 1 // its type
	nxmARPOp  = 15<<9 | 2
	nxmARPSPA = 16<<9 | 4
	nxmARPTPA = 17<<9 | 4
	nxmTunID  = classNXM | 16<<9 | 8
	nxmARPSHA = classNXM | 17<<9 | 6
	nxmARPTHA = classNXM | 18<<9 | 6
	nxmTTL    = classNXM | 29<<9 | 1 // OpenFlow itself has no field for it
)

// actionFields has the names of a field in set_field and in move.
var actionFields = [...]struct {
	field     flow.Field
	set, move fieldID
}{
	{flow.FieldTunID, oxmTunID, nxmTunID},
	{flow.FieldMetadata, oxmMetadata, oxmMetadata},
	{flow.FieldEthSrc, oxmEthSrc, nxmEthSrc},
	{flow.FieldEthDst, oxmEthDst, nxmEthDst},
	{flow.FieldARPOp, oxmARPOp, nxmARPOp},
	{flow.FieldARPSPA, oxmARPSPA, nxmARPSPA},
	{flow.FieldARPTPA, oxmARPTPA, nxmARPTPA},
	{flow.FieldARPSHA, oxmARPSHA, nxmARPSHA},
	{flow.FieldARPTHA, oxmARPTHA, nxmARPTHA},
	{flow.FieldIPSrc, oxmIPv4Src, nxmIPSrc},
	{flow.FieldIPDst, oxmIPv4Dst, nxmIPDst},
	{flow.FieldTTL, nxmTTL, nxmTTL},
	{flow.FieldICMPType, oxmICMPType, nxmICMP},
}

func fieldIDs(f flow.Field) (set, move fieldID, err error) {
	for _, a := range actionFields {
		if a.field == f {
			return a.set, a.move, nil
		}
	}
	return 0, 0, fmt.Errorf("field %d is not known here", f)
}

// fieldNamed returns the field of either name.
func fieldNamed(id fieldID) (flow.Field, error) {
	for _, a := range actionFields {
		if a.set == id || a.move == id {
			return a.field, nil
		}
	}
	return 0, fmt.Errorf("action on %v, which meshnet never writes", id)
}

// appendInstructions appends what a flow does: nothing at all for a drop, else its actions to be applied at once, then
// where to go on.
func appendInstructions(b []byte, actions []flow.Action) ([]byte, error) {
	last := len(actions) - 1
	var next *flow.Goto
	if last >= 0 {
		if g, ok := actions[last].(flow.Goto); ok {
			next, actions = &g, actions[:last]
		}
	}
	if len(actions) > 0 {
		start := len(b)
		b = binary.BigEndian.AppendUint16(b, instructionApply)
		b = append(b, 0, 0, 0, 0, 0, 0)
		for _, a := range actions {
			var err error
			if b, err = appendAction(b, a); err != nil {
				return b, err
			}
			if n := len(b) - start; n > MaxLen {
				return b, fmt.Errorf("%d actions are more than a message holds", len(actions))
			}
		}
		binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	}
	if next != nil {
		b = binary.BigEndian.AppendUint16(b, instructionGoto)
		b = append(b, 0, 8, next.Table, 0, 0, 0)
	}
	return b, nil
}

func appendAction(b []byte, a flow.Action) ([]byte, error) {
	switch a := a.(type) {
	case flow.Output:
		if a.Port == 0 || a.Port > portMax {
			return b, fmt.Errorf("%v: not the number of a port", a)
		}
		return appendOutput(b, a.Port), nil
	case flow.OutputInPort:
		return appendOutput(b, portInPort), nil
	case flow.Controller:
		b = appendOutput(b, portController)
		binary.BigEndian.PutUint16(b[len(b)-8:], noBufferLen)
		return b, nil
	case flow.SetField:
		id, _, err := fieldIDs(a.Field)
		if err != nil || a.Value&^id.ones() != 0 {
			return b, fmt.Errorf("%v: value is wider than the field or the field is not known", a)
		}
		n := 8 + id.bytes()
		b = binary.BigEndian.AppendUint16(b, actionSetField)
		b = binary.BigEndian.AppendUint16(b, uint16(n+pad8(n)))
		b = appendField(b, id, a.Value)
		return appendZeros(b, pad8(n)), nil
	case flow.Move:
		_, from, err := fieldIDs(a.From)
		_, to, err2 := fieldIDs(a.To)
		if err := errors.Join(err, err2); err != nil || from.bytes() != to.bytes() {
			return b, fmt.Errorf("%v: the fields are not of one width or not known", a)
		}
		b = binary.BigEndian.AppendUint16(b, actionExperimenter)
		b = binary.BigEndian.AppendUint16(b, 24)
		b = binary.BigEndian.AppendUint32(b, experimenterNicira)
		b = binary.BigEndian.AppendUint16(b, niciraMove)
		b = binary.BigEndian.AppendUint16(b, uint16(8*from.bytes()))
		b = append(b, 0, 0, 0, 0) // bit offsets
		b = binary.BigEndian.AppendUint32(b, uint32(from))
		return binary.BigEndian.AppendUint32(b, uint32(to)), nil
	case flow.Goto:
		return b, fmt.Errorf("%v before other actions: it must be the last", a)
	}
	return b, fmt.Errorf("action %T is not known here", a)
}

func appendOutput(b []byte, port uint32) []byte {
	b = binary.BigEndian.AppendUint16(b, actionOutput)
	b = binary.BigEndian.AppendUint16(b, 16)
	b = binary.BigEndian.AppendUint32(b, port)
	return appendZeros(b, 8) // how much of the packet to send to a controller, padding
}

// decodeInstructions reads what a flow does. Its error means: not a flow that this package would write.
func decodeInstructions(b []byte) ([]flow.Action, error) {
	var actions []flow.Action
	seen := -1 // kind of the last instruction; actions are applied before Goto, each once
	r := &reader{b: b}
	for len(r.b) > 0 {
		kind, n := r.u16(), int(r.u16())
		body := &reader{b: r.take(n - 4)}
		if r.err != nil {
			return nil, fmt.Errorf("instruction %d: %w", kind, r.err)
		}
		switch {
		case kind == instructionApply && seen < 0:
			body.skip(4)
			for len(body.b) > 0 {
				a, err := decodeAction(body)
				if err != nil {
					return nil, err
				}
				actions = append(actions, a)
			}
		case kind == instructionGoto && seen != instructionGoto:
			actions = append(actions, flow.Goto{Table: body.u8()})
			body.skip(3)
		default:
			return nil, fmt.Errorf("instruction %d, which meshnet never writes there", kind)
		}
		if err := body.end(); err != nil {
			return nil, fmt.Errorf("instruction %d: %w", kind, err)
		}
		seen = int(kind)
	}
	return actions, nil
}

func decodeAction(r *reader) (flow.Action, error) {
	kind, n := r.u16(), int(r.u16())
	body := &reader{b: r.take(n - 4)}
	if r.err != nil || n%8 != 0 {
		return nil, fmt.Errorf("action %d of %d bytes is cut short", kind, n)
	}
	var a flow.Action
	var err error
	switch kind {
	case actionOutput:
		a, err = decodeOutput(body)
	case actionSetField:
		a, err = decodeSetField(body)
	case actionExperimenter:
		a, err = decodeMove(body)
	default:
		return nil, fmt.Errorf("action %d, which meshnet never writes", kind)
	}
	if err == nil {
		err = body.end()
	}
	if err != nil {
		return nil, fmt.Errorf("action %d: %w", kind, err)
	}
	return a, nil
}

func decodeOutput(r *reader) (flow.Action, error) {
	to, whole := r.u32(), r.u16()
	r.skip(6)
	switch {
	case to == portController && whole == noBufferLen:
		return flow.Controller{}, nil
	case to == portInPort:
		return flow.OutputInPort{}, nil
	case to == 0 || to > portMax:
		return nil, fmt.Errorf("output to %#x, which meshnet never writes", to)
	}
	return flow.Output{Port: to}, nil
}

func decodeSetField(r *reader) (flow.Action, error) {
	id := fieldID(r.u32())
	f, err := fieldNamed(id)
	if err != nil {
		return nil, err
	}
	a := flow.SetField{Field: f, Value: readNumber(r, id.bytes())}
	r.skip(pad8(8 + id.bytes()))
	return a, nil
}

// decodeMove reads an action of an experimenter, which must be the move of a whole field.
func decodeMove(r *reader) (flow.Action, error) {
	experimenter, subtype := r.u32(), r.u16()
	if experimenter != experimenterNicira || subtype != niciraMove {
		return nil, fmt.Errorf("action %d of experimenter %#x, which meshnet never writes", subtype, experimenter)
	}
	n, fromBit, toBit := int(r.u16()), r.u16(), r.u16()
	fromID, toID := fieldID(r.u32()), fieldID(r.u32())
	from, err := fieldNamed(fromID)
	to, err2 := fieldNamed(toID)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	if n != 8*fromID.bytes() || n != 8*toID.bytes() || fromBit != 0 || toBit != 0 {
		return nil, fmt.Errorf("move of a part of %v, which meshnet never writes", fromID)
	}
	return flow.Move{From: from, To: to}, nil
}
