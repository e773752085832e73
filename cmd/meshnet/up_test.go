package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"meshnet/api"
)

func TestReadKey(t *testing.T) {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(200 + i)
	}
	for _, test := range []struct {
		name, text string
		want       string // as hex; empty: refused
	}{
		{"raw 32", string(key), hex.EncodeToString(key)},
		{"raw 16", string(key[:16]), hex.EncodeToString(key[:16])},
		{"hex", hex.EncodeToString(key) + "\n", hex.EncodeToString(key)},
		{"hex 24", " " + hex.EncodeToString(key[:24]), hex.EncodeToString(key[:24])},
		{"base64", base64.StdEncoding.EncodeToString(key) + "\n", hex.EncodeToString(key)},
		{"base64 16", base64.StdEncoding.EncodeToString(key[:16]), hex.EncodeToString(key[:16])},
		{"words", "sixteen letters!\n", hex.EncodeToString([]byte("sixteen letters!"))},
		{"short", "secret", ""},
		{"empty", "", ""},
		{"long", strings.Repeat("x", 2000), ""},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, warning, err := readKey(path)
		if hex.EncodeToString(got) != test.want || (err == nil) != (test.want != "") || warning != "" {
			t.Errorf("%s: %x %q %v", test.name, got, warning, err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, warning, err := readKey(path); err == nil && warning == "" {
			t.Errorf("%s: no warning of a key that everybody can read", test.name)
		}
	}
	if _, _, err := readKey(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestChooseSubnet(t *testing.T) {
	for _, test := range []struct{ routes, want string }{
		{"192.168.7.0/24", "10.1.0.0/16"},
		{"10.1.2.0/24 192.168.0.0/16", "10.101.0.0/16"},
		{"10.0.0.0/8", "172.29.0.0/16"},
		{"10.1.2.3/32 10.101.0.0/24 172.16.0.0/12", "10.201.0.0/16"},
		{"10.0.0.0/8 172.16.0.0/12", ""},
		{"", "10.1.0.0/16"},
	} {
		var routes []netip.Prefix
		for r := range strings.FieldsSeq(test.routes) {
			routes = append(routes, netip.MustParsePrefix(r))
		}
		got, err := chooseSubnet(routes)
		if err == nil && got.String() != test.want || (err == nil) != (test.want != "") {
			t.Errorf("routes %q: %v %v, want %q", test.routes, got, err, test.want)
		}
	}
}

// TestUpUsage: wrong words are told before anything is touched.
func TestUpUsage(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "s")
	for _, args := range []string{
		"--ovs mine", "--datapath fast", "--encap gre", "--log-level loud", "--log-format xml", "--port 0", "--port 70000",
		"--tunnel-port x", "--id 12", "--id 0000000000000000", "--advertise here", "--default-subnet 10.1.0.0", "--default-subnet fd00::/64",
		"--default-subnet 10.1.2.3/16", "extra",
	} {
		got := command(nobody, append([]string{"up"}, strings.Fields(args)...)...)
		if got.code != exitUsage || strings.Count(got.err, "\n") != 1 {
			t.Errorf("up %s: %v", args, got)
		}
	}
}

// TestUpTwice: a second up says so.
func TestUpTwice(t *testing.T) {
	socket := serve(t, newDoor())
	for _, args := range [][]string{{"up"}, {"up", "-d"}} {
		if got := command(socket, args...); got.code != 0 || got.out != "meshnet 0.1.0 runs already\n" {
			t.Errorf("%v: %v", args, got)
		}
	}
	if got := command(socket, "up", "--json"); got.code != 0 || !strings.Contains(got.out, `"message"`) {
		t.Errorf("up --json: %v", got)
	}
}

// TestDown stops a daemon, waits for it, and says when there is none.
func TestDown(t *testing.T) {
	socket := serve(t, newDoor())
	dir := filepath.Dir(socket)
	held, err := lock(dir, syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir, syscall.LOCK_EX); !errors.Is(err, errLocked) {
		t.Errorf("second lock: %v", err)
	}
	done := make(chan result)
	go func() { done <- command(socket, "down", "--run-dir", dir) }()
	select {
	case got := <-done:
		t.Fatalf("down did not wait: %v", got)
	case <-stopped(socket):
	}
	held.Close()
	if got := <-done; got.code != 0 || !strings.Contains(got.out, "traffic goes on") {
		t.Errorf("down: %v", got)
	}
	if got := command(socket, "down", "--run-dir", dir); got.code != 0 || got.out != "no daemon was running\n" {
		t.Errorf("down again: %v", got)
	}
}

// stopped is closed when nobody answers on a socket any more.
func stopped(socket string) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		for {
			if _, err := api.NewClient(socket).Version(context.Background()); err != nil {
				return
			}
		}
	}()
	return c
}

// TestRemoveOurs leaves what is not ours.
func TestRemoveOurs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"identity", "mine"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := removeOurs(dir, "identity", "log"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "mine")); err != nil {
		t.Errorf("what is not ours: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "identity")); !gone(err) {
		t.Errorf("what is ours: %v", err)
	}
	if err := removeOurs(filepath.Join(dir, "nowhere"), "x"); err != nil {
		t.Error(err)
	}
}

// TestGroup: the first that fails ends the others, and its error is told.
func TestGroup(t *testing.T) {
	fault := errors.New("no disk")
	g := newGroup(context.Background())
	g.run("write", func(context.Context) error { return fault })
	g.run("read", func(ctx context.Context) error { <-ctx.Done(); return nil })
	if err := g.wait(); !errors.Is(err, fault) || err.Error() != "write: no disk" {
		t.Errorf("group: %v", err)
	}
	g = newGroup(context.Background())
	g.run("read", func(ctx context.Context) error { <-ctx.Done(); return nil })
	g.run("write", func(context.Context) error { return nil })
	if err := g.wait(); err == nil {
		t.Error("one that ended by itself is no error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	g = newGroup(ctx)
	g.run("read", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	cancel()
	if err := g.wait(); err != nil {
		t.Errorf("group that was told to end: %v", err)
	}
}
