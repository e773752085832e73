package fastpath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"meshnet/fastpath/bpf"
	"meshnet/plan"
	"meshnet/state"
)

// verifyEvery is how often filters and maps are compared with what Apply left: nothing tells when
// somebody changes them.
const verifyEvery = 2 * time.Second

// Path makes filters, twins and maps of this host equal to a plan.
type Path struct {
	log   *slog.Logger
	drift chan struct{}

	mu      sync.Mutex
	program *program // nil: not loaded
	full    bool     // a map was full, and it was said

	// What Apply left; nil maps until the host was read.
	tables  map[state.NetworkID]applied
	ports   map[uint32]bpf.FastPort
	members map[bpf.FastMember]bpf.FastWay
}

// applied is the table of a network, what it was compiled from, and the indexes its devices had.
type applied struct {
	from    *plan.Network
	indexes map[string]uint32
	table   Table
}

// New returns a Path for the network namespace of this process. Nothing is read or changed yet. log
// may be nil.
func New(log *slog.Logger) *Path {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Path{log: log, drift: make(chan struct{}, 1)}
}

// Drift delivers when twins, filters or maps are no longer as [Path.Apply] left them.
func (p *Path) Drift() <-chan struct{} { return p.drift }

// Run looks for drift until ctx ends. What is on the host stays.
func (p *Path) Run(ctx context.Context) error {
	tick := time.NewTicker(verifyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.verify()
		}
	}
}

// verify tells of drift, and has the next Apply read everything.
func (p *Path) verify() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tables == nil || len(p.ports) == 0 {
		return
	}
	same, err := p.intact()
	if err == nil && same {
		return
	}
	p.forget()
	select {
	case p.drift <- struct{}{}:
	default:
	}
}

// intact reports whether twins, filters and maps are as Apply left them. Devices that are gone are not
// its concern: who made them tells.
func (p *Path) intact() (bool, error) {
	have, err := readDevices()
	if err != nil {
		return false, err
	}
	id, err := p.program.id()
	if err != nil {
		return false, err
	}
	for _, t := range p.tables {
		for _, pair := range pairs(t.from, have) {
			if t.indexes[pair.device] != have.index(pair.device) {
				continue // made anew: the next Apply is on its way
			}
			for _, name := range []string{pair.device, pair.Slow} {
				if carries, err := have.carries(name, id); err != nil || !carries {
					return false, err
				}
			}
			if !have.up(pair.Slow) || !have.up(pair.Port) {
				return false, nil
			}
		}
	}
	ports, members, err := p.program.read()
	if err != nil {
		return false, err
	}
	return maps.Equal(ports, p.ports) && maps.Equal(members, p.members), nil
}

// forget makes the next Apply start from what is.
func (p *Path) forget() { p.tables, p.ports, p.members = nil, nil, nil }

// Apply makes the fast path equal to the plan. Once it has returned nothing passes that the plan does
// not have; what failed goes through the switch. It returns what it did.
func (p *Path) Apply(ctx context.Context, h *plan.Host) ([]plan.Step, plan.Found, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := round{path: p, host: h}
	err := r.apply(ctx)
	if err != nil {
		p.forget()
	}
	return r.steps, plan.Found{}, err
}

// Purge removes filters and twins, whoever made them when. The maps go with them.
func (p *Path) Purge(ctx context.Context) ([]plan.Step, error) {
	steps, _, err := p.Apply(ctx, &plan.Host{})
	return steps, err
}

// round is one Apply.
type round struct {
	path  *Path
	host  *plan.Host
	have  devices
	steps []plan.Step
}

func (r *round) did(op, format string, args ...any) {
	r.steps = append(r.steps, plan.Step{Op: op, What: fmt.Sprintf(format, args...)})
}

func (r *round) apply(ctx context.Context) error {
	p := r.path
	if !r.host.FastPath && p.tables != nil && len(p.ports) == 0 {
		return nil // off, and was so
	}
	var err error
	if r.have, err = readDevices(); err != nil {
		return err
	}
	if p.tables == nil {
		if err := r.read(); err != nil {
			return err
		}
	}
	if !r.host.FastPath {
		return r.off()
	}
	if p.program == nil {
		peer, err := canPeer()
		if err != nil {
			return err
		}
		if p.program, err = load(peer); err != nil {
			return err
		}
		r.did("load", "program meshnet_fast")
	}
	var errs []error
	twins := r.twins()
	for _, t := range twins {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, r.twin(t))
	}
	errs = append(errs, r.fill()...)
	for _, t := range twins {
		errs = append(errs, r.attach(t.device), r.attach(t.Slow))
	}
	errs = append(errs, r.clear(twins))
	return errors.Join(errs...)
}

// read takes over what an earlier daemon left: the program of the first filter that is this one, and
// what its maps hold.
func (r *round) read() error {
	p := r.path
	p.tables, p.ports, p.members = map[state.NetworkID]applied{}, map[uint32]bpf.FastPort{}, map[bpf.FastMember]bpf.FastWay{}
	if p.program == nil {
		found, err := find(r.have)
		if err != nil || found == nil {
			return err
		}
		p.program = found
	}
	var err error
	p.ports, p.members, err = p.program.read()
	return err
}

// pair is a device of the plan and its twin.
type pair struct {
	device string
	plan.Twin
	mtu uint32
}

// pairs returns the devices of a network that are there, with their twins.
func pairs(n *plan.Network, have devices) []pair {
	var out []pair
	if n.Device != nil && have.index(n.Device.Name) != 0 {
		out = append(out, pair{n.Device.Name, n.Device.Twin, n.Device.MTU})
	}
	for _, p := range n.Ports {
		if p.Link != "" && have.index(p.Link) != 0 {
			out = append(out, pair{p.Link, p.Twin, n.MTU})
		}
	}
	return out
}

// twins returns the devices of the plan that are there, with their twins, in the order of devices.
func (r *round) twins() []pair {
	var out []pair
	for _, n := range r.host.Networks {
		out = append(out, pairs(n, r.have)...)
	}
	slices.SortFunc(out, func(a, b pair) int { return cmp.Compare(a.device, b.device) })
	return out
}

// fill makes the maps hold the plan: first out with what it has not, then in with the rest.
func (r *round) fill() []error {
	p := r.path
	ports := map[uint32]bpf.FastPort{}
	members := map[bpf.FastMember]bpf.FastWay{}
	tables := make(map[state.NetworkID]applied, len(r.host.Networks))
	for id, n := range r.host.Networks {
		t := r.table(id, n)
		tables[id] = t
		for _, port := range t.table.Ports {
			if at, other := t.indexes[port.Device], t.indexes[port.Other]; at != 0 && other != 0 {
				ports[at] = port.encode(other)
			}
		}
		for who, way := range t.table.Ways {
			if at := t.indexes[way.Device]; at != 0 {
				members[who.encode()] = way.encode(at)
			}
		}
	}
	errs := r.remove(ports, members)
	errs = append(errs, r.put(ports, members)...)
	p.tables = tables
	return errs
}

// table returns the table of a network with the indexes of its devices.
func (r *round) table(id state.NetworkID, n *plan.Network) applied {
	t, ok := r.path.tables[id]
	if !ok || t.from != n {
		t = applied{from: n, table: Compile(n)}
	}
	t.indexes = make(map[string]uint32, len(t.table.Ports))
	for _, port := range t.table.Ports {
		t.indexes[port.Device] = r.have.index(port.Device)
	}
	return t
}

func (r *round) remove(ports map[uint32]bpf.FastPort, members map[bpf.FastMember]bpf.FastWay) (errs []error) {
	p := r.path
	for _, who := range sortedMembers(p.members) {
		if _, ok := members[who]; ok {
			continue
		}
		if err := p.program.members.Delete(who); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("take %x off the fast path: %w", who.Mac, err))
			continue
		}
		delete(p.members, who)
		r.did("remove", "fast way %d %x", who.Vni, who.Mac)
	}
	for _, index := range slices.Sorted(maps.Keys(p.ports)) {
		if _, ok := ports[index]; ok {
			continue
		}
		if err := p.program.ports.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("take device %d off the fast path: %w", index, err))
			continue
		}
		p.program.counts.Delete(index) // it may have none
		delete(p.ports, index)
		r.did("remove", "fast port %d", index)
	}
	return errs
}

func (r *round) put(ports map[uint32]bpf.FastPort, members map[bpf.FastMember]bpf.FastWay) (errs []error) {
	p := r.path
	for _, index := range slices.Sorted(maps.Keys(ports)) {
		want := ports[index]
		if have, ok := p.ports[index]; ok && have == want {
			continue
		}
		err := p.program.counts.Update(index, make([]bpf.FastCount, ebpf.MustPossibleCPU()), ebpf.UpdateNoExist)
		if err == nil || errors.Is(err, ebpf.ErrKeyExist) {
			err = p.program.ports.Put(index, want)
		}
		if err != nil {
			errs = append(errs, r.overflow(err, fmt.Sprintf("device %d", index)))
			continue
		}
		p.ports[index] = want
		r.did("set", "fast port %d", index)
	}
	for _, who := range sortedMembers(members) {
		want := members[who]
		if have, ok := p.members[who]; ok && have == want {
			continue
		}
		if err := p.program.members.Put(who, want); err != nil {
			errs = append(errs, r.overflow(err, fmt.Sprintf("%x", who.Mac)))
			continue
		}
		p.members[who] = want
		r.did("set", "fast way %d %x", who.Vni, who.Mac)
	}
	return errs
}

// overflow makes of a full map what it is: more for the switch to do. It is said once.
func (r *round) overflow(err error, what string) error {
	if !isFull(err) {
		return fmt.Errorf("put %s on the fast path: %w", what, err)
	}
	if !r.path.full {
		r.path.full = true
		r.path.log.Warn("the fast path is full; what does not fit goes through the switch", "first", what)
	}
	return nil
}

// off empties the maps and removes filters and twins of everybody.
func (r *round) off() error {
	p := r.path
	var errs []error
	if p.program != nil {
		errs = r.remove(nil, nil)
	}
	errs = append(errs, r.clear(nil))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if p.program != nil {
		p.program.close()
		p.program = nil
	}
	p.tables = map[state.NetworkID]applied{}
	return nil
}
