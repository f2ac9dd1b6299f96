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
	// maxIdleReaders is how many connections are kept open for the next reads
	// (with 16, 64 goroutines opened new ones all the time: 7 us a read, not 3);
	// each may hold up to 2 MB of pages.
	maxIdleReaders = 64
	// maxReaderPrograms bounds the prepared statements of a reader.
	maxReaderPrograms = 128
	// readerWait bounds the wait for one of the readers.
	readerWait = 30 * time.Second
)

// ErrReplicaClosed is returned by reads of a replica that is not open.
var ErrReplicaClosed = errors.New("hiqlite: the replica is closed")

// A pool holds connections that read. They are lent for one query each, so that
// no read transaction outlives it.
type pool struct {
	max       int
	functions *sqlite.Functions
	zone      *atomic.Pointer[wire.Zone]
	wait      time.Duration // for one of the readers

	mu     sync.Mutex
	file   string // of the generation in use; "" while closed
	epoch  uint64 // raised when idle connections must not be used again
	idle   []*Reader
	active map[*Reader]bool
	freed  chan struct{} // closed when a reader comes back, if somebody waits
	gate   chan struct{} // not nil while readers are held back
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
	conn.ShowZone(p.zone)
	return conn, nil
}

// A Reader is a connection that reads, lent from the pool.
type Reader struct {
	pool     *pool
	epoch    uint64 // of the pool when conn was opened; 0: not to be lent again
	file     string // which conn has open
	programs *programs
	settings wire.Settings
	verify   *sqlite.Stmt // see prepare
	state    [3]int64     // as SetState was told
	hasState bool

	since atomic.Int64 // when the running query began, since the process did; 0: none runs

	step  sync.Mutex // held while the query steps; locked before mu
	mu    sync.Mutex // guards conn and query for other goroutines
	conn  *sqlite.Conn
	query *Query       // the one that runs: who ends it must not hit the next
	tx    *Transaction // that reads here
}

// use makes the pool open the database at path from now on.
func (p *pool) use(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.file = path
	p.renew()
}

// refresh makes new connections of all: they load schema and statistics anew.
func (p *pool) refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renew()
}

func (p *pool) renew() {
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

// Acquire lends a reader of the rows that have been applied. It waits while the
// most that may read at a time do.
func (r *SQL) Acquire(ctx context.Context) (*Reader, error) { return r.AcquireUnder(ctx, 0) }

// AcquireUnder is Acquire for a connection of these settings.
func (r *SQL) AcquireUnder(ctx context.Context, settings wire.Settings) (*Reader, error) {
	if err := r.Err(); err != nil {
		return nil, err
	}
	reader, err := r.pool.acquire(ctx, settings)
	if err != nil {
		return nil, err
	}
	reader.settings = settings
	if err := reader.programs.use(settings); err != nil {
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
			r, err := p.take(settings)
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

func (p *pool) take(settings wire.Settings) (*Reader, error) {
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

// open opens the database at file. The pool is locked: file is the generation
// in use until the connection has it, and its write-ahead log, open.
func (r *Reader) open(file string, epoch uint64) error {
	conn, err := r.pool.connect(file, sqlite.ReadOnly)
	if err != nil {
		return err
	}
	// SQLite opens the write-ahead log with the first read. Should a snapshot
	// take over before, the log's name would be gone, and the database without
	// it an old one.
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
		conn.SetState(r.state[0], r.state[1], r.state[2])
	}
	if err := conn.SetSettings(r.settings); err != nil {
		conn.Close()
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.file, r.epoch, r.programs, r.verify = conn, file, epoch, newPrograms(conn), verify
	return nil
}

// current returns the connection, to the generation in use: a reader that was
// lent before a snapshot took over must not answer from what it replaced.
func (r *Reader) current() (*sqlite.Conn, error) {
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

// Release gives the reader back.
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
	if len(r.programs.byText) > maxReaderPrograms {
		r.programs.evict()
	}
	p.idle = append(p.idle, r)
}

// Discard makes Release close the reader instead of lending it again.
func (r *Reader) Discard() { r.epoch = 0 }

func (r *Reader) close() {
	r.programs.clear()
	r.verify.Close()
	r.conn.Close()
}

// close ends all reads and closes the connections that are not lent.
func (p *pool) close() {
	p.mu.Lock()
	p.file = ""
	p.renew()
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

// quiesce holds new reads back for the time of f, if those that run end within
// wait, and reports whether it called f.
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

// endOldest ends the query, or the transaction that only reads, that has run
// longest, if it runs for longer than patience.
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
	r.conn.Interrupt() // a step that runs now
	r.mu.Unlock()
	r.step.Lock() // until it has
	defer r.step.Unlock()
	if q.stmt != nil {
		q.stmt.Reset()
	}
	return true
}

// reason returns the error that the query was ended with.
func (q *Query) reason() error {
	q.r.mu.Lock()
	defer q.r.mu.Unlock()
	return q.ended
}

// SetState sets what changes(), total_changes() and last_insert_rowid() answer
// on this reader.
func (r *Reader) SetState(changes, total, lastInsertID int64) {
	r.state, r.hasState = [3]int64{changes, total, lastInsertID}, true
	r.conn.SetState(changes, total, lastInsertID)
}

// Interrupt makes the running query fail. It may be called beside everything.
func (r *Reader) Interrupt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn.Interrupt()
}

var processStart = time.Now()

// A Query is a statement that runs on a reader.
type Query struct {
	r     *Reader
	stmt  *sqlite.Stmt
	kept  *program // by the reader; nil: closed with the query
	ended error
}

// Query binds args to the first statement of sql and returns the text behind
// it. The query is nil if there was no statement. One query runs at a time.
func (r *Reader) Query(sql string, args []wire.Argument) (q *Query, tail string, err error) {
	conn, err := r.current()
	if err != nil {
		return nil, "", err
	}
	q = &Query{r: r}
	if kept := r.programs.get(sql); kept != nil {
		q.stmt, q.kept = kept.Stmt, kept
	} else {
		stmt, rest, err := r.prepare(conn, sql)
		if err != nil || stmt == nil {
			return nil, rest, err
		}
		if stmt.KnowsSchema() && sqlite.Blank(rest) {
			q.kept = r.programs.keep(sql, stmt)
		} else {
			tail = rest
		}
		q.stmt = stmt
	}
	if err := q.stmt.Bind(args, nil); err != nil {
		q.Close()
		return nil, tail, err
	}
	r.since.Store(int64(time.Since(processStart)))
	r.mu.Lock()
	r.query = q
	r.mu.Unlock()
	return q, tail, nil
}

// verifySchema makes the connection that runs it load the schema anew if that has
// changed since it was last loaded. It returns nothing.
const verifySchema = "SELECT 1 FROM main." + sqlite.MetaTable + " WHERE 0"

// prepare prepares the first statement of sql, to the schema of the rows that
// have been applied. SQLite compares the schema that a connection remembers with
// the database's only when a statement runs, and, while one is prepared, when a
// name is missing: what it remembers otherwise makes errors of statements that
// are right, and answers of PRAGMAs that are wrong.
func (r *Reader) prepare(conn *sqlite.Conn, sql string) (*sqlite.Stmt, string, error) {
	if err := r.verify.Run(); err != nil {
		return nil, "", err
	}
	return conn.Prepare(sql, true)
}

// Columns returns the query's columns; before the first Next they may be those
// of an earlier schema.
func (q *Query) Columns() []wire.Column { return q.stmt.Columns() }

// Next steps to the next row, if there is one, and calls row with the statement
// to read it.
func (q *Query) Next(row func(*sqlite.Stmt)) (bool, error) {
	q.r.step.Lock()
	defer q.r.step.Unlock()
	if err := q.reason(); err != nil {
		return false, err
	}
	more, err := q.stmt.Step()
	if err != nil {
		q.forget()
		if reason := q.reason(); reason != nil {
			err = reason
		}
		return false, err
	}
	if more && row != nil {
		row(q.stmt)
	}
	return more, nil
}

// Close ends the query. The reader may run another.
func (q *Query) Close() {
	q.r.step.Lock()
	defer q.r.step.Unlock()
	if q.stmt == nil {
		return
	}
	q.r.mu.Lock()
	if q.r.query == q {
		q.r.query = nil
		q.r.since.Store(0)
	}
	q.r.mu.Unlock()
	if q.kept == nil {
		q.stmt.Close()
	} else {
		q.stmt.Reset()
	}
	q.stmt = nil
}

// forget makes the reader prepare the text of a query that has failed anew, the
// next time. If SQLite itself could not prepare it anew, to a newer schema, it
// would try that again, to the schema that it remembers by then.
func (q *Query) forget() {
	if q.kept != nil {
		q.r.programs.remove(q.kept)
		q.kept = nil
	}
}
