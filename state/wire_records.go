package state

import (
	"slices"

	"meshnet/crdt"
)

const nodeFields = "bbuuuuub"

func (n *Node) encode() []byte {
	b := []byte{version}
	b = appendBytes(b, 1, n.Name)
	b = appendAddr(b, 2, n.Addr)
	b = appendUint(b, 3, uint64(n.GossipPort))
	b = appendUint(b, 4, uint64(n.TunnelPort))
	b = appendUint(b, 5, uint64(n.Encap))
	b = appendUint(b, 6, uint64(n.Transport))
	b = appendUint(b, 7, uint64(n.MTU))
	b = appendBytes(b, 8, n.Version)
	return append(b, n.unknown...)
}

func decodeNode(b []byte) (n Node, err error) {
	n.unknown, err = record(b, nodeFields, func(f field) error {
		switch f.num {
		case 1:
			n.Name = string(f.bytes)
		case 2:
			return readAddr(&n.Addr, f)
		case 3:
			return small(&n.GossipPort, f)
		case 4:
			return small(&n.TunnelPort, f)
		case 5:
			return small(&n.Encap, f)
		case 6:
			return small(&n.Transport, f)
		case 7:
			return small(&n.MTU, f)
		case 8:
			n.Version = string(f.bytes)
		}
		return nil
	})
	return n, err
}

const definitionFields = "bbbuuurru"

// fields is the definition without a version: part of a record, and what its id is a hash of.
func (d *Definition) fields() []byte {
	var b []byte
	b = appendBytes(b, 1, d.Name)
	b = appendPrefix(b, 2, d.Subnet)
	b = appendAddr(b, 3, d.Gateway)
	b = appendBool(b, 4, d.Internal)
	b = appendUint(b, 5, uint64(d.BlockBits))
	b = appendUint(b, 6, uint64(d.MTU))
	for _, r := range d.Reserve {
		p := appendAddr(nil, 1, r.From)
		b = appendField(b, 7, appendAddr(p, 2, r.To))
	}
	for _, l := range d.Labels {
		p := appendBytes(nil, 1, l.Key)
		b = appendField(b, 8, appendBytes(p, 2, l.Value))
	}
	b = appendUint(b, 9, uint64(d.Life))
	return append(b, d.unknown...)
}

func decodeDefinition(b []byte) (d Definition, err error) {
	d.unknown, err = scan(b, definitionFields, func(f field) error {
		switch f.num {
		case 1:
			d.Name = string(f.bytes)
		case 2:
			return readPrefix(&d.Subnet, f)
		case 3:
			return readAddr(&d.Gateway, f)
		case 4:
			return readBool(&d.Internal, f)
		case 5:
			return small(&d.BlockBits, f)
		case 6:
			return small(&d.MTU, f)
		case 7:
			r, err := decodeRange(f.bytes)
			d.Reserve = append(d.Reserve, r)
			return err
		case 8:
			l, err := decodeLabel(f.bytes)
			d.Labels = append(d.Labels, l)
			return err
		case 9:
			return small(&d.Life, f)
		}
		return nil
	})
	d.unknown = slices.Clone(d.unknown)
	return d, err
}

func decodeRange(b []byte) (r Range, err error) {
	rest, err := scan(b, "bb", func(f field) error {
		if f.num == 1 {
			return readAddr(&r.From, f)
		}
		return readAddr(&r.To, f)
	})
	if err == nil && len(rest) > 0 {
		err = errWire // a range and a label are closed: what they lack comes as a new field
	}
	return r, err
}

func decodeLabel(b []byte) (l Label, err error) {
	rest, err := scan(b, "bb", func(f field) error {
		if f.num == 1 {
			l.Key = string(f.bytes)
		} else {
			l.Value = string(f.bytes)
		}
		return nil
	})
	if err == nil && len(rest) > 0 {
		err = errWire
	}
	return l, err
}

const createdFields = "buuuu"

func (c *Created) encode() []byte { return append([]byte{version}, c.fields()...) }

func (c *Created) fields() []byte {
	b := appendBytes(nil, 1, c.Def.fields())
	b = appendUint(b, 2, uint64(c.VNI))
	b = appendUint(b, 3, c.Lamport)
	b = appendUint(b, 4, uint64(c.At))
	b = appendUint(b, 5, uint64(c.Creator))
	return append(b, c.unknown...)
}

func (c *Created) field(f field) (err error) {
	switch f.num {
	case 1:
		c.Def, err = decodeDefinition(f.bytes)
	case 2:
		return small(&c.VNI, f)
	case 3:
		c.Lamport = f.uint
	case 4:
		c.At = int64(f.uint)
	case 5:
		c.Creator = NodeID(f.uint)
	}
	return err
}

func decodeCreated(b []byte) (c Created, err error) {
	c.unknown, err = record(b, createdFields, c.field)
	return c, err
}

const endpointFields = "ubbbbruuur"

func (e *Endpoint) encode() []byte {
	b := []byte{version}
	b = appendUint(b, 1, uint64(e.Network))
	b = appendBytes(b, 2, e.Container)
	b = appendAddr(b, 3, e.Addr)
	if e.MAC != (MAC{}) {
		b = appendField(b, 4, e.MAC[:])
	}
	b = appendBytes(b, 5, e.IfName)
	for _, n := range e.Names {
		b = appendField(b, 6, n)
	}
	b = appendUint(b, 7, e.Alloc)
	b = appendUint(b, 8, uint64(e.At))
	b = appendBool(b, 9, e.Down)
	for _, p := range e.Publish {
		f := appendUint(nil, 1, uint64(p.Proto))
		f = appendUint(f, 2, uint64(p.HostPort))
		b = appendField(b, 10, appendUint(f, 3, uint64(p.Port)))
	}
	return append(b, e.unknown...)
}

func decodeEndpoint(b []byte) (e Endpoint, err error) {
	e.unknown, err = record(b, endpointFields, func(f field) error {
		switch f.num {
		case 1:
			e.Network = NetworkID(f.uint)
		case 2:
			e.Container = string(f.bytes)
		case 3:
			return readAddr(&e.Addr, f)
		case 4:
			if len(f.bytes) != len(e.MAC) || MAC(f.bytes) == (MAC{}) {
				return errWire
			}
			e.MAC = MAC(f.bytes)
		case 5:
			e.IfName = string(f.bytes)
		case 6:
			e.Names = append(e.Names, string(f.bytes))
		case 7:
			e.Alloc = f.uint
		case 8:
			e.At = int64(f.uint)
		case 9:
			return readBool(&e.Down, f)
		case 10:
			p, err := decodePublished(f.bytes)
			e.Publish = append(e.Publish, p)
			return err
		}
		return nil
	})
	return e, err
}

func decodePublished(b []byte) (p Published, err error) {
	rest, err := scan(b, "uuu", func(f field) error {
		switch f.num {
		case 1:
			return small(&p.Proto, f)
		case 2:
			return small(&p.HostPort, f)
		case 3:
			return small(&p.Port, f)
		}
		return nil
	})
	if err == nil && (len(rest) > 0 || p.Proto > UDP || p.HostPort == 0 || p.Port == 0) {
		err = errWire // it is closed, like a range
	}
	return p, err
}

const useFields = "b"

func (u *Use) encode() []byte {
	b := appendBytes([]byte{version}, 1, u.Created.fields())
	return append(b, u.unknown...)
}

func decodeUse(b []byte) (u Use, err error) {
	u.unknown, err = record(b, useFields, func(f field) error {
		rest, err := scan(f.bytes, createdFields, u.Created.field)
		u.Created.unknown = slices.Clone(rest)
		return err
	})
	return u, err
}

const blockFields = "uuuuuuubu"

func (k *Block) encode() []byte {
	b := []byte{version}
	b = appendUint(b, 1, uint64(k.Root.Creator))
	b = appendUint(b, 2, uint64(k.Root.At))
	b = appendBool(b, 3, k.Sealed)
	b = appendUint(b, 4, k.Ver)
	b = appendUint(b, 5, uint64(k.Kind))
	b = appendUint(b, 6, uint64(k.To))
	b = appendUint(b, 7, uint64(k.ToEpoch))
	b = appendIDs(b, 8, k.Lineage)
	b = appendUint(b, 9, uint64(k.State))
	return append(b, k.unknown...)
}

func decodeBlock(b []byte) (k Block, err error) {
	k.unknown, err = record(b, blockFields, func(f field) (err error) {
		switch f.num {
		case 1:
			k.Root.Creator = NodeID(f.uint)
		case 2:
			k.Root.At = int64(f.uint)
		case 3:
			return readBool(&k.Sealed, f)
		case 4:
			k.Ver = f.uint
		case 5:
			return small(&k.Kind, f)
		case 6:
			k.To = NodeID(f.uint)
		case 7:
			return small(&k.ToEpoch, f)
		case 8:
			k.Lineage, err = readIDs[NodeID](f)
		case 9:
			return small(&k.State, f)
		}
		return err
	})
	return k, err
}

// kill is the shared record that asks the users of a removed network to detach: key kill/<net>. It
// names the uses that the remover saw; a later one survives it.
type kill struct {
	uses    []useAt // by node
	unknown []byte
}

// useAt is one write of a use record.
type useAt struct {
	node  NodeID
	epoch crdt.Epoch
	seq   crdt.Seq
}

func (k *kill) encode() []byte {
	b := []byte{version}
	for _, u := range k.uses {
		p := appendUint(nil, 1, uint64(u.node))
		p = appendUint(p, 2, uint64(u.epoch))
		b = appendField(b, 1, appendUint(p, 3, uint64(u.seq)))
	}
	return append(b, k.unknown...)
}

func decodeKill(b []byte) (k kill, err error) {
	k.unknown, err = record(b, "r", func(f field) error {
		var u useAt
		rest, err := scan(f.bytes, "uuu", func(f field) error {
			switch f.num {
			case 1:
				u.node = NodeID(f.uint)
			case 2:
				return small(&u.epoch, f)
			case 3:
				u.seq = crdt.Seq(f.uint)
			}
			return nil
		})
		if err == nil && len(rest) > 0 {
			err = errWire
		}
		k.uses = append(k.uses, u)
		return err
	})
	return k, err
}

// encodeLoss and decodeLoss are the record of forget/<node>: the epoch up to which it is given up,
// read as the highest known, and who inherits what nobody else is left to, read as the lowest.
func encodeLoss(e crdt.Epoch, heir NodeID) []byte {
	return appendUint(encodeCount(uint32(e)), 2, uint64(heir))
}

func decodeLoss(b []byte) (e crdt.Epoch, heir NodeID, err error) {
	_, err = record(b, "uu", func(f field) error {
		if f.num == 2 {
			heir = NodeID(f.uint)
			return nil
		}
		return small(&e, f)
	})
	return e, heir, err
}

// encodeCount and decodeCount are the record of life/<definition>, the life of its next network. It is
// read as the highest known.
func encodeCount(n uint32) []byte { return appendUint([]byte{version}, 1, uint64(n)) }

func decodeCount(b []byte) (n uint32, err error) {
	_, err = record(b, "u", func(f field) error { return small(&n, f) })
	return n, err
}
