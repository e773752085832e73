package testlab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// life logs one row of the table that "make life" prints: a case, what was done to the node, how long
// until all agreed, how many pings at 100/s were lost (negative: nobody pinged), and what a person read.
func (l *lab) life(name, done string, took time.Duration, lost int, read string) {
	l.t.Helper()
	packets := "-"
	if lost >= 0 {
		packets = fmt.Sprint(lost)
	}
	l.t.Logf("life: %s | %s | %.1f | %s | %s", name, done, took.Seconds(), packets, strings.Join(strings.Fields(read), " "))
}

// warning returns the line of status on a host that holds a text, waiting for it.
func (l *lab) warning(host int, text string) (line string) {
	l.t.Helper()
	l.within(fmt.Sprintf("host %d says %q", host, text), 30*time.Second, func() bool {
		for s := range strings.Lines(l.meshnet(host, "status")) {
			if strings.Contains(s, text) {
				line = s
			}
		}
		return line != ""
	})
	return line
}

// line returns the line with a text of what meshnet prints on a host.
func (l *lab) line(host int, text string, args ...string) string {
	l.t.Helper()
	for s := range strings.Lines(l.meshnet(host, args...)) {
		if strings.Contains(s, text) {
			return s
		}
	}
	return ""
}

// logged returns the last line of a host's log that holds a text, empty if none does.
func (l *lab) logged(host int, text string) string {
	l.t.Helper()
	last := ""
	for s := range strings.Lines(l.run("logs", fmt.Sprint(host))) {
		if strings.Contains(s, text) {
			last = s
		}
	}
	return last
}

// local runs a command on this machine, beside the lab.
func (l *lab) local(args ...string) {
	l.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		l.t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// file is where a host keeps something on this machine.
func (l *lab) file(host int, name string) string {
	return filepath.Join(l.dir(), fmt.Sprint("h", host), name)
}

// dir is where a lab keeps what it has.
func (l *lab) dir() string { return "/tmp/meshnet-" + l.name }

// nodeCase is one thing that happens to a node while host 1 pings a container.
type nodeCase struct {
	name, done string
	pinged     string // container that c1 pings; empty: nobody pings
	agreeing   int    // nodes that agree afterwards
	// loses: packets may be lost, as the host has no network for a while.
	loses bool
	// do does it and returns what a person reads of it. from is called when the time begins to count.
	do func(l *lab, from func()) (read string)
	// undo makes the lab ready for the next.
	undo func(l *lab)
}

// TestNodeCases does to a node what happens to nodes, one after the other on one lab: hosts 1 to 3 with
// a container each, host 4 the stranger.
func TestNodeCases(t *testing.T) {
	l := up(t, "-n", "4", "--no-start")
	for h := 1; h <= 3; h++ {
		l.meshnet(h, "up", "-d")
	}
	l.run("converged", "-t", "20")
	l.meshnet(1, "network", "create", "web", "10.2.0.0/16")
	for h := 1; h <= 3; h++ {
		c := fmt.Sprint("c", h)
		l.run("container", fmt.Sprint(h), c)
		l.attach(h, c, "web")
	}
	for _, c := range nodeCases() {
		ok := t.Run(c.name, func(t *testing.T) { l.on(t).nodeCase(c) })
		if !ok {
			return // what follows stands on it
		}
	}
}

func (l *lab) nodeCase(c nodeCase) {
	l.run("converged", "-t", "60")
	lost, stop := -1, func() (int, time.Duration) { return -1, 0 }
	if c.pinged != "" {
		stop = l.pinging(1, "c1", l.address(c.pinged, "web"))
		time.Sleep(time.Second) // the ping is there
	}
	began := time.Now()
	read := c.do(l, func() { began = time.Now() })
	l.within("all agree", 60*time.Second, func() bool {
		s := ask[statusJSON](l, 1, "status")
		return s.NodesAgreeing == c.agreeing && s.NodesAlive == c.agreeing && s.Converged
	})
	took := time.Since(began)
	lost, _ = stop()
	l.life(c.name, c.done, took, lost, read)
	if lost > 0 && !c.loses {
		l.t.Errorf("%d pings lost", lost)
	}
	if strings.TrimSpace(read) == "" {
		l.t.Error("a person reads nothing of it")
	}
	if c.undo != nil {
		c.undo(l)
	}
}

// forgetStranger takes host 4 out and gives it an empty disk and its own machine id again.
func forgetStranger(l *lab) {
	l.meshnet(4, "down", "--purge")
	l.local("sh", "-c", fmt.Sprintf("rm -rf %s/*; echo 0000000000000000000000000000dead >%s", l.file(4, "state"), l.file(4, "machine-id")))
	for _, n := range ask[[]struct{ ID, Name, Address, State string }](l, 1, "nodes") {
		if n.Address == "192.0.2.4" {
			l.meshnet(1, "rmpeer", n.ID)
		}
	}
}

func nodeCases() []nodeCase {
	return append(daemonCases(), append(identityCases(), diskCases()...)...)
}

// daemonCases are of the program and its settings.
func daemonCases() []nodeCase {
	return []nodeCase{
		{name: "up twice", done: "meshnet up -d on a host where it runs", pinged: "c3", agreeing: 3, do: func(l *lab, _ func()) string {
			return l.meshnet(3, "up", "-d")
		}},
		{name: "stopped", done: "meshnet down, meshnet up -d", pinged: "c3", agreeing: 3, do: func(l *lab, from func()) string {
			read := l.meshnet(3, "down")
			from()
			return read + l.meshnet(3, "up", "--detach=true")
		}},
		{name: "killed", done: "kill -9 of the daemon, meshnet up -d", pinged: "c3", agreeing: 3, do: func(l *lab, from func()) string {
			l.run("kill", "3")
			from()
			return l.meshnet(3, "up", "-d")
		}},
		{name: "two daemons on one state directory", done: "a second up with other sockets and port", pinged: "c3", agreeing: 3, do: func(l *lab, _ func()) string {
			s := l.say(3, "meshnet", "up", "-d", "--run-dir", "/run/second", "--port", "17947", "--ovs", "private")
			if s.code != 1 || strings.Count(s.err, "\n") != 1 || !strings.Contains(s.err, "another meshnet daemon uses it") {
				l.t.Errorf("%+v", s)
			}
			return s.err
		}},
		{name: "unknown key in the settings", done: `up --config with ifcae = "eth0"`, pinged: "c3", agreeing: 3, do: func(l *lab, _ func()) string {
			s := l.say(4, "sh", "-c", `echo 'ifcae = "eth0"' >/run/bad.toml; meshnet up -d --config /run/bad.toml`)
			if s.code == 0 || strings.Count(s.err, "\n") != 1 || !strings.Contains(s.err, "ifcae") {
				l.t.Errorf("%+v", s)
			}
			return s.err
		}},
	}
}

// identityCases are of who a node is.
func identityCases() []nodeCase {
	return []nodeCase{
		{name: "copied state directory", done: "host 4 starts with a copy of host 3's", pinged: "c3", agreeing: 4, do: func(l *lab, from func()) string {
			l.local("sh", "-c", fmt.Sprintf("cp -a %s/. %s/ && rm -f %s/lock", l.file(3, "state"), l.file(4, "state"), l.file(4, "state")))
			from()
			l.meshnet(4, "up", "-d")
			if a, b := ask[statusJSON](l, 3, "status").Node.ID, ask[statusJSON](l, 4, "status").Node.ID; a == b {
				l.t.Errorf("both are %s", a)
			}
			return l.warning(4, "made on another machine")
		}},
		{name: "leave", done: "meshnet leave on host 4, with a container", pinged: "c3", agreeing: 3, do: func(l *lab, from func()) string {
			l.run("container", "4", "c4")
			l.attach(4, "c4", "web")
			l.run("converged", "-t", "30")
			from()
			read := l.meshnet(4, "leave")
			for h := 1; h <= 3; h++ { // known before it ends
				for _, a := range ask[[]attachment](l, h, "ps", "-a") {
					if a.Container == "c4" {
						l.t.Errorf("host %d still has %+v", h, a)
					}
				}
			}
			return read
		}, undo: forgetStranger},
		{name: "same hostname", done: "host 4 starts as --name h3", pinged: "c3", agreeing: 4, do: func(l *lab, from func()) string {
			l.meshnet(4, "up", "-d", "--name", "h3")
			return l.warning(4, "is called h3 too")
		}},
		{name: "rmpeer from three nodes", done: "host 4 killed; rmpeer of it on three nodes at once, then once more", pinged: "c3", agreeing: 3, do: func(l *lab, from func()) string {
			id := ask[statusJSON](l, 4, "status").Node.ID
			l.run("kill", "4")
			for h := 1; h <= 3; h++ {
				l.untilDead(h, id)
			}
			from()
			var all sync.WaitGroup
			read := make([]string, 4)
			for h := 1; h <= 3; h++ {
				all.Go(func() {
					s := l.say(h, "meshnet", "rmpeer", id)
					if s.code != 0 {
						l.t.Errorf("host %d: %+v", h, s)
					}
					read[h] = s.out + s.err
				})
			}
			all.Wait()
			if s := l.say(2, "meshnet", "rmpeer", id); s.code != 0 {
				l.t.Errorf("again: %+v", s)
			}
			return read[1]
		}, undo: forgetStranger},
		{name: "cloned machine", done: "host 4 starts with host 3's state, machine id and name", pinged: "c2", agreeing: 3, do: func(l *lab, from func()) string {
			l.local("sh", "-c", fmt.Sprintf("cp -a %s/. %s/ && rm -f %s/lock; cp %s %s", l.file(3, "state"), l.file(4, "state"), l.file(4, "state"), l.file(3, "machine-id"), l.file(4, "machine-id")))
			from()
			l.meshnet(4, "up", "-d", "--name", "h3")
			for _, h := range []int{3, 4} {
				l.warning(h, "two hosts are node")
			}
			s := l.say(4, "meshnet", "network", "create", "no")
			if s.code == 0 || strings.Count(s.err, "\n") != 1 || !strings.Contains(s.err, "192.0.2.3") || !strings.Contains(s.err, "192.0.2.4") {
				l.t.Errorf("the clone: %+v", s)
			}
			from() // until all is as before, once the clone is stopped
			l.meshnet(4, "down")
			return s.err
		}, undo: func(l *lab) {
			l.local("sh", "-c", fmt.Sprintf("rm -rf %s/*; echo 0000000000000000000000000000dead >%s", l.file(4, "state"), l.file(4, "machine-id")))
		}},
		{name: "another card", done: "host 3's card is pulled, a new one gets its address", pinged: "c3", agreeing: 3, loses: true, do: func(l *lab, from func()) string {
			pre := "mn-" + l.name
			l.local("ip", "-n", pre+"-h3", "link", "del", "eth0")
			l.local("ip", "link", "add", "eth7", "netns", pre+"-h3", "type", "veth", "peer", "name", "u3", "netns", pre+"-seg")
			l.local("ip", "-n", pre+"-seg", "link", "set", "u3", "master", "seg", "up")
			l.local("ip", "-n", pre+"-h3", "addr", "add", "192.0.2.3/24", "dev", "eth7")
			l.local("ip", "-n", pre+"-h3", "link", "set", "eth7", "up")
			l.local("ip", "-n", pre+"-h3", "route", "add", "default", "via", "192.0.2.254")
			from()
			l.within("it is used", 10*time.Second, func() bool { return l.say(1, "ping", "-c", "1", "-W", "1", "192.0.2.3").code == 0 && l.reaches("c3") })
			l.within("the daemon says so", 10*time.Second, func() bool { return l.logged(3, "underlay") != "" })
			return l.logged(3, "underlay")
		}},
	}
}

// reaches reports whether c1 reaches a container.
func (l *lab) reaches(container string) bool {
	l.t.Helper()
	return l.say(1, "ip", "netns", "exec", "c1", "ping", "-c", "1", "-W", "1", l.address(container, "web")).code == 0
}

// diskCases are of what a node keeps. After the last of them host 3 is another node.
func diskCases() []nodeCase {
	return []nodeCase{
		{name: "snapshot rolled back", done: "host 3's state set back to before two attachments", pinged: "c3", agreeing: 3, do: func(l *lab, from func()) string {
			l.meshnet(3, "down")
			l.local("cp", "-a", l.file(3, "state"), l.file(3, "snapshot"))
			l.meshnet(3, "up", "-d")
			for _, c := range []string{"x1", "x2"} {
				l.run("container", "3", c)
				l.attach(3, c, "web")
			}
			l.run("converged", "-t", "30")
			l.run("kill", "3")
			l.local("sh", "-c", fmt.Sprintf("rm -rf %s/* && cp -a %s/. %s/", l.file(3, "state"), l.file(3, "snapshot"), l.file(3, "state")))
			from()
			l.meshnet(3, "up", "-d")
			return l.warning(3, "set back to an older copy")
		}},
		{name: "damaged log", done: "bytes in the middle of host 3's log overwritten while it is killed", pinged: "c2", agreeing: 3, do: func(l *lab, from func()) string {
			l.run("kill", "3")
			path := l.file(3, "state/log")
			b, err := os.ReadFile(path)
			if err == nil {
				copy(b[len(b)/2:], "thisisnotwhatwaswritten")
				err = os.WriteFile(path, b, 0o600)
			}
			if err != nil {
				l.t.Fatal(err)
			}
			from()
			l.meshnet(3, "up", "-d")
			return l.warning(3, "log")
		}},
		{name: "lost disk", done: "host 3 killed and its state directory removed", pinged: "c2", agreeing: 3, do: func(l *lab, from func()) string {
			was := ask[statusJSON](l, 3, "status").Node.ID
			l.run("kill", "3")
			l.local("sh", "-c", fmt.Sprintf("rm -rf %s/*", l.file(3, "state")))
			from()
			l.meshnet(3, "up", "-d")
			read := l.warning(3, "lost its disk")
			l.untilDead(1, was)
			l.meshnet(1, "rmpeer", was)
			l.attach(3, "c3", "web")
			return read
		}},
	}
}
