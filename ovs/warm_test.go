package ovs

import (
	"regexp"
	"testing"

	"meshnet/state"
)

var sentRE = regexp.MustCompile(`port +(\S+): rx .*\n +tx pkts=(\d+)`)

// sent returns how many packets each port of the bridge has sent, by number of the port.
func (r *rig) sent() map[string]string {
	r.Helper()
	all := map[string]string{}
	for _, m := range sentRE.FindAllStringSubmatch(r.ovs.Ofctl("dump-ports", "meshnet"), -1) {
		all[m[1]] = m[2]
	}
	return all
}

func TestTunnelsAreWarmed(t *testing.T) {
	t.Parallel()
	for transport, want := range map[state.Transport]string{state.OVSUserspace: "1", state.OVSKernel: "0"} {
		t.Run(transport.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.device("mc-c1", "mc-c2", "mc-g1")
			h := tunnelHost(transport)
			r.apply(h)
			r.apply(h) // not again so soon
			if got := r.sent(); got["2"] != want || got["3"] != want || got["11"] != "0" {
				t.Errorf("packets sent by port: %v; want %s by the tunnels 2 and 3, none by 11", got, want)
			}
		})
	}
}
