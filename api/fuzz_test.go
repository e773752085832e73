package api

import (
	"encoding/json"
	"testing"

	"meshnet/state"
)

// FuzzRequests gives the bodies of requests any text: what they ask for is refused or is something that
// the document takes or refuses.
func FuzzRequests(f *testing.F) {
	for _, v := range []any{
		CreateRequest{Name: "web", Subnet: "10.2.0.0/16", Gateway: "10.2.0.1", Reserve: []Range{{"10.2.0.9", "10.2.1.0"}}, Labels: []Label{{"a", "b"}}},
		AttachRequest{Container: Ref{Name: "c1"}, Network: "web", IP: "10.2.0.5", MAC: "02:42:0a:02:00:05", Names: []string{"a"}},
		DetachRequest{Network: "web"},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add(`{"subnet":"::/0","reserve":[{}],"mtu":4294967296}`)
	f.Fuzz(func(t *testing.T, body string) {
		var create CreateRequest
		if json.Unmarshal([]byte(body), &create) == nil {
			if w, err := create.wish(); err == nil {
				if def, err := w.Definition(nil); err == nil {
					d := state.NewDoc(1, 1, 1)
					d.Apply(state.CreateNetwork{Def: def})
					d.View()
				}
			}
		}
		var attach AttachRequest
		if json.Unmarshal([]byte(body), &attach) == nil {
			attach.request(nil)
		}
		var detach DetachRequest
		if json.Unmarshal([]byte(body), &detach) == nil {
			detach.Container.ref(nil)
		}
	})
}
