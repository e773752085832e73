package api

import (
	"encoding/hex"
	"fmt"
	"math"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"meshnet/agent"
	"meshnet/state"
)

// each converts a list; the result is never nil, so that JSON has [] and not null.
func each[T, U any](list []T, f func(T) U) []U {
	out := make([]U, 0, len(list))
	for _, v := range list {
		out = append(out, f(v))
	}
	return out
}

// list returns a copy that is never nil.
func list(s []string) []string { return append([]string{}, s...) }

// text returns an address or prefix, and nothing for an invalid one.
func text[T interface {
	IsValid() bool
	String() string
}](v T) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

func nodeOf(n agent.Node) Node {
	out := Node{
		ID: n.ID.String(), Name: n.Name, Address: text(n.Addr), State: n.State.String(),
		RTT: n.RTT.Seconds(), Self: n.Self, Version: n.Version,
	}
	if !n.Since.IsZero() {
		out.Since = &n.Since
	}
	if n.Probed {
		out.Loss = &n.Loss
	}
	switch {
	case n.Self:
	case n.Tunnel:
		out.Tunnel = "up"
	default:
		out.Tunnel = "down"
	}
	return out
}

func statusOf(s agent.Status) Status {
	return Status{
		Node: Self{
			ID: s.Node.ID.String(), Name: s.Node.Name, Address: text(s.Node.Addr), Version: s.Node.Version,
		},
		Converged:     s.Converged,
		Digest:        hex.EncodeToString(s.Agreement.Digest[:]),
		NodesAlive:    s.Agreement.Alive,
		NodesKnown:    s.Agreement.Known,
		NodesAgreeing: s.Agreement.Agreeing,
		Differ:        list(s.Differ),
		Silent:        list(s.Silent),
		Datapath:      s.Choice.Datapath,
		Encap:         s.Choice.Encap.String(),
		Transport:     s.Choice.Transport.String(),
		Why:           s.Choice.Why,
		Underlay:      s.Underlay.Device,
		Pending:       list(s.Pending),
		Warnings:      list(s.Warnings),
		Disagree:      list(s.Disagree),
		Peers:         each(s.Peers, nodeOf),
		Networks:      s.Networks,
		Attached:      s.Attached,
		Repairs:       s.Repairs,
		FastPath:      FastPath{On: s.FastPath, Why: s.FastWhy, Ports: each(s.Traffic, trafficOf)},
		PID:           os.Getpid(),
		Goroutines:    runtime.NumGoroutine(),
	}
}

func trafficOf(t agent.Traffic) Traffic {
	return Traffic{
		Device: t.Device, Network: t.Shown, Container: t.Container, Fast: t.Fast, Slow: t.Slow, Refused: t.Refused,
		Broken: t.Broken, Returned: t.Returned, Bytes: t.Bytes,
	}
}

func networkOf(n agent.Network) Network {
	if n.Network == nil {
		return Network{}
	}
	out := Network{
		Name: n.Name, ID: n.ID.String(), Subnet: text(n.Def.Subnet), Gateway: text(n.Def.Gateway), VNI: n.VNI,
		MTU: n.MTU, Internal: n.Def.Internal, Endpoints: n.Containers, Removed: n.Removed,
		Members: n.Members,
	}
	if n.Created.At > 0 {
		out.Created = time.Unix(n.Created.At, 0).UTC()
	}
	for _, l := range n.Def.Labels {
		out.Labels = append(out.Labels, Label{l.Key, l.Value})
	}
	for _, r := range n.Def.Reserve {
		s := r.From.String()
		if r.To != r.From {
			s += "-" + r.To.String()
		}
		out.Reserved = append(out.Reserved, s)
	}
	if n.Attachments != nil {
		out.Attachments = each(n.Attachments, attachmentOf)
	}
	return out
}

func attachmentOf(a agent.Attachment) Attachment {
	out := Attachment{
		Endpoint: a.Endpoint.String(), Container: a.Container, Network: a.Shown, NetworkID: a.Network.String(),
		Address: text(a.Addr), IfName: a.IfName, Gateway: text(a.Gateway), Node: a.NodeName, NodeID: a.Node.String(),
		State: a.State.String(), Names: list(a.Names),
	}
	if a.MAC != (state.MAC{}) {
		out.MAC = a.MAC.String()
	}
	for _, p := range a.Published {
		out.Published = append(out.Published, p.String())
	}
	return out
}

func spaceOf(s agent.Space) Space {
	out := Space{
		Network: s.Network.Name, NetworkID: s.Network.ID.String(), Subnet: text(s.Network.Def.Subnet),
		Size: s.Size, Used: s.Used, Free: s.Size - min(s.Size, s.Used),
		Blocks: each(s.Blocks, blockOf), Addresses: each(s.Addresses, addressOf),
	}
	return out
}

func blockOf(b agent.Block) Block {
	return Block{
		Prefix: text(b.Prefix), Owner: b.Owner, OwnerID: b.OwnerID.String(), State: b.State.String(), Used: b.Used, Free: b.Free,
		Heir: b.Heir, Left: b.Left.Seconds(), WaitsOn: b.Waits,
	}
}

func addressOf(a agent.Address) Address {
	out := Address{Address: text(a.Addr), Container: a.Container, Node: a.Node, Since: time.Unix(a.Since, 0).UTC(), State: "shown"}
	if !a.Shown {
		out.State = "quarantined"
	}
	return out
}

func conflictOf(c agent.Conflict) Conflict {
	return Conflict{
		Kind: c.Kind.String(), What: c.What, Network: c.Shown, NetworkID: c.Network.String(), Kept: c.Kept, Lost: c.Lost,
	}
}

// invalid says that an argument cannot be meant.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w %s", state.ErrInvalid, fmt.Sprintf(format, args...))
}

func (r CreateRequest) wish() (state.Create, error) {
	w := state.Create{
		Name: r.Name, Internal: r.Internal, BlockBits: r.BlockBits, MTU: r.MTU, Force: r.Force,
		NoGateway: r.Gateway == "none",
	}
	if r.Subnet != "" {
		p, err := netip.ParsePrefix(r.Subnet)
		if err != nil {
			return w, invalid("subnet %q; want one like 10.2.0.0/16", r.Subnet)
		}
		w.Subnet = p
	}
	if r.Gateway != "" && !w.NoGateway {
		a, err := netip.ParseAddr(r.Gateway)
		if err != nil {
			return w, invalid("gateway %q; want an address of the subnet, or none", r.Gateway)
		}
		w.Gateway = a
	}
	for _, x := range r.Reserve {
		from, err := netip.ParseAddr(x.From)
		to, err2 := netip.ParseAddr(x.To)
		if err != nil || err2 != nil {
			return w, invalid("reserved range %s-%s; want two addresses like 10.2.0.10-10.2.0.20", x.From, x.To)
		}
		w.Reserve = append(w.Reserve, state.Range{From: from, To: to})
	}
	for _, l := range r.Labels {
		w.Labels = append(w.Labels, state.Label{Key: l.Key, Value: l.Value})
	}
	return w, nil
}

// ref joins the words about a container and the namespace that came with them.
func (r Ref) ref(ns *os.File) (agent.Ref, error) {
	out := agent.Ref{Name: r.Name, NS: ns}
	handed := r.PID != 0 || r.Path != ""
	switch {
	case r.Name == "":
		return out, invalid("container; name one")
	case handed && ns == nil:
		return out, invalid("request: it names a namespace and brings none")
	case !handed && ns != nil:
		return out, invalid("request: it brings a namespace and says not whose")
	case r.PID != 0:
		out.Source = state.Source{Kind: state.SourceProcess, PID: r.PID, Started: r.Started}
	case r.Path != "":
		out.Source = state.Source{Kind: state.SourcePath, Path: r.Path}
	}
	return out, nil
}

func (r AttachRequest) request(ns *os.File) (agent.AttachRequest, error) {
	ref, err := r.Container.ref(ns)
	out := agent.AttachRequest{
		Container: ref, Network: r.Network, IfName: r.IfName, Names: slices.Clone(r.Names),
		NoDefaultRoute: r.NoDefaultRoute,
	}
	if err != nil {
		return out, err
	}
	if r.IP != "" {
		if out.Addr, err = netip.ParseAddr(r.IP); err != nil || !out.Addr.Is4() {
			return out, invalid("address %q; want an IPv4 address of the network", r.IP)
		}
	}
	if r.MAC != "" {
		if out.MAC, err = state.ParseMAC(r.MAC); err != nil {
			return out, invalid("%v", err)
		}
	}
	if math.IsNaN(r.Wait) || r.Wait < 0 || r.Wait > waitMax.Seconds() {
		return out, invalid("wait of %v s; want 0 to %v s", r.Wait, waitMax.Seconds())
	}
	out.Wait = time.Duration(r.Wait * float64(time.Second))
	return out, nil
}
