package ovs

import (
	"bufio"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"meshnet/ovs/echo"
	"meshnet/ovs/flow"
	"meshnet/ovs/openflow"
	"meshnet/plan"
	"meshnet/state"
)

const (
	// redial is the least time between two attempts to get a connection for probes.
	redial = time.Second
	// heardMax is how many answers may wait; more are dropped and count as lost.
	heardMax = 16
	// rest is how long the reader pauses after a packet, so that a peer that floods us with answers costs
	// little: far more than all that probes can bring fits in.
	rest = 500 * time.Microsecond
	// probeLen is what has to be handed over of a packet, bytes.
	probeLen = 128
)

// prober sends the probes of package echo and hears their answers. It has an OpenFlow connection of its
// own, so that no probe waits for a bundle and no bundle for a probe. While there is none, probes are
// lost, which is the truth.
type prober struct {
	mgmt  string // the bridge's OpenFlow socket
	began time.Time

	mu      sync.Mutex
	machine *echo.Machine
	host    *plan.Host // as last applied
	aimed   *plan.Host // as the machine has it
}

func newProber(mgmt string) *prober {
	return &prober{mgmt: mgmt, began: time.Now(), machine: echo.New(rand.Uint64())}
}

// Paths returns what probes say of the ways to peers, of those about which something is known. The
// map is the caller's.
func (s *Switch) Paths() map[state.NodeID]state.Path {
	s.prober.mu.Lock()
	defer s.prober.mu.Unlock()
	return s.prober.machine.Paths()
}

func (p *prober) aim(h *plan.Host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.host = h
}

// step returns the probe that is due and how long to wait for the next.
func (p *prober) step() ([]echo.Probe, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.host != p.aimed {
		p.machine.Aim(echo.Targets(p.host))
		p.aimed = p.host
	}
	return p.machine.Step(time.Since(p.began))
}

// heard is a packet and when it came.
type heard struct {
	at    time.Duration
	frame []byte
}

// run probes until ctx ends.
func (p *prober) run(ctx context.Context) {
	var line *probeLine
	defer func() { line.close() }()
	var tried time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if line == nil && time.Since(tried) >= redial {
			tried = time.Now()
			line = p.dial(ctx)
		}
		probes, wait := p.step()
		for _, probe := range probes {
			if line != nil && !line.send(probe) {
				line.close()
				line = nil
			}
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case h, ok := <-line.packets():
			if !ok {
				line.close()
				line = nil
				continue
			}
			p.mu.Lock()
			p.machine.Heard(h.at, h.frame)
			p.mu.Unlock()
		}
	}
}

// probeLine is a connection for probes. A nil one has no packets.
type probeLine struct {
	socket net.Conn
	in     chan heard // closed when the connection has ended
}

// dial connects and asks for packets; nil if the bridge is not there.
func (p *prober) dial(ctx context.Context) *probeLine {
	ctx, cancel := context.WithTimeout(ctx, redial)
	defer cancel()
	socket, err := (&net.Dialer{}).DialContext(ctx, "unix", p.mgmt)
	if err != nil {
		return nil // Apply tells of it
	}
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	in := bufio.NewReaderSize(socket, openflow.MaxLen+1)
	l := &probeLine{socket, make(chan heard, heardMax)}
	err = greet(socket, in)
	if !stop() || err != nil || !l.write(openflow.SetConfig{MissLen: probeLen}) {
		socket.Close()
		return nil
	}
	go l.read(in, p.began)
	return l
}

// packets delivers what the bridge hands over.
func (l *probeLine) packets() <-chan heard {
	if l == nil {
		return nil
	}
	return l.in
}

// close ends the connection and waits for its reader.
func (l *probeLine) close() {
	if l == nil {
		return
	}
	l.socket.Close()
	for range l.in { // until it is closed
	}
}

func (l *probeLine) read(in *bufio.Reader, began time.Time) {
	defer close(l.in)
	buf := make([]byte, openflow.MaxLen)
	for {
		h, m, _ := readMessage(in, buf)
		switch m := m.(type) {
		case nil:
			return
		case openflow.EchoRequest:
			b, err := openflow.Append(nil, h.XID, openflow.EchoReply(m))
			if err != nil {
				return
			}
			if _, err := l.socket.Write(b); err != nil {
				return
			}
		case openflow.PacketIn:
			select {
			case l.in <- heard{time.Since(began), m.Data}:
			default: // so many answers are no answers to us
			}
			time.Sleep(rest)
		}
	}
}

// send sends a probe. It is false when the connection is at its end.
func (l *probeLine) send(p echo.Probe) bool {
	out := openflow.PacketOut{Data: p.Frame}
	if p.VNI != 0 {
		out.Actions = append(out.Actions, flow.SetField{Field: flow.FieldTunID, Value: uint64(p.VNI)})
	}
	out.Actions = append(out.Actions, flow.Output{Port: p.Port})
	return l.write(out)
}

func (l *probeLine) write(m openflow.Message) bool {
	b, err := openflow.Append(nil, 0, m)
	if err != nil {
		return false
	}
	if err := l.socket.SetWriteDeadline(time.Now().Add(redial)); err != nil {
		return false
	}
	_, err = l.socket.Write(b)
	return err == nil
}
