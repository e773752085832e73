package netns_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"meshnet/netns"
	"meshnet/netns/nstest"
)

// TestTell reaches a socket of that name in one namespace and not the one in another.
func TestTell(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	a, b := box(t, "a"), box(t, "b")
	if err := netns.Tell(a, "ear", []byte("hello")); err == nil || errors.Is(err, netns.ErrGone) {
		t.Errorf("told nobody: %v", err)
	}
	listen := func(name string) (*exec.Cmd, *strings.Builder) {
		cmd := exec.Command("nsenter", "--net=/run/netns/"+name, os.Args[0], "-test.run=^TestListenAbstract$")
		cmd.Env = append(os.Environ(), "NETNS_TEST_EAR=ear")
		heard := &strings.Builder{}
		cmd.Stdout = heard
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, heard
	}
	inA, heardA := listen("a")
	inB, heardB := listen("b")
	within(t, "a hears", func() bool { return netns.Tell(a, "ear", []byte("to a")) == nil })
	within(t, "b hears", func() bool { return netns.Tell(b, "ear", []byte("to b")) == nil })
	inA.Wait()
	inB.Wait()
	if !strings.Contains(heardA.String(), "heard to a\n") || !strings.Contains(heardB.String(), "heard to b\n") {
		t.Errorf("a heard %q, b heard %q", heardA, heardB)
	}
	a.Inode++
	if err := netns.Tell(a, "ear", []byte("hello")); !errors.Is(err, netns.ErrGone) {
		t.Errorf("told another namespace: %v", err)
	}
}

// TestListenAbstract is the listener of TestTell.
func TestListenAbstract(t *testing.T) {
	name := os.Getenv("NETNS_TEST_EAR")
	if name == "" {
		return
	}
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("heard %s\n", b)
}
