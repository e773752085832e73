package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"meshnet/plan"
	"meshnet/state"
)

// namedDir is where ip-netns(8) keeps its names.
const namedDir = "/run/netns"

// FindNamed returns the namespace under /run/netns with a name; false if there is none.
func FindNamed(name string) (state.Source, bool, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return state.Source{}, false, nil
	}
	f, s, err := FromPath(filepath.Join(namedDir, name))
	if errors.Is(err, ErrGone) {
		return state.Source{}, false, nil
	}
	if err != nil {
		return state.Source{}, false, err
	}
	defer f.Close()
	if err := refuseOwn(s.Inode); err != nil {
		return state.Source{}, false, err
	}
	return s, true, nil
}

// FromPath opens the namespace that a path names. The file is the caller's to close. [ErrGone] if
// there is nothing.
func FromPath(path string) (*os.File, state.Source, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, state.Source{}, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	f, err := openNamespace(abs)
	if err != nil {
		return nil, state.Source{}, err
	}
	inode, err := inodeOf(f)
	if err != nil {
		f.Close()
		return nil, state.Source{}, err
	}
	return f, state.Source{Kind: state.SourcePath, Path: abs, Inode: inode}, nil
}

// FromPID opens the namespace of a process. The file is the caller's to close. [ErrGone] if there is
// no such process.
func FromPID(pid int) (*os.File, state.Source, error) {
	if pid < 1 || pid > 1<<22 { // PID_MAX_LIMIT of the kernel
		return nil, state.Source{}, fmt.Errorf("process %d: want a process id", pid)
	}
	f, err := openNamespace(pathOf(uint32(pid)))
	if err != nil {
		return nil, state.Source{}, fmt.Errorf("process %d: %w", pid, err)
	}
	s := state.Source{Kind: state.SourceProcess, PID: uint32(pid)}
	if s.Inode, err = inodeOf(f); err == nil {
		// After the open: if the process had changed in between, this one's namespace would be taken
		// for the other's.
		s.Started, err = startOf(s.PID)
	}
	if err != nil {
		f.Close()
		return nil, state.Source{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return f, s, nil
}

// Hold checks an open namespace that was handed over together with where it was found, and returns
// the source with the inode filled in. The error says so when the source leads elsewhere from here:
// it could not be found again. The file stays the caller's.
func Hold(f *os.File, s state.Source) (state.Source, error) {
	if err := checkNamespace(f); err != nil {
		return state.Source{}, err
	}
	inode, err := inodeOf(f)
	if err != nil {
		return state.Source{}, err
	}
	if err := refuseOwn(inode); err != nil {
		return state.Source{}, err
	}
	s.Inode = inode
	if _, err := Open(s); err != nil {
		return state.Source{}, fmt.Errorf("find the container's network again: %w; give a path or process that the daemon sees too", err)
	}
	return s, nil
}

// Open finds the namespace of a path or a process as it is now. [ErrGone] if it is not there any
// more: the path is gone or names another namespace, the process ended, its id was used again, or
// it went to another namespace.
func Open(s state.Source) (plan.Sandbox, error) {
	sandbox := plan.Sandbox{Path: s.Path, Inode: s.Inode}
	switch s.Kind {
	case state.SourcePath:
	case state.SourceProcess:
		sandbox.Path = pathOf(s.PID)
	default:
		return plan.Sandbox{}, fmt.Errorf("open network namespace: source of kind %d is neither a path nor a process", s.Kind)
	}
	f, err := openSandbox(sandbox)
	if err != nil {
		return plan.Sandbox{}, err
	}
	defer f.Close()
	if s.Kind == state.SourceProcess {
		started, err := startOf(s.PID)
		if err == nil && started != s.Started {
			err = fmt.Errorf("process %d is another one now: %w", s.PID, ErrGone)
		}
		if err != nil {
			return plan.Sandbox{}, err
		}
	}
	return sandbox, nil
}

func pathOf(pid uint32) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// startOf returns when a process started, in clock ticks since boot.
func startOf(pid uint32) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if absent(err) {
		return 0, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	if err != nil {
		return 0, fmt.Errorf("read start of process: %w", err)
	}
	started, ok := parseStart(b)
	if !ok {
		return 0, fmt.Errorf("read start of process %d: /proc/%d/stat is not as proc(5) says", pid, pid)
	}
	return started, nil
}

// parseStart returns field 22 of /proc/PID/stat. Field 2 is the program's name in parentheses and may
// itself hold any character, parentheses and spaces too.
func parseStart(stat []byte) (uint64, bool) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, false
	}
	fields := bytes.Fields(stat[i+1:])
	if len(fields) < 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(fields[19]), 10, 64)
	return n, err == nil
}
