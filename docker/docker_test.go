package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
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
}

type container struct {
	id, name, mode string
	running        bool
	pid            int
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
			list = append(list, map[string]any{"Id": c.id, "Names": []string{"/" + c.name}})
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
		got, name, found, err := c.Find(t.Context(), tt.ref)
		want := ""
		if tt.id != "" {
			want = id(tt.id)
		}
		if err != nil || found != (tt.id != "") || got != want || name != tt.name {
			t.Errorf("Find(%s) = %s, %s, %t, %v; want %s, %s", tt.ref, got, name, found, err, want, tt.name)
		}
	}
	_, _, found, err := c.Find(t.Context(), "a")
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
		if _, _, found, err := c.Find(t.Context(), ref); found || err != nil {
			t.Errorf("Find(%q) = %t, %v; want nothing", ref, found, err)
		}
	}
	if d.asked != 0 {
		t.Errorf("asked %d times, want never", d.asked)
	}
}

func TestPID(t *testing.T) {
	d := model()
	c := serve(t, d)
	tests := []struct {
		id            string
		pid           int
		running, host bool
		shared        string
	}{
		{"aa11", 100, true, false, ""},
		{"aa22", 0, false, false, ""},
		{"bb33", 300, true, true, ""},
		{"cc44", 400, true, false, id("aa11")},
		{"dd55", 0, false, false, ""}, // running, but between two processes
		{"ee66", 0, false, false, ""}, // the process that it had
	}
	for _, tt := range tests {
		pid, running, host, shared, err := c.PID(t.Context(), id(tt.id))
		if err != nil || pid != tt.pid || running != tt.running || host != tt.host || shared != tt.shared {
			t.Errorf("PID(%s) = %d, %t, %t, %q, %v; want %+v", tt.id, pid, running, host, shared, err, tt)
		}
	}
	d.mu.Lock()
	d.containers[0].pid = 101
	d.containers = d.containers[:1]
	d.mu.Unlock()
	if pid, _, _, _, err := c.PID(t.Context(), id("aa11")); err != nil || pid != 101 {
		t.Errorf("after a restart: %d, %v; want 101", pid, err)
	}
	_, running, _, _, err := c.PID(t.Context(), id("aa22"))
	if running || !errors.Is(err, state.ErrNoContainer) || err.Error() != "container aa2200000000 was removed" {
		t.Errorf("after it was removed: %t, %v", running, err)
	}
}

// The newest Docker and the oldest that is supported are both spoken to in their version.
func TestVersions(t *testing.T) {
	for _, version := range []string{"1.40", "1.41", "1.50"} {
		d := model()
		d.version = version
		if _, name, found, err := serve(t, d).Find(t.Context(), "web"); err != nil || !found || name != "web" {
			t.Errorf("API %s: %s, %t, %v", version, name, found, err)
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
		if _, _, found, err := c.Find(t.Context(), "web"); found || !errors.Is(err, docker.ErrNoDocker) {
			t.Errorf("Find at %s: %t, %v; want ErrNoDocker", socket, found, err)
		}
		if _, _, _, _, err := c.PID(t.Context(), id("aa11")); !errors.Is(err, docker.ErrNoDocker) {
			t.Errorf("PID at %s: %v; want ErrNoDocker", socket, err)
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
	_, _, _, err := c.Find(ctx, "web")
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, docker.ErrNoDocker) || !strings.Contains(err.Error(), "see whether docker ps answers") {
		t.Errorf("Find: %v; want the deadline", err)
	}
}
