package mesh

import (
	"strconv"
	"time"
)

const (
	// heardEvery is how often the log notes that somebody was heard.
	heardEvery = time.Hour
	// blindMax bounds for how long a node that dropped what it held of others waits for a member to
	// have told it all, before it acts on what it then has.
	blindMax = 30 * time.Second
)

// silence is when this node last heard of others. Before it speaks to them it drops what it holds of
// them if that is too old: see state.Doc.Meet.
type silence struct {
	last   time.Duration // when, in this run; 0: not yet
	noted  time.Duration // when the log last noted it
	blind  time.Duration // until when the view is not acted on; 0: it is
	before int64         // seconds since 1970: when, by the log, in the runs before; 0: never
}

// wake comes before anything is said to others.
func (n *Node) wake() {
	if !n.doc.Meet(n.silent()) {
		return
	}
	n.c.Log.Warn("nobody was heard for too long: what was known of other nodes is dropped and asked for anew")
	n.records = append(n.records, record{recAlone, nil})
	n.heardSomebody()
	n.stale, n.doubtful = true, true
	n.blind = n.now() + blindMax
	n.trustAt = n.blind
}

// silent returns for how long nobody was heard: in this run by a clock that never jumps, over a restart
// by the host's, which is all there is.
func (n *Node) silent() time.Duration {
	switch {
	case n.last != 0:
		return n.now() - n.last
	case n.before != 0:
		return time.Since(time.Unix(n.before, 0))
	}
	return 0
}

// heardSomebody notes that this node knows what another knew a moment ago.
func (n *Node) heardSomebody() {
	now := max(n.now(), 1)
	if n.last = now; n.noted == 0 || now-n.noted >= heardEvery {
		n.noted = now
		n.store.heard = time.Now().Unix()
		n.records = append(n.records, heardRecord(n.store.heard))
	}
}

// see ends the wait for a member that tells all.
func (n *Node) see() {
	if n.blind != 0 {
		n.blind, n.stale = 0, true
	}
}

func heardRecord(at int64) record { return record{recHeard, strconv.AppendInt(nil, at, 10)} }
