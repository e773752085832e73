// Command program measures what it costs to put a mesh into a host: from a view to links, the fast path,
// Open vSwitch's rows and its flows, by the same packages and in the same order as the daemon does it, and one
// change among so many.
//
// Each row of its table is a process of its own in new network, mount and process namespaces, with an Open
// vSwitch of its own on the userspace datapath, so that it needs root and leaves nothing. Programming does
// not depend on which datapath carries the tunnels, so one column stands for transports A and B; that A has a
// fast path, too, shows in the rows of C. No packet is sent: the peers are not there.
package main
