package netns

import "testing"

// FuzzParseStart: a program may call itself anything, so the line may hold anything.
func FuzzParseStart(f *testing.F) {
	f.Add([]byte("7 (a b) c) S 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"))
	f.Add([]byte(")"))
	f.Add([]byte("7 (x) S"))
	f.Fuzz(func(t *testing.T, b []byte) { parseStart(b) })
}
