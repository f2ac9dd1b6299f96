package sqlite

import (
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// defaultMaxSteps bounds an operation that names no bound of its own, in steps of
// SQLite's virtual machine. Without it an endless statement would stop every replica
// for ever. It counts steps instead of time because all replicas must give up at the
// same one. It is part of the format of entries.
const defaultMaxSteps = 1_000_000_000

// stepsPerCheck is the number of steps after which SQLite calls progress.
const stepsPerCheck = 1000

// operationInputs are what an operation supplies so that every replica computes the
// same: the clock, the random numbers and the bound.
type operationInputs struct {
	now        int64 // julian day, milliseconds
	random     random
	checksLeft uint64 // calls of progress until the bound is reached
	maxRowid   bool   // a row was given the largest rowid
}

// Begin prepares the connection to run op: it sets the clock, the random numbers, the
// bound, and what changes() and last_insert_rowid() return at the beginning.
func (c *Conn) Begin(op *wire.Operation) {
	c.ForgetFileErrors()
	c.SetClock(op.StampMS, &op.Seed)
	steps := op.MaxSteps
	if steps == 0 {
		steps = defaultMaxSteps
	}
	c.op.checksLeft = steps/stepsPerCheck + 1
	c.op.maxRowid = false
	c.SetState(op.Changes, 0, op.LastInsertID)
}

// SetClock sets the time that the next statement sees, in Unix milliseconds, and the
// seed of its random numbers. Without a seed they differ on each replica.
func (c *Conn) SetClock(stampMS int64, seed *wire.Seed) {
	const unixEpoch = 210866760000000 // julian day of 1970-01-01, milliseconds
	c.op.now = unixEpoch + stampMS
	c.op.random.begin(seed)
}

// SetStatementClock is SetClock for the n-th statement of a transaction that has this seed.
func (c *Conn) SetStatementClock(stampMS int64, seed *wire.Seed, n uint64) {
	c.SetClock(stampMS, seed)
	c.op.random.forStatement, c.op.random.ordinal = true, n
}

// random generates the random numbers of an operation. Most operations need none, so
// the generator is seeded when the first number is needed.
type random struct {
	generator    rand.ChaCha8
	ready        bool
	seeded       bool
	seed         wire.Seed
	forStatement bool   // the numbers are for one statement of a transaction
	ordinal      uint64 // the number of that statement
}

func (r *random) begin(seed *wire.Seed) {
	r.ready, r.seeded, r.forStatement = false, seed != nil, false
	if seed != nil {
		r.seed = *seed
	}
}

func (r *random) Uint64() uint64 {
	if !r.ready {
		seed := r.seed
		switch {
		case !r.seeded:
			seed = wire.NewSeed()
		case r.forStatement:
			seed = seed.Of(r.ordinal)
		}
		r.generator.Seed(seed)
		r.ready = true
	}
	return r.generator.Uint64()
}

// TookMaxRowid reports whether a row was given the rowid 2^63-1 since the last call.
// SQLite chooses later rowids of that table at random, which replicas cannot repeat,
// so the operation must fail.
func (c *Conn) TookMaxRowid() bool {
	took := c.op.maxRowid
	c.op.maxRowid = false
	return took
}

// ResetSteps sets the statement's count of steps to zero. The bound must not depend
// on whether a replica has the statement in its cache.
func (s *Stmt) ResetSteps() {
	lib.Xsqlite3_stmt_status(s.c.tls, s.p, lib.SQLITE_STMTSTATUS_VM_STEP, 1)
}

// ResetAllSteps does the same for all statements of the connection, also those that
// virtual tables have prepared.
func (c *Conn) ResetAllSteps() {
	for p := lib.Xsqlite3_next_stmt(c.tls, c.db, 0); p != 0; p = lib.Xsqlite3_next_stmt(c.tls, c.db, p) {
		lib.Xsqlite3_stmt_status(c.tls, p, lib.SQLITE_STMTSTATUS_VM_STEP, 1)
	}
}

func (c *Conn) makeDeterministic() error {
	for _, f := range []struct {
		name string
		args int32
		call uintptr
	}{{"random", 0, callback(randomFunction)}, {"randomblob", 1, callback(randomblobFunction)}} {
		name := c.cstring(f.name)
		rc := lib.Xsqlite3_create_function_v2(c.tls, c.db, name, f.args, lib.SQLITE_UTF8|lib.SQLITE_INNOCUOUS, 0, f.call, 0, 0, 0)
		libc.Xfree(c.tls, name)
		if rc != lib.SQLITE_OK {
			return c.err(rc)
		}
	}
	c.watchRows()
	lib.Xsqlite3_wal_hook(c.tls, c.db, callback(noteFrames), 0) // in place of SQLite's own checkpoints
	return nil
}

func randomFunction(tls *libc.TLS, ctx uintptr, _ int32, _ uintptr) {
	lib.Xsqlite3_result_int64(tls, ctx, int64(connOf(tls).op.random.Uint64()))
}

func randomblobFunction(tls *libc.TLS, ctx uintptr, _ int32, argv uintptr) {
	n := max(1, lib.Xsqlite3_value_int64(tls, *at[uintptr](argv)))
	if n > maxLength {
		lib.Xsqlite3_result_error_toobig(tls, ctx)
		return
	}
	b := make([]byte, (n+7)&^7)
	random := &connOf(tls).op.random
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], random.Uint64())
	}
	p := libc.Xmalloc(tls, libc.Tsize_t(len(b)))
	copy(unsafe.Slice(at[byte](p), len(b)), b)
	lib.Xsqlite3_result_blob64(tls, ctx, p, uint64(n), ^uintptr(0)) // SQLITE_TRANSIENT: copied at once
	libc.Xfree(tls, p)
}

// progress is called every stepsPerCheck steps. If it returns anything but 0, SQLite
// interrupts the statement. Steps of the replica's own statements do not count, nor
// those of preparing a statement, because another replica may have the statement
// prepared, or the schema loaded, already.
func progress(tls *libc.TLS, _ uintptr) int32 {
	c := connOf(tls)
	if c == nil || c.asOwner {
		return 0
	}
	if c.stop.requested() {
		return 1
	}
	if c.preparing || c.stop.unbounded || c.mode == ReadOnly || c.mode == Temp {
		return 0
	}
	if c.op.checksLeft > 1 {
		c.op.checksLeft--
		return 0
	}
	return 1
}

// maxNested bounds how deep statements are nested: a virtual table runs statements
// of its own while the statement that uses it is running.
const maxNested = 100

// statementBegins is called when a statement, or a part of one, begins. When a
// savepoint begins, FTS5 writes the changes that it has buffered. If a program makes
// an index on one of FTS5's own tables, or a foreign key to it, that write begins a
// savepoint itself, and so on until the stack overflows and the process ends.
func statementBegins(tls *libc.TLS, _ uint32, _, _, _ uintptr) int32 {
	if c := connOf(tls); c != nil && c.rawDB().FnVdbeExec > maxNested {
		lib.Xsqlite3_interrupt(tls, c.db)
	}
	return 0
}

// A stopRequest ends statements of a transaction. Unlike Interrupt it also ends a statement
// that makes its first step later.
type stopRequest struct {
	ctx       context.Context // of the running statement, or nil
	unbounded bool            // the running statement only reads, so no replica repeats it
	always    atomic.Bool
}

func (s *stopRequest) requested() bool { return s.always.Load() || s.ctx != nil && s.ctx.Err() != nil }

// SetContext sets the context that ends the next statement, and says whether the statement
// only reads. One that only reads may take any number of steps.
func (c *Conn) SetContext(ctx context.Context, reads bool) {
	c.stop.ctx, c.stop.unbounded = ctx, reads
	if ctx != nil && ctx.Done() == nil {
		c.stop.ctx = nil
	}
}

// Stop(true) ends the running statement and all later ones until Stop(false) is
// called. Any goroutine may call it at any time.
func (c *Conn) Stop(on bool) {
	c.stop.always.Store(on)
	if on {
		c.Interrupt()
	}
}

// watchRows makes SQLite call rowWritten for each row that is written. The scratch
// memory holds what rowWritten needs: the statement that an Observation observes, and the
// connection. rowWritten stores the rowid there.
func (c *Conn) watchRows() {
	*at[uintptr](c.scratch + scratchObserved), *at[int64](c.scratch + scratchRowID), *at[uintptr](c.scratch + scratchDB) = 0, 0, c.db
	lib.Xsqlite3_update_hook(c.tls, c.db, callback(rowWritten), c.scratch)
}

// rowWritten is SQLite's update hook, which is called for each row in the order of
// the writes. It keeps the rowid of rows that the observed statement writes itself.
// Triggers run in frames of its program, and virtual tables run other statements, so
// rows written by these can be told apart.
func rowWritten(tls *libc.TLS, scratch uintptr, action int32, _, _ uintptr, rowid int64) {
	if s := *at[uintptr](scratch + scratchObserved); s != 0 && action != lib.SQLITE_DELETE &&
		at[lib.TVdbe](s).FnFrame == 0 && at[lib.Tsqlite3](*at[uintptr](scratch + scratchDB)).FnVdbeExec == 1 {
		*at[int64](scratch + scratchRowID) = rowid
	}
	if rowid == math.MaxInt64 {
		connOf(tls).op.maxRowid = true
	}
}

// noteFrames is SQLite's hook after a commit to the write-ahead log.
func noteFrames(tls *libc.TLS, _, _, _ uintptr, frames int32) int32 {
	connOf(tls).frames = int(frames)
	return lib.SQLITE_OK
}

// WALFrames returns the number of pages in the write-ahead log after the last commit.
// A page has 4096 bytes unless the database was made with another size. The count
// begins again once all of the log has been checkpointed.
func (c *Conn) WALFrames() int { return c.frames }

// OutOfSteps reports whether the operation reached its bound.
func (c *Conn) OutOfSteps() bool { return c.op.checksLeft <= 1 }

// currentTime returns the operation's time on connections that replicate, and the
// computer's time on the others.
func currentTime(tls *libc.TLS, vfs, now uintptr) int32 {
	c := connOf(tls)
	if c == nil || !c.replicates() {
		return callee[func(*libc.TLS, uintptr, uintptr) int32](vfsBase.FxCurrentTimeInt64)(tls, vfs, now)
	}
	*at[int64](now) = c.op.now
	return lib.SQLITE_OK
}

// SetZone makes 'localtime' and 'utc' use the time zone that the pointer holds; nil
// means UTC. Other goroutines may store another zone at any time.
func (c *Conn) SetZone(zone *atomic.Pointer[wire.Zone]) { c.zone = zone }

// localtime fills a C struct tm, as localtime_r does, in the time zone of the cluster.
// Connections that this package has not opened, such as those of another driver in
// the process, get the time zone of the process.
func localtime(tls *libc.TLS, t, tm uintptr) int32 {
	c := connOf(tls)
	if c == nil {
		if libc.Xlocaltime_r(tls, t, tm) == 0 {
			return 1
		}
		return 0
	}
	var zone *wire.Zone
	if c.zone != nil {
		zone = c.zone.Load()
	}
	seconds := *at[int64](t)
	*at[int64](c.scratch + scratchTime) = seconds + zone.At(seconds)
	if libc.Xgmtime_r(tls, c.scratch+scratchTime, tm) == 0 {
		return 1
	}
	return 0
}
