package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
	"meshnet/fastpath"
	"meshnet/netns"
	"meshnet/ovs"
)

const (
	// endMax bounds the wait for a daemon that was asked to end.
	endMax = 20 * time.Second
	// endPoll is how often its lock is tried.
	endPoll = 5 * time.Millisecond
	// lockName is the file in the run directory that a daemon keeps locked.
	lockName = "meshnet.lock"
)

func (t *terminal) down() *cli.Command {
	return &cli.Command{
		Name: "down", Usage: "stop this node's daemon; traffic goes on",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{
				Name: "purge", DisableDefaultText: true,
				Usage: "also remove all that meshnet ever made on this host: traffic stops",
			},
		}, settleable(dirFlags())...),
		Action: verb(0, 0, words, t.stop),
	}
}

// stop is the action of down.
func (t *terminal) stop(c *cli.Context) error {
	purging := c.Bool("purge")
	if purging && os.Geteuid() != 0 {
		return errors.New("--purge changes this host's network, which only root may; use sudo meshnet down --purge")
	}
	if _, err := t.configure(c); err != nil {
		return err
	}
	runDir, stateDir, ovsdb := c.String("run-dir"), c.String("state-dir"), c.String("ovsdb")
	message := "meshnet is down; traffic goes on"
	s, err := api.NewClient(socketOf(c)).Stop(c.Context)
	switch {
	case errors.Is(err, api.ErrNoDaemon):
		message = "no daemon was running"
	case err != nil:
		return err
	default:
		runDir, stateDir, ovsdb = s.RunDir, s.StateDir, cmp.Or(s.OVSDB, ovsdb)
	}
	if err := ended(c.Context, runDir); err != nil {
		return err
	}
	if purging {
		if err := purge(c.Context, runDir, stateDir, ovsdb); err != nil {
			return fmt.Errorf("remove what meshnet made: %w", err)
		}
		message = "meshnet is down; all it made on this host is removed"
	}
	return t.said(c, message)
}

// lock takes the daemon's place in a run directory for as long as the file is open.
func lock(runDir string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(runDir, lockName), os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, fmt.Errorf("lock run directory %s: %w", runDir, err)
	}
	return f, nil
}

var errLocked = errors.New("a daemon that does not answer has it; stop that process or give another --run-dir")

// ended waits until no daemon has the run directory.
func ended(ctx context.Context, runDir string) error {
	path := filepath.Join(runDir, lockName)
	deadline := time.Now().Add(endMax)
	for {
		f, err := os.Open(path)
		if gone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look whether the daemon has ended: %w", err)
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		f.Close()
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return fmt.Errorf("look whether the daemon has ended: %w", err)
		case time.Now().After(deadline):
			return fmt.Errorf("the daemon has not ended after %v; see %s", endMax, filepath.Join(runDir, "meshnet.log"))
		}
		select {
		case <-time.After(endPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// purge removes all that meshnet made on this host. It tries everything and returns all errors.
func purge(ctx context.Context, runDir, stateDir, ovsdb string) error {
	links, err := netns.New(netns.Config{RunDir: runDir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	_, switchErr := ovs.Purge(ctx, ovs.PurgeConfig{RunDir: runDir, OVSDB: ovsdb, Bridge: bridge})
	_, fastErr := fastpath.New(nil).Purge(ctx)
	_, linkErr := links.Purge(ctx)
	errs := []error{switchErr, fastErr, linkErr}
	if switchErr == nil && fastErr == nil && linkErr == nil { // else there is still something to find
		errs = append(errs,
			removeOurs(runDir, lockName, "meshnet.sock", "meshnet.log", "meshnet.log.1", "ovs"),
			removeOurs(stateDir, "identity", "identity.new", "identity.damaged", "log", "log.new", "log.old", "log.damaged", "lock", "peers"))
	}
	return errors.Join(errs...)
}

// removeOurs removes files of ours from a directory, and the directory if nothing is left in it.
func removeOurs(dir string, names ...string) error {
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	err := os.Remove(dir)
	if gone(err) || errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EBUSY) {
		return nil
	}
	return err
}
