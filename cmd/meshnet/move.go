package main

import (
	"context"
	"fmt"
	"time"

	"meshnet/netns"
	"meshnet/plan"
)

// moved ends a run because the underlay is another one now.
type moved struct {
	was, is plan.Underlay
	at      time.Time
}

func (m *moved) Error() string {
	return fmt.Sprintf("the underlay changed from %s on %s to %s on %s at %s", m.was.Addr, m.was.Device, m.is.Addr, m.is.Device, m.at.Format(time.RFC3339))
}

// watch returns an error when the underlay that was chosen is gone and there is another. Until there
// is one the node goes on with what it has: addresses come back.
func (h *host) watch(ctx context.Context) error {
	lost := false
	return netns.WatchUnderlay(ctx, h.underlay.Index, func() (bool, error) {
		links, err := netns.Interfaces()
		if err != nil {
			h.log.Warn("interfaces of this host cannot be read", "err", err)
			return false, nil
		}
		if h.underlay.Stays(links) {
			if lost {
				h.log.Info("underlay is back", "device", h.underlay.Device, "addr", h.underlay.Addr)
			}
			lost = false
			return true, nil
		}
		next, err := plan.ChooseUnderlay(h.wants, links)
		if err == nil {
			return false, &moved{h.underlay, next, time.Now()}
		}
		if !lost {
			h.log.Warn("the underlay's address is gone; waiting for one", "device", h.underlay.Device, "addr", h.underlay.Addr, "err", err)
		}
		lost = true
		return false, nil
	})
}
