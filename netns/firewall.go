package netns

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// table is the name of our nftables table, family inet. All in it is ours.
const table = "meshnet"

// elementsMax bounds the set elements in one message: its length has 16 bits.
const elementsMax = 1000

// peerSet is the set of peers of one address family and how the source address is found in a packet.
type peerSet struct {
	name   string
	family byte
	key    nftables.SetDatatype
	offset uint32 // of the source address, RFC 791 and RFC 8200
	length uint32
}

// peerSets returns the sets of the table.
func peerSets() []peerSet {
	return []peerSet{
		{"peers", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, 4},
		{"peers6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 8, 16},
	}
}

// firewall makes the table as planned: what comes to the tunnel port from others than peers is
// dropped. A kernel VXLAN device takes a packet from anybody. Loopback is left alone.
func (r *round) firewall(f plan.Firewall) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		if !f.On {
			return nil // a kernel without nftables has nothing of ours
		}
		return fmt.Errorf("list nftables tables: %w; the kernel needs nf_tables, or anybody may send into the tunnels", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table })
	switch {
	case i < 0 && !f.On:
		return nil
	case !f.On:
		c.DelTable(tables[i])
		r.did("remove", "nftables table %s", table)
	case i < 0 || !intact(c, tables[i], f.Port):
		if i >= 0 {
			c.DelTable(tables[i])
		}
		if err := build(c, f); err != nil {
			return fmt.Errorf("build nftables table %s: %w", table, err)
		}
		r.did("add", "nftables table %s for UDP port %d and %d peers", table, f.Port, len(f.Peers))
	default:
		changed, err := r.peers(c, tables[i], f.Peers)
		if err != nil {
			return fmt.Errorf("set peers in nftables table %s: %w", table, err)
		}
		if !changed {
			return nil
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", table, err)
	}
	return nil
}

// build adds the whole table. It is one transaction with what is sent before and after.
func build(c *nftables.Conn, f plan.Firewall) error {
	t := c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	accept := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{
		Name: "input", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
	for _, p := range peerSets() {
		set := &nftables.Set{Table: t, Name: p.name, KeyType: p.key}
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		for part := range slices.Chunk(p.elements(f.Peers), elementsMax) {
			if err := c.SetAddElements(set, part); err != nil {
				return err
			}
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: p.rule(f.Port)})
	}
	return nil
}

// rule returns: meta nfproto FAMILY iifname != "lo" udp dport PORT saddr != @SET counter drop.
func (p peerSet) rule(port uint16) []expr.Any {
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p.family}},
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: lo},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: p.offset, Len: p.length},
		&expr.Lookup{SourceRegister: 1, SetName: p.name, Invert: true},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// intact reports whether all but the elements of the sets is as build makes it.
func intact(c *nftables.Conn, t *nftables.Table, port uint16) bool {
	sets, err := c.GetSets(t)
	if err != nil {
		return false
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false
	}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != table })
	if len(chains) != 1 || !isInput(chains[0]) {
		return false
	}
	rules, err := c.GetRules(t, chains[0])
	want := peerSets()
	if err != nil || len(rules) != len(want) || len(sets) != len(want) {
		return false
	}
	for i, p := range want {
		has := slices.ContainsFunc(sets, func(s *nftables.Set) bool {
			return s.Name == p.name && s.KeyType.Name == p.key.Name
		})
		if !has || !reflect.DeepEqual(bare(rules[i].Exprs), p.rule(port)) {
			return false
		}
	}
	return true
}

func isInput(c *nftables.Chain) bool {
	return c.Name == "input" && c.Type == nftables.ChainTypeFilter && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookInput &&
		c.Priority != nil && *c.Priority == *nftables.ChainPriorityFilter && c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
}

// bare returns expressions without what changes by itself.
func bare(in []expr.Any) []expr.Any {
	out := slices.Clone(in)
	for i, e := range out {
		switch e := e.(type) {
		case *expr.Counter:
			out[i] = &expr.Counter{}
		case *expr.Lookup:
			l := *e
			l.SetID = 0
			out[i] = &l
		}
	}
	return out
}

// peers asks for the difference between the elements of the sets and the peers. It reports whether
// there is one.
func (r *round) peers(c *nftables.Conn, t *nftables.Table, peers []netip.Addr) (bool, error) {
	changed := false
	for _, p := range peerSets() {
		set := &nftables.Set{Table: t, Name: p.name, KeyType: p.key}
		have, err := c.GetSetElements(set)
		if err != nil {
			return false, err
		}
		want := p.elements(peers)
		add, remove := without(want, have), without(have, want)
		for part := range slices.Chunk(add, elementsMax) {
			if err := c.SetAddElements(set, part); err != nil {
				return false, err
			}
		}
		for part := range slices.Chunk(remove, elementsMax) {
			if err := c.SetDeleteElements(set, part); err != nil {
				return false, err
			}
		}
		if len(add)+len(remove) > 0 {
			changed = true
			r.did("set", "nftables set %s%s%s", p.name, list(" with ", add), list(" without ", remove))
		}
	}
	return changed, nil
}

// elements returns the peers of the set's family.
func (p peerSet) elements(peers []netip.Addr) []nftables.SetElement {
	var out []nftables.SetElement
	for _, a := range peers {
		if a = a.Unmap(); a.BitLen() == int(p.length)*8 {
			out = append(out, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	return out
}

// without returns the elements of a that are not in b.
func without(a, b []nftables.SetElement) []nftables.SetElement {
	in := make(map[string]bool, len(b))
	for _, e := range b {
		in[string(e.Key)] = true
	}
	return slices.DeleteFunc(slices.Clone(a), func(e nftables.SetElement) bool { return in[string(e.Key)] })
}

// list returns elements as addresses, after a word; empty if there are none.
func list(word string, elements []nftables.SetElement) string {
	var out []string
	for _, e := range elements {
		a, _ := netip.AddrFromSlice(e.Key)
		out = append(out, a.String())
	}
	if len(out) == 0 {
		return ""
	}
	return word + strings.Join(out, " ")
}
