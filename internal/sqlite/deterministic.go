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

// defaultMaxSteps bounds an operation, in virtual machine steps, so that an
// endless statement does not stop every replica for ever, if it says none itself.
// Steps and not time, because all replicas must give up at the same one. It is
// part of what an entry means.
const defaultMaxSteps = 1_000_000_000

// stepsPerCheck is how often, in steps, the bound is looked at.
const stepsPerCheck = 1000

// deterministic is what an operation brings along so that every replica
// computes the same: the clock, the random numbers and the bound.
type deterministic struct {
	now      int64 // julian day, milliseconds
	random   random
	checks   uint64 // progress callbacks left
	maxRowid bool   // a row took the largest rowid
}

// Begin makes the connection answer as op asks: its clock, its random numbers,
// its bound, and what changes() and last_insert_rowid() say at its beginning.
func (c *Conn) Begin(op *wire.Operation) {
	c.ForgetFileErrors()
	c.Clock(op.StampMS, &op.Seed)
	steps := op.MaxSteps
	if steps == 0 {
		steps = defaultMaxSteps
	}
	c.op.checks = steps/stepsPerCheck + 1
	c.op.maxRowid = false
	c.SetState(op.Changes, 0, op.LastInsertID)
}

// Clock sets what the next statement takes for now, in Unix milliseconds, and
// where its random numbers begin; nil: they are any.
func (c *Conn) Clock(stampMS int64, seed *wire.Seed) {
	const unixEpoch = 210866760000000 // julian day of 1970-01-01, milliseconds
	c.op.now = unixEpoch + stampMS
	c.op.random.begin(seed)
}

// ClockOf is Clock for the n-th statement of a transaction that has this seed.
func (c *Conn) ClockOf(stampMS int64, seed *wire.Seed, n uint64) {
	c.Clock(stampMS, seed)
	c.op.random.statement, c.op.random.ordinal = true, n
}

// random gives out an operation's random numbers. Most operations want none, so
// its generator is made when the first one is asked for.
type random struct {
	generator rand.ChaCha8
	ready     bool
	seeded    bool
	seed      wire.Seed
	statement bool // the numbers are those of a transaction's statement, ordinal
	ordinal   uint64
}

func (r *random) begin(seed *wire.Seed) {
	r.ready, r.seeded, r.statement = false, seed != nil, false
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
		case r.statement:
			seed = seed.Of(r.ordinal)
		}
		r.generator.Seed(seed)
		r.ready = true
	}
	return r.generator.Uint64()
}

// TookMaxRowid reports, and forgets, that a row took rowid 2^63-1: behind it
// SQLite chooses rowids by randomness that cannot be replicated, so the
// operation must fail.
func (c *Conn) TookMaxRowid() bool {
	took := c.op.maxRowid
	c.op.maxRowid = false
	return took
}

// ResetSteps forgets the steps that this statement's earlier runs made: the
// bound must not depend on what a replica has cached.
func (s *Stmt) ResetSteps() {
	lib.Xsqlite3_stmt_status(s.c.tls, s.p, lib.SQLITE_STMTSTATUS_VM_STEP, 1)
}

// ResetAllSteps does so for all statements of the connection, those that
// virtual tables keep for themselves included.
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
	lib.Xsqlite3_wal_hook(c.tls, c.db, callback(committed), 0) // in place of SQLite's own checkpoints
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

// progress runs every stepsPerCheck steps; a result other than 0 interrupts.
// The replica's own SQL is not the operation's, and neither is preparing a
// statement: one replica may have it prepared, or the schema loaded, already.
func progress(tls *libc.TLS, _ uintptr) int32 {
	c := connOf(tls)
	if c == nil || c.own {
		return 0
	}
	if c.stop.asked() {
		return 1
	}
	if c.preparing || c.stop.unbounded || c.mode == ReadOnly || c.mode == Temp {
		return 0
	}
	if c.op.checks > 1 {
		c.op.checks--
		return 0
	}
	return 1
}

// maxNested bounds the statements that run within one another: those of virtual
// tables within the ones that use them.
const maxNested = 100

// begins is called when a statement, or a part of one, begins. FTS5 writes what
// it holds back when a savepoint begins. If somebody makes an index on one of its
// own tables, or a foreign key to it, that write begins a savepoint itself, and so
// on until the stack, and with it the process, ends.
func begins(tls *libc.TLS, _ uint32, _, _, _ uintptr) int32 {
	if c := connOf(tls); c != nil && c.struct3().FnVdbeExec > maxNested {
		lib.Xsqlite3_interrupt(tls, c.db)
	}
	return 0
}

// A stop ends statements of a transaction: unlike Interrupt it is not forgotten when it comes before a statement's first step.
type stop struct {
	ctx       context.Context // of the running statement; nil: none
	unbounded bool            // the running statement only reads, no replica will repeat it
	always    atomic.Bool
}

func (s *stop) asked() bool { return s.always.Load() || s.ctx != nil && s.ctx.Err() != nil }

// Run tells of the next statement when to give it up, and whether it only reads:
// then it may take any number of steps.
func (c *Conn) Run(ctx context.Context, reads bool) {
	c.stop.ctx, c.stop.unbounded = ctx, reads
	if ctx != nil && ctx.Done() == nil {
		c.stop.ctx = nil
	}
}

// Stop ends the statement that runs, and all later ones until it is taken back.
// It may be called beside everything.
func (c *Conn) Stop(on bool) {
	c.stop.always.Store(on)
	if on {
		c.Interrupt()
	}
}

// watchRows has updated told of each row that is written, with what it needs of
// the connection: the statement that runs (see Count), the row, the handle.
func (c *Conn) watchRows() {
	*at[uintptr](c.scratch + 24), *at[int64](c.scratch + 32), *at[uintptr](c.scratch + 40) = 0, 0, c.db
	lib.Xsqlite3_update_hook(c.tls, c.db, callback(updated), c.scratch)
}

// updated is told of each row that is written, in the order in which they are.
// The rows of the statement that runs are told from those of its triggers, which
// are frames of its program, and of virtual tables, which run other statements.
func updated(tls *libc.TLS, scratch uintptr, action int32, _, _ uintptr, rowid int64) {
	if s := *at[uintptr](scratch + 24); s != 0 && action != lib.SQLITE_DELETE &&
		at[lib.TVdbe](s).FnFrame == 0 && at[lib.Tsqlite3](*at[uintptr](scratch + 40)).FnVdbeExec == 1 {
		*at[int64](scratch + 32) = rowid
	}
	if rowid == math.MaxInt64 {
		connOf(tls).op.maxRowid = true
	}
}

func committed(tls *libc.TLS, _, _, _ uintptr, frames int32) int32 {
	connOf(tls).frames = int(frames)
	return lib.SQLITE_OK
}

// WALFrames returns how many pages, mostly of 4096 bytes, the write-ahead log
// held after the last commit. It counts from the log's start again once all of
// it has been checkpointed.
func (c *Conn) WALFrames() int { return c.frames }

// OutOfSteps reports that the operation was ended by its bound.
func (c *Conn) OutOfSteps() bool { return c.op.checks <= 1 }

// currentTime is the operation's for the connections that replicate, and this
// machine's for the others.
func currentTime(tls *libc.TLS, vfs, now uintptr) int32 {
	c := connOf(tls)
	if c == nil || !c.replicates() {
		return callee[func(*libc.TLS, uintptr, uintptr) int32](vfsBase.FxCurrentTimeInt64)(tls, vfs, now)
	}
	*at[int64](now) = c.op.now
	return lib.SQLITE_OK
}

// ShowZone makes 'localtime' and 'utc' mean the zone to which this points; nil:
// UTC. It may change beside the connection.
func (c *Conn) ShowZone(zone *atomic.Pointer[wire.Zone]) { c.zone = zone }

// localtime fills a C struct tm, as localtime_r, in the cluster's zone. What is
// none of ours, such as another driver in this process, has the process's.
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
	*at[int64](c.scratch + 48) = seconds + zone.At(seconds)
	if libc.Xgmtime_r(tls, c.scratch+48, tm) == 0 {
		return 1
	}
	return 0
}
