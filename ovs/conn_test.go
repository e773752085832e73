package ovs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshnet/ovs/flow"
	"meshnet/ovs/openflow"
	"meshnet/ovs/ovstest"
	"meshnet/state"
)

// bridge starts Open vSwitch with one bridge and connects to it.
func bridge(t testing.TB) (*ovstest.Instance, *ofConn) {
	t.Helper()
	in := ovstest.Start(t)
	in.Vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=dummy", "fail-mode=secure")
	return in, dialed(t, in.Mgmt("br0"))
}

func dialed(t testing.TB, path string) *ofConn {
	t.Helper()
	c, err := dialOpenFlow(t.Context(), path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// members returns the flows to n MACs of one network, in canonical order.
func members(n int, port uint32) []flow.Flow {
	flows := make([]flow.Flow, n)
	for i := range flows {
		mac := state.MAC{2, 0x42, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
		flows[i] = flow.Flow{
			Table: flow.TableRemote, Priority: 100, Cookie: flow.Cookie(7),
			Match:   flow.Match{Metadata: flow.Exact64(7), EthDst: flow.ExactMAC(mac)},
			Actions: []flow.Action{flow.SetField{Field: flow.FieldTunID, Value: 7}, flow.Output{Port: port}},
		}
	}
	return flows
}

// bad is refused by every switch: it sets a field of ARP in a packet that need not be one.
func bad() flow.Flow {
	return flow.Flow{
		Table: flow.TableARP, Priority: 9, Cookie: flow.Cookie(7), Match: flow.Match{InPort: 77},
		Actions: []flow.Action{flow.SetField{Field: flow.FieldARPOp, Value: 2}},
	}
}

func mustChange(t testing.TB, c *ofConn, add, remove []flow.Flow) {
	t.Helper()
	if err := c.Change(t.Context(), add, remove); err != nil {
		t.Fatal(err)
	}
}

func holds(t testing.TB, c *ofConn, want []flow.Flow) {
	t.Helper()
	got, err := c.Flows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(got, want, flow.Flow.Equal) {
		t.Fatalf("the switch has %d flows, want %d:\n%v\n%v", len(got), len(want),
			got[:min(len(got), 5)], want[:min(len(want), 5)])
	}
}

func TestChangeIsSeenInFlows(t *testing.T) {
	in, c := bridge(t)
	in.Ofctl("add-flow", "br0", "cookie=5,table=30,actions=NORMAL")
	flows := members(100, 1)
	mustChange(t, c, flows, nil)
	holds(t, c, flows)
	dump, err := flow.ParseDump(in.Ofctl("dump-flows", "br0", fmt.Sprintf("cookie=%#x/-1", flow.Cookie(7))))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(dump, flow.Compare)
	if !slices.EqualFunc(dump, flows, flow.Flow.Equal) {
		t.Errorf("ovs-ofctl sees %d other flows, the first %v", len(dump), dump[0])
	}

	// Adding replaces; a removal that comes with it concerns what was there before.
	replaced := members(100, 2)
	mustChange(t, c, replaced[:50], flows[:60])
	holds(t, c, slices.Concat(replaced[:50], flows[60:]))
	mustChange(t, c, nil, flows) // those with another port are the same flows; some are gone already
	holds(t, c, nil)
	mustChange(t, c, nil, nil)
	if rest := in.Ofctl("dump-flows", "br0"); !strings.Contains(rest, "NORMAL") {
		t.Errorf("the flow of somebody else is gone: %q", rest)
	}
}

func TestRemoveSparesWhatTookItsPlace(t *testing.T) {
	in, c := bridge(t)
	mine := flow.Flow{Table: 3, Priority: 4, Cookie: flow.Cookie(7), Match: flow.Match{InPort: 5}}
	mustChange(t, c, []flow.Flow{mine}, nil)
	in.Ofctl("add-flow", "br0", "cookie=5,table=3,priority=4,in_port=5,actions=NORMAL")
	mustChange(t, c, nil, []flow.Flow{mine})
	if rest := in.Ofctl("dump-flows", "br0"); !strings.Contains(rest, "NORMAL") {
		t.Errorf("the flow of somebody else is gone: %q", rest)
	}
}

// refusal checks that err is the switch's, for that flow, and names both.
func refusal(t *testing.T, err error, f flow.Flow, name string) {
	t.Helper()
	var why openflow.Error
	if !errors.As(err, &why) {
		t.Fatalf("error %v has no openflow.Error", err)
	}
	for _, part := range []string{f.String(), name} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
}

func TestBundleIsAllOrNothing(t *testing.T) {
	in, c := bridge(t)
	before := members(5, 1)
	mustChange(t, c, before, nil)
	after := members(20, 2)

	// Refused while it is looked at.
	err := c.Change(t.Context(), slices.Insert(slices.Clone(after), 10, bad()), before[:2])
	refusal(t, err, bad(), "OFPBAC_MATCH_INCONSISTENT")
	holds(t, c, before)

	// Refused while it takes effect.
	in.Vsctl("--", "--id=@t", "create", "Flow_Table", "flow_limit=12", "overflow_policy=refuse",
		"--", "set", "bridge", "br0", fmt.Sprintf("flow_tables:%d=@t", flow.TableRemote))
	err = c.Change(t.Context(), after, nil)
	refusal(t, err, after[12], "OFPFMFC_TABLE_FULL")
	holds(t, c, before)

	// Not even sent.
	wrong := after[3]
	wrong.Actions = []flow.Action{flow.Output{}}
	err = c.Change(t.Context(), []flow.Flow{after[1], wrong}, before)
	if err == nil || !strings.Contains(err.Error(), wrong.String()) {
		t.Errorf("error %v does not name %v", err, wrong)
	}
	holds(t, c, before)

	// And none of it stands in the way of what comes next.
	mustChange(t, c, after[:10], before)
	holds(t, c, after[:10])
}

// The switch answers each of them with an error and does not read on while its answers are not read.
func TestManyRefusals(t *testing.T) {
	_, c := bridge(t)
	var flows []flow.Flow
	for i := range 20_000 {
		f := bad()
		f.Match.InPort = uint32(i + 1)
		flows = append(flows, f)
	}
	refusal(t, c.Change(t.Context(), flows, nil), flows[0], "OFPBAC_MATCH_INCONSISTENT")
	holds(t, c, nil)
}

func TestTenThousandFlowsInOneBundle(t *testing.T) {
	_, c := bridge(t)
	one, two := members(10_000, 1), members(10_000, 2)
	mustChange(t, c, one, nil)
	holds(t, c, one)
	mustChange(t, c, two, nil)
	holds(t, c, two)
	mustChange(t, c, nil, two)
	holds(t, c, nil)
}

func TestForeignFlowsGoWithTheNextChange(t *testing.T) {
	in, c := bridge(t)
	in.Ofctl("add-flow", "br0", fmt.Sprintf("cookie=%#x,table=1,reg0=5,actions=output:1", flow.Cookie(7)))
	in.Ofctl("add-flow", "br0", fmt.Sprintf("cookie=%#x,table=30,metadata=7,actions=set_field:5->reg1", flow.Cookie(7)))
	in.Ofctl("add-flow", "br0", "cookie=5,table=1,reg0=6,actions=output:1")
	mine := []flow.Flow{{Table: 30, Priority: 32768, Cookie: flow.Cookie(7), Match: flow.Match{Metadata: flow.Exact64(7)}}}
	holds(t, c, nil)
	mustChange(t, c, mine, nil) // the same flow as one of the foreign
	holds(t, c, mine)
	in.Ofctl("add-flow", "br0", fmt.Sprintf("cookie=%#x,table=1,reg0=5,actions=output:1", flow.Cookie(7)))
	holds(t, c, mine)
	mustChange(t, c, nil, nil)
	dump := in.Ofctl("dump-flows", "br0")
	if strings.Contains(dump, "reg0=0x5") || !strings.Contains(dump, "reg0=0x6") {
		t.Errorf("left: %s", dump)
	}
}

func TestKilledSwitch(t *testing.T) {
	in, c := bridge(t)
	// Stopped, it cannot have read much when the end comes.
	pid := pidOf(t, in)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- c.Change(context.Background(), members(50_000, 1), nil) }()
	for begun := time.Now(); len(c.turn) == 0 && time.Since(begun) < bound; {
		<-time.After(time.Millisecond)
	}
	in.Kill(ovstest.Switchd)
	if err := within(t, failed); err == nil {
		t.Error("a bundle was accepted by a dead switch")
	}
	within(t, c.Done())
	if _, err := c.Flows(t.Context()); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("Flows on a lost connection: %v", err)
	}
	if _, err := dialOpenFlow(t.Context(), in.Mgmt("br0"), slog.Default()); err == nil ||
		!strings.Contains(err.Error(), "is ovs-vswitchd running") {
		t.Errorf("dial: %v", err)
	}
}

func TestBridgeThatSpeaksNoOpenFlow14(t *testing.T) {
	in := ovstest.Start(t)
	in.Vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=dummy", "protocols=OpenFlow10,OpenFlow13")
	_, err := dialOpenFlow(t.Context(), in.Mgmt("br0"), slog.Default())
	if err == nil || !strings.Contains(err.Error(), "add OpenFlow14") {
		t.Errorf("error %v", err)
	}
}

// fake plays a switch that says what the test wants.
type fake struct {
	t    *testing.T
	conn net.Conn
}

// faked returns a connection and the switch at its other end, which has been greeted.
func faked(t *testing.T) (*ofConn, fake) {
	t.Helper()
	path := filepath.Join(shortDir(t), "fake.mgmt")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan fake, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			close(accepted)
			return
		}
		f := fake{t, conn}
		if err := conn.SetDeadline(time.Now().Add(bound)); err != nil {
			t.Error(err)
		}
		f.say(0, openflow.Hello{Versions: 0x7e})
		f.hear()
		h, _ := f.hear()
		f.say(h.XID, openflow.FeaturesReply{Datapath: 1})
		h, _ = f.hear()
		f.say(h.XID, openflow.FlowUpdates{})
		accepted <- f
	}()
	c := dialed(t, path)
	f := within(t, accepted)
	t.Cleanup(func() { f.conn.Close() })
	return c, f
}

func (f fake) say(xid uint32, m openflow.Message) {
	b, err := openflow.Append(nil, xid, m)
	if err == nil {
		_, err = f.conn.Write(b)
	}
	if err != nil {
		f.t.Error(err)
	}
}

func (f fake) hear() (openflow.Header, openflow.Message) {
	h, m, err := readMessage(f.conn, make([]byte, openflow.MaxLen))
	if err != nil {
		f.t.Error(err)
	}
	return h, m
}

func within[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(bound):
		t.Fatalf("nothing happened for %v", bound)
		panic("unreachable")
	}
}

func TestEcho(t *testing.T) {
	_, f := faked(t)
	f.say(42, openflow.EchoRequest{Data: []byte("are you there")})
	h, m := f.hear()
	if e, ok := m.(openflow.EchoReply); !ok || h.XID != 42 || string(e.Data) != "are you there" {
		t.Errorf("%+v %+v", h, m)
	}
}

// What the switch says unasked must not be taken for an answer, whatever its number.
func TestUnaskedMessages(t *testing.T) {
	c, f := faked(t)
	want := members(3, 1)
	got := make(chan error, 1)
	go func() {
		flows, err := c.Flows(t.Context())
		if err == nil && !slices.EqualFunc(flows, want, flow.Flow.Equal) {
			err = fmt.Errorf("got %v", flows)
		}
		got <- err
	}()
	h, _ := f.hear()
	portStatus := []byte{openflow.Version, 12, 0, 8, 0, 0, 0, 0}
	portStatus[7] = byte(h.XID)
	if _, err := f.conn.Write(portStatus); err != nil {
		t.Fatal(err)
	}
	f.say(h.XID+1, openflow.Error{Type: 1})
	f.say(h.XID-1, openflow.FlowStatsReply{Flows: members(9, 9)})
	f.say(h.XID, openflow.FlowStatsReply{Flows: want[:2], More: true})
	f.say(0, openflow.EchoRequest{})
	f.say(h.XID, openflow.FlowStatsReply{Flows: want[2:]})
	if err := within(t, got); err != nil {
		t.Error(err)
	}
	c.Close()
	if c.ignored != 3 {
		t.Errorf("%d messages ignored, want 3", c.ignored)
	}
}

// What others do to our flows makes them doubtful until they are read; what they do to their own does not.
func TestFlowsTouched(t *testing.T) {
	c, f := faked(t)
	f.say(0, openflow.FlowUpdates{Cookies: []uint64{0x77}})
	f.say(0, openflow.EchoRequest{})
	f.hear() // so that what was said before has been read
	if c.Touched() {
		t.Error("touched by what concerns flows of others")
	}
	for _, u := range []openflow.FlowUpdates{{Cookies: []uint64{0x77, flow.BaseCookie | 5}}, {Gap: true}} {
		f.say(0, u)
		within(t, c.alarm)
		if !c.Touched() {
			t.Errorf("not touched by %+v", u)
		}
		got := make(chan error, 1)
		go func() {
			_, err := c.Flows(t.Context())
			got <- err
		}()
		h, _ := f.hear()
		f.say(h.XID, openflow.FlowStatsReply{})
		if err := within(t, got); err != nil {
			t.Fatal(err)
		}
		if c.Touched() {
			t.Error("touched, and read since")
		}
	}
}

// A switch that cannot tell of flows is one whose flows are counted.
func TestNoFlowMonitor(t *testing.T) {
	f, c := fake{}, make(chan *ofConn, 1)
	path := filepath.Join(shortDir(t), "fake.mgmt")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { c <- dialed(t, path) }()
	if f.conn, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	defer f.conn.Close()
	f.t = t
	f.say(0, openflow.Hello{Versions: 0x7e})
	f.hear()
	h, _ := f.hear()
	f.say(h.XID, openflow.FeaturesReply{Datapath: 1})
	h, m := f.hear()
	if _, ok := m.(openflow.FlowMonitorRequest); !ok {
		t.Fatalf("asked %+v", m)
	}
	f.say(h.XID, openflow.Error{Type: 1, Code: 2})
	if conn := within(t, c); conn.told || conn.Touched() {
		t.Error("told of flows by a switch that cannot")
	}
}

func TestSilentSwitch(t *testing.T) {
	c, f := faked(t)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := c.Flows(ctx)
		got <- err
	}()
	h, _ := f.hear()
	cancel()
	if err := within(t, got); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	// The next request works, and the late answer to the one before is not for it.
	go func() {
		_, err := c.Flows(t.Context())
		got <- err
	}()
	h2, _ := f.hear()
	f.say(h.XID, openflow.Error{Type: 1, Code: 1})
	f.say(h2.XID, openflow.FlowStatsReply{})
	if err := within(t, got); err != nil {
		t.Errorf("after a silence: %v", err)
	}
	// When the commit has no answer, nobody knows.
	ctx, cancel = context.WithCancel(t.Context())
	go func() { got <- c.Change(ctx, members(1, 1), nil) }()
	f.hear()
	f.hear()
	h, m := f.hear()
	if _, ok := m.(openflow.BarrierRequest); !ok {
		t.Fatalf("%+v", m)
	}
	f.say(h.XID, openflow.BarrierReply{})
	if _, m := f.hear(); m.(openflow.BundleControl).Step != openflow.BundleCommit {
		t.Errorf("%+v", m)
	}
	cancel()
	if err := within(t, got); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("error %v", err)
	}
}

func TestAbandonedBundleIsDiscarded(t *testing.T) {
	c, f := faked(t)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() { got <- c.Change(ctx, members(1, 1), nil) }()
	_, open := f.hear()
	f.hear()
	f.hear()
	cancel()
	_, m := f.hear()
	want := openflow.BundleControl{ID: open.(openflow.BundleControl).ID, Step: openflow.BundleDiscard}
	if m != want {
		t.Errorf("%+v, want %+v", m, want)
	}
	if err := within(t, got); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A bundle can be refused as a whole, without a word about one of its flows.
func TestRefusedBundle(t *testing.T) {
	for i, step := range []string{"open", "add", "barrier", "commit"} {
		t.Run(step, func(t *testing.T) {
			c, f := faked(t)
			got := make(chan error, 1)
			go func() { got <- c.Change(t.Context(), members(1, 1), nil) }()
			why := openflow.Error{Type: 17, Code: uint16(i + 1)}
			var h openflow.Header
			for n := range 3 {
				if h, _ = f.hear(); n == i {
					f.say(h.XID, why)
				}
			}
			if i != 2 {
				f.say(h.XID, openflow.BarrierReply{})
			}
			h, m := f.hear()
			if i == 3 {
				f.say(h.XID, why)
			} else if m.(openflow.BundleControl).Step != openflow.BundleDiscard {
				t.Errorf("after a refusal: %+v", m)
			}
			err := within(t, got)
			if e := (openflow.Error{}); !errors.As(err, &e) || e.Code != why.Code {
				t.Errorf("error %v, want %v", err, why)
			}
			if err != nil && strings.Contains(err.Error(), "may or may not") {
				t.Errorf("error %v of a refusal", err)
			}
		})
	}
}

func TestBrokenStream(t *testing.T) {
	for name, b := range map[string]string{
		"length below header": "\x05\x15\x00\x07\x00\x00\x00\x01",
		"cut short":           "\x05\x13\x01\x00\x00\x00\x00\x02",
	} {
		t.Run(name, func(t *testing.T) {
			c, f := faked(t)
			got := make(chan error, 1)
			go func() {
				_, err := c.Flows(t.Context())
				got <- err
			}()
			f.hear()
			if _, err := io.WriteString(f.conn, b); err != nil {
				t.Fatal(err)
			}
			f.conn.Close()
			if err := within(t, got); err == nil || !strings.Contains(err.Error(), "lost") {
				t.Errorf("error %v", err)
			}
			within(t, c.Done())
			c.Close()
		})
	}
}

func TestNoSwitchAtAll(t *testing.T) {
	path := filepath.Join(shortDir(t), "mute.mgmt")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := dialOpenFlow(ctx, path, slog.Default()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func BenchmarkChangeOne(b *testing.B) {
	_, c := bridge(b)
	mustChange(b, c, members(10_000, 1), nil)
	one, two := members(1, 2), members(1, 3)
	for b.Loop() {
		mustChange(b, c, one, nil)
		one, two = two, one
	}
}

func BenchmarkChange10k(b *testing.B) {
	_, c := bridge(b)
	one, two := members(10_000, 1), members(10_000, 2)
	for b.Loop() {
		mustChange(b, c, one, nil)
		one, two = two, one
	}
}

// With the whole cookie in a removal, this takes a hundred times as long.
func BenchmarkRemoveAndAdd10k(b *testing.B) {
	_, c := bridge(b)
	flows := members(10_000, 1)
	for b.Loop() {
		mustChange(b, c, flows, nil)
		mustChange(b, c, nil, flows)
	}
}

func BenchmarkFlows10k(b *testing.B) {
	_, c := bridge(b)
	mustChange(b, c, members(10_000, 1), nil)
	for b.Loop() {
		if _, err := c.Flows(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func pidOf(t *testing.T, in *ovstest.Instance) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(in.Dir, ovstest.Switchd+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
