package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// dockerRun is what follows meshnet's own flags: the arguments of docker run, read as far as it takes
// to put a program before the image's own. All that is not named here goes to docker as it came.
type dockerRun struct {
	flags []string // without those below
	// entrypoint is --entrypoint; nil: not given. An empty one takes the image's away.
	entrypoint *string
	pull       string // --pull: always, missing, never; empty: not given
	platform   string // --platform; in flags too
	network    string // the last --network or --net; in flags too
	image      string
	command    []string
}

// dockerSwitches are docker run's flags without a value. All others have one, in the next word unless it
// follows in the same. A test compares them with docker run --help.
var dockerSwitches = []string{
	"d", "detach", "disable-content-trust", "help", "i", "init", "interactive", "no-healthcheck", "oom-kill-disable",
	"P", "privileged", "publish-all", "q", "quiet", "read-only", "rm", "sig-proxy", "t", "tty", "use-api-socket",
}

// parseDockerRun reads docker run's arguments as its own command line does (pflag): flags end at -- or
// at the first word that is none, which is the image.
func parseDockerRun(args []string) (dockerRun, error) {
	var r dockerRun
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			args = args[1:]
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			break
		}
		words := 1
		if needsNext(arg) {
			words = 2
		}
		if words > len(args) {
			return r, fmt.Errorf("flag needs an argument: %s", arg)
		}
		r.flag(args[:words])
		args = args[words:]
	}
	if len(args) == 0 || args[0] == "" {
		return r, errors.New("want an image")
	}
	r.image, r.command = args[0], args[1:]
	return r, nil
}

// needsNext reports whether the value of a flag, or of the last of several short ones in one word, is
// the next word.
func needsNext(arg string) bool {
	name, long := strings.CutPrefix(arg, "--")
	if long {
		return !strings.Contains(name, "=") && !slices.Contains(dockerSwitches, name)
	}
	for i, letter := range arg[1:] {
		if slices.Contains(dockerSwitches, string(letter)) {
			continue
		}
		return letter != '=' && i == len(arg)-2 // what follows the letter is its value
	}
	return false
}

// flag takes one flag: a word, or two.
func (r *dockerRun) flag(words []string) {
	name, value, joined := strings.Cut(strings.TrimPrefix(words[0], "--"), "=")
	if len(words) == 2 {
		value = words[1]
	}
	if !strings.HasPrefix(words[0], "--") || !joined && len(words) == 1 {
		name = ""
	}
	switch name {
	case "entrypoint":
		r.entrypoint = &value
		return
	case "pull":
		r.pull = value
		return
	case "platform":
		r.platform = value
	case "network", "net":
		r.network = value
	}
	r.flags = append(r.flags, words...)
}

// process returns the program and its arguments that the container would start with by itself. A given
// entrypoint takes the image's command away too, as Docker's own rule is.
func (r *dockerRun) process(entrypoint, command []string) []string {
	switch {
	case r.entrypoint != nil && *r.entrypoint == "":
		return r.command
	case r.entrypoint != nil:
		return append([]string{*r.entrypoint}, r.command...)
	case len(r.command) > 0:
		return slices.Concat(entrypoint, r.command)
	}
	return slices.Concat(entrypoint, command)
}
