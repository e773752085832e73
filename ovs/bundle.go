package ovs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"meshnet/ovs/flow"
	"meshnet/ovs/openflow"
)

// chunk is about how many bytes of messages are written at once.
const chunk = 1 << 16

// bundle is the content of one bundle. Removals come first, so that what takes the place of a flow is not removed
// with it.
type bundle struct {
	foreign     []openflow.Foreign
	remove, add []flow.Flow
}

func (u bundle) len() int { return len(u.foreign) + len(u.remove) + len(u.add) }

// mod returns the ith modification, 0 ≤ i < len. A removal asks for our mark in the cookie: a flow that someone else
// put in the place of ours since we looked is not ours to remove. It asks for no more of the cookie, because for a
// whole cookie Open vSwitch goes through all flows that have it instead of looking up the one.
func (u bundle) mod(i int) openflow.FlowMod {
	if i < len(u.foreign) {
		return u.foreign[i].Delete()
	}
	i -= len(u.foreign)
	if i < len(u.remove) {
		return openflow.FlowMod{Command: openflow.DeleteStrict, Flow: u.remove[i], CookieMask: flow.CookieMask}
	}
	return openflow.FlowMod{Command: openflow.Add, Flow: u.add[i-len(u.remove)]}
}

// describe names the ith modification for people.
func (u bundle) describe(i int) string {
	m := u.mod(i)
	switch {
	case i < len(u.foreign):
		return fmt.Sprintf("remove foreign flow of table %d with priority %d", m.Flow.Table, m.Flow.Priority)
	case m.Command == openflow.DeleteStrict:
		return fmt.Sprintf("remove flow %q", m.Flow)
	}
	return fmt.Sprintf("add flow %q", m.Flow)
}

// Change removes and adds flows in one bundle: all of it or, with an error, none. The error of a refusal names the
// flow and has the openflow.Error in its chain. Removing a flow that is not there is success, adding one that is there
// replaces it. When ctx or the connection ends before the switch has said what became of the bundle, the error says
// that nobody knows.
func (c *ofConn) Change(ctx context.Context, add, remove []flow.Flow) error {
	ctx, cancel := context.WithTimeout(ctx, changeMax)
	defer cancel()
	end, err := c.begin(ctx)
	if err != nil {
		return fmt.Errorf("change flows: %w", err)
	}
	defer end()
	c.mu.Lock()
	u := bundle{foreign: c.foreign, remove: remove, add: add}
	c.mu.Unlock()
	if u.len() == 0 {
		return nil
	}
	if err := c.commit(ctx, u); err != nil {
		return fmt.Errorf("change flows: %w", err)
	}
	c.mu.Lock()
	c.foreign = nil
	c.mu.Unlock()
	return nil
}

// commit sends u and commits it. All messages are on their way before the first answer is read; the barrier behind
// them shows that nothing was refused. Without it the switch would commit what it did not refuse.
func (c *ofConn) commit(ctx context.Context, u bundle) error {
	n := uint32(u.len())
	r := &request{}
	r.answer = func(h openflow.Header, m openflow.Message) (bool, error) { return u.answer(h.XID-r.first, m) }
	c.expect(r, n+4) // open, n changes, barrier, commit or discard
	id := r.first
	err := c.stage(ctx, u, id)
	if err == nil {
		err = c.wait(ctx, r)
	}
	if err != nil {
		c.forget(r)
		c.discard(r.first+n+3, id)
		return err
	}
	// The same XIDs again: a change that fails only now is told by the one it had.
	c.resume(r)
	if err := c.send(r.first+n+2, openflow.BundleControl{ID: id, Step: openflow.BundleCommit}); err != nil {
		return err
	}
	if err := c.wait(ctx, r); err != nil {
		if refused := (openflow.Error{}); errors.As(err, &refused) {
			return err
		}
		return fmt.Errorf("the bundle may or may not have taken effect: %w", err)
	}
	return nil
}

// stage writes the bundle up to its barrier.
func (c *ofConn) stage(ctx context.Context, u bundle, first uint32) error {
	b, err := openflow.Append(nil, first, openflow.BundleControl{ID: first, Step: openflow.BundleOpen})
	if err != nil {
		return err
	}
	n := u.len()
	for i := range n {
		b, err = openflow.Append(b, first+1+uint32(i), openflow.BundleAdd{ID: first, Mod: u.mod(i)})
		if err != nil {
			return fmt.Errorf("%s: %w", u.describe(i), err)
		}
		if len(b) < chunk {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.write(b); err != nil {
			return err
		}
		b = b[:0]
	}
	if b, err = openflow.Append(b, first+1+uint32(n), openflow.BarrierRequest{}); err != nil {
		return err
	}
	return c.write(b)
}

// answer takes what the switch says about message i of the bundle: 0 opened it, then came the changes, the barrier, and
// the commit.
func (u bundle) answer(i uint32, m openflow.Message) (last bool, err error) {
	n := uint32(u.len())
	switch m := m.(type) {
	case openflow.BundleControl:
		return m.Step == openflow.BundleCommitted, nil
	case openflow.BarrierReply:
		return true, nil
	case openflow.Error:
		if i > 0 && i <= n {
			return false, fmt.Errorf("%s: %w", u.describe(int(i-1)), m)
		}
		return i > n, m
	}
	return true, fmt.Errorf("unexpected %T", m)
}

// resume makes r the current request again.
func (c *ofConn) resume(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.over = make(chan struct{})
	c.current = r
}

// discard gives up a bundle that was not committed, so that it takes no memory of the switch. There is nothing to wait
// for: the next request comes after it, and a connection that cannot be written to takes its bundles with it.
func (c *ofConn) discard(xid, id uint32) {
	if c.socket.SetWriteDeadline(time.Now().Add(discardMax)) == nil {
		_ = c.send(xid, openflow.BundleControl{ID: id, Step: openflow.BundleDiscard})
	}
}
