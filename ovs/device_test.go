package ovs

import (
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"testing"

	"meshnet/netns/nstest"
	"meshnet/plan"
	"meshnet/state"
)

// TestRealDevices pings between two containers through the userspace datapath, and again after one
// got a new device under its old name. The gateway is a tap, which is made again, too.
func TestRealDevices(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	if !installed() {
		t.Fatal("needs Open vSwitch; apt-get install openvswitch-switch")
	}
	dir := shortDir(t)
	sw, err := New(Config{
		Choice: plan.Choice{Private: true, TSO: true}, RunDir: dir, HostRunDir: dir, Bridge: "meshnet",
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	sw.own.switchArgs = []string{"--disable-system"}
	defer func() {
		if _, err := Purge(context.Background(), PurgeConfig{RunDir: dir, HostRunDir: dir, Bridge: "meshnet"}); err != nil {
			t.Error(err)
		}
		if out := command(t, "ip", "-o", "link"); strings.Contains(out, "meshnet") {
			t.Errorf("the bridge's device is left:\n%s", out)
		}
	}()
	h := tunnelHost(state.KernelVXLAN)
	h.Datapath, h.Tunnels, h.TSO = "netdev", nil, true
	delete(h.Networks, green)
	n := h.Networks[web]
	n.Remotes, n.Flood = nil, nil
	n.Device = &plan.Vxlan{Name: "mv-web", VNI: n.VNI, OFPort: 40}
	link(h)
	command(t, "ip", "link", "add", "mv-web", "mtu", "1450", "type", "vxlan", "id", "119", "dstport", "14789", "dev", "lo", "nolearning")
	command(t, "ip", "link", "set", "mv-web", "up")
	for _, p := range n.Ports {
		nstest.Add(t, p.Link)
		container(t, p)
	}
	h.Gateway = &plan.Gateway{Name: "mesh-gw", OFPort: 60001, MTU: 1500}
	tap(t)

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- sw.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	found := eventually(t, sw, h)
	if found.Ports[c1] != 11 || found.Ports[c2] != 12 || found.Devices[web] != 40 || found.Gateway != 60001 {
		t.Errorf("found %+v", found)
	}
	ping(t)
	opened(t)
	if steps, _, err := sw.Apply(ctx, h); err != nil || len(steps) > 0 {
		t.Errorf("again %v, %v", steps, err)
	}

	command(t, "ip", "link", "del", "mesh-gw")
	tap(t)
	eventually(t, sw, h)
	opened(t)

	command(t, "ip", "link", "del", "mc-c2")
	container(t, n.Ports[1])
	eventually(t, sw, h)
	// Giving up a device ovs-vswitchd restores the flags it had by name, and so may set the new one
	// down; package netns sees that and sets it up.
	command(t, "ip", "link", "set", "mc-c2", "up")
	ping(t)
}

// container gives the namespace that is named like a port's link its interface.
func container(t *testing.T, p plan.Port) {
	t.Helper()
	command(t, "ip", "link", "add", p.Link, "mtu", "1450", "type", "veth",
		"peer", "name", "eth0", "netns", p.Link, "mtu", "1450", "address", p.MAC.String())
	command(t, "ip", "link", "set", p.Link, "up")
	command(t, "ip", "-n", p.Link, "addr", "add", p.Addr.String()+"/16", "dev", "eth0")
	command(t, "ip", "-n", p.Link, "link", "set", "eth0", "up")
}

// tap makes the gateway's.
func tap(t *testing.T) {
	t.Helper()
	command(t, "ip", "tuntap", "add", "mesh-gw", "mode", "tap")
	command(t, "ip", "link", "set", "mesh-gw", "mtu", "1500", "up")
}

// opened checks that ovs-vswitchd has the tap, whose MTU is more than that of other ports, as it was made.
func opened(t *testing.T) {
	t.Helper()
	out := command(t, "ip", "-o", "link", "show", "mesh-gw")
	for _, want := range []string{"LOWER_UP", "mtu 1500 "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// ping checks that the two containers reach each other.
func ping(t *testing.T) {
	t.Helper()
	command(t, "nsenter", "--net=/run/netns/mc-c1", "ping", "-q", "-i", "0.05", "-c", "5", "-w", "5", "10.2.0.2")
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
