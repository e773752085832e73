package echo

import (
	"encoding/binary"

	"meshnet/ovs/flow"
	"meshnet/state"
)

// frameLen is the least length of an Ethernet frame without its check sequence (IEEE 802.3).
const frameLen = 60

// version is the first byte after the Ethernet header: what follows is ours to change with it.
const version = 1

// Offsets in a probe.
const (
	atDst     = 0
	atSrc     = 6
	atType    = 12
	atVersion = 14
	atNonce   = 15 // of the process that sent it
	atNumber  = 23
)

// frame returns a probe.
func frame(t Target, nonce, number uint64) []byte {
	b := make([]byte, frameLen)
	copy(b[atDst:], t.Dst[:])
	copy(b[atSrc:], t.Src[:])
	binary.BigEndian.PutUint16(b[atType:], flow.EthTypeProbe)
	b[atVersion] = version
	binary.BigEndian.PutUint64(b[atNonce:], nonce)
	binary.BigEndian.PutUint64(b[atNumber:], number)
	return b
}

// parse reads what came. It is false for anything but a probe that was answered.
func parse(b []byte) (nonce, number uint64, ok bool) {
	if len(b) < atNumber+8 || state.MAC(b[atSrc:atType]) != flow.ProbeAnswer ||
		binary.BigEndian.Uint16(b[atType:]) != flow.EthTypeProbe || b[atVersion] != version {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(b[atNonce:]), binary.BigEndian.Uint64(b[atNumber:]), true
}
