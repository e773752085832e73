package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange puts the flags of a command line before its arguments: meshnet attach c1 web --json and
// meshnet --json attach c1 web are meshnet attach --json -- c1 web. The library stops to look for
// flags at the first argument. What follows -- stays as it is, and
// what follows a verb that reads its arguments itself.
func arrange(app *cli.App, args []string) []string {
	if len(args) == 0 || args[len(args)-1] == "--generate-bash-completion" {
		return args
	}
	words := []string{args[0]}
	var flags, rest []string
	command := app.Command // finds a command of the level reached
	known := app.Flags
	for _, c := range app.Commands {
		known = append(slices.Clone(known), c.Flags...) // flags may stand before the verb too
	}
	leaf := false
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(arg) > 1 && arg[0] == '-' {
			flags = append(flags, arg)
			if takesValue(known, arg) && i+1 < len(args) {
				i++
				flags = append(flags, args[i])
			}
			continue
		}
		if !leaf {
			if c := command(arg); c != nil {
				words = append(words, arg)
				if c.SkipFlagParsing { // it reads its arguments itself
					return slices.Concat(words[:1], flags, words[1:], args[i+1:])
				}
				known, command = c.Flags, c.Command
				leaf = len(c.Subcommands) == 0
				for _, s := range c.Subcommands {
					known = append(slices.Clone(known), s.Flags...)
				}
				continue
			}
			leaf = true
		}
		rest = append(rest, arg)
	}
	words = append(words, flags...)
	if len(rest) > 0 {
		words = append(append(words, "--"), rest...)
	}
	return words
}

// takesValue reports whether the word after a flag belongs to it.
func takesValue(flags []cli.Flag, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			d, ok := f.(cli.DocGenerationFlag)
			return ok && d.TakesValue()
		}
	}
	return false
}
