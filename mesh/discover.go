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
// hint: the cluster key decides who gets in.
type discovery struct {
	self    candidate
	cluster string // hash
	iface   net.Interface
	log     *slog.Logger
	alone   func() bool
	found   chan<- candidate
}

// run works until ctx ends.
func (d *discovery) run(ctx context.Context) {
	// Who registers before it asks finds, of two that start together, at least one the other.
	for server := (*zeroconf.Server)(nil); server == nil; {
		var err error
		server, err = zeroconf.RegisterProxy(d.self.id.String(), service, serviceDomain, int(d.self.addr.Port()),
			"meshnet-"+d.self.id.String(), []string{d.self.addr.Addr().String()}, d.text(),
			[]net.Interface{d.iface}, zeroconf.TTL(serviceTTL))
		if err == nil {
			defer server.Shutdown()
			break
		}
		d.log.Warn("cannot announce this node by mDNS; --join finds others without it", "iface", d.iface.Name, "err", err)
		if !pause(ctx, 30*time.Second) {
			return
		}
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
		if !d.pauseWhileJoined(ctx, rest) {
			return
		}
	}
}

// pauseWhileJoined waits; a node that has become alone looks around sooner.
func (d *discovery) pauseWhileJoined(ctx context.Context, t time.Duration) bool {
	for end := time.Now().Add(t); ; {
		left := time.Until(end)
		if left <= 0 || left > 2*round && d.alone() {
			return ctx.Err() == nil
		}
		if !pause(ctx, min(left, time.Second)) {
			return false
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
	go func() {
		ended <- zeroconf.Browse(ctx, service, serviceDomain, entries,
			zeroconf.SelectIfaces([]net.Interface{d.iface}), zeroconf.SelectIPTraffic(zeroconf.IPv4))
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
			if c.id == d.self.id || c.addr == d.self.addr {
				continue
			}
			select {
			case d.found <- c:
			default: // the next round finds it again
			}
		}
	}
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
	if err != nil || id == 0 || instance != fields["id"] {
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
