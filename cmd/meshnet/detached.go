package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
)

const (
	// readyEnv names the file descriptor that a detached daemon tells its parent by.
	readyEnv = "MESHNET_READY_FD"
	// readyMax: a daemon that is not ready then is left to go on, and up fails.
	readyMax = 60 * time.Second
	// logMax: a larger log is set aside at the next start, bytes.
	logMax = 4 << 20
)

// ready is what a daemon tells who started it, one JSON object: that it is ready, or why it ended.
type ready struct {
	ID        string   `json:"id,omitempty"`
	Name      string   `json:"name,omitempty"`
	Address   string   `json:"address,omitempty"`
	Device    string   `json:"device,omitempty"`
	Transport string   `json:"transport,omitempty"`
	PID       int      `json:"pid,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
	Error     string   `json:"error,omitempty"`
	// Running is the version of another daemon, which was faster.
	Running string `json:"running,omitempty"`
}

// detached starts this program again as a daemon in a session of its own and waits until it is ready.
func (t *terminal) detached(c *cli.Context, o options) error {
	logPath := filepath.Join(o.runDir, "meshnet.log")
	log, err := openLog(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	in, out, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer in.Close()
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(program, t.args[1:]...)
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{out}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	out.Close()
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	told := make(chan ready, 1)
	go func() {
		var r ready
		if err := json.NewDecoder(in).Decode(&r); err != nil {
			r.Error = "the daemon died; see " + logPath
		}
		told <- r
	}()
	select {
	case r := <-told:
		return t.told(c, cmd, r)
	case <-time.After(readyMax):
		return fmt.Errorf("the daemon is not ready after %v; it goes on, see meshnet status and %s", readyMax, logPath)
	case <-c.Context.Done():
		return errors.Join(errors.New("interrupted"), cmd.Process.Signal(syscall.SIGTERM))
	}
}

func (t *terminal) told(c *cli.Context, cmd *exec.Cmd, r ready) error {
	if r.Error != "" {
		cmd.Wait() // what it says is in r
		return errors.New(r.Error)
	}
	if r.Running != "" {
		cmd.Wait()
		return t.said(c, "meshnet "+r.Running+" runs already")
	}
	if err := cmd.Process.Release(); err != nil {
		return fmt.Errorf("leave daemon: %w", err)
	}
	if c.Bool("json") {
		t.json(r)
		return nil
	}
	fmt.Fprintf(t.out, "node %s (%s) is up on %s (%s), transport %s\n", r.Name, r.ID, r.Address, r.Device, r.Transport)
	for _, w := range r.Warnings {
		fmt.Fprintf(t.err, "meshnet: warning: %s\n", oneLine(w))
	}
	return nil
}

// openLog opens the daemon's log for appending; one that has grown large is set aside.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Size() > logMax {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("set log aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// notifier returns where a daemon tells its parent, or nil when nobody waits. Programs that the
// daemon starts do not inherit it.
func notifier() *os.File {
	if os.Getenv(readyEnv) != "3" {
		return nil
	}
	os.Unsetenv(readyEnv)
	syscall.CloseOnExec(3)
	return os.NewFile(3, "ready")
}

// tell writes to the parent, once; what it does with it is its affair.
func tell(to *os.File, r ready) {
	if to == nil {
		return
	}
	json.NewEncoder(to).Encode(r)
	to.Close()
}
