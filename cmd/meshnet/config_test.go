package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"meshnet/api"
)

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConfigPrecedence: a flag, then the environment, then the file, then the default; config show says
// which it was, and a node gets what config show says.
func TestConfigPrecedence(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "s")
	path := writeFile(t, "meshnet.toml", `# a comment
name = "of-file"
iface = "eth-file"
cluster = "file"
port = 4001
tunnel-port = 4002
no-mdns = true
join = ["192.0.2.1", "host:5"]
log-format = "json"
`)
	t.Setenv("MESHNET_IFACE", "eth-env")
	t.Setenv("MESHNET_CLUSTER", "env")
	t.Setenv("MESHNET_LOG_LEVEL", "debug")
	t.Setenv("MESHNET_KEY_FILE", "/env")
	got := command(nobody, "config", "show", "--json", "--config", path, "--cluster", "flag", "--tunnel-port=4003")
	var shown shownConfig
	if err := json.Unmarshal([]byte(got.out), &shown); err != nil || got.code != 0 || shown.Of != "next" {
		t.Fatalf("%v: %v", err, got)
	}
	file := "file " + path
	for _, want := range []api.Setting{
		{Key: "name", Value: "of-file", From: file},
		{Key: "iface", Value: "eth-env", From: "environment MESHNET_IFACE"},
		{Key: "cluster", Value: "flag", From: "flag --cluster"},
		{Key: "port", Value: "4001", From: file},
		{Key: "tunnel-port", Value: "4003", From: "flag --tunnel-port"},
		{Key: "no-mdns", Value: "true", From: file},
		{Key: "join", Value: "192.0.2.1,host:5", From: file},
		{Key: "log-level", Value: "debug", From: "environment MESHNET_LOG_LEVEL"},
		{Key: "log-format", Value: "json", From: file},
		{Key: "key-file", Value: "/env", From: "environment MESHNET_KEY_FILE"},
		{Key: "state-dir", Value: stateDirDefault, From: "default"},
		{Key: "socket", Value: nobody, From: "flag --socket"},
	} {
		if !slices.Contains(shown.Settings, want) {
			t.Errorf("no %+v in\n%v", want, got.out)
		}
	}
	flags := 0
	for _, f := range append((&terminal{}).up().Flags, common()...) {
		if !slices.Contains(unsettled, f.Names()[0]) {
			flags++
		}
	}
	if len(shown.Settings) != flags {
		t.Errorf("%d settings are shown, up has %d", len(shown.Settings), flags)
	}
	if got := command(nobody, "config", "show", "--config", path); got.code != 0 || !strings.Contains(got.out, "eth-env") || !strings.Contains(got.out, "FROM") {
		t.Error(got)
	}
}

// TestConfigMistakes: a file that cannot be meant is refused, in one line that names file and key.
func TestConfigMistakes(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "s")
	for _, test := range []struct{ text, says string }{
		{"ifcae = 'eth0'", `there is no setting "ifcae"`},
		{"detach = true", `there is no setting "detach"`},
		{"[mesh]\nname = 'x'", `there is no setting "mesh"`},
		{"port = '17946'", "port: want a number, without quotes"},
		{"port = -1", "port: want a number"},
		{"port = 1.5", "port: want a number"},
		{"no-mdns = 'yes'", "no-mdns: want true or false"},
		{"name = 5", "name: want a word in quotes"},
		{"join = [1]", "join: want a list"},
		{"name = 'a'\nname = 'b'", "line 2"},
		{"name = ", "line 1"},
		{"port = 70000", "--port 70000"},
		{"ovs = 'mine'", "--ovs"},
	} {
		path := writeFile(t, "bad.toml", test.text)
		for _, verb := range []string{"up", "config show"} {
			got := command(nobody, append(strings.Fields(verb), "--config", path)...)
			if got.code == 0 || strings.Count(got.err, "\n") != 1 || !strings.Contains(got.err, test.says) {
				t.Errorf("%s with %q: %v", verb, test.text, got)
			}
		}
	}
	if got := command(nobody, "up", "--config", "/nowhere.toml"); got.code == 0 || !strings.Contains(got.err, "/nowhere.toml") {
		t.Errorf("no file: %v", got)
	}
}

// TestConfigOthers: leave and doctor read it, too.
func TestConfigOthers(t *testing.T) {
	var out, errs strings.Builder
	term := &terminal{out: &out, err: &errs}
	path := writeFile(t, "meshnet.toml", "socket = '"+serve(t, newDoor())+"'\n")
	if code := term.run(context.Background(), []string{"meshnet", "leave", "--config", path}); code != 0 {
		t.Errorf("leave: %d, %s", code, errs.String())
	}
	path = writeFile(t, "meshnet.toml", "advertise = 'x'\n")
	if code := term.run(context.Background(), []string{"meshnet", "doctor", "--config", path}); code != exitUsage || !strings.Contains(errs.String(), "--advertise") {
		t.Errorf("doctor: %d, %s", code, errs.String())
	}
}

// TestConfigDown: down reads of the file what it needs, and the rest of it is no mistake.
func TestConfigDown(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "s")
	dir := t.TempDir()
	path := writeFile(t, "meshnet.toml", "iface = 'eth7'\nrun-dir = '"+dir+"'\n")
	if got := command(nobody, "down", "--config", path); got.code != 0 || got.out != "no daemon was running\n" {
		t.Error(got)
	}
	held, err := lock(dir, 2) // exclusive
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	term := &terminal{out: os.Stderr, err: os.Stderr}
	if code := term.run(ctx, []string{"meshnet", "--socket", nobody, "down", "--config", path}); code == 0 {
		t.Error("down did not look at the run directory of the file")
	}
	bad := writeFile(t, "meshnet.toml", "nonsense = 1")
	if got := command(nobody, "down", "--config", bad); got.code == 0 {
		t.Error(got)
	}
}

// TestConfigOfDaemon: without flags of its own config show prints what the daemon runs with.
func TestConfigOfDaemon(t *testing.T) {
	settings := found([]api.Setting{{Key: "iface", From: "default"}, {Key: "name", Value: "x", From: "flag --name"}}, map[string]string{"iface": "eth0", "name": "y"})
	socket := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := api.Listen(api.Config{Path: socket, Door: newDoor(), Settings: settings, Stop: cancel, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(ctx)
	got := command(socket, "config", "show")
	if want := "SETTING  VALUE  FROM\niface    eth0   found\nname     x      flag --name\n"; got.out != want {
		t.Errorf("%v\nwant %s", got, want)
	}
	if got := command(socket, "config", "show", "--iface", "eth9", "--json"); !strings.Contains(got.out, `"of": "next"`) {
		t.Error(got)
	}
}
