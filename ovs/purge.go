package ovs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ovn-org/libovsdb/ovsdb"

	"meshnet/plan"
)

// PurgeConfig says what to remove.
type PurgeConfig struct {
	RunDir     string // meshnet's; required
	HostRunDir string // sockets of the host's instance; empty: [HostRunDir]
	HostDB     string // database file of the host's instance; empty: /etc/openvswitch/conf.db
	OVSDB      string // address of the host's instance; empty: db.sock in HostRunDir
	Bridge     string // name of the bridge; required
}

// hostDB is where the host's own instance keeps its database, unless told otherwise: as ovs-ctl(8) has it.
const hostDB = "/etc/openvswitch/conf.db"

// Purge removes all that a [Switch] ever made on this host: its bridge, if it bears our mark, and a
// private instance whole. What is not there is no error; a host's instance that is stopped and would have the
// bridge again when it is started is one. The daemon must not be running.
func Purge(ctx context.Context, c PurgeConfig) ([]plan.Step, error) {
	address, _ := hostAddress(c.OVSDB, c.HostRunDir)
	steps, err := purgeBridge(ctx, address, c.Bridge)
	if file := cmp.Or(c.HostDB, hostDB); c.OVSDB == "" && !addressAnswers(address) && asleep(ctx, file, c.Bridge) {
		err = fmt.Errorf("the host's Open vSwitch is stopped, and its database %s has bridge %s; start it and purge again", file, c.Bridge)
	}
	more, err2 := purgePrivate(ctx, instance{dir: privateDir(c.RunDir)}, c.Bridge)
	return append(steps, more...), errors.Join(err, err2)
}

// leave calls leaveOther until it has nothing more to do. What cannot be removed now, for an
// ovs-vswitchd that does not answer, must not stay for good.
func (s *Switch) leave(ctx context.Context) {
	if s.left || time.Now().Before(s.leaving.at) {
		return
	}
	if s.own != nil {
		if address, _ := hostAddress(s.config.OVSDB, s.config.HostRunDir); !addressAnswers(address) {
			s.leaving.at = time.Now().Add(absent) // it may be started yet, with our bridge in its database
			return
		}
	}
	err := s.leaveOther(ctx)
	if s.left = err == nil; s.left {
		return
	}
	s.leaving.delay = min(max(2*s.leaving.delay, againMin), againMax)
	s.leaving.at = time.Now().Add(s.leaving.delay)
	s.config.Log.Warn("what an earlier run left in another Open vSwitch is still there", "err", err, "retry", s.leaving.delay)
}

// leaveOther removes what an earlier run with another choice left in the instance that is not ours
// to use now.
func (s *Switch) leaveOther(ctx context.Context) error {
	var steps []plan.Step
	var err error
	switch {
	case s.own != nil:
		address, _ := hostAddress(s.config.OVSDB, s.config.HostRunDir)
		steps, err = purgeBridge(ctx, address, s.config.Bridge)
	case s.config.RunDir != "":
		steps, err = purgePrivate(ctx, instance{dir: privateDir(s.config.RunDir)}, s.config.Bridge)
	}
	for _, step := range steps {
		s.config.Log.Info(step.String())
	}
	return err
}

// purgeBridge removes our bridge from an instance, if it answers.
func purgeBridge(ctx context.Context, address, bridge string) ([]plan.Step, error) {
	if !addressAnswers(address) {
		return nil, nil
	}
	db, err := dialDB(ctx, address)
	if err != nil {
		return nil, err
	}
	defer db.close()
	have := db.observe(bridge)
	if have.bridge == nil || have.bridge.ExternalIDs[markBridge] == "" {
		return nil, nil
	}
	gone := ovsSet([]ovsdb.UUID{{GoUUID: have.bridge.UUID}})
	tx := &transaction{ops: []ovsdb.Operation{
		mutate(tableRoot, have.root.UUID, "bridges", ovsdb.MutateOperationDelete, gone),
	}}
	if err := db.transact(ctx, tx.end(have.root)); err != nil {
		return nil, fmt.Errorf("remove bridge %s: %w", bridge, err)
	}
	steps := []plan.Step{{Op: "remove", What: "bridge " + bridge}}
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	if err := db.settle(ctx, nil); err != nil {
		return steps, fmt.Errorf("remove bridge %s: %w", bridge, err)
	}
	return steps, nil
}

// asleep reports whether the database of an instance that does not run has our bridge. One that cannot be read
// brings no bridge back.
func asleep(ctx context.Context, file, bridge string) bool {
	if _, err := os.Stat(file); err != nil {
		return false
	}
	path, err := findProgram(toolProgram)
	if err != nil {
		return false
	}
	query, err := json.Marshal([]any{"Open_vSwitch", map[string]any{
		"op": "select", "table": tableBridge, "where": [][]any{{"name", "==", bridge}}, "columns": []string{"external_ids"},
	}})
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "query", file, string(query)).Output()
	return err == nil && bytes.Contains(out, []byte(`["`+markBridge+`",`))
}

// purgePrivate removes a private instance: its bridge first, so that ovs-vswitchd itself takes back
// what it made, then its daemons and its directory. One that does not answer is stopped all the same:
// what it made on the userspace datapath ends with it.
func purgePrivate(ctx context.Context, in instance, bridge string) ([]plan.Step, error) {
	if _, err := os.Stat(in.dir); err != nil {
		return nil, nil // there is none, or nothing that we could remove
	}
	var steps []plan.Step
	var errs []error
	if in.running(switchProgram) && answers(filepath.Join(in.dir, "db.sock")) {
		var err error
		if steps, err = purgeBridge(ctx, in.address(), bridge); err != nil {
			steps = append(steps, plan.Step{Op: "give up", What: err.Error()})
		}
	}
	for _, program := range []string{switchProgram, serverProgram} {
		if !in.running(program) {
			continue
		}
		if err := in.stop(ctx, program); err != nil {
			errs = append(errs, err)
			continue
		}
		steps = append(steps, plan.Step{Op: "stop", What: program})
	}
	if len(errs) > 0 {
		return steps, errors.Join(errs...) // the directory says which processes are left
	}
	if err := os.RemoveAll(in.dir); err != nil {
		return steps, fmt.Errorf("remove the private Open vSwitch: %w", err)
	}
	return append(steps, plan.Step{Op: "remove", What: in.dir}), nil
}
