package sqlite

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// All connections open their files through a VFS of this package, which calls SQLite's VFS
// for the operating system. It does three things:
//
//   - It returns the time of the operation to connections that replicate (currentTime).
//   - It puts seals into pages and checks them (pages.go).
//   - It records each error of the file system at the connection that had it. So a failure
//     of this computer can be told from the error of a statement. SQLite's result codes do
//     not tell them apart: a view with a strange name is as "malformed" as a broken file.

// A FileError is an error of the file system that SQLite was given, or damage that was
// found in a file.
type FileError struct {
	Op   string // read, write, sync, ...
	Path string
	Code int // SQLite's extended result code
	Text string

	// Damaged says that the file is not as it was written.
	Damaged bool
}

func (e *FileError) Error() string {
	return fmt.Sprintf("%s %s: %s (%d)", e.Op, e.Path, e.Text, e.Code)
}

// FileError returns the first error of the file system on this connection since
// ForgetFileErrors, or nil. SQLite may have continued in spite of it.
func (c *Conn) FileError() error {
	if c.fileNotes.err == nil {
		return nil
	}
	return c.fileNotes.err
}

// ForgetFileErrors forgets the errors of the file system, and the locks of other
// connections, that were recorded on this connection. Begin does so too.
func (c *Conn) ForgetFileErrors() { c.fileNotes = fileNotes{} }

// Blocked reports whether err, with which a statement of this connection has just failed,
// means only that another connection holds a lock.
func (c *Conn) Blocked(err error) bool {
	var e *Error
	if c.fileNotes.err != nil || !c.fileNotes.locked || !errors.As(err, &e) {
		return false
	}
	return PrimaryCode(e.Code) == lib.SQLITE_BUSY || PrimaryCode(e.Code) == lib.SQLITE_PROTOCOL
}

// fileNotes are what the VFS has recorded for a connection.
type fileNotes struct {
	err    *FileError // the first error
	locked bool       // another connection held a lock that this one wanted
}

// Local reports whether err, with which a statement of this connection has just failed,
// has its cause on this computer (its disk, its memory, its files, locks of other
// connections), and not in the statement. Such an error may not occur on other replicas.
// The decision depends on the errors of the file system since ForgetFileErrors. SQLite's
// result code alone would not do, because a text can provoke nearly every code.
func (c *Conn) Local(err error) bool {
	var e *Error
	switch {
	case err == nil:
		return false
	case c.fileNotes.err != nil || !errors.As(err, &e):
		return true
	}
	return c.Blocked(err) || PrimaryCode(e.Code) == lib.SQLITE_NOMEM && !c.canAllocate()
}

// A fileKind says what SQLite keeps in a file.
type fileKind int

const (
	otherFile    fileKind = iota // a journal or a temporary file
	databaseFile                 // the pages of a database
	walFile                      // a write-ahead log
)

// A file is a file that SQLite has opened through this VFS.
type file struct {
	base *lib.Tsqlite3_io_methods // the methods of SQLite's own VFS
	kind fileKind
	path string
	db   string // the path of the database of the connection, as Open got it

	// Of a write-ahead log: the number of the page whose frame header was written
	// last, and the offset at which the page follows.
	frameNumber uint32
	framePage   int64
}

func (f *file) read(tls *libc.TLS, id, buf uintptr, n int32, offset int64) int32 {
	return callee[func(*libc.TLS, uintptr, uintptr, int32, int64) int32](f.base.FxRead)(tls, id, buf, n, offset)
}

// files maps the address of each open sqlite3_file to its *file, because the engine's
// memory cannot hold Go pointers.
var files sync.Map

func fileOf(id uintptr) *file {
	f, _ := files.Load(id)
	return f.(*file)
}

// The VFS and its methods are in the engine's memory and are never freed.
var (
	vfsName     uintptr
	vfsBase     *lib.Tsqlite3_vfs // SQLite's own VFS
	fileMethods uintptr
)

// callee returns a function of the engine as a Go function. It is the inverse of callback.
func callee[F any](p uintptr) F {
	return *(*F)(unsafe.Pointer(&struct{ p uintptr }{p}))
}

func registerVFS() error {
	tls := libc.NewTLS() // not closed, because the VFS is never freed
	base := lib.Xsqlite3_vfs_find(tls, 0)
	vfsBase = at[lib.Tsqlite3_vfs](base)
	p := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(lib.Tsqlite3_vfs{})))
	vfs := at[lib.Tsqlite3_vfs](p)
	*vfs = *vfsBase
	const name = "hiqlite\x00"
	vfsName = libc.Xmalloc(tls, libc.Tsize_t(len(name)))
	copy(unsafe.Slice(at[byte](vfsName), len(name)), name)
	vfs.FzName = vfsName
	vfs.FpNext = 0
	vfs.FxOpen = callback(openFile)
	vfs.FxDelete = callback(deleteFile)
	vfs.FxAccess = callback(accessFile)
	vfs.FxCurrentTimeInt64 = callback(currentTime)

	fileMethods = libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(lib.Tsqlite3_io_methods{})))
	*at[lib.Tsqlite3_io_methods](fileMethods) = lib.Tsqlite3_io_methods{
		FiVersion: 2, // version 3 has memory mapping, and then reads would not be checked
		FxClose:   callback(closeFile), FxRead: callback(readFile), FxWrite: callback(writeFile), FxTruncate: callback(truncateFile),
		FxSync: callback(syncFile), FxFileSize: callback(sizeFile), FxLock: callback(lockFile), FxUnlock: callback(unlockFile),
		FxCheckReservedLock: callback(checkReservedLock), FxFileControl: callback(controlFile), FxSectorSize: callback(sectorSize),
		FxDeviceCharacteristics: callback(deviceCharacteristics), FxShmMap: callback(shmMap), FxShmLock: callback(shmLock),
		FxShmBarrier: callback(shmBarrier), FxShmUnmap: callback(shmUnmap),
	}
	if rc := lib.Xsqlite3_vfs_register(tls, p, 0); rc != lib.SQLITE_OK {
		return &Error{Code: int(rc), Message: "cannot register hiqlite's VFS"}
	}
	// Without this hook, 'localtime' and 'utc' would use the time zone of the process.
	// The hook is called for all connections of the process, so localtime finds out
	// which connection it is.
	list := libc.Xmalloc(tls, 32)
	lib.Xsqlite3_test_control(tls, lib.SQLITE_TESTCTRL_LOCALTIME_FAULT, libc.VaList(list, int32(2), callback(localtime)))
	libc.Xfree(tls, list)
	return nil
}

// note records at the connection that a call of the file system ended with rc, if that is
// an error. It returns rc.
func note(tls *libc.TLS, op, path string, rc int32) int32 {
	switch rc & 0xff {
	case lib.SQLITE_OK, lib.SQLITE_NOTFOUND, lib.SQLITE_READONLY:
		return rc
	}
	c := connOf(tls)
	switch {
	case c == nil, rc == lib.SQLITE_IOERR_SHORT_READ, rc == lib.SQLITE_IOERR_DELETE_NOENT:
	case rc&0xff == lib.SQLITE_BUSY:
		c.fileNotes.locked = true
	case rc == lib.SQLITE_IOERR_DATA: // file.damage has recorded it
	default:
		c.noteError(&FileError{Op: op, Path: path, Code: int(rc), Text: libc.GoString(lib.Xsqlite3_errstr(tls, rc&0xff))})
	}
	return rc
}

// noteError records an error, if it is the first one.
func (c *Conn) noteError(err *FileError) {
	if c.fileNotes.err == nil {
		c.fileNotes.err = err
	}
}

// failFile is the function that FailFiles was given, or nil.
var failFile atomic.Pointer[func(op, path string) (code int)]

// FailFiles is for tests. It makes f decide which calls of the file system fail: f returns
// the result code of SQLite with which a call fails, or 0. f gets the calls of all
// connections, and must be safe for calls by several goroutines at once.
func FailFiles(f func(op, path string) (code int)) (restore func()) {
	failFile.Store(&f)
	return func() { failFile.Store(nil) }
}

func injectedFault(op, path string) int32 {
	if f := failFile.Load(); f != nil {
		return int32((*f)(op, path))
	}
	return lib.SQLITE_OK
}

func openFile(tls *libc.TLS, vfs, name, id uintptr, flags int32, out uintptr) int32 {
	path := "a temporary file"
	if name != 0 {
		path = libc.GoString(name)
	}
	if rc := injectedFault("open", path); rc != lib.SQLITE_OK {
		*at[uintptr](id) = 0
		return note(tls, "open", path, rc)
	}
	rc := callee[func(*libc.TLS, uintptr, uintptr, uintptr, int32, uintptr) int32](vfsBase.FxOpen)(tls, vfs, name, id, flags, out)
	methods := *at[uintptr](id)
	if rc != lib.SQLITE_OK || methods == 0 {
		return note(tls, "open", path, rc)
	}
	f := &file{base: at[lib.Tsqlite3_io_methods](methods), path: path}
	if c := connOf(tls); c != nil {
		f.db = c.path
	}
	switch {
	case flags&lib.SQLITE_OPEN_MAIN_DB != 0:
		f.kind = databaseFile
	case flags&lib.SQLITE_OPEN_WAL != 0:
		f.kind = walFile
	}
	files.Store(id, f)
	*at[uintptr](id) = fileMethods
	return rc
}

func deleteFile(tls *libc.TLS, vfs, name uintptr, sync int32) int32 {
	path := libc.GoString(name)
	rc := injectedFault("delete", path)
	if rc == lib.SQLITE_OK {
		rc = callee[func(*libc.TLS, uintptr, uintptr, int32) int32](vfsBase.FxDelete)(tls, vfs, name, sync)
	}
	return note(tls, "delete", path, rc)
}

func accessFile(tls *libc.TLS, vfs, name uintptr, flags int32, out uintptr) int32 {
	rc := callee[func(*libc.TLS, uintptr, uintptr, int32, uintptr) int32](vfsBase.FxAccess)(tls, vfs, name, flags, out)
	if rc == lib.SQLITE_OK {
		return rc
	}
	return note(tls, "access", libc.GoString(name), rc)
}

func closeFile(tls *libc.TLS, id uintptr) int32 {
	f := fileOf(id)
	rc := callee[func(*libc.TLS, uintptr) int32](f.base.FxClose)(tls, id)
	files.Delete(id)
	*at[uintptr](id) = 0
	return note(tls, "close", f.path, rc)
}

func readFile(tls *libc.TLS, id, buf uintptr, n int32, offset int64) int32 {
	f := fileOf(id)
	rc := injectedFault("read", f.path)
	if rc == lib.SQLITE_OK {
		rc = f.read(tls, id, buf, n, offset)
	}
	if rc = f.checkPage(tls, buf, n, offset, rc); rc == lib.SQLITE_IOERR_READ {
		f.report(&FileError{Op: "read", Path: f.path, Code: int(rc), Text: "disk I/O error"})
	}
	return note(tls, "read", f.path, rc)
}

func writeFile(tls *libc.TLS, id, buf uintptr, n int32, offset int64) int32 {
	f := fileOf(id)
	rc := injectedFault("write", f.path)
	if rc == lib.SQLITE_OK {
		rc = f.sealPage(tls, id, buf, n, offset)
	}
	if rc == lib.SQLITE_OK {
		rc = callee[func(*libc.TLS, uintptr, uintptr, int32, int64) int32](f.base.FxWrite)(tls, id, buf, n, offset)
	}
	return note(tls, "write", f.path, rc)
}

func truncateFile(tls *libc.TLS, id uintptr, size int64) int32 {
	f := fileOf(id)
	rc := injectedFault("truncate", f.path)
	if rc == lib.SQLITE_OK {
		rc = callee[func(*libc.TLS, uintptr, int64) int32](f.base.FxTruncate)(tls, id, size)
	}
	return note(tls, "truncate", f.path, rc)
}

func syncFile(tls *libc.TLS, id uintptr, flags int32) int32 {
	f := fileOf(id)
	rc := injectedFault("sync", f.path)
	if rc == lib.SQLITE_OK {
		rc = callee[func(*libc.TLS, uintptr, int32) int32](f.base.FxSync)(tls, id, flags)
	}
	return note(tls, "sync", f.path, rc)
}

func sizeFile(tls *libc.TLS, id, out uintptr) int32 {
	f := fileOf(id)
	rc := injectedFault("size", f.path)
	if rc == lib.SQLITE_OK {
		rc = callee[func(*libc.TLS, uintptr, uintptr) int32](f.base.FxFileSize)(tls, id, out)
	}
	return note(tls, "size", f.path, rc)
}

func lockFile(tls *libc.TLS, id uintptr, level int32) int32 {
	f := fileOf(id)
	return note(tls, "lock", f.path, callee[func(*libc.TLS, uintptr, int32) int32](f.base.FxLock)(tls, id, level))
}

func unlockFile(tls *libc.TLS, id uintptr, level int32) int32 {
	f := fileOf(id)
	return note(tls, "unlock", f.path, callee[func(*libc.TLS, uintptr, int32) int32](f.base.FxUnlock)(tls, id, level))
}

func checkReservedLock(tls *libc.TLS, id, out uintptr) int32 {
	f := fileOf(id)
	return note(tls, "lock", f.path, callee[func(*libc.TLS, uintptr, uintptr) int32](f.base.FxCheckReservedLock)(tls, id, out))
}

func controlFile(tls *libc.TLS, id uintptr, op int32, arg uintptr) int32 {
	f := fileOf(id)
	rc := callee[func(*libc.TLS, uintptr, int32, uintptr) int32](f.base.FxFileControl)(tls, id, op, arg)
	if rc&0xff != lib.SQLITE_IOERR && rc != lib.SQLITE_FULL {
		return rc
	}
	return note(tls, "control", f.path, rc)
}

func sectorSize(tls *libc.TLS, id uintptr) int32 {
	return callee[func(*libc.TLS, uintptr) int32](fileOf(id).base.FxSectorSize)(tls, id)
}

func deviceCharacteristics(tls *libc.TLS, id uintptr) int32 {
	return callee[func(*libc.TLS, uintptr) int32](fileOf(id).base.FxDeviceCharacteristics)(tls, id)
}

func shmMap(tls *libc.TLS, id uintptr, region, size, extend int32, out uintptr) int32 {
	f := fileOf(id)
	return note(tls, "map", f.path+"-shm", callee[func(*libc.TLS, uintptr, int32, int32, int32, uintptr) int32](f.base.FxShmMap)(tls, id, region, size, extend, out))
}

func shmLock(tls *libc.TLS, id uintptr, offset, n, flags int32) int32 {
	f := fileOf(id)
	return note(tls, "lock", f.path+"-shm", callee[func(*libc.TLS, uintptr, int32, int32, int32) int32](f.base.FxShmLock)(tls, id, offset, n, flags))
}

func shmBarrier(tls *libc.TLS, id uintptr) {
	callee[func(*libc.TLS, uintptr)](fileOf(id).base.FxShmBarrier)(tls, id)
}

func shmUnmap(tls *libc.TLS, id uintptr, remove int32) int32 {
	f := fileOf(id)
	return note(tls, "unmap", f.path+"-shm", callee[func(*libc.TLS, uintptr, int32) int32](f.base.FxShmUnmap)(tls, id, remove))
}
