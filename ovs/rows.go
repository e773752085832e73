package ovs

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ovn-org/libovsdb/ovsdb"

	"meshnet/plan"
)

// Our marks, keys of external_ids. What bears none of them is not ours.
const (
	markBridge   = "meshnet"          // on the bridge; the value is the version of our layout
	markEndpoint = "meshnet-endpoint" // on an interface: the endpoint's id
	markPeer     = "meshnet-peer"     // the node's id
	markNetwork  = "meshnet-network"  // the network's id
	markGateway  = "meshnet-gateway"  // the name of the tap, or of the other end of its veth

	// markIfindex is the index that the interface's device had when we made the row. A device made
	// again under its name has another; Open vSwitch goes on using the one that is gone, while its
	// row looks healthy.
	markIfindex = "meshnet-ifindex"
)

// portMarks are those of ports; each bears one.
var portMarks = [...]string{markEndpoint, markPeer, markNetwork, markGateway}

// layout is the value of [markBridge].
const layout = "1"

// protocols are the versions of OpenFlow that the bridge speaks: 1.4 and later have bundles, 1.3 is
// for people's tools.
var protocols = [...]string{"OpenFlow13", "OpenFlow14", "OpenFlow15"}

// port is a port of our bridge as the plan wants it.
type port struct {
	name    string
	kind    string            // type of the interface: vxlan, geneve, tap; empty for another device of the host
	options map[string]string // of a tunnel
	number  uint32            // OpenFlow port
	mark    string            // key of external_ids
	id      string            // its value
	ifindex int               // of the host's device; 0: a tunnel
	mtu     int               // asked for; 0: it stays as it is
}

// externalIDs returns all our keys of the interface.
func (p port) externalIDs() map[string]string {
	ids := map[string]string{p.mark: p.id}
	if p.ifindex != 0 {
		ids[markIfindex] = strconv.Itoa(p.ifindex)
	}
	return ids
}

// wanted returns the ports of a plan in the order of names, and the names of devices that ought to
// be there but are not. devices holds the index of each device of the host.
func wanted(h *plan.Host, devices map[string]int) (ports []port, missing []string) {
	for _, t := range h.Tunnels {
		ports = append(ports, port{
			name: t.Name, kind: h.Encap.String(), number: t.OFPort, mark: markPeer, id: t.Peer.String(),
			options: tunnelOptions(h.Underlay, t.Remote, h.TunnelPort),
		})
	}
	device := func(p port) {
		index, ok := devices[p.name]
		if !ok {
			missing = append(missing, p.name)
			return
		}
		p.ifindex = index
		ports = append(ports, p)
	}
	if g := h.Gateway; g != nil {
		p := port{name: g.Switch(), number: g.OFPort, mark: markGateway, id: g.Name}
		if g.Tap() {
			// Unasked, ovs-vswitchd gives a tap the least MTU of the other ports.
			p.kind, p.mtu = "tap", int(g.MTU)
		}
		device(p)
	}
	links := map[string]bool{}
	for _, l := range h.Links {
		links[l.Name] = true
	}
	for _, n := range h.Networks {
		if n.Device != nil {
			device(port{name: n.Device.Switch(), number: n.Device.OFPort, mark: markNetwork, id: n.ID.String()})
		}
		for _, p := range n.Ports {
			if links[p.Link] { // else its container is not there now
				device(port{name: p.Switch(), number: p.OFPort, mark: markEndpoint, id: p.Endpoint.String()})
			}
		}
	}
	slices.SortFunc(ports, func(a, b port) int { return cmp.Compare(a.name, b.name) })
	slices.Sort(missing)
	return ports, missing
}

// tunnelOptions are those of ovs-vswitchd.conf.db(5), "Tunnel Options". The VNI is set by the flows.
func tunnelOptions(local, remote netip.Addr, udp uint16) map[string]string {
	return map[string]string{
		"local_ip": local.String(), "remote_ip": remote.String(), "key": "flow",
		"dst_port": strconv.Itoa(int(udp)),
	}
}

// present is a port of our bridge as it is.
type present struct {
	port  *portRow
	iface *interfaceRow
}

// ours reports whether it bears one of our marks.
func (f present) ours() bool {
	for _, mark := range portMarks {
		if _, ok := f.iface.ExternalIDs[mark]; ok {
			return true
		}
	}
	return false
}

// failed reports whether ovs-vswitchd could not make the port.
func (f present) failed() bool {
	return f.iface.Error != nil && *f.iface.Error != "" || f.iface.OFPort != nil && *f.iface.OFPort < 0
}

// number returns the OpenFlow port: the one it has or, while it has none, the one we asked for.
func (f present) number() uint32 {
	if f.iface.OFPort != nil && *f.iface.OFPort > 0 {
		return uint32(*f.iface.OFPort)
	}
	if f.iface.Request != nil && f.ours() {
		return uint32(*f.iface.Request)
	}
	return 0
}

// why says what ovs-vswitchd had against a port that failed.
func (f present) why() string {
	if f.iface.Error != nil && *f.iface.Error != "" {
		return *f.iface.Error
	}
	return "ovs-vswitchd gave it no port number"
}

// snapshot is what the database holds of our bridge. Read-only.
type snapshot struct {
	root   *rootRow
	bridge *bridgeRow // nil: there is none
	ports  map[string]present
	// taken holds the names of all interfaces and ports of the database: each may exist once.
	taken map[string]bool
}

// observe reads the mirror.
func (d *database) observe(bridge string) snapshot {
	s := snapshot{root: d.root(), ports: map[string]present{}, taken: map[string]bool{}}
	for _, b := range rows[bridgeRow](d, tableBridge) {
		if b.Name == bridge {
			s.bridge = b
		}
	}
	ports, ifaces := rows[portRow](d, tablePort), rows[interfaceRow](d, tableInterface)
	for _, i := range ifaces {
		s.taken[i.Name] = true
	}
	for _, p := range ports {
		s.taken[p.Name] = true
	}
	if s.bridge == nil {
		return s
	}
	for _, uuid := range s.bridge.Ports {
		p := ports[uuid]
		if p == nil || len(p.Interfaces) != 1 || ifaces[p.Interfaces[0]] == nil {
			continue // a bond, so not ours, or a row that is being written
		}
		s.ports[p.Name] = present{p, ifaces[p.Interfaces[0]]}
	}
	return s
}

// difference is what there is between a plan and a database.
type difference struct {
	addBridge bool
	setBridge bool
	remove    []string // ports, in the order of names
	add       []port
	set       []port
	// again are ports to remove in one transaction and add in a later one: within one transaction
	// ovs-vswitchd sees no change and keeps its handle of a device that is gone.
	again []port
	// clash are names that belong to somebody else.
	clash []string
}

func (c difference) empty() bool {
	return !c.addBridge && !c.setBridge && len(c.remove)+len(c.add)+len(c.set)+len(c.again) == 0
}

// diff compares. retry says whether a port that failed may be made again now.
func diff(h *plan.Host, want []port, have snapshot, retry func(name string) bool) difference {
	c := difference{addBridge: have.bridge == nil}
	c.setBridge = have.bridge != nil && !bridgeIs(have.bridge, h.Datapath)
	names := map[string]bool{}
	for _, w := range want {
		names[w.name] = true
		f, ok := have.ports[w.name]
		switch {
		case !ok && have.taken[w.name], ok && !f.ours():
			c.clash = append(c.clash, w.name)
		case !ok:
			c.add = append(c.add, w)
		case f.iface.Type != w.kind, f.iface.ExternalIDs[markIfindex] != w.externalIDs()[markIfindex],
			f.failed() && retry(w.name):
			c.again = append(c.again, w)
		case !portIs(f.iface, w):
			c.set = append(c.set, w)
		}
	}
	for name, f := range have.ports {
		if f.ours() && !names[name] {
			c.remove = append(c.remove, name)
		}
	}
	slices.Sort(c.remove)
	return c
}

func portIs(i *interfaceRow, w port) bool {
	for _, mark := range portMarks {
		if i.ExternalIDs[mark] != w.externalIDs()[mark] {
			return false
		}
	}
	return i.Request != nil && *i.Request == int(w.number) && maps.Equal(i.Options, w.options) &&
		(w.mtu == 0 || i.MTU != nil && *i.MTU == w.mtu)
}

func bridgeIs(b *bridgeRow, datapath string) bool {
	have := slices.Sorted(slices.Values(b.Protocols))
	return b.FailMode != nil && *b.FailMode == "secure" && cmp.Or(b.DatapathType, "system") == datapath &&
		slices.Equal(have, protocols[:]) && !b.STP && !b.RSTP && !b.Snooping &&
		b.OtherConfig["disable-in-band"] == "true" && b.ExternalIDs[markBridge] == layout
}

// first returns the operations of the first transaction.
func (c difference) first(h *plan.Host, have snapshot) []ovsdb.Operation {
	tx := &transaction{}
	for i, w := range c.add {
		tx.insertPort(strconv.Itoa(i), w)
	}
	for _, w := range c.set {
		tx.setPort(have.ports[w.name].iface, w)
	}
	var gone []ovsdb.UUID
	for _, name := range c.remove {
		gone = append(gone, ovsdb.UUID{GoUUID: have.ports[name].port.UUID})
	}
	for _, w := range c.again {
		gone = append(gone, ovsdb.UUID{GoUUID: have.ports[w.name].port.UUID})
	}
	if c.addBridge {
		tx.insertBridge(h, have.root)
	} else {
		if c.setBridge {
			tx.setBridge(h, have.bridge)
		}
		tx.changePorts(have.bridge, gone)
	}
	return tx.end(have.root)
}

// second returns the operations of the second transaction, none if it is not needed.
func (c difference) second(have snapshot) []ovsdb.Operation {
	if len(c.again) == 0 || have.bridge == nil {
		return nil
	}
	tx := &transaction{}
	for i, w := range c.again {
		tx.insertPort(strconv.Itoa(i), w)
	}
	tx.changePorts(have.bridge, nil)
	return tx.end(have.root)
}

// transaction collects operations (RFC 7047, section 5.2).
type transaction struct {
	ops   []ovsdb.Operation
	ports []ovsdb.UUID // inserted
}

// insertPort inserts a port and its interface, without a bridge yet.
func (tx *transaction) insertPort(suffix string, w port) {
	row := w.columns()
	row["name"], row["type"], row["external_ids"] = w.name, w.kind, ovsMap(w.externalIDs())
	tx.ops = append(tx.ops,
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: tableInterface, UUIDName: "i" + suffix, Row: row},
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: tablePort, UUIDName: "p" + suffix,
			Row: ovsdb.Row{"name": w.name, "interfaces": ovsdb.UUID{GoUUID: "i" + suffix}}})
	tx.ports = append(tx.ports, ovsdb.UUID{GoUUID: "p" + suffix})
}

// columns are those of an interface that may be changed while it is there.
func (p port) columns() ovsdb.Row {
	row := ovsdb.Row{"ofport_request": int(p.number), "options": ovsMap(p.options)}
	if p.mtu != 0 {
		row["mtu_request"] = p.mtu
	}
	return row
}

// setPort changes an interface; external_ids of others stay.
func (tx *transaction) setPort(i *interfaceRow, w port) {
	tx.ops = append(tx.ops, ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: tableInterface, Where: where(i.UUID), Row: w.columns()})
	tx.setMap(tableInterface, i.UUID, "external_ids", w.externalIDs(), portMarks[:]...)
}

// bridgeColumns are those that are ours alone.
func bridgeColumns(h *plan.Host) ovsdb.Row {
	return ovsdb.Row{
		"fail_mode": "secure", "datapath_type": h.Datapath, "protocols": ovsSet(protocols[:]),
		"stp_enable": false, "rstp_enable": false, "mcast_snooping_enable": false,
	}
}

// insertBridge inserts the bridge with its internal port and the ports inserted before.
func (tx *transaction) insertBridge(h *plan.Host, root *rootRow) {
	local := port{name: h.Bridge, kind: "internal"}
	row := bridgeColumns(h)
	row["name"] = h.Bridge
	row["other_config"] = ovsMap(map[string]string{"disable-in-band": "true"})
	row["external_ids"] = ovsMap(map[string]string{markBridge: layout})
	tx.ops = append(tx.ops,
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: tableInterface, UUIDName: "local",
			Row: ovsdb.Row{"name": local.name, "type": local.kind}},
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: tablePort, UUIDName: "localport",
			Row: ovsdb.Row{"name": local.name, "interfaces": ovsdb.UUID{GoUUID: "local"}}})
	row["ports"] = ovsSet(append(tx.ports, ovsdb.UUID{GoUUID: "localport"}))
	tx.ops = append(tx.ops,
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: tableBridge, UUIDName: "bridge", Row: row},
		mutate(tableRoot, root.UUID, "bridges", ovsdb.MutateOperationInsert, ovsSet([]ovsdb.UUID{{GoUUID: "bridge"}})))
}

// setBridge puts the bridge right; keys of others stay.
func (tx *transaction) setBridge(h *plan.Host, b *bridgeRow) {
	tx.ops = append(tx.ops, ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: tableBridge, Where: where(b.UUID), Row: bridgeColumns(h)})
	tx.setMap(tableBridge, b.UUID, "other_config", map[string]string{"disable-in-band": "true"}, "disable-in-band")
	tx.setMap(tableBridge, b.UUID, "external_ids", map[string]string{markBridge: layout}, markBridge)
}

// changePorts takes ports off the bridge, which deletes their rows, and puts the inserted ones on.
func (tx *transaction) changePorts(b *bridgeRow, gone []ovsdb.UUID) {
	if len(gone) > 0 {
		tx.ops = append(tx.ops, mutate(tableBridge, b.UUID, "ports", ovsdb.MutateOperationDelete, ovsSet(gone)))
	}
	if len(tx.ports) > 0 {
		tx.ops = append(tx.ops, mutate(tableBridge, b.UUID, "ports", ovsdb.MutateOperationInsert, ovsSet(tx.ports)))
	}
}

// setMap replaces some keys of a map column.
func (tx *transaction) setMap(table, uuid, column string, values map[string]string, keys ...string) {
	tx.ops = append(tx.ops, ovsdb.Operation{Op: ovsdb.OperationMutate, Table: table, Where: where(uuid),
		Mutations: []ovsdb.Mutation{
			*ovsdb.NewMutation(column, ovsdb.MutateOperationDelete, ovsSet(keys)),
			*ovsdb.NewMutation(column, ovsdb.MutateOperationInsert, ovsMap(values)),
		}})
}

// end returns the operations. It counts the configuration up, as ovs-vsctl does, so that
// [database.settle] can tell when ovs-vswitchd has it.
func (tx *transaction) end(root *rootRow) []ovsdb.Operation {
	return append(tx.ops, mutate(tableRoot, root.UUID, "next_cfg", ovsdb.MutateOperationAdd, 1))
}

func mutate(table, uuid, column string, how ovsdb.Mutator, value any) ovsdb.Operation {
	return ovsdb.Operation{Op: ovsdb.OperationMutate, Table: table, Where: where(uuid),
		Mutations: []ovsdb.Mutation{*ovsdb.NewMutation(column, how, value)}}
}

func where(uuid string) []ovsdb.Condition {
	return []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: uuid})}
}

func ovsMap(m map[string]string) ovsdb.OvsMap {
	om, err := ovsdb.NewOvsMap(m)
	if err != nil {
		panic(fmt.Sprintf("a map is no OVSDB map: %v", err))
	}
	return om
}

func ovsSet[T string | ovsdb.UUID](values []T) ovsdb.OvsSet {
	set, err := ovsdb.NewOvsSet(values)
	if err != nil {
		panic(fmt.Sprintf("a slice is no OVSDB set: %v", err))
	}
	return set
}
