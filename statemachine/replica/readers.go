package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

const (
	// maxIdleReaders is how many idle connections are kept open for the next
	// queries; each may hold up to 2 MB of pages. (With 16 of them, 64 goroutines
	// opened new ones all the time, and a query took 7 us instead of 3.)
	maxIdleReaders = 64
	// maxReaderStmts bounds the prepared statements of a reader.
	maxReaderStmts = 128
	// readerWait bounds the wait for a reader while all are lent.
	readerWait = 30 * time.Second
)

// ErrReplicaClosed is returned by reads of a replica that is not open.
var ErrReplicaClosed = errors.New("hiqlite: the replica is closed")

// A pool has the readers. Each is lent for one query, so no read transaction is longer
// than its query.
type pool struct {
	max       int
	functions *sqlite.Functions
	zone      *atomic.Pointer[wire.Zone]
	wait      time.Duration // bounds the wait for a reader

	mu     sync.Mutex
	file   string // the database of the generation in use; "": the pool is closed
	epoch  uint64 // increased when connections must not be lent again
	idle   []*Reader
	active map[*Reader]bool
	freed  chan struct{} // closed when a reader is released; nil: nobody waits
	gate   chan struct{} // not nil: no reader is lent until it is closed
}

func newPool(max int, functions *sqlite.Functions, zone *atomic.Pointer[wire.Zone]) *pool {
	return &pool{max: max, functions: functions, zone: zone, wait: readerWait, active: map[*Reader]bool{}}
}

// connect opens a connection that knows the program's functions and the
// cluster's zone.
func (p *pool) connect(file string, mode sqlite.Mode) (*sqlite.Conn, error) {
	conn, err := sqlite.Open(file, mode)
	if err != nil {
		return nil, err
	}
	if err := conn.Define(p.functions); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetZone(p.zone)
	return conn, nil
}

// A Reader is a SQLite connection that only reads, lent from the pool.
type Reader struct {
	pool     *pool
	epoch    uint64 // of the pool when conn was opened; 0: conn must not be lent again
	file     string // which conn has open
	stmts    *stmtCache
	settings wire.Settings
	verify   *sqlite.Stmt   // see prepare
	state    wire.ConnState // as set by SetState
	hasState bool           // SetState was called

	since atomic.Int64 // when the running query began, as time since the process started; 0: none runs

	step  sync.Mutex // held while the query steps; locked before mu
	mu    sync.Mutex // guards conn and query for other goroutines
	conn  *sqlite.Conn
	query *Query       // the running query: end must not interrupt the next one
	tx    *Transaction // the transaction that reads with it, or nil
}

// switchFile makes path the database of readers that are lent from now on.
func (p *pool) switchFile(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.file = path
	p.retireAll()
}

// refresh replaces all connections, since new ones load the schema and the statistics
// again.
func (p *pool) refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retireAll()
}

// retireAll closes the idle readers, and has Release close those that are lent. The caller
// holds mu.
func (p *pool) retireAll() {
	p.epoch++
	for _, r := range p.idle {
		r.close()
	}
	p.idle = p.idle[:0]
}

func (p *pool) path() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file
}

// Acquire lends a reader of the rows that have been applied. It waits while all readers
// are lent.
func (r *SQL) Acquire(ctx context.Context) (*Reader, error) { return r.AcquireUnder(ctx, 0) }

// AcquireUnder is Acquire for a reader with these settings.
func (r *SQL) AcquireUnder(ctx context.Context, settings wire.Settings) (*Reader, error) {
	if err := r.Err(); err != nil {
		return nil, err
	}
	reader, err := r.pool.acquire(ctx, settings)
	if err != nil {
		return nil, err
	}
	reader.settings = settings
	if err := reader.stmts.switchSettings(settings); err != nil {
		reader.Discard()
		reader.Release()
		return nil, err
	}
	return reader, nil
}

func (p *pool) acquire(ctx context.Context, settings wire.Settings) (*Reader, error) {
	var deadline <-chan time.Time
	for {
		p.mu.Lock()
		if p.file == "" {
			p.mu.Unlock()
			return nil, ErrReplicaClosed
		}
		wait := p.gate
		if wait == nil && len(p.active) < p.max {
			r, err := p.lendReader(settings)
			p.mu.Unlock()
			return r, err
		}
		if wait == nil {
			if p.freed == nil {
				p.freed = make(chan struct{})
			}
			wait = p.freed
		}
		p.mu.Unlock()
		if deadline == nil {
			timer := time.NewTimer(p.wait)
			defer timer.Stop()
			deadline = timer.C
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline:
			return nil, sqlite.Busy(fmt.Sprintf("%d queries have been open for %v; close their rows", p.max, p.wait))
		}
	}
}

// lendReader lends an idle reader, preferably one with these settings, or a new one. The
// caller holds mu, and has checked that not all readers are lent.
func (p *pool) lendReader(settings wire.Settings) (*Reader, error) {
	var r *Reader
	if n := len(p.idle) - 1; n >= 0 {
		i := n
		for i > 0 && p.idle[i].settings != settings {
			i--
		}
		if p.idle[i].settings != settings {
			i = n
		}
		r = p.idle[i]
		p.idle = slices.Delete(p.idle, i, i+1)
	} else {
		r = &Reader{pool: p}
		if err := r.open(p.file, p.epoch); err != nil {
			return nil, err
		}
	}
	p.active[r] = true
	return r, nil
}

// open opens the database at file. The caller has locked the pool, so file stays the
// generation in use until the connection has opened it and its write-ahead log.
func (r *Reader) open(file string, epoch uint64) error {
	conn, err := r.pool.connect(file, sqlite.ReadOnly)
	if err != nil {
		return err
	}
	// SQLite opens the write-ahead log with the first read. If a snapshot replaced
	// the generation before that, the log would be deleted, and the connection would
	// show the old rows of the database file alone.
	if err := conn.Exec("PRAGMA user_version"); err != nil {
		conn.Close()
		return err
	}
	verify, _, err := conn.Prepare(verifySchema, true)
	if err != nil {
		conn.Close()
		return err
	}
	if r.hasState {
		conn.SetState(r.state.Changes, r.state.TotalChanges, r.state.LastInsertID)
	}
	if err := conn.SetSettings(r.settings); err != nil {
		conn.Close()
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.file, r.epoch, r.stmts, r.verify = conn, file, epoch, newStmtCache(conn), verify
	return nil
}

// currentConn returns the connection to the generation in use. A reader that was lent before
// a snapshot replaced the generation must not return rows of the old one.
func (r *Reader) currentConn() (*sqlite.Conn, error) {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == "" {
		return nil, ErrReplicaClosed
	}
	if p.file == r.file {
		return r.conn, nil
	}
	epoch := p.epoch
	if r.epoch == 0 {
		epoch = 0
	}
	r.close()
	r.file = ""
	if err := r.open(p.file, epoch); err != nil {
		return nil, err
	}
	return r.conn, nil
}

// Release returns the reader to the pool.
func (r *Reader) Release() {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.active, r)
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
	if r.epoch != p.epoch || len(p.idle) >= maxIdleReaders {
		r.close()
		return
	}
	if len(r.stmts.byText) > maxReaderStmts {
		r.stmts.evict()
	}
	p.idle = append(p.idle, r)
}

// Discard makes Release close the reader instead of lending it again.
func (r *Reader) Discard() { r.epoch = 0 }

func (r *Reader) close() {
	r.stmts.clear()
	r.verify.Close()
	r.conn.Close()
}

// close ends all queries and closes the idle connections.
func (p *pool) close() {
	p.mu.Lock()
	p.file = ""
	p.retireAll()
	active := make([]*Reader, 0, len(p.active))
	for r := range p.active {
		active = append(active, r)
	}
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
	p.mu.Unlock()
	for _, r := range active {
		r.mu.Lock()
		q, tx := r.query, r.tx
		r.mu.Unlock()
		if q != nil {
			q.end(ErrReplicaClosed)
		}
		if tx != nil {
			tx.End(ErrReplicaClosed)
		}
	}
}

// quiesce lends no readers until those that are lent have been released, and then calls
// f. If that takes longer than wait, it does not call f and returns false.
func (p *pool) quiesce(wait time.Duration, f func()) bool {
	gate := make(chan struct{})
	p.mu.Lock()
	p.gate = gate
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.gate = nil
		p.mu.Unlock()
		close(gate)
	}()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		p.mu.Lock()
		n := len(p.active)
		if n > 0 && p.freed == nil {
			p.freed = make(chan struct{})
		}
		freed := p.freed
		p.mu.Unlock()
		if n == 0 {
			f()
			return true
		}
		select {
		case <-freed:
		case <-timer.C:
			return false
		}
	}
}

// endOldest ends the query, or the read-only transaction, that has run for longest, if
// that is longer than patience.
func (p *pool) endOldest(patience time.Duration, reason error) bool {
	var oldest *Query
	var tx *Transaction
	began := int64(time.Since(processStart) - patience)
	p.mu.Lock()
	for r := range p.active {
		r.mu.Lock()
		if since := r.since.Load(); (r.query != nil || r.tx != nil) && since < began {
			oldest, tx, began = r.query, r.tx, since
		}
		r.mu.Unlock()
	}
	p.mu.Unlock()
	if tx != nil {
		tx.End(reason)
		return true
	}
	return oldest != nil && oldest.end(reason)
}

// end ends the query with an error, if it still runs.
func (q *Query) end(reason error) bool {
	r := q.r
	r.mu.Lock()
	if r.query != q || q.ended != nil {
		r.mu.Unlock()
		return false
	}
	q.ended = reason
	r.conn.Interrupt() // in case a step runs
	r.mu.Unlock()
	r.step.Lock() // wait until the step has returned
	defer r.step.Unlock()
	if q.stmt != nil {
		q.stmt.Reset()
	}
	return true
}

// reason returns the error with which the query was ended, or nil.
func (q *Query) reason() error {
	q.r.mu.Lock()
	defer q.r.mu.Unlock()
	return q.ended
}

// SetState sets the values of changes(), total_changes() and last_insert_rowid() for
// this reader.
func (r *Reader) SetState(s wire.ConnState) {
	r.state, r.hasState = s, true
	r.conn.SetState(s.Changes, s.TotalChanges, s.LastInsertID)
}

// Interrupt makes the running query fail. Any goroutine may call it at any time.
func (r *Reader) Interrupt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn.Interrupt()
}

var processStart = time.Now()
