package ovs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"meshnet/ovs/flow"
	"meshnet/ovs/openflow"
)

// Bounds of the OpenFlow connection. A switch on the same host answers within milliseconds, a bundle of 100,000 flows
// takes about half a second; what takes this long will not come.
const (
	requestMax = 10 * time.Second // a request, from waiting for its turn to its answer
	changeMax  = 30 * time.Second // a bundle
	discardMax = time.Second      // giving up a bundle
	echoMax    = 16               // echo requests waiting for their answer
	flowsMax   = 1 << 22          // flows in a dump
)

// ofConn is one OpenFlow connection to one bridge. It never reconnects: whoever needs it again dials again, and so
// starts from what is. All methods may be called concurrently; requests go one after the other.
type ofConn struct {
	socket net.Conn
	log    *slog.Logger
	turn   chan struct{} // holds one token: whose request it is
	alarm  chan struct{} // holds a token when others touched our flows
	done   chan struct{} // closed when the connection has ended and so have its goroutines

	writing sync.Mutex // held for one or more whole messages

	mu      sync.Mutex
	xid     uint32             // the last one given out
	current *request           // nil if nobody waits
	foreign []openflow.Foreign // flows that bear our mark and are none we would write, as of the last Flows
	ignored uint64             // messages nobody asked for
	told    bool               // the switch tells of what others do to flows
	touched bool               // they did something to ours since the last Flows began
	lost    error              // why the connection ended; not nil once done is closed
}

// request is what somebody waits for. Its fields belong to the reader until over is closed or the request is no
// longer the current one.
type request struct {
	first, count uint32 // its XIDs
	over         chan struct{}
	err          error

	// answer takes one message and reports whether it was the last. It runs in the reader and must not block.
	answer func(h openflow.Header, m openflow.Message) (last bool, err error)
}

// dialOpenFlow connects to the management socket of a bridge, BRIDGE.mgmt, and agrees on a version.
func dialOpenFlow(ctx context.Context, path string, log *slog.Logger) (*ofConn, error) {
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	socket, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to the bridge: %w; is ovs-vswitchd running and the bridge there?", err)
	}
	// Cancelling must also end the reads and writes of the greeting.
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	in := bufio.NewReaderSize(socket, openflow.MaxLen+1)
	if err := greet(socket, in); err != nil {
		stop()
		socket.Close()
		return nil, fmt.Errorf("greet the bridge at %s: %w", path, errors.Join(err, ctx.Err()))
	}
	if !stop() {
		socket.Close()
		return nil, fmt.Errorf("greet the bridge at %s: %w", path, ctx.Err())
	}
	c := &ofConn{
		socket: socket, log: log.With("addr", path),
		turn: make(chan struct{}, 1), alarm: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go c.serve(in)
	err = c.features(ctx)
	if err == nil {
		err = c.monitor(ctx)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("greet the bridge at %s: %w", path, err)
	}
	return c, nil
}

// greet exchanges hellos.
func greet(socket net.Conn, in *bufio.Reader) error {
	hello, err := openflow.Append(nil, 0, openflow.Hello{Versions: 1 << openflow.Version})
	if err != nil {
		return err
	}
	if _, err := socket.Write(hello); err != nil {
		return err
	}
	_, m, err := readMessage(in, make([]byte, openflow.MaxLen))
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case openflow.Error:
		return m
	case openflow.Hello:
		if !m.Speaks(openflow.Version) {
			return fmt.Errorf("it does not speak OpenFlow 1.4 (wire version %d) but at most wire version %d; "+
				"add OpenFlow14 to the protocols of the bridge", openflow.Version, m.Highest())
		}
		return nil
	}
	return fmt.Errorf("it says %T before hello; is this an OpenFlow switch?", m)
}

// readMessage reads one message with buf, which must hold [openflow.MaxLen] bytes. Its error is fatal to the
// connection when the message is nil; otherwise the message could be told from the next but not understood.
func readMessage(in io.Reader, buf []byte) (openflow.Header, openflow.Message, error) {
	if _, err := io.ReadFull(in, buf[:openflow.HeaderLen]); err != nil {
		return openflow.Header{}, nil, err
	}
	h, err := openflow.DecodeHeader(buf[:openflow.HeaderLen])
	if err != nil {
		return h, nil, err
	}
	if _, err := io.ReadFull(in, buf[openflow.HeaderLen:h.Len]); err != nil {
		return h, nil, err
	}
	h, m, err := openflow.Decode(buf[:h.Len])
	if err != nil {
		m = openflow.Other{Type: h.Type}
	}
	return h, m, err
}

// Done is closed when the connection has ended, by whatever cause.
func (c *ofConn) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits until all it started has ended. Twice is the same as once.
func (c *ofConn) Close() {
	c.socket.Close()
	<-c.done
}

// serve reads until the connection ends and answers echoes meanwhile. The answers have a goroutine of their own,
// because the reader must never wait for the switch to read: the switch may be waiting for us.
func (c *ofConn) serve(in *bufio.Reader) {
	echoes := make(chan question, echoMax)
	var answering sync.WaitGroup
	answering.Go(func() {
		for e := range echoes {
			// An answer that cannot be sent means a connection that ends; the reader notices.
			_ = c.send(e.xid, openflow.EchoReply{Data: e.data})
		}
	})
	err := c.read(in, echoes)
	c.socket.Close()
	close(echoes)
	answering.Wait()

	c.mu.Lock()
	c.lost = fmt.Errorf("OpenFlow connection lost: %w; it is made anew when ovs-vswitchd answers", err)
	c.log.Debug("openflow connection ended", "err", err, "ignored", c.ignored)
	c.mu.Unlock()
	close(c.done)
}

// question is an echo request that waits for its answer.
type question struct {
	xid  uint32
	data []byte
}

func (c *ofConn) read(in *bufio.Reader, echoes chan<- question) error {
	buf := make([]byte, openflow.MaxLen)
	for {
		h, m, err := readMessage(in, buf)
		if m == nil {
			return err
		}
		e, ok := m.(openflow.EchoRequest)
		if !ok {
			c.deliver(h, m, err)
			continue
		}
		select {
		case echoes <- question{h.XID, e.Data}:
		default: // so many wait for their answer that one more would not help
			c.ignore()
		}
	}
}

// ignore counts a message that nothing is done about.
func (c *ofConn) ignore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ignored++
}

// deliver hands a message to the request it answers. What nobody asked for, such as the state of a port, is counted.
func (c *ofConn) deliver(h openflow.Header, m openflow.Message, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.current
	if u, ok := m.(openflow.FlowUpdates); ok && h.XID == 0 {
		c.hear(u)
		return
	}
	_, unread := m.(openflow.Other)
	if r == nil || h.XID-r.first >= r.count || unread && err == nil {
		c.ignored++
		return
	}
	last := err != nil
	if err == nil {
		last, err = r.answer(h, m)
	}
	if r.err == nil {
		r.err = err
	}
	if last {
		c.current = nil
		close(r.over)
	}
}

// begin waits for this caller's turn, in which it may make requests, until it calls the result.
func (c *ofConn) begin(ctx context.Context) (end func(), err error) {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the request before: %w", ctx.Err())
	case <-c.done:
		return nil, c.lost
	}
	deadline, _ := ctx.Deadline()
	if err := c.socket.SetWriteDeadline(deadline); err != nil {
		<-c.turn
		<-c.done // it fails only on a closed socket
		return nil, c.lost
	}
	return func() {
		// Only fails on a closed socket, which the next request finds out.
		_ = c.socket.SetWriteDeadline(time.Time{})
		<-c.turn
	}, nil
}

// expect makes r the current request and gives it count XIDs.
func (c *ofConn) expect(r *request, count uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.first, r.count, r.over = c.xid+1, count, make(chan struct{})
	c.xid += count
	c.current = r
}

// wait returns the outcome of the current request r.
func (c *ofConn) wait(ctx context.Context, r *request) error {
	select {
	case <-r.over:
		return r.err
	case <-ctx.Done():
		err := fmt.Errorf("no answer from ovs-vswitchd: %w", ctx.Err())
		c.forget(r)
		return err
	case <-c.done:
		c.forget(r)
		return errors.Join(r.err, c.lost)
	}
}

// forget makes that r is no longer touched by the reader.
func (c *ofConn) forget(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == r {
		c.current = nil
	}
}

// send writes one message.
func (c *ofConn) send(xid uint32, m openflow.Message) error {
	b, err := openflow.Append(nil, xid, m)
	if err != nil {
		return err
	}
	return c.write(b)
}

// write writes whole messages. When it fails, one may be written by half, so the connection is at its end.
func (c *ofConn) write(b []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if _, err := c.socket.Write(b); err != nil {
		c.socket.Close()
		return fmt.Errorf("write to ovs-vswitchd: %w", err)
	}
	return nil
}

// features asks which switch this is, which shows that it took our hello.
func (c *ofConn) features(ctx context.Context) error {
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r := &request{answer: func(_ openflow.Header, m openflow.Message) (bool, error) {
		switch m := m.(type) {
		case openflow.FeaturesReply:
			c.log.Debug("openflow connected", "datapath", fmt.Sprintf("%016x", m.Datapath))
			return true, nil
		case openflow.Error:
			return true, m
		}
		return true, fmt.Errorf("unexpected %T", m)
	}}
	c.expect(r, 1)
	if err := c.send(r.first, openflow.FeaturesRequest{}); err != nil {
		return err
	}
	return c.wait(ctx, r)
}

// Barrier returns when the switch has worked off what was sent before, which is a turn of its main loop.
func (c *ofConn) Barrier(ctx context.Context) error {
	end, err := c.begin(ctx)
	if err != nil {
		return fmt.Errorf("wait for ovs-vswitchd: %w", err)
	}
	defer end()
	r := &request{answer: func(_ openflow.Header, m openflow.Message) (bool, error) {
		if _, ok := m.(openflow.BarrierReply); !ok {
			return true, fmt.Errorf("unexpected %T", m)
		}
		return true, nil
	}}
	c.expect(r, 1)
	if err := c.send(r.first, openflow.BarrierRequest{}); err != nil {
		return err
	}
	return c.wait(ctx, r)
}

// monitor asks to be told of what others do to flows. A switch that cannot is no error: then flows are counted, and
// read every few minutes.
func (c *ofConn) monitor(ctx context.Context) error {
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r := &request{answer: func(_ openflow.Header, m openflow.Message) (bool, error) {
		switch m := m.(type) {
		case openflow.FlowUpdates:
			c.told = true // under c.mu
		case openflow.Error:
			c.log.Debug("no flow monitor", "err", m)
		default:
			return true, fmt.Errorf("unexpected %T", m)
		}
		return true, nil
	}}
	c.expect(r, 1)
	if err := c.send(r.first, openflow.FlowMonitorRequest{ID: 1}); err != nil {
		return err
	}
	return c.wait(ctx, r)
}

// hear takes what others did to flows. c.mu is held.
func (c *ofConn) hear(u openflow.FlowUpdates) {
	if !u.Gap && !slices.ContainsFunc(u.Cookies, flow.Ours) {
		return // flows of others are theirs
	}
	c.touched = true
	select {
	case c.alarm <- struct{}{}:
	default: // told already
	}
}

// Touched reports whether others did something to our flows since the last Flows began.
func (c *ofConn) Touched() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.touched
}

// Flows returns all flows of the bridge that bear our mark, in canonical order. Those among them that meshnet would
// never write are logged and not returned; the next [ofConn.Change] removes them, whatever else it does.
func (c *ofConn) Flows(ctx context.Context) ([]flow.Flow, error) {
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	flows, foreign, err := c.dump(ctx)
	if err != nil {
		return nil, fmt.Errorf("read flows: %w", err)
	}
	slices.SortFunc(flows, flow.Compare)
	for _, f := range foreign[:min(len(foreign), 3)] {
		c.log.Warn("flow bears our mark but is not ours, it will be removed", "table", f.Table,
			"priority", f.Priority, "cookie", f.Cookie, "err", f.Why, "count", len(foreign))
	}
	return flows, nil
}

func (c *ofConn) dump(ctx context.Context) (flows []flow.Flow, foreign []openflow.Foreign, err error) {
	end, err := c.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer end()
	r := &request{answer: func(_ openflow.Header, m openflow.Message) (bool, error) {
		switch m := m.(type) {
		case openflow.FlowStatsReply:
			flows, foreign = append(flows, m.Flows...), append(foreign, m.Foreign...)
			if len(flows)+len(foreign) > flowsMax {
				return true, fmt.Errorf("more than %d flows", flowsMax)
			}
			return !m.More, nil
		case openflow.Error:
			return true, m
		}
		return true, fmt.Errorf("unexpected %T", m)
	}}
	c.mu.Lock()
	c.touched = false // what comes from now on may not be in the answer
	c.mu.Unlock()
	c.expect(r, 1)
	err = c.send(r.first, openflow.FlowStatsRequest{Cookie: flow.BaseCookie, CookieMask: flow.CookieMask})
	if err == nil {
		err = c.wait(ctx, r)
	}
	if err != nil {
		c.forget(r)
		return nil, nil, err
	}
	c.mu.Lock()
	c.foreign = foreign
	c.mu.Unlock()
	return flows, foreign, nil
}
