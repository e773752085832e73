package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"meshnet/state"
)

// TestLostDisk: a host whose disk is gone takes up its id again: it hears of its former life, begins an
// epoch beyond it, and what it had is gone everywhere, as it is from its own disk.
func TestLostDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		for i := range 3 {
			l.start(i)
		}
		l.await("formed", 10*time.Second, l.converged)
		h := l.nodes[1]
		id, nw := h.Self(), h.View().Networks()[0]
		for k := range 5 {
			h.do(t, attach(nw.ID, fmt.Sprint("c", k)))
		}
		l.await("attached", 5*time.Second, l.converged)
		was, _ := l.nodes[0].View().Node(id)
		l.stop(1)
		must(t, os.RemoveAll(filepath.Join(l.dir, "1", "state")))
		l.edit = func(i int, c *Config) {
			if i == 1 {
				c.ID = id
			}
		}
		h = l.start(1)
		l.await("converged", 40*time.Second, l.converged)
		l.await("new life", 10*time.Second, func() bool {
			n, ok := l.nodes[0].View().Node(id)
			return ok && n.Epoch > was.Epoch
		})
		l.await("converged again", 10*time.Second, l.converged)
		for _, h := range l.nodes {
			if n, _ := h.View().Network(nw.ID); n.Len() != 0 {
				t.Errorf("%s shows %d endpoints of the former life", h.c.Name, n.Len())
			}
		}
		if len(h.Warnings()) != 0 {
			t.Errorf("warns %q", h.Warnings())
		}
		out := h.do(t, state.Create{Name: "works"})
		l.await("works", 5*time.Second, func() bool {
			_, ok := l.nodes[2].View().Network(out.Network)
			return ok
		})
	})
}
