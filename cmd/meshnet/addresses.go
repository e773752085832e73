package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
)

func (t *terminal) ipam() *cli.Command {
	return &cli.Command{
		Name: "ipam", Usage: "show which node owns which addresses, and which container has one", ArgsUsage: "[NETWORK]",
		Action: verb(0, 1, words, func(c *cli.Context) error {
			all, err := client(c).IPAM(c.Context, c.Args().First())
			if err != nil {
				return err
			}
			if c.Bool("json") {
				t.json(all)
				return nil
			}
			for i, s := range all {
				if i > 0 {
					fmt.Fprintln(t.out)
				}
				t.space(s)
			}
			return nil
		}),
	}
}

func (t *terminal) space(s api.Space) {
	fmt.Fprintf(t.out, "%s  %s  %d of %d addresses in use, %d free\n", s.Network, s.Subnet, s.Used, s.Size, s.Free)
	rows := [][]string{{"BLOCK", "OWNER", "STATE", "USED", "FREE", "NOTE"}}
	for _, b := range s.Blocks {
		rows = append(rows, []string{b.Prefix, b.Owner, b.State, fmt.Sprint(b.Used), fmt.Sprint(b.Free), note(b)})
	}
	t.table(rows)
	if len(s.Addresses) == 0 {
		return
	}
	rows = [][]string{{"ADDRESS", "CONTAINER", "NODE", "STATE", "SINCE"}}
	for _, a := range s.Addresses {
		rows = append(rows, []string{a.Address, a.Container, a.Node, a.State, age(t.now().Sub(a.Since))})
	}
	t.table(rows)
}

// note says what a quarantined block waits for.
func note(b api.Block) string {
	if b.State != "quarantined" {
		return ""
	}
	switch {
	case b.Heir == "":
		return fmt.Sprintf("no heir is left; name one: meshnet rmpeer %s --heir NODE", b.Owner)
	case b.Left > 0:
		left := time.Duration(b.Left * float64(time.Second)).Round(time.Second)
		return fmt.Sprintf("goes to %s, in %s at the earliest", b.Heir, left)
	case len(b.WaitsOn) > 0:
		return fmt.Sprintf("goes to %s, waits for %s to hear of it", b.Heir, strings.Join(b.WaitsOn, ", "))
	}
	return "goes to " + b.Heir
}

func (t *terminal) conflicts() *cli.Command {
	return &cli.Command{
		Name: "conflicts", Usage: "show what two sides of a split both claimed, and who kept it",
		Action: verb(0, 0, words, func(c *cli.Context) error {
			all, err := client(c).Conflicts(c.Context)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				t.json(all)
				return nil
			}
			rows := [][]string{{"KIND", "NETWORK", "WHAT", "KEPT BY", "LOST BY"}}
			for _, f := range all {
				rows = append(rows, []string{f.Kind, f.Network, f.What, f.Kept, f.Lost})
			}
			t.table(rows)
			return nil
		}),
	}
}

func (t *terminal) rmpeer() *cli.Command {
	return &cli.Command{
		Name: "rmpeer", Usage: "give up a dead node that will not come back, with its containers and addresses", ArgsUsage: "NODE",
		Description: "NODE is a name, an id or the beginning of one. Twice, and from several nodes, is the same as once.\n" +
			"Its addresses rest for ten minutes; then the node that gave them to it has them.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "heir", Usage: "`NODE` that has its addresses where none is left that gave them", DefaultText: "none"},
			&cli.BoolFlag{Name: "force", Usage: "also when it answers", DisableDefaultText: true},
		},
		Action: verb(1, 1, words, func(c *cli.Context) error {
			r, err := client(c).RemovePeer(c.Context, c.Args().First(), c.String("heir"), c.Bool("force"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				t.json(r)
				return nil
			}
			name := r.Node
			if name == "" {
				name = r.NodeID
			}
			if r.Again {
				fmt.Fprintf(t.out, "%s was given up before\n", name)
			} else {
				fmt.Fprintf(t.out, "%s is given up\n", name)
			}
			return nil
		}),
	}
}

func (t *terminal) leave() *cli.Command {
	return &cli.Command{
		Name: "leave", Usage: "take this node out of the mesh for good, then stop its daemon",
		Description: "Its containers are detached and its addresses handed to the other nodes. To come back, start it again.",
		Flags:       settleable(dirFlags()),
		Action: verb(0, 0, words, func(c *cli.Context) error {
			if _, err := t.configure(c); err != nil {
				return err
			}
			if _, err := api.NewClient(socketOf(c)).Leave(c.Context); err != nil {
				return err
			}
			s, err := api.NewClient(socketOf(c)).Stop(c.Context)
			if err != nil && !errors.Is(err, api.ErrNoDaemon) {
				return err
			}
			if err == nil {
				if err := ended(c.Context, s.RunDir); err != nil {
					return err
				}
			}
			return t.said(c, "this node has left the mesh")
		}),
	}
}
