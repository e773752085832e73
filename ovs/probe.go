package ovs

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"meshnet/plan"
)

// HostRunDir is where the host's own instance has its sockets, unless told otherwise.
const HostRunDir = "/run/openvswitch"

// ProbeConfig says where to look.
type ProbeConfig struct {
	RunDir         string // meshnet's; required
	HostRunDir     string // sockets of the host's instance; empty: [HostRunDir]
	OVSDB          string // address of the host's instance; empty: db.sock in HostRunDir
	UnderlayDevice string // the interface that has the underlay address; empty: not asked for
}

// Probe reads what the host has in the way of Open vSwitch. It tries to load the kernel's modules and
// changes nothing else. An error means that something answers but cannot be read.
func Probe(ctx context.Context, c ProbeConfig) (plan.OVSFacts, error) {
	facts := plan.OVSFacts{Installed: installed()}
	facts.NoTun = !tunDevice(ctx)
	private := privateDir(c.RunDir)
	facts.PrivateRunning = answers(filepath.Join(private, "db.sock")) && switchAnswers(private)
	var err error
	if facts.Module, err = kernelDatapath(ctx); err != nil {
		return facts, err
	}
	address, dir := hostAddress(c.OVSDB, c.HostRunDir)
	if !addressAnswers(address) || !switchAnswers(dir) {
		return facts, nil
	}
	db, err := dialDB(ctx, address)
	if err != nil {
		return facts, err
	}
	defer db.close()
	facts.HostRunning = true
	if root := db.root(); root != nil {
		facts.HostTSO = root.OtherConfig[keyTSO] == "true"
	}
	for _, b := range rows[bridgeRow](db, tableBridge) {
		if cmp.Or(b.DatapathType, "system") == "system" && deaf("/proc", pidIn(dir, switchProgram)) {
			facts.HostDeaf = true
		}
		if _, ours := b.ExternalIDs[markBridge]; ours {
			continue // what we did there before must not decide what we do now
		}
		netdev := b.DatapathType == "netdev"
		facts.HostNetdev = facts.HostNetdev || netdev
		if f, ok := db.observe(b.Name).ports[c.UnderlayDevice]; ok && f.iface.Type == "internal" {
			facts.UnderlayOn, facts.UnderlayNetdev, facts.UnderlayNICs = b.Name, netdev, nics(db.observe(b.Name))
		}
	}
	return facts, nil
}

// nics returns the ports of a bridge that are devices of the kernel, sorted.
func nics(have snapshot) []string {
	var names []string
	for name, f := range have.ports {
		if f.iface.Type == "" || f.iface.Type == "system" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// deaf reports whether an ovs-vswitchd has no thread that handles packets that the kernel hands up: their names
// begin with handler. One that cannot be looked at has them.
func deaf(proc string, pid int) bool {
	names, err := filepath.Glob(filepath.Join(proc, strconv.Itoa(pid), "task", "*", "comm"))
	if pid == 0 || err != nil || len(names) == 0 {
		return false
	}
	ours := false
	for _, path := range names {
		text, _ := os.ReadFile(path) // of a thread that has ended: nothing
		name := strings.TrimSpace(string(text))
		if strings.HasPrefix(name, "handler") {
			return false
		}
		ours = ours || name == switchProgram
	}
	return ours
}

// hostAddress returns the OVSDB address of the host's instance and the directory of its sockets.
func hostAddress(ovsdb, runDir string) (address, dir string) {
	dir = cmp.Or(runDir, HostRunDir)
	if ovsdb == "" {
		return "unix:" + filepath.Join(dir, "db.sock"), dir
	}
	if u, err := url.Parse(ovsdb); err == nil && u.Scheme == "unix" && runDir == "" {
		dir = filepath.Dir(u.Path)
	}
	return ovsdb, dir
}

// addressAnswers reports whether somebody listens at an OVSDB address. One that is not a Unix
// socket was named by a person and is taken at its word.
func addressAnswers(address string) bool {
	path, ok := strings.CutPrefix(address, "unix:")
	return !ok || answers(path)
}

func installed() bool {
	for _, p := range []string{serverProgram, switchProgram, toolProgram} {
		if _, err := findProgram(p); err != nil {
			return false
		}
	}
	return true
}

// kernelDatapath reports whether the kernel has Open vSwitch's datapath. The column datapath_types
// cannot tell: it lists system without the module too.
func kernelDatapath(ctx context.Context) (bool, error) {
	has, err := genericFamily("ovs_datapath")
	if has || err != nil {
		return has, err
	}
	// Failing is an answer: the next look gives it.
	_ = runCommand(ctx, exec.Command("modprobe", "-q", "openvswitch"))
	return genericFamily("ovs_datapath")
}

// tunDevice reports whether the kernel has /dev/net/tun. The node may be there without the module, and
// loads it, or come with it.
func tunDevice(ctx context.Context) bool {
	const path = "/dev/net/tun"
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		_ = runCommand(ctx, exec.Command("modprobe", "-q", "tun")) // failing is an answer
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return errors.Is(err, fs.ErrPermission) // there, but not for us: who starts ovs-vswitchd may
	}
	f.Close()
	return true
}

// The generic netlink controller: <linux/netlink.h>, <linux/genetlink.h>.
const (
	netlinkGeneric  = 16
	netlinkError    = 2 // message type
	controlID       = 16
	controlFamily   = 3 // CTRL_CMD_GETFAMILY
	controlName     = 2 // CTRL_ATTR_FAMILY_NAME
	netlinkRequest  = 1
	netlinkHeader   = 16
	genericHeader   = 4
	attributeHeader = 4
)

// genericFamily asks the kernel for a generic netlink family.
func genericFamily(name string) (bool, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkGeneric)
	if err != nil {
		return false, fmt.Errorf("ask the kernel for %s: %w", name, err)
	}
	defer syscall.Close(fd)
	value := append([]byte(name), 0)
	message := make([]byte, netlinkHeader+genericHeader+attributeHeader+(len(value)+3)&^3)
	native := binary.NativeEndian
	native.PutUint32(message, uint32(len(message)))
	native.PutUint16(message[4:], controlID)
	native.PutUint16(message[6:], netlinkRequest)
	message[netlinkHeader], message[netlinkHeader+1] = controlFamily, 1
	attribute := message[netlinkHeader+genericHeader:]
	native.PutUint16(attribute, uint16(attributeHeader+len(value)))
	native.PutUint16(attribute[2:], controlName)
	copy(attribute[attributeHeader:], value)
	if err := syscall.Sendto(fd, message, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("ask the kernel for %s: %w", name, err)
	}
	reply := make([]byte, 8192)
	n, _, err := syscall.Recvfrom(fd, reply, 0)
	if err != nil {
		return false, fmt.Errorf("ask the kernel for %s: %w", name, err)
	}
	if n < netlinkHeader {
		return false, fmt.Errorf("ask the kernel for %s: an answer of %d bytes", name, n)
	}
	return native.Uint16(reply[4:]) != netlinkError, nil
}
