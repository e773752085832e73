package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/urfave/cli/v2"

	"meshnet/api"
)

// configDefault is read by up and down where it exists and no other is named.
const configDefault = "/etc/meshnet/meshnet.toml"

// unsettled flags say how a command runs, not how a node does: no file has them.
var unsettled = []string{"detach", "config", "json", "help"}

// settleable gives flags their environment variables: MESHNET_ and the name, as with --run-dir and
// MESHNET_RUN_DIR.
func settleable(flags []cli.Flag) []cli.Flag {
	for _, f := range flags {
		env := []string{envOf(f.Names()[0])}
		switch f := f.(type) {
		case *cli.StringFlag:
			f.EnvVars = env
		case *cli.UintFlag:
			f.EnvVars = env
		case *cli.BoolFlag:
			if !slices.Contains(unsettled, f.Name) {
				f.EnvVars = env
			}
		case *cli.StringSliceFlag:
			f.EnvVars = env
		case *cli.DurationFlag:
			f.EnvVars = env
		}
	}
	return flags
}

func envOf(name string) string {
	return "MESHNET_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// configFlag names the file of settings.
func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "`FILE` of settings, in TOML: the names of these flags without dashes before them", DefaultText: configDefault + " if it is there"}
}

// configure fills in from the file what neither a flag nor the environment says, and returns all
// settings of a node with where they are from. Keys that up does not know are errors.
func (t *terminal) configure(c *cli.Context) ([]api.Setting, error) {
	path, file, err := readConfig(c.String("config"))
	if err != nil {
		return nil, err
	}
	flags := append(t.up().Flags, common()...)
	var settings []api.Setting
	for _, f := range flags {
		name := f.Names()[0]
		if slices.Contains(unsettled, name) {
			continue
		}
		v, inFile := file[name]
		delete(file, name)
		if !slices.ContainsFunc(c.Command.Flags, func(has cli.Flag) bool { return has.Names()[0] == name }) {
			continue // down has a part of them only
		}
		s := api.Setting{Key: name, From: t.from(c, name)}
		if inFile {
			text, err := textOf(f, v)
			if err != nil {
				return nil, fmt.Errorf("read config %s: %s: %w", path, name, err)
			}
			if s.From == "default" {
				s.From = "file " + path
				if err := c.Set(name, text); err != nil {
					return nil, fmt.Errorf("read config %s: %s: %w", path, name, err)
				}
			}
		}
		s.Value = valueOf(c, f)
		settings = append(settings, s)
	}
	for _, key := range sortedKeys(file) {
		return nil, fmt.Errorf("read config %s: there is no setting %q; settings are the long flags of meshnet up, see meshnet up --help", path, key)
	}
	return settings, nil
}

// readConfig returns what a file holds; an empty name is the usual one, which need not be there.
func readConfig(name string) (path string, settings map[string]any, err error) {
	path = name
	if name == "" {
		path = configDefault
	}
	if _, err = toml.DecodeFile(path, &settings); err == nil {
		return path, settings, nil
	}
	if name == "" && gone(err) {
		return path, nil, nil
	}
	if e := (toml.ParseError{}); errors.As(err, &e) {
		err = fmt.Errorf("line %d: %s", e.Position.Line, e.Message)
	}
	return path, nil, fmt.Errorf("read config %s: %w", path, err)
}

func sortedKeys(m map[string]any) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// textOf returns a value of the file as a flag has it.
func textOf(f cli.Flag, v any) (string, error) {
	switch f.(type) {
	case *cli.BoolFlag:
		if b, ok := v.(bool); ok {
			return strconv.FormatBool(b), nil
		}
		return "", errors.New("want true or false")
	case *cli.UintFlag:
		if n, ok := v.(int64); ok && n >= 0 {
			return strconv.FormatInt(n, 10), nil
		}
		return "", errors.New("want a number, without quotes")
	case *cli.StringSliceFlag:
		if list, ok := v.([]any); ok {
			var words []string
			for _, item := range list {
				word, ok := item.(string)
				if !ok {
					return "", errors.New("want a list of words in quotes")
				}
				words = append(words, word)
			}
			return strings.Join(words, ","), nil
		}
	}
	if s, ok := v.(string); ok {
		return s, nil
	}
	return "", errors.New("want a word in quotes")
}

func valueOf(c *cli.Context, f cli.Flag) string {
	name := f.Names()[0]
	switch f.(type) {
	case *cli.BoolFlag:
		return strconv.FormatBool(c.Bool(name))
	case *cli.UintFlag:
		return strconv.FormatUint(uint64(c.Uint(name)), 10)
	case *cli.StringSliceFlag:
		return strings.Join(c.StringSlice(name), ",")
	case *cli.DurationFlag:
		return c.Duration(name).String()
	}
	if name == "socket" {
		return socketOf(c)
	}
	return c.String(name)
}

// from says where a setting is from before the file was read.
func (t *terminal) from(c *cli.Context, name string) string {
	if !c.IsSet(name) {
		return "default"
	}
	for _, arg := range t.args {
		if arg == "--" {
			break
		}
		word, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if strings.HasPrefix(arg, "-") && word == name {
			return "flag --" + name
		}
	}
	if _, ok := os.LookupEnv(envOf(name)); ok {
		return "environment " + envOf(name)
	}
	return "default"
}

// found notes what was found out where nothing was said.
func found(settings []api.Setting, values map[string]string) []api.Setting {
	settings = slices.Clone(settings)
	for i, s := range settings {
		if v, ok := values[s.Key]; ok && s.Value == "" {
			settings[i] = api.Setting{Key: s.Key, Value: v, From: "found"}
		}
	}
	return settings
}

func (t *terminal) config() *cli.Command {
	return &cli.Command{
		Name: "config", Usage: "show the settings of this node",
		Subcommands: []*cli.Command{{
			Name: "show", Usage: "print the settings in force and where they are from",
			Description: "Those of the daemon that runs; with flags of up, or where none runs, those that meshnet up would have.",
			Flags:       slices.DeleteFunc(t.up().Flags, func(f cli.Flag) bool { return f.Names()[0] == "detach" }),
			Action:      verb(0, 0, words, t.showConfig),
		}},
		Action: unknown,
	}
}

// shownConfig is what config show prints.
type shownConfig struct {
	Of       string        `json:"of"` // daemon, or next: of the next up
	Settings []api.Setting `json:"settings"`
}

func (t *terminal) showConfig(c *cli.Context) error {
	next, err := t.configure(c)
	if err != nil {
		return err
	}
	shown := shownConfig{"next", next}
	asked := slices.ContainsFunc(next, func(s api.Setting) bool { return strings.HasPrefix(s.From, "flag ") && s.Key != "socket" })
	if !asked && c.String("config") == "" {
		settings, err := client(c).Settings(c.Context)
		switch {
		case err == nil:
			shown = shownConfig{"daemon", settings}
		case !errors.Is(err, api.ErrNoDaemon):
			return err
		}
	}
	if _, err := readOptions(c); err != nil && shown.Of == "next" {
		return err
	}
	if c.Bool("json") {
		t.json(shown)
		return nil
	}
	rows := [][]string{{"SETTING", "VALUE", "FROM"}}
	for _, s := range shown.Settings {
		value := s.Value
		if value == "" {
			value = "-"
		}
		rows = append(rows, []string{s.Key, value, s.From})
	}
	t.table(rows)
	if shown.Of == "next" {
		fmt.Fprintln(t.out, "\nno daemon was asked: this is what meshnet up would have")
	}
	return nil
}
