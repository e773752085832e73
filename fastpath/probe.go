package fastpath

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// Probe finds out what the kernel can of what the fast path needs, by doing it: the program is loaded
// and attached to the loopback device of a network namespace that is made for it and goes with it.
// This needs CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN. Nothing of the host is changed.
func Probe() plan.FastFacts {
	facts := make(chan plan.FastFacts, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its namespace too
		peer, err := try()
		f := plan.FastFacts{Can: err == nil, Peer: peer, Ends: hasEnds()}
		if errors.Is(err, unix.EPERM) {
			f.Lack = "it is not known whether the kernel can: trying eBPF takes root; run it as root"
		} else if err != nil {
			f.Lack = err.Error() + "; use a kernel with CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS, or packets go through ovs-vswitchd"
		}
		facts <- f
	}()
	return <-facts
}

// try does on this thread what a fast path takes. It reports whether there is bpf_redirect_peer.
func try() (peer bool, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return false, fmt.Errorf("no network namespace to try eBPF in: %w", err)
	}
	if peer, err = canPeer(); err != nil {
		return false, err
	}
	p, err := load(peer, 0)
	if err != nil {
		return false, err
	}
	defer p.close()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return false, fmt.Errorf("find the loopback device: %w", err)
	}
	_, _, err = p.attach(lo, false)
	return peer, err
}

// hasEnds reports whether bpf_tunnel_key has the local address of a tunnel.
func hasEnds() bool { return since(6, 0) }

// since reports whether the kernel is of a version of Linux or later.
func since(major, minor uint32) bool {
	v, err := features.LinuxVersionCode()
	return err == nil && v >= major<<16|minor<<8
}
