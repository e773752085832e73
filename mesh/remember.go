package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// rememberMax is how many members' addresses are kept on disk.
	rememberMax = 64
	// rememberPause is the shortest time between two writes of them.
	rememberPause = 10 * time.Second

	rememberedFormat = 1
)

// remembered is the file `peers` in the state directory: where members were when last any was there.
// The state names them too; this is for a node whose log was lost, and it is a hint: what is wrong in
// it costs tries.
type remembered struct {
	Format int              `json:"format"`
	Peers  []netip.AddrPort `json:"peers"`
}

func peersPath(dir string) string { return filepath.Join(dir, "peers") }

// loadPeers returns what the file holds; nothing where it cannot be read.
func loadPeers(dir string) ([]netip.AddrPort, error) {
	b, err := os.ReadFile(peersPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r remembered
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && r.Format != rememberedFormat {
		err = fmt.Errorf("format %d", r.Format)
	}
	if err != nil {
		return nil, fmt.Errorf("read remembered peers: %w", err)
	}
	r.Peers = slices.DeleteFunc(r.Peers, func(a netip.AddrPort) bool { return !a.IsValid() || a.Port() == 0 })
	return r.Peers[:min(len(r.Peers), rememberMax)], nil
}

func storePeers(dir string, peers []netip.AddrPort) error {
	b, err := json.Marshal(remembered{rememberedFormat, peers})
	if err == nil {
		err = replaceFile(peersPath(dir), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("remember peers: %w", err)
	}
	return nil
}
