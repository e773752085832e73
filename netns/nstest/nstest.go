package nstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inside is set in the environment of the second process.
const inside = "MESHNET_NSTEST"

// Inside reports whether the test is in its own namespaces: then it goes on, with lo up and an empty
// /run. Outside, Inside runs it there, beside other tests, passes on how it ended, and returns false:
// the test returns. Top-level tests only.
//
// Where the system forbids user namespaces the test is skipped; it fails instead where MESHNET_REQUIRE
// holds the word userns, or CI is true.
func Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		prepare(t)
		return true
	}
	t.Parallel()
	ctx := context.Background()
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		// A little earlier than ours, so that what it said is still seen.
		ctx, cancel = context.WithDeadline(ctx, end.Add(-min(5*time.Second, time.Until(end)/10)))
		defer cancel()
	}
	// The process is killed with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", fmt.Sprintf("-test.short=%t", testing.Short()))
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if cmd.Process == nil {
		without(t, err)
		return false
	}
	switch said := "\n" + string(out); {
	case err != nil:
		t.Fatalf("in namespaces of its own: %v\n%s", err, out)
	case strings.Contains(said, "\n--- SKIP: "+t.Name()+" "):
		t.Skipf("in namespaces of its own:\n%s", out)
	case !strings.Contains(said, "\n--- PASS: "+t.Name()+" "):
		t.Fatalf("it did not run in namespaces of its own:\n%s", out)
	}
	t.Logf("in namespaces of its own:\n%s", out)
	return false
}

// without ends a test that cannot have what it needs.
func without(t *testing.T, err error) {
	t.Helper()
	forbidden := false
	for _, e := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EINVAL, unix.EUSERS} {
		forbidden = forbidden || errors.Is(err, e)
	}
	asked := os.Getenv("CI") == "true"
	for _, word := range strings.FieldsFunc(os.Getenv("MESHNET_REQUIRE"), func(r rune) bool { return r == ',' || r == ' ' }) {
		asked = asked || word == "userns"
	}
	if !forbidden || asked {
		t.Fatalf("no user namespace: %v; allow them with sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone", err)
	}
	t.Skipf("no user namespace: %v", err)
}

// prepare makes the namespaces usable.
func prepare(t *testing.T) {
	t.Helper()
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		without(t, fmt.Errorf("mount /run: %w", err))
	}
	if err := up(); err != nil {
		t.Fatal(err)
	}
}

// Add makes a network namespace with lo up under /run/netns, as ip-netns(8) does, and returns its
// path. Its name goes at the end of the test.
func Add(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join("/run/netns", name)
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		back, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			err = add(path)
		}
		// It may be the thread that /proc/self stands for, which lives on: it must return.
		if err == nil {
			err = unix.Setns(int(back.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			back.Close()
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("add network namespace %s: %v", name, err)
	}
	t.Cleanup(func() { Delete(t, name) })
	return path
}

// add gives the calling thread a new network namespace and the namespace a path.
func add(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return up()
}

// Delete removes the name of a network namespace that [Add] made. The namespace goes with it unless
// somebody is in it or holds it open. What is gone already is no fault.
func Delete(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join("/run/netns", name)
	if err := unix.Unmount(path, unix.MNT_DETACH); errors.Is(err, unix.ENOENT) {
		return
	} else if err != nil {
		t.Errorf("delete network namespace %s: unmount: %v", name, err)
	}
	if err := os.Remove(path); err != nil {
		t.Errorf("delete network namespace %s: %v", name, err)
	}
}

// up sets lo up in the namespace of the calling thread.
func up() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
