package ovs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"meshnet/plan"
)

const (
	// reachMax is how long Apply waits for the database at most; Run tells by Drift when it is there.
	reachMax = 2 * time.Second
	// settleMax is how long ovs-vswitchd may take to take up rows: 400 ms were measured at 1,000 ports.
	settleMax = 5 * time.Second

	// Between attempts to get an instance back, from first to last, doubling.
	backoffMin = 100 * time.Millisecond
	backoffMax = 10 * time.Second
	// lookLost is how often a bridge that does not answer is looked for, lookAlive how often a private
	// instance's daemons.
	lookLost  = 20 * time.Millisecond
	lookAlive = 2 * time.Second
	// unmadeMax is how long a private ovs-vswitchd may take to make a bridge that the database has.
	unmadeMax = 10 * time.Second
	// debounce gathers changes of the database that come together.
	debounce = 20 * time.Millisecond

	// A port that ovs-vswitchd could not make is made again after againMin, doubling up to againMax.
	againMin = time.Second
	againMax = time.Minute

	// absent is how often the other instance, from which our bridge may have to go, is looked for while
	// it does not run.
	absent = 2 * time.Second
)

// Config is what a [Switch] needs to know.
type Config struct {
	Choice     plan.Choice  // which instance, and whether to start it
	RunDir     string       // meshnet's; required with Choice.Private
	HostRunDir string       // sockets of the host's instance; empty: [HostRunDir]
	Bridge     string       // name of the bridge; required
	OVSDB      string       // address of the host's instance; empty: db.sock in HostRunDir
	Log        *slog.Logger // required
}

// Switch keeps one bridge of one Open vSwitch equal to a plan. It implements agent.Applier.
type Switch struct {
	config  Config
	own     *instance // nil: the host's
	address string    // of the database
	dir     string    // of the instance's sockets
	mgmt    string    // the bridge's OpenFlow socket
	prober  *prober
	drift   chan struct{}
	dialled chan struct{} // holds a token when there is a new OpenFlow connection
	cold    chan struct{} // holds a token when a plan was applied, whose tunnels may be new
	// devices returns the index of each network device of the host. A test has its own.
	devices func() (map[string]int, error)

	applying sync.Mutex // held by Apply, and by Run while it compares; guards the following
	last     *plan.Host // as given to the last Apply
	held     held
	rows     known
	// announced is the plan whose members the local ones were told of.
	announced *plan.Host
	retries   map[string]retry // by name of a port that failed
	warmth    warmth

	left      bool          // nothing is left in the other instance; Run's, as is the next
	leaving   retry         // when to look again while something is
	unmade    patience      // how long the bridge of a private ovs-vswitchd has not answered
	unmadeMax time.Duration // a test has its own

	mu   sync.Mutex
	db   *database     // nil: not connected
	up   chan struct{} // closed when db is set
	flow *ofConn       // nil: never connected; it may have ended
}

// retry says when a port that failed may be made again.
type retry struct {
	at    time.Time
	delay time.Duration // the next one
}

// New checks the configuration.
func New(c Config) (*Switch, error) {
	s := &Switch{
		config: c, drift: make(chan struct{}, 1), dialled: make(chan struct{}, 1), cold: make(chan struct{}, 1), up: make(chan struct{}),
		devices: hostDevices, retries: map[string]retry{}, unmadeMax: unmadeMax,
	}
	switch {
	case c.Bridge == "":
		return nil, errors.New("configure the switch: no name of a bridge")
	case c.Log == nil:
		return nil, errors.New("configure the switch: no logger")
	case c.Choice.Private && c.RunDir == "":
		return nil, errors.New("configure the switch: no run directory")
	}
	if c.Choice.Private {
		s.dir = privateDir(c.RunDir)
		s.own = &instance{dir: s.dir}
		s.address = s.own.address()
	} else {
		s.address, s.dir = hostAddress(c.OVSDB, c.HostRunDir)
	}
	s.mgmt = filepath.Join(s.dir, c.Bridge+".mgmt")
	s.prober = newProber(s.mgmt)
	return s, nil
}

// Drift delivers when the switch may no longer be what Apply left: somebody changed rows, a
// connection was lost or is there again, the switch was restarted.
func (s *Switch) Drift() <-chan struct{} { return s.drift }

func (s *Switch) drifted() {
	select {
	case s.drift <- struct{}{}:
	default: // told already
	}
}

// Run starts the instance where it has to, connects, and does both again whenever one is lost, until
// ctx ends. It leaves the instance running.
func (s *Switch) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { s.prober.run(ctx) })
	beside.Go(func() { s.keepWarm(ctx) })
	delay := backoffMin
	for {
		s.leave(ctx)
		began := time.Now()
		err := s.session(ctx)
		s.disconnect()
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > backoffMax {
			delay = backoffMin
		}
		s.config.Log.Warn("no connection to Open vSwitch, trying again", "addr", s.address, "err", err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
		delay = min(2*delay, backoffMax)
	}
}

// session lasts as long as one connection to the database.
func (s *Switch) session(ctx context.Context) error {
	switch {
	case s.own != nil:
		if err := s.own.ensure(ctx, s.config.Choice.TSO); err != nil {
			return fmt.Errorf("start a private Open vSwitch: %w", err)
		}
	case s.config.Choice.Start && !(addressAnswers(s.address) && switchAnswers(s.dir)):
		if err := startHost(ctx, s.dir); err != nil {
			return fmt.Errorf("start the host's Open vSwitch: %w", err)
		}
	}
	db, err := dialDB(ctx, s.address)
	if err != nil {
		return err
	}
	if err := db.addRoot(ctx); err != nil {
		db.close()
		return fmt.Errorf("initialize the database: %w", err)
	}
	s.mu.Lock()
	s.db = db
	close(s.up)
	s.mu.Unlock()
	s.drifted()
	defer s.drifted()
	return s.watch(ctx, db)
}

// disconnect ends both connections and waits for what they started.
func (s *Switch) disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db != nil {
		s.db.close()
		s.db, s.up = nil, make(chan struct{})
	}
	if s.flow != nil {
		s.flow.Close()
		s.flow = nil
	}
}

// watch tells of drift until the connection to the database ends.
func (s *Switch) watch(ctx context.Context, db *database) error {
	look := time.NewTicker(lookAlive)
	defer look.Stop()
	count := time.NewTicker(countEvery)
	defer count.Stop()
	counted := 0
	compare := time.NewTimer(debounce)
	defer compare.Stop()
	due := true                               // compare will fire
	var flowLost, flowTouched <-chan struct{} // nil while there is no connection to lose
	changed := db.changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-db.ended:
			return errLost
		case <-changed:
			changed = db.changed()
			if !due {
				due = true
				compare.Reset(debounce)
			}
		case <-compare.C:
			if due = !s.compare(db); due {
				compare.Reset(debounce)
			}
		case <-s.dialled:
			flowLost, flowTouched = s.flowSignals()
			look.Reset(lookAlive)
		case <-flowTouched:
			s.drifted()
		case <-flowLost:
			flowLost, flowTouched = nil, nil
			s.drifted()
			look.Reset(lookLost)
		case <-count.C:
			counted++
			s.recount(ctx, counted)
		case <-look.C:
			if db.lost() {
				return errLost
			}
			s.leave(ctx)
			if err := s.revive(ctx, db); err != nil {
				return err
			}
			if s.flowEnded() && answers(s.mgmt) {
				look.Reset(lookAlive)
				s.drifted()
			}
		}
	}
}

// revive starts a private ovs-vswitchd that is dead, and one anew that has not made the bridge for a while
// though the database has it: it does not try again.
func (s *Switch) revive(ctx context.Context, db *database) error {
	if s.own == nil {
		return nil
	}
	if s.own.running(switchProgram) {
		if !s.bridgeless(db) {
			return nil
		}
		s.config.Log.Warn("ovs-vswitchd has not made the bridge, starting it anew", "bridge", s.config.Bridge)
		if err := s.own.stop(ctx, switchProgram); err != nil {
			return err
		}
	} else {
		s.config.Log.Warn("ovs-vswitchd is dead, starting it")
	}
	if err := s.own.ensure(ctx, s.config.Choice.TSO); err != nil {
		return fmt.Errorf("start a private Open vSwitch: %w", err)
	}
	return nil
}

// bridgeless reports whether the bridge has not answered for too long.
func (s *Switch) bridgeless(db *database) bool {
	if alive := s.flowDone(); alive != nil && !ended(alive) || db.observe(s.config.Bridge).bridge == nil || answers(s.mgmt) {
		s.unmade = patience{}
		return false
	}
	if s.unmade.look(time.Now()) < s.unmadeMax {
		return false
	}
	s.unmade = patience{}
	return true
}

// patience counts how long something was seen missing by somebody who looks every [lookAlive] or more often. A
// host that stood still meanwhile did not look, and is not taken for one where it was missing so long.
type patience struct {
	last time.Time
	sum  time.Duration
}

// look notes that it is still missing and returns for how long.
func (p *patience) look(now time.Time) time.Duration {
	if !p.last.IsZero() {
		p.sum += min(now.Sub(p.last), 2*lookAlive)
	}
	p.last = now
	return p.sum
}

// compare tells of drift when the database is not what the last plan wants. It reports false if an
// Apply is under way, so that nothing can be said yet.
func (s *Switch) compare(db *database) bool {
	if !s.applying.TryLock() {
		return false
	}
	defer s.applying.Unlock()
	if s.last == nil {
		return true
	}
	devices, err := s.devices()
	if err != nil {
		return true // Apply meets the same error and says so
	}
	want, _ := wanted(s.last, devices)
	have := db.observe(s.config.Bridge)
	if !diff(s.last, want, have, s.mayRetry).empty() || renumbered(want, have) {
		s.drifted()
	}
	return true
}

// renumbered reports whether a port has another number than the plan wants: the plan has to follow.
func renumbered(want []port, have snapshot) bool {
	return slices.ContainsFunc(want, func(w port) bool {
		p, ok := have.ports[w.name]
		return ok && p.number() != w.number
	})
}

// Apply makes the bridge equal to the plan: rows, then flows, each as far as it differs. A failed
// step does not stop the others. A port that got another number than the plan wants is in Found; the
// plan has to follow it.
func (s *Switch) Apply(ctx context.Context, h *plan.Host) ([]plan.Step, plan.Found, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	if h != s.last {
		s.last, s.retries = h, map[string]retry{} // what failed may go well now
		s.prober.aim(h)
	}
	db, err := s.reach(ctx)
	if err != nil {
		return nil, plan.Found{}, err
	}
	a := &apply{s: s, db: db, plan: h}
	a.run(ctx)
	if k := s.rows; k.plan != nil && k.holds(db, h, k.devices) {
		return a.steps, k.found, errors.Join(a.errs...)
	}
	found, err := db.found(s.config.Bridge)
	if err != nil {
		a.errs = append(a.errs, err)
	}
	return a.steps, found, errors.Join(a.errs...)
}

// Found reads which port numbers are in use and what the datapath can do, without changing anything.
// It waits a moment for the connection that Run makes.
func (s *Switch) Found(ctx context.Context) (plan.Found, error) {
	db, err := s.reach(ctx)
	if err != nil {
		return plan.Found{}, err
	}
	return db.found(s.config.Bridge)
}

// reach returns the connection to the database, once Run has made it.
func (s *Switch) reach(ctx context.Context) (*database, error) {
	s.mu.Lock()
	up := s.up
	s.mu.Unlock()
	select {
	case <-up:
	case <-time.After(reachMax):
		return nil, fmt.Errorf("reach Open vSwitch at %s: not connected; it is tried again", s.address)
	case <-ctx.Done():
		return nil, fmt.Errorf("reach Open vSwitch at %s: %w", s.address, ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil, fmt.Errorf("reach Open vSwitch at %s: %w", s.address, errLost)
	}
	return s.db, nil
}

// openflow returns a live connection to the bridge.
func (s *Switch) openflow(ctx context.Context) (*ofConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flow != nil && !ended(s.flow.Done()) {
		return s.flow, nil
	}
	conn, err := dialOpenFlow(ctx, s.mgmt, s.config.Log)
	if err != nil {
		return nil, err
	}
	s.flow = conn
	select {
	case s.dialled <- struct{}{}:
	default: // Run will look anyway
	}
	return conn, nil
}

// flowDone returns what is closed when the OpenFlow connection ends.
func (s *Switch) flowDone() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flow == nil {
		return nil
	}
	return s.flow.Done()
}

// flowSignals returns flowDone, and what delivers when others touched our flows.
func (s *Switch) flowSignals() (done, touched <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flow == nil {
		return nil, nil
	}
	return s.flow.Done(), s.flow.alarm
}

// flowEnded reports whether there was an OpenFlow connection and is no more.
func (s *Switch) flowEnded() bool {
	done := s.flowDone()
	return done != nil && ended(done)
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// mayRetry reports whether a port that failed may be made again now.
func (s *Switch) mayRetry(name string) bool { return !time.Now().Before(s.retries[name].at) }

// tried notes that a port that failed is made again now.
func (s *Switch) tried(name string) {
	delay := max(s.retries[name].delay, againMin)
	s.retries[name] = retry{at: time.Now().Add(delay), delay: min(2*delay, againMax)}
}

func hostDevices() (map[string]int, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	devices := make(map[string]int, len(all))
	for _, d := range all {
		devices[d.Name] = d.Index
	}
	return devices, nil
}
