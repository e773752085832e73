package agent

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"meshnet/plan"
)

// The ring forgets the oldest events, tells the later ones, and wakes who waits.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{}
		for i := range eventsMax + 10 {
			a.events.add("created", fmt.Sprint("network ", i), "", "")
		}
		all := a.Events(t.Context(), 0, false)
		if len(all) > eventsMax || all[len(all)-1].Seq != eventsMax+10 || all[0].Seq != all[len(all)-1].Seq-uint64(len(all))+1 {
			t.Errorf("%d events, from %d to %d", len(all), all[0].Seq, all[len(all)-1].Seq)
		}
		last := all[len(all)-1].Seq
		if later := a.Events(t.Context(), last-2, true); len(later) != 2 || later[0].Seq != last-1 {
			t.Errorf("after %d: %v", last-2, later)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if none := a.Events(ctx, last, true); none != nil {
			t.Errorf("nothing happened, and yet: %v", none)
		}
		time.AfterFunc(time.Minute, func() {
			a.repaired(make([]plan.Step, repairsMax+5), "drift")
		})
		if e := a.Events(t.Context(), last, true); len(e) == 0 || e[0].Kind != "repaired" {
			t.Errorf("repaired: %v", e)
		}
		synctest.Wait()
		if e := a.Events(t.Context(), last, false); len(e) != repairsMax+1 || e[repairsMax].Detail != "and 5 more" || a.events.repairs != repairsMax+5 {
			t.Errorf("%d events of a repair, %d counted", len(e), a.events.repairs)
		}
	})
}
