package openflow

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Version is the wire version this package speaks: OpenFlow 1.4.
const Version = 5

// HeaderLen is the length in bytes of the header of every message, MaxLen of the longest message there is.
const (
	HeaderLen = 8
	MaxLen    = 1<<16 - 1
)

// Type is the kind of a message, the second byte of its header.
type Type uint8

// The types that [Decode] understands. The switch has more; they become [Other].
const (
	TypeHello            Type = 0
	TypeError            Type = 1
	TypeEchoRequest      Type = 2
	TypeEchoReply        Type = 3
	TypeFeaturesRequest  Type = 5
	TypeFeaturesReply    Type = 6
	TypeSetConfig        Type = 9
	TypePacketIn         Type = 10
	TypePacketOut        Type = 13
	TypeFlowMod          Type = 14
	TypeMultipartRequest Type = 18
	TypeMultipartReply   Type = 19
	TypeBarrierRequest   Type = 20
	TypeBarrierReply     Type = 21
	TypeBundleControl    Type = 33
	TypeBundleAdd        Type = 34
)

// Header is what every message starts with.
type Header struct {
	Version uint8
	Type    Type
	Len     int    // of the whole message in bytes, [HeaderLen] to [MaxLen]
	XID     uint32 // an answer has that of its request; 0 where the switch speaks unasked
}

// Message is one of the types of this package that have an unexported method message: a closed set.
type Message interface{ message() }

// Hello is what both sides send first. Bit v of Versions says that wire version v is spoken.
type Hello struct{ Versions uint32 }

// EchoRequest asks for an [EchoReply] with the same Data.
type EchoRequest struct{ Data []byte }

// EchoReply answers an [EchoRequest].
type EchoReply struct{ Data []byte }

// FeaturesRequest asks for [FeaturesReply].
type FeaturesRequest struct{}

// FeaturesReply says which switch this is.
type FeaturesReply struct {
	Datapath uint64 // the MAC of the bridge in the low 48 bits
	Tables   uint8  // how many tables there are
}

// BarrierRequest asks for a [BarrierReply] once everything sent before it was worked off.
type BarrierRequest struct{}

// BarrierReply answers a [BarrierRequest]; all errors about what was sent before that came earlier.
type BarrierReply struct{}

// BundleStep is what a [BundleControl] wants or has done; a reply is its request plus one.
type BundleStep uint16

// The steps of a bundle.
const (
	BundleOpen      BundleStep = 0
	BundleOpened    BundleStep = 1
	BundleCommit    BundleStep = 4
	BundleCommitted BundleStep = 5
	BundleDiscard   BundleStep = 6
	BundleDiscarded BundleStep = 7
)

// BundleControl opens, commits or discards the bundle ID, or says that this was done. A bundle is always atomic and
// ordered: all its changes show at once or none does, and they take effect in the order they were added in.
type BundleControl struct {
	ID   uint32
	Step BundleStep
}

// BundleAdd puts a change into an open bundle.
type BundleAdd struct {
	ID  uint32
	Mod FlowMod
}

// Other is a message of a type that this package does not read, such as port-status.
type Other struct{ Type Type }

func (Hello) message()            {}
func (Error) message()            {}
func (EchoRequest) message()      {}
func (EchoReply) message()        {}
func (FeaturesRequest) message()  {}
func (FeaturesReply) message()    {}
func (BarrierRequest) message()   {}
func (BarrierReply) message()     {}
func (BundleControl) message()    {}
func (BundleAdd) message()        {}
func (FlowMod) message()          {}
func (PacketOut) message()        {}
func (PacketIn) message()         {}
func (SetConfig) message()        {}
func (FlowStatsRequest) message() {}
func (FlowStatsReply) message()   {}
func (Other) message()            {}

const (
	bundleFlags = 3 // atomic, ordered

	helloBitmap = 1 // the only hello element there is

	multipartMore = 1
)

// Append appends the message m to b and returns the result. It fails when m is longer than [MaxLen], when it holds
// something that OpenFlow cannot say, and for [Other]; b is then returned as it was.
func Append(b []byte, xid uint32, m Message) ([]byte, error) {
	start := len(b)
	out, err := appendBody(appendHeader(b, typeOf(m), xid), xid, m)
	if err != nil {
		return b[:start], err
	}
	n := len(out) - start
	if n > MaxLen {
		return b[:start], fmt.Errorf("encode %v: %d bytes are more than a message holds (%d)", typeOf(m), n, MaxLen)
	}
	binary.BigEndian.PutUint16(out[start+2:], uint16(n))
	return out, nil
}

// appendHeader appends a header whose length is filled in later.
func appendHeader(b []byte, t Type, xid uint32) []byte {
	b = append(b, Version, byte(t), 0, 0)
	return binary.BigEndian.AppendUint32(b, xid)
}

func appendBody(b []byte, xid uint32, m Message) ([]byte, error) {
	be := binary.BigEndian
	switch m := m.(type) {
	case Hello:
		b = be.AppendUint16(b, helloBitmap)
		b = be.AppendUint16(b, 8)
		return be.AppendUint32(b, m.Versions), nil
	case Error:
		return appendError(b, m), nil
	case EchoRequest:
		return append(b, m.Data...), nil
	case EchoReply:
		return append(b, m.Data...), nil
	case FeaturesRequest, BarrierRequest, BarrierReply:
		return b, nil
	case FeaturesReply:
		b = be.AppendUint64(b, m.Datapath)
		b = be.AppendUint32(b, 0) // buffers
		b = append(b, m.Tables, 0, 0, 0)
		return be.AppendUint64(b, 0), nil // capabilities, reserved
	case BundleControl:
		b = be.AppendUint32(b, m.ID)
		b = be.AppendUint16(b, uint16(m.Step))
		return be.AppendUint16(b, bundleFlags), nil
	case BundleAdd:
		b = be.AppendUint32(b, m.ID)
		b = be.AppendUint32(b, bundleFlags)
		return Append(b, xid, m.Mod)
	case FlowMod:
		return appendFlowMod(b, m)
	case PacketOut:
		return appendPacketOut(b, m)
	case PacketIn:
		return appendPacketIn(b, m), nil
	case SetConfig:
		return binary.BigEndian.AppendUint32(b, uint32(m.MissLen)), nil // no flags
	case FlowStatsRequest:
		return appendMultipartRequest(b, multipartFlow, m.Cookie, m.CookieMask), nil
	case FlowCountRequest:
		return appendMultipartRequest(b, multipartAggregate, m.Cookie, m.CookieMask), nil
	case FlowCountReply:
		return appendFlowCountReply(b, m), nil
	case FlowMonitorRequest:
		return appendFlowMonitorRequest(b, m), nil
	case FlowUpdates:
		return appendFlowUpdates(b, m), nil
	case FlowStatsReply:
		return appendFlowStatsReply(b, m)
	}
	return b, fmt.Errorf("encode %T: not a message to be sent", m)
}

func typeOf(m Message) Type {
	switch m := m.(type) {
	case Hello:
		return TypeHello
	case Error:
		return TypeError
	case EchoRequest:
		return TypeEchoRequest
	case EchoReply:
		return TypeEchoReply
	case FeaturesRequest:
		return TypeFeaturesRequest
	case FeaturesReply:
		return TypeFeaturesReply
	case BarrierRequest:
		return TypeBarrierRequest
	case BarrierReply:
		return TypeBarrierReply
	case BundleControl:
		return TypeBundleControl
	case BundleAdd:
		return TypeBundleAdd
	case FlowMod:
		return TypeFlowMod
	case PacketOut:
		return TypePacketOut
	case PacketIn:
		return TypePacketIn
	case SetConfig:
		return TypeSetConfig
	case FlowStatsRequest, FlowCountRequest, FlowMonitorRequest:
		return TypeMultipartRequest
	case FlowStatsReply, FlowCountReply, FlowUpdates:
		return TypeMultipartReply
	case Other:
		return m.Type
	}
	return 0xff
}

// DecodeHeader reads the header at the start of b, of which there must be [HeaderLen] bytes. It says how many bytes to
// read before [Decode]. The version is whatever the peer wrote.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, fmt.Errorf("decode header: %d bytes, want %d", len(b), HeaderLen)
	}
	h := Header{
		Version: b[0],
		Type:    Type(b[1]),
		Len:     int(binary.BigEndian.Uint16(b[2:])),
		XID:     binary.BigEndian.Uint32(b[4:]),
	}
	if h.Len < HeaderLen {
		return Header{}, fmt.Errorf("decode header: message of %d bytes is shorter than its header", h.Len)
	}
	return h, nil
}

// Decode reads b, which is exactly one message. Hello and error are understood in any version, because they are how two
// sides find out that they have none in common; everything else only in [Version].
func Decode(b []byte) (Header, Message, error) {
	h, err := DecodeHeader(b)
	if err != nil {
		return Header{}, nil, err
	}
	if h.Len != len(b) {
		return h, nil, fmt.Errorf("decode %v: %d bytes, its header says %d", h.Type, len(b), h.Len)
	}
	if h.Version != Version && h.Type != TypeHello && h.Type != TypeError {
		return h, nil, fmt.Errorf("decode %v: version %d, want %d", h.Type, h.Version, Version)
	}
	m, err := decodeBody(h, b[HeaderLen:])
	if err != nil {
		return h, nil, fmt.Errorf("decode %v: %w", h.Type, err)
	}
	return h, m, nil
}

func decodeBody(h Header, b []byte) (Message, error) {
	r := &reader{b: b}
	switch h.Type {
	case TypeHello:
		return decodeHello(h, r), nil
	case TypeError:
		m := decodeError(r)
		return m, r.err
	case TypeEchoRequest:
		return EchoRequest{Data: r.rest()}, nil
	case TypeEchoReply:
		return EchoReply{Data: r.rest()}, nil
	case TypeFeaturesRequest:
		return FeaturesRequest{}, r.end()
	case TypeFeaturesReply:
		m := FeaturesReply{Datapath: r.u64()}
		r.skip(4)
		m.Tables = r.u8()
		r.skip(11)
		return m, r.end()
	case TypeBarrierRequest:
		return BarrierRequest{}, r.end()
	case TypeBarrierReply:
		return BarrierReply{}, r.end()
	case TypeBundleControl:
		m := BundleControl{ID: r.u32(), Step: BundleStep(r.u16())}
		r.skip(2)
		return m, r.end()
	case TypeBundleAdd:
		return decodeBundleAdd(r)
	case TypeFlowMod:
		return decodeFlowMod(r)
	case TypePacketOut:
		return decodePacketOut(r)
	case TypePacketIn:
		return decodePacketIn(r)
	case TypeSetConfig:
		r.skip(2)
		m := SetConfig{MissLen: r.u16()}
		return m, r.end()
	case TypeMultipartRequest:
		return decodeMultipartRequest(r)
	case TypeMultipartReply:
		return decodeMultipartReply(r)
	}
	return Other{Type: h.Type}, nil
}

// decodeHello cannot fail: what it does not understand it takes for a peer that names only the version in its header,
// as the specification (section 6.3.1 there) has it for a hello without a bitmap.
func decodeHello(h Header, r *reader) Hello {
	for len(r.b) >= 4 {
		kind, n := r.u16(), int(r.u16())
		if n < 4 || n-4 > len(r.b) {
			break
		}
		body := &reader{b: r.take(n - 4)}
		if kind == helloBitmap && len(body.b) >= 4 {
			return Hello{Versions: body.u32()}
		}
		r.skip(min(pad8(n), len(r.b)))
	}
	return Hello{Versions: (1<<(min(h.Version, 31)+1) - 1) &^ 1}
}

// Speaks reports whether wire version v is offered.
func (h Hello) Speaks(v uint8) bool { return v < 32 && h.Versions&(1<<v) != 0 }

// Highest is the highest wire version offered, 0 if none is.
func (h Hello) Highest() uint8 { return uint8(max(bits.Len32(h.Versions)-1, 0)) }

func decodeBundleAdd(r *reader) (Message, error) {
	m := BundleAdd{ID: r.u32()}
	r.skip(4)
	if r.err != nil {
		return nil, r.err
	}
	_, inner, err := Decode(r.b)
	if err != nil {
		return nil, err
	}
	mod, ok := inner.(FlowMod)
	if !ok {
		return nil, fmt.Errorf("%v in a bundle", typeOf(inner))
	}
	m.Mod = mod
	return m, nil
}

// String is the name in the specification, in lower case, or the number.
func (t Type) String() string {
	switch t {
	case TypeHello:
		return "hello"
	case TypeError:
		return "error"
	case TypeEchoRequest:
		return "echo request"
	case TypeEchoReply:
		return "echo reply"
	case TypeFeaturesRequest:
		return "features request"
	case TypeFeaturesReply:
		return "features reply"
	case TypeFlowMod:
		return "flow mod"
	case TypePacketOut:
		return "packet out"
	case TypePacketIn:
		return "packet in"
	case TypeSetConfig:
		return "set config"
	case TypeMultipartRequest:
		return "multipart request"
	case TypeMultipartReply:
		return "multipart reply"
	case TypeBarrierRequest:
		return "barrier request"
	case TypeBarrierReply:
		return "barrier reply"
	case TypeBundleControl:
		return "bundle control"
	case TypeBundleAdd:
		return "bundle add"
	}
	return fmt.Sprintf("message type %d", uint8(t))
}
