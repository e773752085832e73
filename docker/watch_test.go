package docker_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnet/agent"
	"meshnet/docker"
	"meshnet/state"
)

func TestWants(t *testing.T) {
	tests := []struct {
		labels map[string]string
		want   agent.Wants
	}{
		{nil, agent.Wants{}},
		{map[string]string{"meshnet.ip": "10.2.0.5", "meshnet.waits": "yes"}, agent.Wants{}}, // no network is no wish
		{map[string]string{"meshnet.network": " , "}, agent.Wants{}},
		{map[string]string{"meshnet.network": "web"}, agent.Wants{Networks: []string{"web"}}},
		{
			map[string]string{
				"meshnet.network": "web, db", "meshnet.ip": "10.2.0.5,10.3.0.6", "meshnet.alias": "www,api", "meshnet.ifname": "w0",
				"meshnet.default-route": "no", "meshnet.waits": "yes",
			},
			agent.Wants{
				Networks: []string{"web", "db"}, Addrs: []netip.Addr{netip.MustParseAddr("10.2.0.5"), netip.MustParseAddr("10.3.0.6")},
				Names: []string{"www", "api"}, IfNames: []string{"w0"}, NoDefaultRoute: true, Waits: true,
			},
		},
		{
			map[string]string{"meshnet.network": "web", "meshnet.ip": "10.2.0"},
			agent.Wants{Networks: []string{"web"}, Fault: "label meshnet.ip=10.2.0: want IPv4 addresses with commas between them"},
		},
		{
			map[string]string{"meshnet.network": "web", "meshnet.ip": "fd00::1"},
			agent.Wants{Networks: []string{"web"}, Fault: "label meshnet.ip=fd00::1: want IPv4 addresses with commas between them"},
		},
	}
	for _, tt := range tests {
		if got := docker.Wants(tt.labels); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%v is %+v, want %+v", tt.labels, got, tt.want)
		}
	}
}

// Containers of Podman are not taken for Docker's.
func TestPodmanSource(t *testing.T) {
	c, err := docker.NewPodman(filepath.Join(t.TempDir(), "none.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Source(id("aa")); c.Name() != "Podman" || s != (state.Source{Kind: state.SourceDocker, Docker: id("aa"), Path: docker.Podman}) {
		t.Errorf("%s %+v", c.Name(), s)
	}
	if _, _, err := c.Find(t.Context(), "web"); !errors.Is(err, docker.ErrNoDocker) || !strings.Contains(err.Error(), "ask Podman for container web") {
		t.Error(err)
	}
}

func TestList(t *testing.T) {
	d := model()
	d.containers[0].labels = map[string]string{"meshnet.network": "web"}
	d.containers[0].also = []string{"/db/www"} // a legacy link of db to it
	d.containers[1].paused = true
	all, err := serve(t, d).List(t.Context())
	if err != nil || len(all) != len(d.containers) {
		t.Fatal(all, err)
	}
	for i, c := range d.containers {
		want := agent.Container{
			Source: state.Source{Kind: state.SourceDocker, Docker: c.id}, Name: c.name, Running: c.running || c.paused,
			Wants: docker.Wants(c.labels),
		}
		if !reflect.DeepEqual(all[i], want) {
			t.Errorf("%+v, want %+v", all[i], want)
		}
	}
}

// TestWatch: events come as they happen, and each time the stream begins anew everything is to be
// looked at. Docker that comes later is found.
func TestWatch(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	c := open(t, socket)
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan agent.Happening, 100)
	ended := make(chan struct{})
	go func() {
		c.Watch(ctx, func(h agent.Happening) { told <- h })
		close(ended)
	}()
	next := func() agent.Happening {
		t.Helper()
		select {
		case h := <-told:
			return h
		case <-time.After(10 * time.Second):
			t.Fatal("nothing is told")
			return agent.Happening{}
		}
	}
	if h := next(); !h.All {
		t.Errorf("at first %+v", h)
	}
	d := model()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.Handler(d))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()
	defer cancel()
	if h := next(); !h.All {
		t.Errorf("when Docker came: %+v", h)
	}
	web := d.containers[0]
	web.labels = map[string]string{"meshnet.network": "web"}
	for _, e := range []struct {
		action string
		what   agent.What
	}{{"start", agent.Started}, {"die", agent.Ended}, {"rename", agent.Renamed}, {"destroy", agent.Ended}, {"remove", agent.Ended}} {
		d.event(e.action, web)
		h := next()
		if h.All || h.What != e.what || h.Container.Name != "web" || h.Container.Source.Docker != web.id ||
			!slices.Equal(h.Container.Wants.Networks, []string{"web"}) || h.Container.Running != (e.what == agent.Started) {
			t.Errorf("%s is told as %+v", e.action, h)
		}
	}
	d.event("", web)
	if h := next(); !h.All {
		t.Errorf("after the stream broke: %+v", h)
	}
	d.event("start", web)
	if h := next(); h.What != agent.Started {
		t.Errorf("on the new stream: %+v", h)
	}
	d.mu.Lock()
	for _, f := range d.filters {
		for _, want := range []string{`"container"`, `"start"`, `"die"`, `"destroy"`, `"remove"`, `"rename"`} {
			if !strings.Contains(f, want) {
				t.Errorf("events asked for by %s, without %s", f, want)
			}
		}
		// What happens between Docker's answer and its subscription is asked for too.
		var since int64
		if _, err := fmt.Sscanf(f[strings.LastIndexByte(f, '}')+1:], "%d", &since); err != nil || time.Since(time.Unix(since, 0)) > time.Minute {
			t.Errorf("events asked for since %s", f)
		}
	}
	d.mu.Unlock()
	cancel()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}
