package netns

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// changeWait gathers what belongs to one change: who gives a host another address takes the old one
// away, adds a new one and then sets routes.
const changeWait = 300 * time.Millisecond

// WatchUnderlay calls changed, from one goroutine, whenever the addresses, devices or routes of this
// host are other than they were and that may concern what carries gossip and tunnels: at first, and
// then for the interface with an index, or for all while changed returns false. It returns when ctx
// ends, or changed returns an error.
func WatchUnderlay(ctx context.Context, index int, changed func() (there bool, err error)) error {
	for ctx.Err() == nil {
		err := watchUnderlay(ctx, index, changed)
		if err != nil && !isSubscription(err) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry): // then all is looked at anew
		}
	}
	return nil
}

// subscriptionError is a failure to listen, which passes.
type subscriptionError struct{ err error }

func (e subscriptionError) Error() string { return e.err.Error() }

// errClosed: the kernel, or the library, gave up a subscription.
var errClosed = errors.New("the kernel closed the subscription")

// drain empties a channel until its sender has closed it.
func drain[T any](c <-chan T) {
	for range c {
	}
}

func isSubscription(err error) bool { _, ok := err.(subscriptionError); return ok }

func watchUnderlay(ctx context.Context, index int, changed func() (bool, error)) error {
	links, addrs, routes := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	failed := make(chan error, 1)
	tell := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	done := make(chan struct{})
	var started []func()
	defer func() {
		close(done)
		for _, drained := range started {
			drained()
		}
	}()
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: tell, ReceiveBufferSize: watchBuffer}); err != nil {
		return subscriptionError{fmt.Errorf("subscribe to devices: %w", err)}
	}
	started = append(started, func() { drain(links) })
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: tell, ReceiveBufferSize: watchBuffer}); err != nil {
		return subscriptionError{fmt.Errorf("subscribe to addresses: %w", err)}
	}
	started = append(started, func() { drain(addrs) })
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: tell, ReceiveBufferSize: watchBuffer}); err != nil {
		return subscriptionError{fmt.Errorf("subscribe to routes: %w", err)}
	}
	started = append(started, func() { drain(routes) })

	there, waiting := true, true
	timer := time.NewTimer(0) // also after a failure: what was missed is not known
	defer timer.Stop()
	for {
		concerns, open := false, true
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return subscriptionError{err}
		case u, ok := <-links:
			concerns, open = ok && (!there || u.Attrs().Index == index), ok
		case u, ok := <-addrs:
			concerns, open = ok && (!there || u.LinkIndex == index), ok
		case _, ok := <-routes:
			concerns, open = !there, ok
		case <-timer.C:
			waiting = false
			var err error
			if there, err = changed(); err != nil {
				return err
			}
		}
		if !open {
			return subscriptionError{errClosed}
		}
		if concerns && !waiting {
			waiting = true
			timer.Reset(changeWait)
		}
	}
}
