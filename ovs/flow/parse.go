package flow

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"meshnet/state"
)

// ParseDump reads what ovs-ofctl dump-flows prints, or one flow a line; empty lines, comments from #
// and the line that introduces a reply are skipped.
func ParseDump(text string) ([]Flow, error) {
	var fs []Flow
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.Contains(line, " reply (") {
			continue
		}
		f, err := Parse(line)
		if err != nil {
			return nil, err
		}
		fs = append(fs, f)
	}
	return fs, nil
}

// Parse reads one flow in the syntax of ovs-ofctl(8), as [Flow.String] writes it and as dump-flows
// prints it, counters and ages included. A field or an action that this package has no type for is
// an error.
func Parse(s string) (Flow, error) {
	f := Flow{Priority: 32768} // what ovs-ofctl takes when none is given
	match, actions, ok := strings.Cut(s, "actions=")
	if !ok {
		return Flow{}, fmt.Errorf("parse flow %q: no actions=", s)
	}
	for _, word := range strings.FieldsFunc(match, func(r rune) bool { return r == ' ' || r == ',' }) {
		if err := f.parseField(word); err != nil {
			return Flow{}, fmt.Errorf("parse flow %q: %s: %w", s, word, err)
		}
	}
	if actions = strings.TrimSpace(actions); actions == "drop" {
		return f, nil
	}
	for word := range strings.SplitSeq(actions, ",") {
		a, err := parseAction(word)
		if err != nil {
			return Flow{}, fmt.Errorf("parse flow %q: %s: %w", s, word, err)
		}
		f.Actions = append(f.Actions, a)
	}
	return f, nil
}

// parseField takes in one word: name=value or the name of a protocol.
func (f *Flow) parseField(word string) (err error) {
	name, value, ok := strings.Cut(word, "=")
	if !ok {
		return f.Match.parseProtocol(word)
	}
	switch name {
	case "duration", "n_packets", "n_bytes", "idle_age", "hard_age":
		return nil // what the switch counted
	case "cookie":
		f.Cookie, err = parseNumber[uint64](value)
	case "table":
		f.Table, err = parseNumber[uint8](value)
	case "priority":
		f.Priority, err = parseNumber[uint16](value)
	default:
		return f.Match.parseField(name, value)
	}
	return err
}

func (m *Match) parseProtocol(word string) error {
	for _, w := range protocols {
		if w.word == word && word != "" {
			m.EthType, m.IPProto = w.eth, w.ip
			return nil
		}
	}
	return fmt.Errorf("unknown protocol")
}

func (m *Match) parseField(name, value string) (err error) {
	switch name {
	case "tun_id":
		m.TunID, err = parseMasked[uint64](value)
	case "metadata":
		m.Metadata, err = parseMasked[uint64](value)
	case "in_port":
		m.InPort, err = parseNumber[uint32](value)
	case "dl_src":
		m.EthSrc, err = parseMaskedMAC(value)
	case "dl_dst":
		m.EthDst, err = parseMaskedMAC(value)
	case "dl_type":
		m.EthType, err = parseNumber[uint16](value)
	case "nw_src":
		m.IPSrc, err = parsePrefix(value)
	case "nw_dst":
		m.IPDst, err = parsePrefix(value)
	case "nw_proto":
		m.IPProto, err = parseNumber[uint8](value)
	case "arp_spa":
		m.ARPSPA, err = parsePrefix(value)
	case "arp_tpa":
		m.ARPTPA, err = parsePrefix(value)
	case "arp_op":
		m.ARPOp, err = parseNumber[uint16](value)
	case "arp_sha":
		m.ARPSHA, err = parseMaskedMAC(value)
	case "arp_tha":
		m.ARPTHA, err = parseMaskedMAC(value)
	case "icmp_type":
		m.ICMPType, err = parseMasked[uint8](value)
	case "icmp_code":
		m.ICMPCode, err = parseMasked[uint8](value)
	case "tp_src":
		m.TPSrc, err = parseMasked[uint16](value)
	case "tp_dst":
		m.TPDst, err = parseMasked[uint16](value)
	default:
		return fmt.Errorf("unknown field")
	}
	return err
}

func parseAction(word string) (Action, error) {
	switch word {
	case "CONTROLLER:65535":
		return Controller{}, nil
	case "IN_PORT":
		return OutputInPort{}, nil
	}
	verb, arg, _ := strings.Cut(word, ":")
	left, right, _ := strings.Cut(arg, "->")
	switch verb {
	case "output":
		port, err := parseNumber[uint32](arg)
		return Output{port}, err
	case "goto_table":
		table, err := parseNumber[uint8](arg)
		return Goto{table}, err
	case "set_field":
		f := fieldNamed(right, Field.String)
		if f == 0 {
			return nil, fmt.Errorf("unknown field")
		}
		v, err := f.parse(left)
		return SetField{f, v}, err
	case "move":
		a := Move{fieldNamed(left, Field.whole), fieldNamed(right, Field.whole)}
		if a.From == 0 || a.To == 0 || a.From.Bits() != a.To.Bits() {
			return nil, fmt.Errorf("want two known whole fields of one width")
		}
		return a, nil
	}
	return nil, fmt.Errorf("unknown action")
}

// fieldNamed returns the field that has a name, or 0.
func fieldNamed(s string, name func(Field) string) Field {
	for f := FieldTunID; f < fieldEnd; f++ {
		if name(f) == s {
			return f
		}
	}
	return 0
}

// parse is the inverse of format.
func (f Field) parse(s string) (uint64, error) {
	switch fields[f].form {
	case formMAC:
		mac, err := state.ParseMAC(s)
		return SetMAC(f, mac).Value, err
	case formAddr:
		a, err := parseAddr(s)
		return SetAddr(f, a).Value, err
	case formDecimal:
		v, err := parseNumber[uint16](s)
		if err == nil && v>>f.Bits() != 0 {
			err = fmt.Errorf("%d is wider than %d bits", v, f.Bits())
		}
		return uint64(v), err
	}
	return parseNumber[uint64](s)
}

// parseNumber reads a decimal or, after 0x, a hexadecimal number that fits the type.
func parseNumber[T uint8 | uint16 | uint32 | uint64](s string) (T, error) {
	n, err := strconv.ParseUint(s, 0, 64)
	if err == nil && uint64(T(n)) != n {
		err = fmt.Errorf("%s is larger than %d", s, ^T(0))
	}
	return T(n), err
}

// parseMasked reads VALUE or VALUE/MASK.
func parseMasked[T uint8 | uint16 | uint64](s string) (Masked[T], error) {
	value, mask, masked := strings.Cut(s, "/")
	m := Masked[T]{Mask: ^T(0)}
	var err error
	if masked {
		if m.Mask, err = parseNumber[T](mask); err != nil {
			return Masked[T]{}, err
		}
	}
	m.Value, err = parseNumber[T](value)
	m.Value &= m.Mask
	return m, err
}

func parseMaskedMAC(s string) (Masked[state.MAC], error) {
	value, mask, masked := strings.Cut(s, "/")
	m := Masked[state.MAC]{Mask: broadcast}
	var err error
	if masked {
		if m.Mask, err = state.ParseMAC(mask); err != nil {
			return Masked[state.MAC]{}, err
		}
	}
	m.Value, err = state.ParseMAC(value)
	for i := range m.Value {
		m.Value[i] &= m.Mask[i]
	}
	return m, err
}

// parsePrefix reads an IPv4 address, alone or with a prefix length. A length of zero is no match.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := parseAddr(s)
		return Host(a), err
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, err
	case !p.Addr().Is4():
		return netip.Prefix{}, fmt.Errorf("want an IPv4 prefix")
	case p.Bits() == 0:
		return netip.Prefix{}, nil
	}
	return p.Masked(), nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && !a.Is4() {
		err = fmt.Errorf("want an IPv4 address")
	}
	if err != nil {
		return netip.AddrFrom4([4]byte{}), err
	}
	return a, nil
}
