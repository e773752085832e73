package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestClone: of two hosts that run copies of one disk, machine id and all, the one with the larger address
// refuses changes and names both; the other goes on, and its part of the document is what it wrote.
func TestClone(t *testing.T) {
	for _, copyAt := range []int{1, 3} { // above the original's address, and below it
		t.Run(fmt.Sprint("original 2, copy ", copyAt), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { clone(t, 2, copyAt) })
		})
	}
}

func clone(t *testing.T, original, copied int) {
	l := newLab(t)
	defer l.end()
	l.start(0)
	l.start(original)
	l.await("formed", 10*time.Second, func() bool {
		return len(l.nodes[0].members.alive()) == 1 && l.nodes[0].View().Digest() == l.nodes[original].View().Digest()
	})
	must(t, os.CopyFS(filepath.Join(l.dir, fmt.Sprint(copied)), os.DirFS(filepath.Join(l.dir, fmt.Sprint(original)))))
	l.start(copied)
	first, second := l.nodes[min(original, copied)], l.nodes[max(original, copied)]
	if first.Self() != second.Self() {
		t.Fatal("not a copy")
	}
	// Both go on writing, as two hosts with containers that come and go do.
	refused := func(h *host, i int) string {
		nw, ok := h.View().ByName("default")
		if !ok {
			return ""
		}
		_, err := h.Do(t.Context(), attach(nw.ID, fmt.Sprint("c", h.i, i)))
		if err == nil {
			return ""
		}
		return err.Error()
	}
	said := ""
	for i := range 60 {
		time.Sleep(time.Second)
		refused(first, i)
		if said = refused(second, i); strings.Contains(said, "two hosts") {
			break
		}
	}
	for _, a := range []string{second.c.Addr.String(), first.c.Addr.String(), second.Self().String()} {
		if !strings.Contains(said, a) {
			t.Errorf("the larger says %q, want it to name %s", said, a)
		}
	}
	time.Sleep(5 * time.Second)
	if said := refused(first, 99); strings.Contains(said, "two hosts") { // it may lack addresses: answers go to the other
		t.Errorf("the smaller refuses: %s", said)
	}
	warned := strings.Join(second.Warnings(), "\n")
	if !strings.Contains(warned, "two hosts") {
		t.Errorf("the larger warns of %q", warned)
	}
	if warned := strings.Join(first.Warnings(), "\n"); !strings.Contains(warned, second.c.Addr.String()) {
		t.Errorf("the smaller warns of %q", warned)
	}
	if original < copied { // else it is the copy that goes on, and others hold on to the original
		l.await("the smaller's part is known", 20*time.Second, func() bool {
			return l.nodes[0].View().Digest() == first.View().Digest()
		})
	}
	l.stop(second.i)
	l.await("the warning goes with the copy", time.Minute, func() bool { return len(first.Warnings()) == 0 })
}
