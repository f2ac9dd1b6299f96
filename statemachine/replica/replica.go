// Package replica holds the SQL machine: it applies the log of the SQL shard to SQLite,
// and lends connections that read. It keeps the promises of package statemachine, and
// these:
//
//   - An entry is applied once, in the order of the log. Its rows and its index are
//     committed in one SQLite transaction.
//   - While a session holds the write lease, no other session's operation changes rows
//     (see leaseQueue).
//   - What this replica has cached (prepared statements, the schema, how entries were
//     grouped into transactions) never changes what an operation does.
//   - A file that is damaged, lost or older than it was is found at Open or at the first
//     read of the damaged page, and stops the replica with ErrDamaged.
//   - A snapshot of another node becomes a new generation. Queries that run finish on the
//     old one. No file is renamed over a database in use.
package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// A Listener is notified of the entries that the SQL shard has applied.
type Listener = statemachine.Listener[wire.Result]

// A LeaseListener is notified of changes of the write lease and of its queue. The apply
// goroutine calls its methods; they must not block.
type LeaseListener interface {
	// Settled is called when an operation leaves the queue for the write lease:
	// with its result, or with the lease.
	Settled(session, id uint64, result wire.Result)
	// Wanted is called, at least with each clock advance, while somebody waits
	// for a lease.
	Wanted(lease wire.HeldLease)
	// Recovered is called after the replica was replaced by a snapshot, which
	// does not say what became of the entries that it includes. waits reports
	// whether an operation is still in the queue.
	Recovered(lease wire.HeldLease, waits func(id uint64) bool)
}

// Config of a SQL replica.
type Config struct {
	Dir        string // the folder of the machine; created if missing
	SyncedFile string // outside of Dir; it says up to which entry the database was synced
	Listener   Listener
	Leases     LeaseListener
	Logger     *slog.Logger // nil: slog.Default()

	// MaxReaders bounds the readers that are lent at the same time; 0: 256.
	MaxReaders int
	// Term returns the term of an entry that is being applied, as the Raft log has
	// it, or 0 if it is not known. If Term is nil, no term is known.
	Term func(index uint64) uint64
	// WALLimit is the size, in bytes, of SQLite's write-ahead log beyond which the
	// oldest query is ended with an error, since the log cannot be reused while a
	// query needs it; 0: 1 GiB.
	WALLimit int64
	// Functions are the SQL functions of the program; nil: none.
	Functions *sqlite.Functions
	// SessionTTL is how long, in milliseconds of the shard's clock, an unused
	// session is kept; 0: one hour. All replicas must agree on it.
	SessionTTL uint64
}

// SQL is the SQL machine, an on-disk state machine of Dragonboat. From Open on any
// goroutine may acquire readers.
type SQL struct {
	cfg     Config
	log     *slog.Logger
	pool    *pool
	storage storage

	classifier classifier

	mu               sync.Mutex // serializes apply with checkpoints; guards what follows
	conn             *sqlite.Conn
	stmts            *stmtCache
	meta             metaStatements
	batch            batch
	sessions         statemachine.Sessions[wire.Result]
	now              uint64
	lastAdvanceNonce uint64 // nonce of the last clock advance since the start; 0: none
	applied          uint64 // index of the last entry applied; sqlIndex <= applied <= commit index
	history          appliedHistory
	term             termOf
	sqlIndex         uint64 // index of the last entry whose rows and meta rows SQLite has committed
	index            uint64 // of the entry being applied; between Updates equal to applied
	changed          uint64 // index of the last entry that may have changed rows; at most index
	lease            leaseQueue
	functions        []wire.Function           // which the schema needs
	zone             atomic.Pointer[wire.Zone] // of the cluster; nil: UTC
	pinned           map[*pinnedSnapshot]bool
	watched          string // path of the database whose damage stops the replica

	hasVirtual, virtualKnown bool // the database has virtual tables
	settingsLoaded           bool // see loadSettings

	publishedIndex   atomic.Uint64                  // applied, for other goroutines
	publishedHistory atomic.Pointer[appliedEntries] // history, for other goroutines
	clock            statemachine.PublishedClock
	holder           atomic.Uint64 // id of the lease, for other goroutines; 0: nobody holds it
	holderNode       atomic.Uint64 // node that holds it; 0: none, or unknown
	holderIdle       atomic.Bool   // the lease is idle
	logBytes         atomic.Uint64

	checkpoints checkpointer
	scrubber    scrubber
	speculative speculativePool
	temporaries temporaries

	compacting atomic.Bool
	followers  statemachine.Followers

	failure *statemachine.Failure
}

// New returns a machine that is not open yet. It touches no file before Open.
func New(cfg Config) *SQL {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxReaders == 0 {
		cfg.MaxReaders = 256
	}
	if cfg.WALLimit == 0 {
		cfg.WALLimit = 1 << 30
	}
	if cfg.SessionTTL == 0 {
		cfg.SessionTTL = statemachine.DefaultSessionTTL
	}
	r := &SQL{
		cfg:     cfg,
		log:     cfg.Logger,
		storage: storage{dir: cfg.Dir, syncedFile: cfg.SyncedFile},
		pinned:  map[*pinnedSnapshot]bool{},
	}
	r.lease.host = leaseHostOfSQL{r}
	r.failure = statemachine.NewFailure(func(err error) { r.cfg.Listener.Failed(err) })
	r.pool = newPool(cfg.MaxReaders, cfg.Functions, &r.zone)
	return r
}

var _ sm.IOnDiskStateMachine = (*SQL)(nil)

// Open opens the machine's files and returns the index of the last entry that they
// hold. If the machine is open already, it only returns the index: Dragonboat ends the
// process when Open fails, so the node calls Open first and then passes the open machine
// to Dragonboat.
func (r *SQL) Open(<-chan struct{}) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		return r.applied, nil
	}
	path, err := r.storage.open()
	if err != nil {
		return 0, err
	}
	asClosed, err := r.storage.asClosed()
	if err != nil {
		return 0, err
	}
	if err := r.switchDatabase(path); err != nil {
		return 0, err
	}
	if err = r.storage.checkSynced(r.applied); err == nil {
		err = r.storage.opened()
	}
	if err != nil {
		r.pool.close()
		r.closeConn()
		return 0, err
	}
	r.checkpoints.start(r)
	if !asClosed {
		r.scrubber.scrub(r, path)
	}
	return r.applied, nil
}

// switchDatabase makes the database at path that of the machine, and loads its state.
func (r *SQL) switchDatabase(path string) error {
	if err := r.connect(path); err != nil {
		return err
	}
	inSQLite, err := r.meta.load()
	state := inSQLite
	if err == nil {
		state, err = r.storage.newerState(inSQLite)
	}
	if err == nil {
		err = r.storage.checkCopied(inSQLite.SQLIndex)
	}
	if err != nil {
		r.closeConn()
		return damaged(err)
	}
	r.sqlIndex = state.SQLIndex
	r.applied = state.Applied
	r.term = termOf{state.Applied, state.Term}
	r.history.begin(state.Applied, state.History)
	r.now = state.Clock
	r.changed = state.Changed
	r.sessions.Load(state.Sessions)
	markUnsaved(&r.sessions, inSQLite.Sessions)
	r.lease.load(state, inSQLite)
	r.zone.Store(state.Zone)
	r.functions = state.Functions
	if err := r.checkFunctions(r.functions); err != nil {
		r.closeConn()
		return err
	}
	r.publishHolder()
	r.publish()
	r.pool.switchFile(path)
	r.watch(path)
	return nil
}

// watch stops the replica when any connection finds that the database at path is
// damaged, since results and snapshots could be wrong from then on.
func (r *SQL) watch(path string) {
	if r.watched != "" && r.watched != path {
		sqlite.Unwatch(r.watched)
	}
	r.watched = path
	sqlite.Watch(path, func(err error) {
		err = damaged(err)
		r.failure.Mark(err)
		go r.failure.Fail(err)
	})
}

// connect opens the apply connection. It closes the former one.
func (r *SQL) connect(path string) error {
	r.closeConn()
	conn, err := r.pool.connect(path, sqlite.Apply)
	if err != nil {
		return damaged(fmt.Errorf("hiqlite: open %s: %w", path, err))
	}
	defer conn.AsOwner(true)()
	// With synchronous=NORMAL a power loss may remove the end of the write-ahead
	// log; the Raft log has these entries. Temporary files are in memory, since a
	// disk that they fill would look like a failing statement.
	err = conn.Exec("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA temp_store=MEMORY")
	if err == nil {
		err = conn.MakeMetaTable()
	}
	if err != nil {
		conn.Close()
		return damaged(fmt.Errorf("hiqlite: prepare %s: %w", path, err))
	}
	if err := conn.CheckSize(); err != nil {
		conn.Close()
		return damaged(fmt.Errorf("hiqlite: %s: %w", path, err))
	}
	r.conn = conn
	r.stmts = newStmtCache(conn)
	r.meta = metaStatements{conn: conn}
	r.virtualKnown = false
	return nil
}

// damaged wraps an error by which SQLite reports a broken file in ErrDamaged.
func damaged(err error) error {
	var e *sqlite.Error
	var f *sqlite.FileError
	if (errors.As(err, &e) && sqlite.IsCorrupt(e) || errors.As(err, &f) && f.Damaged) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// publish lets other goroutines see the applied index, the history and the clock.
func (r *SQL) publish() {
	r.publishedHistory.Store(&appliedEntries{r.history.index, r.history.sum})
	r.publishedIndex.Store(r.applied)
	r.followers.Wake()
	c := statemachine.Clock{Now: r.now, Nonce: r.lastAdvanceNonce, Runs: true}
	switch {
	case len(r.lease.waiters) > 0:
	case r.sessions.Len() > 0:
		c.Wait = statemachine.MaxAdvanceInterval
	default:
		c.Runs, c.Wait = false, statemachine.MaxAdvanceInterval
	}
	r.clock.Publish(c)
}

// Clock returns the state of the shard's clock.
func (r *SQL) Clock() statemachine.Clock { return r.clock.Clock() }

// Err returns why the replica stopped, or nil.
func (r *SQL) Err() error { return r.failure.Err() }

// Fail stops the replica because this machine cannot continue, and returns when the
// replica has been stopped.
func (r *SQL) Fail(err error) { r.failure.Fail(err) }

// WaitApplied returns once reads on this replica see the entry at index. The
// error is that of ctx, or why the replica stopped.
func (r *SQL) WaitApplied(ctx context.Context, index uint64) error {
	return r.followers.Wait(ctx, &r.publishedIndex, index, r.failure)
}

// Applied returns the applied index: that of the last entry that reads can see.
func (r *SQL) Applied() uint64 { return r.publishedIndex.Load() }

// A termOf is the term of an entry; term 0 means that it is not known.
type termOf struct{ index, term uint64 }

// appliedTerm returns the term of the last entry applied; 0: unknown.
func (r *SQL) appliedTerm() uint64 {
	if r.term.index != r.applied {
		r.term = termOf{index: r.applied}
		if r.cfg.Term != nil {
			r.term.term = r.cfg.Term(r.applied)
		}
	}
	return r.term.term
}

// AppliedTerm returns the term that the last entry had when it was applied; 0: unknown.
// No entry may be being applied.
func (r *SQL) AppliedTerm() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.appliedTerm()
}

// History returns the index of the last entry that reads can see, and a checksum
// over all entries up to there.
func (r *SQL) History() (index, sum uint64) {
	shown := r.publishedHistory.Load()
	return shown.index, shown.sum
}

// LogBytes returns how many bytes of entries this machine has applied since it was
// opened. The node compacts the log by this number.
func (r *SQL) LogBytes() uint64 { return r.logBytes.Load() }

// Size returns the bytes of the database file and of its write-ahead log.
func (r *SQL) Size() (database, wal int64) {
	path := r.pool.path()
	return fileSize(path), fileSize(path + "-wal")
}

// Update applies a batch of entries.
func (r *SQL) Update(entries []sm.Entry) ([]sm.Entry, error) {
	if r.failure.StoppedAfterFailure() {
		return entries, nil
	}
	r.mu.Lock()
	err := r.apply(entries)
	if err != nil {
		if said := r.conn.FileError(); said != nil && !errors.Is(err, said) {
			err = fmt.Errorf("%w: %w", said, err)
		}
		err = damaged(err)
		r.failure.Mark(err) // before mu is released: no reader may see a partly applied entry
	}
	r.mu.Unlock()
	if err != nil {
		r.failure.Fail(err)
		return entries, nil
	}
	r.batch.deliver(r.cfg.Listener, r.cfg.Leases)
	return entries, nil
}

// Lookup fails: readers come from Acquire.
func (r *SQL) Lookup(any) (any, error) {
	return nil, errors.New("hiqlite: the SQL replica is not read through Lookup")
}

// Sync makes everything that has been applied durable. After a failure, Dragonboat must
// not compact the log as if Sync had succeeded, so during a compaction Sync returns an
// error that aborts it. At other times an error would end the process, and nothing
// follows from the Sync; so it returns nil.
func (r *SQL) Sync() error {
	if r.failure.Err() == nil {
		r.mu.Lock()
		err := r.storage.sync(r.state())
		r.mu.Unlock()
		if err == nil {
			return nil
		}
		r.failure.Fail(err)
	}
	if r.compacting.Load() {
		return sm.ErrSnapshotAborted
	}
	return nil
}

// Compacting announces a compaction of the log, until the returned function is called.
// If the replica fails in the meantime the announcement stays in force, because
// Dragonboat may still be compacting.
func (r *SQL) Compacting() (done func()) {
	r.compacting.Store(true)
	return func() {
		if r.failure.Err() == nil {
			r.compacting.Store(false)
		}
	}
}

// state returns the state that the machine keeps in memory.
func (r *SQL) state() *wire.State {
	s := &wire.State{SQLIndex: r.sqlIndex, Applied: r.applied, Clock: r.now, Changed: r.changed, Sessions: r.sessions.All(), Waiters: r.lease.waiters, Functions: r.functions,
		Term: r.appliedTerm(), History: r.history.sum, Zone: r.zone.Load()}
	r.lease.describe(s)
	return s
}

// Close closes the machine's files. Entries that were not synced are applied again after
// the next start.
func (r *SQL) Close() error {
	r.checkpoints.stop()
	r.scrubber.stop()
	r.speculative.close() // from here on no transaction begins to write
	r.endTransactions(ErrReplicaClosed)
	r.temporaries.close()
	r.pool.close()
	r.classifier.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unpin() // prepared snapshots will not be written any more
	if r.conn == nil {
		return nil
	}
	r.closeConn()
	sqlite.Unwatch(r.watched)
	r.watched = ""
	if r.failure.Err() != nil {
		return nil
	}
	if err := r.storage.closed(); err != nil { // the only consequence: after the next start the scrubber reads all pages
		r.log.Warn("hiqlite: closing the database", "error", err)
	}
	return nil
}

func (r *SQL) closeConn() {
	if r.conn == nil {
		return
	}
	r.stmts.clear()
	r.meta.close()
	if err := r.conn.Close(); err != nil {
		r.log.Warn("hiqlite: closing the database", "error", err)
	}
	r.conn = nil
}

var _ io.Closer = (*SQL)(nil)
