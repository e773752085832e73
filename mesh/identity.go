package mesh

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"meshnet/crdt"
	"meshnet/state"
)

// identity is the file of that name in the state directory: who this node is.
type identity struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	// Machine is a hash of the machine's id: on another machine the directory is a copy.
	Machine string `json:"machine"`
	// Epoch is the highest in which this node may have written. It is on disk before the first
	// write in it.
	Epoch crdt.Epoch `json:"epoch"`
}

const identityFormat = 1

// boot is the first record of a log.
type boot struct {
	Boot  string     `json:"boot"` // of the kernel that ran when the log was begun
	Node  string     `json:"node"`
	Epoch crdt.Epoch `json:"epoch"`
	Actor crdt.Actor `json:"actor,string"`
}

// errInUse: another process has the state directory.
var errInUse = errors.New("another meshnet daemon uses it")

// lockDir keeps a second daemon out of a state directory for as long as the file is open.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errInUse
		}
		return nil, fmt.Errorf("lock state directory %s: %w; stop it or choose another directory", dir, err)
	}
	return f, nil
}

// loadIdentity reads who this node is. fresh: it is new, and whatever else the directory holds is
// another's and was set aside; copied: because the directory came from another machine.
func loadIdentity(c *Config) (id identity, fresh, copied bool, err error) {
	path := filepath.Join(c.StateDir, "identity")
	machine := machineHash(c.MachineID)
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &id); err != nil || id.Format != identityFormat {
			return identity{}, false, false, fmt.Errorf("read identity %s: not written by this version of meshnet; "+
				"remove the state directory to become a new node", path)
		}
		if _, err := crdt.ParseNode(id.ID); err != nil {
			return identity{}, false, false, fmt.Errorf("read identity %s: %w; remove the state directory to become a new node", path, err)
		}
		copied = id.Machine != "" && machine != "" && id.Machine != machine
		renamed := c.ID != 0 && c.ID.String() != id.ID
		if !copied && !renamed {
			return id, false, false, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return identity{}, false, false, fmt.Errorf("read identity: %w", err)
	}
	logPath := filepath.Join(c.StateDir, "log")
	if err := os.Rename(logPath, logPath+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return identity{}, false, false, fmt.Errorf("set old log aside: %w", err)
	}
	node := c.ID
	for node == 0 {
		node = state.NodeID(random64())
	}
	return identity{Format: identityFormat, ID: node.String(), Machine: machine}, true, copied, nil
}

func (id identity) store(dir string) error {
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, "identity"), append(b, '\n')); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// machineHash hashes the machine's id, so that the id itself stays on the machine. Empty: it has
// none.
func machineHash(path string) string {
	b, err := os.ReadFile(path)
	b = bytes.TrimSpace(b)
	if err != nil || len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(append([]byte("meshnet "), b...))
	return hex.EncodeToString(sum[:8])
}

// bootID names this run of the kernel. Empty: not known, which is never equal to another.
func bootID(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

func random64() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}
