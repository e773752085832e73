//go:build ignore

// The fast path of transport C: a frame that is an exact, unspoofed IPv4 unicast between two known
// members of one network goes from device to device without leaving the kernel. All else goes to the
// device's slow twin, a veth whose other end is a port of Open vSwitch, unchanged.
//
// The same goes for what a container sends to the world by its network's gateway, and for what comes
// back from there: both are known by the MACs of the veth that leads to the host's own stack.
//
// One program sits at the ingress (clsact) of four kinds of device: the host's end of a container's
// veth, a network's VXLAN device, the switch's end of the gateway's veth, and the slow twins of all. It
// may send less than the switch would, never more: what it lets pass is what the pipeline (ovs/flow)
// delivers to the same device with the same MACs. See bpf-helpers(7), tc-bpf(8).

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
	DOOR = 3,      // the switch's end of the veth to the host's own stack
	TWIN_CONTAINER = 4,
	TWIN_TRUNK = 5,
	TWIN_DOOR = 6,
};

// How a frame gets onto a device.
enum how {
	OUT = 0,   // sent by it
	LOCAL = 1, // to the other end of a container's veth
	HOST = 2,  // received by the host's end of the gateway's veth, by the network's exit
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
volatile const enum how meshnet_how = OUT;

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
	enum how how;
};

// exit is how a network's containers reach the world.
struct exit {
	__be32 net, mask; // of its subnet: what is for there is not for the world
	__u8 far[6];      // stands for the network on the gateway's veth
	__u8 near[6];     // of the host's end
};

// inward is whom a frame from the host's own stack is for.
struct inward {
	__u8 far[6]; // the network
	__u16 pad;
	__be32 ip;
};

// entry is the container it is for.
struct entry {
	__u32 ifindex;
	__be32 except; // from this address it is for the switch: the host's own on the network; 0: none
	__u8 src[6];   // the network's gateway
	__u8 dst[6];
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
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PORTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); // VNI
	__type(value, struct exit);
} meshnet_exits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PORTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct inward);
	__type(value, struct entry);
} meshnet_entries SEC(".maps");

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

// verdict is why a frame goes which way, and if it is FAST, the way, with other MACs if there are some.
struct verdict {
	enum reason why;
	struct way way;
	__u32 renamed;
	__u8 macs[12]; // destination, source: as they stand in the frame
};

static __always_inline void rename(struct verdict *v, const __u8 *dst, const __u8 *src)
{
	v->renamed = 1;
	__builtin_memcpy(v->macs, dst, 6);
	__builtin_memcpy(v->macs + 6, src, 6);
}

// enter finds the container that a frame from the host's own stack is for.
static __always_inline enum reason enter(const struct ethhdr *eth, const struct iphdr *ip, struct verdict *v)
{
	struct inward to = {.ip = ip->daddr};
	__builtin_memcpy(to.far, eth->h_dest, sizeof(to.far));
	struct entry *e = bpf_map_lookup_elem(&meshnet_entries, &to);
	if (!e || (e->except && ip->saddr == e->except))
		return UNKNOWN;
	v->way.ifindex = e->ifindex;
	v->way.how = LOCAL;
	rename(v, e->dst, e->src);
	return FAST;
}

static __always_inline enum reason classify(struct __sk_buff *skb, const struct port *p, struct verdict *v)
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
	if (header < sizeof(*ip) || total < header || total > size)
		return BROKEN;
	if (p->kind == DOOR)
		return enter(eth, ip, v);
	if (p->kind == CONTAINER && (differ(eth->h_source, p->mac) || ip->saddr != p->ip))
		return REFUSED;

	struct member to = {.vni = p->vni};
	__builtin_memcpy(to.mac, eth->h_dest, sizeof(to.mac));
	struct way *known = bpf_map_lookup_elem(&meshnet_members, &to);
	// Nothing goes back to where it came from: so what came from a peer never goes to one.
	if (!known || known->ifindex == skb->ifindex)
		return UNKNOWN;
	v->way = *known;
	if (known->how != HOST)
		return FAST;
	struct exit *x = bpf_map_lookup_elem(&meshnet_exits, &to.vni);
	// The way out is for the containers of this host, and out is what is not on their own network.
	if (!x || p->kind != CONTAINER || (ip->daddr & x->mask) == x->net)
		return UNKNOWN;
	rename(v, x->near, x->far);
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
	__u32 in = skb->ifindex, len = skb->len;
	struct port *p = bpf_map_lookup_elem(&meshnet_ports, &in);
	struct verdict v = {};

	if (!p)
		return TC_ACT_OK;
	if (p->kind >= TWIN_CONTAINER) {
		v.why = RETURN;
		v.way.how = p->kind == TWIN_CONTAINER ? LOCAL : OUT;
	} else {
		v.why = classify(skb, p, &v);
		if (v.why == FAST && v.renamed && bpf_skb_store_bytes(skb, 0, v.macs, sizeof(v.macs), 0))
			v.why = UNKNOWN; // it is as it came
		if (v.why != FAST)
			v.way.how = OUT;
	}
	if (v.why != FAST)
		v.way.ifindex = p->other;
	note(in, v.why, len);
	// For who runs the program without a network, as its tests do.
	skb->cb[0] = v.why;
	skb->cb[1] = v.way.ifindex;
	skb->cb[2] = v.way.how;
	if (v.way.how == LOCAL && PEER)
		return bpf_redirect_peer(v.way.ifindex, 0);
	return bpf_redirect(v.way.ifindex, v.way.how == HOST ? BPF_F_INGRESS : 0);
}

char _license[] SEC("license") = "Apache-2.0";
