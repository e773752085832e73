package netns

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// group is the first part of our mark: the number that a device of ours has from the moment it
// exists. The alias, which people read, cannot be given in the same breath and follows when the
// device is complete.
const group = 0x6d657368

// Aliases of devices: what they are for. The end of a veth inside a container has another word, so
// that a meshnet inside that container does not take it for its own.
const (
	aliasEndpoint  = "meshnet:endpoint="
	aliasNetwork   = "meshnet:network="
	aliasContainer = "meshnet:container="
)

// ours reports whether a device bears our mark.
func ours(a *netlink.LinkAttrs) bool {
	return a.Group == group || strings.HasPrefix(a.Alias, aliasEndpoint) || strings.HasPrefix(a.Alias, aliasNetwork)
}

// socketWait bounds one netlink request. A busy kernel may take long to give a lock.
const socketWait = 30 * time.Second

// space is one network namespace as seen by one goroutine, and what was done in it.
type space struct {
	h     *netlink.Handle
	eth   ethtool
	steps []plan.Step
	// looking: nothing is changed. What would be is [errDiffers].
	looking bool
}

// errDiffers says, while only looking, that something is not as planned.
var errDiffers = errors.New("not as planned")

// change carries out one change, unless only looking.
func (s *space) change(f func() error) error {
	if s.looking {
		return errDiffers
	}
	return f()
}

// open opens the namespace that the calling thread is in.
func (s *space) open() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(socketWait); err != nil {
		h.Close()
		return fmt.Errorf("set timeout of netlink socket: %w", err)
	}
	eth, err := openEthtool()
	if err != nil {
		h.Close()
		return err
	}
	s.h, s.eth = h, eth
	return nil
}

func (s *space) close() {
	s.h.Close()
	s.eth.close()
}

// did records a step.
func (s *space) did(op, format string, args ...any) {
	s.steps = append(s.steps, plan.Step{Op: op, What: fmt.Sprintf(format, args...)})
}

func (s *space) mtu(link netlink.Link, mtu uint32) error {
	a := link.Attrs()
	if a.MTU == int(mtu) {
		return nil
	}
	if err := s.change(func() error { return s.h.LinkSetMTU(link, int(mtu)) }); err != nil {
		return fmt.Errorf("set MTU of %s to %d: %w", a.Name, mtu, err)
	}
	s.did("set", "%s mtu %d", a.Name, mtu)
	return nil
}

func (s *space) alias(link netlink.Link, alias string) error {
	a := link.Attrs()
	if a.Alias == alias {
		return nil
	}
	if err := s.change(func() error { return s.h.LinkSetAlias(link, alias) }); err != nil {
		return fmt.Errorf("set alias of %s: %w", a.Name, err)
	}
	s.did("set", "%s alias %s", a.Name, alias)
	return nil
}

func (s *space) up(link netlink.Link) error {
	a := link.Attrs()
	if a.Flags&net.FlagUp != 0 {
		return nil
	}
	if err := s.change(func() error { return s.h.LinkSetUp(link) }); err != nil {
		return fmt.Errorf("set %s up: %w", a.Name, err)
	}
	s.did("set", "%s up", a.Name)
	return nil
}

// offload turns an offload on or off.
func (s *space) offload(link netlink.Link, o offload, on bool) error {
	name := link.Attrs().Name
	was, err := s.eth.get(name, o)
	if err != nil || was == on {
		return err
	}
	if err := s.change(func() error { return s.eth.set(name, o, on) }); err != nil {
		return err
	}
	s.did("set", "%s %s %t", name, o.name, on)
	return nil
}

// ipv6 writes a setting of an interface under net.ipv6.conf, of the namespace of the calling thread.
// A kernel without IPv6 has none, which is as well.
func (s *space) ipv6(link netlink.Link, key, value string) error {
	name := link.Attrs().Name
	path := "/proc/sys/net/ipv6/conf/" + name + "/" + key
	have, err := os.ReadFile(path)
	if absent(err) || err == nil && string(bytes.TrimSpace(have)) == value {
		return nil
	}
	if err == nil {
		err = s.change(func() error { return os.WriteFile(path, []byte(value), 0) })
	}
	if err != nil {
		return fmt.Errorf("set IPv6 %s of %s: %w", key, name, err)
	}
	s.did("set", "%s %s %s", name, key, value)
	return nil
}

// exists reports whether an error says that something has the name or number already.
func exists(err error) bool { return errors.Is(err, unix.EEXIST) }

// missing reports whether an error says that a device or entry is not there.
func missing(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}

// noAddress reports whether an error says that an interface has not got an address.
func noAddress(err error) bool { return errors.Is(err, unix.EADDRNOTAVAIL) }
