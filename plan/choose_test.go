package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"meshnet/state"
)

func TestChoose(t *testing.T) {
	const (
		a = state.OVSKernel
		b = state.OVSUserspace
		c = state.KernelVXLAN
	)
	bare := OVSFacts{Installed: true}
	with := func(fs ...func(*OVSFacts)) OVSFacts {
		f := bare
		for _, set := range fs {
			set(&f)
		}
		return f
	}
	module := func(f *OVSFacts) { f.Module = true }
	running := func(f *OVSFacts) { f.HostRunning = true }
	userspace := func(f *OVSFacts) { f.HostRunning, f.HostNetdev = true, true }
	tso := func(f *OVSFacts) { f.HostTSO = true }
	onKernel := func(f *OVSFacts) { f.HostRunning, f.UnderlayOn, f.UnderlayNICs = true, "br-ex", []string{"eno1"} }
	onUserspace := func(f *OVSFacts) {
		f.HostRunning, f.HostNetdev, f.UnderlayOn, f.UnderlayNetdev = true, true, "br-ex", true
		f.UnderlayNICs = []string{"eno1", "eno2"}
	}
	noTun := func(f *OVSFacts) { f.NoTun = true }
	left := func(f *OVSFacts) { f.PrivateRunning = true }

	for _, tc := range []struct {
		name string
		w    Wants
		f    OVSFacts
		want Choice // Why and Warnings are compared by why and warn
		why  string
		warn string
		err  string
	}{
		{name: "module", f: with(module, running),
			want: Choice{Datapath: system, Transport: a}, why: "module openvswitch"},
		{name: "module, instance not running", w: Wants{OVS: auto, Datapath: auto}, f: with(module),
			want: Choice{Start: true, Datapath: system, Transport: a}, why: "module openvswitch"},
		{name: "module, a private instance left from before", f: with(module, running, left),
			want: Choice{Stop: true, Datapath: system, Transport: a}, why: "module openvswitch"},
		{name: "module, geneve", w: Wants{Encap: state.Geneve}, f: with(module, running),
			want: Choice{Datapath: system, Transport: a, Encap: state.Geneve}, why: "module openvswitch"},
		{name: "underlay on a kernel bridge", f: with(module, onKernel),
			want: Choice{Datapath: system, Transport: a}, why: "kernel bridge br-ex"},
		{name: "underlay on a userspace bridge", f: with(onUserspace),
			want: Choice{Datapath: netdev, Transport: b, NICs: []string{"eno1", "eno2"}}, why: "userspace bridge br-ex"},
		{name: "underlay on a userspace bridge, with module", f: with(module, onUserspace),
			want: Choice{Datapath: netdev, Transport: b, NICs: []string{"eno1", "eno2"}}, why: "userspace bridge br-ex"},
		{name: "underlay on a userspace bridge, geneve", w: Wants{Encap: state.Geneve}, f: with(onUserspace),
			want: Choice{Datapath: netdev, Transport: b, NICs: []string{"eno1", "eno2"}, Encap: state.Geneve}, why: "userspace bridge br-ex"},
		{name: "underlay on a userspace bridge, with TSO", f: with(onUserspace, tso),
			want: Choice{Datapath: netdev, Transport: b, NICs: []string{"eno1", "eno2"}, TSO: true}, why: "userspace bridge br-ex", warn: "cannot segment"},
		{name: "underlay on a userspace bridge, kernel asked for", w: Wants{Datapath: system}, f: with(module, onUserspace),
			want: Choice{Datapath: system, Transport: a}, why: "--datapath system"},
		{name: "no module", f: bare,
			want: Choice{Private: true, Datapath: netdev, Transport: c, TSO: true}, why: "no module"},
		{name: "no module, no tun", f: with(noTun), err: "/dev/net/tun"},
		{name: "module, no tun", f: with(module, running, noTun),
			want: Choice{Datapath: system, Transport: a}, why: "module openvswitch"},
		{name: "no module, the host's instance runs", f: with(running),
			want: Choice{Private: true, Datapath: netdev, Transport: c, TSO: true}, why: "no module"},
		{name: "no module, ours runs", f: with(running, left),
			want: Choice{Private: true, Datapath: netdev, Transport: c, TSO: true}, why: "no module"},
		{name: "no module, a kernel bridge that cannot be", f: with(onKernel),
			want: Choice{Private: true, Datapath: netdev, Transport: c, TSO: true}, why: "no module"},
		{name: "no module, the host's instance has a userspace bridge", f: with(userspace, left),
			want: Choice{Stop: true, Datapath: netdev, Transport: c}, why: "has a userspace bridge", warn: "without userspace TSO"},
		{name: "no module, the same with TSO", f: with(userspace, tso),
			want: Choice{Datapath: netdev, Transport: c, TSO: true}, why: "has a userspace bridge"},
		{name: "host asked for, no module", w: Wants{OVS: host}, f: bare,
			want: Choice{Start: true, Datapath: netdev, Transport: c}, why: "no module", warn: "without userspace TSO"},
		{name: "host asked for, no module, TSO", w: Wants{OVS: host}, f: with(running, tso),
			want: Choice{Datapath: netdev, Transport: c, TSO: true}, why: "no module"},
		{name: "host asked for, module", w: Wants{OVS: host}, f: with(module, running),
			want: Choice{Datapath: system, Transport: a}, why: "module openvswitch"},
		{name: "host and userspace asked for", w: Wants{OVS: host, Datapath: netdev}, f: with(module, running),
			want: Choice{Datapath: netdev, Transport: c}, why: "--datapath netdev", warn: "without userspace TSO"},
		{name: "userspace asked for", w: Wants{Datapath: netdev}, f: with(module, running),
			want: Choice{Private: true, Datapath: netdev, Transport: c, TSO: true}, why: "--datapath netdev"},
		{name: "private asked for, with module", w: Wants{OVS: private}, f: with(module, running),
			want: Choice{Private: true, Datapath: netdev, Transport: c, TSO: true}, why: "--ovs private"},
		{name: "private asked for, underlay on a kernel bridge", w: Wants{OVS: private}, f: with(module, onKernel),
			want: Choice{Private: true, Datapath: netdev, Transport: c, TSO: true}, why: "--ovs private"},

		{name: "not installed", f: OVSFacts{Module: true}, err: "no Open vSwitch is installed; apt-get install openvswitch-switch"},
		{name: "kernel asked for, no module", w: Wants{Datapath: system}, f: bare, err: "no module openvswitch; "},
		{name: "private with the kernel's datapath", w: Wants{OVS: private, Datapath: system}, f: with(module), err: "use --ovs host"},
		{name: "private beside a userspace bridge", w: Wants{OVS: private}, f: with(userspace), err: "use --ovs host"},
		{name: "private, underlay on a userspace bridge", w: Wants{OVS: private, Datapath: netdev}, f: with(onUserspace), err: "use --ovs host"},
		{name: "private, underlay on a userspace bridge of ours", w: Wants{OVS: private},
			f: OVSFacts{Installed: true, UnderlayOn: "meshnet", UnderlayNetdev: true}, err: "use --ovs host"},
		{name: "geneve without tunnel ports", w: Wants{Encap: state.Geneve}, f: bare, err: "use --encap vxlan"},
		{name: "geneve, private", w: Wants{OVS: private, Encap: state.Geneve}, f: with(module), err: "use --encap vxlan"},
		{name: "another word for ovs", w: Wants{OVS: "system"}, f: bare, err: "want auto, host or private"},
		{name: "another word for datapath", w: Wants{Datapath: "dpdk"}, f: bare, err: "want auto, system or netdev"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Choose(tc.w, tc.f)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "\n") {
					t.Fatalf("error %v, want one line with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(got.Why, tc.why) {
				t.Errorf("why %q, want %q", got.Why, tc.why)
			}
			warnings := strings.Join(got.Warnings, "\n")
			if (warnings != "") != (tc.warn != "") || !strings.Contains(warnings, tc.warn) {
				t.Errorf("warnings %q, want %q", warnings, tc.warn)
			}
			got.Why, got.Warnings = "", nil
			if g, w := flat(got), flat(tc.want); g != w {
				t.Errorf("got  %+v\nwant %+v", g, w)
			}
		})
	}
}

// flat returns the comparable part of a choice.
func flat(c Choice) any {
	return struct {
		private, start, stop, tso bool
		datapath                  string
		transport                 state.Transport
		encap                     state.Encap
		nics                      string
	}{c.Private, c.Start, c.Stop, c.TSO, c.Datapath, c.Transport, c.Encap, strings.Join(c.NICs, " ")}
}

func TestChooseUnderlay(t *testing.T) {
	prefixes := func(ss ...string) (ps []netip.Prefix) {
		for _, s := range ss {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		return ps
	}
	lo := LinkFacts{Name: "lo", Index: 1, Up: true, MTU: 65536, Addrs: prefixes("127.0.0.1/8", "::1/128")}
	eth0 := LinkFacts{Name: "eth0", Index: 2, Up: true, MTU: 1500,
		Addrs: prefixes("fe80::1/64", "2001:db8::7/64", "192.0.2.7/24", "192.0.2.8/24")}
	wlan0 := LinkFacts{Name: "wlan0", Index: 3, Up: true, MTU: 1400, Addrs: prefixes("198.51.100.7/24")}
	v6 := LinkFacts{Name: "eth6", Index: 4, Up: true, MTU: 9000, Addrs: prefixes("fe80::1/64", "2001:db8::9/64")}
	docker0 := LinkFacts{Name: "docker0", Index: 5, Kind: "bridge", Up: true, Docker: true, Addrs: prefixes("172.17.0.1/16")}
	ours := LinkFacts{Name: "mv-0123456789", Index: 6, Kind: "vxlan", Up: true, Ours: true, Addrs: prefixes("10.1.0.1/16")}
	local := LinkFacts{Name: "eth9", Index: 7, Up: true, Addrs: prefixes("169.254.3.4/16")}
	vlan := LinkFacts{Name: "eth0.5", Index: 8, Kind: "vlan", Up: true, MTU: 1500, Addrs: prefixes("203.0.113.7/24")}
	down := func(l LinkFacts) LinkFacts { l.Up = false; return l }
	def := func(l LinkFacts) LinkFacts { l.Default = true; return l }

	for _, tc := range []struct {
		name  string
		w     Wants
		links []LinkFacts
		want  string // device address
		err   []string
	}{
		{name: "the only one", links: []LinkFacts{lo, eth0, docker0, ours, local}, want: "eth0 192.0.2.7/24"},
		{name: "of any kind", links: []LinkFacts{lo, vlan}, want: "eth0.5 203.0.113.7/24"},
		{name: "IPv6 only", links: []LinkFacts{lo, v6}, want: "eth6 2001:db8::9/64"},
		{name: "the default route's", links: []LinkFacts{lo, eth0, def(wlan0)}, want: "wlan0 198.51.100.7/24"},
		{name: "the default route's has no address", links: []LinkFacts{lo, eth0, def(local)}, want: "eth0 192.0.2.7/24"},
		{name: "one is down", links: []LinkFacts{lo, down(eth0), wlan0}, want: "wlan0 198.51.100.7/24"},
		{name: "by name", w: Wants{Iface: "eth0"}, links: []LinkFacts{eth0, def(wlan0)}, want: "eth0 192.0.2.7/24"},
		{name: "by name, made by Docker", w: Wants{Iface: "docker0"}, links: []LinkFacts{eth0, docker0}, want: "docker0 172.17.0.1/16"},
		{name: "by address", w: Wants{Advertise: netip.MustParseAddr("192.0.2.8")}, links: []LinkFacts{eth0, def(wlan0)}, want: "eth0 192.0.2.8/24"},
		{name: "by local address", w: Wants{Advertise: netip.MustParseAddr("127.0.0.1")}, links: []LinkFacts{lo, eth0}, want: "lo 127.0.0.1/8"},
		{name: "by mapped address", w: Wants{Advertise: netip.MustParseAddr("::ffff:192.0.2.8")}, links: []LinkFacts{eth0}, want: "eth0 192.0.2.8/24"},
		{name: "by both", w: Wants{Iface: "eth0", Advertise: netip.MustParseAddr("2001:db8::7")}, links: []LinkFacts{eth0}, want: "eth0 2001:db8::7/64"},

		{name: "several", links: []LinkFacts{lo, eth0, wlan0, docker0}, err: []string{"--iface", "eth0 ", "192.0.2.7/24", "wlan0 198.51.100.7/24"}},
		{name: "several default routes", links: []LinkFacts{def(eth0), def(wlan0), vlan}, err: []string{"several"}},
		{name: "none", links: []LinkFacts{lo, docker0, down(eth0)}, err: []string{"none is up", "eth0 ", "down"}},
		{name: "nothing", err: []string{"no interface at all"}},
		{name: "no such name", w: Wants{Iface: "eth5"}, links: []LinkFacts{eth0}, err: []string{"eth5", "no such interface", "eth0"}},
		{name: "name is down", w: Wants{Iface: "eth0"}, links: []LinkFacts{down(eth0)}, err: []string{"is down"}},
		{name: "name has no address", w: Wants{Iface: "eth9"}, links: []LinkFacts{eth0, local}, err: []string{"no global address"}},
		{name: "no such address", w: Wants{Advertise: netip.MustParseAddr("10.9.9.9")}, links: []LinkFacts{eth0}, err: []string{"10.9.9.9", "eth0"}},
		{name: "address is down", w: Wants{Advertise: netip.MustParseAddr("192.0.2.7")}, links: []LinkFacts{down(eth0)}, err: []string{"is down"}},
		{name: "address on another interface", w: Wants{Iface: "wlan0", Advertise: netip.MustParseAddr("192.0.2.7")},
			links: []LinkFacts{eth0, wlan0}, err: []string{"wlan0 has no such address"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, err := ChooseUnderlay(tc.w, tc.links)
			if tc.err == nil {
				if err != nil {
					t.Fatal(err)
				}
				if got := u.Device + " " + u.Prefix.String(); got != tc.want || u.Addr != u.Prefix.Addr() || u.Index == 0 {
					t.Errorf("got %s (%+v), want %s", got, u, tc.want)
				}
				return
			}
			if err == nil {
				t.Fatalf("got %+v", u)
			}
			for _, word := range tc.err {
				if !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error %q, want one line with %q", err, word)
				}
			}
		})
	}
}

// TestUnderlayStays: only the loss of the address, another device or another MTU end the choice.
func TestUnderlayStays(t *testing.T) {
	at := netip.MustParsePrefix("192.0.2.2/24")
	eth := LinkFacts{Name: "eth0", Index: 2, MTU: 1500, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8"), at}, Default: true}
	u := Underlay{Device: "eth0", Index: 2, Addr: at.Addr(), Prefix: at, MTU: 1500}
	for _, test := range []struct {
		name string
		edit func(*LinkFacts)
		want bool
	}{
		{"nothing", func(*LinkFacts) {}, true},
		{"down", func(l *LinkFacts) { l.Up, l.Default = false, false }, true},
		{"one more address", func(l *LinkFacts) { l.Addrs = append(slices.Clone(l.Addrs), netip.MustParsePrefix("192.0.2.3/24")) }, true},
		{"address gone", func(l *LinkFacts) { l.Addrs = l.Addrs[:1] }, false},
		{"other prefix", func(l *LinkFacts) { l.Addrs = []netip.Prefix{netip.PrefixFrom(at.Addr(), 25)} }, false},
		{"mtu", func(l *LinkFacts) { l.MTU = 1400 }, false},
		{"another card", func(l *LinkFacts) { l.Index = 9 }, false},
		{"renamed", func(l *LinkFacts) { l.Name = "eth1" }, false},
	} {
		l := eth
		test.edit(&l)
		if got := u.Stays([]LinkFacts{{Name: "lo", Index: 1}, l}); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
	if u.Stays(nil) {
		t.Error("no interface at all")
	}
}

// TestChooseFast: the fast path is on where it makes a difference and can be, unless it is not wanted.
func TestChooseFast(t *testing.T) {
	can, old, not := FastFacts{Can: true, Peer: true, Ends: true}, FastFacts{Can: true}, FastFacts{Lack: "no clsact"}
	for _, tc := range []struct {
		transport state.Transport
		word      string
		f         FastFacts
		want      bool
		why       string
	}{
		{state.KernelVXLAN, "", can, true, "and bpf_redirect_peer"},
		{state.KernelVXLAN, auto, can, true, "and bpf_redirect_peer"},
		{state.KernelVXLAN, auto, old, true, "stands in"},
		{state.KernelVXLAN, auto, not, false, "no clsact"},
		{state.KernelVXLAN, off, can, false, "--fastpath off"},
		{state.OVSKernel, auto, can, true, "and bpf_redirect_peer"},
		{state.OVSKernel, auto, old, false, "it takes Linux 6.0"},
		{state.OVSKernel, auto, not, false, "no clsact"},
		{state.OVSUserspace, auto, can, false, "ovs-userspace"},
		{state.OVSKernel, off, can, false, "--fastpath off"},
	} {
		c := Choice{Transport: tc.transport}.Fast(Wants{FastPath: tc.word}, tc.f)
		if c.FastPath != tc.want || !strings.Contains(c.FastWhy, tc.why) {
			t.Errorf("%s %q %+v: %t %q", tc.transport, tc.word, tc.f, c.FastPath, c.FastWhy)
		}
	}
	if c := (Choice{Transport: state.OVSKernel, Encap: state.Geneve}).Fast(Wants{}, can); c.FastPath || !strings.Contains(c.FastWhy, "VXLAN") {
		t.Errorf("Geneve: %t %q", c.FastPath, c.FastWhy)
	}
	if _, err := Choose(Wants{FastPath: "on"}, OVSFacts{Installed: true, Module: true}); err == nil {
		t.Error("--fastpath on is no word of ours")
	}
}
