// Package ovs makes Open vSwitch on this host equal to a plan.
//
// [Probe] reads what the host has, [New] and [Switch.Run] keep the chosen instance running and
// connected (ovsdb-server by libovsdb, the bridge by OpenFlow on its management socket), and
// [Switch.Apply] reads database and flows, compares them with the plan and changes the difference:
// rows in one transaction, flows in one bundle. Only rows with our external_ids and flows with our
// cookie are touched. [Purge] removes them.
//
// It decides nothing: which instance, transport, ports and flows is in the plan (packages plan and
// ovs/flow). It does not make network devices (package netns) and does not speak OpenFlow's bytes
// (package ovs/openflow). The daemons of a private instance are detached and outlive this process.
//
// A Switch's Run is called once and Apply by one goroutine at a time; Drift may be read anywhere.
package ovs
