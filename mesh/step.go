package mesh

import (
	"context"
	"fmt"
	"runtime/debug"
)

// take takes a step, one at a time: what it leaves to be done is done when take returns.
func (n *Node) take(step func()) {
	n.turn.Lock()
	defer n.turn.Unlock()
	defer halt()
	if n.over {
		return
	}
	step()
	n.commit()
	n.timer.Reset(n.untilNext())
}

// halt ends the process if a step panics: whoever took it may recover, as net/http does for what it
// calls, and would go on with half a step. What the log has, the next daemon has.
func halt() {
	if p := recover(); p != nil {
		text := fmt.Sprintf("%v\n\n%s", p, debug.Stack())
		go panic(text)
		select {}
	}
}

// call takes a step on the caller's goroutine, once the node runs: to wake another one and to be woken
// by it takes longer than most steps.
func (n *Node) call(ctx context.Context, step func()) error {
	select {
	case <-n.begun:
	case <-ctx.Done():
		return ctx.Err()
	case <-n.ended:
		return errStopped
	}
	err := errStopped
	n.take(func() {
		step()
		err = nil
	})
	return err
}
