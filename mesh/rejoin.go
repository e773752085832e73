package mesh

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"meshnet/state"
)

const (
	// rejoinLook is how often it is looked who is lost, while somebody is, and how soon after members
	// changed; rejoinLookIdle otherwise.
	rejoinLook     = 250 * time.Millisecond
	rejoinLookIdle = 2 * time.Second
	// rejoinFirst is how long after the start tries follow each other fast: others start too.
	rejoinFirst     = 5 * time.Second
	rejoinFirstWait = 250 * time.Millisecond
	rejoinWaitMin   = time.Second
	rejoinWaitMax   = 10 * time.Second
	// rejoinsMax is how many addresses are tried at once.
	rejoinsMax = 16
	// foundMax is how many nodes found on the link are remembered.
	foundMax = 1024
	// resolveMax bounds a look-up of a seed's name.
	resolveMax = 5 * time.Second
)

// rejoin looks for lost members for as long as it runs, since memberlist alone does not come together
// again after a cut of half a minute: whoever was named as a seed, is named in the state, was found on
// the link or, while nobody is there, is remembered on disk, and is not alive, is tried again and
// again.
type rejoin struct {
	self  candidate
	seeds []string // host or host:port
	port  uint16   // of seeds without one
	log   *slog.Logger
	// nodes returns those that the state names, by id; alive those that need no try. renamed reports
	// whether the state names others than when it was called last.
	nodes   func() map[state.NodeID]netip.AddrPort
	renamed func() bool
	alive   func() map[state.NodeID]netip.AddrPort
	join    func(addr string) error
	found   <-chan candidate
	// remembered is where members were; remember writes it to disk.
	remembered []netip.AddrPort
	remember   func([]netip.AddrPort) error
	moved      <-chan struct{} // who is alive has changed

	started time.Time
	wg      sync.WaitGroup
	slots   chan struct{}
	ended   chan string // targets whose try has ended
	tries   map[string]*attempt
	links   map[state.NodeID]netip.AddrPort // what was found
	written time.Time                       // when remembered was
	news    bool                            // something happened since the last look
}

// attempt is the state of one address that is tried.
type attempt struct {
	next    time.Time
	failed  int
	running bool
}

// run works until ctx ends and all tries have ended.
func (r *rejoin) run(ctx context.Context) {
	r.started = time.Now()
	r.slots = make(chan struct{}, rejoinsMax)
	r.ended = make(chan string, rejoinsMax)
	r.tries = map[string]*attempt{}
	r.links = map[state.NodeID]netip.AddrPort{}
	defer r.wg.Wait()
	look := time.NewTimer(0)
	defer look.Stop()
	var next time.Time // when look fires
	in := func(d time.Duration) { next = time.Now().Add(d); look.Reset(d) }
	r.news = true
	for {
		select {
		case <-look.C:
			if r.renamed() || r.news || r.due() { // to look takes as long as there are members
				r.news = false
				r.look(ctx)
				r.keep()
			}
			if len(r.tries) > 0 || len(r.links) > 0 {
				in(rejoinLook)
			} else {
				in(rejoinLookIdle)
			}
		case <-r.moved: // and may again in this moment
			r.news = true
			if time.Until(next) > rejoinLook {
				in(rejoinLook)
			}
		case c := <-r.found:
			if len(r.links) < foundMax {
				r.links[c.id] = c.addr
			}
			r.news = true
			in(0)
		case target := <-r.ended:
			r.news = true
			in(0)
			if a := r.tries[target]; a != nil {
				a.running = false
				a.next = time.Now().Add(r.wait(a.failed))
				a.failed++
			}
		case <-ctx.Done():
			return
		}
	}
}

// due reports whether a try is.
func (r *rejoin) due() bool {
	now := time.Now()
	for _, a := range r.tries {
		if !a.running && !now.Before(a.next) {
			return true
		}
	}
	return false
}

// look starts the tries that are due.
func (r *rejoin) look(ctx context.Context) {
	alive := r.alive()
	targets := map[string]bool{}
	for id, addr := range r.nodes() {
		if _, ok := alive[id]; !ok && id != r.self.id {
			targets[addr.String()] = true
		}
	}
	for id, addr := range r.links {
		if _, ok := alive[id]; ok {
			delete(r.links, id) // the state names it from now on
			continue
		}
		targets[addr.String()] = true
	}
	if len(alive) == 0 {
		for _, addr := range r.remembered {
			targets[addr.String()] = true
		}
	}
	there := map[string]bool{r.self.addr.String(): true}
	for _, addr := range alive {
		there[addr.String()] = true
	}
	hasty := map[string]bool{} // tried at once
	for _, s := range r.seeds {
		targets[withPort(s, r.port)] = true
		hasty[withPort(s, r.port)] = true
	}
	for _, addr := range r.links {
		hasty[addr.String()] = true
	}
	for target := range r.tries {
		if !targets[target] && !r.tries[target].running {
			delete(r.tries, target)
		}
	}
	now := time.Now()
	for target := range targets {
		if there[target] {
			delete(r.tries, target)
			continue
		}
		a := r.tries[target]
		if a == nil {
			a = &attempt{next: now}
			if !hasty[target] && len(alive) > 0 {
				a.next = now.Add(r.wait(0)) // members that we have may just be about to tell of it
			}
			r.tries[target] = a
		}
		if a.running || now.Before(a.next) {
			continue
		}
		select {
		case r.slots <- struct{}{}:
		default:
			return // others are due as well; what is left waits for the next look
		}
		a.running = true
		r.wg.Go(func() {
			r.try(ctx, target, there)
			<-r.slots
			select {
			case r.ended <- target:
			case <-ctx.Done():
			}
		})
	}
}

// keep remembers who is alive.
func (r *rejoin) keep() {
	alive := slices.SortedFunc(maps.Values(r.alive()), netip.AddrPort.Compare)
	alive = alive[:min(len(alive), rememberMax)]
	if len(alive) == 0 || slices.Equal(alive, r.remembered) {
		return
	}
	if time.Since(r.written) < rememberPause {
		r.news = true // later, then
		return
	}
	r.written = time.Now()
	if err := r.remember(alive); err != nil {
		r.news = true
		r.log.Warn("peers are not remembered on disk; the next start relies on its log, seeds and mDNS", "err", err)
		return
	}
	r.remembered = alive
}

// try joins a node once. A try that worked is like one that did not: only who is alive is left alone.
func (r *rejoin) try(ctx context.Context, target string, there map[string]bool) {
	addrs, err := resolve(ctx, target)
	for _, addr := range addrs {
		if there[addr] || ctx.Err() != nil {
			return
		}
		if err = r.join(addr); err == nil {
			return
		}
	}
	if err != nil {
		r.log.Debug("node not reached", "addr", target, "err", err)
	}
}

// wait returns how long after a number of failures the next try is due: 1, 2, 4, 8, 10, 10 … seconds
// ± 25 %.
func (r *rejoin) wait(failed int) time.Duration {
	d := min(rejoinWaitMin<<min(failed, 8), rejoinWaitMax)
	if time.Since(r.started) < rejoinFirst && len(r.alive()) == 0 {
		d = rejoinFirstWait
	}
	return d*3/4 + rand.N(d/2)
}

// resolve returns the addresses of a host:port, of which host may be a name.
func resolve(ctx context.Context, target string) ([]string, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", target, err)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return []string{target}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveMax)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	out := make([]string, 0, len(ips))
	for _, ip := range ips {
		out = append(out, net.JoinHostPort(ip.Unmap().String(), port))
	}
	return out, nil
}

// withPort adds the usual port to a seed that has none.
func withPort(seed string, port uint16) string {
	if a, err := netip.ParseAddr(seed); err == nil {
		return netip.AddrPortFrom(a.Unmap(), port).String()
	}
	if _, _, err := net.SplitHostPort(seed); err == nil {
		return seed
	}
	return net.JoinHostPort(seed, strconv.Itoa(int(port)))
}
