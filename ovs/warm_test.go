package ovs

import (
	"fmt"
	"regexp"
	"testing"
	"time"

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

// TestTunnelsAreWarmed: tunnels of the userspace datapath see frames at once and again, others none.
func TestTunnelsAreWarmed(t *testing.T) {
	t.Parallel()
	for _, transport := range []state.Transport{state.OVSUserspace, state.OVSKernel} {
		t.Run(transport.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.device("mc-c1", "mc-c2", "mc-g1")
			h := tunnelHost(transport)
			r.apply(h)
			first := r.sent()
			if warm := transport == state.OVSUserspace; (first["2"] != "0") != warm || (first["3"] != "0") != warm || first["11"] != "0" {
				t.Errorf("packets sent by port: %v", first)
			}
			r.apply(h) // not again because of that
			if transport == state.OVSKernel {
				return
			}
			want := fmt.Sprint(len(warmAfter))
			for end := time.Now().Add(bound); r.sent()["2"] != want; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("packets sent by port: %v, want %s by 2", r.sent(), want)
				}
			}
		})
	}
}
