package netns

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// gatewayName is the gateway's end that this host's own stack has: it is in rules that are not in a
// table of ours, and so the mark by which they are known.
const gatewayName = "mesh-gw"

// legacyProgram is what changes the tables of the older iptables, which have no netlink.
const legacyProgram = "iptables-legacy"

// letPassLegacy is letPass for the older iptables, where its filter table is there.
func (r *round) letPassLegacy(name string) error {
	tables, err := os.ReadFile("/proc/net/ip_tables_names")
	if absent(err) || err == nil && !slices.Contains(strings.Fields(string(tables)), "filter") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for tables of iptables-legacy: %w", err)
	}
	out, err := legacy("-S", "FORWARD")
	if err != nil {
		if name == "" {
			return nil // nobody could have made a rule
		}
		return fmt.Errorf("read chain FORWARD of iptables-legacy: %w; it may drop what containers send to the world", err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	wanted := name != "" && slices.Contains(lines, "-P FORWARD DROP")
	for _, flag := range []string{"-i", "-o"} {
		rule := []string{"FORWARD", flag, gatewayName, "-j", "ACCEPT"}
		has := slices.Contains(lines, "-A "+strings.Join(rule, " "))
		if has == wanted {
			continue
		}
		how := "-D"
		if wanted {
			how = "-A"
		}
		err := r.change(func() error {
			_, err := legacy(append([]string{how}, rule...)...)
			return err
		})
		if err != nil {
			return fmt.Errorf("change chain FORWARD of iptables-legacy: %w", err)
		}
		r.did("set", "iptables-legacy %s %s", how, strings.Join(rule, " "))
	}
	return nil
}

func legacy(args ...string) (string, error) {
	path, err := exec.LookPath(legacyProgram)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + legacyProgram); err != nil {
			return "", fmt.Errorf("%s is not installed; apt-get install iptables", legacyProgram)
		}
	}
	out, err := exec.Command(path, append([]string{"-w", "5"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", legacyProgram, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}
