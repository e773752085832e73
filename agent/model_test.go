package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/plan"
	"meshnet/state"
)

// segment is a network in memory: what one mesh says, all others hear, each a little later.
type segment struct {
	delay time.Duration

	mu     sync.Mutex
	meshes []*mesh
}

// mesh is a model of mesh.Node: a real document, addresses from a range of its own, no failures
// unless told.
type mesh struct {
	segment *segment
	self    state.NodeID
	in      chan state.Out

	mu      sync.Mutex
	doc     *state.Doc
	wishes  map[state.EndpointID]state.Attach
	given   []state.Attach // what Wishes last returned: shared with all who asked
	wake    chan struct{}
	next    byte
	applied uint64
	host    *state.View // as of the last Applied
	fail    func(state.Wish) error
	deaf    bool // never says that it reached anything
	doing   int  // wishes carried out
}

func (s *segment) join(id state.NodeID) *mesh {
	m := &mesh{
		segment: s, self: id, in: make(chan state.Out, 10_000), doc: state.NewDoc(id, 1, crdt.Actor(id)),
		wishes: map[state.EndpointID]state.Attach{}, wake: make(chan struct{}),
	}
	s.meshes = append(s.meshes, m)
	return m
}

// announce writes the node's record, once all have joined.
func (m *mesh) announce(t *testing.T) {
	t.Helper()
	if err := m.change(state.PutNode{Node: state.Node{
		ID: m.self, Name: name(m.self), Addr: underlay(m.self), GossipPort: 17946, TunnelPort: 14789,
		Transport: state.KernelVXLAN, MTU: 1500,
	}}); err != nil {
		t.Fatal(err)
	}
}

func name(id state.NodeID) string         { return fmt.Sprintf("h%d", id) }
func underlay(id state.NodeID) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 7, byte(id)}) }

// run delivers what others say until ctx ends.
func (m *mesh) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case out := <-m.in:
			time.Sleep(m.segment.delay)
			m.mu.Lock()
			m.doc.Merge(out)
			m.woken()
			m.mu.Unlock()
		}
	}
}

// woken tells watchers. The caller holds mu.
func (m *mesh) woken() {
	close(m.wake)
	m.wake = make(chan struct{})
}

// change writes to the document and tells the others.
func (m *mesh) change(cs ...state.Change) error {
	m.mu.Lock()
	out, err := m.doc.Apply(cs...)
	m.woken()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.segment.mu.Lock()
	defer m.segment.mu.Unlock()
	for _, other := range m.segment.meshes {
		if other != m {
			other.in <- out
		}
	}
	return nil
}

func (m *mesh) Lost(context.Context) []state.Lost { return nil }

func (m *mesh) Quarantined(context.Context) []state.Quarantined { return nil }

func (m *mesh) Do(ctx context.Context, w state.Wish) (state.Outcome, error) {
	m.mu.Lock()
	fail := m.fail
	m.doing++
	m.mu.Unlock()
	if fail != nil {
		if err := fail(w); err != nil {
			return state.Outcome{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return state.Outcome{}, err
	}
	switch w := w.(type) {
	case state.Create:
		return m.create(w)
	case state.Remove:
		return m.outcome(state.Outcome{Network: w.Network}, m.change(state.RemoveNetwork{ID: w.Network, Force: w.Force}))
	case state.Attach:
		return m.attach(w)
	case state.Detach:
		m.mu.Lock()
		delete(m.wishes, w.ID)
		_, there := m.doc.View().Endpoint(w.ID)
		m.mu.Unlock()
		if !there {
			return m.outcome(state.Outcome{}, nil)
		}
		return m.outcome(state.Outcome{}, m.change(state.RemoveEndpoint(w)))
	case state.Name:
		m.mu.Lock()
		defer m.mu.Unlock()
		if a, ok := m.wishes[w.ID]; ok {
			a.Given = w.Given
			m.wishes[w.ID] = a
		}
		return state.Outcome{Endpoint: w.ID}, nil
	case state.Report:
		e, ok := m.View().Endpoint(w.ID)
		if !ok {
			return state.Outcome{}, state.ErrNoEndpoint
		}
		now := *e
		now.Down = w.Down
		return m.outcome(state.Outcome{}, m.change(state.PutEndpoint{Endpoint: now}))
	}
	return state.Outcome{}, errors.New("unknown wish")
}

func (m *mesh) outcome(o state.Outcome, err error) (state.Outcome, error) {
	o.Version = m.View().Version()
	return o, err
}

func (m *mesh) create(w state.Create) (state.Outcome, error) {
	def, err := w.Definition(nil)
	if err != nil {
		return state.Outcome{}, err
	}
	return m.outcome(state.Outcome{Network: def.ID()}, m.change(state.CreateNetwork{Def: def, At: 1, Force: w.Force}))
}

func (m *mesh) attach(w state.Attach) (state.Outcome, error) {
	view := m.View()
	m.mu.Lock()
	m.wishes[w.ID] = w
	m.mu.Unlock()
	if e, ok := view.Endpoint(w.ID); ok {
		if e.Container != w.Container {
			now := *e
			now.Container = w.Container
			if err := m.change(state.PutEndpoint{Endpoint: now}); err != nil {
				return state.Outcome{}, err
			}
		}
		return m.outcome(state.Outcome{Endpoint: w.ID, Addr: e.Addr, Again: true}, nil)
	}
	n, ok := view.Network(w.Network)
	if !ok {
		return state.Outcome{}, state.ErrNoNetwork
	}
	addr := w.Addr
	if !addr.IsValid() {
		m.mu.Lock()
		m.next++
		b := n.Def.Subnet.Addr().As4()
		b[2], b[3] = byte(m.self), m.next
		addr = netip.AddrFrom4(b)
		m.mu.Unlock()
	}
	err := m.change(state.PutEndpoint{Endpoint: state.Endpoint{
		ID: w.ID, Network: w.Network, Container: w.Container, Addr: addr, MAC: state.MACOf(addr), IfName: w.IfName,
		Names: w.Names, Alloc: 1, At: 1,
	}})
	return m.outcome(state.Outcome{Endpoint: w.ID, Addr: addr}, err)
}

func (m *mesh) View() *state.View {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.doc.View()
}

func (m *mesh) Watch(ctx context.Context) iter.Seq[*state.View] {
	return func(yield func(*state.View) bool) {
		for {
			m.mu.Lock()
			view, wake := m.doc.View(), m.wake
			m.mu.Unlock()
			if !yield(view) {
				return
			}
			select {
			case <-wake:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (m *mesh) Wishes() []state.Attach {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := slices.Collect(maps.Values(m.wishes))
	slices.SortFunc(list, func(a, b state.Attach) int { return cmp.Compare(a.ID, b.ID) })
	if slices.ContainsFunc(m.given, func(w state.Attach) bool { return w.ID == 0 }) {
		panic("somebody wrote to the slice of wishes, which is shared")
	}
	m.given = list
	return list
}

func (m *mesh) Applied(version uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied = version
	if v := m.doc.View(); v.Version() == version {
		m.host = v
	}
}

// equal returns the last version that the host was said to equal.
func (m *mesh) equal() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applied
}

// has reports whether the mesh said that its host knows an endpoint.
func (m *mesh) has(id state.EndpointID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.host == nil || m.deaf {
		return false
	}
	_, ok := m.host.Endpoint(id)
	return ok
}

func (m *mesh) Reached(ctx context.Context, id state.EndpointID) []state.NodeID {
	for {
		var waiting []state.NodeID
		view := m.View()
		if e, ok := view.Endpoint(id); ok {
			n, _ := view.Network(e.Network)
			m.segment.mu.Lock()
			for _, other := range m.segment.meshes {
				if other != m && n.HasMember(other.self) && !other.has(id) {
					waiting = append(waiting, other.self)
				}
			}
			m.segment.mu.Unlock()
		}
		if len(waiting) == 0 || ctx.Err() != nil {
			return waiting
		}
		sleep(ctx, time.Millisecond)
	}
}

func (m *mesh) Peers() []state.Peer {
	m.segment.mu.Lock()
	defer m.segment.mu.Unlock()
	var list []state.Peer
	for _, other := range m.segment.meshes {
		list = append(list, state.Peer{ID: other.self, Name: name(other.self), Addr: underlay(other.self), Self: other == m})
	}
	return list
}

func (m *mesh) Agreeing(context.Context) state.Agreement {
	own := m.View()
	a := state.Agreement{Digest: own.Digest(), Known: len(own.Nodes())}
	m.segment.mu.Lock()
	meshes := slices.Clone(m.segment.meshes)
	m.segment.mu.Unlock()
	for _, other := range meshes {
		a.Alive++
		if other.View().Digest() == a.Digest {
			a.Agreeing++
		} else {
			a.Differ = append(a.Differ, other.self)
		}
	}
	return a
}

func (m *mesh) Pending() []string  { return nil }
func (m *mesh) Warnings() []string { return nil }
func (m *mesh) Self() state.NodeID { return m.self }

// applier is a model of the host's links or switch: it has what the last plan wanted. Port numbers
// are the plan's, except those it has already.
type applier struct {
	drift chan struct{}

	mu      sync.Mutex
	note    func() // called by each Apply
	host    *plan.Host
	applies int
	yield   func() // called by each Yield
	began   []time.Time
	fail    error
	gone    map[state.EndpointID]bool
	first   string // name that an interface gets; empty: eth1
	ports   map[state.EndpointID]uint32
	devices map[state.NetworkID]uint32
}

func newApplier() *applier {
	return &applier{
		drift: make(chan struct{}, 1), gone: map[state.EndpointID]bool{},
		ports: map[state.EndpointID]uint32{}, devices: map[state.NetworkID]uint32{},
	}
}

func (a *applier) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (a *applier) Drift() <-chan struct{}        { return a.drift }
func (a *applier) Yield(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.yield != nil {
		a.yield()
	}
	return nil
}

func (a *applier) Apply(_ context.Context, h *plan.Host) ([]plan.Step, plan.Found, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.applies++
	if a.note != nil {
		a.note()
	}
	a.began = append(a.began, time.Now())
	if a.fail != nil {
		return nil, plan.Found{}, a.fail
	}
	a.host = h
	f := plan.Found{IfNames: map[state.EndpointID]string{}}
	for _, l := range h.Links {
		if a.gone[l.Endpoint] {
			f.Gone = append(f.Gone, l.Endpoint)
		}
		f.IfNames[l.Endpoint] = cmp.Or(l.IfName, l.Prefer, a.first, "eth1")
	}
	old, oldDevices := a.ports, a.devices
	a.ports, a.devices = map[state.EndpointID]uint32{}, map[state.NetworkID]uint32{}
	for _, n := range h.Networks {
		for _, p := range n.Ports {
			a.ports[p.Endpoint] = p.OFPort
			if o := old[p.Endpoint]; o != 0 {
				a.ports[p.Endpoint] = o
			}
		}
		if n.Device == nil {
			continue
		}
		a.devices[n.ID] = n.Device.OFPort
		if o := oldDevices[n.ID]; o != 0 {
			a.devices[n.ID] = o
		}
	}
	f.Ports, f.Devices = maps.Clone(a.ports), maps.Clone(a.devices)
	return []plan.Step{{Op: "apply", What: "all"}}, f, nil
}

func (a *applier) Found(context.Context) (plan.Found, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return plan.Found{Ports: maps.Clone(a.ports), Devices: maps.Clone(a.devices)}, a.fail
}

// links returns the names of containers' endpoints that have a link, sorted.
func (a *applier) links() []state.EndpointID {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []state.EndpointID
	if a.host != nil {
		for _, l := range a.host.Links {
			ids = append(ids, l.Endpoint)
		}
	}
	slices.Sort(ids)
	return ids
}

// plan returns the last plan that was applied, or nil.
func (a *applier) plan() *plan.Host {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.host
}

func (a *applier) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applies
}

func (a *applier) setFail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = err
}

// sandboxes is a model of containers: named, running or not, with labels. What happens to them is told
// unless it is deaf.
type sandboxes struct {
	mu    sync.Mutex
	inode map[string]uint64 // of the running ones
	last  uint64
	fail  error // of Open
	opens int
	deaf  bool // events are lost

	wants    map[string]Wants
	shown    map[string]string // names that differ from the one at first
	removed  map[string]bool
	tell     func(Happening)
	released []string // container and why, as Release was told
}

func newSandboxes() *sandboxes {
	return &sandboxes{inode: map[string]uint64{}, wants: map[string]Wants{}, shown: map[string]string{}, removed: map[string]bool{}}
}

func (s *sandboxes) start(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.inode[name] = s.last
	s.happen(Started, name)
}

func (s *sandboxes) stop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inode, name)
	s.happen(Ended, name)
}

func (s *sandboxes) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inode, name)
	s.removed[name] = true
	s.happen(Ended, name)
}

func (s *sandboxes) rename(name, shown string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown[name] = shown
	s.happen(Renamed, name)
}

// missed tells that events were lost.
func (s *sandboxes) missed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(Happening{All: true})
}

// happen tells an event. The caller holds mu.
func (s *sandboxes) happen(what What, name string) {
	if s.tell != nil && !s.deaf {
		s.tell(Happening{What: what, Container: s.container(name)})
	}
}

func (s *sandboxes) container(name string) Container {
	_, running := s.inode[name]
	return Container{
		Source: state.Source{Kind: state.SourceDocker, Docker: name + "-id"}, Name: cmp.Or(s.shown[name], name),
		Running: running, Wants: s.wants[name],
	}
}

func (s *sandboxes) Watch(ctx context.Context, tell func(Happening)) {
	s.mu.Lock()
	s.tell = tell
	s.mu.Unlock()
	tell(Happening{All: true})
	<-ctx.Done()
}

func (s *sandboxes) List(context.Context) ([]Container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	var all []Container
	for _, name := range slices.Sorted(maps.Keys(s.inode)) {
		all = append(all, s.container(name))
	}
	return all, nil
}

func (s *sandboxes) Release(_ context.Context, box plan.Sandbox, why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = append(s.released, fmt.Sprintf("%s %d %s", box.Path, box.Inode, why))
	return nil
}

// told returns what Release was told.
func (s *sandboxes) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.released)
}

func (s *sandboxes) Warnings() []string { return nil }

func (s *sandboxes) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// Resolve knows names that begin with c; Docker's ids are the names, padded.
func (s *sandboxes) Resolve(_ context.Context, name string) (state.Source, string, error) {
	name = strings.TrimSuffix(name, "-id")
	if name == "host" {
		return state.Source{}, "", fmt.Errorf("%w: it has the host's network", ErrRefused)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if name[0] != 'c' || s.removed[name] {
		return state.Source{}, "", state.Refuse(state.ErrNoContainer, "no container %s; see docker ps", name)
	}
	return state.Source{Kind: state.SourceDocker, Docker: name + "-id"}, cmp.Or(s.shown[name], name), nil
}

func (s *sandboxes) Hold(_ *os.File, src state.Source) (state.Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src.Inode = s.inode[src.Path]
	return src, nil
}

func (s *sandboxes) Open(_ context.Context, src state.Source) (plan.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens++
	if s.fail != nil {
		return plan.Sandbox{}, s.fail
	}
	name := src.Path
	if src.Kind == state.SourceDocker {
		name = src.Docker[:len(src.Docker)-len("-id")]
	}
	if s.removed[name] {
		return plan.Sandbox{}, fmt.Errorf("%s: %w", name, ErrRemoved)
	}
	inode, ok := s.inode[name]
	if !ok || src.Kind != state.SourceDocker && inode != src.Inode {
		return plan.Sandbox{}, fmt.Errorf("%s: %w", name, ErrGone)
	}
	return plan.Sandbox{Path: "/run/model/" + name, Inode: inode}, nil
}
