package mesh

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/memberlist"

	"meshnet/state"
)

const (
	// streamsMax is to how many peers streams are open at once; streamsWaiting how many messages
	// wait for one of them. More are dropped.
	streamsMax     = 64
	streamsWaiting = 32
)

// streams sends large messages over TCP, one after the other to each peer, so that who owns the state
// never waits for a peer.
type streams struct {
	ctx     context.Context
	send    func(to *memberlist.Node, b []byte) error
	log     *slog.Logger
	dropped atomic.Uint64
	wg      sync.WaitGroup

	mu     sync.Mutex
	queues map[state.NodeID][][]byte // an entry has a goroutine
}

func newStreams(ctx context.Context, log *slog.Logger, send func(*memberlist.Node, []byte) error) *streams {
	return &streams{ctx: ctx, send: send, log: log, queues: map[state.NodeID][][]byte{}}
}

// add queues a message. It never blocks.
func (s *streams) add(id state.NodeID, to memberlist.Node, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, running := s.queues[id]
	if len(q) >= streamsWaiting || !running && len(s.queues) >= streamsMax || s.ctx.Err() != nil {
		s.dropped.Add(1)
		return
	}
	s.queues[id] = append(q, b)
	if !running {
		s.wg.Go(func() { s.drain(id, to) })
	}
}

func (s *streams) drain(id state.NodeID, to memberlist.Node) {
	for {
		s.mu.Lock()
		q := s.queues[id]
		if len(q) == 0 || s.ctx.Err() != nil {
			delete(s.queues, id)
			s.mu.Unlock()
			return
		}
		b := q[0]
		s.queues[id] = q[1:]
		s.mu.Unlock()
		if err := s.send(&to, b); err != nil {
			s.log.Debug("message not sent", "peer", id, "err", err)
		}
	}
}

// wait returns when all have ended, which they do soon after ctx has.
func (s *streams) wait() { s.wg.Wait() }
