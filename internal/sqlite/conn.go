// Package sqlite wraps the SQLite engine (modernc.org/sqlite/lib) and adds what a replica
// needs and a general driver lacks: writes whose clock and random numbers the caller
// supplies, classes of texts before they run, TEMP objects that are copied between
// connections, checksums of pages, and copies of a consistent state of the database.
//
// It is the only package that imports the engine. One goroutine at a time may use a
// Conn and its statements. Only Interrupt and Stop may be called at the same time
// by other goroutines.
//
// The authorizer (authorizer.go) decides what statements of programs may do. The table
// Pragmas (pragmas.go) says what happens to PRAGMAs. deterministic.go and randomness.go
// make all replicas compute the same. The VFS (vfs.go, pages.go) finds damaged files.
package sqlite

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Mode says what a connection is for.
type Mode int

const (
	// ReadOnly connections read the database, or classify texts.
	ReadOnly Mode = iota
	// Apply is the only connection of a replica that writes. Its clock, random numbers
	// and bounds come from the operation (Conn.Begin).
	Apply
	// Speculate connections run the views of transactions. They run the statements of a
	// transaction as the Apply connections will run them later, and cannot commit.
	Speculate
	// Temp connections hold the TEMP objects of one caller. They can also read the
	// database.
	Temp
	// Plain connections have no restrictions. They make copies and checkpoints.
	Plain
)

// busyTimeout is how long a connection waits for a lock that another connection
// holds, in milliseconds. An Apply connection needs it although it is the only
// writer, because a connection that opens the file holds a lock for a moment.
const busyTimeout = 5000

// maxLength bounds a value or row, in bytes. It is part of the format of entries, because a
// replica with another bound would fail where others do not.
const maxLength = 512 << 20

// The scratch memory of a connection is where calls of the engine put their results. The
// result of one call is at its beginning. What has to stay there longer has an offset of its
// own.
const (
	scratchTail     = 8  // the text after the statement that was compiled last
	scratchObserved = 24 // the statement that an Observation observes, or 0; see rowWritten
	scratchRowID    = 32 // the rowid of the last row that this statement has written
	scratchDB       = 40 // the connection, for rowWritten
	scratchTime     = 48 // a time, for localtime
	scratchSize     = 64 // bytes
)

// A Conn is a connection to a database file.
type Conn struct {
	tls     *libc.TLS
	db      uintptr
	scratch uintptr // memory for the results of calls, see scratchSize
	mode    Mode
	path    string

	actions         Actions // of the statement that is prepared, or was prepared last
	asOwner         bool    // statements of hiqlite itself run now, see AsOwner
	preparing       bool    // SQLite is compiling a statement
	classifying     bool    // a text is being classified: none of its statements will run
	pragmaForCaller bool    // the authorizer denied a PRAGMA because the caller of Classify executes it
	fromDump        bool    // compileFromDump is compiling a statement

	settings  wire.Settings              // under which statements are prepared
	zone      *atomic.Pointer[wire.Zone] // see SetZone
	functions *Functions                 // the functions of the program, see Define

	op            operationInputs
	stop          stopRequest
	args          arena // the arguments that were bound last
	copyArguments bool  // see CopyArguments
	fileNotes     fileNotes
	frames        int // number of frames in the write-ahead log after the last commit

	tempAllowed bool            // see AllowTemp
	tempNames   map[string]bool // the names of TEMP objects and of their tables, see LoadTempNames

	mu     sync.Mutex // guards closed against Interrupt
	closed bool
}

var initialize = sync.OnceValue(func() error {
	lib.PatchIssue199()
	return registerVFS()
})

// Open opens the database file at path, creating it unless mode is ReadOnly.
func Open(path string, mode Mode) (*Conn, error) {
	if err := initialize(); err != nil {
		return nil, err
	}
	if strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("hiqlite: the path %q holds a NUL", path)
	}
	c := &Conn{tls: libc.NewTLS(), mode: mode, path: path, copyArguments: mode == Speculate || mode == Temp}
	c.args.tls = c.tls
	c.scratch = libc.Xmalloc(c.tls, scratchSize)
	if err := c.open(path); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) open(path string) error {
	flags := int32(lib.SQLITE_OPEN_READWRITE | lib.SQLITE_OPEN_CREATE | lib.SQLITE_OPEN_NOMUTEX)
	if c.mode == ReadOnly || c.mode == Temp {
		flags = lib.SQLITE_OPEN_READONLY | lib.SQLITE_OPEN_NOMUTEX
	}
	name := c.cstring(path)
	defer libc.Xfree(c.tls, name)
	conns.Store(c.tls, c)
	rc := lib.Xsqlite3_open_v2(c.tls, name, c.scratch, flags, vfsName)
	c.db = *at[uintptr](c.scratch)
	if rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	lib.Xsqlite3_extended_result_codes(c.tls, c.db, 1)
	lib.Xsqlite3_busy_timeout(c.tls, c.db, busyTimeout)
	lib.Xsqlite3_limit(c.tls, c.db, lib.SQLITE_LIMIT_LENGTH, maxLength)
	if err := c.defineRegexp(); err != nil {
		return err
	}
	main := c.cstring("main")
	defer libc.Xfree(c.tls, main)
	*at[int32](c.scratch) = sealSize
	if rc := lib.Xsqlite3_file_control(c.tls, c.db, main, lib.SQLITE_FCNTL_RESERVE_BYTES, c.scratch); rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	if c.mode != ReadOnly && c.mode != Temp && lib.Xsqlite3_db_readonly(c.tls, c.db, main) == 1 {
		return ReadOnlyDatabase("make the file and its folder writable for the user that this program runs as")
	}
	if c.mode == Plain {
		return nil
	}
	for option, on := range map[int32]int32{
		lib.SQLITE_DBCONFIG_DEFENSIVE: 1, // SQL cannot damage the file
		// Plans must not depend on bound values. Otherwise the order of rows, and
		// with it random(), would depend on the values that were bound first.
		lib.SQLITE_DBCONFIG_ENABLE_QPSG: 1,
		lib.SQLITE_DBCONFIG_ENABLE_FKEY: 1,
	} {
		if rc := c.configure(option, on); rc != lib.SQLITE_OK {
			return c.err(rc)
		}
	}
	if err := c.fixLocaleHeader(); err != nil {
		return err
	}
	lib.Xsqlite3_set_authorizer(c.tls, c.db, callback(authorize), 0)
	lib.Xsqlite3_progress_handler(c.tls, c.db, stepsPerCheck, callback(progress), 0)
	lib.Xsqlite3_trace_v2(c.tls, c.db, lib.SQLITE_TRACE_STMT, callback(statementBegins), 0)
	if c.mode == Speculate {
		lib.Xsqlite3_commit_hook(c.tls, c.db, callback(refuseCommit), 0)
	}
	if c.replicates() {
		return c.makeDeterministic()
	}
	if c.mode == Temp {
		c.watchRows() // see TookMaxRowid
		return c.prepareTemp()
	}
	return nil
}

// replicates reports whether the statements of the connection must have the same
// effect on every replica.
func (c *Conn) replicates() bool { return c.mode == Apply || c.mode == Speculate }

// refuseCommit is the commit hook of Speculate connections: a COMMIT becomes a
// ROLLBACK.
func refuseCommit(*libc.TLS, uintptr) int32 { return 1 }

// Close closes the connection. The caller must have closed its statements.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var err error
	if c.db != 0 {
		if rc := lib.Xsqlite3_close_v2(c.tls, c.db); rc != lib.SQLITE_OK {
			err = c.err(rc)
		}
	}
	conns.Delete(c.tls)
	c.args.free()
	libc.Xfree(c.tls, c.scratch)
	c.tls.Close()
	return err
}

// Interrupt ends the statement that is running on the connection. Any goroutine may
// call it at any time, also after Close.
func (c *Conn) Interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		lib.Xsqlite3_interrupt(c.tls, c.db)
	}
}

// Exec runs every statement of a text without arguments and drops their rows. It is
// for statements of hiqlite itself, not for those of programs.
func (c *Conn) Exec(sql string) error {
	for sql != "" {
		s, tail, err := c.Prepare(sql, false)
		if err != nil {
			return err
		}
		sql = tail
		if s == nil {
			continue
		}
		err = s.Run()
		s.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// CopyArguments makes each statement keep its arguments until new ones are bound to
// it, so that several statements can run at the same time. Speculate and Temp
// connections do so from the beginning.
func (c *Conn) CopyArguments(on bool) { c.copyArguments = on }

// Autocommit reports whether no transaction is open.
func (c *Conn) Autocommit() bool { return lib.Xsqlite3_get_autocommit(c.tls, c.db) != 0 }

// Changes returns changes(), the rows that the last INSERT, UPDATE or DELETE touched.
func (c *Conn) Changes() int64 { return int64(c.rawDB().FnChange) }

// TotalChanges returns total_changes(): rows that INSERT, UPDATE and DELETE
// touched since SetState or Begin, those of triggers included.
func (c *Conn) TotalChanges() int64 { return int64(c.rawDB().FnTotalChange) }

// LastInsertID returns last_insert_rowid().
func (c *Conn) LastInsertID() int64 { return int64(lib.Xsqlite3_last_insert_rowid(c.tls, c.db)) }

// SetState sets what changes(), total_changes() and last_insert_rowid() return.
func (c *Conn) SetState(changes, total, lastInsertID int64) {
	db := c.rawDB()
	db.FnChange, db.FnTotalChange = changes, total
	lib.Xsqlite3_set_last_insert_rowid(c.tls, c.db, lastInsertID)
}

// DeferredViolations reports whether a COMMIT would fail now because rows violate
// deferred foreign keys. SQLite counts the violations, and the sum can be negative:
// rows that violated a key before the transaction are counted when they are removed.
func (c *Conn) DeferredViolations() bool {
	db := c.rawDB()
	return db.FnDeferredCons+db.FnDeferredImmCons != 0
}

// Checkpoint copies the write-ahead log into the database file. Without truncate it
// copies as much as the readers allow. With truncate it copies all of the log and
// empties it; if a reader prevents that, it waits and then fails with SQLITE_BUSY.
func (c *Conn) Checkpoint(truncate bool) error {
	mode := int32(lib.SQLITE_CHECKPOINT_PASSIVE)
	if truncate {
		mode = lib.SQLITE_CHECKPOINT_TRUNCATE
	}
	// Before its first read a connection does not know that there is a write-ahead
	// log. SQLite would do nothing and report success.
	if err := c.Exec("PRAGMA user_version"); err != nil {
		return err
	}
	if rc := lib.Xsqlite3_wal_checkpoint_v2(c.tls, c.db, 0, mode, 0, 0); rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	return nil
}

// SyncDatabase makes the content of the database file durable after a checkpoint.
// It uses SQLite's own file descriptor, because closing another descriptor of the
// same file would drop SQLite's locks on it.
func (c *Conn) SyncDatabase() error {
	main := c.cstring("main")
	defer libc.Xfree(c.tls, main)
	if rc := lib.Xsqlite3_file_control(c.tls, c.db, main, lib.SQLITE_FCNTL_FILE_POINTER, c.scratch); rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	file := *at[uintptr](c.scratch)
	methods := at[lib.Tsqlite3_io_methods](at[lib.Tsqlite3_file](file).FpMethods)
	sync := *(*func(*libc.TLS, uintptr, int32) int32)(unsafe.Pointer(&struct{ f uintptr }{methods.FxSync}))
	if rc := sync(c.tls, file, lib.SQLITE_SYNC_NORMAL); rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	return nil
}

// CopyTo copies the database into a new file at path, in the state that this
// connection sees: in a read transaction, the state that the transaction reads. If
// stopped is not nil, CopyTo calls it regularly. Once it returns true, CopyTo fails
// and leaves an incomplete file.
func (c *Conn) CopyTo(path string, stopped func() bool) error {
	dst, err := Open(path, Plain)
	if err != nil {
		return err
	}
	defer dst.Close()
	main := c.cstring("main")
	defer libc.Xfree(c.tls, main)
	b := lib.Xsqlite3_backup_init(dst.tls, dst.db, main, c.db, main)
	if b == 0 {
		return dst.err(lib.Xsqlite3_extended_errcode(dst.tls, dst.db))
	}
	// The copy is made in steps so that other goroutines can run in between.
	rc := int32(lib.SQLITE_OK)
	for rc == lib.SQLITE_OK {
		if stopped != nil && stopped() {
			rc = lib.SQLITE_ABORT
			break
		}
		rc = lib.Xsqlite3_backup_step(dst.tls, b, 4096)
		runtime.Gosched()
	}
	if end := lib.Xsqlite3_backup_finish(dst.tls, b); rc == lib.SQLITE_DONE && end != lib.SQLITE_OK {
		rc = end
	}
	if rc != lib.SQLITE_DONE {
		return dst.err(rc)
	}
	return dst.Close()
}

// configure switches one of SQLite's boolean options for the connection.
func (c *Conn) configure(option, on int32) int32 {
	list := libc.VaList(c.scratch, on, uintptr(0))
	return lib.Xsqlite3_db_config(c.tls, c.db, option, list)
}

// rawDB is SQLite's own struct of the connection.
func (c *Conn) rawDB() *lib.Tsqlite3 { return at[lib.Tsqlite3](c.db) }

// cstring copies s, which holds no NUL, into memory that the caller frees.
func (c *Conn) cstring(s string) uintptr {
	p := libc.Xmalloc(c.tls, libc.Tsize_t(len(s)+1))
	b := unsafe.Slice(at[byte](p), len(s)+1)
	copy(b, s)
	b[len(s)] = 0
	return p
}

// conns maps the *libc.TLS that a callback gets to its *Conn.
var conns sync.Map

func connOf(tls *libc.TLS) *Conn {
	c, ok := conns.Load(tls)
	if !ok {
		return nil
	}
	return c.(*Conn)
}

// at returns a pointer to a T in the engine's memory, which Go neither owns nor moves.
func at[T any](p uintptr) *T { return *(**T)(unsafe.Pointer(&p)) }

// callback returns a top-level function in the engine's representation.
func callback[F any](f F) uintptr {
	return *(*uintptr)(unsafe.Pointer(&struct{ f F }{f}))
}

// arena holds the arguments of the running statement in the engine's memory. The
// next statement uses the memory again.
type arena struct {
	tls   *libc.TLS
	block uintptr
	size  int
	used  int
	full  []uintptr // blocks that this statement has filled
}

const arenaBlock = 16 << 10

func (a *arena) reset() {
	for _, p := range a.full {
		libc.Xfree(a.tls, p)
	}
	a.full, a.used = a.full[:0], 0
	if a.size > 64*arenaBlock {
		libc.Xfree(a.tls, a.block)
		a.block, a.size = 0, 0
	}
}

// copy returns a copy of b that is valid until reset. It is never 0, because SQLite
// would read that as NULL.
func (a *arena) copy(b []byte) uintptr {
	if a.used+len(b)+1 > a.size {
		if a.block != 0 {
			a.full = append(a.full, a.block)
		}
		a.size = max(arenaBlock, len(b)+1)
		a.block = libc.Xmalloc(a.tls, libc.Tsize_t(a.size))
		a.used = 0
	}
	p := a.block + uintptr(a.used)
	copy(unsafe.Slice(at[byte](p), len(b)+1), b)
	a.used += len(b) + 1
	return p
}

func (a *arena) free() {
	a.reset()
	if a.block != 0 {
		libc.Xfree(a.tls, a.block)
		a.block, a.size = 0, 0
	}
}
