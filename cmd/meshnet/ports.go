package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
)

func (t *terminal) expose() *cli.Command {
	return &cli.Command{
		Name: "expose", Usage: "give this host an address on a network and print it", ArgsUsage: "NETWORK",
		Description: "The host then reaches the network's containers, and they it. It does not route for others.\n" +
			"Twice is the same as once; meshnet hide takes it back.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "ip", Usage: "`ADDRESS` wanted", DefaultText: "a free one"},
			&cli.DurationFlag{Name: "wait", Value: 2 * time.Second, Usage: "`DURATION` for other nodes to reach the host"},
		},
		Action: verb(1, 1, words, t.exposeOne),
	}
}

func (t *terminal) exposeOne(c *cli.Context) error {
	ask := api.ExposeRequest{Network: c.Args().First(), IP: c.String("ip"), Wait: c.Duration("wait").Seconds()}
	got, err := client(c).Expose(c.Context, ask)
	if err != nil {
		return err
	}
	return t.reached(c, words(c), got)
}

func (t *terminal) hide() *cli.Command {
	return &cli.Command{
		Name: "hide", Usage: "take this host's address on a network back", ArgsUsage: "NETWORK",
		Description: "Twice is the same as once.",
		Action: verb(1, 1, words, func(c *cli.Context) error {
			got, err := client(c).Hide(c.Context, api.HideRequest{Network: c.Args().First()})
			if err != nil {
				return err
			}
			if c.Bool("json") {
				t.json(got)
				return nil
			}
			for _, a := range got.Hidden {
				fmt.Fprintf(t.out, "%s is off %s\n", a.Container, a.Network)
			}
			if len(got.Hidden) == 0 {
				fmt.Fprintf(t.out, "this host had no address on %s\n", c.Args().First())
			}
			return nil
		}),
	}
}

func (t *terminal) publish() *cli.Command {
	return &cli.Command{
		Name: "publish", Usage: "make a port of this host lead to a container here",
		ArgsUsage: "NETWORK CONTAINER HOSTPORT:PORT[/udp]",
		Description: "The container sees the client's own address. Twice is the same as once; it outlives restarts of the\n" +
			"container and of this host.",
		Action: verb(3, 3, words, func(c *cli.Context) error {
			ask, ok := parsePublished(c.Args().Get(2), false)
			if !ok {
				return usage(c, "%s: want HOSTPORT:PORT or HOSTPORT:PORT/udp", c.Args().Get(2))
			}
			ask.Network, ask.Container = c.Args().Get(0), c.Args().Get(1)
			all, err := client(c).PS(c.Context, false)
			if err != nil {
				return err
			}
			if !publishes(all, ask) {
				if err := unused(ask); err != nil {
					return err
				}
			}
			return t.published(c, ask)
		}),
	}
}

func (t *terminal) unpublish() *cli.Command {
	return &cli.Command{
		Name: "unpublish", Usage: "let a port of this host no longer lead to a container",
		ArgsUsage:   "NETWORK CONTAINER HOSTPORT[:PORT][/udp]",
		Description: "Twice is the same as once.",
		Action: verb(3, 3, words, func(c *cli.Context) error {
			ask, ok := parsePublished(c.Args().Get(2), true)
			if !ok {
				return usage(c, "%s: want HOSTPORT, HOSTPORT:PORT or one of them with /udp", c.Args().Get(2))
			}
			ask.Network, ask.Container, ask.Remove = c.Args().Get(0), c.Args().Get(1), true
			return t.published(c, ask)
		}),
	}
}

func (t *terminal) published(c *cli.Context, ask api.PublishRequest) error {
	got, err := client(c).Publish(c.Context, ask)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		t.json(got)
		return nil
	}
	for _, p := range got.Published {
		fmt.Fprintf(t.out, "%s leads to %s on %s\n", p, got.Container, got.Network)
	}
	if len(got.Published) == 0 {
		fmt.Fprintf(t.out, "nothing leads to %s on %s\n", got.Container, got.Network)
	}
	return nil
}

// parsePublished reads HOSTPORT:PORT[/PROTOCOL], or with short also HOSTPORT[/PROTOCOL].
func parsePublished(s string, short bool) (r api.PublishRequest, ok bool) {
	ports, proto, has := strings.Cut(s, "/")
	if has && proto != "tcp" && proto != "udp" {
		return r, false
	}
	r.UDP = proto == "udp"
	from, to, two := strings.Cut(ports, ":")
	number := func(s string) uint16 {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return 0
		}
		return uint16(n)
	}
	r.HostPort = number(from)
	if two {
		r.Port = number(to)
	}
	return r, r.HostPort != 0 && (r.Port != 0 || !two && short)
}

// publishes reports whether a port of this host leads somewhere already.
func publishes(all []api.Attachment, ask api.PublishRequest) bool {
	proto := "/tcp"
	if ask.UDP {
		proto = "/udp"
	}
	for _, a := range all {
		for _, p := range a.Published {
			if strings.HasPrefix(p, fmt.Sprintf("%d:", ask.HostPort)) && strings.HasSuffix(p, proto) {
				return true
			}
		}
	}
	return false
}

// unused refuses a port that a program of this host has: it would get nothing any more.
func unused(ask api.PublishRequest) error {
	address := fmt.Sprintf(":%d", ask.HostPort)
	var err error
	if ask.UDP {
		var c net.PacketConn
		if c, err = net.ListenPacket("udp4", address); err == nil {
			return c.Close()
		}
	} else {
		var l net.Listener
		if l, err = net.Listen("tcp4", address); err == nil {
			return l.Close()
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("a program of this host has port %d; choose another, or end it", ask.HostPort)
	}
	return nil // what else keeps us from listening does not keep others from connecting
}
