package mesh

import (
	"errors"
	"os"
	"syscall"
)

// diskFile is a file that only grows.
type diskFile struct{ *os.File }

func openDisk(path string, fresh bool) (disk, error) {
	flags := os.O_WRONLY | os.O_APPEND
	if fresh {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

// fallocKeepSize is FALLOC_FL_KEEP_SIZE of fallocate(2): space beyond the end, which stays where it is.
const fallocKeepSize = 1

// Reserve asks the file system for space behind the end.
func (f diskFile) Reserve(size int64) error {
	err := syscall.Fallocate(int(f.Fd()), fallocKeepSize, 0, size)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}
