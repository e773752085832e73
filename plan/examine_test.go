package plan_test

import (
	"net/netip"
	"slices"
	"testing"

	"meshnet/plan"
)

// fit is a host on which nothing is wrong.
func fit() plan.Examination {
	return plan.Examination{
		OVS: plan.OVSFacts{Installed: true, Module: true, HostRunning: true}, Fast: plan.FastFacts{Can: true, Peer: true},
		Links: []plan.LinkFacts{{
			Name: "eth0", Index: 2, MTU: 1500, Up: true, Default: true, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")},
		}},
		Routes:    []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Multicast: map[string]bool{"eth0": true}, NFT: true,
		Daemon: true, Alive: 3, Known: 3, Networks: map[string]netip.Prefix{"web": netip.MustParsePrefix("10.2.0.0/16")},
	}
}

// Each fault and doubt is found, and nothing else with it.
func TestExamine(t *testing.T) {
	for _, f := range plan.Examine(fit()) {
		if f.Level != plan.Fit {
			t.Errorf("a fit host: %+v", f)
		}
	}
	for _, test := range []struct {
		check  string
		level  plan.Level
		change func(*plan.Examination)
	}{
		{"ovs", plan.Fault, func(e *plan.Examination) { e.OVS.Installed = false }},
		{"offload", plan.Doubt, func(e *plan.Examination) { e.OVS.Module, e.OVS.HostNetdev = false, true }},
		{"datapath", plan.Fault, func(e *plan.Examination) { e.OVS.HostDeaf = true }},
		{"fastpath", plan.Doubt, func(e *plan.Examination) {
			e.OVS.Module, e.Fast = false, plan.FastFacts{Lack: "no clsact; take another kernel"}
		}},
		{"ports", plan.Fault, func(e *plan.Examination) { e.Ports = map[string]string{"mc-1": "no such device"} }},
		{"underlay", plan.Fault, func(e *plan.Examination) { e.Links[0].Up = false }},
		{"mtu", plan.Fault, func(e *plan.Examination) { e.Links[0].MTU = 600 }},
		{"multicast", plan.Doubt, func(e *plan.Examination) { e.Multicast = nil }},
		{"firewall", plan.Doubt, func(e *plan.Examination) { e.NFT = false }},
		{"firewall", plan.Fault, func(e *plan.Examination) { e.NFT, e.OVS.Module = false, false }},
		{"firewall", plan.Doubt, func(e *plan.Examination) { e.Droppers = []string{"inet firewalld filter_FORWARD"} }},
		{"overlap", plan.Fault, func(e *plan.Examination) { e.Routes = append(e.Routes, netip.MustParsePrefix("10.2.3.0/24")) }},
		{"overlap", plan.Doubt, func(e *plan.Examination) { e.Networks["db"] = netip.MustParsePrefix("10.0.0.0/8") }},
		{"daemon", plan.Doubt, func(e *plan.Examination) { e.Daemon = false }},
		{"daemon", plan.Fault, func(e *plan.Examination) { e.Pending = []string{"switch: not connected"} }},
		{"daemon", plan.Doubt, func(e *plan.Examination) { e.Warnings = []string{"no key; give one"} }},
		{"mesh", plan.Doubt, func(e *plan.Examination) { e.Known = 4 }},
		{"mesh", plan.Fault, func(e *plan.Examination) {
			e.Disagree = []string{"other tunnel port on h2; start it anew"}
			e.Warnings = e.Disagree
		}},
	} {
		e := fit()
		test.change(&e)
		bad := slices.DeleteFunc(plan.Examine(e), func(f plan.Finding) bool { return f.Level == plan.Fit })
		if len(bad) != 1 || bad[0].Check != test.check || bad[0].Level != test.level || bad[0].What == "" || bad[0].Do == "" {
			t.Errorf("%s %s: found %+v", test.check, test.level, bad)
		}
	}
}
