package sqlite

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Each page of a database and of its write-ahead log ends with what tells whether
// it is as it was written:
//
//	page number | CRC-32C of all before, the number included | balance
//
// of 4, 4 and 8 bytes, the first two big-endian. SQLite leaves that much free at
// the end of each page (the "reserved bytes" of the file's header), so that any
// SQLite reads the file; what it writes there without us does not match.
//
// The seal is put into a page when it is written, after SQLite has computed the
// checksum of the frame of its log that holds the page. That one goes over the
// seal, too. The balance is chosen so that it comes out as before: a log that
// another SQLite copies into the database after a crash keeps the seals.
const (
	sealSize    = 16         // bytes
	frameHeader = 24         // bytes, before each page of a write-ahead log
	walHeader   = 32         // bytes, before the first frame
	headerSize  = 100        // bytes of a database's header, in its first page
	pendingByte = 0x40000000 // SQLite locks it: the page that holds it is never written
	minPage     = 512        // bytes
	maxPage     = 65536      // bytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// isPage reports that n bytes may be a page.
func isPage(n int) bool { return n >= minPage && n <= maxPage && n&(n-1) == 0 }

// seal puts the seal into a page.
func seal(page []byte, number uint32) {
	end := page[len(page)-sealSize:]
	x0, x1 := binary.NativeEndian.Uint32(end), binary.NativeEndian.Uint32(end[4:])
	binary.BigEndian.PutUint32(end, number)
	binary.BigEndian.PutUint32(end[4:], crc32.Checksum(page[:len(page)-sealSize+4], castagnoli))
	dx0, dx1 := binary.NativeEndian.Uint32(end)-x0, binary.NativeEndian.Uint32(end[4:])-x1
	// SQLite's checksum takes two numbers at a time: s1 += x0+s2; s2 += x1+s1.
	y := end[8:]
	binary.NativeEndian.PutUint32(y, binary.NativeEndian.Uint32(y)-2*dx0-dx1)
	binary.NativeEndian.PutUint32(y[4:], binary.NativeEndian.Uint32(y[4:])-dx0-dx1)
}

// sealed reports that a page is as it was written. number is its place in the
// database, 0: unknown.
func sealed(page []byte, number uint32) bool {
	end := page[len(page)-sealSize:]
	got := binary.BigEndian.Uint32(end)
	return (number == 0 || got == number) && got != 0 &&
		binary.BigEndian.Uint32(end[4:]) == crc32.Checksum(page[:len(page)-sealSize+4], castagnoli)
}

// page returns the page that a file's bytes at an offset are, if they are one,
// and its number, 0 if only the log's frame tells it.
func (f *file) page(buf uintptr, n int32, offset int64) (page []byte, number uint32, ok bool) {
	if !isPage(int(n)) {
		return nil, 0, false
	}
	switch f.kind {
	case databaseFile:
		if offset%int64(n) != 0 {
			return nil, 0, false
		}
		number = uint32(offset/int64(n)) + 1
	case walFile:
		if (offset-walHeader-frameHeader)%(int64(n)+frameHeader) != 0 {
			return nil, 0, false
		}
	default:
		return nil, 0, false
	}
	return unsafe.Slice(at[byte](buf), n), number, true
}

// sealPage seals what is about to be written, if it is a page.
func (f *file) sealPage(tls *libc.TLS, id, buf uintptr, n int32, offset int64) int32 {
	if f.kind == walFile && n == frameHeader {
		f.number, f.next = binary.BigEndian.Uint32(unsafe.Slice(at[byte](buf), 4)), offset+frameHeader
		return lib.SQLITE_OK
	}
	page, number, ok := f.page(buf, n, offset)
	if !ok {
		return lib.SQLITE_OK
	}
	if f.kind == walFile {
		if number = f.number; offset != f.next {
			// A page that this transaction has written already.
			p := tls.Alloc(8)
			defer tls.Free(8)
			if rc := f.read(tls, id, p, 4, offset-frameHeader); rc != lib.SQLITE_OK {
				return rc
			}
			number = binary.BigEndian.Uint32(unsafe.Slice(at[byte](p), 4))
		}
	}
	if number == 1 && page[20] != sealSize {
		return f.damage(tls, "write", fmt.Sprintf("the header reserves %d bytes a page, not %d", page[20], sealSize))
	}
	seal(page, number)
	return lib.SQLITE_OK
}

// checkPage checks what was read, if it is a page.
func (f *file) checkPage(tls *libc.TLS, buf uintptr, n int32, offset int64, rc int32) int32 {
	if rc != lib.SQLITE_OK && rc != lib.SQLITE_IOERR_SHORT_READ {
		return rc
	}
	page, number, ok := f.page(buf, n, offset)
	switch {
	case !ok:
		return rc
	case rc == lib.SQLITE_IOERR_SHORT_READ: // SQLite would go on with zeros
		return f.damage(tls, "read", fmt.Sprintf("the file ends before byte %d", offset+int64(n)))
	case !sealed(page, number):
		return f.damage(tls, "read", fmt.Sprintf("the page at byte %d does not match its checksum", offset))
	}
	return rc
}

// damage notes that the file is not as it was written.
func (f *file) damage(tls *libc.TLS, op, text string) int32 {
	err := &FileError{Op: op, Path: f.path, Code: lib.SQLITE_IOERR_DATA, Text: text, Damaged: true}
	if c := connOf(tls); c != nil {
		c.noteError(err)
	}
	f.report(err)
	return lib.SQLITE_IOERR_DATA
}

// tell tells the one who watches the database. The connection that met the error
// may be another one's, as when a database is copied.
func (f *file) report(err error) {
	if w, ok := watchers.Load(f.db); ok && f.kind != otherFile {
		w.(func(error))(err)
	}
}

// watchers are told of damage: path of a database -> func(error).
var watchers sync.Map

// Watch calls f when a connection to the database at path reads what is not as
// it was written, or cannot read it, with a *FileError. f must not block, and
// may be called by several goroutines at once.
func Watch(path string, f func(error)) { watchers.Store(path, f) }

// Unwatch ends what Watch began.
func Unwatch(path string) { watchers.Delete(path) }

// A Verifier is written a whole database file, without a write-ahead log, and
// says at its end whether all pages are as they were written.
type Verifier struct {
	buf    []byte
	size   int    // of a page, once known
	number uint32 // of the last page
	pages  uint32 // that the header counts
	err    error
}

// Write takes the next bytes. Its error is the file's.
func (v *Verifier) Write(b []byte) (int, error) {
	n := len(b)
	for v.err == nil && len(b) > 0 {
		want := v.size
		if want == 0 {
			want = headerSize
		}
		take := min(want-len(v.buf), len(b))
		v.buf, b = append(v.buf, b[:take]...), b[take:]
		if len(v.buf) < want {
			break
		}
		if v.size == 0 {
			v.header()
			continue
		}
		v.page()
	}
	if v.err != nil {
		return 0, v.err
	}
	return n, nil
}

func (v *Verifier) header() {
	v.size = int(binary.BigEndian.Uint16(v.buf[16:]))
	if v.size == 1 {
		v.size = maxPage
	}
	v.pages = binary.BigEndian.Uint32(v.buf[28:])
	if string(v.buf[:16]) != "SQLite format 3\x00" || !isPage(v.size) {
		v.fail("it has no database's header")
	}
}

func (v *Verifier) page() {
	v.number++
	pending := int64(v.number-1) == pendingByte/int64(v.size)
	if !pending && !sealed(v.buf, v.number) {
		v.fail(fmt.Sprintf("page %d does not match its checksum", v.number))
	}
	v.buf = v.buf[:0]
}

func (v *Verifier) fail(text string) {
	v.err = &FileError{Op: "verify", Path: "the database", Code: lib.SQLITE_IOERR_DATA, Text: text, Damaged: true}
}

// End returns what is wrong with the file.
func (v *Verifier) End() error {
	if v.err == nil && (len(v.buf) > 0 || v.number != v.pages || v.number == 0) {
		v.fail(fmt.Sprintf("it has %d whole pages, and should have %d", v.number, v.pages))
	}
	return v.err
}

// CheckSize finds out whether the file has all pages that the database should
// have and that are not in the write-ahead log.
func (c *Conn) CheckSize() error {
	count, size, err := c.pages()
	if err != nil {
		return err
	}
	have := int64(0)
	if info, err := os.Stat(c.path); err != nil {
		return err
	} else if have = info.Size() / size; have >= count {
		return nil
	}
	// Those behind the file's end are read: from the log, or not at all.
	return c.Exec(fmt.Sprintf("SELECT sum(length(data)) FROM sqlite_dbpage WHERE pgno>%d", have))
}

// pages returns how many pages the database has, and the bytes of each.
func (c *Conn) pages() (count, size int64, err error) {
	err = c.QueryAsOwner("SELECT (SELECT page_count FROM pragma_page_count), (SELECT page_size FROM pragma_page_size)", func(s *Stmt) error {
		count, size = s.Int(0), s.Int(1)
		return nil
	})
	return count, size, err
}

// Pages reads the database's pages one after the other, each in a transaction of
// its own: it holds nothing back.
type Pages struct {
	s    *Stmt
	next int64
}

// Pages begins with the first page.
func (c *Conn) Pages() (*Pages, error) {
	s, _, err := c.Prepare("SELECT length(data) FROM sqlite_dbpage WHERE pgno=?", true)
	if err != nil {
		return nil, err
	}
	return &Pages{s, 1}, nil
}

// Check reads the next n pages, and reports whether there are more.
func (p *Pages) Check(n int) (more bool, err error) {
	for range n {
		if err := p.s.Bind([]wire.Argument{{Value: wire.IntegerValue(p.next)}}, nil); err != nil {
			return false, err
		}
		more, err = p.s.Step()
		p.s.Reset()
		if err != nil || !more {
			return false, err
		}
		p.next++
	}
	return true, nil
}

// Close ends it.
func (p *Pages) Close() { p.s.Close() }
