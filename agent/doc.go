// Package agent makes this host equal to the agreed state, and is the door for what people wish.
//
// One loop, one goroutine: a new view, wish, sandbox or drift of the host wakes it; it gathers the
// facts, asks [plan.For] what the host should look like, applies that to links and then to the switch,
// and says so to the mesh; a failure is tried again, ever more slowly. The door ([Agent.Attach] and
// its siblings) turns a wish into a change of the mesh and waits until the host has it.
// It knows no memberlist, Open vSwitch, netlink or Docker: [Mesh], [Applier] and [Sandboxes] stand for
// them. Every method of [Agent] except Run may be called by any number of goroutines.
package agent
