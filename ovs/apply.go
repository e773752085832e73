package ovs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"meshnet/plan"
)

// catchUpTurns is how many turns of its main loop ovs-vswitchd takes at most for what waits at a port: a turn takes 32
// packets (NETDEV_MAX_BURST), and the default buffer of a socket holds no more than 280. One that hangs is not waited
// for longer than catchUpMax.
const (
	catchUpTurns = 10
	catchUpMax   = 2 * time.Second
)

// apply is one run of [Switch.Apply].
type apply struct {
	s     *Switch
	db    *database
	plan  *plan.Host
	steps []plan.Step
	errs  []error
}

func (a *apply) failed(what string, err error) {
	a.errs = append(a.errs, fmt.Errorf("%s: %w", what, err))
}

func (a *apply) did(op, what string) { a.steps = append(a.steps, plan.Step{Op: op, What: what}) }

// run makes rows and flows equal to the plan. Flows do not wait for ports, which have their numbers
// from the plan, but they need the bridge.
func (a *apply) run(ctx context.Context) {
	devices, err := a.s.devices()
	if err != nil {
		a.errs = append(a.errs, err)
		return
	}
	if a.s.rows.holds(a.db, a.plan, devices) {
		a.flows(ctx)
		a.warm(ctx)
		return
	}
	want, missing := wanted(a.plan, devices)
	for _, name := range missing {
		a.errs = append(a.errs, fmt.Errorf("add port %s: no such device on this host; it has to be made first", name))
	}
	have := a.db.observe(a.plan.Bridge)
	if err := check(have, a.plan.Bridge); err != nil {
		a.errs = append(a.errs, err)
		return
	}
	d := diff(a.plan, want, have, a.s.mayRetry)
	for _, name := range d.clash {
		a.errs = append(a.errs, fmt.Errorf("add port %s: the name is taken by a port that is not ours; "+
			"remove it with ovs-vsctl del-port %s", name, name))
	}
	rebuilt := d.addBridge || d.setBridge
	a.transact(ctx, d, have)
	if !rebuilt {
		a.flows(ctx)
	}
	a.settle(ctx, rebuilt)
	a.again(ctx, d)
	if rebuilt {
		a.s.held.doubtful = true // whatever the old bridge had
		a.flows(ctx)
	}
	if len(d.remove) > 0 && len(d.add) > 0 {
		a.catchUp(ctx)
	}
	a.judge(want, devices)
	a.warm(ctx)
}

// catchUp waits until ovs-vswitchd has taken what waited at its new ports while it changed them. Where new ones are in
// the place of old ones, as when a fast path goes, the packets of before have other ways yet, and are only copies
// there; those of after would find the queues full.
func (a *apply) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catchUpMax)
	defer cancel()
	conn, err := a.s.openflow(ctx)
	for turn := 0; err == nil && turn < catchUpTurns; turn++ {
		err = conn.Barrier(ctx)
	}
	if err != nil {
		a.s.config.Log.Debug("ovs-vswitchd may be behind", "err", err) // there is nothing else to do about it
	}
}

// warm sees to tunnels that are new.
func (a *apply) warm(ctx context.Context) {
	if _, err := a.s.warm(ctx, a.plan); err != nil {
		a.errs = append(a.errs, err)
	}
	select {
	case a.s.cold <- struct{}{}:
	default: // it will look anyway
	}
}

// check refuses a bridge of our name that somebody else made.
func check(have snapshot, name string) error {
	if have.root == nil {
		return fmt.Errorf("read the Open vSwitch database: %w", errLost)
	}
	if have.bridge != nil && have.bridge.ExternalIDs[markBridge] == "" {
		return fmt.Errorf("use bridge %s: there is one that is not ours; remove it with ovs-vsctl del-br %s", name, name)
	}
	if have.bridge == nil && have.taken[name] {
		return fmt.Errorf("add bridge %s: the name is taken by a port; remove it with ovs-vsctl del-port %s", name, name)
	}
	return nil
}

// transact carries out the first transaction.
func (a *apply) transact(ctx context.Context, d difference, have snapshot) {
	if d.empty() {
		return
	}
	if err := a.db.transact(ctx, d.first(a.plan, have)); err != nil {
		a.failed("change the Open vSwitch database", err)
		return
	}
	if d.addBridge {
		a.did("add", "bridge "+a.plan.Bridge)
	}
	if d.setBridge {
		a.did("set", "bridge "+a.plan.Bridge)
	}
	for _, name := range d.remove {
		a.did("remove", "port "+name)
		delete(a.s.retries, name)
	}
	for _, w := range d.add {
		a.did("add", "port "+w.name)
	}
	for _, w := range d.set {
		a.did("set", "port "+w.name)
	}
	for _, w := range d.again {
		a.did("remove", "port "+w.name)
	}
}

// again adds the ports that the first transaction removed to be made again.
func (a *apply) again(ctx context.Context, d difference) {
	if len(d.again) == 0 {
		return
	}
	have := a.db.observe(a.plan.Bridge)
	d.again = slices.DeleteFunc(d.again, func(w port) bool { return have.taken[w.name] }) // not removed: told already
	ops := d.second(have)
	if ops == nil {
		return
	}
	if err := a.db.transact(ctx, ops); err != nil {
		a.failed("change the Open vSwitch database", err)
		return
	}
	for _, w := range d.again {
		a.did("add", "port "+w.name)
		a.s.tried(w.name)
	}
	a.settle(ctx, false)
}

// settle waits until ovs-vswitchd has the rows. The end of a live OpenFlow connection tells that it
// will not come, unless the bridge is rebuilt, which ends connections too.
func (a *apply) settle(ctx context.Context, rebuilt bool) {
	if root := a.db.root(); root != nil && root.CurCfg < root.NextCfg && !switchAnswers(a.s.dir) {
		a.errs = append(a.errs, errors.New("ovs-vswitchd does not run, so ports are as they were"))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	stop := a.s.flowDone()
	if rebuilt || stop != nil && ended(stop) {
		stop = nil
	}
	if err := a.db.settle(ctx, stop); err != nil {
		a.failed("wait for ovs-vswitchd", err)
	}
}

// judge reports the ports that ovs-vswitchd could not make, and forgets the failures of the others. If
// nothing is left to be done, that is what is known of the rows.
func (a *apply) judge(want []port, devices map[string]int) {
	news := a.db.changed() // before the look, so that nothing is missed
	have := a.db.observe(a.plan.Bridge)
	defer func() {
		if found, err := a.db.found(a.plan.Bridge); err == nil && len(a.errs) == 0 && diff(a.plan, want, have, a.s.mayRetry).empty() {
			a.s.rows = known{a.db, news, a.plan, devices, found}
		}
	}()
	for _, w := range want {
		f, ok := have.ports[w.name]
		switch {
		case !ok || !f.ours():
			// told already
		case f.failed():
			a.errs = append(a.errs, fmt.Errorf("add port %s: %s; it is tried again", w.name, f.why()))
		default:
			delete(a.s.retries, w.name)
		}
	}
}
