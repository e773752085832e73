// Package echo tells of each peer whether frames sent to it through the encapsulation come back, how
// fast, and how many do not: a step machine without clock, goroutine or I/O, which package ovs drives.
//
// A probe goes the way of a container's packets: by the same port, with the VNI of a network that both
// hosts have members on, to the MAC of a member there. The peer's switch answers it by two flows of its
// own (flow.Base), so neither the peer's daemon nor any container takes part. To a peer with which this
// host shares no network nothing is sent: no packet goes there either.
//
// Probes go to one peer after the other, to each once in a second in a small mesh and
// twenty in a second at most in a large one.
//
// What it says is for people. It never changes a plan.
//
// A Machine is for one goroutine.
package echo
