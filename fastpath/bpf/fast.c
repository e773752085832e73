//go:build ignore

// The fast path of transport C: a frame that is an exact, unspoofed IPv4 unicast between two known
// members of one network goes from device to device without leaving the kernel. All else goes to the
// device's slow twin, a veth whose other end is a port of Open vSwitch, unchanged.
//
// One program sits at the ingress (clsact) of three kinds of device: the host's end of a container's
// veth, a network's VXLAN device, and the slow twins of both. It may send less than the switch would,
// never more: what it lets pass is what tables 0, 10, 30 and 40 of the pipeline (ovs/flow) deliver to
// the same device. See bpf-helpers(7), tc-bpf(8).

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Two devices for each port of Open vSwitch, of which it numbers 65,279: there is always room for one.
// Members that find none go through the switch.
#define PORTS_MAX 131072
#define MEMBERS_MAX 131072

// PEER: bpf_redirect_peer is there (Linux 5.10). Set before the program is loaded.
volatile const __u8 PEER = 1;

// What a device is.
enum kind {
	CONTAINER = 1, // the host's end of a container's veth
	TRUNK = 2,     // a network's VXLAN device
	TWIN_CONTAINER = 3,
	TWIN_TRUNK = 4,
};

// Why a frame went which way; the index of a counter.
enum reason {
	FAST,    // known, and sent straight on
	SLOW,    // not for the fast path: not IPv4, to a group, tagged
	UNKNOWN, // unicast to whom the fast path does not know: the gateway, a published port, nobody
	REFUSED, // not the sender's own MAC or address; the switch drops it
	BROKEN,  // no whole IPv4 header, or lengths that contradict each other
	RETURN,  // from the switch, for the device behind the twin
	REASONS,
};

// Keeps the type in the object, for bpf2go.
volatile const enum reason meshnet_reason = FAST;

struct port {
	__u32 vni;
	__u32 other; // the slow twin's ifindex; of a twin, that of the device it stands for
	enum kind kind;
	__be32 ip; // CONTAINER: the only source address
	__u8 mac[6];
	__u16 pad;
};

struct member {
	__u32 vni;
	__u8 mac[6];
	__u16 pad;
};

struct way {
	__u32 ifindex;
	__u32 local; // 1: a container's veth here; 0: the network's VXLAN device
};

struct count {
	__u64 packets[REASONS];
	__u64 bytes; // of FAST
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PORTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); // ifindex
	__type(value, struct port);
} meshnet_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MEMBERS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member);
	__type(value, struct way);
} meshnet_members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, PORTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); // ifindex
	__type(value, struct count);
} meshnet_counts SEC(".maps");

static __always_inline int differ(const __u8 *a, const __u8 *b)
{
	int x = 0;
	for (int i = 0; i < 6; i++)
		x |= a[i] ^ b[i];
	return x;
}

// classify says why a frame goes which way, and if it is FAST, the way.
static __always_inline enum reason classify(struct __sk_buff *skb, const struct port *p, struct way *w)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(eth + 1) > end)
		return BROKEN;
	if (skb->vlan_present || eth->h_proto != bpf_htons(ETH_P_IP) || (eth->h_dest[0] & 1))
		return SLOW;
	if ((void *)(ip + 1) > end)
		return BROKEN;
	// Open vSwitch takes for IPv4 what passes these (lib/flow.c, ipv4_sanity_check).
	__u32 header = ip->ihl * 4, total = bpf_ntohs(ip->tot_len), size = skb->len - sizeof(*eth);
	if (header < sizeof(*ip) || size < header || total < header || total > size)
		return BROKEN;
	if (p->kind == CONTAINER && (differ(eth->h_source, p->mac) || ip->saddr != p->ip))
		return REFUSED;

	struct member to = {.vni = p->vni};
	__builtin_memcpy(to.mac, eth->h_dest, sizeof(to.mac));
	struct way *known = bpf_map_lookup_elem(&meshnet_members, &to);
	// Nothing goes back to where it came from: so what came from a peer never goes to one.
	if (!known || known->ifindex == skb->ifindex)
		return UNKNOWN;
	*w = *known;
	return FAST;
}

static __always_inline void note(__u32 ifindex, enum reason why, __u32 len)
{
	struct count *c = bpf_map_lookup_elem(&meshnet_counts, &ifindex);
	if (!c)
		return;
	c->packets[why]++;
	if (why == FAST)
		c->bytes += len;
}

SEC("tc")
int meshnet_fast(struct __sk_buff *skb)
{
	__u32 in = skb->ifindex;
	struct port *p = bpf_map_lookup_elem(&meshnet_ports, &in);
	struct way w = {};
	enum reason why;

	if (!p)
		return TC_ACT_OK;
	if (p->kind == TWIN_CONTAINER || p->kind == TWIN_TRUNK) {
		why = RETURN;
		w.ifindex = p->other;
		w.local = p->kind == TWIN_CONTAINER;
	} else {
		why = classify(skb, p, &w);
		if (why != FAST)
			w.ifindex = p->other;
	}
	note(in, why, skb->len);
	// For who runs the program without a network, as its tests do.
	skb->cb[0] = why;
	skb->cb[1] = w.ifindex;
	if (w.local && PEER)
		return bpf_redirect_peer(w.ifindex, 0);
	return bpf_redirect(w.ifindex, 0);
}

char _license[] SEC("license") = "Apache-2.0";
