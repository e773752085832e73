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
// another's and was set aside. notes say of what was found what a person should know. Where the file is
// damaged the log says who wrote it.
func loadIdentity(c *Config, log []record) (id identity, fresh bool, notes []string, err error) {
	path := filepath.Join(c.StateDir, "identity")
	machine := machineHash(c.MachineID)
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		id, err = parseIdentity(b)
		if errors.Is(err, errNewer) {
			return identity{}, false, nil, fmt.Errorf("read identity %s: %w", path, err)
		}
		if err != nil {
			if err := os.Rename(path, path+".damaged"); err != nil {
				return identity{}, false, nil, fmt.Errorf("set identity aside: %w", err)
			}
			id = identityOf(log, machine)
			notes = append(notes, fmt.Sprintf("the file that says who this node is was damaged (it was kept as %s.damaged); look after the disk", path))
		}
	case errors.Is(err, fs.ErrNotExist):
		id = identityOf(log, machine)
	default:
		return identity{}, false, nil, fmt.Errorf("read identity: %w", err)
	}
	copied := id.Machine != "" && machine != "" && id.Machine != machine
	renamed := c.ID != 0 && c.ID.String() != id.ID
	if id.ID != "" && !copied && !renamed {
		return id, false, notes, nil
	}
	logPath := filepath.Join(c.StateDir, "log")
	if err := os.Rename(logPath, logPath+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return identity{}, false, nil, fmt.Errorf("set old log aside: %w", err)
	}
	node := c.ID
	for node == 0 {
		node = state.NodeID(random64())
	}
	if copied {
		notes = append(notes, fmt.Sprintf("the state directory %s was made on another machine, by node %s; this host is a new node, %s, without its attachments",
			c.StateDir, id.ID, node))
	}
	return identity{Format: identityFormat, ID: node.String(), Machine: machine}, true, notes, nil
}

func parseIdentity(b []byte) (id identity, err error) {
	if err := json.Unmarshal(b, &id); err != nil {
		return identity{}, err
	}
	if id.Format > identityFormat {
		return identity{}, errNewer
	}
	if n, err := crdt.ParseNode(id.ID); err != nil || n == 0 || id.Format < 1 {
		return identity{}, errors.New("no node id")
	}
	return id, nil
}

// identityOf returns who wrote a log, on this machine for want of better knowledge. It is in doubt
// about its epoch, which the log alone says.
func identityOf(log []record, machine string) identity {
	last, ok := lastBoot(log)
	if n, err := crdt.ParseNode(last.Node); !ok || err != nil || n == 0 {
		return identity{}
	}
	return identity{Format: identityFormat, ID: last.Node, Machine: machine, Epoch: last.Epoch + 1}
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
