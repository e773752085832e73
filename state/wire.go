package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Every message and every record value is one version byte and fields. The fields are those of the
// protobuf wire format (protobuf.dev/programming-guides/encoding): a tag, number<<3 | type, as a
// varint, then a varint (type 0) or a length and bytes (type 2); no other types. Written and read is
// one form only: tags ascending, only repeated fields more than once, varints of the fewest bytes,
// zero values left out. Numbers are given out in ascending order and never again, so what an older
// version does not know is a tail: it keeps those bytes and writes them back.

// version is the first byte of what this program writes.
const version = 1

var (
	errWire    = errors.New("bytes of no known form")
	errVersion = errors.New("version of a later program")
)

const (
	typeVarint = 0
	typeBytes  = 2
)

// The kinds of known fields, one letter a number in what is passed to scan.
const (
	kindUint     = 'u' // varint, never zero
	kindBytes    = 'b' // bytes, never empty
	kindPresent  = 'p' // bytes, present when empty too
	kindRepeated = 'r' // bytes, any number of times
)

func appendUint(b []byte, num int, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(num)<<3|typeVarint)
	return binary.AppendUvarint(b, v)
}

func appendBool(b []byte, num int, v bool) []byte {
	if v {
		return appendUint(b, num, 1)
	}
	return b
}

// appendBytes leaves out an empty field, appendField does not.
func appendBytes[T ~string | ~[]byte](b []byte, num int, v T) []byte {
	if len(v) == 0 {
		return b
	}
	return appendField(b, num, v)
}

func appendField[T ~string | ~[]byte](b []byte, num int, v T) []byte {
	b = binary.AppendUvarint(b, uint64(num)<<3|typeBytes)
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// field is one field as read; the bytes are the input's.
type field struct {
	num   int
	uint  uint64
	bytes []byte
}

// scan reads fields and calls each with the known ones in order. kinds has a letter for each known
// number from 1. The unknown tail is returned, as part of the input.
func scan(b []byte, kinds string, each func(field) error) (unknown []byte, err error) {
	for last := uint64(0); len(b) > 0; {
		whole := b
		tag, n := uvarint(b)
		if n <= 0 {
			return nil, errWire
		}
		b = b[n:]
		num, typ := tag>>3, tag&7
		var f field
		v, n := uvarint(b)
		if n <= 0 || num < last || num == 0 || typ != typeVarint && typ != typeBytes {
			return nil, errWire
		}
		b = b[n:]
		if typ == typeVarint {
			f.uint = v
		} else {
			if v > uint64(len(b)) {
				return nil, errWire
			}
			f.bytes, b = b[:v:v], b[v:]
		}
		if num > uint64(len(kinds)) {
			if unknown == nil {
				unknown = whole
			}
			last = num
			continue
		}
		f.num = int(num)
		kind := kinds[num-1]
		switch {
		case num == last && kind != kindRepeated,
			(kind == kindUint) != (typ == typeVarint),
			kind == kindUint && f.uint == 0,
			kind == kindBytes && len(f.bytes) == 0:
			return nil, errWire
		}
		last = num
		if err := each(f); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}

// uvarint is binary.Uvarint that refuses longer forms than need be.
func uvarint(b []byte) (uint64, int) {
	v, n := binary.Uvarint(b)
	if n > 1 && b[n-1] == 0 {
		return 0, -1
	}
	return v, n
}

// record reads the version and the fields of a record value and returns a copy of the unknown tail.
func record(b []byte, kinds string, each func(field) error) ([]byte, error) {
	if len(b) == 0 {
		return nil, errWire
	}
	if b[0] != version {
		return nil, fmt.Errorf("%w: %d", errVersion, b[0])
	}
	unknown, err := scan(b[1:], kinds, each)
	return slices.Clone(unknown), err
}

// small stores a number that has to fit.
func small[T ~uint8 | ~uint16 | ~uint32](to *T, f field) error {
	*to = T(f.uint)
	if uint64(*to) != f.uint {
		return errWire
	}
	return nil
}

func readBool(to *bool, f field) error {
	*to = f.uint == 1
	if f.uint != 1 {
		return errWire
	}
	return nil
}

func appendAddr(b []byte, num int, a netip.Addr) []byte {
	return appendBytes(b, num, a.AsSlice())
}

func readAddr(to *netip.Addr, f field) error {
	var ok bool
	*to, ok = netip.AddrFromSlice(f.bytes)
	if !ok || to.Is4In6() {
		return errWire
	}
	return nil
}

// appendPrefix writes the address and one byte of length.
func appendPrefix(b []byte, num int, p netip.Prefix) []byte {
	if !p.IsValid() {
		return b
	}
	return appendField(b, num, append(p.Addr().AsSlice(), byte(p.Bits())))
}

func readPrefix(to *netip.Prefix, f field) error {
	n := len(f.bytes) - 1
	a, ok := netip.AddrFromSlice(f.bytes[:n])
	if *to = netip.PrefixFrom(a, int(f.bytes[n])); !ok || a.Is4In6() || !to.IsValid() {
		return errWire
	}
	return nil
}

// appendPacked writes ascending numbers, above zero, as their differences.
func appendPacked[T ~uint64](b []byte, num int, list []T) []byte {
	var p []byte
	var last T
	for _, v := range list {
		p = binary.AppendUvarint(p, uint64(v-last))
		last = v
	}
	return appendBytes(b, num, p)
}

func readPacked[T ~uint64](f field) (list []T, err error) {
	var last T
	for b := f.bytes; len(b) > 0; {
		v, n := uvarint(b)
		if n <= 0 || v == 0 || last+T(v) < last {
			return nil, errWire
		}
		last += T(v)
		list = append(list, last)
		b = b[n:]
	}
	return list, nil
}

// appendIDs writes numbers in the order they have, eight bytes each.
func appendIDs[T ~uint64](b []byte, num int, list []T) []byte {
	var p []byte
	for _, v := range list {
		p = binary.BigEndian.AppendUint64(p, uint64(v))
	}
	return appendBytes(b, num, p)
}

func readIDs[T ~uint64](f field) (list []T, err error) {
	if len(f.bytes)%8 != 0 {
		return nil, errWire
	}
	for b := f.bytes; len(b) > 0; b = b[8:] {
		list = append(list, T(binary.BigEndian.Uint64(b)))
	}
	return list, nil
}
