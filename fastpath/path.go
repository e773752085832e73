package fastpath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"meshnet/fastpath/bpf"
	"meshnet/plan"
	"meshnet/state"
)

// verifyEvery is how often programs and maps are compared with what Apply left: nothing tells when
// somebody changes them. A look that took long is followed by restFactor times as long a rest, so that
// looking takes at most one part in restFactor of a processor. The maps, which are nobody else's business and
// whose empty places are passed over one by one, are read by every mapsEvery-th look. pausedMax bounds what one
// Apply or Yield waits for the sake of others.
const (
	verifyEvery = 2 * time.Second
	restFactor  = 200
	mapsEvery   = 4
	pausedMax   = 3 * time.Second
)

// Path makes programs, twins and maps of this host equal to a plan.
type Path struct {
	log   *slog.Logger
	drift chan struct{}
	wake  chan struct{} // tells Run that devices are to be removed

	mu      sync.Mutex
	program *program // nil: not loaded
	room    uint32   // members there is room for; 0: as the program says
	newer   bool     // false: as on kernels without TCX, which tests want
	tcx     bool     // programs can be attached without clsact
	full    bool     // a map was full, and it was said
	running bool     // Run is there to remove devices
	doomed  []netlink.Link
	paused  time.Duration // the last Apply or Yield for others' sake
	counted []Port        // what Traffic shows, with indexes
	indexes map[string]uint32
	outer   outer

	// What Apply left; tables is nil until the host was read.
	tables map[state.NetworkID]applied
	has    contents
	// over: something found no room, so that all of the plan is to be tried again.
	over bool
	// sound are the devices that were seen to be set up and to carry the program.
	sound map[string]soundness
}

// soundness is which device of a name it was, and what MTU its twin had.
type soundness struct {
	index, mtu uint32
	tcx        bool // it is there by TCX
}

// applied is what a network was compiled from, and the index that its device had then.
type applied struct {
	from   *plan.Network
	device uint32
	local  Table
}

// New returns a Path for the network namespace of this process. Nothing is read or changed yet. log
// may be nil.
func New(log *slog.Logger) *Path {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Path{log: log, newer: true, drift: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
}

// Drift delivers when twins, programs or maps are no longer as [Path.Apply] left them.
func (p *Path) Drift() <-chan struct{} { return p.drift }

// Run removes twins in the background and looks for drift until ctx ends. Once at a time. What else is
// on the host stays; it returns when what was to be removed is gone.
func (p *Path) Run(ctx context.Context) error {
	p.mu.Lock()
	p.running = true
	p.mu.Unlock()
	timer, card := time.NewTimer(verifyEvery), time.NewTimer(verifyEvery)
	defer timer.Stop()
	defer card.Stop()
	for looks := 1; ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-p.wake:
			p.sweep(ctx)
		case <-timer.C:
			began := time.Now()
			p.verify(p.look(looks))
			looks++
			timer.Reset(max(verifyEvery, restFactor*time.Since(began)))
		case <-card.C:
			began := time.Now()
			p.verify(p.cardIntact)
			card.Reset(max(verifyEvery, restFactor*time.Since(began)))
		}
	}
	p.mu.Lock()
	p.running = false
	p.mu.Unlock()
	p.sweep(ctx)
	return nil
}

// sweep removes all devices that wait for it.
func (p *Path) sweep(ctx context.Context) {
	for more := true; more; {
		var held time.Duration
		more, held = p.reap()
		pause(ctx, held)
	}
}

// look returns what the n-th look is at.
func (p *Path) look(n int) func() (bool, error) {
	if n%mapsEvery == 0 {
		return p.intact
	}
	return p.devicesIntact
}

// reap removes one device that waits for it, and reports whether more do. While there is no fast path it says how long
// it held the kernel's lock of all devices, too: then packets go by ovs-vswitchd, see [pause].
func (p *Path) reap() (more bool, held time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.doomed) == 0 {
		return false, 0
	}
	l := p.doomed[0]
	p.doomed = p.doomed[1:]
	began := time.Now()
	if err := deleteDevice(l); err != nil {
		p.log.Warn("a twin was not removed; it is tried again with the next change", "err", err)
	}
	if p.program == nil {
		held = time.Since(began)
	}
	return len(p.doomed) > 0, held
}

// verify looks, tells of drift, and has the next Apply read everything.
func (p *Path) verify(intact func() (bool, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tables == nil || len(p.has.ports) == 0 {
		return
	}
	same, err := intact()
	if err == nil && same {
		return
	}
	p.forget()
	select {
	case p.drift <- struct{}{}:
	default:
	}
}

// devicesIntact is the part of intact that is about twins and programs.
func (p *Path) devicesIntact() (bool, error) {
	have, err := readDevices()
	if err != nil {
		return false, err
	}
	id, err := p.program.id()
	if err != nil {
		return false, err
	}
	names := have.indexes()
	for _, port := range p.counted {
		at := p.indexes[port.Device]
		if port.Kind == Tunnel && at != have.index(port.Device) {
			return false, nil // it is the switch's, which does not tell
		}
		if at == 0 || at != have.index(port.Device) && !port.Kind.twin() {
			continue // made anew: the next Apply is on its way
		}
		if !have.up(port.Device) && port.Kind.twin() {
			return false, nil
		}
		if carries, err := have.carries(port.Device, id, p.sound[port.Device].tcx); err != nil || !carries {
			return false, err
		}
		if port.Kind.twin() {
			l, _ := have.get(port.Device)
			if !have.up(names[l.Attrs().ParentIndex]) {
				return false, nil
			}
		}
	}
	return p.outer.intact(have, id, p.tcx)
}

// intact reports whether twins, programs and maps are as Apply left them. Devices that are gone are not
// its concern: who made them tells.
func (p *Path) intact() (bool, error) {
	if same, err := p.devicesIntact(); err != nil || !same {
		return false, err
	}
	now, err := p.program.read()
	if err != nil {
		return false, err
	}
	return now.equal(p.has), nil
}

// cardIntact is the part of intact that is about what others may do to this host at any time, and does
// not take long however many containers there are.
func (p *Path) cardIntact() (bool, error) {
	have, err := askDevices()
	if err != nil {
		return false, err
	}
	defer have.close()
	id, err := p.program.id()
	if err != nil {
		return false, err
	}
	return p.outer.intact(have, id, p.tcx)
}

// forget makes the next Apply start from what is.
func (p *Path) forget() {
	p.tables, p.has, p.sound = nil, contents{}, nil
}

// Apply makes the fast path equal to the plan. Once it has returned nothing passes that the plan does
// not have; what failed goes through the switch. It returns what it did. While [Path.Run] runs, twins
// are removed after Apply said that they are, some 25 ms for each, and as long between two while there is no fast path.
func (p *Path) Apply(ctx context.Context, h *plan.Host) ([]plan.Step, plan.Found, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = 0
	r := round{path: p, host: h}
	err := r.apply(ctx)
	if err != nil {
		p.forget()
	}
	return r.steps, plan.Found{}, err
}

// Purge removes programs and twins, whoever made them when. The maps go with them.
func (p *Path) Purge(ctx context.Context) ([]plan.Step, error) {
	steps, _, err := p.Apply(ctx, &plan.Host{})
	return steps, err
}

// Traffic returns what came in by each device, in the order of devices; nothing while the fast path is
// off.
func (p *Path) Traffic() []plan.Traffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []plan.Traffic
	for _, port := range p.counted {
		if port.Kind.twin() || p.program == nil {
			continue
		}
		own, back := p.program.count(p.indexes[port.Device]), p.program.count(p.indexes[port.Other])
		n := own.Packets
		all = append(all, plan.Traffic{
			Device: port.Device, Network: port.Network, Endpoint: port.Endpoint,
			Fast: n[bpf.FastReasonFAST], Slow: n[bpf.FastReasonSLOW] + n[bpf.FastReasonUNKNOWN],
			Refused: n[bpf.FastReasonREFUSED], Broken: n[bpf.FastReasonBROKEN],
			Returned: back.Packets[bpf.FastReasonRETURN], Bytes: own.Bytes,
		})
	}
	return all
}

// round is one Apply.
type round struct {
	path  *Path
	host  *plan.Host
	have  *devices
	steps []plan.Step
}

func (r *round) did(op, format string, args ...any) {
	r.steps = append(r.steps, plan.Step{Op: op, What: fmt.Sprintf(format, args...)})
}

func (r *round) apply(ctx context.Context) error {
	p := r.path
	if !r.host.FastPath && p.tables != nil && p.program == nil {
		return nil // off, and was so
	}
	var err error
	if p.tables == nil || !r.host.FastPath {
		r.have, err = readDevices()
	} else {
		r.have, err = askDevices()
	}
	if err != nil {
		return err
	}
	defer r.have.close()
	if p.tables == nil {
		if err := r.read(); err != nil {
			return err
		}
	}
	if !r.host.FastPath {
		return r.off(ctx)
	}
	if err := r.load(); err != nil {
		return err
	}
	var errs []error
	twins := r.twins()
	for _, t := range twins {
		if err := ctx.Err(); err != nil {
			return err
		}
		if t.Twin != (plan.Twin{}) {
			errs = append(errs, r.twin(t))
		}
	}
	errs = append(errs, r.fill()...)
	for _, t := range twins {
		errs = append(errs, r.attach(t.device, t.mtu))
		if t.Slow != "" {
			errs = append(errs, r.attach(t.Slow, t.mtu))
		}
	}
	r.listen()
	errs = append(errs, r.clear(ctx, twins))
	return errors.Join(errs...)
}

// pause leaves the kernel's lock of all devices to others for as long as it was held. Taking a program or a device
// away holds it for a grace period of RCU. ovs-vswitchd asks for it several times while it changes ports, and a turn
// later it has it: while it waits, what comes in by its ports finds the queues of their sockets full.
func pause(ctx context.Context, held time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(held):
	}
}

// pause is [pause] in moderation: with thousands of devices it is done sooner without. p.mu is held.
func (p *Path) pause(ctx context.Context, held time.Duration) {
	if p.paused < pausedMax {
		p.paused += held
		pause(ctx, held)
	}
}

// load loads the program, unless there is one.
func (r *round) load() error {
	p := r.path
	if p.program != nil {
		return nil
	}
	peer, err := canPeer()
	if err != nil {
		return err
	}
	if p.program, err = load(peer, p.room); err != nil {
		return err
	}
	r.did("load", "program meshnet_fast")
	return nil
}

// read takes over what an earlier daemon left: the first program attached that is this one, and what its
// maps hold.
func (r *round) read() error {
	p := r.path
	p.has, p.tcx = empty(), p.newer && hasTCX()
	if p.program == nil {
		found, err := find(r.have)
		if err != nil {
			return err
		}
		p.program = found
	}
	if p.program != nil {
		var err error
		if p.has, err = p.program.read(); err != nil {
			return err
		}
	}
	p.sound = map[string]soundness{}
	p.over = true // what is in the maps came from nobody knows which plan
	p.tables = map[state.NetworkID]applied{}
	return nil
}

// pair is a device of the plan and its twin, if it is to have one.
type pair struct {
	device string
	plan.Twin
	mtu uint32
}

// twins returns the devices of the plan that are there, with their twins, in the order of devices.
func (r *round) twins() []pair {
	var out []pair
	add := func(p pair) {
		if r.have.index(p.device) != 0 {
			out = append(out, p)
		}
	}
	if r.host.Trunk != "" {
		add(pair{device: r.host.Trunk})
	}
	if g := r.host.Gateway; g != nil {
		add(pair{g.Port, g.Twin, g.MTU})
	}
	for _, n := range r.host.Networks {
		if n.Device != nil {
			add(pair{n.Device.Name, n.Device.Twin, n.Device.MTU})
		}
		for _, p := range n.Ports {
			if p.Link != "" {
				add(pair{p.Link, p.Twin, n.MTU})
			}
		}
	}
	slices.SortFunc(out, func(a, b pair) int { return cmp.Compare(a.device, b.device) })
	return out
}

// off empties the maps and removes programs and twins of everybody.
func (r *round) off(ctx context.Context) error {
	p := r.path
	var errs []error
	if p.program != nil {
		want := empty()
		errs = r.remove(want, everything(p.has.members, nil))
	}
	p.outer.port, p.outer.lack = Port{}, ""
	errs = append(errs, r.clear(ctx, nil))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if p.program != nil {
		p.program.close()
		p.program = nil
	}
	p.tables, p.counted = map[state.NetworkID]applied{}, nil
	return nil
}
