package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"meshnet/api"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "dev"

// Exit codes.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNoDaemon = 3
	exitWaiting  = 4 // done here, but not everywhere yet
)

func main() {
	ctx, stop := notifyContext()
	t := &terminal{out: os.Stdout, err: os.Stderr, now: time.Now}
	code := t.run(ctx, os.Args)
	stop()
	os.Exit(code)
}

// terminal is where a command prints and what it knows of the world besides its arguments.
type terminal struct {
	out, err io.Writer
	now      func() time.Time
	args     []string // of the command that runs, arranged; the first is the program
}

// failure is a command that failed: What failed: Why.
type failure struct {
	What string
	Err  error
	Code int
	told bool // stdout has its document already
}

func (f *failure) Error() string {
	// Errors from below name what was tried too; once is enough.
	why := strings.TrimPrefix(f.Err.Error(), f.What+": ")
	return oneLine(f.What + " failed: " + why)
}

// oneLine joins the lines of a message.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// usage says that a command was called wrongly.
func usage(c *cli.Context, format string, args ...any) error {
	words := strings.Join(path(c), " ")
	help := "meshnet help"
	if words != "" {
		help = "meshnet " + words + " --help"
	} else {
		words = "meshnet"
	}
	return &failure{What: words, Err: fmt.Errorf("%s; see %s", fmt.Sprintf(format, args...), help), Code: exitUsage}
}

// path returns the words of the command that runs: network create.
func path(c *cli.Context) []string {
	if c.Command == nil || c.Command.HelpName == "" {
		return nil
	}
	return strings.Fields(c.Command.HelpName)[1:]
}

// run carries out one command line and returns the exit code.
func (t *terminal) run(ctx context.Context, args []string) int {
	app := t.app()
	app.Setup()
	t.args = arrange(app, args)
	err := app.RunContext(ctx, t.args)
	if err == nil {
		return exitDone
	}
	f := &failure{}
	if !errors.As(err, &f) {
		f = &failure{What: "meshnet", Err: err, Code: exitFailed}
	}
	fmt.Fprintf(t.err, "meshnet: %s\n", f)
	if !f.told && wantsJSON(args) {
		t.json(struct {
			Error string   `json:"error"`
			Code  api.Code `json:"code"`
		}{f.Error(), codeOf(f)})
	}
	return f.Code
}

// wantsJSON reports whether a command line asks for JSON, also when it is wrong otherwise.
func wantsJSON(args []string) bool {
	for _, end := range []string{"--", "run", waiterVerb} { // what follows is for others
		if i := slices.Index(args, end); i >= 0 {
			args = args[:i]
		}
	}
	return slices.Contains(args, "--json") || slices.Contains(args, "-json") || slices.Contains(args, "--json=true")
}

func codeOf(f *failure) api.Code {
	var e *api.Error
	switch {
	case errors.As(f.Err, &e):
		return e.Code
	case f.Code == exitUsage:
		return api.Invalid
	case f.Code == exitNoDaemon:
		return api.NoDaemon
	}
	return api.Failed
}

// exitOf returns the exit code of an error.
func exitOf(err error) int {
	var e *api.Error
	switch {
	case errors.Is(err, api.ErrNoDaemon):
		return exitNoDaemon
	case errors.As(err, &e) && e.Code == api.Invalid:
		return exitUsage
	}
	return exitFailed
}

// json prints one document.
func (t *terminal) json(v any) {
	e := json.NewEncoder(t.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	e.Encode(v)
}

func (t *terminal) app() *cli.App {
	wrong := func(c *cli.Context, err error, _ bool) error { return usage(c, "%v", err) }
	app := &cli.App{
		Name:                 "meshnet",
		Usage:                "networks for containers across hosts, without a central store",
		Description:          "Start this host with meshnet up -d, then attach containers: meshnet attach c1.",
		HideVersion:          true,
		EnableBashCompletion: true,
		Writer:               t.out,
		ErrWriter:            io.Discard, // errors are printed by run, in one line
		ExitErrHandler:       func(*cli.Context, error) {},
		OnUsageError:         wrong,
		Action:               unknown,
		Commands: []*cli.Command{
			t.up(), t.down(),
			{
				Name: "network", Usage: "create, list, inspect and remove networks",
				Subcommands: []*cli.Command{
					t.networkCreate(), t.networkList(), t.networkInspect(), t.networkRemove(),
				},
				Action: unknown,
			},
			t.attach(), t.detach(), t.runContainer(), t.await(), t.expose(), t.hide(), t.publish(), t.unpublish(), t.ps(), t.nodes(),
			t.cluster(), t.rmpeer(), t.leave(), t.status(), t.ipam(), t.conflicts(), t.eventsVerb(), t.doctor(), t.config(), t.version(),
			t.completion(), t.man(), t.help(),
		},
		Flags:           append(common(), cli.HelpFlag), // not added by itself where help is a command of ours
		HideHelpCommand: true,
	}
	for _, c := range app.Commands {
		for _, c := range append(c.Subcommands, c) {
			c.OnUsageError = wrong
			c.HideHelpCommand = true
			if !c.SkipFlagParsing {
				c.Flags = append(c.Flags, common()...)
			}
		}
	}
	return app
}

// common returns the flags that all verbs have.
func common() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print one JSON document", DisableDefaultText: true},
		&cli.StringFlag{
			Name: "socket", Usage: "`PATH` of the daemon's socket", Value: socketDefault,
			EnvVars: []string{"MESHNET_SOCKET"},
		},
	}
}

func (t *terminal) help() *cli.Command {
	return &cli.Command{
		Name: "help", Aliases: []string{"h"}, Usage: "show what a command does", ArgsUsage: "[COMMAND…]",
		Action: func(c *cli.Context) error {
			find := c.App.Command
			for _, word := range c.Args().Slice() {
				command := find(word)
				if command == nil {
					return noCommand(word)
				}
				find = command.Command
			}
			args := slices.Concat([]string{"meshnet"}, c.Args().Slice(), []string{"--help"})
			return t.app().RunContext(c.Context, args)
		},
	}
}

// unknown prints help, or says that a verb is none of ours.
func unknown(c *cli.Context) error {
	if c.Args().Present() {
		return noCommand(strings.Join(append(path(c), c.Args().First()), " "))
	}
	if c.Command.HelpName == "meshnet" || c.Command.HelpName == "" {
		return cli.ShowAppHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

func noCommand(words string) error {
	return &failure{What: words, Err: errors.New("unknown command; see meshnet help"), Code: exitUsage}
}

// verb makes an action of a function: it checks the number of arguments, and says what failed.
func verb(least, most int, what func(*cli.Context) string, f func(*cli.Context) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		n := c.NArg()
		if n < least || n > most {
			want := "want " + c.Command.ArgsUsage
			if most == 0 {
				want = "want no arguments"
			}
			return usage(c, "%s", want)
		}
		for _, a := range c.Args().Slice() {
			if a == "" {
				return usage(c, "an argument is empty")
			}
		}
		err := f(c)
		if failed := (&failure{}); err == nil || errors.As(err, &failed) {
			return err
		}
		return &failure{What: what(c), Err: err, Code: exitOf(err)}
	}
}

// words is the usual what: the verb and its arguments.
func words(c *cli.Context) string {
	return strings.Join(append(path(c), c.Args().Slice()...), " ")
}

func client(c *cli.Context) *api.Client { return api.NewClient(c.String("socket")) }
