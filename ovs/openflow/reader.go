package openflow

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// reader takes big-endian numbers from the front of b. The first one that is not there sets err; from then on all are
// zero, so that a decoder can ask once at its end.
type reader struct {
	b   []byte
	err error
}

// take returns the next n bytes, which are those of b itself, or nil when there are fewer.
func (r *reader) take(n int) []byte {
	if r.err == nil && (n < 0 || n > len(r.b)) {
		r.err = fmt.Errorf("cut short: %d bytes where %d belong", len(r.b), n)
	}
	if r.err != nil {
		r.b = nil
		return nil
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

func (r *reader) skip(n int) { r.take(n) }

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// rest returns a copy of all that is left, nil when nothing is.
func (r *reader) rest() []byte {
	if len(r.b) == 0 {
		return nil
	}
	return bytes.Clone(r.take(len(r.b)))
}

// end returns the error so far, or one if bytes are left.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.b))
	}
	return r.err
}

// pad8 is how many bytes make n a multiple of eight.
func pad8(n int) int { return -n & 7 }

func appendZeros(b []byte, n int) []byte { return append(b, make([]byte, n)...) }
