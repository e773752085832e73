package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// table is the name of our nftables table, family inet. All in it is ours.
const table = "meshnet"

// elementsMax bounds the set elements in one message: its length has 16 bits.
const elementsMax = 1000

// peerSet is the set of peers of one address family and how addresses are found in a packet.
type peerSet struct {
	name   string
	family byte
	key    nftables.SetDatatype
	source uint32 // offset of the source address, RFC 791 and RFC 8200
	dest   uint32
	length uint32
}

// peerSets returns the sets of the table.
func peerSets() []peerSet {
	return []peerSet{
		{"peers", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, 16, 4},
		{"peers6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 8, 24, 16},
	}
}

// firewall makes the table as planned. It is rewritten in one transaction where a rule differs, so
// that it is never half there; a change of peers only changes elements.
func (r *round) firewall(f plan.Firewall, g *plan.Gateway) error {
	on := f.Port != 0
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		if !f.On && g == nil {
			return nil // a kernel without nftables has nothing of ours
		}
		return fmt.Errorf("list nftables tables: %w; the kernel needs nf_tables, or anybody may send into the tunnels", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table })
	want := chains(f, g)
	var step func()
	switch {
	case i < 0 && !on:
		return nil
	case !on:
		c.DelTable(tables[i])
		step = func() { r.did("remove", "nftables table %s", table) }
	case i < 0 || !intact(c, tables[i], want):
		if i >= 0 {
			c.DelTable(tables[i])
		}
		if err := build(c, f, want); err != nil {
			return fmt.Errorf("build nftables table %s: %w", table, err)
		}
		step = func() { r.did("add", "nftables table %s for UDP port %d and %d peers", table, f.Port, len(f.Peers)) }
	default:
		what, err := changePeers(c, tables[i], f.Peers)
		if err != nil {
			return fmt.Errorf("set peers in nftables table %s: %w", table, err)
		}
		if len(what) == 0 {
			return nil
		}
		step = func() {
			for _, w := range what {
				r.did("set", "nftables set %s", w)
			}
		}
	}
	if err := r.change(c.Flush); err != nil {
		return fmt.Errorf("write nftables table %s: %w", table, err)
	}
	step()
	return nil
}

// build adds the whole table. It is one transaction with what is sent before and after.
func build(c *nftables.Conn, f plan.Firewall, want []chain) error {
	t := c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
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
	}
	accept := nftables.ChainPolicyAccept
	for _, w := range want {
		ch := c.AddChain(&nftables.Chain{
			Name: w.name, Table: t, Type: w.kind, Hooknum: w.hook, Priority: w.priority, Policy: &accept,
		})
		for _, rule := range w.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: rule})
		}
	}
	return nil
}

// intact reports whether all but the elements of the sets is as build makes it.
func intact(c *nftables.Conn, t *nftables.Table, want []chain) bool {
	sets, err := c.GetSets(t)
	if err != nil || len(sets) != len(peerSets()) {
		return false
	}
	for _, p := range peerSets() {
		if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == p.name && s.KeyType.Name == p.key.Name }) {
			return false
		}
	}
	have, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false
	}
	have = slices.DeleteFunc(have, func(ch *nftables.Chain) bool { return ch.Table.Name != table })
	if len(have) != len(want) {
		return false
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(ch *nftables.Chain) bool { return ch.Name == w.name })
		if i < 0 || !w.is(have[i]) {
			return false
		}
		rules, err := c.GetRules(t, have[i])
		if err != nil || len(rules) != len(w.rules) {
			return false
		}
		for j, rule := range w.rules {
			if !reflect.DeepEqual(bare(rules[j].Exprs), bare(rule)) {
				return false
			}
		}
	}
	return true
}

func (w chain) is(c *nftables.Chain) bool {
	return c.Type == w.kind && c.Hooknum != nil && *c.Hooknum == *w.hook && c.Priority != nil && *c.Priority == *w.priority &&
		c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
}

// bare returns expressions without what changes by itself, and without what the library does not read
// back: into which register a ct statement looks.
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
		case *expr.Ct:
			out[i] = &expr.Ct{Key: e.Key}
		}
	}
	return out
}

// changePeers asks for the difference between the elements of the sets and the peers, and says what
// it is.
func changePeers(c *nftables.Conn, t *nftables.Table, peers []netip.Addr) (what []string, err error) {
	for _, p := range peerSets() {
		set := &nftables.Set{Table: t, Name: p.name, KeyType: p.key}
		have, err := c.GetSetElements(set)
		if err != nil {
			return nil, err
		}
		want := p.elements(peers)
		add, remove := without(want, have), without(have, want)
		for part := range slices.Chunk(add, elementsMax) {
			if err := c.SetAddElements(set, part); err != nil {
				return nil, err
			}
		}
		for part := range slices.Chunk(remove, elementsMax) {
			if err := c.SetDeleteElements(set, part); err != nil {
				return nil, err
			}
		}
		if len(add)+len(remove) > 0 {
			what = append(what, p.name+list(" with ", add)+list(" without ", remove))
		}
	}
	return what, nil
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

// Others' firewalls: an accept in our table does not undo a drop in another chain of the same hook.
// iptables' FORWARD often has the policy DROP (Docker sets it); our packets pass it by rules at its
// end, so that what a person put before them still counts.

// letPass makes iptables' chain FORWARD let pass what goes through the gateway; name is that of the
// gateway's host end, empty: take back what was made.
func (r *round) letPass(name string) error {
	return errors.Join(r.letPassNFT(name), r.letPassLegacy(name))
}

func (r *round) letPassNFT(name string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil // no nftables: told where it is needed
	}
	for _, ch := range all {
		if ch.Table.Name != "filter" || ch.Name != "FORWARD" || ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return fmt.Errorf("read chain FORWARD of nftables table ip filter: %w", err)
		}
		drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		changed := false
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			want := []expr.Any{
				&expr.Meta{Key: key, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifName(gatewayName)},
				&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept},
			}
			has := false
			for _, rule := range rules {
				if !reflect.DeepEqual(bare(rule.Exprs), want) {
					continue
				}
				has = true
				if name == "" || !drops {
					changed = true
					if err := c.DelRule(rule); err != nil {
						return err
					}
				}
			}
			if name != "" && drops && !has {
				changed = true
				c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: want})
			}
		}
		if !changed {
			return nil
		}
		if err := r.change(c.Flush); err != nil {
			return fmt.Errorf("change chain FORWARD of nftables table ip filter: %w", err)
		}
		r.did("set", "iptables FORWARD for %s", gatewayName)
	}
	return nil
}
