package ovs

import (
	"testing"
	"testing/synctest"

	"github.com/ovn-org/libovsdb/client"
)

// untold is a client that tells nobody when its connection ends, as the real one does when the one who is
// to listen comes too late.
type untold struct {
	client.Client
	connected bool
}

func (u *untold) Close()          { u.connected = false }
func (u *untold) Connected() bool { return u.connected }

// TestDatabaseEndsUntold: closing a connection returns, and the end of one is noticed, without being told.
func TestDatabaseEndsUntold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{client: &untold{connected: true}, ended: make(chan struct{})}
		if d.lost() {
			t.Error("lost while it is connected")
		}
		d.close()
		d.close()
		if !ended(d.ended) {
			t.Error("closed and not ended")
		}
		d = &database{client: &untold{}, ended: make(chan struct{})}
		if !d.lost() || !ended(d.ended) {
			t.Error("not lost while it is not connected")
		}
	})
}
