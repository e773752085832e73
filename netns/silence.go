package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// silence keeps the kernel from answering ARP on devices for addresses of others, and undoes it on devices
// where it did so earlier and that are not named any more. What comes in by a NIC of a userspace bridge
// reaches the kernel, too (OVS: intro/install/userspace): it would answer for the bridge's address with
// the MAC of the NIC, by which no tunnel is found. Which answer came last ovs-vswitchd of the peer would
// go by. Where arp_ignore is set already, for one device or for all, it stays.
func (r *round) silence(nics []string) error {
	text, err := os.ReadFile(r.silenced)
	if err != nil && !absent(err) {
		return fmt.Errorf("read which devices answer no ARP: %w", err)
	}
	noted := strings.Fields(string(text))
	var errs []error
	for _, name := range noted {
		if !slices.Contains(nics, name) {
			errs = append(errs, r.setARPIgnore(name, "1", "0"))
		}
	}
	want := slices.DeleteFunc(slices.Clone(nics), func(name string) bool {
		return !slices.Contains(noted, name) && (arpIgnore(name) != "0" || arpIgnore("all") != "0")
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !slices.Equal(want, noted) {
		if err := r.change(func() error { return r.noteSilenced(want) }); err != nil {
			return fmt.Errorf("note which devices answer no ARP: %w", err)
		}
	}
	for _, name := range want {
		errs = append(errs, r.setARPIgnore(name, "0", "1"))
	}
	return errors.Join(errs...)
}

func (r *round) noteSilenced(names []string) error {
	switch {
	case len(names) == 0:
		return os.Remove(r.silenced)
	case r.silenced == "":
		return errors.New("there is no run directory for it")
	}
	return os.WriteFile(r.silenced, []byte(strings.Join(names, "\n")+"\n"), 0o644)
}

// setARPIgnore sets a device's arp_ignore, where it is what it was: 1 is to answer for its own addresses only
// (Linux, networking/ip-sysctl). A device that is not there answers nothing.
func (r *round) setARPIgnore(device, was, value string) error {
	if arpIgnore(device) != was {
		return nil
	}
	if err := r.sysctl(arpPath(device), value); !absent(err) {
		return err
	}
	return nil
}

// arpIgnore returns a device's arp_ignore; empty if it is not there.
func arpIgnore(device string) string {
	have, _ := os.ReadFile(arpPath(device))
	return strings.TrimSpace(string(have))
}

func arpPath(device string) string {
	return filepath.Join("/proc/sys/net/ipv4/conf", device, "arp_ignore")
}
