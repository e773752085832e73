package ovs

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
)

const (
	// systemdDir is there exactly where systemd is the init system: sd_booted(3).
	systemdDir = "/run/systemd/system"
	runProgram = "systemd-run"
	// ownRunDir is where a private instance is unless somebody chose another place.
	ownRunDir = "/run/meshnet/ovs"
)

// service is how a daemon of Open vSwitch comes to be a service of its own: as a child of a service
// it would end with that one.
type service struct {
	booted string // systemdDir
	cgroup string // /proc/self/cgroup
}

// unit returns the command that starts a daemon as a unit of its own, or the daemon's own command
// where this process is in no service of systemd. The daemon detaches and writes its pid file.
func (s service) unit(in instance, program, path string, args []string) (string, []string) {
	if !s.inService() {
		return path, args
	}
	name := "meshnet-" + program
	if in.dir != ownRunDir {
		sum := sha256.Sum256([]byte(in.dir))
		name += "-" + hex.EncodeToString(sum[:4])
	}
	words := []string{
		"--quiet", "--collect", "--unit=" + name, "--service-type=forking", "--description=Open vSwitch of meshnet (" + program + ")",
		"--property=PIDFile=" + in.pidFile(program), "--property=LimitNOFILE=65536", "--property=OOMScoreAdjust=-900",
		// What it has is not to be thrown away with the daemon, and it is restarted by the daemon.
		"--property=KillMode=process", "--property=Restart=no",
	}
	for _, e := range in.environ() {
		words = append(words, "--setenv="+e)
	}
	return runProgram, append(append(words, "--", path), args...)
}

// inService reports whether this process belongs to a service of systemd, which takes all of its
// children with it when it ends.
func (s service) inService() bool {
	if _, err := os.Stat(s.booted); err != nil {
		return false
	}
	b, err := os.ReadFile(s.cgroup)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) { // 0::/system.slice/meshnet.service
		_, path, _ := strings.Cut(strings.TrimSpace(line), "::")
		if strings.HasSuffix(filepath.Base(path), ".service") {
			return true
		}
	}
	return false
}

// environ tells the programs of Open vSwitch where this instance is.
func (in instance) environ() []string {
	return []string{"OVS_RUNDIR=" + in.dir, "OVS_LOGDIR=" + in.dir, "OVS_DBDIR=" + in.dir}
}
