package main

import (
	"errors"
	"slices"

	"github.com/urfave/cli/v2"

	"meshnet/api"
)

// The words of SocketPlane that are no alias of one verb: network list, info and delete and the verb
// info stand with the verbs that they name.

// cluster is SocketPlane's word for the mesh.
func (t *terminal) cluster() *cli.Command {
	return &cli.Command{
		Name: "cluster", Usage: "SocketPlane's words: the members (as nodes), join (as up -d --join), leave",
		Subcommands: []*cli.Command{
			{
				Name: "join", Usage: "start this node and join one that runs: up -d --join HOST", ArgsUsage: "HOST[:PORT]",
				Action: verb(1, 1, words, func(c *cli.Context) error {
					if _, err := client(c).Version(c.Context); !errors.Is(err, api.ErrNoDaemon) {
						return errors.New("this node runs already, and finds others by mDNS and by the --join of its start; meshnet down first")
					}
					return t.instead(c, "up", "-d", "--join", c.Args().First())
				}),
			},
			{
				Name: "leave", Usage: "withdraw this node's containers and stop it: leave",
				Action: verb(0, 0, words, func(c *cli.Context) error { return t.instead(c, "leave") }),
			},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknown(c)
			}
			return t.instead(c, "nodes")
		},
	}
}

// instead runs another command line with the flags that all verbs have.
func (t *terminal) instead(c *cli.Context, args ...string) error {
	own := []string{"--socket", c.String("socket")}
	if c.Bool("json") {
		own = append(own, "--json")
	}
	app := t.app()
	app.Setup()
	t.args = arrange(app, slices.Concat([]string{"meshnet"}, args, own))
	return app.RunContext(c.Context, t.args)
}
