package main

import (
	"context"
	"errors"
	"net/netip"

	"github.com/urfave/cli/v2"

	"meshnet/api"
	"meshnet/fastpath"
	"meshnet/netns"
	"meshnet/ovs"
	"meshnet/plan"
)

// exitFault: doctor found a fault.
const exitFault = 5

// diagnosis is what doctor prints as JSON.
type diagnosis struct {
	Fit      bool      `json:"fit"` // no fault; there may be warnings
	Findings []finding `json:"findings"`
	Error    string    `json:"error,omitempty"`
}

type finding struct {
	Check string `json:"check"`
	Level string `json:"level"` // ok, warning or fault
	What  string `json:"what"`
	Do    string `json:"do,omitempty"`
}

func (t *terminal) doctor() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "look whether this host is fit, and what is wrong with it",
		Description: "Looks at Open vSwitch, datapath, fast path, ports, MTU, multicast, offloads, firewall and overlaps, with or without a\n" +
			"daemon. It changes nothing. Exit code 5: it found a fault.",
		Flags: settleable(append([]cli.Flag{
			&cli.StringFlag{Name: "iface", Usage: "`INTERFACE` that up is given", DefaultText: "of the default route"},
			&cli.StringFlag{Name: "advertise", Usage: "`ADDRESS` that up is given", DefaultText: "of the interface"},
			&cli.StringFlag{Name: "ovs", Usage: "`WHICH` Open vSwitch up is given", Value: "auto"},
			&cli.StringFlag{Name: "datapath", Usage: "`TYPE` that up is given", Value: "auto"},
			&cli.StringFlag{Name: "fastpath", Usage: "`WHEN` up is given", Value: "auto"},
		}, dirFlags()...)),
		Action: verb(0, 0, words, func(c *cli.Context) error {
			if _, err := t.configure(c); err != nil {
				return err
			}
			e, err := examination(c)
			if err != nil {
				return err
			}
			return t.diagnose(c, plan.Examine(e))
		}),
	}
}

// diagnose prints findings, and fails if one of them is a fault.
func (t *terminal) diagnose(c *cli.Context, found []plan.Finding) error {
	d := diagnosis{Fit: true, Findings: []finding{}}
	var fault error
	for _, f := range found {
		d.Findings = append(d.Findings, finding{f.Check, f.Level.String(), f.What, f.Do})
		if f.Level == plan.Fault && fault == nil {
			d.Fit = false
			fault = &failure{What: "doctor", Err: errors.New("this host has a fault: " + f.What + "; " + f.Do), Code: exitFault, told: true}
		}
	}
	if fault != nil {
		d.Error = fault.Error()
	}
	if c.Bool("json") {
		t.json(d)
		return fault
	}
	rows := [][]string{{"CHECK", "LEVEL", "WHAT", "DO"}}
	for _, f := range d.Findings {
		rows = append(rows, []string{f.Check, f.Level, oneLine(f.What), oneLine(f.Do)})
	}
	t.table(rows)
	return fault
}

// examination looks at this host and asks the daemon.
func examination(c *cli.Context) (e plan.Examination, err error) {
	e.Wants = plan.Wants{OVS: c.String("ovs"), Datapath: c.String("datapath"), FastPath: c.String("fastpath"), Iface: c.String("iface")}
	if s := c.String("advertise"); s != "" {
		if e.Wants.Advertise, err = netip.ParseAddr(s); err != nil {
			return e, usage(c, "--advertise %q: want an address of this host", s)
		}
	}
	if e.Links, err = netns.Interfaces(); err != nil {
		return e, err
	}
	if e.Routes, err = netns.Routes(); err != nil {
		return e, err
	}
	device := ""
	if u, err := plan.ChooseUnderlay(e.Wants, e.Links); err == nil {
		device = u.Device
	}
	e.OVS, err = ovs.Probe(c.Context, ovs.ProbeConfig{RunDir: c.String("run-dir"), OVSDB: c.String("ovsdb"), UnderlayDevice: device})
	if err != nil {
		return e, err
	}
	e.Ports, err = ovs.Faults(c.Context, ovs.PurgeConfig{RunDir: c.String("run-dir"), OVSDB: c.String("ovsdb"), Bridge: bridge})
	if err != nil {
		return e, err
	}
	e.Fast = fastpath.Probe()
	e.Multicast = netns.Multicasts()
	e.NFT, e.Droppers = netns.Firewalls()
	return e, ask(c.Context, api.NewClient(socketOf(c)), &e)
}

// ask adds what a daemon knows; one that does not answer knows nothing.
func ask(ctx context.Context, client *api.Client, e *plan.Examination) error {
	s, err := client.Status(ctx)
	if errors.Is(err, api.ErrNoDaemon) {
		return nil
	}
	if err != nil {
		return err
	}
	networks, err := client.Networks(ctx)
	if err != nil {
		return err
	}
	e.Daemon, e.Pending, e.Warnings, e.Disagree = true, s.Pending, s.Warnings, s.Disagree
	e.Alive, e.Known = s.NodesAlive, s.NodesKnown
	e.Networks = map[string]netip.Prefix{}
	for _, n := range networks {
		if p, err := netip.ParsePrefix(n.Subnet); err == nil {
			e.Networks[n.Name] = p
		}
	}
	return nil
}
