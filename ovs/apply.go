package ovs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"meshnet/ovs/flow"
	"meshnet/plan"
	"meshnet/state"
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
		a.flows(ctx)
	}
	a.judge(want)
	if a.plan.Transport == state.OVSUserspace {
		a.warm(ctx)
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

// judge reports the ports that ovs-vswitchd could not make, and forgets the failures of the others.
func (a *apply) judge(want []port) {
	have := a.db.observe(a.plan.Bridge)
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

// compiled holds the flows of the networks of the last plan. A network that is the same pointer in a
// plan of the same transport has the same flows.
type compiled struct {
	transport state.Transport
	networks  map[*plan.Network][]flow.Flow
}

// flows makes the flows of the bridge those of the plan.
func (a *apply) flows(ctx context.Context) {
	conn, err := a.s.openflow(ctx)
	if err != nil {
		a.errs = append(a.errs, err)
		return
	}
	have, err := conn.Flows(ctx)
	if err != nil {
		a.errs = append(a.errs, err)
		return
	}
	add, remove := flow.Diff(have, a.compile())
	if err := conn.Change(ctx, add, remove); err != nil {
		a.errs = append(a.errs, err)
		return
	}
	a.steps = append(a.steps, flowSteps(a.plan, add, remove)...)
}

// compile returns the flows of the plan, computing those of networks that changed.
func (a *apply) compile() []flow.Flow {
	old := a.s.compiled
	now := compiled{transport: a.plan.Transport, networks: make(map[*plan.Network][]flow.Flow, len(a.plan.Networks))}
	all := flow.Base(a.plan)
	for _, n := range a.plan.Networks {
		fs, ok := old.networks[n]
		if !ok || old.transport != now.transport {
			fs = flow.Compile(n, a.plan)
		}
		now.networks[n] = fs
		all = append(all, fs...)
	}
	a.s.compiled = now
	return all
}

// flowSteps tells how many flows came and went, one step a network, by cookie.
func flowSteps(h *plan.Host, add, remove []flow.Flow) []plan.Step {
	names := map[uint64]string{flow.BaseCookie: "of the bridge"}
	for id, n := range h.Networks {
		names[flow.Cookie(id)] = "of network " + n.Name
	}
	plus, minus := map[string]int{}, map[string]int{}
	count := func(counts map[string]int, flows []flow.Flow) {
		for _, f := range flows {
			name, ok := names[f.Cookie]
			if !ok {
				name = "of networks that are no longer here"
			}
			plus[name] += 0 // so that it is a key
			counts[name]++
		}
	}
	count(plus, add)
	count(minus, remove)
	var steps []plan.Step
	for _, name := range slices.Sorted(maps.Keys(plus)) {
		steps = append(steps, plan.Step{Op: "flows", What: fmt.Sprintf("+%d -%d %s", plus[name], minus[name], name)})
	}
	return steps
}
