package netns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"meshnet/plan"
	"meshnet/state"
)

// Config is what [New] needs.
type Config struct {
	// RunDir holds the note of what this host's settings were; goes with a reboot, as they do. Empty:
	// settings of the host itself cannot be changed.
	RunDir string
	Log    *slog.Logger // default: nothing is logged
}

// Links makes the network devices of this host equal to a plan.
type Links struct {
	log      *slog.Logger
	drift    chan struct{}
	removals *removals
	last     atomic.Pointer[watched]
	mirror   mirror
	note     string
	silenced string // note of the devices that answer no ARP for others

	mu sync.Mutex // held by Apply, Purge and the look at what is; guards the following
	// clean are containers that were found as planned, and of which nothing was heard since.
	clean map[plan.Sandbox]tidy
	// networks are the plans that the entries of VXLAN devices were made from.
	networks map[state.NetworkID]*plan.Network
	walled   walled
	read     time.Time // when everything was last read
}

// tidy is what was found in a container.
type tidy struct {
	links []plan.Link
	hosts []int    // indexes of the hosts' ends
	names []string // of the interfaces inside
}

// walled is what firewall and gateway were made from.
type walled struct {
	firewall plan.Firewall
	gateway  *plan.Gateway
	nics     []string
}

// readEvery is how often everything is read, also what nothing was heard of.
const readEvery = 5 * time.Minute

// New returns Links for the network namespace of this process. Nothing is read or changed yet.
func New(c Config) (*Links, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	l := &Links{
		log: c.Log, drift: make(chan struct{}, 1), removals: newRemovals(),
		clean: map[plan.Sandbox]tidy{}, networks: map[state.NetworkID]*plan.Network{},
	}
	l.mirror.forget()
	if c.RunDir != "" {
		l.note, l.silenced = filepath.Join(c.RunDir, "forwarding"), filepath.Join(c.RunDir, "arp_ignore")
	}
	return l, nil
}

// Drift delivers when something of the last plan, or the addresses of its underlay device, is no longer
// as [Links.Apply] left it: devices, forwarding entries, what is inside containers, routes, rules and
// firewall.
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
	if time.Since(l.read) > readEvery {
		l.read = time.Now()
		l.mirror.forget()
		clear(l.clean)
	}
	for _, link := range r.stale() {
		r.remove(link)
	}
	for id := range l.networks {
		if h.Networks[id] == nil {
			delete(l.networks, id)
		}
	}
	for _, n := range sorted(h.Networks) {
		if n.Device == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			r.fail(err)
			break
		}
		err := r.vxlan(n, l.networks[n.ID], !h.TSO)
		r.fail(err)
		delete(l.networks, n.ID)
		if err == nil {
			l.networks[n.ID] = n
		}
	}
	for _, group := range bySandbox(h.Links) {
		if err := ctx.Err(); err != nil {
			r.fail(err)
			break
		}
		r.sandbox(group)
	}
	l.surround(r, h)
	r.fail(l.removals.settle())
	now, err := look(h, r.boxes(h))
	r.fail(err)
	l.last.Store(now)
	for box := range l.clean {
		if !slices.ContainsFunc(h.Links, func(k plan.Link) bool { return k.Sandbox == box }) {
			delete(l.clean, box)
		}
	}
	return r.steps, r.found, errors.Join(r.errs...)
}

// surround makes gateway and firewall as planned, where it is not known that they are.
func (l *Links) surround(r *round, h *plan.Host) {
	now := walled{h.Firewall, h.Gateway, h.NICs}
	same := reflect.DeepEqual(l.walled, now)
	l.walled = now
	if !same || !l.mirror.holds(&l.mirror.gateway) {
		// What is changed meanwhile is heard of and looked at.
		l.mirror.set(&l.mirror.gateway, true)
		if err := r.gateway(h.Gateway); err != nil {
			l.mirror.set(&l.mirror.gateway, false)
			r.fail(err)
		}
	}
	if !same || !l.mirror.holds(&l.mirror.firewall) {
		l.mirror.set(&l.mirror.firewall, true)
		if err := r.wall(h); err != nil {
			l.mirror.set(&l.mirror.firewall, false)
			r.fail(err)
		}
	}
}

// wall makes our firewall as planned, others' let pass what goes through the gateway, and NICs silent.
func (r *round) wall(h *plan.Host) error {
	name := ""
	if h.Gateway != nil {
		name = h.Gateway.Name
	}
	return errors.Join(r.firewall(h.Firewall, h.Gateway), r.letPass(name), r.silence(h.NICs))
}

// boxes returns the numbers of the namespaces that the links of a plan lead to.
func (r *round) boxes(h *plan.Host) map[int]bool {
	out := make(map[int]bool, len(h.Links))
	for _, l := range h.Links {
		if link, ok := r.have[l.Name]; ok && link.Attrs().NetNsID >= 0 {
			out[link.Attrs().NetNsID] = true
		}
	}
	return out
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
	r.fail(r.gateway(nil))
	r.fail(r.wall(&plan.Host{}))
	r.fail(r.restoreForwarding())
	l.mirror.forget()
	r.fail(l.removals.drain())
	return r.steps, errors.Join(r.errs...)
}

// round is one Apply: the plan, what was there when it began, and what became of it.
type round struct {
	space
	*Links
	want  map[string]bool         // names of devices in the plan
	have  map[string]netlink.Link // all devices of the host
	found plan.Found
	errs  []error
}

// begin reads what is there. What the plan wants and an earlier one did not is saved from removal.
func (l *Links) begin(h *plan.Host) (*round, error) {
	r := &round{Links: l, want: names(h), have: make(map[string]netlink.Link)}
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
	err := r.change(func() error { return deleteDevice(link.Attrs().Index) })
	if err != nil {
		return err
	}
	r.did("remove", "%s %s", link.Type(), link.Attrs().Name)
	delete(r.have, link.Attrs().Name)
	return nil
}

// create makes a device. A device of an earlier plan that still waits for its removal may be in the
// way: then it goes first.
func (r *round) create(link netlink.Link) (netlink.Link, error) {
	err := r.change(func() error { return r.h.LinkAdd(link) })
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
	if h.Gateway != nil {
		out[h.Gateway.Name] = true
		if !h.Gateway.Tap() {
			out[h.Gateway.Port] = true
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
