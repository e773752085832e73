package mesh

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"meshnet/crdt"
	"meshnet/ipam"
	"meshnet/state"
)

// compactAt is from how many bytes on what a log says of the document is written anew at start. That
// begins a new epoch, so it is not done for less.
const compactAt = 16 << 20

// stored is what a state directory held, and its log, ready to be added to.
type stored struct {
	id     state.NodeID
	epoch  crdt.Epoch
	doc    *state.Doc
	ipam   []ipam.Record
	wishes map[state.EndpointID]state.Attach
	log    *logFile
	who    identity
	boot   boot
	copied bool // from another machine
	// resumed: it goes on in the epoch of the log.
	resumed bool
	heard   int64 // seconds since 1970: when others were last heard; 0: never
}

// openState reads the state directory and begins a new log there. Where this node may have told
// others what the log does not hold it begins a new epoch.
func openState(c *Config) (s *stored, err error) {
	who, fresh, copied, err := loadIdentity(c)
	if err != nil {
		return nil, err
	}
	id, err := crdt.ParseNode(who.ID)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	path := filepath.Join(c.StateDir, "log")
	rs, whole, err := readLog(path)
	if err != nil {
		return nil, err
	}
	s = &stored{id: id, who: who, copied: copied, wishes: map[state.EndpointID]state.Attach{}}
	now := bootID(c.BootID)
	last, booted := lastBoot(rs)
	if !booted {
		last = boot{Epoch: 1, Actor: crdt.Actor(random64())}
	}
	s.boot = boot{Boot: now, Node: who.ID, Epoch: last.Epoch, Actor: last.Actor}
	s.doc = state.NewDoc(id, last.Epoch, last.Actor)
	var kept []record
	size := 0
	for _, r := range rs {
		if err := s.replay(r); err != nil {
			return nil, fmt.Errorf("read log %s: %w; it was written by a newer meshnet, or remove the state directory "+
				"to become a new node", path, err)
		}
		if r.kind == recState || r.kind == recAlone {
			kept = append(kept, r)
			size += len(r.body)
		}
	}
	doubt := !whole || !booted || last.Boot == "" || last.Boot != now || last.Node != who.ID || who.Epoch > last.Epoch
	if size > compactAt || doubt && !fresh {
		if kept, err = s.renew(c.StateDir, crdt.Actor(random64())); err != nil {
			return nil, err
		}
	} else if err := s.enter(c.StateDir, last.Epoch); err != nil {
		return nil, err
	} else {
		s.resumed = !fresh
	}
	s.log, err = createLog(path, s.records(kept))
	return s, err
}

// renew begins a new epoch and returns the document as records: its own part as the ops that begin
// the epoch, which alone a later start takes for its own.
func (s *stored) renew(dir string, actor crdt.Actor) ([]record, error) {
	doubt, _ := s.doc.Doubt()
	epoch := max(s.doc.Epoch(), doubt, s.who.Epoch).Next(uint16(random64()))
	if err := s.enter(dir, epoch); err != nil {
		return nil, err
	}
	own := s.doc.Renew(epoch, actor)
	others := whole(s.doc)
	others.Patches = slices.DeleteFunc(others.Patches, func(p crdt.Patch) bool { return p.Node == s.id })
	s.boot.Epoch, s.boot.Actor = epoch, actor
	return append(stateRecords(own), stateRecords(others)...), nil
}

// enter stores that this node writes in an epoch, before it does.
func (s *stored) enter(dir string, e crdt.Epoch) error {
	s.epoch, s.who.Epoch = e, e
	if err := s.who.store(dir); err != nil {
		return errors.Join(fmt.Errorf("begin epoch %d", e), err)
	}
	return nil
}

func lastBoot(rs []record) (last boot, ok bool) {
	for _, r := range rs {
		var b boot
		if r.kind == recBoot && json.Unmarshal(r.body, &b) == nil {
			last, ok = b, true
		}
	}
	return last, ok
}

func (s *stored) replay(r record) error {
	switch r.kind {
	case recState:
		in, err := state.Decode(r.body)
		if err != nil {
			return err
		}
		s.doc.Restore(in)
	case recAttach:
		w, err := decodeWish(r.body)
		if err != nil {
			return err
		}
		s.wishes[w.ID] = w
	case recDetach:
		id, err := state.ParseEndpointID(string(r.body))
		if err != nil {
			return err
		}
		delete(s.wishes, id)
	case recHeard:
		at, err := strconv.ParseInt(string(r.body), 10, 64)
		if err != nil {
			return fmt.Errorf("when others were heard: %w", err)
		}
		s.heard = at
	case recAlone:
		s.doc.Alone()
	case recIPAM:
		s.ipam = append(s.ipam, slices.Clone(r.body))
	}
	return nil
}

// records returns a log that begins now: who writes it, what ipam logged, the document and the wishes.
func (s *stored) records(doc []record) []record {
	rs := []record{bootRecord(s.boot)}
	if s.heard != 0 {
		rs = append(rs, heardRecord(s.heard))
	}
	for _, r := range s.ipam {
		rs = append(rs, record{recIPAM, r})
	}
	rs = append(rs, doc...)
	for _, w := range sortedWishes(s.wishes) {
		rs = append(rs, record{recAttach, encodeWish(w)})
	}
	return rs
}

// whole returns all of a document.
func whole(d *state.Doc) state.Out {
	var heads []crdt.Head
	for i := range crdt.Buckets {
		for _, h := range d.Heads(i) {
			if len(heads) == 0 || heads[len(heads)-1].Node != h.Node {
				heads = append(heads, crdt.Head{Node: h.Node})
			}
		}
	}
	slices.SortFunc(heads, func(a, b crdt.Head) int { return cmp.Compare(a.Node, b.Node) })
	out, _ := d.Missing(heads, 1<<62)
	out.Shared = []crdt.Delta{d.Shared()}
	return out
}

func bootRecord(b boot) record {
	body, err := json.Marshal(b)
	if err != nil {
		panic("encode boot record: " + err.Error()) // no field of it can fail
	}
	return record{recBoot, body}
}

// stateRecords returns what the document learnt as records.
func stateRecords(out state.Out) []record {
	var rs []record
	for _, b := range state.Encode(out, recordMax/4) {
		rs = append(rs, record{recState, b})
	}
	return rs
}

func sortedWishes(ws map[state.EndpointID]state.Attach) []state.Attach {
	out := make([]state.Attach, 0, len(ws))
	for _, w := range ws {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b state.Attach) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
