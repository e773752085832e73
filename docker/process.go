package docker

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process returns the first process of a running container by its id without asking Docker: the
// oldest one whose control group is named after the container, by any of the engines' cgroup drivers.
// False if none is found.
func (c *Client) Process(id string) (pid int, found bool) {
	if len(id) < shortID {
		return 0, false
	}
	dirs, err := filepath.Glob(filepath.Join(c.proc, "[0-9]*"))
	if err != nil {
		return 0, false
	}
	var oldest uint64
	for _, dir := range dirs {
		if !inGroup(dir, id) {
			continue
		}
		n, err := strconv.Atoi(filepath.Base(dir))
		started, ok := startOf(dir)
		if err == nil && ok && (!found || started < oldest) {
			pid, oldest, found = n, started, true
		}
	}
	return pid, found
}

// inGroup reports whether a process is in a container's control group or below: a line of
// /proc/PID/cgroup is hierarchy:controllers:path, see cgroups(7).
func inGroup(dir, id string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil || !bytes.Contains(b, []byte(id)) {
		return false
	}
	for line := range strings.Lines(string(b)) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if part == id || part == "docker-"+id+".scope" || part == "libpod-"+id || part == "libpod-"+id+".scope" {
				return true
			}
		}
	}
	return false
}

// startOf returns when a process started, in clock ticks since boot: field 22 of /proc/PID/stat, whose
// field 2 may hold any character.
func startOf(dir string) (uint64, bool) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(fields[19]), 10, 64)
	return n, err == nil
}
