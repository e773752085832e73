package netns

import (
	"net"

	"github.com/google/nftables"
)

// Multicasts returns the interfaces of this host that can do multicast, by name.
func Multicasts() map[string]bool {
	out := map[string]bool{}
	all, err := net.Interfaces()
	if err != nil {
		return out
	}
	for _, i := range all {
		out[i.Name] = i.Flags&net.FlagMulticast != 0
	}
	return out
}

// Firewalls reports whether nftables answers, and names the chains of others that drop forwarded
// packets by default and that no rule of ours passes: of iptables' own chain it is known how to.
func Firewalls() (answers bool, droppers []string) {
	c, err := nftables.New()
	if err != nil {
		return false, nil
	}
	all, err := c.ListChains()
	if err != nil {
		return false, nil
	}
	for _, ch := range all {
		forward := ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		family := ch.Table.Family == nftables.TableFamilyINet || ch.Table.Family == nftables.TableFamilyIPv4
		iptables := ch.Table.Family == nftables.TableFamilyIPv4 && ch.Table.Name == "filter" && ch.Name == "FORWARD"
		if forward && family && !iptables {
			name := "inet "
			if ch.Table.Family == nftables.TableFamilyIPv4 {
				name = "ip "
			}
			droppers = append(droppers, name+ch.Table.Name+" "+ch.Name)
		}
	}
	return true, droppers
}
