// Package plan says what one host should look like.
//
// [For] computes it from the agreed state and the facts of the host: tunnels to peers or VXLAN
// devices, local and remote members of networks, veths into containers, port numbers, MTUs.
// [Choose] and [ChooseUnderlay] make the decisions of start-up the same way. What did not change
// since the plan before is shared with it by pointer. Who is alive plays no part.
//
// It reads nothing and changes nothing on the host (packages ovs and netns do), and knows no flows
// (package flow compiles them from a plan).
//
// A plan is immutable; all functions may be called concurrently.
package plan
