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

// Each page of a database and of its write-ahead log ends with a seal of 16 bytes. It shows
// whether the page is as it was written:
//
//	bytes 0 to 3    the page number, big-endian
//	bytes 4 to 7    the CRC-32C of the page up to here, big-endian
//	bytes 8 to 15   the balance
//
// SQLite leaves these bytes free: the header of the file says that each page has so many
// reserved bytes. So any SQLite can read the file. A page that another SQLite writes has
// no valid seal.
//
// The VFS puts the seal into a page when SQLite writes the page. At that time, SQLite has
// already computed its own checksum of the frame of the write-ahead log, which includes
// the reserved bytes. The balance makes up for the change: SQLite's checksum of the page
// with the seal is the same as without it. So if another SQLite copies the log into the
// database after a crash, it accepts the frames, and the pages keep their seals.
const (
	sealSize    = 16         // bytes
	frameHeader = 24         // bytes, before each page of a write-ahead log
	walHeader   = 32         // bytes, before the first frame
	headerSize  = 100        // bytes, of the header of a database in its first page
	pendingByte = 0x40000000 // the offset of the byte that SQLite locks; its page is never written
	minPage     = 512        // bytes
	maxPage     = 65536      // bytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// isPage reports whether a page can have n bytes.
func isPage(n int) bool { return n >= minPage && n <= maxPage && n&(n-1) == 0 }

// seal puts the seal into a page.
func seal(page []byte, number uint32) {
	end := page[len(page)-sealSize:]
	x0, x1 := binary.NativeEndian.Uint32(end), binary.NativeEndian.Uint32(end[4:])
	binary.BigEndian.PutUint32(end, number)
	binary.BigEndian.PutUint32(end[4:], crc32.Checksum(page[:len(page)-sealSize+4], castagnoli))
	dx0, dx1 := binary.NativeEndian.Uint32(end)-x0, binary.NativeEndian.Uint32(end[4:])-x1
	// SQLite's checksum adds two numbers of the page at a time: s1 += x0+s2; s2 += x1+s1.
	y := end[8:]
	binary.NativeEndian.PutUint32(y, binary.NativeEndian.Uint32(y)-2*dx0-dx1)
	binary.NativeEndian.PutUint32(y[4:], binary.NativeEndian.Uint32(y[4:])-dx0-dx1)
}

// validSeal reports whether a page is as it was written. number is the number of the page in
// the database, or 0 if it is not known.
func validSeal(page []byte, number uint32) bool {
	end := page[len(page)-sealSize:]
	got := binary.BigEndian.Uint32(end)
	return (number == 0 || got == number) && got != 0 &&
		binary.BigEndian.Uint32(end[4:]) == crc32.Checksum(page[:len(page)-sealSize+4], castagnoli)
}

// pageAt returns the page that SQLite reads or writes at an offset of the file, and its
// number. ok is false if the bytes are not a page. In a write-ahead log the number is 0,
// because it is in the header of the frame.
func (f *file) pageAt(buf uintptr, n int32, offset int64) (page []byte, number uint32, ok bool) {
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

// sealPage puts the seal into the bytes that are about to be written, if they are a page.
func (f *file) sealPage(tls *libc.TLS, id, buf uintptr, n int32, offset int64) int32 {
	if f.kind == walFile && n == frameHeader {
		f.frameNumber, f.framePage = binary.BigEndian.Uint32(unsafe.Slice(at[byte](buf), 4)), offset+frameHeader
		return lib.SQLITE_OK
	}
	page, number, ok := f.pageAt(buf, n, offset)
	if !ok {
		return lib.SQLITE_OK
	}
	if f.kind == walFile {
		if number = f.frameNumber; offset != f.framePage {
			// SQLite writes a page again in the frame that has it already, without
			// writing the header.
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

// checkPage checks the bytes that were read, if they are a page. rc is the result code of
// the read, and it returns the one that SQLite gets.
func (f *file) checkPage(tls *libc.TLS, buf uintptr, n int32, offset int64, rc int32) int32 {
	if rc != lib.SQLITE_OK && rc != lib.SQLITE_IOERR_SHORT_READ {
		return rc
	}
	page, number, ok := f.pageAt(buf, n, offset)
	switch {
	case !ok:
		return rc
	case rc == lib.SQLITE_IOERR_SHORT_READ: // SQLite would continue with zeros
		return f.damage(tls, "read", fmt.Sprintf("the file ends before byte %d", offset+int64(n)))
	case !validSeal(page, number):
		return f.damage(tls, "read", fmt.Sprintf("the page at byte %d does not match its checksum", offset))
	}
	return rc
}

// damage records that the file is not as it was written, and returns the result code for
// SQLite.
func (f *file) damage(tls *libc.TLS, op, text string) int32 {
	err := &FileError{Op: op, Path: f.path, Code: lib.SQLITE_IOERR_DATA, Text: text, Damaged: true}
	if c := connOf(tls); c != nil {
		c.noteError(err)
	}
	f.report(err)
	return lib.SQLITE_IOERR_DATA
}

// report passes an error to the function that watches the database of the file (Watch).
func (f *file) report(err error) {
	if w, ok := watchers.Load(f.db); ok && f.kind != otherFile {
		w.(func(error))(err)
	}
}

// watchers maps the paths of databases to the functions that Watch was given, of type
// func(error).
var watchers sync.Map

// Watch calls f with a *FileError whenever any connection to the database at path reads a
// page that is not as it was written, or cannot read the file. f must not block, and must
// be safe for calls by several goroutines at once.
func Watch(path string, f func(error)) { watchers.Store(path, f) }

// Unwatch ends the calls that Watch began.
func Unwatch(path string) { watchers.Delete(path) }

// A Verifier checks whether all pages of a database file are as they were written. The
// whole file is written to it, and then End is called. The file must not have a
// write-ahead log.
type Verifier struct {
	buf    []byte // the next page, as far as it was written
	size   int    // bytes of a page; 0: not known yet
	number uint32 // the number of the last page that was checked
	pages  uint32 // the number of pages according to the header
	err    error
}

// Write checks the next bytes of the file. Its error says that the file is damaged.
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
		v.fail("it does not begin with the header of a database")
	}
}

func (v *Verifier) page() {
	v.number++
	pending := int64(v.number-1) == pendingByte/int64(v.size)
	if !pending && !validSeal(v.buf, v.number) {
		v.fail(fmt.Sprintf("page %d does not match its checksum", v.number))
	}
	v.buf = v.buf[:0]
}

func (v *Verifier) fail(text string) {
	v.err = &FileError{Op: "verify", Path: "the database", Code: lib.SQLITE_IOERR_DATA, Text: text, Damaged: true}
}

// End returns an error if the file is damaged or incomplete.
func (v *Verifier) End() error {
	if v.err == nil && (len(v.buf) > 0 || v.number != v.pages || v.number == 0) {
		v.fail(fmt.Sprintf("it has %d complete pages instead of %d", v.number, v.pages))
	}
	return v.err
}

// CheckSize returns an error if a page of the database is neither in the file nor in the
// write-ahead log.
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
	// The pages after the end of the file have to be in the log, so they are read.
	return c.Exec(fmt.Sprintf("SELECT sum(length(data)) FROM sqlite_dbpage WHERE pgno>%d", have))
}

// pages returns the number of pages of the database, and the size of a page in bytes.
func (c *Conn) pages() (count, size int64, err error) {
	err = c.QueryAsOwner("SELECT (SELECT page_count FROM pragma_page_count), (SELECT page_size FROM pragma_page_size)", func(s *Stmt) error {
		count, size = s.Int(0), s.Int(1)
		return nil
	})
	return count, size, err
}

// Pages reads the pages of a database one after the other, and so checks their seals. Each
// is read in a transaction of its own, so checkpoints need not wait for it.
type Pages struct {
	s    *Stmt
	next int64 // the number of the next page
}

// Pages returns a Pages that begins with the first page.
func (c *Conn) Pages() (*Pages, error) {
	s, _, err := c.Prepare("SELECT length(data) FROM sqlite_dbpage WHERE pgno=?", true)
	if err != nil {
		return nil, err
	}
	return &Pages{s, 1}, nil
}

// Check reads the next n pages, and reports whether there may be more.
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

// Close ends the reading.
func (p *Pages) Close() { p.s.Close() }
