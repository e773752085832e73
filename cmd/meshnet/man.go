package main

import (
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// man prints the manual page, for packagers: what --help says of all commands, in roff.
func (t *terminal) man() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page", Hidden: true,
		Action: verb(0, 0, words, func(c *cli.Context) error {
			app := t.app()
			app.Setup()
			app.Description = strings.Join([]string{
				app.Description,
				"Settings of a node are the flags of up, each also as an environment variable (MESHNET_ and its name in capitals) and as a key of " +
					configDefault + ", in TOML. A flag wins over the environment, that over the file. meshnet config show prints what is in force.",
				"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no daemon answers, 4 done here but not everywhere yet, 5 doctor found a fault.",
				"Files: " + stateDirDefault + " (what survives a reboot), " + runDirDefault + " (the socket, the log, a private Open vSwitch).",
			}, "\n\n")
			text, err := app.ToManWithSection(8)
			if err != nil {
				return err
			}
			_, err = io.WriteString(t.out, text)
			return err
		}),
	}
}
