package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
)

func (t *terminal) networkCreate() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "make a network", ArgsUsage: "NAME [SUBNET]",
		Description: "Without SUBNET one is chosen that overlaps nothing any node knows.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "internal", Usage: "no way out of the network", DisableDefaultText: true},
			&cli.StringFlag{Name: "gateway", Usage: "`IP` of the gateway, or none", DefaultText: "the first address"},
			&cli.UintFlag{Name: "block-bits", DefaultText: "by size", Usage: "prefix length of the largest block given to a node at once"},
			&cli.UintFlag{Name: "mtu", Usage: "of the containers' interfaces, bytes", DefaultText: "from the underlay"},
			&cli.StringSliceFlag{Name: "reserve", Usage: "`RANGE` never given to a container: IP, IP-IP or a prefix"},
			&cli.StringSliceFlag{Name: "label", Usage: "`KEY=VALUE` for people and programs"},
			&cli.BoolFlag{Name: "force", Usage: "also when the subnet overlaps another network's", DisableDefaultText: true},
		},
		Action: verb(1, 2, func(c *cli.Context) string { return "create network " + c.Args().First() }, t.create),
	}
}

func (t *terminal) create(c *cli.Context) error {
	ask := api.CreateRequest{
		Name: c.Args().Get(0), Subnet: c.Args().Get(1), Gateway: c.String("gateway"),
		Internal: c.Bool("internal"), Force: c.Bool("force"),
	}
	if b := c.Uint("block-bits"); b > 32 {
		return usage(c, "--block-bits %d: want a prefix length up to 32", b)
	}
	ask.BlockBits = uint8(c.Uint("block-bits"))
	if m := c.Uint("mtu"); m > 65535 {
		return usage(c, "--mtu %d: want bytes up to 65535", m)
	}
	ask.MTU = uint32(c.Uint("mtu"))
	for _, s := range c.StringSlice("reserve") {
		r, ok := parseRange(s)
		if !ok {
			return usage(c, "--reserve %s: want IP, IP-IP or a prefix", s)
		}
		ask.Reserve = append(ask.Reserve, r)
	}
	for _, s := range c.StringSlice("label") {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return usage(c, "--label %s: want KEY=VALUE", s)
		}
		ask.Labels = append(ask.Labels, api.Label{Key: k, Value: v})
	}
	n, err := client(c).Create(c.Context, ask)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		t.json(n)
		return nil
	}
	t.networks([]api.Network{n})
	return nil
}

// parseRange reads an address, FROM-TO or a prefix.
func parseRange(s string) (api.Range, bool) {
	if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() {
		p = p.Masked()
		last := p.Addr().As4()
		for i := p.Bits(); i < 32; i++ {
			last[i/8] |= 0x80 >> (i % 8)
		}
		return api.Range{From: p.Addr().String(), To: netip.AddrFrom4(last).String()}, true
	}
	from, to, two := strings.Cut(s, "-")
	if !two {
		to = from
	}
	a, err := netip.ParseAddr(from)
	b, err2 := netip.ParseAddr(to)
	return api.Range{From: a.String(), To: b.String()}, err == nil && err2 == nil && a.Is4() && b.Is4() && !b.Less(a)
}

func (t *terminal) networkList() *cli.Command {
	return &cli.Command{
		Name: "ls", Aliases: []string{"list"}, Usage: "list networks",
		Action: verb(0, 0, words, func(c *cli.Context) error {
			all, err := client(c).Networks(c.Context)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				t.json(all)
				return nil
			}
			t.networks(all)
			return nil
		}),
	}
}

func (t *terminal) networks(all []api.Network) {
	rows := [][]string{{"NAME", "SUBNET", "GATEWAY", "VNI", "MTU", "CONTAINERS", "ID"}}
	for _, n := range all {
		rows = append(rows, []string{
			n.Name, n.Subnet, n.Gateway, fmt.Sprint(n.VNI), fmt.Sprint(n.MTU), fmt.Sprint(n.Endpoints), n.ID,
		})
	}
	t.table(rows)
}

func (t *terminal) networkInspect() *cli.Command {
	return &cli.Command{
		Name: "inspect", Aliases: []string{"info"}, Usage: "show a network, its nodes and containers",
		ArgsUsage: "NAME",
		Action: verb(1, 1, func(c *cli.Context) string { return "inspect network " + c.Args().First() },
			func(c *cli.Context) error {
				n, err := client(c).Inspect(c.Context, c.Args().First())
				if err != nil {
					return err
				}
				if c.Bool("json") {
					t.json(n)
					return nil
				}
				t.network(n)
				return nil
			}),
	}
}

func (t *terminal) network(n api.Network) {
	rows := [][]string{
		{"name:", n.Name}, {"id:", n.ID}, {"subnet:", n.Subnet}, {"gateway:", n.Gateway},
		{"vni:", fmt.Sprint(n.VNI)}, {"mtu:", fmt.Sprint(n.MTU)}, {"internal:", yes(n.Internal)},
		{"nodes:", strings.Join(n.Members, " ")},
	}
	if !n.Created.IsZero() {
		rows = append(rows, []string{"created:", n.Created.Format(time.RFC3339)})
	}
	if n.Removed {
		rows = append(rows, []string{"removed:", "yes; it goes with its last container"})
	}
	for _, l := range n.Labels {
		rows = append(rows, []string{"label:", l.Key + "=" + l.Value})
	}
	for _, r := range n.Reserved {
		rows = append(rows, []string{"reserved:", r})
	}
	t.table(rows)
	if len(n.Attachments) > 0 {
		fmt.Fprintln(t.out)
		t.attachments(n.Attachments)
	}
}

func (t *terminal) networkRemove() *cli.Command {
	return &cli.Command{
		Name: "rm", Aliases: []string{"delete"}, Usage: "remove a network", ArgsUsage: "NAME",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "also when it is in use: its containers are detached", DisableDefaultText: true},
		},
		Action: verb(1, 1, func(c *cli.Context) string { return "remove network " + c.Args().First() },
			func(c *cli.Context) error {
				n, err := client(c).RemoveNetwork(c.Context, c.Args().First(), c.Bool("force"))
				if err != nil {
					return err
				}
				if c.Bool("json") {
					t.json(n)
					return nil
				}
				fmt.Fprintln(t.out, n.Name)
				return nil
			}),
	}
}
