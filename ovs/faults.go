package ovs

import (
	"context"
)

// Faults returns the ports of a bridge that ovs-vswitchd could not make, by name, and what it has
// against them. What does not answer has none.
func Faults(ctx context.Context, c PurgeConfig) (map[string]string, error) {
	out := map[string]string{}
	address, _ := hostAddress(c.OVSDB, c.HostRunDir)
	for _, a := range []string{address, instance{dir: privateDir(c.RunDir)}.address()} {
		if !addressAnswers(a) {
			continue
		}
		db, err := dialDB(ctx, a)
		if err != nil {
			return out, err
		}
		for name, p := range db.observe(c.Bridge).ports {
			if p.failed() {
				out[name] = p.why()
			}
		}
		db.close()
	}
	return out, nil
}
