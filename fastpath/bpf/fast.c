//go:build ignore

// SPDX-License-Identifier: MIT OR GPL-2.0-only

// The fast path of transports A and C: a frame that is an exact, unspoofed IPv4 unicast between two known
// members of one network goes from device to device without leaving the kernel. All else goes to the
// device's slow twin, a veth whose other end is a port of Open vSwitch, unchanged.
//
// The same goes for what a container sends to the world by its network's gateway, and for what comes
// back from there: both are known by the MACs of the veth that leads to the host's own stack.
//
// One program sits at the ingress (TCX, or clsact) of six kinds of device: the host's end of a container's
// veth, a network's VXLAN device (C), the device of all tunnels (A), the switch's end of the gateway's veth, the
// slow twins of all but that of the tunnels, and the device that tunnel packets come in by. It may send less than
// the switch would, never more: what it lets pass is what the pipeline (ovs/flow) delivers to the same device with
// the same MACs. See bpf-helpers(7), tc-bpf(8).
//
// On the last of these it takes a packet only if what is in it is for a container here and plain enough
// that the kernel's VXLAN device would unwrap it to the very same frame. All else there is none of its
// business: it goes on to the host's own stack and that device, as without the program. By the same device
// go, wrapped as the VXLAN device would wrap them, the frames of containers for members at peers.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Two devices for each port of Open vSwitch, of which it numbers 65,279: there is always room for one.
// Members that find none go through the switch.
#define PORTS_MAX 131072
#define MEMBERS_MAX 131072
#define PEERS_MAX 16384
#define LATE_MAX 8192

// How long a flow of which something went by the host's stack must have been silent until it is taken
// again, ns. What goes there waits in a queue of the VXLAN device (gro_cells), and may not be overtaken.
#define QUIET 100000000

// At least as long, in ticks of the kernel (jiffies), of which there are 1,000 in a second at most: bpf_jiffies64
// costs next to nothing.
#define QUIET_TICKS 128

// PEER: bpf_redirect_peer and bpf_redirect_neigh are there (Linux 5.10). Set before the program is loaded.
volatile const __u8 PEER = 1;

// Of linux/bpf.h since Linux 6.3.
#define BPF_FIB_LOOKUP_SKIP_NEIGH (1U << 2)
#define AF_INET 2

// ROUTE: how the host's routes are asked for. Before Linux 6.3 not without the next hop's MAC, so that what goes to
// one whose MAC is not known goes by the VXLAN device. Set before the program is loaded.
volatile const __u32 ROUTE = BPF_FIB_LOOKUP_SKIP_NEIGH;

// LOOPBACK is what the host's own packets come in by when its routing rules are asked (ip-rule(8)), in each network
// namespace.
#define LOOPBACK 1

// What a device is.
enum kind {
	CONTAINER = 1, // the host's end of a container's veth
	TRUNK = 2,     // a network's VXLAN device
	DOOR = 3,      // the switch's end of the veth to the host's own stack
	UNDERLAY = 4,  // has the host's end of the tunnels
	TUNNEL = 5,    // of the kernel's datapath: all tunnels end there
	TWIN_CONTAINER = 6,
	TWIN_TRUNK = 7,
	TWIN_DOOR = 8,
};

// How a frame gets onto a device.
enum how {
	OUT = 0,   // sent by it
	LOCAL = 1, // to the other end of a container's veth
	HOST = 2,  // received by the host's end of the gateway's veth, by the network's exit
	KEYED = 3, // sent by the device of all tunnels, which is told the network and the peer
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
	__be32 ip; // CONTAINER: the only source address; UNDERLAY, TUNNEL: of the host's end of the tunnels
	__u8 mac[6];
	__be16 udp; // UNDERLAY: the port of the tunnels
};

struct member {
	__u32 vni;
	__u8 mac[6];
	__u16 pad;
};

struct way {
	__u32 ifindex;
	enum how how;
	__u32 trunk; // LOCAL: the VXLAN device of its network, or that of all tunnels, by which peers reach it
	__be32 peer; // OUT, KEYED: the tunnel end of the peer that has the member
};

// flow is packets that came in by the tunnel and must stay in order: of a peer's, the source port tells
// flows apart (RFC 7348, section 5).
struct flow {
	__be32 peer;
	__be16 port;
	__u16 pad;
};

// vxlan is the header of RFC 7348, section 5.
struct vxlan {
	__be32 flags;
	__be32 vni; // in the upper 24 bits
};

// What comes before the frame in a tunnel packet that is taken, its own Ethernet header left out: the
// same number of bytes as before the IPv4 header of the frame, its Ethernet header with it.
#define WRAPPING (sizeof(struct iphdr) + sizeof(struct udphdr) + sizeof(struct vxlan) + sizeof(struct ethhdr))

// wrapping is what comes before the frame, and the Ethernet header of that.
struct wrapping {
	struct iphdr ip;
	struct udphdr udp;
	struct vxlan vxlan;
	struct ethhdr eth;
};

// From the source ports of these the kernel's VXLAN devices take theirs (ip_local_port_range, as it is if
// nobody changed it).
#define SOURCE_MIN 32768
#define SOURCE_MAX 60999

// peer is a host that may send tunnel packets.
struct peer {
	__u32 ifindex; // of the device that theirs come in by; 0: none, they go by the host's stack
	__be32 hop;    // the program's own notes: what the host's routes said of it in this tick of the kernel (jiffies)
	__u64 tick;
	__u32 mtu;
	__u32 pad;
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
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PEERS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32); // who may send tunnel packets
	__type(value, struct peer);
} meshnet_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, LATE_MAX);
	__type(key, struct flow);
	__type(value, __u64); // when something of it last went by the host's stack
} meshnet_late SEC(".maps");

// meshnet_late_tick is when something of any flow last went by the host's stack, so that meshnet_late need not be
// looked into as long as nothing does.
volatile __u64 meshnet_late_tick;

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

// frame is a frame in a packet: where it begins, where what can be read of it ends, and its length.
struct frame {
	struct ethhdr *eth;
	void *end;
	__u32 len;
	__u32 tagged, in; // ifindex of the device; 0: it is not to be compared
};

static __always_inline enum reason classify(const struct frame *f, const struct port *p, struct verdict *v)
{
	struct ethhdr *eth = f->eth;
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(eth + 1) > f->end)
		return BROKEN;
	if (f->tagged || eth->h_proto != bpf_htons(ETH_P_IP) || (eth->h_dest[0] & 1))
		return SLOW;
	if ((void *)(ip + 1) > f->end)
		return BROKEN;
	// Open vSwitch takes for IPv4 what passes these (lib/flow.c, ipv4_sanity_check).
	__u32 header = ip->ihl * 4, total = bpf_ntohs(ip->tot_len), size = f->len - sizeof(*eth);
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
	if (!known || known->ifindex == f->in)
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

// tell says what became of a packet to who runs the program without a network, as its tests do.
static __always_inline void tell(struct __sk_buff *skb, enum reason why, __u32 ifindex, enum how how)
{
	skb->cb[0] = why;
	skb->cb[1] = ifindex;
	skb->cb[2] = how;
}

// linear makes the first n bytes of a packet ones that can be read in place; false: it has not as many.
static __always_inline int linear(struct __sk_buff *skb, __u32 n)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	return data + n <= end || (skb->len >= n && !bpf_skb_pull_data(skb, n));
}

// sum is the sum of an IPv4 header without options (RFC 1071).
static __always_inline __u16 sum(const struct iphdr *ip)
{
	const __u16 *word = (const void *)ip;
	__u32 sum = 0;
#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / sizeof(*word)); i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// queued reports whether something of a flow may still wait in the queue of the VXLAN device, or notes
// that this packet will.
static __always_inline int queued(const struct flow *flow, int this)
{
	__u64 tick = bpf_jiffies64();
	if (!this && tick > meshnet_late_tick + QUIET_TICKS) // another processor may have noted a later one
		return 0;
	__u64 now = bpf_ktime_get_ns(), *late = bpf_map_lookup_elem(&meshnet_late, flow);
	if (!this && (!late || now > *late + QUIET))
		return 0;
	meshnet_late_tick = tick;
	if (late)
		*late = now;
	else
		bpf_map_update_elem(&meshnet_late, flow, &now, BPF_ANY);
	return 1;
}

// unwrap takes a tunnel packet that is for a container here, and makes of it the frame that is in it. What
// it does not take stays as it is. See vxlan_rcv in the kernel's drivers/net/vxlan: that has to make the
// same of what is taken.
static __always_inline int unwrap(struct __sk_buff *skb, const struct port *under)
{
	struct ethhdr *eth;
	if (skb->protocol != bpf_htons(ETH_P_IP) || !linear(skb, sizeof(*eth) + sizeof(struct iphdr) + sizeof(struct udphdr)))
		return TC_ACT_UNSPEC;
	void *end = (void *)(long)skb->data_end;
	eth = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > end)
		return TC_ACT_UNSPEC;
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	if (ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_UDP || (ip->frag_off & bpf_htons(0x3fff)))
		return TC_ACT_UNSPEC;
	if (udp->dest != under->udp || ip->daddr != under->ip)
		return TC_ACT_UNSPEC;
	__be32 peer = ip->saddr;
	if (!bpf_map_lookup_elem(&meshnet_peers, &peer))
		return TC_ACT_UNSPEC;
	struct flow flow = {.peer = peer, .port = udp->source};
	__u32 congested = ip->tos & 1;
	// The checksum of the outer UDP is not asked for: it may be zero anyhow, and the container looks at its own.
	__u32 total = bpf_ntohs(ip->tot_len);
	if (total != skb->len - sizeof(*eth) || bpf_ntohs(udp->len) != total - sizeof(*ip) || sum(ip) != 0xffff)
		return TC_ACT_UNSPEC;

	if (!linear(skb, sizeof(*eth) + WRAPPING + sizeof(*ip)))
		return TC_ACT_UNSPEC;
	end = (void *)(long)skb->data_end;
	struct vxlan *vxlan = (void *)(long)skb->data + sizeof(*eth) + sizeof(*ip) + sizeof(*udp);
	if ((void *)(vxlan + 1) > end)
		return TC_ACT_UNSPEC;
	__u32 vni = bpf_ntohl(vxlan->vni);
	if (vxlan->flags != bpf_htonl(0x08000000) || (vni & 0xff))
		return TC_ACT_UNSPEC;
	struct frame f = {.eth = (void *)(vxlan + 1), .end = end, .len = skb->len - WRAPPING};
	struct iphdr *inner = (void *)(f.eth + 1);
	if ((void *)(inner + 1) > end)
		return TC_ACT_UNSPEC;
	// Segments of offload stay marked as ones of a tunnel (gso_type, encapsulation), by which those of UDP would
	// be cut wrongly. Of congestion the frame in it has to be told (RFC 6040, section 4.2: CE, and ECT(1)).
	if (queued(&flow, (skb->gso_size && inner->protocol != IPPROTO_TCP) || congested))
		return TC_ACT_UNSPEC;
	struct port trunk = {.vni = vni >> 8, .kind = TRUNK};
	struct verdict v = {};
	// Only what is LOCAL has a trunk: so nothing goes out again.
	if (classify(&f, &trunk, &v) != FAST || !v.way.trunk)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(v.macs, f.eth, sizeof(v.macs));
	// What goes is all between the Ethernet header and the IPv4 header of the frame. This also makes of what
	// the device said of checksums what holds for the frame, and leaves segments as large as they are.
	if (bpf_skb_adjust_room(skb, -(__s32)WRAPPING, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO)) {
		queued(&flow, 1);
		return TC_ACT_UNSPEC;
	}
	if (bpf_skb_store_bytes(skb, 0, v.macs, sizeof(v.macs), 0))
		return TC_ACT_SHOT;
	note(v.way.trunk, FAST, skb->len);
	tell(skb, FAST, v.way.ifindex, LOCAL);
	return bpf_redirect_peer(v.way.ifindex, 0);
}

// hop asks the host's routes, as for a packet of its own, for the next hop to a peer, once in each tick of the kernel;
// 0: they lead there by another device than the peer's, or not at all. BPF_FIB_LOOKUP_OUTPUT would see no route by
// another device, however much better. The length of nearly nothing is for the answer to have the route's MTU in it.
static __always_inline __be32 hop(struct __sk_buff *skb, struct peer *to, const struct port *under, __be32 peer)
{
	__u64 now = bpf_jiffies64();
	if (to->tick == now)
		return to->hop;
	struct bpf_fib_lookup route = {
		.family = AF_INET, .l4_protocol = IPPROTO_UDP, .tot_len = 1,
		.ifindex = LOOPBACK, .ipv4_src = under->ip, .ipv4_dst = peer,
	};
	if (bpf_fib_lookup(skb, &route, sizeof(route), ROUTE) || route.ifindex != to->ifindex)
		return 0;
	to->hop = route.ipv4_dst;
	to->mtu = route.mtu_result;
	to->tick = now;
	return route.ipv4_dst;
}

// wrap sends a frame to a peer as a tunnel packet. What it cannot send, it leaves as it is: where the host
// has no route to the peer by that device, or the packet would be too large there. See vxlan_xmit_one in the
// kernel's drivers/net/vxlan.
static __always_inline int wrap(struct __sk_buff *skb, __u32 vni, __be32 peer)
{
	struct peer *to = bpf_map_lookup_elem(&meshnet_peers, &peer);
	if (!to || !to->ifindex)
		return TC_ACT_UNSPEC;
	__u32 card = to->ifindex, total = skb->len + WRAPPING - sizeof(struct ethhdr);
	struct port *under = bpf_map_lookup_elem(&meshnet_ports, &card);
	if (!under || under->kind != UNDERLAY || total > 0xffff)
		return TC_ACT_UNSPEC;
	struct ethhdr *eth = (void *)(long)skb->data;
	struct iphdr *inner = (void *)(eth + 1);
	if ((void *)(inner + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	__be32 next = hop(skb, to, under, peer);
	if (!next || (!skb->gso_size && total > to->mtu))
		return TC_ACT_UNSPEC;
	__u32 hash = bpf_get_hash_recalc(skb);
	hash ^= hash << 16;
	// Of congestion the packet is told (RFC 6040, section 4.1, compatibility mode left out), but CE itself.
	__u8 ecn = inner->tos & 3;
	struct wrapping w = {
		.ip = {
			.version = 4, .ihl = 5, .tos = ecn == 3 ? 2 : ecn, .tot_len = bpf_htons(total), .id = bpf_get_prandom_u32(),
			.ttl = 64, .protocol = IPPROTO_UDP, .saddr = under->ip, .daddr = peer,
		},
		.udp = {
			.source = bpf_htons(SOURCE_MIN + (((__u64)hash * (SOURCE_MAX - SOURCE_MIN)) >> 32)),
			.dest = under->udp, .len = bpf_htons(total - sizeof(struct iphdr)),
		},
		.vxlan = {.flags = bpf_htonl(0x08000000), .vni = bpf_htonl(vni << 8)},
		.eth = *eth,
	};
	w.ip.check = ~sum(&w.ip);
	// Segments of offload stay as large as they are: the MTU of networks leaves room for what wraps them.
	if (bpf_skb_adjust_room(skb, WRAPPING, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
					BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr))))
		return TC_ACT_UNSPEC;
	if (bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &w, WRAPPING, 0))
		return TC_ACT_SHOT;
	struct bpf_redir_neigh hop = {.nh_family = AF_INET, .ipv4_nh = next};
	tell(skb, FAST, card, OUT);
	return bpf_redirect_neigh(card, &hop, sizeof(hop), 0);
}

// address tells the device of all tunnels where a frame is to go, as the kernel's datapath would: with the
// options of the tunnel's port (ovs-vswitchd.conf.db(5)) as they are by default, so with Don't Fragment and
// without a checksum of UDP.
static __always_inline long address(struct __sk_buff *skb, __u32 vni, const struct way *way)
{
	struct port *tunnel = bpf_map_lookup_elem(&meshnet_ports, &way->ifindex);
	if (!tunnel)
		return -1;
	struct bpf_tunnel_key key = {
		.tunnel_id = vni, .remote_ipv4 = bpf_ntohl(way->peer), .local_ipv4 = bpf_ntohl(tunnel->ip), .tunnel_ttl = 64,
	};
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT);
}

// arrive hands a frame that came by the device of all tunnels to a container here. What it does not take
// goes to the kernel's datapath.
static __always_inline int arrive(struct __sk_buff *skb, const struct port *tunnel)
{
	struct bpf_tunnel_key key = {};
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return TC_ACT_UNSPEC;
	__be32 peer = bpf_htonl(key.remote_ipv4);
	void *known = bpf_map_lookup_elem(&meshnet_peers, &peer);
	if (!known || bpf_htonl(key.local_ipv4) != tunnel->ip)
		return TC_ACT_UNSPEC;
	__u32 in = skb->ifindex, len = skb->len;
	struct port trunk = {.vni = key.tunnel_id, .kind = TRUNK};
	struct verdict v = {};
	struct frame f = {(void *)(long)skb->data, (void *)(long)skb->data_end, len, skb->vlan_present, in};
	v.why = classify(&f, &trunk, &v);
	if (v.why == FAST && v.way.how != LOCAL)
		v.why = UNKNOWN; // nothing goes out again
	note(in, v.why, len);
	if (v.why != FAST)
		return TC_ACT_UNSPEC;
	tell(skb, FAST, v.way.ifindex, LOCAL);
	return PEER ? bpf_redirect_peer(v.way.ifindex, 0) : bpf_redirect(v.way.ifindex, 0);
}

SEC("tc")
int meshnet_fast(struct __sk_buff *skb)
{
	__u32 in = skb->ifindex, len = skb->len;
	struct port *p = bpf_map_lookup_elem(&meshnet_ports, &in);
	struct verdict v = {};

	if (!p)
		return TC_ACT_UNSPEC; // for others' filters
	if (p->kind == UNDERLAY)
		return PEER ? unwrap(skb, p) : TC_ACT_UNSPEC;
	if (p->kind == TUNNEL)
		return arrive(skb, p);
	if (p->kind >= TWIN_CONTAINER) {
		v.why = RETURN;
		v.way.how = p->kind == TWIN_CONTAINER ? LOCAL : OUT;
	} else {
		struct frame f = {(void *)(long)skb->data, (void *)(long)skb->data_end, len, skb->vlan_present, in};
		v.why = classify(&f, p, &v);
		if (v.why == FAST && v.renamed && bpf_skb_store_bytes(skb, 0, v.macs, sizeof(v.macs), 0))
			v.why = UNKNOWN; // it is as it came
		if (v.why != FAST)
			v.way.how = OUT;
	}
	if (v.why != FAST)
		v.way.ifindex = p->other;
	note(in, v.why, len);
	if (v.why == FAST && v.way.peer && PEER) {
		int sent = wrap(skb, p->vni, v.way.peer);
		if (sent != TC_ACT_UNSPEC)
			return sent;
	}
	tell(skb, v.why, v.way.ifindex, v.way.how);
	if (v.way.how == KEYED && address(skb, p->vni, &v.way))
		return TC_ACT_SHOT; // the device is not known: it has just gone
	if (v.way.how == LOCAL && PEER)
		return bpf_redirect_peer(v.way.ifindex, 0);
	return bpf_redirect(v.way.ifindex, v.way.how == HOST ? BPF_F_INGRESS : 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
