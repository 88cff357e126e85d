// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
//
// IP-in-IP (RFC 2003) for kernels without the ipip driver, as two classifiers.
//
//   pod -> route "via PEER dev tunl0 onlink" -> tunl0 egress: encap -> underlay
//   underlay ingress: decap -> tunl0 (as if received there) -> route -> pod
//
// The neighbour table of tunl0 turns the next hop into a MAC address that spells the peer's IPv4 address, so the route
// alone decides where a packet goes. With the kernel's own ipip driver only decap is used, and only to drop what comes
// from strangers.
//
// Runs on Linux 6.1 and later. The user side is crates/linux/src/ipip.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define IP_DF bpf_htons(0x4000)
#define IP_FRAGMENT bpf_htons(0x3fff) /* more fragments, or an offset */
#define ECN_MASK 3
#define ECN_CE 3
#define OUTER_TTL 64
/* Changes of routes and of neighbours' MAC addresses come into force within this time. */
#define KNOWN_FOR_NS 100000000ULL

/* First two bytes of a peer's MAC address on tunl0; the other four are its IPv4 address. */
#define MAC_PREFIX bpf_htons(0x0202)

/* Constants of one attachment. The same layout as `Config` in program.rs. */
struct config {
	__u64 build;    /* which object file this is */
	__u32 local;    /* outer source, network order */
	__u32 underlay; /* interface index */
	__u32 device;   /* interface index of tunl0 */
	__u32 native;   /* 1: the kernel's driver decapsulates */
	__u32 owns_clsact; /* for the user side */
	__u32 unused;
};

volatile const struct config config = {};

/* The same layout as `counters` in program.rs. */
struct counters {
	__u64 encapsulated;
	__u64 decapsulated;
	__u64 unknown_source;
	__u64 no_peer;
	__u64 malformed;
};

/* Whom we exchange packets with, and how frames towards them are addressed. All zero where that is not known. */
struct peer {
	__u64 until;   /* coarse monotonic time until which it is known, ns */
	__u32 macs[3]; /* destination and source, as in a frame */
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32); /* IPv4 address, network order */
	__type(value, struct peer);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/*
 * What this processor found in `peers` last, by the last bytes of the address. An array is looked up without a call, the
 * hash table by three, which at 64 bytes a packet is seen. Valid as long as `revision` is what it was.
 */
struct known {
	__u64 revision;
	__u64 until;
	__u32 address;
	__u32 macs[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct known);
} known SEC(".maps");

/* Gets a number that it never had, and never zero, after a peer was removed. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} revision SEC(".maps");

#define COUNT(what)                                                        \
	do {                                                               \
		__u32 zero = 0;                                            \
		struct counters *all = bpf_map_lookup_elem(&counters, &zero); \
		if (all)                                                   \
			all->what++;                                       \
	} while (0)

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The peer with that address, or nothing. */
static __always_inline struct known *find(__u32 address)
{
	__u32 zero = 0, at = (bpf_ntohl(address) ^ bpf_ntohl(address) >> 8) & 0xff;
	__u64 *current = bpf_map_lookup_elem(&revision, &zero);
	struct known *known_here = bpf_map_lookup_elem(&known, &at);
	struct peer *peer;
	__u64 before;

	if (!current || !known_here)
		return NULL;
	if (known_here->address == address && known_here->revision == *current)
		return known_here;

	/* A barrier as well: the peer must be looked up after the revision, or one just removed could be noted as present. */
	before = __sync_fetch_and_add(current, 0);
	peer = bpf_map_lookup_elem(&peers, &address);
	if (!peer)
		return NULL;
	known_here->revision = before;
	known_here->until = peer->until;
	known_here->address = address;
	known_here->macs[0] = peer->macs[0];
	known_here->macs[1] = peer->macs[1];
	known_here->macs[2] = peer->macs[2];
	return known_here;
}

/*
 * Asks the kernel how frames to a peer are addressed. What it does not know yet it learns by the packet at hand, which
 * takes the long way. Few packets come here, so the long way also keeps the kernel's neighbour entry alive.
 */
static __always_inline void learn(struct __sk_buff *skb, struct known *known_here, __u64 now)
{
	__u32 address = known_here->address;
	struct bpf_fib_lookup fib = {
		.family = AF_INET,
		.l4_protocol = IPPROTO_IPIP,
		.ipv4_src = config.local,
		.ipv4_dst = address,
		.ifindex = config.underlay,
	};
	struct peer peer = { .until = now + KNOWN_FOR_NS };

	if (bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_OUTPUT) || fib.ifindex != config.underlay)
		return;
	__builtin_memcpy(peer.macs, fib.dmac, ETH_ALEN);
	__builtin_memcpy((void *)peer.macs + ETH_ALEN, fib.smac, ETH_ALEN);
	bpf_map_update_elem(&peers, &address, &peer, BPF_EXIST); /* for the other processors */
	known_here->macs[0] = peer.macs[0];
	known_here->macs[1] = peer.macs[1];
	known_here->macs[2] = peer.macs[2];
	known_here->until = peer.until;
}

SEC("classifier/encap")
int encap(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *inner = data + ETH_HLEN;
	union {
		struct iphdr ip;
		__u32 words[5];
	} outer = {};
	struct known *peer;
	__u64 sum = 0;
	__u32 address, length;
	__u64 now;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_SHOT; /* nothing else is ever routed here */
	if ((void *)(inner + 1) > end) {
		if (bpf_skb_pull_data(skb, ETH_HLEN + sizeof(*inner)))
			goto malformed;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		eth = data;
		inner = data + ETH_HLEN;
		if ((void *)(inner + 1) > end)
			goto malformed;
	}

	address = *(__u32 *)(eth->h_dest + 2);
	if (*(__u16 *)eth->h_dest != MAC_PREFIX)
		goto no_peer;
	peer = find(address);
	if (!peer)
		goto no_peer;

	length = skb->len - ETH_HLEN + sizeof(outer);
	outer.ip.version = 4;
	outer.ip.ihl = 5;
	outer.ip.tos = inner->tos; /* with ECN: RFC 6040, normal mode */
	/* A super-packet may be longer than the field; 0 then means "see the buffer". */
	outer.ip.tot_len = length > 0xffff ? 0 : bpf_htons(length);
	/* The inner one: it counts up within a flow, which receive offload wants to see. */
	outer.ip.id = inner->id;
	outer.ip.frag_off = inner->frag_off & IP_DF;
	outer.ip.ttl = OUTER_TTL;
	outer.ip.protocol = IPPROTO_IPIP;
	outer.ip.saddr = config.local;
	outer.ip.daddr = address;
#pragma unroll
	for (int i = 0; i < 5; i++)
		sum += outer.words[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	outer.ip.check = fold((sum & 0xffff) + (sum >> 16));

	if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET |
				BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) &&
	    /* A packet that came out of a tunnel is still marked as being in one: the marks fit as they are. */
	    bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		goto malformed;

	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN + sizeof(outer) > end)
		goto malformed;
	*(struct iphdr *)(data + ETH_HLEN) = outer.ip;

	COUNT(encapsulated);
	now = bpf_ktime_get_coarse_ns();
	if (now < peer->until) {
		__u32 *macs = data;

		macs[0] = peer->macs[0];
		macs[1] = peer->macs[1];
		macs[2] = peer->macs[2];
		return bpf_redirect(config.underlay, 0);
	}
	learn(skb, peer, now);
	return bpf_redirect_neigh(config.underlay, 0, 0, 0);

no_peer:
	COUNT(no_peer);
	return TC_ACT_SHOT;
malformed:
	COUNT(malformed);
	return TC_ACT_SHOT;
}

/* Whether an address is one of this host's. */
static __always_inline int is_local(struct __sk_buff *skb, __u32 source, __u32 address)
{
	struct bpf_fib_lookup fib = {
		.family = AF_INET,
		.ipv4_src = source,
		.ipv4_dst = address,
		.ifindex = skb->ifindex,
	};

	long answer = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);

	/* A host that does not forward keeps or drops what it gets. */
	return answer == BPF_FIB_LKUP_RET_NOT_FWDED || answer == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

SEC("classifier/decap")
int decap(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct iphdr *outer = data + ETH_HLEN;
	struct iphdr *inner;
	__u32 source, length;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if ((void *)(outer + 1) > end) {
		if (bpf_skb_pull_data(skb, ETH_HLEN + sizeof(*outer)))
			return TC_ACT_UNSPEC;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		outer = data + ETH_HLEN;
		if ((void *)(outer + 1) > end)
			return TC_ACT_UNSPEC;
	}
	if (outer->protocol != IPPROTO_IPIP)
		return TC_ACT_UNSPEC;
	/* Tagged frames belong to a device above this one, others' frames to nobody here. */
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;

	source = outer->saddr;
	if (outer->daddr != config.local &&
	    !(config.native && is_local(skb, source, outer->daddr)))
		return TC_ACT_UNSPEC;
	if (!find(source)) {
		COUNT(unknown_source);
		return TC_ACT_SHOT;
	}
	if (config.native) {
		COUNT(decapsulated);
		return TC_ACT_UNSPEC;
	}

	/* Fragments of an outer packet cannot be put together here. Peers never send any. */
	length = outer->ihl * 4;
	if (length < sizeof(*outer) || (outer->frag_off & IP_FRAGMENT))
		goto malformed;
	inner = data + ETH_HLEN + length;
	if ((void *)(inner + 1) > end) {
		if (bpf_skb_pull_data(skb, ETH_HLEN + length + sizeof(*inner)))
			goto malformed;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		outer = data + ETH_HLEN;
		inner = data + ETH_HLEN + length;
		if ((void *)(outer + 1) > end || (void *)(inner + 1) > end)
			goto malformed;
	}
	if (inner->version != 4)
		goto malformed;

	/* Congestion met by the outer packet is told to the inner one (RFC 6040, section 4.2). */
	if ((outer->tos & ECN_MASK) == ECN_CE && (inner->tos & ECN_MASK) != ECN_CE) {
		__u32 before = inner->tos;

		if (!(before & ECN_MASK))
			goto malformed; /* the transport could not be told: to be dropped */
		inner->tos = before | ECN_CE;
		/* RFC 1624, equation 3 */
		inner->check = fold((__u16)~inner->check + (__u16)~bpf_htons(before) + bpf_htons(before | ECN_CE));
	}

	if (bpf_skb_adjust_room(skb, -(__s32)length, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		goto malformed;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN > end)
		goto malformed;
	*(__u16 *)data = MAC_PREFIX; /* tunl0's own MAC address, or it would be somebody else's packet */
	*(__u32 *)(data + 2) = 0;

	COUNT(decapsulated);
	return bpf_redirect(config.device, BPF_F_INGRESS);

malformed:
	COUNT(malformed);
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
