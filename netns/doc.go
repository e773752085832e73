// Package netns makes the network devices of a host equal to the plan.
//
// Devices are veths into containers and VXLAN devices with their forwarding entries; beside them it
// keeps one nftables table. [Links.Apply] reads what is there by netlink, compares it with the plan
// and changes the difference. Every device it makes bears a mark: a group number from the moment
// it exists, and an alias that says what it is for. Only marked devices are ever changed or removed.
//
// It decides nothing: what there should be is the plan's business, and it knows neither Open vSwitch
// nor Docker.
//
// [Links.Apply] and [Links.Purge] may be called from any goroutine and take turns. [Links.Run] may
// run beside them. The functions of the package keep nothing and may be called from any goroutine.
package netns
