package mesh

import (
	"encoding/hex"
	"testing"
)

// TestGoldenFrames holds the frame, the messages of this package and the metadata of members to the bytes
// that the first version wrote; what a later one adds comes behind.
func TestGoldenFrames(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    []byte
		want string
	}{
		{"gossip", frame(chanGossip, 0xa1, []byte{1, 2}), "010100000000000000a10102"},
		{"ipam", frame(chanIPAM, 0xa1, []byte{1, 2}), "010200000000000000a10102"},
		{"ack", frame(chanAck, 0xa1, encodeAck(7, 1<<33)), "010300000000000000a1000000070000000200000000"},
		{"ask for an ack", frame(chanAckAsk, 0xa1, nil), "010400000000000000a1"},
		{"ask", frame(chanAsk, 0xa1, encodeTell(9, [16]byte{})[:8]), "010500000000000000a10000000000000009"},
		{"tell", frame(chanTell, 0xa1, encodeTell(9, [16]byte{1, 15: 2})), "010600000000000000a1000000000000000901000000000000000000000000000002"},
		{"bye", frame(chanBye, 0xa1, nil), "010700000000000000a1"},
		{"twin", frame(chanTwin, 0xa1, []byte("192.0.2.1:17946")), "010800000000000000a13139322e302e322e313a3137393436"},
		{"metadata", meta{0xa1, 7, "h1"}.encode(), "0100000000000000a100000007026831"},
	} {
		if got := hex.EncodeToString(tt.b); got != tt.want {
			t.Errorf("%s is written as\n%s\nwant\n%s", tt.name, got, tt.want)
		}
		b, err := hex.DecodeString(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		later := append(b, 0xff, 0xff)
		if tt.name == "metadata" {
			if m, err := decodeMeta(later); err != nil || m != (meta{0xa1, 7, "h1"}) {
				t.Errorf("metadata is read as %+v, %v", m, err)
			}
			continue
		}
		c, from, body, err := unframe(later)
		if err != nil || from != 0xa1 {
			t.Errorf("%s: from %s, %v", tt.name, from, err)
		}
		switch c {
		case chanAck:
			if e, s, err := decodeAck(body); err != nil || e != 7 || s != 1<<33 {
				t.Errorf("ack is read as %d, %d, %v", e, s, err)
			}
		case chanTell:
			if n, d, err := decodeTell(body); err != nil || n != 9 || d[15] != 2 {
				t.Errorf("tell is read as %d, %x, %v", n, d, err)
			}
		case chanAsk:
			if n, err := decodeAsk(body); err != nil || n != 9 {
				t.Errorf("ask is read as %d, %v", n, err)
			}
		}
	}
}
