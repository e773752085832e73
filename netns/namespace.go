package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// ErrGone says that the network namespace of a container is not there any more, or that another one
// has taken its place.
var ErrGone = errors.New("the container's network namespace is gone")

// errHost refuses the namespace that we run in.
var errHost = errors.New("container has the host's network; only containers with a network of their own can be attached")

// nsGetType is NS_GET_NSTYPE of ioctl_ns(2).
const nsGetType = 0xb703

// within runs f in a network namespace, on a thread of its own. A thread that cannot return to its
// namespace is not used again.
func within(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer back.Close()
		if err = netns.Set(netns.NsHandle(ns.Fd())); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w; meshnet needs CAP_SYS_ADMIN", ns.Name(), err)
			return
		}
		err = f()
		// The goroutine that ends while it is locked takes its thread with it.
		if netns.Set(netns.NsHandle(back.Fd())) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// openSandbox opens the namespace of a container; [ErrGone] if the path leads nowhere or to another
// namespace than meant.
func openSandbox(s plan.Sandbox) (*os.File, error) {
	f, err := openNamespace(s.Path)
	if err != nil {
		return nil, err
	}
	inode, err := inodeOf(f)
	if err == nil && inode != s.Inode {
		err = fmt.Errorf("%s is namespace %d and no longer %d: %w", s.Path, inode, s.Inode, ErrGone)
	}
	if err == nil {
		err = refuseOwn(inode)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openNamespace opens a path that names a network namespace; [ErrGone] if there is nothing.
func openNamespace(path string) (*os.File, error) {
	// A path that a person gave may be a pipe, at which a plain open would wait for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if absent(err) {
		f, err = openThread(path)
	}
	if absent(err) {
		return nil, fmt.Errorf("open network namespace %s: %w", path, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if err := checkNamespace(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// threadTries is how often the threads of a process are gone through. One is enough unless a thread takes
// the first one's place in between, which happens once.
const threadTries = 3

// openThread opens the namespace of a process whose first thread has none: that has ended and others
// live. So it is for a moment where another thread than the first calls execve(2), which ends the first
// and takes its place: a program that starts the next one must not count as gone.
func openThread(path string) (*os.File, error) {
	dir, ok := strings.CutSuffix(path, "/ns/net")
	if !ok || filepath.Dir(dir) != "/proc" {
		return nil, fs.ErrNotExist
	}
	for range threadTries {
		threads, err := os.ReadDir(filepath.Join(dir, "task"))
		if err != nil {
			return nil, err
		}
		// The place may have been taken by now, so the first comes last.
		for i := len(threads) - 1; i >= 0; i-- {
			f, err := os.OpenFile(filepath.Join(dir, "task", threads[i].Name(), "ns/net"), os.O_RDONLY, 0)
			if !absent(err) {
				return f, err
			}
		}
	}
	return nil, fs.ErrNotExist
}

// checkNamespace tells whether an open file is a network namespace.
func checkNamespace(f *os.File) error {
	kind, err := unix.IoctlRetInt(int(f.Fd()), nsGetType)
	var st unix.Statfs_t
	if err == nil {
		err = unix.Fstatfs(int(f.Fd()), &st)
	}
	if err != nil || st.Type != unix.NSFS_MAGIC || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%s is not a network namespace; name one under /run/netns or /proc/PID/ns/net", f.Name())
	}
	return nil
}

// inodeOf returns the inode of an open namespace, which tells namespaces apart while they live.
func inodeOf(f *os.File) (uint64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("stat network namespace: %w", err)
	}
	return st.Sys().(*syscall.Stat_t).Ino, nil
}

// refuseOwn returns an error if the namespace is the one we run in.
func refuseOwn(inode uint64) error {
	st, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("stat own network namespace: %w", err)
	}
	if st.Sys().(*syscall.Stat_t).Ino == inode {
		return errHost
	}
	return nil
}

// absent reports whether a file, process or namespace is simply not there.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOTDIR)
}
