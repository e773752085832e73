package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
)

// This program is also the first process of a container that meshnet run made: mounted there and set
// before the image's own entrypoint, it waits until the daemon says that the interfaces are there and
// then becomes that entrypoint. It is told by an abstract Unix socket in the container's network
// namespace, so nothing of the host is mounted there but this file.
const (
	// waiterPath is where the program is mounted in the container.
	waiterPath = "/.meshnet"
	waiterVerb = "await"
	// toldReady, or toldNever and why, is the line that the daemon sends.
	toldReady, toldNever = "ready", "never"
	// complainAfter is how long the waiter waits before it says so.
	complainAfter = 10 * time.Second
	// lookAfter is how long it waits to be told before it looks for itself, in case that was missed,
	// and how often then.
	lookAfter = 30 * time.Second
	// hearMax bounds how long a line may take once somebody connected.
	hearMax = time.Second
)

// Exit codes of a program that cannot be started, as docker run has them.
const (
	exitNetwork    = 125
	exitNoExec     = 126
	exitNoSuchFile = 127
)

// await is the verb of the waiter: NETWORKS COMMAND ARGUMENTS…
func (t *terminal) await() *cli.Command {
	return &cli.Command{
		Name: waiterVerb, Hidden: true, SkipFlagParsing: true, HideHelp: true,
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) < 2 {
				return usage(c, "want networks and a command; it is for meshnet run")
			}
			if err := t.waitForNetwork(args[0]); err != nil {
				return err
			}
			return become(args[1:])
		},
	}
}

// waitForNetwork returns nil when the container's interfaces are there.
func (t *terminal) waitForNetwork(networks string) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Reset()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@" + waiterSocket, Net: "unix"})
	if err != nil {
		return &failure{What: "wait for the network", Err: err, Code: exitNetwork}
	}
	defer listener.Close()
	told := make(chan string, 1)
	go hear(listener, told)
	complain, look := time.NewTimer(complainAfter), time.NewTicker(lookAfter)
	defer complain.Stop()
	defer look.Stop()
	for {
		select {
		case line := <-told:
			if line == toldReady {
				return nil
			}
			return &failure{What: "run", Err: errors.New(strings.TrimPrefix(line, toldNever+" ")), Code: exitNetwork}
		case s := <-signals:
			return &failure{What: "run", Err: fmt.Errorf("%v while waiting for an interface on %s", s, networks), Code: 128 + int(s.(syscall.Signal))}
		case <-complain.C:
			fmt.Fprintf(t.err, "meshnet: waiting for an interface on %s; see meshnet status on the host\n", networks)
		case <-look.C:
			if interfaces("/sys/class/net") >= 1+strings.Count(networks, ",") {
				return nil
			}
		}
	}
}

// hear passes on the first line that says something.
func hear(listener *net.UnixListener, told chan<- string) {
	for {
		c, err := listener.AcceptUnix()
		if err != nil {
			return
		}
		c.SetReadDeadline(time.Now().Add(hearMax))
		line, err := bufio.NewReaderSize(c, 4096).ReadString('\n')
		c.Close()
		line = strings.TrimSpace(line)
		if err == nil && (line == toldReady || strings.HasPrefix(line, toldNever+" ")) {
			told <- line
			return
		}
	}
}

// interfaces counts those that meshnet made and set up, by sysfs.
func interfaces(dir string) (n int) {
	names, _ := filepath.Glob(filepath.Join(dir, "*", "ifalias"))
	for _, path := range names {
		alias, _ := os.ReadFile(path)
		up, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "operstate"))
		if strings.HasPrefix(string(alias), "meshnet") && strings.TrimSpace(string(up)) == "up" {
			n++
		}
	}
	return n
}

// become replaces this program by another one. It returns only if that fails.
func become(args []string) error {
	path, err := exec.LookPath(args[0])
	if errors.Is(err, exec.ErrDot) {
		err = nil // an entry of PATH may be relative
	}
	if err == nil {
		err = syscall.Exec(path, args, os.Environ())
	}
	code := exitNoExec
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		code = exitNoSuchFile
	}
	return &failure{What: "start " + args[0], Err: err, Code: code}
}

// notifyContext is for everything but the waiter, which has its own signals.
func notifyContext() (context.Context, context.CancelFunc) {
	if isWaiter(os.Args) {
		return context.WithCancel(context.Background())
	}
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}
