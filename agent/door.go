package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"meshnet/plan"
	"meshnet/state"
)

const (
	// doMax bounds a wish: an attachment may have to wait for an address from another node.
	doMax = 10 * time.Second
	// hostMax bounds the wait until this host has what was wished.
	hostMax = 10 * time.Second
	// undoMax bounds the taking back of what was begun.
	undoMax = 5 * time.Second
)

// Ref is a container as a person named it.
type Ref struct {
	Name string
	// NS is its open network namespace, which stays the caller's; nil: it goes by Name.
	NS *os.File
	// Source says what NS was opened from; for NS only.
	Source state.Source
}

// AttachRequest asks for a container on a network. Zero values leave the choice to us.
type AttachRequest struct {
	Container      Ref
	Network        string
	Addr           netip.Addr
	MAC            state.MAC
	IfName         string
	Names          []string
	NoDefaultRoute bool
	// Wait bounds the wait for other nodes.
	Wait time.Duration
}

// place is a container on a network, by its name or by its namespace.
type place struct {
	name    string
	inode   uint64
	network state.NetworkID
}

// Create makes a network, or finds that it is there already with just this definition.
func (a *Agent) Create(ctx context.Context, w state.Create) (Network, error) {
	ctx, cancel := context.WithTimeout(ctx, doMax)
	defer cancel()
	out, err := a.c.Mesh.Do(ctx, w)
	if err != nil {
		return Network{}, err
	}
	poke(a.poked)
	view := a.c.Mesh.View()
	n, ok := view.Network(out.Network)
	if !ok {
		return Network{}, fmt.Errorf("create network %s: it was removed at once by another node; create it again", w.Name)
	}
	return a.network(n), nil
}

// RemoveNetwork removes a network by name or id, and returns what it was. Force asks the owners of
// its containers to detach them.
func (a *Agent) RemoveNetwork(ctx context.Context, name string, force bool) (Network, error) {
	ctx, cancel := context.WithTimeout(ctx, doMax)
	defer cancel()
	view := a.c.Mesh.View()
	n, err := find(view, name)
	if err != nil {
		return Network{}, err
	}
	was := a.network(n)
	if n.Removed {
		return was, nil
	}
	if _, err := a.c.Mesh.Do(ctx, state.Remove{Network: n.ID, Force: force}); err != nil {
		return Network{}, err
	}
	poke(a.poked)
	return was, nil
}

// find returns the network with a shown name or an id.
func find(view *state.View, name string) (*state.Network, error) {
	if n, ok := view.ByName(name); ok {
		return n, nil
	}
	for _, n := range view.Networks() {
		if n.ID.String() == name {
			return n, nil
		}
	}
	return nil, state.Refuse(state.ErrNoNetwork, "there is no network %s; see meshnet network ls", name)
}

// Attach puts a container on a network and returns when this host has it and, within the wait, the
// other nodes that reach it: those that have not said so by then are in the second result, in the
// order of their names. Twice is the same as once. A failed attach leaves nothing.
func (a *Agent) Attach(ctx context.Context, r AttachRequest) (Attachment, []string, error) {
	n, err := find(a.c.Mesh.View(), r.Network)
	if err != nil {
		return Attachment{}, nil, err
	}
	source, name, err := a.resolve(ctx, r.Container)
	if err != nil {
		return Attachment{}, nil, err
	}
	box, err := a.c.Sandboxes.Open(ctx, source)
	if errors.Is(err, ErrGone) {
		return Attachment{}, nil, fmt.Errorf("container %s does not run: %w; start it first", name, err)
	}
	if err != nil {
		return Attachment{}, nil, err
	}
	for _, p := range []place{{name: name, network: n.ID}, {inode: box.Inode, network: n.ID}} {
		free, err := a.occupy(ctx, p)
		if err != nil {
			return Attachment{}, nil, err
		}
		defer free()
	}
	w, err := a.wish(ctx, r, n, source, name, box)
	if err != nil {
		return Attachment{}, nil, err
	}
	id, err := a.carryOut(ctx, w, box)
	if err != nil {
		return Attachment{}, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.Wait)
	defer cancel()
	waiting := a.nodeNames(a.c.Mesh.Reached(ctx, id))
	for _, at := range a.PS(false) {
		if at.Endpoint == id {
			return at, waiting, nil
		}
	}
	return Attachment{}, nil, fmt.Errorf("container %s was detached from %s meanwhile; attach it again", name, n.Name)
}

// resolve finds a container that a person named.
func (a *Agent) resolve(ctx context.Context, r Ref) (state.Source, string, error) {
	if r.NS == nil {
		return a.c.Sandboxes.Resolve(ctx, r.Name)
	}
	s, err := a.c.Sandboxes.Hold(r.NS, r.Source)
	return s, r.Name, err
}

// occupy waits until nobody else works on a place, and takes it until free is called.
func (a *Agent) occupy(ctx context.Context, p place) (free func(), err error) {
	for {
		a.mu.Lock()
		done, taken := a.busy[p]
		if !taken {
			done = make(chan struct{})
			a.busy[p] = done
		}
		a.mu.Unlock()
		if !taken {
			return func() {
				a.mu.Lock()
				delete(a.busy, p)
				a.mu.Unlock()
				close(done)
			}, nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return nil, fmt.Errorf("another command works on this container: %w; try again", ctx.Err())
		}
	}
}

// wish returns the attachment to ask the mesh for: the one there is, or a new one. A container that
// has the name of one that is gone is its successor, and takes over what it had.
func (a *Agent) wish(ctx context.Context, r AttachRequest, n *state.Network, s state.Source, name string, box plan.Sandbox) (state.Attach, error) {
	now, _ := a.look()
	for _, old := range a.c.Mesh.Wishes() {
		switch {
		case old.Network != n.ID:
		case a.same(ctx, old, s, box.Inode):
			if old.Source == s && s.Kind == state.SourceDocker {
				old.Container = name // it may have another by now
			}
			return a.merge(old, r)
		case old.Container == name && (now.gone[old.ID] || a.ended(ctx, old)):
			old.Source = s
			return a.merge(old, r)
		case old.Container == name:
			return old, state.Refuse(ErrRefused, "another container named %s is attached to %s; detach it first", name, n.Name)
		}
	}
	return state.Attach{
		ID:             mint(),
		Network:        n.ID,
		Container:      name,
		Source:         s,
		Addr:           r.Addr,
		MAC:            r.MAC,
		IfName:         r.IfName,
		Names:          sorted(r.Names),
		NoDefaultRoute: r.NoDefaultRoute,
	}, nil
}

// ended reports whether an attachment's container is not there any more, which the loop may not have
// seen yet.
func (a *Agent) ended(ctx context.Context, w state.Attach) bool {
	_, err := a.c.Sandboxes.Open(ctx, w.Source)
	return errors.Is(err, ErrGone)
}

// merge adds what a repeated request asks for to an attachment, as long as nothing that the container
// has already would change.
func (a *Agent) merge(w state.Attach, r AttachRequest) (state.Attach, error) {
	addr, mac := w.Addr, w.MAC
	if e, ok := a.c.Mesh.View().Endpoint(w.ID); ok {
		addr, mac = e.Addr, e.MAC
	}
	now, _ := a.look()
	ifName := cmp.Or(w.IfName, now.ifNames[w.ID])
	differ := ""
	switch {
	case r.Addr.IsValid() && addr.IsValid() && r.Addr != addr:
		differ = "address " + addr.String()
	case r.MAC != state.MAC{} && mac != state.MAC{} && r.MAC != mac:
		differ = "MAC address " + mac.String()
	case r.IfName != "" && ifName != "" && r.IfName != ifName:
		differ = "interface " + ifName
	}
	if differ != "" {
		return w, state.Refuse(ErrRefused, "it is attached already with %s; detach it first", differ)
	}
	w.Names = sorted(append(slices.Clone(w.Names), r.Names...))
	return w, nil
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}

// same reports whether an attachment's container is the one that a source means, whose namespace has
// an inode. The kernel gives the inode of a namespace that is gone to the next one, so an equal inode
// counts only if the attachment's own source still leads to it.
func (a *Agent) same(ctx context.Context, w state.Attach, s state.Source, inode uint64) bool {
	if w.Source == s {
		return true
	}
	now, _ := a.look()
	if inode == 0 || now.sandboxes[w.ID].Inode != inode && w.Source.Inode != inode {
		return false
	}
	box, err := a.c.Sandboxes.Open(ctx, w.Source)
	return err == nil && box.Inode == inode
}

func mint() state.EndpointID {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return state.EndpointID(max(1, binary.BigEndian.Uint64(b[:])))
}

// carryOut asks the mesh for an attachment, waits until this host has it and returns its id, which is
// an older one if the mesh knows the container already. A new one that fails is taken back.
func (a *Agent) carryOut(ctx context.Context, w state.Attach, box plan.Sandbox) (state.EndpointID, error) {
	do, cancel := context.WithTimeout(ctx, doMax)
	defer cancel()
	a.keep(w.ID)
	a.hint(w.ID, box)
	defer a.hint(w.ID, plan.Sandbox{})
	out, err := a.c.Mesh.Do(do, w)
	if err != nil {
		a.undo(ctx, w.ID) // it may be there for all we know
		return 0, err
	}
	err = a.host(ctx, out.Version, a.lookUp(w.Source, box))
	if now, _ := a.look(); err == nil && now.gone[out.Endpoint] {
		err = fmt.Errorf("container %s stopped meanwhile; start it first", w.Container)
	}
	if err != nil && !out.Again {
		a.undo(ctx, out.Endpoint)
	}
	return out.Endpoint, err
}

// hint tells the loop the sandbox of an attachment that is being made, so that it need not look it up
// too; none: forget it. If it is another one by now the links find out.
func (a *Agent) hint(id state.EndpointID, box plan.Sandbox) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if box == (plan.Sandbox{}) {
		delete(a.hints, id)
	} else {
		a.hints[id] = box
	}
}

// lookUp has the loop look up the container's sandbox again on all networks where what it saw is not
// what is there now. It returns the ticket that the loop answers when it has; 0: no need.
func (a *Agent) lookUp(s state.Source, box plan.Sandbox) (ticket uint64) {
	wishes := a.c.Mesh.Wishes()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range wishes {
		if w.Source == s && a.seen.sandboxes[w.ID] != box {
			a.suspects = append(a.suspects, w.ID)
			ticket = a.tickets + 1
		}
	}
	a.tickets = max(a.tickets, ticket)
	return ticket
}

// host waits until this host equals a version of the state and the loop has answered a ticket.
func (a *Agent) host(ctx context.Context, version, ticket uint64) error {
	if ticket > 0 {
		poke(a.poked) // a new version wakes the loop by itself
	}
	ctx, cancel := context.WithTimeout(ctx, hostMax)
	defer cancel()
	for {
		now, changed := a.look()
		if now.applied >= version && now.answered >= ticket {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			why := "the host is still being changed"
			if len(now.failing) > 0 {
				why = strings.Join(now.failing, ", ")
			}
			return fmt.Errorf("%w on this host: %s; see meshnet status", ErrLate, why)
		}
	}
}

// undo takes back what an attach began, also when its caller has gone.
func (a *Agent) undo(ctx context.Context, id state.EndpointID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoMax)
	defer cancel()
	if _, err := a.c.Mesh.Do(ctx, state.Detach{ID: id}); err != nil {
		a.c.Log.Warn("attachment that failed is still there; it is taken back later", "endpoint", id, "err", err)
		a.mu.Lock()
		a.orphans[id] = true
		a.mu.Unlock()
	}
	poke(a.poked)
}

// keep says that an attachment is wanted again.
func (a *Agent) keep(id state.EndpointID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.orphans, id)
}

// takeBack tries again to take back what could not be taken back when its attach failed, and returns
// what still cannot.
func (a *Agent) takeBack(ctx context.Context) (failing []string) {
	a.mu.Lock()
	orphans := slices.Sorted(maps.Keys(a.orphans))
	a.mu.Unlock()
	for _, id := range orphans {
		if _, err := a.c.Mesh.Do(ctx, state.Detach{ID: id}); err != nil {
			failing = append(failing, fmt.Sprintf("take back attachment %s, which failed: %v", id, err))
			continue
		}
		a.keep(id)
	}
	return failing
}

// Detach takes a container off a network, or off all when none is named, and returns what it took
// off, which is nothing when it was not attached. The container need not run any more.
func (a *Agent) Detach(ctx context.Context, r Ref, network string) ([]Attachment, error) {
	var only state.NetworkID
	if network != "" {
		n, err := find(a.c.Mesh.View(), network)
		if err != nil {
			return nil, err
		}
		only = n.ID
	}
	mine, err := a.attached(ctx, r)
	if err != nil {
		return nil, err
	}
	mine = slices.DeleteFunc(mine, func(w state.Attach) bool { return network != "" && w.Network != only })
	off := slices.DeleteFunc(a.PS(false), func(at Attachment) bool {
		return !slices.ContainsFunc(mine, func(w state.Attach) bool { return w.ID == at.Endpoint })
	})
	ctx, cancel := context.WithTimeout(ctx, doMax)
	defer cancel()
	var version uint64
	for _, w := range mine {
		out, err := a.c.Mesh.Do(ctx, state.Detach{ID: w.ID})
		if err != nil {
			return nil, err
		}
		version = max(version, out.Version)
	}
	return off, a.host(ctx, version, 0)
}

// attached returns the wishes of a container: by the name people know it by, by its Docker id or a
// prefix of that, else by what the name means now.
func (a *Agent) attached(ctx context.Context, r Ref) ([]state.Attach, error) {
	wishes := a.c.Mesh.Wishes()
	if r.NS == nil {
		var named []state.Attach
		owners := map[state.Source]bool{}
		for _, w := range wishes {
			if w.Container == r.Name || w.Source.Docker != "" && strings.HasPrefix(w.Source.Docker, r.Name) {
				named = append(named, w)
				owners[w.Source] = true
			}
		}
		exact := slices.ContainsFunc(named, func(w state.Attach) bool { return w.Container == r.Name })
		if exact {
			return slices.DeleteFunc(named, func(w state.Attach) bool { return w.Container != r.Name }), nil
		}
		if len(owners) > 1 {
			return nil, state.Refuse(ErrRefused, "%s is the beginning of several container ids; give more of it", r.Name)
		}
		if len(named) > 0 {
			return named, nil
		}
	}
	s, _, err := a.resolve(ctx, r)
	if err != nil {
		return nil, err
	}
	var same []state.Attach
	for _, w := range wishes {
		if a.same(ctx, w, s, s.Inode) {
			same = append(same, w)
		}
	}
	return same, nil
}

// nodeNames returns the names of nodes, sorted.
func (a *Agent) nodeNames(ids []state.NodeID) []string {
	view := a.c.Mesh.View()
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		names = append(names, nodeName(view, id))
	}
	slices.SortFunc(names, cmp.Compare)
	return names
}

func nodeName(view *state.View, id state.NodeID) string {
	if n, ok := view.Node(id); ok && n.Name != "" {
		return n.Name
	}
	return id.String()
}
