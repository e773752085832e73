package docker

import (
	"fmt"
	"net/netip"
	"strings"

	"meshnet/agent"
)

// The labels that put a container on networks when it starts. Values with several entries have commas
// between them.
const (
	// LabelNetwork names the networks.
	LabelNetwork = "meshnet.network"
	// LabelIP holds addresses, each for the network whose subnet has it.
	LabelIP = "meshnet.ip"
	// LabelAlias holds more names of the container.
	LabelAlias = "meshnet.alias"
	// LabelIfName holds names of interfaces, in the order of the networks.
	LabelIfName = "meshnet.ifname"
	// LabelDefaultRoute is no when the container's default route is to be left alone.
	LabelDefaultRoute = "meshnet.default-route"
	// LabelWaits is yes when the first process waits until it is told that the interfaces are there.
	LabelWaits = "meshnet.waits"
)

// Wants reads what a container's labels ask for; nothing if they name no network. An address that is
// none is told by Fault: the container is not put on networks without it.
func Wants(labels map[string]string) agent.Wants {
	w := agent.Wants{
		Networks:       fields(labels[LabelNetwork]),
		Names:          fields(labels[LabelAlias]),
		IfNames:        fields(labels[LabelIfName]),
		NoDefaultRoute: labels[LabelDefaultRoute] == "no",
		Waits:          labels[LabelWaits] == "yes",
	}
	if len(w.Networks) == 0 {
		return agent.Wants{}
	}
	for _, s := range fields(labels[LabelIP]) {
		addr, err := netip.ParseAddr(s)
		if err != nil || !addr.Is4() {
			w.Fault = fmt.Sprintf("label %s=%s: want IPv4 addresses with commas between them", LabelIP, labels[LabelIP])
			break
		}
		w.Addrs = append(w.Addrs, addr)
	}
	return w
}

// fields splits a value at commas.
func fields(value string) []string {
	var out []string
	for s := range strings.SplitSeq(value, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// described is a container as the agent wants it.
func (c *Client) described(id, name string, running bool, labels map[string]string) agent.Container {
	return agent.Container{
		Source: c.Source(id), Name: strings.TrimPrefix(name, "/"),
		Running: running, Wants: Wants(labels),
	}
}
