package nstest_test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"meshnet/netns/nstest"
)

func TestInsideIsAWorldOfItsOwn(t *testing.T) {
	outer := os.Getenv("MESHNET_NSTEST") == ""
	if !nstest.Inside(t) {
		if !outer {
			t.Fatal("ran a process in a process")
		}
		return
	}
	if os.Getuid() != 0 {
		t.Errorf("uid %d, want root", os.Getuid())
	}
	all, err := net.Interfaces()
	if err != nil || len(all) != 1 || all[0].Name != "lo" || all[0].Flags&net.FlagUp == 0 {
		t.Errorf("interfaces %v, %v; want lo alone, up", all, err)
	}
	if files, err := os.ReadDir("/run"); err != nil || len(files) != 0 {
		t.Errorf("/run holds %v, %v; want nothing", files, err)
	}
	path := nstest.Add(t, "box")
	out, err := exec.Command("nsenter", "--net="+path, "ip", "-br", "link").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "lo") || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "LOOPBACK,UP") {
		t.Errorf("in the namespace: %s, %v; want lo alone, up", out, err)
	}
	nstest.Delete(t, "box")
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("after Delete: %v", err)
	}
}
