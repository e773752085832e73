package state

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"meshnet/crdt"
)

// model is the decoded records, and what of them changed since the last view.
type model struct {
	nodes     map[NodeID]*Node
	endpoints map[endpointAt]*Endpoint
	nets      map[NetworkID]*netModel
	forgotten map[NodeID]crdt.Epoch
	heirs     map[NodeID]NodeID // of forgotten nodes, where a person named one

	dirtyNodes     map[NodeID]change[Node]
	dirtyForgotten bool
	dirtySet       bool                    // names and VNIs have to be settled again
	dirtyNets      map[NetworkID]*netModel // have to be built again
	dirtyEndpoints map[endpointAt]change[Endpoint]
	unread         uint64
}

// endpointAt names an endpoint record: two hosts with one disk may both have written one id.
type endpointAt struct {
	id   EndpointID
	node NodeID
}

type blockAt struct {
	prefix netip.Prefix
	node   NodeID
}

// netModel is all that is said of one network.
type netModel struct {
	id      NetworkID
	created *Created // as shared; nil: removed or not known yet
	uses    map[NodeID]used
	members map[NodeID]int // endpoints of each node
	kills   map[NodeID]useAt

	// What changed since the last view, and of a network that is not shown all that is said of it.
	claims  map[endpointAt]change[Endpoint]
	blocks  map[blockAt]change[Block]
	joined  bool // or left: another set of members
	changed bool // something else

	allBlocks map[blockAt]*Block
	lengths   [129]int        // how many blocks have a prefix of this length
	roots     map[Root]census // of allBlocks
	built     *Network
}

// census counts the records of a root, and those of them that seal it.
type census struct{ blocks, seals int }

type used struct {
	use *Use
	at  useAt
}

func newModel() model {
	return model{
		nodes:          make(map[NodeID]*Node),
		endpoints:      make(map[endpointAt]*Endpoint),
		nets:           make(map[NetworkID]*netModel),
		forgotten:      make(map[NodeID]crdt.Epoch),
		heirs:          make(map[NodeID]NodeID),
		dirtyNets:      make(map[NetworkID]*netModel),
		dirtyNodes:     make(map[NodeID]change[Node]),
		dirtyEndpoints: make(map[endpointAt]change[Endpoint]),
	}
}

// net returns the model of a network, made if need be and marked as changed.
func (m *model) net(id NetworkID) *netModel {
	n := m.nets[id]
	if n == nil {
		n = &netModel{
			id: id, uses: make(map[NodeID]used), members: make(map[NodeID]int),
			allBlocks: make(map[blockAt]*Block), roots: make(map[Root]census),
			claims: make(map[endpointAt]change[Endpoint]), blocks: make(map[blockAt]change[Block]),
		}
		m.nets[id] = n
	}
	m.dirtyNets[id] = n
	return n
}

// void reports whether nothing is said of a network any more.
func (n *netModel) void() bool {
	return n.created == nil && len(n.uses)+len(n.members)+len(n.allBlocks)+len(n.kills) == 0
}

// onOwned reads a key of a node's map again.
func (d *Doc) onOwned(n crdt.Node, key string) {
	op, ok := d.owned.Get(n, key)
	word, _, _ := strings.Cut(key, "/")
	switch word + "/" {
	case keyNode + "/":
		d.model.setNode(n, op, ok)
	case keyEndpoint:
		d.model.setEndpoint(n, key, op, ok)
	case keyUse:
		d.model.setUse(n, key, op, ok)
	case keyBlock:
		d.model.setBlock(n, key, op, ok)
	}
}

// read counts a record that is there and has no known form.
func (m *model) read(ok bool, err error) bool {
	if ok && err != nil {
		m.unread++
	}
	return ok && err == nil
}

func (m *model) setNode(n NodeID, op crdt.Op, ok bool) {
	was := m.nodes[n]
	note := func(now *Node) {
		c, again := m.dirtyNodes[n]
		m.dirtyNodes[n] = c.noted(again, was, now)
	}
	rec, err := decodeNode(op.Value)
	if !m.read(ok, err) {
		delete(m.nodes, n)
		note(nil)
		return
	}
	rec.ID, rec.Epoch = n, op.Epoch
	m.nodes[n] = &rec
	note(&rec)
}

func (m *model) setEndpoint(n NodeID, key string, op crdt.Op, ok bool) {
	id, named := parseID[EndpointID](key, keyEndpoint)
	if !named {
		return
	}
	at := endpointAt{id, n}
	was := m.endpoints[at]
	var now *Endpoint
	if e, err := decodeEndpoint(op.Value); m.read(ok, err) {
		e.ID, e.Node = id, n
		now = &e
	}
	index, indexed := m.dirtyEndpoints[at]
	m.dirtyEndpoints[at] = index.noted(indexed, was, now)
	if was != nil && (now == nil || now.Network != was.Network) {
		net := m.net(was.Network)
		c, again := net.claims[at]
		net.claims[at] = c.noted(again, was, nil)
		net.leave(n)
		was = nil
	}
	if now == nil {
		delete(m.endpoints, at)
		return
	}
	m.endpoints[at] = now
	net := m.net(now.Network)
	c, again := net.claims[at]
	net.claims[at] = c.noted(again, was, now)
	if was == nil {
		net.join(n)
	}
}

// join counts an endpoint of a node more, leave one less.
func (n *netModel) join(node NodeID) {
	if n.members[node]++; n.members[node] == 1 {
		n.joined = true
	}
}

func (n *netModel) leave(node NodeID) {
	if n.members[node]--; n.members[node] == 0 {
		delete(n.members, node)
		n.joined = true
	}
}

func (m *model) setUse(n NodeID, key string, op crdt.Op, ok bool) {
	id, named := parseID[NetworkID](key, keyUse)
	if !named {
		return
	}
	net := m.net(id)
	net.changed = true
	m.dirtySet = m.dirtySet || net.created == nil // else it is shown as it was created
	u, err := decodeUse(op.Value)
	if !m.read(ok, err) || u.Created.Def.Check() != nil {
		delete(net.uses, n)
		return
	}
	u.Node, u.Network = n, id
	net.uses[n] = used{&u, useOf(op)}
}

func (m *model) setBlock(n NodeID, key string, op crdt.Op, ok bool) {
	id, prefix, named := parseBlockKey(key)
	if !named {
		return
	}
	net := m.net(id)
	at := blockAt{prefix, n}
	was := net.allBlocks[at]
	c, again := net.blocks[at]
	net.blocks[at] = c.noted(again, was, nil)
	if was != nil {
		delete(net.allBlocks, at)
		net.count(was, -1)
	}
	k, err := decodeBlock(op.Value)
	if !m.read(ok, err) {
		return
	}
	k.Node, k.Network, k.Prefix = n, id, prefix
	net.allBlocks[at] = &k
	net.blocks[at] = c.noted(again, was, &k)
	net.count(&k, 1)
}

// count keeps the census of blocks. A root is sealed when its creator says so and when another node
// holds a record of it.
func (n *netModel) count(k *Block, by int) {
	n.lengths[k.Prefix.Bits()] += by
	c := n.roots[k.Root]
	c.blocks += by
	if k.Sealed || k.Node != k.Root.Creator {
		c.seals += by
	}
	if c.blocks == 0 {
		delete(n.roots, k.Root)
		return
	}
	n.roots[k.Root] = c
}

// onShared reads a shared key again.
func (d *Doc) onShared(key string) {
	m := &d.model
	word, _, _ := strings.Cut(key, "/")
	switch word + "/" {
	case keyNetwork:
		if id, ok := parseID[NetworkID](key, keyNetwork); ok {
			e, ok := d.shared.Value(key)
			net := m.net(id)
			net.created, net.changed, m.dirtySet = nil, true, true
			if c, err := decodeCreated(e.Value); m.read(ok, err) && c.Def.Check() == nil {
				net.created = &c
			}
		}
	case keyKill:
		if id, ok := parseID[NetworkID](key, keyKill); ok {
			net := m.net(id)
			net.changed = true
			net.kills = d.kills(key)
		}
	case keyForget:
		if id, ok := parseID[NodeID](key, keyForget); ok {
			d.lose(id, key)
		}
	}
}

// lose reads again that a node was given up.
func (d *Doc) lose(id NodeID, key string) {
	m := &d.model
	for _, v := range d.shared.Values(key) {
		e, heir, err := decodeLoss(v.Value)
		if !m.read(true, err) {
			continue
		}
		if e > m.forgotten[id] {
			m.forgotten[id] = e
			m.dirtyForgotten = true
			d.owned.Forget(id, e)
		}
		if was := m.heirs[id]; heir != 0 && (was == 0 || heir < was) {
			m.heirs[id] = heir
			m.dirtyForgotten = true
		}
	}
}

// count reads a record that counts as the highest of its values.
func (d *Doc) count(key string) (highest uint32) {
	for _, e := range d.shared.Values(key) {
		if n, err := decodeCount(e.Value); d.model.read(true, err) {
			highest = max(highest, n)
		}
	}
	return highest
}

// kills reads the uses that a key's values name between them, the latest of each node.
func (d *Doc) kills(key string) map[NodeID]useAt {
	out := make(map[NodeID]useAt)
	for _, e := range d.shared.Values(key) {
		k, err := decodeKill(e.Value)
		if !d.model.read(true, err) {
			continue
		}
		for _, u := range k.uses {
			if was, ok := out[u.node]; !ok || was.before(u) {
				out[u.node] = u
			}
		}
	}
	return out
}

// before reports whether one node wrote a use before another of its uses.
func (u useAt) before(v useAt) bool {
	return u.epoch < v.epoch || u.epoch == v.epoch && u.seq < v.seq
}

// shows returns the record that a network is shown with: the shared one or, when its definition was
// removed, the lowest of those that its users keep.
func (n *netModel) shows() (c Created, removed, ok bool) {
	if n.created != nil {
		return *n.created, false, true
	}
	var low *Created
	for _, node := range slices.Sorted(maps.Keys(n.uses)) {
		if c := &n.uses[node].use.Created; low == nil || c.compare(low) < 0 {
			low = c
		}
	}
	if low == nil {
		return Created{}, false, false
	}
	return *low, true, true
}

func (c *Created) compare(d *Created) int {
	return cmp.Or(cmp.Compare(c.Lamport, d.Lamport), cmp.Compare(c.At, d.At),
		cmp.Compare(c.Creator, d.Creator), cmp.Compare(c.VNI, d.VNI))
}

// killed lists the nodes whose present use was seen by who removed the network by force.
func (n *netModel) killed() (nodes []NodeID) {
	if len(n.kills) == 0 {
		return nil
	}
	for node, u := range n.uses {
		if k, ok := n.kills[node]; ok && !k.before(u.at) {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return nodes
}
