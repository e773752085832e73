// Package flow is meshnet's OpenFlow pipeline as data.
//
// [Compile] and [Base] turn a plan into flows, [Diff] compares two sets of them, [Parse] and
// [Flow.String] read and write the syntax of ovs-ofctl(8). Every value is comparable or sorted, so
// that the same plan always gives the same flows in the same order.
//
// The tables, with the VNI of the network in the metadata register:
//
//	 0 classify  a tunnel: metadata = tun_id, to 40; a VXLAN device: metadata = its VNI, to 40;
//	             a container: metadata = its VNI, to 10; the host's own stack: metadata = the VNI of
//	             the network that the destination MAC stands for, to 25
//	10 guard     a container sends with its own MAC and IPv4 address only: ARP to 20, IPv4 to 30
//	20 arp       requests for a known address are answered here, everything else ends here
//	25 host      from the host's own stack: the MAC that belongs to the IPv4 address; a local member's
//	             to 40; a remote member's, only from the host's own address on the network, to 30
//	30 remote    the gateway's MAC: to 50; the MAC of a remote member: into the tunnel; multicast: once to each peer with
//	             members, and to 40; everything else to 40
//	40 local     the MAC of a local member: to its port; that of the host's own address: to its stack;
//	             multicast: to all local members
//	50 gateway   echo requests to it are answered here; else, unless the network is internal, to the
//	             host's own stack, which masks the sender's address; never back into the subnet
//
// What came from a tunnel goes to 40 at once and so never into a tunnel again: no loop, whatever
// the peers do. No ARP leaves the host. Containers have no IPv6 addresses yet, so IPv6 from a
// container ends in table 10, and so does ARP for its own address: duplicate address detection
// finds no answer and gratuitous ARP changes nobody's cache. A frame with a VLAN tag is judged by
// what is inside.
//
// It does not talk to a switch (package openflow has the wire format, package ovs the connection)
// and does not choose port numbers (package plan does). Nothing here keeps state; all functions may
// be called concurrently.
package flow
