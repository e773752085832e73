package mesh

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"meshnet/crdt"
	"meshnet/ipam"
	"meshnet/state"
)

// stored is what a state directory holds: who this node is, what it was asked for and promised, and
// the log that says so.
type stored struct {
	dir    string
	id     state.NodeID
	epoch  crdt.Epoch
	doc    *state.Doc
	wishes map[state.EndpointID]state.Attach
	bodies map[state.EndpointID][]byte // of the wishes, as they were logged
	ipam   []ipam.Record               // what ipam logged
	others []record                    // of kinds that this version does not know
	log    *logFile
	who    identity
	boot   boot
	notes  []string // what a person should know of what was found
	// resumed: it goes on in the epoch of the log. damaged: a part of the log was lost.
	// fresh: nothing was there.
	resumed, damaged, fresh bool
	heard                   int64 // seconds since 1970: when others were last heard; 0: never
	// full says why the directory takes nothing. held: not even what this node begins with, of which
	// the identity is a part where it is unnamed.
	full          error
	held, unnamed bool

	ipamSized int   // records that ipam had when they were last compacted
	lively    int64 // bytes that the log had when it was last written anew
}

// openState reads the state directory. Where this node may have told others what the log does not
// hold it begins a new epoch. A directory that cannot be written to is read nevertheless, unless this
// node is new.
func openState(c *Config) (*stored, error) {
	path := filepath.Join(c.StateDir, "log")
	log, err := readLog(path)
	if err != nil {
		return nil, err
	}
	who, fresh, notes, err := loadIdentity(c, log.records)
	if err != nil {
		return nil, err
	}
	id, err := crdt.ParseNode(who.ID)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if fresh { // what was there is another's
		log = parsed{}
	}
	s := &stored{
		dir: c.StateDir, id: id, who: who, notes: notes,
		wishes: map[state.EndpointID]state.Attach{}, bodies: map[state.EndpointID][]byte{},
		log: &logFile{path: path, open: c.openLog},
	}
	now := bootID(c.BootID)
	last, booted := lastBoot(log.records)
	if !booted {
		last = boot{Epoch: 1, Actor: crdt.Actor(random64())}
	}
	s.epoch = last.Epoch
	s.boot = boot{Boot: now, Node: who.ID, Epoch: last.Epoch, Actor: last.Actor}
	s.doc = state.NewDoc(id, last.Epoch, last.Actor)
	for _, r := range log.records {
		if err := s.replay(r); err != nil {
			log.damaged = true
			c.Log.Warn("a record of the log cannot be read", "kind", r.kind, "err", err)
		}
	}
	s.damaged = log.damaged
	if log.damaged {
		s.setAside()
	}
	doubt := log.damaged || !log.whole || !booted || last.Boot == "" || last.Boot != now || last.Node != who.ID || who.Epoch > last.Epoch
	if s.fresh = fresh; fresh {
		s.who.Epoch = s.epoch
	}
	s.full = s.begin(log, fresh, doubt)
	if s.full != nil && fresh {
		return nil, errors.Join(fmt.Errorf("%w; free space on %s", s.full, c.StateDir), s.log.close())
	}
	s.held = s.full != nil
	if !s.held {
		s.full = s.log.reserve()
	}
	return s, nil
}

// begin makes the log ready to be added to, in a new epoch where there is doubt about the old one.
func (s *stored) begin(log parsed, fresh, doubt bool) error {
	if fresh || log.damaged || log.size == 0 {
		if !fresh {
			s.newEpoch()
		}
		if err := s.name(); err != nil {
			return err
		}
		return s.rewrite()
	}
	if err := s.log.resume(log.size); err != nil {
		return err
	}
	s.lively = s.log.size
	if !doubt {
		s.resumed = true
		if s.log.size > compactMin && s.rewrite() != nil {
			return s.log.sync() // it is as good as it was
		}
		return nil
	}
	out := s.newEpoch()
	if err := s.name(); err != nil {
		return err
	}
	if s.log.size > compactMin && s.rewrite() == nil {
		return nil
	}
	if err := s.log.add(append([]record{bootRecord(s.boot)}, stateRecords(out)...)); err != nil {
		return err
	}
	return s.log.sync()
}

// name stores who this node is and in which epoch it writes, before it does.
func (s *stored) name() error {
	err := s.who.store(s.dir)
	s.unnamed = err != nil
	return err
}

// mend makes the directory hold what waits to be written. lossy: the log lacks more than that.
func (s *stored) mend(waiting []record, sync, lossy bool) error {
	rewrite := lossy || s.unnamed || s.log.disk == nil || s.log.spoilt
	if s.unnamed {
		if err := s.name(); err != nil {
			return err
		}
	}
	switch {
	case rewrite:
		if err := s.rewrite(); err != nil {
			return err
		}
	case len(waiting) > 0:
		if err := s.log.add(waiting); err != nil {
			return err
		}
		fallthrough
	case sync:
		if err := s.log.sync(); err != nil {
			return err
		}
	}
	return s.log.reserve()
}

// setAside keeps a damaged log for a person to look at, under a name of its own as well: it stays the
// log until a new one is in its place.
func (s *stored) setAside() {
	bad := s.log.path + ".damaged"
	err := os.Remove(bad)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.Link(s.log.path, bad)
	}
	kept := "it was kept as " + bad
	if err != nil {
		kept = "it could not be kept: " + err.Error()
	}
	s.notes = append(s.notes, fmt.Sprintf("the log of this node was damaged (%s); %d attachments were read from it, and the rest comes from "+
		"other nodes; look after the disk, and attach again what meshnet ps lacks", kept, len(s.wishes)))
}

// newEpoch begins an epoch later than all that this node may have written in, and returns its own map
// again, whole. The identity has to be stored before anybody is told.
func (s *stored) newEpoch() state.Out {
	doubt, _ := s.doc.Doubt()
	s.epoch = max(s.doc.Epoch(), doubt, s.who.Epoch).Next(uint16(random64()))
	s.who.Epoch = s.epoch
	s.boot.Epoch, s.boot.Actor = s.epoch, crdt.Actor(random64())
	return s.doc.Renew(s.epoch, s.boot.Actor)
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
	case recBoot:
		// lastBoot has read them all
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
		s.wishes[w.ID], s.bodies[w.ID] = w, slices.Clone(r.body)
	case recDetach:
		id, err := state.ParseEndpointID(string(r.body))
		if err != nil {
			return err
		}
		delete(s.wishes, id)
		delete(s.bodies, id)
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
	default:
		s.others = append(s.others, record{r.kind, slices.Clone(r.body)})
	}
	return nil
}

// keep stores a wish and returns its record.
func (s *stored) keep(w state.Attach) record {
	s.wishes[w.ID], s.bodies[w.ID] = w, encodeWish(w)
	return record{recAttach, s.bodies[w.ID]}
}

// drop forgets a wish and returns the record of that.
func (s *stored) drop(id state.EndpointID) record {
	delete(s.wishes, id)
	delete(s.bodies, id)
	return record{recDetach, []byte(id.String())}
}

// promise keeps what ipam logs, and returns its record.
func (s *stored) promise(r ipam.Record) record {
	s.ipam = append(s.ipam, r)
	if len(s.ipam) > 2*s.ipamSized+1024 {
		s.ipam = ipam.Compact(s.ipam)
		s.ipamSized = len(s.ipam)
	}
	return record{recIPAM, r}
}

// compactMin is from how many bytes on a log is written anew that has grown to three times of what it
// was when that was done last.
const compactMin = 4 << 20

func (s *stored) outgrown() bool { return s.log.size > max(compactMin, 3*s.lively) }

// rewrite puts a log that holds what is known now in the place of the old one.
func (s *stored) rewrite() error {
	s.ipam = ipam.Compact(s.ipam)
	s.ipamSized = len(s.ipam)
	if err := s.log.replace(s.records()); err != nil {
		return err
	}
	s.lively = s.log.size
	return nil
}

// records returns a log that begins now: who writes it, what ipam logged, the document and the wishes.
func (s *stored) records() []record {
	rs := []record{bootRecord(s.boot)}
	if s.heard != 0 {
		rs = append(rs, heardRecord(s.heard))
	}
	rs = append(rs, s.others...)
	for _, r := range s.ipam {
		rs = append(rs, record{recIPAM, r})
	}
	rs = append(rs, stateRecords(whole(s.doc))...)
	for _, w := range sortedWishes(s.wishes) {
		rs = append(rs, record{recAttach, s.bodies[w.ID]})
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
