package netns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
)

// removalsMax bounds the devices that wait for their removal. More are removed before Apply returns.
const removalsMax = 256

// removals removes devices one after the other. The kernel takes some 25 ms for each, for which
// nobody who asked for a detach should wait.
type removals struct {
	mu      sync.Mutex
	changed *sync.Cond // waiting or busy has changed
	waiting []removal
	busy    removal // of index 0: none
	running bool    // run is there to do it
	ended   bool    // run is asked to end
}

type removal struct {
	index int
	name  string
	peer  int // number of the namespace that its other end is in, as the kernel counts; -1: none
}

func newRemovals() *removals {
	q := new(removals)
	q.changed = sync.NewCond(&q.mu)
	return q
}

// add asks for a removal. It reports false if the device is waiting or being removed already.
func (q *removals) add(r removal) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	known := func(w removal) bool { return w.index == r.index }
	if known(q.busy) || slices.ContainsFunc(q.waiting, known) {
		return false
	}
	q.waiting = append(q.waiting, r)
	q.changed.Broadcast()
	return true
}

// keep takes back the removal of a device that is wanted after all, or waits until it is gone.
func (q *removals) keep(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, w := range q.waiting {
		if w.name == name {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			return
		}
	}
	for q.busy.name == name && q.busy.index != 0 {
		q.changed.Wait()
	}
}

// settle does what run will not do: all if it is not running, else what is too many for it.
func (q *removals) settle() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	var errs []error
	for len(q.waiting) > 0 && (!q.running || len(q.waiting) > removalsMax) {
		errs = append(errs, q.one())
	}
	return errors.Join(errs...)
}

// drain returns when nothing waits any more.
func (q *removals) drain() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	var errs []error
	for len(q.waiting) > 0 || q.busy.index != 0 {
		errs = append(errs, q.one())
	}
	return errors.Join(errs...)
}

// clear returns when nothing is left to remove that has its other end in a namespace, and so perhaps
// a name that is wanted there. Others wait meanwhile.
func (q *removals) clear(peer int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	var errs []error
	for {
		i := slices.IndexFunc(q.waiting, func(w removal) bool { return w.peer == peer })
		if i < 0 && (q.busy.index == 0 || q.busy.peer != peer) {
			return errors.Join(errs...)
		}
		if i > 0 {
			q.waiting[0], q.waiting[i] = q.waiting[i], q.waiting[0]
		}
		errs = append(errs, q.one())
	}
}

// run removes what is added until ctx ends, and then what is left. It tells what failed.
func (q *removals) run(ctx context.Context, failed func(error)) {
	stop := context.AfterFunc(ctx, q.end)
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running, q.ended = true, ctx.Err() != nil
	for !q.ended || len(q.waiting) > 0 {
		if len(q.waiting) == 0 {
			q.changed.Wait()
			continue
		}
		if err := q.one(); err != nil {
			q.mu.Unlock()
			failed(err)
			q.mu.Lock()
		}
	}
	q.running = false
}

func (q *removals) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.changed.Broadcast()
}

// one waits until nobody removes anything and then removes the first that waits. The lock is held on
// entry and return, not while it removes.
func (q *removals) one() error {
	for q.busy.index != 0 {
		q.changed.Wait()
	}
	if len(q.waiting) == 0 {
		return nil
	}
	q.busy, q.waiting = q.waiting[0], q.waiting[1:]
	r := q.busy
	q.mu.Unlock()
	err := deleteDevice(r.index)
	q.mu.Lock()
	q.busy = removal{}
	q.changed.Broadcast()
	if err != nil {
		return fmt.Errorf("remove device %s: %w", r.name, err)
	}
	return nil
}

// deleteDevice deletes by index: unlike a name it is never another device's later.
func deleteDevice(index int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Index = index
	if err := netlink.LinkDel(&netlink.Device{LinkAttrs: attrs}); err != nil && !missing(err) {
		return fmt.Errorf("delete device %d: %w", index, err)
	}
	return nil
}
