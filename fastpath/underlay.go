package fastpath

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/fastpath/bpf"
)

// outer is how tunnel packets are taken at the device that they come in by.
type outer struct {
	port  Port   // zero: none is planned
	index uint32 // of the device that carries the program for it; 0: none does
	lack  string // why they go through the host's own stack; empty: they do not have to
	other bool   // because the program could not be attached, which is tried again by each Apply
}

// outside notes the port that tunnel packets come in by and who may send them, if they can be taken there.
func (r *round) outside(want contents) {
	o := &r.path.outer
	port, peers, ok := Outside(r.host)
	was := o.lack
	o.port, o.lack = port, ""
	if ok && r.host.Trunk != "" {
		setPeers(want, peers, 0) // by the device of all tunnels, which asks who they are
	}
	if !ok {
		o.other = false
		return
	}
	l, lack := obstacle(r.have, port)
	if o.lack = lack; lack != "" {
		o.other = false
		if lack != was {
			r.path.log.Info("tunnel packets go through the host's own stack", "device", port.Device, "why", lack)
		}
		return
	}
	index := uint32(l.Attrs().Index)
	want.ports[index] = port.encode(0)
	setPeers(want, peers, index)
}

// setPeers notes peers, and the device that they are reached by past the host's own stack; 0: none.
func setPeers(want contents, peers []netip.Addr, index uint32) {
	for _, peer := range peers {
		if peer.Is4() {
			want.peers[bigEndian(peer)] = bpf.FastPeer{Ifindex: index}
		}
	}
}

// obstacle returns the device of a port that tunnel packets can be taken at, and sent by, or why they
// cannot: they pass by all that the host's own stack would have it go through, so there must be nothing there
// that is not ours to decide.
func obstacle(have *devices, port Port) (netlink.Link, string) {
	l, ok := have.get(port.Device)
	switch {
	case !ok:
		return nil, "the device is not there"
	case l.Attrs().EncapType != "ether":
		return nil, "the device is not Ethernet"
	case l.Attrs().MasterIndex != 0:
		return nil, "the device is a port of another"
	}
	if peer, err := canPeer(); err != nil || !peer {
		return nil, "it takes Linux 5.10"
	}
	filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
	switch {
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT): // none can be there
	case err != nil:
		return nil, "it is not known whether somebody filters there: " + err.Error()
	case slices.ContainsFunc(filters, func(f netlink.Filter) bool { return !isOurs(f) }):
		return nil, "the device has filters of somebody else's, which would come after"
	}
	// A kernel without IPsec has no policies.
	policies, err := netlink.XfrmPolicyList(netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, "it is not known whether there are IPsec policies: " + err.Error()
	}
	for _, p := range policies {
		if p.Dir == netlink.XFRM_DIR_IN || p.Dir == netlink.XFRM_DIR_OUT {
			return nil, "the host has IPsec policies"
		}
	}
	return l, ""
}

// intact reports whether tunnel packets are taken where, and only where, they can be. tcx: by TCX.
func (o *outer) intact(have *devices, id ebpf.ProgramID, tcx bool) (bool, error) {
	if o.port == (Port{}) || o.other {
		return true, nil
	}
	l, lack := obstacle(have, o.port)
	if lack != o.lack {
		return false, nil
	}
	if lack != "" {
		return true, nil
	}
	if uint32(l.Attrs().Index) != o.index {
		return false, nil
	}
	return have.carries(o.port.Device, id, tcx)
}

// listen attaches the program to the device that tunnel packets come in by, if they can be taken there, behind
// all that others have there. Without TCX that takes a filter, and the card sends nothing for a moment while
// clsact comes, so there it stays until the plan has no use for it. Where the program cannot be attached tunnel
// packets go through the host's own stack, so that is no fault.
func (r *round) listen() {
	o := &r.path.outer
	if o.port == (Port{}) || o.lack != "" {
		return
	}
	l, ok := r.have.get(o.port.Device)
	if !ok {
		return
	}
	done, err := r.path.program.behind(l, r.path.tcx)
	if err != nil && !o.other {
		r.path.log.Warn("tunnel packets go through the host's own stack", "device", o.port.Device, "err", err)
	}
	o.other = err != nil
	if done {
		r.did("attach", "program to %s", o.port.Device)
	}
}

// leave removes the program from devices that are not ours, which those wanted are, and where no tunnel
// packets are to be taken; as a filter it stays on the device that the plan has for them.
func (r *round) leave(wanted map[string]bool) error {
	o := &r.path.outer
	was, keep := o.index, uint32(0)
	if o.port != (Port{}) && (!r.path.tcx || o.lack == "" && !o.other) {
		keep = r.have.index(o.port.Device)
	}
	o.index = keep
	if !r.have.all {
		if was == 0 || was == keep {
			return nil
		}
		l, err := netlink.LinkByIndex(int(was))
		if err != nil {
			return nil // gone
		}
		return r.detach(l)
	}
	var errs []error
	for name, l := range r.have.links {
		if !wanted[name] && !ours(l) && uint32(l.Attrs().Index) != keep {
			errs = append(errs, r.detach(l))
		}
	}
	return errors.Join(errs...)
}
