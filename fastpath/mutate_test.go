package fastpath

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// mutations are the checks of the program, each with what is in its place when it is broken.
var mutations = []struct{ check, is, broken string }{
	{"type", "eth->h_proto != bpf_htons(ETH_P_IP)", "0"},
	{"header too short", "header < sizeof(*ip) || ", ""},
	{"length less than the header", "total < header || ", ""},
	{"length more than the frame", " || total > size", ""},
	{"source MAC", "differ(eth->h_source, p->mac) || ", ""},
	{"source address", " || ip->saddr != p->ip", ""},
	{"split horizon", " || known->ifindex == f->in", ""},
	{"out of a peer", "p->kind != CONTAINER || ", ""},
	{"out to the own network", " || (ip->daddr & x->mask) == x->net", ""},
	{"the host's own address", " || (e->except && ip->saddr == e->except)", ""},
	{"MACs on the way out", "rename(v, x->near, x->far)", "rename(v, x->far, x->near)"},
	{"MACs on the way in", "rename(v, e->dst, e->src)", "rename(v, e->dst, e->dst)"},
	{"into the container", "v->way.how = LOCAL", "v->way.how = OUT"},
	{"type of a tunnel packet", "skb->protocol != bpf_htons(ETH_P_IP) || ", ""},
	{"for this host's MAC", " || skb->pkt_type != PACKET_HOST", ""},
	{"version", "ip->version != 4 || ", ""},
	{"options", "ip->ihl != 5 || ", ""},
	{"UDP", "ip->protocol != IPPROTO_UDP || ", ""},
	{"fragments", " || (ip->frag_off & bpf_htons(0x3fff))", ""},
	{"first fragments", "bpf_htons(0x3fff)", "bpf_htons(0x1fff)"},
	{"later fragments", "bpf_htons(0x3fff)", "bpf_htons(0x2000)"},
	{"port of the tunnels", "udp->dest != under->udp || ", ""},
	{"this host's tunnel end", " || ip->daddr != under->ip", ""},
	{"peers", "!bpf_map_lookup_elem(&meshnet_peers, &peer)", "0"},
	{"segments but of TCP", "(skb->gso_size && inner->protocol != IPPROTO_TCP) || congested", "congested"},
	{"congestion", "IPPROTO_TCP) || congested", "IPPROTO_TCP)"},
	{"what cannot be taken waits", "		queued(&flow, 1);\n", ""},
	{"only CE", "ip->tos & 1", "(ip->tos & 3) == 3"},
	{"what waits is not overtaken", "!late || now > *late + QUIET", "1"},
	{"what went by long ago does not wait", "!late || now > *late + QUIET", "!late"},
	{"what anything waits for is asked", "tick > meshnet_late_tick + QUIET_TICKS", "1"},
	{"that anything waits is noted", "meshnet_late_tick = tick;", ";"},
	{"what will wait is noted", "bpf_map_update_elem(&meshnet_late, flow, &now, BPF_ANY);", ";"},
	{"length of the packet", "total != skb->len - sizeof(*eth) || ", ""},
	{"length of the datagram", "bpf_ntohs(udp->len) != total - sizeof(*ip) || ", ""},
	{"checksum of the header", " || sum(ip) != 0xffff", ""},
	{"flags of VXLAN", "vxlan->flags != bpf_htonl(0x08000000) || ", ""},
	{"reserved bits of VXLAN", " || (vni & 0xff)", ""},
	{"network", "{.vni = vni >> 8, .kind = TRUNK}", "{.vni = (vni >> 8) & 0xfffffe, .kind = TRUNK}"},
	{"out of a tunnel into none, or without a VXLAN device", " || !v.way.trunk", ""},
	{"MACs of a frame out of a tunnel", "__builtin_memcpy(v.macs, f.eth, sizeof(v.macs));", ""},
	{"what wraps it", "-(__s32)WRAPPING", "-(__s32)WRAPPING + 4"},
	{"network of what is sent", ".vni = bpf_htonl(vni << 8)", ".vni = bpf_htonl((vni & 0xfffffe) << 8)"},
	{"peer of what is sent", ".daddr = peer", ".daddr = peer ^ 1"},
	{"congestion of what is sent", "ecn == 3 ? 2 : ecn", "ecn"},
	{"any congestion of what is sent", ".tos = ecn == 3 ? 2 : ecn, ", ""},
	{"lengths of what is sent", ".len = bpf_htons(total - sizeof(struct iphdr))", ".len = bpf_htons(total)"},
	{"checksum of what is sent", "w.ip.check = ~sum(&w.ip);", ""},
	{"MACs of what is sent", ".eth = *eth,", ""},
	{"who may be sent to", "under->kind != UNDERLAY", "0"},
	{"others' filters", "return PEER ? unwrap(skb, p) : TC_ACT_UNSPEC;", "return PEER && unwrap(skb, p) == TC_ACT_REDIRECT ? TC_ACT_REDIRECT : TC_ACT_OK;"},
}

// TestMutations breaks one check of the program after the other and wants the comparison with the
// pipeline to fail for each: a test that cannot fail shows nothing. The check of accelerated VLAN tags
// is not among them, for a test run has none: TestPath sends one.
func TestMutations(t *testing.T) {
	apart(t)
	source := readSource(t)
	indexes := someDevices(t, 100)
	for _, m := range mutations {
		if strings.Count(source, m.is) != 1 {
			t.Errorf("%s: %q is not once in fast.c", m.check, m.is)
			continue
		}
		p, err := loadSpec(compiled(t, strings.Replace(source, m.is, m.broken, 1)), true, 0)
		if err != nil {
			t.Errorf("%s: %v", m.check, err)
			continue
		}
		c := comparison{machine: machineOf(t, p), seed: 1, reasons: map[string]int{}, indexes: indexes}
		err = c.compare(t, 60_000)
		if err == nil {
			t.Errorf("%s: nobody notices that it is broken", m.check)
		} else {
			t.Logf("%s: %.160v", m.check, err)
		}
	}
}

// readSource returns the program's source, where it can be compiled.
func readSource(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("clang"); err != nil {
		if os.Getenv("MESHNET_REQUIRE") != "" || os.Getenv("CI") == "true" {
			t.Fatalf("%v; apt-get install clang libbpf-dev", err)
		}
		t.Skip(err)
	}
	source, err := os.ReadFile("bpf/fast.c")
	if err != nil {
		t.Fatal(err)
	}
	return string(source)
}

// compiled returns what clang makes of a source.
func compiled(t testing.TB, source string) *ebpf.CollectionSpec {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fast.c")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("clang", "-O2", "-g", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c", file, "-o", file+".o")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	spec, err := ebpf.LoadCollectionSpec(file + ".o")
	if err != nil {
		t.Fatal(err)
	}
	return spec
}
