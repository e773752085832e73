package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"meshnet/agent"
	"meshnet/state"
)

// door is a model: it remembers what it was asked, reads the file that came, and fails as told.
type door struct {
	mu     sync.Mutex
	asked  []agent.AttachRequest
	read   []string
	wished []state.Create
	fail   error
}

func (d *door) setFail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *door) Status(context.Context) agent.Status { return agent.Status{} }
func (d *door) Nodes() []agent.Node                 { return nil }
func (d *door) Networks() []agent.Network           { return nil }
func (d *door) PS(bool) []agent.Attachment          { return nil }

func (d *door) Inspect(name string) (agent.Network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return agent.Network{Network: &state.Network{Name: name}}, d.fail
}

func (d *door) Create(_ context.Context, w state.Create) (agent.Network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wished = append(d.wished, w)
	return agent.Network{Network: &state.Network{Name: w.Name}}, d.fail
}

func (d *door) RemoveNetwork(_ context.Context, name string, force bool) (agent.Network, error) {
	return agent.Network{Network: &state.Network{Name: fmt.Sprint(name, force)}}, d.fail
}

func (d *door) Spaces(context.Context, string) ([]agent.Space, error) { return nil, nil }
func (d *door) Conflicts() []agent.Conflict                           { return nil }
func (d *door) Leave(context.Context) error                           { return nil }

func (d *door) RemovePeer(_ context.Context, name, heir string, _ bool) (state.Lost, bool, error) {
	return state.Lost{Node: 3, Name: name + heir}, false, nil
}

func (d *door) Attach(_ context.Context, r agent.AttachRequest) (agent.Attachment, []string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, r)
	if r.Container.NS != nil {
		b, err := io.ReadAll(r.Container.NS)
		if err != nil {
			return agent.Attachment{}, nil, err
		}
		d.read = append(d.read, string(b))
	}
	return agent.Attachment{Container: r.Container.Name}, nil, d.fail
}

func (d *door) Detach(_ context.Context, r agent.Ref, _ string) ([]agent.Attachment, error) {
	if r.NS != nil {
		b, err := io.ReadAll(r.NS)
		return []agent.Attachment{{Container: string(b)}}, err
	}
	return nil, d.fail
}

func config(path string, d Door, stop func()) Config {
	return Config{Path: path, Door: d, Version: "1", RunDir: "/r", StateDir: "/s", OVSDB: "unix:/o", Stop: stop, Log: slog.New(slog.DiscardHandler)}
}

func serve(t *testing.T, d Door) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sub", "s")
	ctx, cancel := context.WithCancel(context.Background())
	s, err := Listen(config(path, d, cancel))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket is left: %v", err)
		}
	})
	return path
}

func fileWith(t *testing.T, text string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// descriptors counts the open files of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// settle waits until a condition holds, five seconds at most.
func settle(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		<-tick.C
	}
}

// TestPass hands files over with requests, in parallel; none stays open.
func TestPass(t *testing.T) {
	d := &door{}
	path := serve(t, d)
	c := NewClient(path)
	before := descriptors(t)
	var wg sync.WaitGroup
	var want []string
	for i := range 20 {
		text := fmt.Sprintf("namespace %02d", i)
		want = append(want, text)
		f := fileWith(t, text)
		before++
		wg.Go(func() {
			ask := AttachRequest{Container: Ref{Name: text, Path: "/p"}, Network: "web"}
			if got, err := c.Attach(context.Background(), ask, f); err != nil || got.Container != text {
				t.Errorf("attach: %+v %v", got, err)
			}
		})
	}
	wg.Wait()
	slices.Sort(d.read)
	if !slices.Equal(d.read, want) {
		t.Errorf("read %q, want %q", d.read, want)
	}
	// A large request, so that the file comes with the first of several writes.
	f := fileWith(t, "large")
	before++
	got, err := c.Detach(context.Background(), DetachRequest{Container: Ref{Name: strings.Repeat("x", 40_000), PID: 7}}, f)
	if err != nil || got.Detached[0].Container != "large" {
		t.Errorf("detach: %v", err)
	}
	settle(t, "descriptors are left open", func() bool { return descriptors(t) <= before })
}

// TestPassWrong: a file without its words, words without a file, many files, files nobody takes.
func TestPassWrong(t *testing.T) {
	d := &door{}
	path := serve(t, d)
	c := NewClient(path)
	f := fileWith(t, "x")
	before := descriptors(t)
	for _, test := range []struct {
		ref  Ref
		file *os.File
	}{{Ref{Name: "c1"}, f}, {Ref{Name: "c1", PID: 1}, nil}, {Ref{Name: "c1", Path: "/p"}, nil}, {Ref{Path: "/p"}, f}} {
		_, err := c.Attach(context.Background(), AttachRequest{Container: test.ref}, test.file)
		if e := (&Error{}); !errors.As(err, &e) || e.Code != Invalid {
			t.Errorf("attach %+v: %v", test.ref, err)
		}
	}
	var fds []int
	for range 50 {
		fds = append(fds, int(f.Fd()))
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 3 {
		if _, _, err := conn.WriteMsgUnix([]byte("GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n"), syscall.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
	}
	answer := make([]byte, 1000)
	if n, err := conn.Read(answer); err != nil || !bytes.Contains(answer[:n], []byte("200 OK")) {
		t.Errorf("answer %q %v", answer[:n], err)
	}
	conn.Close()
	settle(t, "descriptors are left open", func() bool { return descriptors(t) <= before })
	if len(d.asked) > 0 {
		t.Errorf("the door was asked %+v", d.asked)
	}
}

// TestBounds: large, broken and slow requests are refused and harm nobody else.
func TestBounds(t *testing.T) {
	path := serve(t, &door{})
	c := NewClient(path)
	_, err := c.Create(context.Background(), CreateRequest{Name: strings.Repeat("x", bodyMax)})
	if e := (&Error{}); !errors.As(err, &e) || e.Code != Invalid {
		t.Errorf("large request: %v", err)
	}
	for _, raw := range []string{
		"nonsense\r\n\r\n",
		"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{{{",
		"GET /v1/nodes HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"GET /v1/networks/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(conn, raw)
		answer := make([]byte, 100)
		n, _ := conn.Read(answer)
		if !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 4") {
			t.Errorf("%.30q: answer %q", raw, answer[:n])
		}
		conn.Close()
	}
	var idle []net.Conn
	for range connsMax / 2 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	if _, err := c.Version(context.Background()); err != nil {
		t.Errorf("beside idle connections: %v", err)
	}
	for _, conn := range idle {
		conn.Close()
	}
}

// TestCodes: a sentinel arrives as its code, its text whole.
func TestCodes(t *testing.T) {
	d := &door{}
	c := NewClient(serve(t, d))
	for _, test := range []struct {
		err  error
		code Code
	}{
		{state.Refuse(state.ErrInvalid, "why; do"), Invalid}, {fmt.Errorf("x: %w", state.ErrNoNetwork), NotFound},
		{state.ErrNoContainer, NotFound}, {state.ErrNetworkInUse, InUse}, {state.ErrOverlap, InUse}, {state.ErrAddressInUse, InUse},
		{agent.ErrRefused, Refused}, {agent.ErrLate, Late}, {errors.New("disk full"), Failed},
	} {
		d.setFail(test.err)
		_, err := c.Inspect(context.Background(), "a/b c")
		_, err2 := c.Attach(context.Background(), AttachRequest{Container: Ref{Name: "c1"}}, nil)
		for _, err := range []error{err, err2} {
			if e := (&Error{}); !errors.As(err, &e) || e.Code != test.code || e.Message != test.err.Error() {
				t.Errorf("%v arrives as %#v", test.err, err)
			}
		}
	}
	d.setFail(nil)
	if n, err := c.Inspect(context.Background(), "a/b c~1"); err != nil || n.Name != "a/b c~1" {
		t.Errorf("name arrives as %q %v", n.Name, err)
	}
}

// TestSocket: stale ones are replaced, living ones not; who may use it.
func TestSocket(t *testing.T) {
	path := serve(t, &door{})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	if _, err := Listen(config(path, &door{}, func() {})); !errors.Is(err, ErrRunning) {
		t.Errorf("second daemon: %v", err)
	}
	if _, err := NewClient(path).Version(context.Background()); err != nil {
		t.Errorf("first daemon after the second: %v", err)
	}

	stale := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := NewClient(stale).Version(context.Background()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("ask a dead daemon: %v", err)
	}
	s, err := Listen(config(stale, &door{}, func() {}))
	if err != nil {
		t.Fatal(err)
	}
	s.listener.Close()
	if _, err := NewClient(filepath.Join(stale, "nowhere")).Nodes(context.Background()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("ask nobody: %v", err)
	}
	if _, err := Listen(Config{}); err == nil {
		t.Error("listen with nothing")
	}
}

// TestSilent: a daemon that has the socket and does not answer is not waited for for ever.
func TestSilent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &Client{path, 20 * time.Millisecond, 20 * time.Millisecond}
	_, err = c.Status(context.Background())
	_, err2 := c.Attach(context.Background(), AttachRequest{}, nil)
	if !errors.Is(err, ErrNoDaemon) || !errors.Is(err2, ErrNoDaemon) {
		t.Errorf("silent daemon: %v, %v", err, err2)
	}
}

// TestStop ends the daemon, and the answer still arrives.
func TestStop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(context.Background())
	s, err := Listen(config(path, &door{}, cancel))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	got, err := NewClient(path).Stop(context.Background())
	if err != nil || got.PID != os.Getpid() || got.RunDir != "/r" || got.StateDir != "/s" || got.OVSDB != "unix:/o" {
		t.Errorf("stop: %+v %v", got, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestRequests: words become values, wrong ones are refused.
func TestRequests(t *testing.T) {
	good := CreateRequest{
		Name: "web", Subnet: "10.2.0.0/16", Gateway: "none", Reserve: []Range{{"10.2.0.9", "10.2.0.11"}}, Labels: []Label{{"a", "b"}},
	}
	w, err := good.wish()
	if err != nil || !w.NoGateway || w.Gateway.IsValid() || w.Subnet.String() != "10.2.0.0/16" || w.Reserve[0].To.String() != "10.2.0.11" {
		t.Errorf("wish %+v %v", w, err)
	}
	for _, bad := range []CreateRequest{
		{Subnet: "10.2.0.0"}, {Subnet: "x/16"}, {Gateway: "x"}, {Reserve: []Range{{"10.2.0.9", ""}}},
	} {
		if _, err := bad.wish(); !errors.Is(err, state.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	a, err := AttachRequest{Container: Ref{Name: "c"}, IP: "10.2.0.7", MAC: "02:42:0a:02:00:07", Wait: 0.25}.request(nil)
	if err != nil || a.Wait != 250*time.Millisecond || a.Addr.String() != "10.2.0.7" {
		t.Errorf("request %+v %v", a, err)
	}
	for _, bad := range []AttachRequest{
		{}, {Container: Ref{Name: "c"}, IP: "::1"}, {Container: Ref{Name: "c"}, MAC: "x"}, {Container: Ref{Name: "c"}, Wait: -1},
		{Container: Ref{Name: "c"}, Wait: 1e9},
	} {
		if _, err := bad.request(nil); !errors.Is(err, state.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestKeys: scripts rely on these.
func TestKeys(t *testing.T) {
	for _, test := range []struct {
		v    any
		keys string
	}{
		{statusOf(agent.Status{}), "node converged digest nodes_alive nodes_known nodes_agreeing datapath encap transport pending warnings"},
		{nodeOf(agent.Node{Peer: state.Peer{Since: time.Unix(1, 0)}}), "id name address state tunnel rtt self version since"},
		{networkOf(agent.Network{Network: &state.Network{}}), "name id subnet gateway vni mtu internal endpoints"},
		{Attached{Attachment: attachmentOf(agent.Attachment{})}, "endpoint container network address mac ifname gateway node state names"},
	} {
		b, err := json.Marshal(test.v)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		for key := range strings.FieldsSeq(test.keys) {
			if v, ok := got[key]; !ok || v == nil {
				t.Errorf("%T has no %s: %s", test.v, key, b)
			}
		}
	}
}
