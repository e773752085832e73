package openflow

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnet/ovs/flow"
	"meshnet/ovs/ovstest"
)

// peer is one end of a connection, as simple as a test may have it: it writes, then reads.
type peer struct {
	t    testing.TB
	conn net.Conn
}

func (p peer) send(xid uint32, m Message) {
	p.t.Helper()
	b, err := Append(nil, xid, m)
	if err == nil {
		_, err = p.conn.Write(b)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p peer) receive() (Header, Message) {
	p.t.Helper()
	b := p.read()
	h, m, err := Decode(b)
	if err != nil {
		p.t.Fatalf("%v\n% x", err, b)
	}
	return h, m
}

func (p peer) read() []byte {
	p.t.Helper()
	b := make([]byte, HeaderLen)
	if _, err := io.ReadFull(p.conn, b); err != nil {
		p.t.Fatal(err)
	}
	h, err := DecodeHeader(b)
	if err != nil {
		p.t.Fatal(err)
	}
	b = append(b, make([]byte, h.Len-HeaderLen)...)
	if _, err := io.ReadFull(p.conn, b[HeaderLen:]); err != nil {
		p.t.Fatal(err)
	}
	return b
}

func dial(t testing.TB, path string) peer {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	p := peer{t, conn}
	p.send(0, Hello{Versions: 1 << Version})
	if _, m := p.receive(); !m.(Hello).Speaks(Version) {
		t.Fatalf("hello %+v", m)
	}
	return p
}

// load puts mods into one bundle and returns what the switch refused, by index.
func (p peer) load(mods []FlowMod) map[int]Error {
	p.t.Helper()
	p.send(0, BundleControl{ID: 1, Step: BundleOpen})
	p.receive()
	refused := map[int]Error{}
	for i, m := range mods {
		p.send(uint32(i), BundleAdd{ID: 1, Mod: m})
	}
	p.send(0, BarrierRequest{})
	for {
		h, m := p.receive()
		if e, ok := m.(Error); ok {
			refused[int(h.XID)] = e
			continue
		}
		break // the barrier
	}
	p.send(0, BundleControl{ID: 1, Step: BundleCommit})
	if _, m := p.receive(); m != (BundleControl{ID: 1, Step: BundleCommitted}) {
		p.t.Fatalf("commit: %v", m)
	}
	return refused
}

func (p peer) dump() (flows []flow.Flow, foreign []Foreign) {
	p.t.Helper()
	p.send(9, FlowStatsRequest{Cookie: flow.BaseCookie, CookieMask: flow.CookieMask})
	for {
		_, m := p.receive()
		reply := m.(FlowStatsReply)
		flows, foreign = append(flows, reply.Flows...), append(foreign, reply.Foreign...)
		if !reply.More {
			slices.SortFunc(flows, flow.Compare)
			return flows, foreign
		}
	}
}

// broad is a set of flows, none of them twice, that has everything in it; the same in every run.
func broad(n int) (flows []flow.Flow) {
	for _, m := range samples() {
		if m, ok := m.(FlowMod); ok && m.Command == Add {
			flows = append(flows, m.Flow)
		}
	}
	for i := range n {
		flows = append(flows, genFlow.Example(i))
	}
	slices.SortStableFunc(flows, flow.Compare)
	return slices.CompactFunc(flows, func(a, b flow.Flow) bool { return flow.Compare(a, b) == 0 })
}

// Open vSwitch is the second opinion: what we write it must understand as what flow.String says, and what it says we
// must understand as what we wrote.
func TestOpenVSwitchReadsWhatWeWrite(t *testing.T) {
	in := ovstest.Start(t)
	in.Vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=dummy", "fail-mode=secure")
	p := dial(t, in.Mgmt("br0"))
	want := broad(1500)
	if len(want) < 1400 {
		t.Fatalf("only %d flows in the sample", len(want))
	}
	var mods []FlowMod
	for _, f := range want {
		mods = append(mods, FlowMod{Command: Add, Flow: f})
	}
	for i, e := range p.load(mods) {
		t.Errorf("%v: %v", want[i], e)
	}

	theirs, err := flow.ParseDump(in.Ofctl("dump-flows", "br0"))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(theirs, flow.Compare)
	diff(t, "ovs-ofctl dump-flows", theirs, want)
	ours, foreign := p.dump()
	if len(foreign) > 0 {
		t.Errorf("%d flows are foreign, the first because of %v", len(foreign), foreign[0].Why)
	}
	diff(t, "flow statistics", ours, want)

	for i := range mods {
		mods[i].Command, mods[i].CookieMask = DeleteStrict, ^uint64(0)
	}
	for i, e := range p.load(mods) {
		t.Errorf("delete %v: %v", want[i], e)
	}
	if left, _ := p.dump(); len(left) > 0 {
		t.Errorf("%d flows left, the first %v", len(left), left[0])
	}
}

func diff(t *testing.T, who string, got, want []flow.Flow) {
	t.Helper()
	add, remove := flow.Diff(got, want)
	for _, f := range add[:min(len(add), 5)] {
		t.Errorf("%s lacks %v", who, f)
	}
	for _, f := range remove[:min(len(remove), 5)] {
		t.Errorf("%s has %v", who, f)
	}
	if len(add)+len(remove) > 10 {
		t.Errorf("%s: %d missing, %d too many", who, len(add), len(remove))
	}
}

// What others wrote, even with our mark, is told from what we write, and can be removed.
func TestForeignFlowsOfOpenVSwitch(t *testing.T) {
	in := ovstest.Start(t)
	in.Vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=dummy", "fail-mode=secure")
	strange := []string{
		"table=1,ipv6,ipv6_src=fd00::1,actions=output:1",
		"table=2,ip,nw_src=10.0.0.1/255.0.255.255,actions=output:1",
		"table=3,reg0=5,actions=output:1",
		"table=4,dl_vlan=5,actions=output:1",
		"table=5,vlan_tci=0x1000/0x1000,actions=pop_vlan,output:2",
		"table=6,actions=resubmit(,7)",
		"table=7,actions=move:OXM_OF_METADATA[0..15]->NXM_NX_TUN_ID[0..15]",
		"table=8,actions=set_field:0x3/0xf->metadata",
		"table=9,actions=set_field:5->reg1",
		"table=10,actions=controller(max_len=100)",
		"table=11,actions=NORMAL",
		"table=12,actions=write_metadata:5,goto_table:13",
		"table=13,actions=write_actions(output:1)",
		"table=14,idle_timeout=600,actions=output:1",
		"table=15,send_flow_rem,actions=output:1",
		"table=16,ip,nw_tos=4,actions=dec_ttl,output:1",
		"table=17,ct_state=+trk,ip,actions=ct(table=18)",
		"table=18,actions=learn(table=19,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[])",
	}
	for _, s := range strange {
		in.Ofctl("add-flow", "br0", fmt.Sprintf("cookie=%#x,priority=7,%s", flow.Cookie(1), s))
	}
	in.Ofctl("add-flow", "br0", "cookie=0x1,actions=NORMAL") // somebody else's
	p := dial(t, in.Mgmt("br0"))
	ours := broad(20)
	mods := make([]FlowMod, 0, len(ours)+len(strange))
	for _, f := range ours {
		mods = append(mods, FlowMod{Flow: f})
	}
	if refused := p.load(mods); len(refused) > 0 {
		t.Fatal(refused)
	}
	flows, foreign := p.dump()
	diff(t, "dump", flows, ours)
	if len(foreign) != len(strange) {
		t.Errorf("%d foreign flows, want %d", len(foreign), len(strange))
	}
	mods = mods[:0]
	for _, f := range foreign {
		if f.Why == nil || f.Priority != 7 || f.Cookie != flow.Cookie(1) {
			t.Errorf("%+v", f)
		}
		mods = append(mods, f.Delete())
	}
	if refused := p.load(mods); len(refused) > 0 {
		t.Fatal(refused)
	}
	flows, foreign = p.dump()
	diff(t, "dump", flows, ours)
	if len(foreign) > 0 {
		t.Errorf("%d foreign flows left: %v", len(foreign), foreign[0].Why)
	}
	if rest := in.Ofctl("dump-flows", "br0", "cookie=0x1/-1"); !strings.Contains(rest, "NORMAL") {
		t.Errorf("the flow without our mark is gone: %s", rest)
	}
}

// ovs-ofctl, given a flow as text, must send the same bytes as we do.
func TestSameBytesAsOfctl(t *testing.T) {
	path, err := exec.LookPath("ovs-ofctl")
	if err != nil {
		ovstest.Start(t) // skips or fails, as asked for
	}
	dir, err := os.MkdirTemp("", "ofctl-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sample := broad(60)
	var lines []string
	for _, f := range sample {
		lines = append(lines, f.String())
	}
	file := filepath.Join(dir, "flows")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "fake.mgmt")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(path, "-O", "OpenFlow14", "--no-names", "--timeout=20", "add-flows", "unix:"+socket, file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	p := peer{t, conn}
	p.send(0, Hello{Versions: 1 << Version})
	for i := 0; i < len(sample); {
		b := p.read()
		h, m, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		switch m.(type) {
		case Hello:
		case BarrierRequest:
			p.send(h.XID, BarrierReply{})
		case FlowMod:
			if want, err := Append(nil, h.XID, FlowMod{Flow: sample[i]}); err != nil || !bytes.Equal(b, want) {
				t.Fatalf("%v\novs-ofctl % x\nwe        % x (%v)", sample[i], b, want, err)
			}
			i++
		default:
			t.Fatalf("unexpected %+v", m)
		}
	}
	// Its last barrier.
	h, _ := p.receive()
	p.send(h.XID, BarrierReply{})
}

// Errors have the names that Open vSwitch has for them.
func TestErrorNamesOfOpenVSwitch(t *testing.T) {
	path, err := exec.LookPath("ovs-ofctl")
	if err != nil {
		ovstest.Start(t)
	}
	var all []Error
	for kind, s := range standardErrors {
		for code := range s.codes {
			all = append(all, Error{Type: uint16(kind), Code: uint16(code)})
		}
	}
	for e := range experimenterErrors {
		all = append(all, Error{Type: errorExperimenter, Experimenter: e.experimenter, Code: e.code})
	}
	var wire []byte
	for _, e := range all {
		e.Data = slices.Concat([]byte{Version, byte(TypeBarrierRequest), 0, 8}, make([]byte, 4))
		if wire, err = Append(wire, 1, e); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "errors")
	if err := os.WriteFile(file, wire, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "ofp-parse", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	var theirs []string
	for line := range strings.Lines(string(out)) {
		if _, name, ok := strings.Cut(line, "OFPT_ERROR (OF1.4) (xid=0x1): "); ok {
			theirs = append(theirs, strings.TrimSpace(name))
		}
	}
	if len(theirs) != len(all) {
		t.Fatalf("%d errors read, want %d:\n%s", len(theirs), len(all), out)
	}
	for i, e := range all {
		if ours, _, _ := strings.Cut(e.Error(), " ("); ours != theirs[i] {
			t.Errorf("type %d code %d is %s, for Open vSwitch %s", e.Type, e.Code, ours, theirs[i])
		}
	}
}

// The flow statistics of a real switch, with its counters and its padding, from the release in the file's name.
func TestFlowStatsAsRecorded(t *testing.T) {
	const golden = "testdata/stats-3.1.hex"
	if *rewrite {
		in := ovstest.Start(t)
		in.Vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=dummy", "fail-mode=secure")
		p := dial(t, in.Mgmt("br0"))
		var mods []FlowMod
		for _, f := range broad(0) {
			mods = append(mods, FlowMod{Flow: f})
		}
		p.load(mods)
		p.send(9, FlowStatsRequest{Cookie: flow.BaseCookie, CookieMask: flow.CookieMask})
		if err := os.WriteFile(golden, fmt.Appendf(nil, "%x\n", p.read()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, m, err := Decode(recorded(t, golden))
	if err != nil {
		t.Fatal(err)
	}
	got, want := m.(FlowStatsReply), FlowStatsReply{Flows: broad(0)}
	slices.SortFunc(got.Flows, flow.Compare)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func recorded(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
