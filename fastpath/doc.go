// Package fastpath makes the eBPF fast path of a host equal to the plan: the plan compiled a second
// time, to maps in front of Open vSwitch.
//
// On transport C every frame climbs into vswitchd and back, and on A the kernel's datapath costs more than
// what is needed for most. What the plan says of exact unicast
// between known members of one network is little enough for a small program (package bpf) at the
// ingress of each container's veth and each VXLAN device, on A that of all tunnels: it sends such a frame on from device to
// device and leaves all else, unchanged, to the switch, whose ports are the slow twins of the
// devices. It may be less permissive than the switch's pipeline, never more. At the underlay's device it
// takes what peers send to containers here out of its tunnel packets, and by it sends what containers send
// to peers in such packets, both past the host's own stack.
//
// [Compile] is pure and says what the maps should hold. [Path] loads, fills, attaches and repairs: an
// applier beside those of packages ovs and netns, to run after the devices are made and before the
// switch. The program is held by the devices that it is attached to, and holds the maps; nothing is
// pinned, so nothing is left when the devices are gone, and packets go on while no daemon runs.
//
// The package does not make devices and does not know what the state means. A [Path]'s methods may be
// called concurrently.
package fastpath
