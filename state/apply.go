package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// usersMax is how many users of a network an error names.
const usersMax = 5

// Apply makes all the changes or none. The error is for people and wraps a sentinel of this package.
// The document keeps the changes' slices.
func (d *Doc) Apply(cs ...Change) (Out, error) {
	if e, ok := d.Doubt(); ok {
		return Out{}, Refuse(ErrDoubt, "write as %s: others hold writes of it in epoch %d that this host lost; restart the daemon", d.self, e)
	}
	if e := d.model.forgotten[d.self]; e >= d.Epoch() {
		return Out{}, Refuse(ErrForgotten, "write as %s: it was declared gone up to epoch %d; restart the daemon to join again", d.self, e)
	}
	t := txn{
		d: d, view: d.View(),
		nets: make(map[NetworkID]*Created), eps: make(map[EndpointID]*Endpoint),
		own: make(map[string][]byte),
	}
	for _, c := range cs {
		if err := t.add(c); err != nil {
			return Out{}, err
		}
	}
	return t.commit(), nil
}

// txn is changes that were checked and not yet made.
type txn struct {
	d      *Doc
	view   *View
	nets   map[NetworkID]*Created // created and, as nil, removed
	eps    map[EndpointID]*Endpoint
	own    map[string][]byte // by key; nil: removed
	order  []string          // the keys of own, in the order of their first change
	shared []sharedEdit
}

type sharedEdit struct {
	key     string
	value   []byte // nil: remove
	lamport uint64
	at      int64
}

func (t *txn) put(key string, value []byte) {
	if _, again := t.own[key]; !again {
		t.order = append(t.order, key)
	}
	t.own[key] = value
}

func (t *txn) commit() (out Out) {
	for _, e := range t.shared {
		if e.value == nil {
			if delta, ok := t.d.shared.Remove([]byte(e.key)); ok {
				out.Shared = append(out.Shared, delta)
			}
			continue
		}
		out.Shared = append(out.Shared, t.d.shared.Add([]byte(e.key), e.value, e.lamport, e.at))
	}
	for _, key := range t.order {
		value := t.own[key]
		was, ok := t.d.owned.Get(t.d.self, key)
		switch {
		case value == nil && ok:
			op, _ := t.d.owned.Remove([]byte(key))
			out.Ops = append(out.Ops, op)
		case value != nil && !(ok && string(was.Value) == string(value)):
			out.Ops = append(out.Ops, t.d.owned.Put([]byte(key), value))
		}
	}
	return out
}

func (t *txn) add(c Change) error {
	switch c := c.(type) {
	case CreateNetwork:
		return wrap("create network "+c.Def.Name, t.createNetwork(c))
	case RemoveNetwork:
		return t.removeNetwork(c)
	case PutNode:
		return wrap("set node "+c.Node.Name, t.putNode(c.Node))
	case PutEndpoint:
		e := c.Endpoint
		if err := t.putEndpoint(e, c.Kept); err != nil {
			return wrap("attach "+e.Container+" to "+t.networkName(e.Network), err)
		}
		return nil
	case RemoveEndpoint:
		return wrap("detach "+c.ID.String(), t.removeEndpoint(c.ID))
	case PutBlock:
		return wrap("own "+c.Block.Prefix.String(), t.putBlock(c.Block))
	case RemoveBlock:
		t.put(blockKey(c.Network, c.Prefix), nil)
		return nil
	case Forget:
		return wrap("give up node "+c.Node.String(), t.forget(c))
	case Leave:
		value := encodeLoss(t.d.Epoch(), 0)
		t.shared = append(t.shared, sharedEdit{key: forgetKey(t.d.self), value: value})
		return nil
	}
	return Refuse(ErrInvalid, "change %T is not known", c)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (t *txn) createNetwork(c CreateNetwork) error {
	def := c.Def
	def.Reserve, def.Labels = slices.Clone(def.Reserve), slices.Clone(def.Labels)
	def.sort()
	if err := def.Check(); err != nil {
		return err
	}
	type other struct {
		rec     *Created
		name    string
		removed bool
	}
	var others []other
	for _, n := range t.view.Networks() {
		if now, changed := t.nets[n.ID]; !changed || now != nil {
			others = append(others, other{&n.Created, n.Name, n.Removed})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(t.nets)) {
		if rec := t.nets[id]; rec != nil {
			others = append(others, other{rec, rec.Def.Name, false})
		}
	}
	vnis := make(map[uint32]bool)
	for _, n := range t.view.Networks() {
		vnis[n.VNI], vnis[n.Created.VNI] = true, true
	}
	for _, o := range others {
		vnis[o.rec.VNI] = true
		if o.name == def.Name && !o.removed {
			return Refuse(ErrNetworkExists, "it exists, with subnet %s; choose another name, or remove it first", o.rec.Def.Subnet)
		}
	}
	for _, o := range others {
		if p := o.rec.Def.Subnet; p.Overlaps(def.Subnet) && !c.Force {
			return Refuse(ErrOverlap, "%s overlaps %s (%s); choose another subnet or use --force", def.Subnet, o.name, p)
		}
	}
	def.Life = t.life(def)
	id := def.ID()
	rec := Created{
		Def: def, VNI: freeVNI(id, func(v uint32) bool { return vnis[v] }),
		Lamport: t.d.shared.Clock() + 1, At: c.At, Creator: t.d.self,
	}
	t.nets[id] = &rec
	t.shared = append(t.shared, sharedEdit{networkKey(id), rec.encode(), rec.Lamport, rec.At})
	return nil
}

// life returns the life that a definition has next.
func (t *txn) life(def Definition) uint32 {
	key := lifeKey(def)
	n := t.d.count(key)
	for _, e := range t.shared {
		if e.key == key {
			if m, err := decodeCount(e.value); err == nil {
				n = max(n, m)
			}
		}
	}
	return n
}

func (t *txn) removeNetwork(c RemoveNetwork) error {
	rec, ok := t.network(c.ID)
	if !ok {
		return Refuse(ErrNoNetwork, "remove network %s: there is none of that id; see 'meshnet network ls'", c.ID)
	}
	what := "remove network " + rec.Def.Name
	var uses []useAt
	if n := t.d.model.nets[c.ID]; n != nil {
		for _, node := range slices.Sorted(maps.Keys(n.uses)) {
			uses = append(uses, n.uses[node].at)
		}
	}
	if len(uses) > 0 && !c.Force || t.ownUse(c.ID, len(uses) == 0) {
		return Refuse(ErrNetworkInUse, "%s: in use by %s; detach them or use --force", what, t.users(c.ID, uses))
	}
	t.nets[c.ID] = nil
	if _, ok := t.d.shared.Value(networkKey(c.ID)); ok || t.created(c.ID) {
		t.shared = append(t.shared,
			sharedEdit{key: networkKey(c.ID)},
			sharedEdit{key: lifeKey(rec.Def), value: encodeCount(max(t.life(rec.Def), rec.Def.Life+1))})
	}
	if len(uses) == 0 {
		return nil
	}
	key := killKey(c.ID)
	all := t.d.kills(key)
	for _, u := range uses {
		if was, ok := all[u.node]; !ok || was.before(u) {
			all[u.node] = u
		}
	}
	k := kill{}
	for _, node := range slices.Sorted(maps.Keys(all)) {
		k.uses = append(k.uses, all[node])
	}
	t.shared = append(t.shared, sharedEdit{key: key, value: k.encode()})
	return nil
}

// created reports whether the changes so far create a network.
func (t *txn) created(id NetworkID) bool {
	return slices.ContainsFunc(t.shared, func(e sharedEdit) bool { return e.key == networkKey(id) && e.value != nil })
}

// ownUse reports whether the changes so far begin to use a network that is otherwise free.
func (t *txn) ownUse(id NetworkID, free bool) bool {
	return free && t.own[useKey(id)] != nil
}

// users names who uses a network.
func (t *txn) users(id NetworkID, uses []useAt) string {
	var names []string
	more := 0
	if n, ok := t.view.Network(id); ok {
		names = t.view.Users(n, usersMax)
		more = n.claims.n - len(names)
	}
	for _, e := range t.eps {
		if e != nil && e.Network == id && len(names) == 0 {
			names = append(names, e.Container)
		}
	}
	if len(names) == 0 {
		for _, u := range uses {
			names = append(names, "node "+t.nodeName(u.node))
		}
	}
	list := strings.Join(names, ", ")
	if more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return list
}

func (t *txn) nodeName(id NodeID) string {
	if n, ok := t.view.Node(id); ok {
		return n.Name
	}
	return id.String()
}

// network returns the record of a network as after the changes so far.
func (t *txn) network(id NetworkID) (Created, bool) {
	if rec, changed := t.nets[id]; changed {
		if rec == nil {
			return Created{}, false
		}
		return *rec, true
	}
	if n, ok := t.view.Network(id); ok {
		return n.Created, true
	}
	return Created{}, false
}

func (t *txn) networkName(id NetworkID) string {
	if n, ok := t.view.Network(id); ok {
		return n.Name
	}
	if rec, ok := t.network(id); ok {
		return rec.Def.Name
	}
	return id.String()
}

func (t *txn) putNode(n Node) error {
	switch {
	case !printable(n.Name, 253):
		return Refuse(ErrInvalid, "node name %.40q; use 1 to 253 printable characters", n.Name)
	case !n.Addr.IsValid() || n.Addr.Is4In6():
		return Refuse(ErrInvalid, "no address; give one with --advertise")
	case len(n.Version) > 255:
		return Refuse(ErrInvalid, "a version of %d characters; use at most 255", len(n.Version))
	}
	t.put(keyNode, n.encode())
	return nil
}

// printable reports whether a name for people has from 1 to limit bytes and no control characters.
func printable(s string, limit int) bool {
	return s != "" && len(s) <= limit && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// endpoint returns an own endpoint as after the changes so far.
func (t *txn) endpoint(id EndpointID) *Endpoint {
	if e, changed := t.eps[id]; changed {
		return e
	}
	return t.d.model.endpoints[endpointAt{id, t.d.self}]
}

func (t *txn) putEndpoint(e Endpoint, kept bool) error {
	e.Node = t.d.self
	if e.MAC == (MAC{}) && e.Addr.Is4() {
		e.MAC = MACOf(e.Addr)
	}
	e.Names = slices.Clone(e.Names)
	slices.Sort(e.Names)
	e.Publish = slices.SortedFunc(slices.Values(e.Publish), Published.compare)
	if err := e.check(); err != nil {
		return err
	}
	rec, ok := t.network(e.Network)
	if !ok {
		return Refuse(ErrNoNetwork, "there is no such network; see 'meshnet network ls'")
	}
	was := t.endpoint(e.ID)
	if was != nil && was.Network != e.Network {
		return Refuse(ErrInvalid, "endpoint %s is on another network; detach it first", e.ID)
	}
	if !kept && (was == nil || was.Addr != e.Addr) {
		if err := t.checkAddr(e, rec.Def); err != nil {
			return err
		}
	}
	if was == nil && t.view.Killed(e.Network, t.d.self) {
		return Refuse(ErrNoNetwork, "the network is being removed; create it again first")
	}
	if _, used := t.use(e.Network); !used {
		u := Use{Created: rec}
		t.put(useKey(e.Network), u.encode())
	}
	t.eps[e.ID] = &e
	t.put(endpointKey(e.ID), e.encode())
	return nil
}

// use reports whether this node uses a network, as after the changes so far.
func (t *txn) use(id NetworkID) (value []byte, ok bool) {
	key := useKey(id)
	if value, changed := t.own[key]; changed {
		return value, value != nil
	}
	op, ok := t.d.owned.Get(t.d.self, key)
	return op.Value, ok
}

// check returns an error that says what is wrong with an endpoint by itself.
func (e *Endpoint) check() error {
	switch {
	case e.ID == 0:
		return Refuse(ErrInvalid, "the endpoint has no id")
	case !printable(e.Container, 255):
		return Refuse(ErrInvalid, "container name %.40q; use 1 to 255 printable characters", e.Container)
	case e.MAC == (MAC{}) || e.MAC[0]&1 != 0:
		return Refuse(ErrInvalid, "MAC address %s is not one of a single host; use one like 02:42:0a:02:00:05", e.MAC)
	case len(e.IfName) > 15 || strings.ContainsAny(e.IfName, "/ :") || e.IfName == "." || e.IfName == "..":
		return Refuse(ErrInvalid, "interface name %.40q; use at most 15 characters without '/', ':' and spaces", e.IfName)
	case len(e.Names) > 16:
		return Refuse(ErrInvalid, "%d names; use at most 16", len(e.Names))
	}
	for _, n := range e.Names {
		if err := CheckName(n); err != nil {
			return err
		}
	}
	return checkPublished(e.Publish)
}

// publishMax bounds the ports that lead to one endpoint.
const publishMax = 256

func checkPublished(ports []Published) error {
	if len(ports) > publishMax {
		return Refuse(ErrInvalid, "%d published ports; use at most %d", len(ports), publishMax)
	}
	for i, p := range ports {
		switch {
		case p.HostPort == 0 || p.Port == 0 || p.Proto > UDP:
			return Refuse(ErrInvalid, "published port %s; use ports from 1 to 65535 and tcp or udp", p)
		case i > 0 && p.HostPort == ports[i-1].HostPort && p.Proto == ports[i-1].Proto:
			return Refuse(ErrInvalid, "port %d/%s leads to two ports; choose one", p.HostPort, p.Proto)
		}
	}
	return nil
}

func (p Published) compare(o Published) int {
	return cmp.Or(cmp.Compare(p.HostPort, o.HostPort), cmp.Compare(p.Proto, o.Proto), cmp.Compare(p.Port, o.Port))
}

// checkAddr returns an error if an endpoint may not have its address.
func (t *txn) checkAddr(e Endpoint, def Definition) error {
	if !def.Allocatable(e.Addr) {
		return Refuse(ErrInvalid, "%s is not an address for containers of %s; choose another or leave it out", e.Addr, def.Subnet)
	}
	for id, o := range t.eps {
		if o != nil && id != e.ID && o.Network == e.Network && o.Addr == e.Addr {
			return Refuse(ErrAddressInUse, "%s is used by %s; choose another or leave it out", e.Addr, o.Container)
		}
	}
	n, ok := t.view.Network(e.Network)
	if !ok {
		return nil
	}
	if o, ok := n.At(e.Addr); ok && (o.ID != e.ID || o.Node != e.Node) {
		if now, changed := t.eps[o.ID]; !changed || o.Node != e.Node || now != nil && now.Addr == e.Addr {
			return Refuse(ErrAddressInUse, "%s is used by %s; choose another or leave it out", e.Addr, t.view.describe(o))
		}
	}
	return nil
}

func (t *txn) removeEndpoint(id EndpointID) error {
	was := t.endpoint(id)
	if was == nil {
		return Refuse(ErrNoEndpoint, "this host has no such endpoint; see 'meshnet ps'")
	}
	t.eps[id] = nil
	t.put(endpointKey(id), nil)
	left := 0
	if n := t.d.model.nets[was.Network]; n != nil {
		left = n.members[t.d.self]
	}
	for id, e := range t.eps {
		before := t.d.model.endpoints[endpointAt{id, t.d.self}]
		if before != nil && before.Network == was.Network {
			left--
		}
		if e != nil && e.Network == was.Network {
			left++
		}
	}
	if left == 0 {
		t.put(useKey(was.Network), nil)
	}
	return nil
}

func (t *txn) putBlock(k Block) error {
	rec, ok := t.network(k.Network)
	switch {
	case !ok:
		return Refuse(ErrNoNetwork, "there is no network %s", k.Network)
	case !k.Prefix.IsValid() || k.Prefix != k.Prefix.Masked() || k.Prefix.Bits() < rec.Def.Subnet.Bits() ||
		!rec.Def.Subnet.Contains(k.Prefix.Addr()):
		return Refuse(ErrInvalid, "it is not a range of %s", rec.Def.Subnet)
	case k.Ver == 0 || k.Root.Creator == 0:
		return Refuse(ErrInvalid, "a block needs a version and a root")
	}
	t.put(blockKey(k.Network, k.Prefix), k.encode())
	return nil
}

func (t *txn) forget(c Forget) error {
	switch {
	case c.Node == t.d.self:
		return Refuse(ErrInvalid, "it is this node; use 'meshnet leave'")
	case c.Node == 0 || c.Epoch == 0:
		return Refuse(ErrNoNode, "there is no such node; see 'meshnet nodes'")
	case t.d.model.forgotten[c.Node] >= c.Epoch && (c.Heir == 0 || t.d.model.heirs[c.Node] == c.Heir):
		return nil
	}
	t.shared = append(t.shared, sharedEdit{key: forgetKey(c.Node), value: encodeLoss(c.Epoch, c.Heir)})
	return nil
}
