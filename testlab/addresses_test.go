package testlab

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	steps     = flag.Int("steps", 40, "how many random steps TestAddressesAtRandom makes")
	stepsSeed = flag.Uint64("stepseed", 0, "the seed of its steps; 0: another each time")
)

type conflictJSON struct{ Kind, What, Network, Kept, Lost string }

type spaceJSON struct {
	Network, Subnet  string
	Size, Used, Free int
	Blocks           []struct {
		Prefix, Owner, State string
		Used, Free           int
	}
}

// containers makes containers on a host in one go.
func (l *lab) containers(host int, names ...string) {
	l.t.Helper()
	make := `for c; do ip netns add "$c" && ip -n "$c" link set lo up || exit 1; done`
	l.run(append([]string{"exec", fmt.Sprint(host), "bash", "-c", make, "-"}, names...)...)
}

// attachAt attaches a container and returns its address, or what was said why not. That other hosts do
// not know yet is no failure.
func (l *lab) attachAt(host int, args ...string) (string, error) {
	out, err := l.try(append([]string{"exec", fmt.Sprint(host), "meshnet", "attach", "--wait", "0s"}, args...)...)
	if err != nil && strings.Contains(err.Error(), "it is done here") {
		err = nil
	}
	return strings.TrimSpace(out), err
}

// echos is how many pings a container got.
func (l *lab) echos(host int, container string) int {
	l.t.Helper()
	out := l.run("in", fmt.Sprint(host), container, "cat", "/proc/net/snmp")
	var names []string
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		switch {
		case words[0] != "Icmp:":
		case names == nil:
			names = words
		default:
			n, err := strconv.Atoi(words[slices.Index(names, "InEchos")])
			if err != nil {
				l.t.Fatal(err)
			}
			return n
		}
	}
	l.t.Fatalf("no count of pings:\n%s", out)
	return 0
}

func hostOf(a attachment) int {
	var h int
	fmt.Sscanf(a.Node, "h%d", &h)
	return h
}

// oneEach wants each address of a network that is reached to be reached once: a ping of it arrives at
// one container, that which is shown, and at no other that has the address too.
func (l *lab) oneEach(network string) {
	l.t.Helper()
	byAddress := map[string][]attachment{}
	var all []attachment
	for _, a := range ask[[]attachment](l, 1, "ps", "-a") {
		if a.Network == network && a.State != "pending" {
			byAddress[a.Address] = append(byAddress[a.Address], a)
			all = append(all, a)
		}
	}
	for _, address := range slices.Sorted(maps.Keys(byAddress)) {
		sharing := byAddress[address]
		from := slices.IndexFunc(all, func(a attachment) bool { return a.Address != address })
		if from < 0 {
			return
		}
		before := make([]int, len(sharing))
		for i, a := range sharing {
			before[i] = l.echos(hostOf(a), a.Container)
		}
		ip, _, _ := strings.Cut(address, "/")
		// Who asks may itself not be reached: then nobody is.
		l.try("in", fmt.Sprint(hostOf(all[from])), all[from].Container, "ping", "-c", "2", "-i", "0.2", "-W", "2", ip)
		var got []string
		for i, a := range sharing {
			if l.echos(hostOf(a), a.Container) > before[i] {
				got = append(got, a.Container+" on "+a.Node)
			}
		}
		if len(got) > 1 {
			l.t.Errorf("%s on %s is reached at %v", ip, network, got)
		}
		if len(sharing) == 1 && len(got) == 0 && !slices.ContainsFunc(ask[[]conflictJSON](l, 1, "conflicts"), func(c conflictJSON) bool { return strings.HasPrefix(c.Lost, all[from].Container+" on ") }) {
			l.t.Errorf("%s on %s, of %s, is not reached", ip, network, sharing[0].Container)
		}
	}
}

// TestBornApart wants three nodes that never met to become one mesh when they do: nobody is renumbered,
// of those with one address one is reached and the others are listed.
func TestBornApart(t *testing.T) {
	l := up(t, "--no-start")
	l.run("split", "1", "2", "3")
	for h := 1; h <= 3; h++ {
		l.run("start", fmt.Sprint(h))
		l.meshnet(h, "network", "create", "web", "10.2.0.0/16")
		l.meshnet(h, "network", "create", "tiny", "10.7.0.0/29")
		for i := 1; i <= 3; i++ {
			c := fmt.Sprintf("c%d%d", h, i)
			l.run("container", fmt.Sprint(h), c)
			for _, network := range []string{"web", "tiny", "default"} {
				l.attach(h, c, network)
			}
		}
	}
	before := map[string]string{}
	for h := 1; h <= 3; h++ {
		for _, a := range ask[[]attachment](l, h, "ps") {
			before[a.Container+" "+a.Network] = a.Address
		}
	}
	healed := time.Now()
	l.run("heal")
	l.run("converged", "-t", "60")
	t.Logf("one digest %v after the heal", time.Since(healed).Round(time.Second))
	claims := map[string][]string{}
	for _, a := range ask[[]attachment](l, 1, "ps", "-a") {
		if before[a.Container+" "+a.Network] != a.Address {
			t.Errorf("%s had %s on %s and has %s", a.Container, before[a.Container+" "+a.Network], a.Network, a.Address)
		}
		claims[a.Network+" "+a.Address] = append(claims[a.Network+" "+a.Address], a.Container)
	}
	lost := map[string]bool{}
	for _, c := range ask[[]conflictJSON](l, 2, "conflicts") {
		if c.Kind == "address" {
			container, _, _ := strings.Cut(c.Lost, " ")
			lost[container+" "+c.Network] = true
		}
	}
	twice := 0
	for at, who := range claims {
		network, _, _ := strings.Cut(at, " ")
		shown := 0
		for _, c := range who {
			if !lost[c+" "+network] {
				shown++
			}
		}
		if shown != 1 {
			t.Errorf("%s: %v, of whom %d are shown", at, who, shown)
		}
		twice += len(who) - 1
	}
	if twice != len(lost) || twice == 0 { // nine containers on a /29 of five addresses
		t.Errorf("%d too many claims, %d conflicts", twice, len(lost))
	}
	l.oneEach("tiny")
	l.oneEach("web")
	// Attached again one that is not reached is renumbered, where there is room.
	for _, c := range ask[[]conflictJSON](l, 1, "conflicts") {
		if c.Kind == "address" && c.Network != "tiny" {
			container, _, _ := strings.Cut(c.Lost, " ")
			host := int(container[1] - '0')
			if a := l.attach(host, container, c.Network); a == c.What {
				t.Errorf("%s attached again to %s has %s still", container, c.Network, a)
			}
		}
	}
	l.run("converged", "-t", "60")
	for _, c := range ask[[]conflictJSON](l, 3, "conflicts") {
		if c.Kind == "address" && c.Network != "tiny" {
			t.Errorf("renumbered, and still listed: %+v", c)
		}
	}
}

// TestDeadNode wants the addresses of a node that is gone for good to be of use again after it was given
// up, from two nodes at once, and the node to come back as a new one.
func TestDeadNode(t *testing.T) {
	const rest = 8 * time.Second
	l := up(t, "--", "--quarantine", rest.String())
	l.run("converged", "-t", "60")
	l.meshnet(1, "network", "create", "blue", "10.7.0.0/26")
	for h := 1; h <= 3; h++ {
		var names []string
		for i := range 30 {
			names = append(names, fmt.Sprintf("c%d-%d", h, i))
		}
		l.containers(h, names...)
		for _, c := range names[:5] {
			l.attach(h, c, "blue")
		}
	}
	l.run("converged", "-t", "60")
	l.run("kill", "3")
	l.untilDead(1, "h3")
	l.untilDead(2, "h3")
	var full string
	next := [4]int{5, 5, 5}
fill:
	for i := 0; ; i++ {
		h := 1 + i%2
		began := time.Now()
		_, err := l.attachAt(h, fmt.Sprintf("c%d-%d", h, next[h]), "blue")
		if err != nil {
			took := time.Since(began)
			full = err.Error()
			t.Logf("host %d after %v: %v", h, took.Round(time.Millisecond), err)
			if took > 2*time.Second {
				t.Errorf("it took %v to say so", took)
			}
			break fill
		}
		next[h]++
	}
	if !strings.Contains(full, "belong to h3") {
		t.Errorf("it does not name who has addresses: %s", full)
	}
	before := ask[[]attachment](l, 1, "ps", "-a")
	var both sync.WaitGroup
	for h := 1; h <= 2; h++ {
		both.Go(func() {
			if _, err := l.try("exec", fmt.Sprint(h), "meshnet", "rmpeer", "h3"); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if s := ask[[]spaceJSON](l, 1, "ipam", "blue"); !hasState(s, "quarantined") {
		t.Errorf("nothing rests: %+v", s)
	}
	deadline := time.Now().Add(rest + 30*time.Second)
	for hasState(ask[[]spaceJSON](l, 1, "ipam", "blue"), "quarantined") || hasState(ask[[]spaceJSON](l, 2, "ipam", "blue"), "quarantined") {
		if time.Now().After(deadline) {
			t.Fatalf("still resting: %s", l.meshnet(1, "ipam", "blue"))
		}
		time.Sleep(200 * time.Millisecond)
	}
	for h := 1; h <= 2; h++ {
		l.attach(h, fmt.Sprintf("c%d-%d", h, next[h]), "blue")
	}
	for _, a := range before {
		if a.Node != "h3" && !slices.ContainsFunc(ask[[]attachment](l, 2, "ps", "-a"), func(b attachment) bool {
			return b.Container == a.Container && b.Address == a.Address
		}) {
			t.Errorf("%s lost %s", a.Container, a.Address)
		}
	}
	here := ask[[]attachment](l, 1, "ps", "-a")
	l.run("start", "3")
	l.run("converged", "-t", "60")
	if s := ask[statusJSON](l, 3, "status"); s.NodesAgreeing != 3 {
		t.Errorf("%+v", s)
	}
	after := ask[[]attachment](l, 1, "ps", "-a")
	for _, a := range here {
		if !slices.ContainsFunc(after, func(b attachment) bool { return b.Container == a.Container && b.Address == a.Address }) {
			t.Errorf("when h3 came back %s lost %s", a.Container, a.Address)
		}
	}
	l.oneEach("blue")
}

func hasState(spaces []spaceJSON, state string) bool {
	for _, s := range spaces {
		for _, b := range s.Blocks {
			if b.State == state {
				return true
			}
		}
	}
	return false
}

// untilDead waits until a host holds a node, by name or id, for dead. Each host sees that at a time of its own.
func (l *lab) untilDead(host int, node string) {
	l.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		for _, n := range ask[[]struct{ Name, ID, State string }](l, host, "nodes") {
			if (n.Name == node || n.ID == node) && n.State == "dead" {
				return
			}
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s is not dead on host %d", node, host)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// TestKilledWhileAttaching wants no address lost and none given twice when the daemon is killed at a
// random moment of 200 attaches.
func TestKilledWhileAttaching(t *testing.T) {
	const n = 200
	l := up(t)
	l.run("converged", "-t", "60")
	l.meshnet(1, "network", "create", "blue", "10.7.0.0/22")
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("k%d", i)
	}
	l.containers(1, names...)
	at := rand.IntN(n - 20)
	t.Logf("killed after attach %d", at)
	var mu sync.Mutex
	got := map[string]string{}
	done := 0
	kill := make(chan struct{})
	var wg sync.WaitGroup
	work := make(chan string)
	for range 4 {
		wg.Go(func() {
			for c := range work {
				a, err := l.attachAt(1, c, "blue")
				mu.Lock()
				if err == nil {
					got[c] = a
				}
				if done++; done == at+1 {
					close(kill)
				}
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		<-kill
		if _, err := l.try("kill", "1"); err != nil {
			t.Error(err)
		}
	})
	for _, c := range names {
		work <- c
	}
	close(work)
	wg.Wait()
	l.run("start", "1")
	l.run("converged", "-t", "60")
	holds := map[string]string{}
	for _, a := range ask[[]attachment](l, 1, "ps") {
		ip, _, _ := strings.Cut(a.Address, "/")
		if other, twice := holds[ip]; twice {
			t.Errorf("%s is of %s and %s", ip, other, a.Container)
		}
		holds[ip] = a.Container
	}
	for c, a := range got {
		if holds[a] != c {
			t.Errorf("%s was given %s, which is of %q now", c, a, holds[a])
		}
	}
	t.Logf("%d attached before the kill or after it, %d there after the restart", len(got), len(holds))
	seen := map[string]string{}
	for _, c := range names {
		a, err := l.attachAt(1, c, "blue")
		if err != nil {
			t.Fatal(err)
		}
		if was, ok := got[c]; ok && was != a {
			t.Errorf("%s had %s and has %s", c, was, a)
		}
		if other, twice := seen[a]; twice {
			t.Errorf("%s is of %s and %s", a, other, c)
		}
		seen[a] = c
	}
}

// TestSmallSubnet wants five nodes to use all that a /29 has.
func TestSmallSubnet(t *testing.T) {
	l := up(t, "-n", "5")
	l.run("converged", "-t", "90")
	l.meshnet(2, "network", "create", "tiny", "10.7.0.0/29")
	l.run("converged", "-t", "60")
	seen := map[string]bool{}
	for _, h := range []int{5, 1, 4, 3, 2} {
		c := fmt.Sprint("c", h)
		l.run("container", fmt.Sprint(h), c)
		seen[l.attach(h, c, "tiny")] = true
	}
	if len(seen) != 5 {
		t.Errorf("five containers have %v", slices.Sorted(maps.Keys(seen)))
	}
	l.run("converged", "-t", "60")
	l.run("container", "3", "more")
	if a, err := l.attachAt(3, "more", "tiny"); err == nil || !strings.Contains(err.Error(), "5 of 5 in use") {
		t.Errorf("a sixth: %s, %v", a, err)
	}
	l.oneEach("tiny")
}

// TestAddressesAtRandom does random things to three hosts and wants, whenever all is quiet, each address
// at most once, by what is said and on the wire.
func TestAddressesAtRandom(t *testing.T) {
	seed := *stepsSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d, %d steps", seed, *steps)
	r := rand.New(rand.NewPCG(seed, 3))
	l := up(t)
	l.run("converged", "-t", "60")
	l.meshnet(1, "network", "create", "blue", "10.7.0.0/27")
	for h := 1; h <= 3; h++ {
		var names []string
		for i := range 10 {
			names = append(names, fmt.Sprintf("c%d-%d", h, i))
		}
		l.containers(h, names...)
	}
	killOVS := strings.Contains(l.run("help"), "killovs")
	running := map[int]bool{1: true, 2: true, 3: true}
	for i := range *steps {
		h := 1 + r.IntN(3)
		c := fmt.Sprintf("c%d-%d", h, r.IntN(10))
		what := ""
		switch x := r.IntN(100); {
		case x < 40:
			what = "attach " + c
			l.attachAt(h, c, "blue")
		case x < 60:
			what = "detach " + c
			l.try("exec", fmt.Sprint(h), "meshnet", "detach", c, "blue")
		case x < 75:
			ip := fmt.Sprintf("10.7.0.%d", r.IntN(32))
			what = "attach " + c + " --ip " + ip
			l.attachAt(h, c, "blue", "--ip", ip)
		case x < 82 && running[h]:
			what = fmt.Sprint("kill ", h)
			l.run("kill", fmt.Sprint(h))
			running[h] = false
		case x < 88 && !running[h]:
			what = fmt.Sprint("start ", h)
			l.run("start", fmt.Sprint(h))
			running[h] = true
		case x < 93:
			what = fmt.Sprint("split ", h)
			l.run("split", fmt.Sprint(h))
		case x < 95 && killOVS:
			what = fmt.Sprint("killovs ", h)
			l.try("killovs", fmt.Sprint(h))
		default:
			what = "heal"
			l.run("heal")
		}
		t.Logf("step %d: %s", i, what)
		if i%50 != 49 && i != *steps-1 {
			continue
		}
		l.run("heal")
		for h := range running {
			if !running[h] {
				l.run("start", fmt.Sprint(h))
				running[h] = true
			}
		}
		l.run("converged", "-t", "120")
		holds := map[string]string{}
		for _, a := range ask[[]attachment](l, 1, "ps", "-a") {
			if other, twice := holds[a.Address]; twice && a.Address != "" {
				t.Errorf("seed %d, step %d: %s is of %s and %s", seed, i, a.Address, other, a.Container)
			}
			holds[a.Address] = a.Container
		}
		l.oneEach("blue")
		if t.Failed() {
			fmt.Fprintf(os.Stderr, "testlab: again with -stepseed %d\n", seed)
			return
		}
	}
}
