package crdt

import (
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// TestRestorePatch: a replica that kept its own map as patches goes on where it was: no seq is given
// twice, also where the last op was a removal of which nothing is left.
func TestRestorePatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := NewOwned(1, 1, nil)
		peer := NewOwned(2, 1, nil)
		for range rapid.IntRange(0, 30).Draw(t, "ops") {
			key := fmt.Appendf(nil, "k%d", rapid.IntRange(0, 5).Draw(t, "key"))
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				o.Renew(o.Epoch() + 1)
			case 1, 2:
				o.Remove(key)
			default:
				o.Put(key, []byte(rapid.StringN(0, 3, 8).Draw(t, "value")))
			}
			o.Merge([]Op{peer.Put(key, []byte("theirs"))})
		}
		patches, _ := o.Missing([]Head{{Node: 1}, {Node: 2}}, 1<<40)
		back := NewOwned(1, 1, nil)
		for _, p := range patches {
			if rapid.Bool().Draw(t, "apart") { // as it is logged where it is long
				back.Restore(p.Ops)
				p = p.Apart()
			}
			back.RestorePatch(p)
		}
		if dump(back) != dump(o) || back.Digest() != o.Digest() || back.Epoch() != o.Epoch() {
			t.Fatalf("epoch %d:\n%safter epoch %d:\n%s", back.Epoch(), dump(back), o.Epoch(), dump(o))
		}
		if got, want := back.Put([]byte("next"), nil), o.Put([]byte("next"), nil); !reflect.DeepEqual(got, want) {
			t.Fatalf("next op %+v, want %+v", got, want)
		}
		if _, doubt := back.Doubt(); doubt {
			t.Fatal("its own patch made it doubt")
		}
	})
}
