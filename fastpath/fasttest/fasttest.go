// Package fasttest tells a test which devices carry eBPF programs at their ingress, and removes these, as somebody
// else on the host may. It is for tests only.
package fasttest

import (
	"errors"
	"fmt"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Carrier is a device with programs at its ingress.
type Carrier struct {
	Name     string
	index    int
	filters  []netlink.Filter
	attached []link.AttachedProgram // by TCX
}

// Carriers returns the devices of this network namespace with programs, or other filters, at their ingress. It takes
// CAP_NET_ADMIN and CAP_BPF.
func Carriers() ([]Carrier, error) {
	devices, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var all []Carrier
	for _, d := range devices {
		c := Carrier{Name: d.Name, index: d.Index}
		c.filters, err = netlink.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: d.Index}}, netlink.HANDLE_MIN_INGRESS)
		if err != nil && !errors.Is(err, unix.EINVAL) { // no qdisc for filters
			return nil, fmt.Errorf("list filters of %s: %w", d.Name, err)
		}
		if q, err := link.QueryPrograms(link.QueryOptions{Target: d.Index, Attach: ebpf.AttachTCXIngress}); err == nil { // else before Linux 6.6
			c.attached = q.Programs
		}
		if len(c.filters)+len(c.attached) > 0 {
			all = append(all, c)
		}
	}
	return all, nil
}

// Clear removes what the device had when it was listed.
func (c Carrier) Clear() error {
	var errs []error
	for _, f := range c.filters {
		errs = append(errs, netlink.FilterDel(f))
	}
	for _, a := range c.attached {
		errs = append(errs, detach(c.index, a.ID))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove programs of %s: %w", c.Name, err)
	}
	return nil
}

func detach(index int, id ebpf.ProgramID) error {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err
	}
	defer p.Close()
	return link.RawDetachProgram(link.RawDetachProgramOptions{Target: index, Program: p, Attach: ebpf.AttachTCXIngress})
}
