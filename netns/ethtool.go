package netns

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// offload is something that ethtool(8) -K turns on and off, and its two commands in
// linux/ethtool.h.
type offload struct {
	name     string
	get, set uint32
}

// The offloads we know. TX checksums are those of IP and SCTP; without them nothing is segmented
// either.
func txChecksum() offload   { return offload{"tx", 0x16, 0x17} }
func segmentation() offload { return offload{"tso", 0x1e, 0x1f} }
func receive() offload      { return offload{"gro", 0x2b, 0x2c} }

// ethtool is a socket for the requests of ethtool(8), in the network namespace it was opened in. The
// old commands for one offload are used: the newer ones first ask for the names of all features.
type ethtool int

func openEthtool() (ethtool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket for ethtool: %w", err)
	}
	return ethtool(fd), nil
}

func (e ethtool) close() { unix.Close(int(e)) }

// get reports whether an offload is on.
func (e ethtool) get(device string, o offload) (bool, error) {
	v := ethtoolValue{command: o.get}
	if err := e.request(device, &v); err != nil {
		return false, fmt.Errorf("read offload %s of %s: %w", o.name, device, err)
	}
	return v.data != 0, nil
}

func (e ethtool) set(device string, o offload, on bool) error {
	v := ethtoolValue{command: o.set}
	if on {
		v.data = 1
	}
	if err := e.request(device, &v); err != nil {
		return fmt.Errorf("set offload %s of %s to %t: %w", o.name, device, on, err)
	}
	return nil
}

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ command, data uint32 }

// request is the ioctl SIOCETHTOOL with a struct ifreq, see netdevice(7).
func (e ethtool) request(device string, v *ethtoolValue) error {
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union
	}
	if len(device) >= len(req.name) {
		return unix.ENODEV
	}
	copy(req.name[:], device)
	req.data = unsafe.Pointer(v)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}
