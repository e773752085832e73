package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
)

func (t *terminal) ps() *cli.Command {
	return &cli.Command{
		Name: "ps", Aliases: []string{"info"}, Usage: "list containers on networks: of this host, or of all with -a",
		ArgsUsage: "[CONTAINER]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "of all hosts", DisableDefaultText: true},
		},
		Action: verb(0, 1, words, func(c *cli.Context) error {
			all, err := client(c).PS(c.Context, c.Bool("all"))
			if err != nil {
				return err
			}
			list := []api.Attachment{}
			for _, a := range all {
				if only := c.Args().First(); only == "" || a.Container == only || a.Endpoint == only {
					list = append(list, a)
				}
			}
			if c.Bool("json") {
				t.json(list)
				return nil
			}
			t.attachments(list)
			return nil
		}),
	}
}

func (t *terminal) attachments(list []api.Attachment) {
	rows := [][]string{{"CONTAINER", "NETWORK", "ADDRESS", "MAC", "INTERFACE", "NODE", "STATE"}}
	for _, a := range list {
		rows = append(rows, []string{a.Container, a.Network, a.Address, a.MAC, a.IfName, a.Node, a.State})
	}
	t.table(rows)
}

func (t *terminal) nodes() *cli.Command {
	return &cli.Command{
		Name: "nodes", Usage: "list the members of the mesh",
		Action: verb(0, 0, words, func(c *cli.Context) error {
			all, err := client(c).Nodes(c.Context)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				t.json(all)
				return nil
			}
			t.members(all)
			return nil
		}),
	}
}

func (t *terminal) members(all []api.Node) {
	rows := [][]string{{"NAME", "ID", "ADDRESS", "STATE", "TUNNEL", "RTT", "LOSS", "VERSION", "SINCE"}}
	for _, n := range all {
		name, rtt, loss, since := n.Name, "", "", ""
		if n.Self {
			name += " *"
		}
		if n.RTT > 0 {
			rtt = time.Duration(n.RTT * float64(time.Second)).Round(10 * time.Microsecond).String()
		}
		if n.Loss != nil {
			loss = fmt.Sprintf("%.0f%%", 100**n.Loss)
		}
		if n.Since != nil {
			since = age(t.now().Sub(*n.Since))
		}
		rows = append(rows, []string{name, n.ID, n.Address, n.State, n.Tunnel, rtt, loss, n.Version, since})
	}
	t.table(rows)
}

func (t *terminal) status() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show how this node and the mesh are",
		Action: verb(0, 0, words, func(c *cli.Context) error {
			s, err := client(c).Status(c.Context)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				t.json(s)
				return nil
			}
			t.overview(s)
			return nil
		}),
	}
}

func (t *terminal) overview(s api.Status) {
	converged := "converged"
	if !s.Converged {
		converged = "not converged"
	}
	mesh := fmt.Sprintf("%s %d/%d", converged, s.NodesAgreeing, s.NodesAlive)
	if s.NodesKnown > s.NodesAlive {
		mesh += fmt.Sprintf(", %d more known and not alive", s.NodesKnown-s.NodesAlive)
	}
	rows := [][]string{
		{"node:", fmt.Sprintf("%s  %s  %s  version %s", s.Node.Name, s.Node.ID, s.Node.Address, s.Node.Version)},
		{"mesh:", mesh},
		{"digest:", s.Digest},
		{"transport:", fmt.Sprintf("%s (%s, datapath %s)", s.Transport, s.Encap, s.Datapath)},
		{"why:", s.Why},
		{"fast path:", onOff(s.FastPath.On) + " (" + s.FastPath.Why + ")"},
		{"underlay:", s.Underlay},
		{"networks:", fmt.Sprint(s.Networks)},
		{"containers:", fmt.Sprint(s.Attached)},
	}
	for _, p := range s.Peers {
		rows = append(rows, []string{"peer:", fmt.Sprintf("%s  %s  %s  tunnel %s", p.Name, p.Address, p.State, p.Tunnel)})
	}
	for _, n := range s.Differ {
		rows = append(rows, []string{"differs:", n})
	}
	for _, n := range s.Silent {
		rows = append(rows, []string{"silent:", n})
	}
	for _, p := range s.Pending {
		rows = append(rows, []string{"pending:", oneLine(p)})
	}
	for _, w := range s.Warnings {
		rows = append(rows, []string{"warning:", oneLine(w)})
	}
	t.table(rows)
}

func (t *terminal) version() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version of this program",
		Action: verb(0, 0, words, func(c *cli.Context) error {
			if c.Bool("json") {
				t.json(api.Version{Version: version})
				return nil
			}
			fmt.Fprintln(t.out, "meshnet", version)
			return nil
		}),
	}
}

// table prints rows in aligned columns. Empty cells are shown as a dash, so that columns can be cut.
func (t *terminal) table(rows [][]string) {
	w := tabwriter.NewWriter(&trimmed{w: t.out}, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			if i > 0 {
				io.WriteString(w, "\t")
			}
			if cell == "" {
				cell = "-"
			}
			io.WriteString(w, cell)
		}
		io.WriteString(w, "\n")
	}
	w.Flush()
}

// trimmed drops blanks at the ends of lines.
type trimmed struct {
	w      io.Writer
	blanks int
}

func (t *trimmed) Write(p []byte) (int, error) {
	var b strings.Builder
	for _, c := range p {
		switch c {
		case ' ':
			t.blanks++
			continue
		case '\n':
			t.blanks = 0
		}
		b.WriteString(strings.Repeat(" ", t.blanks))
		t.blanks = 0
		b.WriteByte(c)
	}
	_, err := io.WriteString(t.w, b.String())
	return len(p), err
}

// age is a duration as people say it: 5s, 3m, 7h, 12d.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
