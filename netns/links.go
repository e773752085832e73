package netns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"

	"meshnet/plan"
	"meshnet/state"
)

// Config is what [New] needs.
type Config struct {
	Log *slog.Logger // default: nothing is logged
}

// Links makes the network devices of this host equal to a plan.
type Links struct {
	log      *slog.Logger
	drift    chan struct{}
	removals *removals
	last     atomic.Pointer[watched]

	mu sync.Mutex // held by Apply, Purge and the look at what is
}

// New returns Links for the network namespace of this process. Nothing is read or changed yet.
func New(c Config) (*Links, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Links{log: c.Log, drift: make(chan struct{}, 1), removals: newRemovals()}, nil
}

// Drift delivers when devices of the last plan, or the addresses of its underlay device, are no
// longer as [Links.Apply] left them. What happens inside containers and to forwarding entries is not
// seen.
func (l *Links) Drift() <-chan struct{} { return l.drift }

// Run removes devices in the background and watches for drift until ctx ends. Once at a time. It
// returns when what was to be removed is gone.
func (l *Links) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		l.removals.run(ctx, func(err error) {
			l.log.Warn("a device was not removed; it is tried again with the next change", "err", err)
		})
	})
	l.watch(ctx)
	wg.Wait()
	return nil
}

// Apply makes the devices of this host equal to the plan. It returns what it changed, the names of
// interfaces in containers, and the endpoints whose namespace is gone; what failed does not keep it
// from the rest. While [Links.Run] runs, devices may still be there for some 25 ms after Apply said
// that they are removed.
func (l *Links) Apply(ctx context.Context, h *plan.Host) ([]plan.Step, plan.Found, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.begin(h)
	if err != nil {
		return nil, plan.Found{}, err
	}
	defer r.close()
	for _, link := range r.stale() {
		r.remove(link)
	}
	for _, n := range sorted(h.Networks) {
		if n.Device == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			r.fail(err)
			break
		}
		r.fail(r.vxlan(n, !h.TSO))
	}
	for _, group := range bySandbox(h.Links) {
		if err := ctx.Err(); err != nil {
			r.fail(err)
			break
		}
		r.sandbox(group)
	}
	r.fail(r.firewall(h.Firewall))
	r.fail(l.removals.settle())
	now, err := look(names(h), h.Device)
	r.fail(err)
	l.last.Store(now)
	return r.steps, r.found, errors.Join(r.errs...)
}

// Purge removes every device and table on this host that bears our mark, whoever made it when.
func (l *Links) Purge(ctx context.Context) ([]plan.Step, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.begin(&plan.Host{})
	if err != nil {
		return nil, err
	}
	defer r.close()
	l.last.Store(nil)
	for _, link := range r.stale() {
		if err := ctx.Err(); err != nil {
			r.fail(err)
			break
		}
		r.remove(link)
	}
	r.fail(r.firewall(plan.Firewall{}))
	r.fail(l.removals.drain())
	return r.steps, errors.Join(r.errs...)
}

// round is one Apply: the plan, what was there when it began, and what became of it.
type round struct {
	space
	removals *removals
	want     map[string]bool         // names of devices in the plan
	have     map[string]netlink.Link // all devices of the host
	found    plan.Found
	errs     []error
}

// begin reads what is there. What the plan wants and an earlier one did not is saved from removal.
func (l *Links) begin(h *plan.Host) (*round, error) {
	r := &round{removals: l.removals, want: names(h), have: make(map[string]netlink.Link)}
	r.found.IfNames = make(map[state.EndpointID]string)
	for name := range r.want {
		l.removals.keep(name)
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	links, err := dump(r.h.LinkList)
	if err != nil {
		r.close()
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, link := range links {
		r.have[link.Attrs().Name] = link
	}
	return r, nil
}

func (r *round) fail(err error) {
	if err != nil {
		r.errs = append(r.errs, err)
	}
}

// stale returns the devices that bear our mark and are not in the plan, in the order of names.
func (r *round) stale() []netlink.Link {
	var out []netlink.Link
	for _, name := range slices.Sorted(maps.Keys(r.have)) {
		if link := r.have[name]; ours(link.Attrs()) && !r.want[name] {
			out = append(out, link)
		}
	}
	return out
}

func (r *round) remove(link netlink.Link) {
	a := link.Attrs()
	if r.removals.add(removal{a.Index, a.Name, a.NetNsID}) {
		r.did("remove", "%s %s", link.Type(), a.Name)
	}
}

// removeNow removes a device and waits until it is gone.
func (r *round) removeNow(link netlink.Link) error {
	r.did("remove", "%s %s", link.Type(), link.Attrs().Name)
	delete(r.have, link.Attrs().Name)
	return deleteDevice(link.Attrs().Index)
}

// create makes a device. A device of an earlier plan that still waits for its removal may be in the
// way: then it goes first.
func (r *round) create(link netlink.Link) (netlink.Link, error) {
	err := r.h.LinkAdd(link)
	if exists(err) {
		if err := r.removals.drain(); err != nil {
			return nil, err
		}
		err = r.h.LinkAdd(link)
	}
	if err != nil {
		return nil, err
	}
	made, err := r.h.LinkByName(link.Attrs().Name)
	if err != nil {
		return nil, fmt.Errorf("read it back: %w", err)
	}
	r.have[made.Attrs().Name] = made
	return made, nil
}

// names returns the names of all devices of a plan.
func names(h *plan.Host) map[string]bool {
	out := make(map[string]bool, len(h.Links))
	for _, l := range h.Links {
		out[l.Name] = true
	}
	for _, n := range h.Networks {
		if n.Device != nil {
			out[n.Device.Name] = true
		}
	}
	return out
}

// sorted returns networks in the order of their ids.
func sorted(networks map[state.NetworkID]*plan.Network) []*plan.Network {
	out := make([]*plan.Network, 0, len(networks))
	for _, id := range slices.Sorted(maps.Keys(networks)) {
		out = append(out, networks[id])
	}
	return out
}

// bySandbox groups links by the namespace they lead to, in the order of the first of each. In a group
// those that insist on a name come first, and those that want any come last.
func bySandbox(links []plan.Link) [][]plan.Link {
	var out [][]plan.Link
	at := make(map[plan.Sandbox]int)
	for _, l := range links {
		i, ok := at[l.Sandbox]
		if !ok {
			i = len(out)
			at[l.Sandbox] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], l)
	}
	for _, group := range out {
		slices.SortStableFunc(group, func(a, b plan.Link) int { return cmp.Compare(freedom(a), freedom(b)) })
	}
	return out
}

// freedom is how free the choice of a link's name is.
func freedom(l plan.Link) int {
	switch {
	case l.IfName != "":
		return 0
	case l.Prefer != "":
		return 1
	}
	return 2
}
