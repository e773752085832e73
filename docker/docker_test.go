package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"meshnet/docker"
	"meshnet/state"
)

// daemon is a Docker daemon that knows a few requests of one API version.
type daemon struct {
	version string
	hang    chan struct{} // not nil: answers wait for it

	mu         sync.Mutex
	containers []container
	asked      int
	streams    []chan map[string]any // open streams of events
	filters    []string              // of the streams, as asked
}

type container struct {
	id, name, mode string
	running        bool
	pid            int
	labels         map[string]string
	also           []string // more names in lists
	paused         bool
}

// event sends an event on all streams; an empty action breaks them.
func (d *daemon) event(action string, c container) {
	d.mu.Lock()
	defer d.mu.Unlock()
	attributes := map[string]string{"name": c.name, "image": "busybox"}
	maps.Copy(attributes, c.labels)
	for _, s := range d.streams {
		if action == "" {
			close(s)
			continue
		}
		s <- map[string]any{"Type": "container", "Action": action, "Actor": map[string]any{"ID": c.id, "Attributes": attributes}}
	}
	if action == "" {
		d.streams = nil
	}
}

func (d *daemon) stream(w http.ResponseWriter, r *http.Request) {
	events := make(chan map[string]any, 10)
	d.mu.Lock()
	d.streams = append(d.streams, events)
	d.filters = append(d.filters, r.URL.Query().Get("filters")+r.URL.Query().Get("since"))
	d.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.(http.Flusher).Flush()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				panic(http.ErrAbortHandler)
			}
			json.NewEncoder(w).Encode(e)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v"+d.version+"/events" {
		d.stream(w, r)
		return
	}
	if d.hang != nil {
		select {
		case <-d.hang:
		case <-r.Context().Done():
		}
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	w.Header().Set("Api-Version", d.version)
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/_ping" {
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v"+d.version+"/containers/")
	switch ref, one := strings.CutSuffix(path, "/json"); {
	case !ok:
		refuse(w, http.StatusBadRequest, "client version is too new: "+r.URL.Path)
	case path == "json":
		d.list(w, r.URL.Query().Get("all") == "1")
	case one:
		d.inspect(w, ref)
	default:
		refuse(w, http.StatusNotFound, "page not found")
	}
}

func (d *daemon) list(w http.ResponseWriter, all bool) {
	list := []map[string]any{}
	for _, c := range d.containers {
		if all || c.running {
			state := "exited"
			switch {
			case c.paused:
				state = "paused"
			case c.running:
				state = "running"
			}
			list = append(list, map[string]any{
				"Id": c.id, "Names": append(slices.Clone(c.also), "/"+c.name), "State": state, "Labels": c.labels,
			})
		}
	}
	json.NewEncoder(w).Encode(list)
}

// inspect finds by id, then name, then beginning of an id, as moby's daemon/container.go does.
func (d *daemon) inspect(w http.ResponseWriter, ref string) {
	var found []container
	for _, fits := range []func(container) bool{
		func(c container) bool { return c.id == ref },
		func(c container) bool { return c.name == ref },
		func(c container) bool { return strings.HasPrefix(c.id, ref) },
	} {
		for _, c := range d.containers {
			if fits(c) {
				found = append(found, c)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	switch len(found) {
	case 0:
		refuse(w, http.StatusNotFound, "No such container: "+ref)
	case 1:
		c := found[0]
		json.NewEncoder(w).Encode(map[string]any{
			"Id": c.id, "Name": "/" + c.name,
			"State":      map[string]any{"Running": c.running, "Pid": c.pid},
			"HostConfig": map[string]any{"NetworkMode": c.mode},
		})
	default:
		refuse(w, http.StatusBadRequest, "Multiple IDs found with provided prefix: "+ref)
	}
}

func refuse(w http.ResponseWriter, code int, why string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]string{"message": why})
}

// serve starts a daemon and returns a client for it.
func serve(t *testing.T, d *daemon) *docker.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(d)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return open(t, socket)
}

func open(t *testing.T, socket string) *docker.Client {
	t.Helper()
	c, err := docker.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func id(beginning string) string { return beginning + strings.Repeat("0", 64-len(beginning)) }

func model() *daemon {
	return &daemon{version: "1.41", containers: []container{
		{id: id("aa11"), name: "web", mode: "default", running: true, pid: 100},
		{id: id("aa22"), name: "db", mode: "bridge"},
		{id: id("bb33"), name: "host", mode: "host", running: true, pid: 300},
		{id: id("cc44"), name: "side", mode: "container:" + id("aa11"), running: true, pid: 400},
		{id: id("dd55"), name: "aa", mode: "default", running: true},
		{id: id("ee66"), name: "old", mode: "default", pid: 600},
	}}
}

func TestFind(t *testing.T) {
	d := model()
	c := serve(t, d)
	tests := []struct{ ref, id, name string }{
		{"web", "aa11", "web"},
		{id("aa22"), "aa22", "db"},
		{"aa2", "aa22", "db"},
		{"b", "bb33", "host"},
		{"aa", "dd55", "aa"}, // a name goes before the beginning of an id
		{"nobody", "", ""},
		{"we", "", ""}, // names are whole
	}
	for _, tt := range tests {
		box, found, err := c.Find(t.Context(), tt.ref)
		got, name := box.ID, box.Name
		want := ""
		if tt.id != "" {
			want = id(tt.id)
		}
		if err != nil || found != (tt.id != "") || got != want || name != tt.name {
			t.Errorf("Find(%s) = %s, %s, %t, %v; want %s, %s", tt.ref, got, name, found, err, want, tt.name)
		}
	}
	_, found, err := c.Find(t.Context(), "a")
	want := "container a is ambiguous: aa1100000000 (web), aa2200000000 (db); give more of the id, or the name"
	if found || !errors.Is(err, state.ErrInvalid) || err.Error() != want {
		t.Errorf("ambiguous: %t, %v; want %q", found, err, want)
	}
}

// What cannot be a name is not sent, where it would be part of a path.
func TestFindAsksNothingForWhatIsNoName(t *testing.T) {
	d := model()
	c := serve(t, d)
	for _, ref := range []string{"", ".", "..", "-a", "/web", "web/json", "../web", "a b", "web?all=1", "wéb", "web\n"} {
		if _, found, err := c.Find(t.Context(), ref); found || err != nil {
			t.Errorf("Find(%q) = %t, %v; want nothing", ref, found, err)
		}
	}
	if d.asked != 0 {
		t.Errorf("asked %d times, want never", d.asked)
	}
}

func TestInspect(t *testing.T) {
	d := model()
	c := serve(t, d)
	tests := []struct {
		id     string
		pid    int
		host   bool
		shared string
	}{
		{"aa11", 100, false, ""},
		{"aa22", 0, false, ""},
		{"bb33", 300, true, ""},
		{"cc44", 400, false, id("aa11")},
		{"dd55", 0, false, ""}, // running, but between two processes
		{"ee66", 0, false, ""}, // the process that it had
	}
	for _, tt := range tests {
		got, err := c.Inspect(t.Context(), id(tt.id))
		if err != nil || got.PID != tt.pid || got.HostNet != tt.host || got.SharedWith != tt.shared || got.ID != id(tt.id) {
			t.Errorf("Inspect(%s) = %+v, %v; want %+v", tt.id, got, err, tt)
		}
	}
	d.mu.Lock()
	d.containers[0].pid = 101
	d.containers = d.containers[:1]
	d.mu.Unlock()
	if got, err := c.Inspect(t.Context(), id("aa11")); err != nil || got.PID != 101 {
		t.Errorf("after a restart: %+v, %v; want 101", got, err)
	}
	_, err := c.Inspect(t.Context(), id("aa22"))
	if !errors.Is(err, state.ErrNoContainer) || err.Error() != "container aa2200000000 was removed" {
		t.Errorf("after it was removed: %v", err)
	}
}

// The newest Docker and the oldest that is supported are both spoken to in their version.
func TestVersions(t *testing.T) {
	for _, version := range []string{"1.40", "1.41", "1.50"} {
		d := model()
		d.version = version
		if got, found, err := serve(t, d).Find(t.Context(), "web"); err != nil || !found || got.Name != "web" {
			t.Errorf("API %s: %+v, %t, %v", version, got, found, err)
		}
	}
}

func TestNoDocker(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	for _, socket := range []string{filepath.Join(dir, "none.sock"), dead} {
		c := open(t, socket)
		if _, found, err := c.Find(t.Context(), "web"); found || !errors.Is(err, docker.ErrNoDocker) {
			t.Errorf("Find at %s: %t, %v; want ErrNoDocker", socket, found, err)
		}
		if _, err := c.Inspect(t.Context(), id("aa11")); !errors.Is(err, docker.ErrNoDocker) {
			t.Errorf("Inspect at %s: %v; want ErrNoDocker", socket, err)
		}
		if _, err := c.List(t.Context()); !errors.Is(err, docker.ErrNoDocker) {
			t.Errorf("List at %s: %v; want ErrNoDocker", socket, err)
		}
		if err := c.Reachable(t.Context()); !errors.Is(err, docker.ErrNoDocker) || !strings.Contains(err.Error(), socket) {
			t.Errorf("Reachable at %s: %v; want ErrNoDocker", socket, err)
		}
	}
}

func TestDockerThatDoesNotAnswer(t *testing.T) {
	d := model()
	d.hang = make(chan struct{})
	c := serve(t, d)
	defer close(d.hang)
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, _, err := c.Find(ctx, "web")
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, docker.ErrNoDocker) || !strings.Contains(err.Error(), "see whether docker ps answers") {
		t.Errorf("Find: %v; want the deadline", err)
	}
}
