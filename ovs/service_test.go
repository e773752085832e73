package ovs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestServiceUnit: a daemon of Open vSwitch is a unit of its own exactly where this process is in a
// service of systemd.
func TestServiceUnit(t *testing.T) {
	dir := t.TempDir()
	cgroup := filepath.Join(dir, "cgroup")
	args := []string{"unix:db.sock", "--detach"}
	for _, test := range []struct {
		booted, cgroup string
		want           bool
	}{
		{dir, "0::/system.slice/meshnet.service\n", true},
		{dir, "1:name=systemd:/x\n0::/system.slice/meshnet.service\n", true},
		{dir, "0::/user.slice/user-0.slice/session-1.scope\n", false},
		{dir, "0::/\n", false},
		{filepath.Join(dir, "none"), "0::/system.slice/meshnet.service\n", false},
	} {
		if err := os.WriteFile(cgroup, []byte(test.cgroup), 0o600); err != nil {
			t.Fatal(err)
		}
		in := instance{dir: ownRunDir}
		program, got := service{test.booted, cgroup}.unit(in, switchProgram, "/usr/sbin/ovs-vswitchd", args)
		if !test.want {
			if program != "/usr/sbin/ovs-vswitchd" || !slices.Equal(got, args) {
				t.Errorf("%q: %s %q", test.cgroup, program, got)
			}
			continue
		}
		line := strings.Join(got, " ")
		if program != "systemd-run" || !strings.HasSuffix(line, "-- /usr/sbin/ovs-vswitchd unix:db.sock --detach") ||
			!strings.Contains(line, "--unit=meshnet-ovs-vswitchd ") || !strings.Contains(line, "PIDFile="+in.pidFile(switchProgram)) ||
			!strings.Contains(line, "--setenv=OVS_RUNDIR="+ownRunDir) {
			t.Errorf("%q: %s %s", test.cgroup, program, line)
		}
	}
	if err := os.WriteFile(cgroup, []byte("0::/a.service\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, a := service{dir, cgroup}.unit(instance{dir: "/run/a/ovs"}, serverProgram, "x", nil)
	_, b := service{dir, cgroup}.unit(instance{dir: "/run/b/ovs"}, serverProgram, "x", nil)
	if slices.Equal(a[:3], b[:3]) {
		t.Errorf("two instances are one unit: %q", a)
	}
}
