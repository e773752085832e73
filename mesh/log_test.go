package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"meshnet/crdt"
	"meshnet/ipam"
	"meshnet/netns/nstest"
	"meshnet/state"
)

// platter is a disk that a test fills and breaks. Its files are real ones.
type platter struct {
	mu        sync.Mutex
	free      int64 // bytes; what is reserved is taken off
	noReserve bool
	syncErr   error
}

func (p *platter) set(f func()) { p.mu.Lock(); f(); p.mu.Unlock() }

func (p *platter) open(path string, fresh bool) (disk, error) {
	d, err := openDisk(path, fresh)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if fresh && p.free <= 0 {
		return nil, errors.Join(syscall.ENOSPC, d.Close())
	}
	info, err := os.Stat(path)
	return &platterFile{p: p, disk: d, size: info.Size(), room: info.Size()}, err
}

type platterFile struct {
	disk
	p          *platter
	size, room int64
}

// Write writes as much as there is space for.
func (f *platterFile) Write(b []byte) (int, error) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	n := min(int64(len(b)), max(0, f.room-f.size)+max(0, f.p.free))
	m, err := f.disk.Write(b[:n])
	f.size += int64(m)
	if f.size > f.room {
		f.p.free -= f.size - f.room
		f.room = f.size
	}
	if err == nil && m < len(b) {
		err = syscall.ENOSPC
	}
	return m, err
}

func (f *platterFile) Reserve(size int64) error {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	switch {
	case f.p.noReserve:
		return errors.ErrUnsupported
	case size-f.room > f.p.free:
		return syscall.ENOSPC
	case size > f.room:
		f.p.free -= size - f.room
		f.room = size
	}
	return nil
}

func (f *platterFile) Truncate(size int64) error {
	f.size = size
	return f.disk.Truncate(size)
}

func (f *platterFile) Sync() error {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	return f.p.syncErr
}

// busyLog returns a log as a node leaves it that was asked for much, and a configuration with an empty
// state directory for it.
func busyLog(t *testing.T) (c Config, log []byte) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		l.edit = func(_ int, c *Config) { c.Join = nil }
		h := l.start(0)
		<-h.Ready()
		nw, _ := h.View().ByName("default")
		a := h.do(t, attach(nw.ID, "a"))
		h.do(t, attach(nw.ID, "b"))
		h.do(t, state.Detach{ID: a.Endpoint})
		h.do(t, state.Create{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/24")})
		l.stop(0)
		c = l.config(0)
		var err error
		log, err = os.ReadFile(filepath.Join(c.StateDir, "log"))
		must(t, err)
	})
	// The lab is gone, and its files with it.
	dir := fastDir(t)
	c.StateDir, c.MachineID, c.BootID = dir, filepath.Join(dir, "machine-id"), filepath.Join(dir, "boot-id")
	for _, p := range []string{c.MachineID, c.BootID} {
		must(t, os.WriteFile(p, fmt.Appendf(nil, "%s of %d\n", filepath.Base(p), 0), 0o600))
	}
	return c, log
}

// fastDir is a directory in memory where there is one: these tests sync often.
func fastDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "meshnet-test")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestCrashAtEveryByte: a log that ends anywhere is read up to its last whole record; the node is who
// it was, in a new epoch, and the start after that finds all in order.
func TestCrashAtEveryByte(t *testing.T) {
	c, log := busyLog(t)
	all, err := parseLog(log)
	must(t, err)
	c, err = c.check()
	must(t, err)
	last, _ := lastBoot(all.records)
	for cut := range len(log) + 1 {
		must(t, os.WriteFile(filepath.Join(c.StateDir, "log"), log[:cut], 0o600))
		must(t, identity{identityFormat, last.Node, machineHash(c.MachineID), 1}.store(c.StateDir))
		want, err := parseLog(log[:cut])
		must(t, err)
		s, err := openState(&c)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		wishes := map[state.EndpointID]bool{}
		for _, r := range want.records {
			switch r.kind {
			case recAttach:
				w, err := decodeWish(r.body)
				must(t, err)
				wishes[w.ID] = true
			case recDetach:
				id, err := state.ParseEndpointID(string(r.body))
				must(t, err)
				delete(wishes, id)
			}
		}
		whole := want.whole && len(want.records) > 0
		if s.id.String() != last.Node || s.damaged || s.resumed != whole || (s.epoch > 1) == whole || len(s.wishes) != len(wishes) || s.full != nil {
			t.Fatalf("cut at %d: node %s, damaged %t, resumed %t, epoch %d, wishes %d, want %d, %v", cut, s.id, s.damaged, s.resumed, s.epoch, len(s.wishes), len(wishes), s.full)
		}
		must(t, s.log.close())
		again, err := openState(&c)
		_, written := s.doc.View().Node(s.id) // else its new epoch has no op to go by
		if err != nil || !again.resumed || again.epoch != s.epoch || written && again.doc.Digest() != s.doc.Digest() ||
			!reflect.DeepEqual(again.wishes, s.wishes) || len(again.ipam) != len(s.ipam) {
			t.Fatalf("cut at %d, second start: resumed %t, epoch %d after %d, %v", cut, again.resumed, again.epoch, s.epoch, err)
		}
		must(t, again.log.close())
	}
	t.Logf("%d bytes, %d records", len(log), len(all.records))
}

// TestDamagedLog: a byte that went bad anywhere is no reason not to start. What is behind it is read,
// the file is set aside, and the node begins a new epoch.
func TestDamagedLog(t *testing.T) {
	c, log := busyLog(t)
	c, err := c.check()
	must(t, err)
	p, err := parseLog(log)
	must(t, err)
	last, _ := lastBoot(p.records)
	for at := 0; at < len(log); at += 3 {
		if at == len(logName) {
			continue // the version
		}
		bad := slices.Clone(log)
		bad[at] ^= 0x41
		must(t, os.WriteFile(filepath.Join(c.StateDir, "log"), bad, 0o600))
		must(t, identity{identityFormat, last.Node, machineHash(c.MachineID), 1}.store(c.StateDir))
		os.Remove(filepath.Join(c.StateDir, "log.damaged"))
		s, err := openState(&c)
		if err != nil {
			t.Fatalf("damaged at %d: %v", at, err)
		}
		if s.id.String() != last.Node || s.epoch < 2 || s.full != nil {
			t.Fatalf("damaged at %d: node %s, epoch %d, %v", at, s.id, s.epoch, s.full)
		}
		kept, err := os.ReadFile(filepath.Join(c.StateDir, "log.damaged"))
		if s.damaged != (err == nil) || s.damaged && (!bytes.Equal(kept, bad) || !strings.Contains(fmt.Sprint(s.notes), "log.damaged")) {
			t.Fatalf("damaged at %d (%t): set aside: %v, said %q", at, s.damaged, err, s.notes)
		}
		got, err := readLog(s.log.path)
		if err != nil || !got.whole || len(got.records) == 0 {
			t.Fatalf("damaged at %d: the new log: %v", at, err)
		}
		if at > len(logMagic) && at < len(log)/2 && len(s.wishes) == 0 {
			t.Fatalf("damaged at %d: what is behind was not read", at)
		}
		must(t, s.log.close())
	}
}

// TestUnreadableRecord: what verifies and cannot be read is damage as well, never fatal.
func TestUnreadableRecord(t *testing.T) {
	c, log := busyLog(t)
	c, err := c.check()
	must(t, err)
	p, err := parseLog(log)
	must(t, err)
	last, _ := lastBoot(p.records)
	for _, r := range []record{{recAttach, []byte("{")}, {recDetach, []byte("zz")}, {recState, []byte{9, 9, 9}}} {
		must(t, os.WriteFile(filepath.Join(c.StateDir, "log"), appendRecord(slices.Clone(log), r), 0o600))
		must(t, identity{identityFormat, last.Node, machineHash(c.MachineID), 1}.store(c.StateDir))
		s, err := openState(&c)
		if err != nil || !s.damaged || len(s.wishes) != 1 || s.epoch < 2 {
			t.Fatalf("kind %d: %v", r.kind, err)
		}
		must(t, s.log.close())
	}
}

// TestLaterVersion: records and fields of a later version outlive an earlier one, also when the log is
// written anew; a log in a later format is not touched.
func TestLaterVersion(t *testing.T) {
	c, log := busyLog(t)
	c, err := c.check()
	must(t, err)
	p, err := parseLog(log)
	must(t, err)
	last, _ := lastBoot(p.records)
	wish := encodeWish(fullWish)
	wish = append(wish[:len(wish)-1], []byte(`,"later":1}`)...)
	log = appendRecord(appendRecord(log, record{200, []byte("later")}), record{recAttach, wish})
	path := filepath.Join(c.StateDir, "log")
	must(t, os.WriteFile(path, log, 0o600))
	must(t, identity{identityFormat, last.Node, machineHash(c.MachineID), 1}.store(c.StateDir))
	s, err := openState(&c)
	must(t, err)
	if s.damaged || !s.resumed {
		t.Errorf("damaged %t, resumed %t", s.damaged, s.resumed)
	}
	must(t, errors.Join(s.rewrite(), s.log.close()))
	b, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Contains(b, wish) || !bytes.Contains(b, appendRecord(nil, record{200, []byte("later")})) {
		t.Error("what a later version wrote is gone")
	}
	for name, text := range map[string]string{"log": "meshnet log 2\nabc", "identity": `{"format":2,"who":"x"}`} {
		must(t, os.WriteFile(filepath.Join(c.StateDir, name), []byte(text), 0o600))
		if _, err := openState(&c); !errors.Is(err, errNewer) || strings.Contains(err.Error(), "\n") {
			t.Errorf("later %s: %v", name, err)
		}
		if b, err := os.ReadFile(filepath.Join(c.StateDir, name)); err != nil || string(b) != text {
			t.Errorf("later %s was touched: %q %v", name, b, err)
		}
		must(t, os.WriteFile(path, log, 0o600))
	}
}

// TestDamagedIdentity: the log says who wrote it; without both it is a new node.
func TestDamagedIdentity(t *testing.T) {
	c, log := busyLog(t)
	c, err := c.check()
	must(t, err)
	p, err := parseLog(log)
	must(t, err)
	last, _ := lastBoot(p.records)
	path := filepath.Join(c.StateDir, "identity")
	for _, text := range []string{"", "{", "\x00\x00", `{"format":1,"id":"zz"}`, `{"format":1,"id":"0000000000000000"}`, "gone"} {
		must(t, os.WriteFile(filepath.Join(c.StateDir, "log"), log, 0o600))
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if text == "gone" {
			must(t, os.Remove(path))
		}
		s, err := openState(&c)
		if err != nil || s.id.String() != last.Node || s.resumed || s.epoch <= last.Epoch+1 || len(s.wishes) != 1 {
			t.Fatalf("%q: node %s, %v", text, s.id, err)
		}
		must(t, s.log.close())
		again, err := openState(&c)
		if err != nil || again.id != s.id || !again.resumed {
			t.Fatalf("%q, second start: %v", text, err)
		}
		must(t, again.log.close())
	}
	must(t, os.WriteFile(path, []byte("{"), 0o600))
	must(t, os.WriteFile(filepath.Join(c.StateDir, "log"), []byte("nonsense"), 0o600))
	s, err := openState(&c)
	if err != nil || s.id.String() == last.Node || len(s.wishes) != 0 {
		t.Fatalf("neither: node %s, %v", s.id, err)
	}
	must(t, s.log.close())
}

func FuzzOpenState(f *testing.F) {
	f.Add([]byte(logMagic), []byte(`{"format":1,"id":"00000000000000ff"}`))
	boot := bootRecord(boot{Boot: "9f8a", Node: "00000000000000ff", Epoch: 3, Actor: 5})
	f.Add(appendRecord(appendRecord([]byte(logMagic), boot), record{recAttach, encodeWish(fullWish)}), []byte("{"))
	f.Fuzz(func(t *testing.T, log, id []byte) {
		dir := fastDir(t)
		c := Config{StateDir: dir, Addr: addr(0), Log: slog.New(slog.DiscardHandler), MachineID: "/nonexistent", BootID: "/nonexistent"}
		c, err := c.check()
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "log"), log, 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "identity"), id, 0o600))
		s, err := openState(&c)
		if errors.Is(err, errNewer) {
			return
		}
		must(t, err)
		ipam.New(ipam.Config{Self: s.id, Epoch: s.epoch, Records: s.ipam})
		s.doc.View()
		must(t, s.log.close())
	})
}

// TestCompaction: a log that grew is written anew while running, and says the same.
func TestCompaction(t *testing.T) {
	dir := fastDir(t)
	c := Config{StateDir: dir, Addr: addr(0), Log: slog.New(slog.DiscardHandler), MachineID: "/nonexistent"}
	c, err := c.check()
	must(t, err)
	s, err := openState(&c)
	must(t, err)
	rewritten := 0
	var held state.EndpointID
	for i := range uint64(20000) {
		w := fullWish
		w.ID = state.EndpointID(i + 1)
		out, err := s.doc.Apply(state.PutNode{Node: state.Node{Name: fmt.Sprint(i), Addr: addr(0)}})
		must(t, err)
		rs := append(stateRecords(out), s.keep(w))
		if held != 0 {
			rs = append(rs, s.drop(held))
		}
		held = w.ID
		must(t, s.log.add(rs))
		if s.outgrown() {
			must(t, s.rewrite())
			rewritten++
			if s.log.size > 4096 {
				t.Fatalf("%d bytes after it was written anew", s.log.size)
			}
		}
	}
	if rewritten == 0 || s.log.size > compactMin {
		t.Errorf("written anew %d times, %d bytes", rewritten, s.log.size)
	}
	must(t, s.log.close())
	again, err := openState(&c)
	must(t, err)
	if !again.resumed || again.epoch != s.epoch || again.doc.Digest() != s.doc.Digest() || !reflect.DeepEqual(again.wishes, s.wishes) {
		t.Errorf("another state after compaction: epoch %d, %d wishes", again.epoch, len(again.wishes))
	}
	out, err := again.doc.Apply(state.PutNode{Node: state.Node{Name: "more", Addr: addr(0)}})
	must(t, err)
	want, err := s.doc.Apply(state.PutNode{Node: state.Node{Name: "more", Addr: addr(0)}})
	if err != nil || out.Ops[0].Seq != want.Ops[0].Seq {
		t.Errorf("a seq was given twice: %d, want %d", out.Ops[0].Seq, want.Ops[0].Seq)
	}
	must(t, again.log.close())
}

// bulky gives a container many names, so that its records fill a disk soon.
func bulky(w state.Attach) state.Attach {
	for i := range 16 {
		w.Names = append(w.Names, fmt.Sprintf("%s-%d", strings.Repeat("n", 59), i))
	}
	return w
}

// TestFullDisk: a node whose disk is full refuses what it could not keep, in one line, goes on with
// all else, and takes up again when there is space; whatever was on its way when it filled up.
func TestFullDisk(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*platter)
		mend  func(*platter)
	}{
		{"reserve", func(p *platter) { p.free = 0 }, func(p *platter) { p.free = 64 << 20 }},
		{"no reserve", func(p *platter) { p.free, p.noReserve = 37, true }, func(p *platter) { p.free = 64 << 20 }},
		{"sync", func(p *platter) { p.syncErr = syscall.EIO }, func(p *platter) { p.syncErr = nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.end()
				p := &platter{free: 64 << 20, noReserve: tt.name == "no reserve"}
				l.edit = func(i int, c *Config) {
					if i == 1 {
						c.openLog = p.open
					}
				}
				for i := range 3 {
					l.start(i)
				}
				l.await("formed", 10*time.Second, l.converged)
				web := l.nodes[0].do(t, state.Create{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16")}).Network
				l.await("web known", 2*time.Second, l.converged)
				h := l.nodes[1]
				first := h.do(t, attach(web, "before"))
				gone := h.do(t, attach(web, "gone"))
				l.nodes[2].do(t, attach(web, "there"))
				l.await("attached", 2*time.Second, l.converged)

				p.set(func() { tt.spoil(p) })
				epoch := h.doc.Epoch()
				var err error
				for k := range 2000 {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					_, err = h.Do(ctx, bulky(attach(web, fmt.Sprint("c", k))))
					cancel()
					if err != nil {
						break
					}
				}
				remedy := "free space on "
				if tt.name == "sync" {
					remedy = "look after the disk of "
				}
				if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), remedy) {
					t.Fatalf("on a full disk: %v", err)
				}
				t.Log(err)
				if _, err := h.Do(t.Context(), state.Create{Name: "more"}); err == nil {
					t.Error("a network was promised on a full disk")
				}
				if w := h.Warnings(); len(w) != 1 {
					t.Errorf("warnings %q", w)
				}
				_, err = h.Do(t.Context(), state.Detach{ID: gone.Endpoint})
				if (err == nil) != (tt.name == "reserve") {
					t.Errorf("detach: %v", err)
				}
				// What others do is seen, and is not lost.
				out := l.nodes[2].do(t, attach(web, "other"))
				l.await("seen on the full node", 5*time.Second, func() bool { _, ok := h.View().Endpoint(out.Endpoint); return ok })
				if len(l.nodes[0].members.alive()) != 2 {
					t.Error("the full node is not there any more")
				}
				time.Sleep(10 * time.Second)

				p.set(func() { tt.mend(p) })
				refused := len(h.Wishes())
				l.await("takes wishes", 3*time.Second, func() bool { return len(h.Warnings()) == 0 })
				if n := len(h.Wishes()); n != refused {
					t.Errorf("%d attachments after %d: what was refused is there", n, refused)
				}
				second := h.do(t, attach(web, "after"))
				if second.Addr == first.Addr {
					t.Error("an address twice")
				}
				l.await("converged", 10*time.Second, l.converged)
				digest := h.View().Digest()
				l.stop(1)
				p.set(func() { p.syncErr = nil })
				l.net.Split([]netip.Addr{addr(1)})
				h = l.start(1)
				if h.View().Digest() != digest || h.doc.Epoch() != epoch {
					t.Errorf("after a restart: epoch %d, was %d; digest %x, was %x", h.doc.Epoch(), epoch, h.View().Digest(), digest)
				}
				l.net.Heal()
				l.await("converged", 40*time.Second, l.converged)
			})
		})
	}
}

// TestFullDiskCrash: a node that dies while something of its own is not in the log, or that starts on
// a full disk after the machine went down, tells nobody of what it may not know later.
func TestFullDiskCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		p := &platter{free: 64 << 20, noReserve: true}
		l.edit = func(i int, c *Config) {
			if i == 1 {
				c.openLog = p.open
			}
		}
		for i := range 3 {
			l.start(i)
		}
		l.await("formed", 10*time.Second, l.converged)
		web := l.nodes[0].do(t, state.Create{Name: "web", Subnet: netip.MustParsePrefix("10.2.0.0/16")}).Network
		l.await("web known", 2*time.Second, l.converged)
		kept := l.nodes[1].do(t, attach(web, "kept"))
		l.await("attached", 2*time.Second, l.converged)
		time.Sleep(10 * time.Second) // no block is on its way to it
		p.set(func() { p.free = 37 })
		w := attach(web, "lost")
		w.ID = 77
		if _, err := l.nodes[1].Do(t.Context(), w); err == nil {
			t.Fatal("promised")
		}
		time.Sleep(10 * time.Second)
		if _, ok := l.nodes[0].View().Endpoint(77); ok {
			t.Error("others were told of what is not in the log")
		}
		epoch := l.nodes[1].doc.Epoch()
		l.stop(1)
		h := l.start(1)
		if h.doc.Epoch() != epoch || len(h.Wishes()) != 1 {
			t.Errorf("after a crash: epoch %d, was %d; %d wishes", h.doc.Epoch(), epoch, len(h.Wishes()))
		}
		l.await("back", 40*time.Second, l.converged)
		l.stop(1)

		// The machine goes down, and its disk is as full when it comes up.
		must(t, os.WriteFile(filepath.Join(l.dir, "1", "boot-id"), []byte("another\n"), 0o600))
		p.set(func() { p.free = 0 })
		h = l.start(1)
		if len(h.Wishes()) != 1 {
			t.Errorf("%d wishes", len(h.Wishes()))
		}
		if e, ok := h.View().Endpoint(kept.Endpoint); !ok || e.Addr != kept.Addr {
			t.Errorf("the container's endpoint: %+v", e)
		}
		time.Sleep(20 * time.Second)
		if len(h.Warnings()) != 1 || len(h.members.alive()) != 2 {
			t.Errorf("warnings %q, %d members", h.Warnings(), len(h.members.alive()))
		}
		if n, _ := l.nodes[0].View().Node(h.Self()); n.Epoch != epoch {
			t.Errorf("others see epoch %d of a node that could not store it", n.Epoch)
		}
		out := l.nodes[2].do(t, attach(web, "other"))
		l.await("others' containers are seen", 20*time.Second, func() bool { _, ok := h.View().Endpoint(out.Endpoint); return ok })
		p.set(func() { p.free = 64 << 20 })
		l.await("takes wishes", 3*time.Second, func() bool { return len(h.Warnings()) == 0 })
		l.await("converged", 20*time.Second, l.converged)
		if n, _ := l.nodes[0].View().Node(h.Self()); n.Epoch <= crdt.Epoch(epoch) {
			t.Errorf("others see epoch %d after a reboot, as before", n.Epoch)
		}
		h.do(t, attach(web, "after"))
	})
}

// TestFullFileSystem is TestFullDisk on a real file system of little space.
func TestFullFileSystem(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "small", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", dir).Run()
	// Not in a bubble: the log's system calls are what is looked at.
	l := newLab(t)
	l.edit = func(_ int, c *Config) { c.Join, c.StateDir = nil, filepath.Join(dir, "state") }
	h := l.start(0)
	defer l.stop(0)
	<-h.Ready()
	nw, _ := h.View().ByName("default")
	h.do(t, attach(nw.ID, "before"))
	fill := filepath.Join(dir, "fill")
	f, err := os.Create(fill)
	must(t, err)
	for n := 1 << 20; n > 0; { // to the last byte
		if _, err := f.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
	var refused error
	for k := 0; k < 5000 && refused == nil; k++ {
		_, refused = h.Do(t.Context(), bulky(attach(nw.ID, fmt.Sprint("c", k))))
	}
	if refused == nil || !strings.Contains(refused.Error(), "no space left on device") {
		t.Fatalf("on a full file system: %v", refused)
	}
	if p, err := readLog(filepath.Join(dir, "state", "log")); err != nil || !p.whole {
		t.Errorf("the log is not whole: %v", err)
	}
	must(t, errors.Join(f.Close(), os.Remove(fill)))
	deadline := time.After(5 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		if _, err := h.Do(t.Context(), attach(nw.ID, "after")); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it does not take up again")
		}
	}
}
