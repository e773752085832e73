package mesh

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

// recordKind tells what a record of the log holds. Numbers are never given a new meaning, and a
// record of a kind that is not known is skipped.
type recordKind uint8

const (
	recBoot   recordKind = 1 + iota // boot: who writes, in which life
	recState                        // state.Encode: what the document learnt
	recAttach                       // wish: an attachment asked for, or changed
	recDetach                       // its id: asked away
	recIPAM                         // ipam.Record
	recHeard                        // seconds since 1970, decimal: others were heard then
	recAlone                        // nothing: what was known of others was dropped
)

// record is one line of the log.
type record struct {
	kind recordKind
	body []byte
}

const (
	logMagic = "meshnet log 1\n"
	// recordMax bounds a record's body in bytes: what claims to be longer is not ours.
	recordMax = 64 << 20
	// recordHead is length, checksum and kind.
	recordHead = 4 + 4 + 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendRecord writes length | CRC-32C of the rest | kind | body.
func appendRecord(b []byte, r record) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.body)))
	sum := crc32.Update(crc32.Checksum([]byte{byte(r.kind)}, castagnoli), castagnoli, r.body)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(append(b, byte(r.kind)), r.body...)
}

// parseLog returns the records up to the first that does not verify, and whether that was the end.
func parseLog(b []byte) (rs []record, whole bool) {
	b, ok := bytes.CutPrefix(b, []byte(logMagic))
	if !ok {
		return nil, false
	}
	for len(b) > 0 {
		if len(b) < recordHead {
			return rs, false
		}
		n := binary.LittleEndian.Uint32(b)
		if n > recordMax || int(n) > len(b)-recordHead {
			return rs, false
		}
		end := recordHead + int(n)
		if crc32.Checksum(b[8:end], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
			return rs, false
		}
		rs = append(rs, record{recordKind(b[8]), b[recordHead:end]})
		b = b[end:]
	}
	return rs, true
}

// disk is what a log needs of its file. Implemented by os.File and by a model of a full one.
type disk interface {
	Write([]byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

// logFile is the log, open for writing at its end.
type logFile struct {
	f    disk
	size int64 // of what is whole
	buf  []byte
}

// readLog returns what a log holds. None at all is an empty one that is not whole.
func readLog(path string) (rs []record, whole bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read log: %w", err)
	}
	rs, whole = parseLog(b)
	return rs, whole, nil
}

// createLog replaces the log by one that holds these records, synced, and opens it.
func createLog(path string, rs []record) (*logFile, error) {
	b := []byte(logMagic)
	for _, r := range rs {
		b = appendRecord(b, r)
	}
	if err := replaceFile(path, b); err != nil {
		return nil, fmt.Errorf("write log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &logFile{f: f, size: int64(len(b))}, nil
}

// add writes records in one write(2), so that a killed process leaves all or none of them. After an
// error that is the disk's it has none of them and may be called again.
func (l *logFile) add(rs []record) error {
	l.buf = l.buf[:0]
	for _, r := range rs {
		l.buf = appendRecord(l.buf, r)
	}
	if _, err := l.f.Write(l.buf); err != nil {
		err = fmt.Errorf("write log: %w; free space on the disk", err)
		if cut := l.f.Truncate(l.size); cut != nil { // a part of it may be there
			return errors.Join(fmt.Errorf("shorten log: %w", cut), errors.New(err.Error()))
		}
		return err
	}
	l.size += int64(len(l.buf))
	if cap(l.buf) > 1<<20 {
		l.buf = nil
	}
	return nil
}

// sync returns when what was added survives the loss of power.
func (l *logFile) sync() error {
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("sync log: %w; check the disk and start again", err)
	}
	return nil
}

func (l *logFile) close() error { return l.f.Close() }

// replaceFile writes a file that after a crash is either the old one or the new one.
func replaceFile(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
