package state

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	nameMax    = 63
	subnetMin  = 8  // the widest subnet, as a prefix length
	subnetMax  = 30 // the narrowest
	mtuMin     = 68 // RFC 791
	mtuMax     = 9216
	reserveMax = 64
	labelsMax  = 64
	vniMax     = 1<<24 - 1
)

// ID returns the network's id: the first 8 bytes of the SHA-256 of the encoded definition.
func (d *Definition) ID() NetworkID {
	h := sha256.Sum256(d.fields())
	return NetworkID(binary.BigEndian.Uint64(h[:]))
}

// ProbeVNI returns the VNI that a network tries at its i-th attempt, from 1 to 1<<24 - 1.
func ProbeVNI(id NetworkID, i uint32) uint32 {
	b := binary.BigEndian.AppendUint64([]byte("vni"), uint64(id))
	h := sha256.Sum256(binary.BigEndian.AppendUint32(b, i))
	return binary.BigEndian.Uint32(h[:])%vniMax + 1
}

// freeVNI returns the first VNI of a network's probes that is not taken.
func freeVNI(id NetworkID, taken func(uint32) bool) uint32 {
	for i := uint32(0); ; i++ {
		if v := ProbeVNI(id, i); !taken(v) {
			return v
		}
	}
}

// CheckName returns an error that says what is wrong with the name of a network or an alias.
func CheckName(name string) error {
	if name == "" {
		return Refuse(ErrInvalid, "the name is empty; use letters, digits, '_', '.' and '-'")
	}
	if len(name) > nameMax {
		return Refuse(ErrInvalid, "the name has %d characters; use at most %d", len(name), nameMax)
	}
	for i, c := range []byte(name) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", rune(c))) {
			return Refuse(ErrInvalid, "name %q: use letters, digits, '_', '.' and '-', beginning with a letter or digit", name)
		}
	}
	return nil
}

// CheckSubnet returns an error that says what is wrong with a network's subnet.
func CheckSubnet(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid():
		return Refuse(ErrInvalid, "no subnet; give one like 10.2.0.0/16")
	case !a.Is4():
		return Refuse(ErrInvalid, "subnet %s is not IPv4; give one like 10.2.0.0/16", p)
	case p.Bits() < subnetMin || p.Bits() > subnetMax:
		return Refuse(ErrInvalid, "subnet %s: use a length from /%d to /%d", p, subnetMin, subnetMax)
	case p.Masked() != p:
		return Refuse(ErrInvalid, "subnet %s has bits beyond its length; use %s", p, p.Masked())
	}
	for _, no := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"} {
		if p.Overlaps(netip.MustParsePrefix(no)) {
			return Refuse(ErrInvalid, "subnet %s is not usable for containers (%s); use one like 10.2.0.0/16", p, no)
		}
	}
	return nil
}

// Check returns an error that says what is wrong with a definition.
func (d *Definition) Check() error {
	if err := CheckName(d.Name); err != nil {
		return err
	}
	if err := CheckSubnet(d.Subnet); err != nil {
		return err
	}
	if d.Gateway.IsValid() && !d.host(d.Gateway) {
		return Refuse(ErrInvalid, "gateway %s is not a host address of %s; use one like %s",
			d.Gateway, d.Subnet, d.Subnet.Addr().Next())
	}
	if d.MTU != 0 && (d.MTU < mtuMin || d.MTU > mtuMax) {
		return Refuse(ErrInvalid, "MTU %d: use one from %d to %d", d.MTU, mtuMin, mtuMax)
	}
	if b := int(d.BlockBits); b != 0 && (b < d.Subnet.Bits() || b > 32) {
		return Refuse(ErrInvalid, "block bits %d: use a length from %d to 32", b, d.Subnet.Bits())
	}
	if len(d.Reserve) > reserveMax || len(d.Labels) > labelsMax {
		return Refuse(ErrInvalid, "%d reserved ranges and %d labels; use at most %d and %d",
			len(d.Reserve), len(d.Labels), reserveMax, labelsMax)
	}
	for _, r := range d.Reserve {
		if !d.Subnet.Contains(r.From) || !d.Subnet.Contains(r.To) || r.To.Less(r.From) {
			return Refuse(ErrInvalid, "reserved range %s-%s is not in %s", r.From, r.To, d.Subnet)
		}
	}
	for _, l := range d.Labels {
		if l.Key == "" || len(l.Key) > 255 || len(l.Value) > 1024 || !utf8.ValidString(l.Key) || !utf8.ValidString(l.Value) {
			return Refuse(ErrInvalid, "label %.40q: use a key of at most 255 and a value of at most 1024 bytes", l.Key)
		}
	}
	return nil
}

// host reports whether an address is one of the subnet that a host may have.
func (d *Definition) host(a netip.Addr) bool {
	return d.Subnet.Contains(a) && a != d.Subnet.Addr() && a != Broadcast(d.Subnet)
}

// Allocatable reports whether an endpoint may have an address: a host address of the subnet that is
// neither the gateway's nor reserved.
func (d *Definition) Allocatable(a netip.Addr) bool {
	if !d.host(a) || a == d.Gateway {
		return false
	}
	return !slices.ContainsFunc(d.Reserve, func(r Range) bool { return !a.Less(r.From) && !r.To.Less(a) })
}

// Room is how many addresses of a range of the subnet containers may have.
func (d *Definition) Room(p netip.Prefix) uint64 {
	number := func(a netip.Addr) uint64 {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:]))
	}
	from := number(p.Masked().Addr())
	to := from + 1<<(32-p.Bits()) - 1
	out := [][2]uint64{{number(d.Subnet.Addr()), number(d.Subnet.Addr())}}
	last := number(Broadcast(d.Subnet))
	out = append(out, [2]uint64{last, last})
	if d.Gateway.Is4() {
		out = append(out, [2]uint64{number(d.Gateway), number(d.Gateway)})
	}
	for _, r := range d.Reserve {
		if r.From.Is4() && r.To.Is4() {
			out = append(out, [2]uint64{number(r.From), number(r.To)})
		}
	}
	slices.SortFunc(out, func(a, b [2]uint64) int { return cmp.Compare(a[0], b[0]) })
	room, at := to-from+1, from
	for _, r := range out {
		lo, hi := max(r[0], at), min(r[1], to)
		if lo <= hi {
			room -= hi - lo + 1
			at = hi + 1
		}
	}
	return room
}

// Broadcast returns the last address of an IPv4 subnet.
func Broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | uint32(1<<(32-p.Bits())-1)
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// FreeSubnet returns the first /16 of 10.2.0.0 to 10.255.0.0, then of 172.16.0.0 to 172.31.0.0, that
// overlaps none of those taken.
func FreeSubnet(taken []netip.Prefix) (netip.Prefix, error) {
	free := func(a, b byte) (netip.Prefix, bool) {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b, 0, 0}), 16)
		return p, !slices.ContainsFunc(taken, p.Overlaps)
	}
	for b := 2; b <= 255; b++ {
		if p, ok := free(10, byte(b)); ok {
			return p, nil
		}
	}
	for b := 16; b <= 31; b++ {
		if p, ok := free(172, byte(b)); ok {
			return p, nil
		}
	}
	return netip.Prefix{}, Refuse(ErrNoSubnet, "no /16 of 10.0.0.0/8 or 172.16.0.0/12 is free; give a SUBNET")
}

// Definition returns the definition that a wish stands for, with what it leaves open chosen: a
// subnet that overlaps none of those taken, the first address as gateway. The error says what is
// wrong with it.
func (c Create) Definition(taken []netip.Prefix) (Definition, error) {
	d := Definition{
		Name: c.Name, Subnet: c.Subnet, Gateway: c.Gateway, Internal: c.Internal,
		BlockBits: c.BlockBits, MTU: c.MTU,
		Reserve: slices.Clone(c.Reserve), Labels: slices.Clone(c.Labels),
	}
	if err := CheckName(d.Name); err != nil {
		return d, err
	}
	if !d.Subnet.IsValid() {
		var err error
		if d.Subnet, err = FreeSubnet(taken); err != nil {
			return d, err
		}
	}
	if err := CheckSubnet(d.Subnet); err != nil {
		return d, err
	}
	if !d.Gateway.IsValid() && !c.NoGateway {
		d.Gateway = d.Subnet.Addr().Next()
	}
	d.sort()
	return d, d.Check()
}

// sort gives the lists of a definition the order in which it is hashed.
func (d *Definition) sort() {
	slices.SortFunc(d.Reserve, func(a, b Range) int {
		if c := a.From.Compare(b.From); c != 0 {
			return c
		}
		return a.To.Compare(b.To)
	})
	slices.SortFunc(d.Labels, func(a, b Label) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return strings.Compare(a.Value, b.Value)
	})
}
