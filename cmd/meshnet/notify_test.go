package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"meshnet/api"
)

// TestNotify: the service manager hears once the node is ready, and programs that the daemon starts do
// not inherit its socket.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	w := waiting{nil, newNotify()}
	if newNotify().to != "" {
		t.Error("the environment still has it")
	}
	if err := errors.Join(w.tell(ready{Error: "no"}), w.tell(ready{Running: "1"}), w.tell(ready{Name: "h1", ID: "ff", Address: "192.0.2.1", Transport: "kernel-vxlan"})); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1000)
	n, err := l.Read(b)
	if got := string(b[:n]); err != nil || got != "READY=1\nSTATUS=node h1 (ff) on 192.0.2.1, transport kernel-vxlan" {
		t.Errorf("%q %v", got, err)
	}
	if err := (notify{}).say("READY=1"); err != nil {
		t.Errorf("nobody asked: %v", err)
	}
	if err := (notify{"/nowhere"}).say("READY=1"); err == nil {
		t.Error("nobody heard")
	}
}

// TestUpAtOnce: of several that start at once one is the daemon, and the others wait for it and say
// that it runs.
func TestUpAtOnce(t *testing.T) {
	dir := t.TempDir()
	o := options{runDir: dir, socket: filepath.Join(dir, "s")}
	held, err := lock(dir, syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 3)
	for range 3 {
		go func() { ended <- runWhereverItIs(t.Context(), o, slog.New(slog.DiscardHandler), waiting{}) }()
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := api.Listen(api.Config{Path: o.socket, Door: newDoor(), Version: "0.1.0", Stop: cancel, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	for range 3 {
		other := &errRunning{}
		if err := <-ended; !errors.As(err, &other) || other.version != "0.1.0" {
			t.Errorf("a second one: %v", err)
		}
	}
	cancel()
	<-served
	// One that waits for a daemon that fails says so.
	go func() { ended <- runWhereverItIs(t.Context(), o, slog.New(slog.DiscardHandler), waiting{}) }()
	held.Close()
	if err := <-ended; err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("the daemon failed: %v", err)
	}
}
