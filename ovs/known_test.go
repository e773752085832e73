package ovs

import (
	"testing"

	"meshnet/plan"
	"meshnet/state"
)

// TestSamePorts: what is in the database are the twins, so a fast path that comes or goes is a change, also
// where this host has no container.
func TestSamePorts(t *testing.T) {
	t.Parallel()
	host := func(gateway, device plan.Twin) *plan.Host {
		return &plan.Host{
			Gateway:  &plan.Gateway{Name: "mesh-gw", Port: "mesh-gw-port", Twin: gateway, OFPort: 60001},
			Networks: map[state.NetworkID]*plan.Network{web: {ID: web, Device: &plan.Vxlan{Name: "mv-1", Twin: device, OFPort: 40}}},
		}
	}
	none, twin := plan.Twin{}, plan.Twin{Slow: "s", Port: "o"}
	was := host(none, none)
	if !samePorts(was, host(none, none)) {
		t.Error("equal plans have other ports")
	}
	for what, is := range map[string]*plan.Host{"gateway": host(twin, none), "device": host(none, twin)} {
		if samePorts(was, is) || samePorts(is, was) {
			t.Errorf("the twin of the %s is no other port", what)
		}
	}
	tap := func(mtu uint32) *plan.Host {
		h := host(none, none)
		h.Gateway.Port, h.Gateway.MTU = "", mtu
		return h
	}
	if samePorts(was, tap(1450)) || samePorts(tap(1450), tap(1400)) || !samePorts(tap(1450), tap(1450)) {
		t.Error("a tap as gateway is no other port than a veth, or than one of another MTU")
	}
}
