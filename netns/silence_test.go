package netns_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"meshnet/netns"
	"meshnet/netns/nstest"
	"meshnet/plan"
)

// A NIC of a userspace bridge answers no ARP for the address of the bridge, which has the same kernel.
func TestSilence(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	l, dir := gatewayLinks(t)
	b := box(t, "peer")
	for _, c := range []string{
		"ip link add br-phy type bridge", "ip link set br-phy up", "ip addr add 192.0.2.1/24 dev br-phy",
		"ip link add nic0 type veth peer name eth0 netns peer", "ip link set nic0 up", "ip link add nic1 type bridge", "ip link add nic2 type bridge",
	} {
		run(t, plan.Sandbox{}, strings.Fields(c)...)
	}
	for _, c := range []string{"ip link set eth0 up", "ip addr add 192.0.2.2/24 dev eth0"} {
		run(t, b, strings.Fields(c)...)
	}
	answers := func() bool {
		t.Helper()
		_, got, _ := strings.Cut(run(t, b, "sh", "-c", "busybox arping -c 1 -w 1 -I eth0 192.0.2.1 || true"), "Received ")
		return strings.HasPrefix(got, "1 ")
	}
	set := func(device, value string) {
		t.Helper()
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+device+"/arp_ignore", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when, settings string) {
		t.Helper()
		var have []string
		for _, device := range []string{"nic0", "nic1", "nic2"} {
			text, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + device + "/arp_ignore")
			if err != nil {
				t.Fatal(err)
			}
			have = append(have, strings.TrimSpace(string(text)))
		}
		if got := strings.Join(have, " "); got != settings {
			t.Errorf("%s: arp_ignore %s, want %s", when, got, settings)
		}
	}
	set("nic2", "2")
	if !answers() {
		t.Fatal("nobody answers at first: the test shows nothing")
	}

	h := host(nil)
	h.NICs = []string{"nic0", "nic1", "nic2", "nic3"} // nic3 is not there
	steps, _ := apply(t, l, h)
	if !slices.Contains(steps, "set net/ipv4/conf/nic0/arp_ignore 1") {
		t.Errorf("steps %q", steps)
	}
	want("applied", "1 1 2")
	if answers() {
		t.Error("it answers for the bridge")
	}
	settled(t, l, h)
	l2, err := netns.New(netns.Config{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	settled(t, l2, h) // what a daemon before did is known

	h.NICs = []string{"nic0", "nic2"}
	apply(t, l2, h)
	want("a NIC less", "1 0 2")
	set("nic0", "0")
	h.NICs = []string{"nic0", "nic1", "nic2"}
	apply(t, l2, h)
	want("put back", "1 1 2")
	set("nic1", "2")
	h.NICs = nil
	apply(t, l2, h)
	want("none", "0 2 2") // what another set meanwhile stays
	if _, err := os.Stat(dir + "/arp_ignore"); err == nil {
		t.Error("the note is left")
	}
	set("nic1", "0")

	set("all", "1")
	h.NICs = []string{"nic0"}
	apply(t, l2, h)
	want("all of the host", "0 0 2")
	set("all", "0")
	h.NICs = []string{"nic1"}
	apply(t, l2, h)
	want("another", "0 1 2")
	if _, err := l2.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("purged", "0 0 2")
}
