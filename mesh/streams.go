package mesh

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/memberlist"
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
	queues map[string][][]byte // by memberlist's name of a peer; an entry has a goroutine
}

func newStreams(ctx context.Context, log *slog.Logger, send func(*memberlist.Node, []byte) error) *streams {
	return &streams{ctx: ctx, send: send, log: log, queues: map[string][][]byte{}}
}

// add queues a message. It never blocks.
func (s *streams) add(to memberlist.Node, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, running := s.queues[to.Name]
	if len(q) >= streamsWaiting || !running && len(s.queues) >= streamsMax || s.ctx.Err() != nil {
		s.dropped.Add(1)
		return
	}
	s.queues[to.Name] = append(q, b)
	if !running {
		s.wg.Go(func() { s.drain(to) })
	}
}

func (s *streams) drain(to memberlist.Node) {
	for {
		s.mu.Lock()
		q := s.queues[to.Name]
		if len(q) == 0 || s.ctx.Err() != nil {
			delete(s.queues, to.Name)
			s.mu.Unlock()
			return
		}
		b := q[0]
		s.queues[to.Name] = q[1:]
		s.mu.Unlock()
		if err := s.send(&to, b); err != nil {
			s.log.Debug("message not sent", "peer", to.Name, "err", err)
		}
	}
}

// wait returns when all have ended, which they do soon after ctx has.
func (s *streams) wait() { s.wg.Wait() }
