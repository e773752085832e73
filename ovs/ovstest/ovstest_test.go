package ovstest

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestInstance(t *testing.T) {
	in := Start(t)
	in.Vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=dummy", "fail_mode=secure",
		"protocols=OpenFlow13,OpenFlow14,OpenFlow15",
		"--", "add-port", "br0", "p1", "--", "set", "interface", "p1", "ofport_request=7",
		"--", "add-port", "br0", "t1", "--", "set", "interface", "t1", "type=vxlan", "ofport_request=8",
		"options:remote_ip=192.0.2.2", "options:key=flow")
	in.Ofctl("add-flow", "br0", "in_port=7,actions=set_field:5->tun_id,8")
	if out := in.Appctl("ofproto/trace", "br0", "in_port=7"); !strings.Contains(out, "set_field:0x5->tun_id") {
		t.Errorf("trace does not go through the flow:\n%s", out)
	}
	if got := in.Vsctl("get", "interface", "t1", "ofport"); got != "8" {
		t.Errorf("port of t1 = %s, want 8", got)
	}

	in.Kill(Switchd)
	in.Restart(Switchd)
	if out := in.Ofctl("dump-flows", "br0"); strings.Contains(out, "in_port=7") {
		t.Errorf("flows outlived the switch:\n%s", out)
	}
	if got := in.Vsctl("get", "interface", "p1", "ofport"); got != "7" {
		t.Errorf("port of p1 after a restart = %s, want 7", got)
	}

	in.Kill(Server)
	in.NewDB()
	in.Restart(Server)
	in.Vsctl("--no-wait", "init")
	if got := in.Vsctl("list-br"); got != "" {
		t.Errorf("bridges in a new database: %s", got)
	}
}

// TestNobody shows that the daemons need no privilege.
func TestNobody(t *testing.T) {
	if !drops() {
		t.Skip("only root can become nobody")
	}
	in := Start(t)
	pid := in.daemons[Switchd].cmd.Process.Pid
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "CapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
}
