package testlab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// daemon stops, kills and replaces the daemon of host 1 under pings and TCP streams both ways, and wants
// nothing lost, no flow and no port touched by it, and all as before. That the eyes see a flow and a port
// touched is shown last, by a container that comes.
func (l *lab) daemon() { l.daemonEnds("stopped", "killed", "replaced") }

// daemonEnds is daemon for some of these ends.
func (l *lab) daemonEnds(ends ...string) {
	was := l.switched()
	before := ask[[]attachment](l, 1, "ps", "-a")
	watched := l.watch()
	pause := "0.01"
	if *inGuest { // as much for it as that is elsewhere
		pause = "0.1"
	}
	pings := []*output{l.background("in", "1", "c1", "ping", "-i", pause, l.address("c2", "web")),
		l.background("in", "3", "c3", "ping", "-i", pause, l.address("c1", "web"))}
	streams := []*stream{l.stream(1, 2, 5010, pause), l.stream(3, 1, 5011, pause)}
	for _, p := range pings {
		l.eventually("pings", 10*time.Second, func() bool { return strings.Contains(p.String(), "icmp_seq=") })
	}
	next := l.dir() + "/next/meshnet"
	l.run("exec", "1", "bash", "-c", "mkdir -p ${0%/*} && cp $(command -v meshnet) $0", next)
	for _, c := range []struct {
		what  string
		end   func()
		start []string
	}{
		{"stopped", func() { l.meshnet(1, "down") }, []string{"start", "1"}},
		{"killed", func() { l.run("kill", "1") }, []string{"start", "1"}},
		{"replaced", func() { l.run("kill", "1") }, append([]string{"exec", "1", next, "up", "-d"}, l.upFlags()...)},
	} {
		if !slices.Contains(ends, c.what) {
			continue
		}
		c.end()
		if _, err := l.try("exec", "1", "meshnet", "status"); err == nil {
			l.t.Errorf("%s: status answers without a daemon", c.what)
		}
		time.Sleep(2 * time.Second)                                 // pings and streams go on without
		if out, err := l.try(c.start...); err != nil && !*inGuest { // there it may take longer than up waits
			l.t.Errorf("%s: %v\n%s", c.what, err, out)
		}
		l.converged()
		time.Sleep(2 * time.Second) // what it might do late
		now := l.switched()
		if diff := difference(was, now); diff != "" {
			l.t.Errorf("%s, and flows and ports differ:\n%s", c.what, diff)
		} else {
			l.t.Logf("daemon %s: the %d lines of flows and ports are the same before and after", c.what, strings.Count(now, "\n"))
		}
		watched.quiet(c.what)
	}
	for _, s := range streams {
		s.end()
	}
	for _, p := range pings {
		stop(l.t, p.cmd)
		lost(l.t, p.String())
	}
	if after := ask[[]attachment](l, 1, "ps", "-a"); fmt.Sprint(before) != fmt.Sprint(after) {
		l.t.Errorf("before %+v\nafter  %+v", before, after)
	}
	l.run("container", "1", "late")
	l.attach(1, "late", "web")
	watched.loud()
	l.meshnet(1, "detach", "late")
	l.run("rmcontainer", "1", "late")
}

// upFlags returns the flags that the lab starts daemons with.
func (l *lab) upFlags() []string {
	l.t.Helper()
	b, err := os.ReadFile(l.dir() + "/upflags")
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// switched returns the flows of host 1 without what they counted, and its ports with their numbers.
func (l *lab) switched() string {
	l.t.Helper()
	return l.run("exec", "1", "bash", "-euo", "pipefail", "-c", `ovs-ofctl -O OpenFlow14 --no-stats dump-flows meshnet | grep cookie | sort
		ovs-ofctl -O OpenFlow15 dump-ports-desc meshnet | grep -E '^ [^ ]+\(' | sed 's/: .*//' | sort
		ovs-vsctl -f csv --columns=name,ofport,ofport_request,type,options,external_ids list interface | sort`)
}

// output is a command that runs beside the test, and what it has printed.
type output struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	b   bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// background starts a command of the lab that ends with the test.
func (l *lab) background(args ...string) *output {
	l.t.Helper()
	o := &output{cmd: l.command(args...)}
	o.cmd.Stdout, o.cmd.Stderr = o, o
	if err := o.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { stop(l.t, o.cmd) })
	return o
}

// watch looks at the flows and port rows of host 1 as Open vSwitch tells of changes of them.
func (l *lab) watch() *watch {
	l.t.Helper()
	w := &watch{lab: l,
		flows: l.background("exec", "1", "ovs-ofctl", "-O", "OpenFlow13", "monitor", "meshnet", "watch:!initial,!own"),
		rows:  l.background("exec", "1", "bash", "-c", "exec ovsdb-client monitor unix:$OVS_RUNDIR/db.sock Open_vSwitch Interface name,ofport,ofport_request,options,external_ids")}
	l.eventually("monitors", 10*time.Second, func() bool {
		return strings.Contains(w.flows.String(), "FLOW_MONITOR") && strings.Contains(w.rows.String(), "external_ids")
	})
	w.start = strings.Count(w.rows.String(), "\n")
	return w
}

type watch struct {
	*lab
	flows, rows *output
	start       int // lines of rows at the beginning
}

func (w *watch) changed() (flows, rows bool) {
	return strings.Contains(w.flows.String(), "event="), strings.Count(w.rows.String(), "\n") != w.start
}

func (w *watch) quiet(after string) {
	w.t.Helper()
	flows, rows := w.changed()
	if flows {
		w.t.Errorf("%s: flows touched:\n%s", after, w.flows)
	}
	if rows {
		w.t.Errorf("%s: ports touched:\n%s", after, w.rows)
	}
}

func (w *watch) loud() {
	w.t.Helper()
	w.eventually("a container that comes is seen", 10*time.Second, func() bool {
		flows, rows := w.changed()
		return flows && rows
	})
}

// stream is a TCP connection that carries 20,000 bytes at each pause, in seconds.
type stream struct {
	*lab
	from *ear
	sink *exec.Cmd
	next func() string
}

func (l *lab) stream(from, to, port int, pause string) *stream {
	l.t.Helper()
	address := fmt.Sprint(l.address(fmt.Sprint("c", to), "web"), ":", port)
	s := &stream{lab: l}
	s.sink, s.next = l.start(l.part(to, fmt.Sprint("c", to), "sink", address))
	s.from = l.ear(l.part(from, fmt.Sprint("c", from), "pour", address, "20000", pause, fmt.Sprint(slow(120))))
	return s
}

// end ends it and wants what was sent to be there, and nothing to have been sent again in need.
func (s *stream) end() {
	s.t.Helper()
	s.from.in.Close()
	var p poured
	if line := s.from.next(); json.Unmarshal([]byte(line), &p) != nil {
		s.t.Errorf("stream: the sender says %q", line)
	}
	got, gap := s.next(), s.next()
	if got != p.Sum || p.Bytes == 0 {
		s.t.Errorf("stream: sent %s, got %s", p.Sum, got)
	}
	if p.Retransmits > p.Needless {
		s.t.Errorf("stream: %d segments were sent again, only %d of them needlessly", p.Retransmits, p.Needless)
	}
	s.t.Logf("stream: %d bytes there, %d segments sent again (%d needlessly), at most %s without any", p.Bytes, p.Retransmits, p.Needless, gap)
	for _, c := range []*exec.Cmd{s.from.cmd, s.sink} {
		if err := c.Wait(); err != nil {
			s.t.Error(err)
		}
	}
}

var seqRE = regexp.MustCompile(`icmp_seq=(\d+) ttl`)

// lost wants an answer to each packet of a ping up to the last one answered.
func lost(t testing.TB, out string) {
	t.Helper()
	var seen []int
	for _, m := range seqRE.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, n)
	}
	slices.Sort(seen)
	seen = slices.Compact(seen)
	if len(seen) < 10 || seen[len(seen)-1] != len(seen) {
		t.Errorf("%d packets of %v answered:\n%s", len(seen), seen[max(0, len(seen)-1):], tail(out, 20))
	}
	t.Logf("ping: %d of %d answered", len(seen), seen[len(seen)-1])
}
