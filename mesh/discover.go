package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/zeroconf/v2"

	"meshnet/crdt"
	"meshnet/state"
)

const (
	service       = "_meshnet._udp"
	serviceDomain = "local."
	// txtVersion is the version of the fields of the TXT record.
	txtVersion = "1"
	serviceTTL = 120 // seconds

	// While alone the first rounds are short: each begins with a query, and one may get lost.
	roundFirst  = time.Second
	roundsFirst = 3
	round       = 5 * time.Second
	// linkLook is how often it is looked whether the link is as it was; after registerTries of them
	// a registration that failed is tried again.
	linkLook      = 5 * time.Second
	registerTries = 6
	// silenceMax is how long nobody may be heard before that is worth a warning.
	silenceMax = 30 * time.Second
	// roundPause is the time between rounds once joined: there may be a second half of the
	// cluster on the link.
	roundPause = 5 * time.Minute
)

// candidate is a node that may be joined.
type candidate struct {
	id   state.NodeID
	addr netip.AddrPort
}

// discovery announces this node on the link of the underlay and looks for others. What it finds is a
// hint: the cluster key decides who gets in. It never learns from mDNS that a node went.
type discovery struct {
	self    candidate
	cluster string // hash
	iface   net.Interface
	log     *slog.Logger
	// seeded: there are nodes to join without mDNS.
	seeded bool
	alone  func() bool
	found  chan<- candidate

	moved chan struct{} // holds one: the link changed
	heard atomic.Bool   // another node of the cluster was
}

// run works until ctx ends.
func (d *discovery) run(ctx context.Context) {
	d.moved = make(chan struct{}, 1)
	announced := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { d.announce(ctx, announced) })
	wg.Go(func() { d.warn(ctx) })
	// Who registers before it asks finds, of two that start together, at least one the other.
	select {
	case <-announced:
	case <-ctx.Done():
		return
	}
	for n := 0; ctx.Err() == nil; n++ {
		length := round
		if n < roundsFirst {
			length = roundFirst
		}
		began := time.Now()
		if err := d.browse(ctx, length); err != nil {
			d.log.Debug("mDNS browse failed", "err", err)
		}
		rest := length - time.Since(began) // where it failed at once
		if !d.alone() {
			rest = roundPause/2 + rand.N(roundPause)
		}
		d.rest(ctx, rest)
	}
}

// announce keeps this node registered while the link is as it was, and registers it anew when that
// changes: zeroconf keeps the addresses and groups of the beginning, and its loop does not survive an
// interface that goes. tried is closed after the first try.
func (d *discovery) announce(ctx context.Context, tried chan struct{}) {
	warned := false
	for first := true; ctx.Err() == nil; first = false {
		was := linkOf(d.iface.Name)
		server, err := zeroconf.RegisterProxy(d.instance(), service, serviceDomain, int(d.self.addr.Port()),
			"meshnet-"+d.instance(), []string{d.self.addr.Addr().String()}, d.text(),
			[]net.Interface{was.iface(d.iface)}, zeroconf.TTL(serviceTTL))
		if err != nil && !warned {
			d.log.Warn("cannot announce this node by mDNS; --join finds others without it", "iface", d.iface.Name, "err", err)
			warned = true
		}
		if first {
			close(tried)
		}
		for tries := 0; pause(ctx, linkLook) && linkOf(d.iface.Name) == was; tries++ {
			if err != nil && tries == registerTries {
				break
			}
		}
		if server != nil {
			server.Shutdown()
		}
		select {
		case d.moved <- struct{}{}:
		default:
		}
	}
}

// warn says once that multicast may not work.
func (d *discovery) warn(ctx context.Context) {
	if d.seeded || !pause(ctx, silenceMax) || d.heard.Load() || !d.alone() {
		return
	}
	d.log.Warn("no other node was heard by mDNS; where there are some, multicast may be blocked (clouds, isolated Wi-Fi clients, "+
		"switches that snoop IGMP without a querier): name one with --join", "iface", d.iface.Name, "after", silenceMax)
}

// link is what of an interface matters to mDNS.
type link struct {
	index int
	flags net.Flags
	addrs string
}

// linkOf returns how an interface is now; zero where there is none of the name.
func linkOf(name string) link {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return link{}
	}
	l := link{index: i.Index, flags: i.Flags}
	addrs, err := i.Addrs()
	if err != nil {
		return link{}
	}
	for _, a := range addrs {
		l.addrs += a.String() + " "
	}
	return l
}

// iface returns the interface as it is now: one that was made again has another index.
func (l link) iface(was net.Interface) net.Interface {
	if l.index != 0 {
		was.Index, was.Flags = l.index, l.flags
	}
	return was
}

// rest waits; less where the link changes or this node becomes alone.
func (d *discovery) rest(ctx context.Context, t time.Duration) {
	for end := time.Now().Add(t); ; {
		left := time.Until(end)
		if left <= 0 || left > 2*round && d.alone() || !pause(ctx, min(left, time.Second)) {
			return
		}
		select {
		case <-d.moved:
			return
		default:
		}
	}
}

// browse asks once and listens for a while.
func (d *discovery) browse(ctx context.Context, length time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	// Browse blocks on a full channel whatever its context says, closes it when it ends, and does
	// not when it fails at once: so it is read until Browse has returned.
	entries := make(chan *zeroconf.ServiceEntry, 64)
	ended := make(chan error, 1)
	// With both families Browse fails where either cannot be joined, and leaks the other's socket.
	family := zeroconf.IPv4
	if d.self.addr.Addr().Is6() {
		family = zeroconf.IPv6
	}
	iface := linkOf(d.iface.Name).iface(d.iface)
	go func() {
		ended <- zeroconf.Browse(ctx, service, serviceDomain, entries,
			zeroconf.SelectIfaces([]net.Interface{iface}), zeroconf.SelectIPTraffic(family))
	}()
	for {
		select {
		case err := <-ended:
			return err
		case e, ok := <-entries:
			if !ok {
				return <-ended
			}
			c, err := parseText(e.Instance, e.Text, d.cluster)
			if err != nil {
				d.log.Debug("mDNS answer is not for us", "instance", e.Instance, "err", err)
				continue
			}
			if c.addr == d.self.addr {
				continue // one with our id at another address is a copy of this host, which should be met
			}
			d.heard.Store(true)
			select {
			case d.found <- c:
			default: // the next round finds it again
			}
		}
	}
}

// instance names this node on the link: hosts with one id, which a copied disk makes, stay apart.
func (d *discovery) instance() string {
	sum := sha256.Sum256([]byte(d.self.addr.String()))
	return d.self.id.String() + "-" + hex.EncodeToString(sum[:4])
}

func (d *discovery) text() []string {
	return []string{
		"id=" + d.self.id.String(),
		"addr=" + d.self.addr.Addr().String(),
		"port=" + strconv.Itoa(int(d.self.addr.Port())),
		"cluster=" + d.cluster,
		"v=" + txtVersion,
	}
}

// parseText checks what an answer says, field by field. Addresses outside of the TXT record are not
// looked at: they may be of any interface of the host.
func parseText(instance string, text []string, cluster string) (candidate, error) {
	fields := map[string]string{}
	for _, t := range text {
		k, v, _ := strings.Cut(t, "=")
		if _, twice := fields[k]; !twice {
			fields[k] = v
		}
	}
	if fields["v"] != txtVersion {
		return candidate{}, errors.New("another version")
	}
	if fields["cluster"] != cluster {
		return candidate{}, errors.New("another cluster")
	}
	id, err := crdt.ParseNode(fields["id"])
	if named, _, _ := strings.Cut(instance, "-"); err != nil || id == 0 || named != fields["id"] {
		return candidate{}, errors.New("no node id")
	}
	addr, err := netip.ParseAddr(fields["addr"])
	if err != nil || !addr.IsValid() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.Zone() != "" {
		return candidate{}, errors.New("no address of a host")
	}
	port, err := strconv.ParseUint(fields["port"], 10, 16)
	if err != nil || port == 0 {
		return candidate{}, errors.New("no port")
	}
	return candidate{id, netip.AddrPortFrom(addr.Unmap(), uint16(port))}, nil
}

// clusterHash is what a cluster is called on the wire: 16 hexadecimal digits.
func clusterHash(name string) string {
	sum := sha256.Sum256([]byte("meshnet cluster " + name))
	return hex.EncodeToString(sum[:8])
}

// pause reports whether the time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
