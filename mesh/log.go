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
// record of a kind that is not known is kept and passed over.
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
	logName   = "meshnet log "
	logMagic  = logName + "1\n"
	magicMax  = len(logName) + 8
	recordMax = 64 << 20 // bounds a record's body in bytes: what claims to be longer is not ours
	// recordHead is length, checksum and kind.
	recordHead = 4 + 4 + 1
	// roomBytes is how much space for the log is kept in reserve on the disk: what is under way when
	// the disk is found full goes there.
	roomBytes = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errNewer: a later version of this program wrote the log.
var errNewer = errors.New("it was written by a newer meshnet; install that version again, or remove the state directory to become a new node")

// appendRecord writes length | CRC-32C of the rest | kind | body.
func appendRecord(b []byte, r record) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.body)))
	sum := crc32.Update(crc32.Checksum([]byte{byte(r.kind)}, castagnoli), castagnoli, r.body)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(append(b, byte(r.kind)), r.body...)
}

// parsed is what the bytes of a log hold.
type parsed struct {
	records []record // their bodies are parts of the bytes
	size    int64    // up to here all of it verifies
	whole   bool     // and that is all there is
	damaged bool     // it is not, and what does not verify is no torn tail: some of it may be lost
}

// parseLog reads the records that verify. Behind one that does not, others are searched for: a write
// that was cut off is the last, so what follows it shows damage.
func parseLog(b []byte) (p parsed, err error) {
	if !bytes.HasPrefix(b, []byte(logMagic)) {
		head := b[:min(len(b), magicMax)]
		switch end := bytes.IndexByte(head, '\n'); {
		case end > 0 && bytes.HasPrefix(head, []byte(logName)) && string(head[len(logName):end]) > "1":
			return parsed{}, errNewer
		case bytes.HasPrefix([]byte(logMagic), b):
			return parsed{}, nil // torn, or empty
		}
		p.damaged = true
	}
	for at := len(logMagic); ; {
		if at >= len(b) {
			p.whole = !p.damaged && at == len(b)
			break
		}
		r, n := parseRecord(b[at:])
		if n == 0 {
			skip := nextRecord(b[at:])
			if skip < 0 {
				break
			}
			at, p.damaged = at+skip, true
			continue
		}
		p.records = append(p.records, r)
		at += n
		if !p.damaged {
			p.size = int64(at)
		}
	}
	if p.size == 0 && !p.damaged && len(b) >= len(logMagic) {
		p.size = int64(len(logMagic))
	}
	return p, nil
}

// parseRecord returns the record that b begins with and its length; 0: none that verifies.
func parseRecord(b []byte) (record, int) {
	if len(b) < recordHead {
		return record{}, 0
	}
	n := binary.LittleEndian.Uint32(b)
	if n > recordMax || int(n) > len(b)-recordHead {
		return record{}, 0
	}
	end := recordHead + int(n)
	if crc32.Checksum(b[8:end], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return record{}, 0
	}
	return record{recordKind(b[8]), b[recordHead:end]}, end
}

// searchMax bounds how many bytes are checksummed in the search for records behind damage.
const searchMax = 256 << 20

// nextRecord returns where the next record that verifies begins, from 1; -1: there is none. Bytes
// that verify by chance are one in four thousand millions, and are skipped by their kind mostly.
func nextRecord(b []byte) int {
	spent := 0
	for at := 1; at+recordHead <= len(b) && spent < searchMax; at++ {
		n := binary.LittleEndian.Uint32(b[at:])
		if b[at+8] == 0 || n == 0 || n > recordMax || int(n) > len(b)-at-recordHead {
			continue
		}
		spent += int(n)
		if _, ok := parseRecord(b[at:]); ok != 0 {
			return at
		}
	}
	return -1
}

// disk is the file that a log is written to. Implemented by diskFile and by a model that fails when
// told to.
type disk interface {
	Write([]byte) (int, error) // at the end
	Sync() error
	Truncate(size int64) error
	// Reserve makes sure that writes up to a size find space. An error that wraps
	// errors.ErrUnsupported: this file system cannot.
	Reserve(size int64) error
	Close() error
}

// opener opens a file at its end for writing; fresh: it is made, or emptied.
type opener func(path string, fresh bool) (disk, error)

// logFile is the log, open for writing at its end. After an error of add or sync it takes nothing
// more until it was mended.
type logFile struct {
	path string
	open opener
	disk disk  // nil: there is none that can be added to
	size int64 // bytes that hold whole records
	room int64 // up to which size there is space for sure
	buf  []byte
	// torn: something is behind size that is not whole. spoilt: what was written may not be on
	// the disk, whatever a later sync says.
	torn, spoilt bool
}

// readLog returns what a log holds. None at all is an empty one that is not whole.
func readLog(path string) (p parsed, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return parsed{}, nil
	}
	if err == nil {
		p, err = parseLog(b)
	}
	if err != nil {
		return p, fmt.Errorf("read log %s: %w", path, err)
	}
	return p, nil
}

// resume opens a log of which the bytes up to size are good, and drops the rest. On return all of
// them are synced.
func (l *logFile) resume(size int64) error {
	d, err := l.open(l.path, false)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	l.disk, l.size, l.torn, l.spoilt = d, size, true, false
	if err := l.trim(); err != nil {
		return err
	}
	return l.sync()
}

// trim drops what is behind the last whole record.
func (l *logFile) trim() error {
	if !l.torn {
		return nil
	}
	if err := l.disk.Truncate(l.size); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	l.torn = false
	return nil
}

// replace puts a log that holds these records in the place of the old one, synced, and goes on in it.
// After an error the old one is as it was.
func (l *logFile) replace(rs []record) error {
	b := []byte(logMagic)
	for _, r := range rs {
		b = appendRecord(b, r)
	}
	tmp := l.path + ".new"
	d, err := l.open(tmp, true)
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	_, err = d.Write(b)
	if err == nil {
		err = d.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, l.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write log: %w", err), d.Close(), os.Remove(tmp))
	}
	if l.disk != nil {
		l.disk.Close() // nobody will read it again
	}
	l.disk, l.size, l.room, l.torn, l.spoilt = d, int64(len(b)), 0, false, false
	if err := syncDir(l.path); err != nil {
		l.spoilt = true
		return fmt.Errorf("sync log: %w", err)
	}
	return nil
}

// add writes records in one write(2), so that a killed process leaves all or none of them.
func (l *logFile) add(rs []record) error {
	if l.disk == nil || l.spoilt {
		return errors.New("write log: what was written before may be lost")
	}
	if err := l.trim(); err != nil {
		return err
	}
	l.buf = l.buf[:0]
	for _, r := range rs {
		l.buf = appendRecord(l.buf, r)
	}
	n, err := l.disk.Write(l.buf)
	if err != nil || n < len(l.buf) {
		l.torn = true
		return errors.Join(fmt.Errorf("write log: %w", cause(err)), l.trim())
	}
	l.size += int64(n)
	if cap(l.buf) > 1<<20 {
		l.buf = nil
	}
	return nil
}

var errShort = errors.New("only a part was written")

func cause(err error) error {
	if err == nil {
		return errShort
	}
	return err
}

// sync returns when what was added survives the loss of power. A failed sync may have dropped what it
// was to write, and the next one would not say so (Rebello et al., "Can Applications Recover from
// fsync Failures?", USENIX ATC 2020): from then on only replace helps.
func (l *logFile) sync() error {
	if err := l.disk.Sync(); err != nil {
		l.spoilt = true
		return fmt.Errorf("sync log: %w", err)
	}
	return nil
}

// reserve makes sure that there is space for what may be under way when the disk is full.
func (l *logFile) reserve() error {
	if l.room >= l.size+roomBytes/2 {
		return nil
	}
	err := l.disk.Reserve(l.size + roomBytes)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("write log: %w", err)
	}
	l.room = l.size + roomBytes
	return nil
}

func (l *logFile) close() error {
	if l.disk == nil {
		return nil
	}
	return l.disk.Close()
}

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
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(path)
}

// syncDir makes the name of a file in its directory survive the loss of power.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
