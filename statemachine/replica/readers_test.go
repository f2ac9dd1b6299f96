package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
)

const forever = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x) SELECT n FROM x"

func TestReadersAreBounded(t *testing.T) {
	m := newMachine(t)
	m.pool.max, m.pool.wait = 2, time.Millisecond
	a, _, _ := m.read("SELECT 1")
	b, _, _ := m.read("SELECT 1")
	var e *sqlite.Error
	if _, err := m.Acquire(context.Background()); !errors.As(err, &e) || e.Code != sqlite.CodeBusy || e.Message != "database is locked (5) (SQLITE_BUSY)" || e.Hint == "" {
		t.Errorf("the error of the third reader is %v", err)
	}
	m.pool.wait = time.Hour
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.Acquire(ctx); err != context.Canceled {
		t.Errorf("the error of the third reader, after its context ended, is %v", err)
	}
	got := make(chan error)
	go func() {
		r, err := m.Acquire(context.Background())
		if err == nil {
			defer r.Release()
		}
		got <- err
	}()
	a.query.Close()
	a.Release()
	if err := <-got; err != nil {
		t.Error(err)
	}
	b.query.Close()
	b.Release()
}

// Many callers wait for few readers, and some of them give up. Every other caller gets a
// reader.
func TestManyWaitForFewReaders(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
	m.pool.max, m.pool.wait = 3, time.Hour
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for range 20 {
				ctx, cancel := context.WithCancel(context.Background())
				if i%5 == 0 {
					cancel()
				}
				if r, err := m.Acquire(ctx); err == nil {
					q, _, err := r.Query("SELECT a FROM t", nil)
					if err != nil {
						t.Error(err)
					} else {
						if got, err := next(q); got != "1" || err != nil {
							t.Error(got, err)
						}
						q.Close()
					}
					r.Release()
				}
				cancel()
			}
		})
	}
	for range 50 {
		m.pool.quiesce(time.Millisecond, func() {})
	}
	wg.Wait()
	if len(m.pool.active) != 0 {
		t.Errorf("%d readers are still lent", len(m.pool.active))
	}
}

func TestEndOldestEndsOnlyTheOldestQuery(t *testing.T) {
	m := newMachine(t)
	old, oldQuery, _ := m.read(forever)
	idle, err := m.Acquire(context.Background()) // lent for the longest time, but without a query
	if err != nil {
		t.Fatal(err)
	}
	young, youngQuery, _ := m.read(forever)
	reason := errors.New("ended")
	if m.pool.endOldest(time.Hour, reason) {
		t.Error("a query ended that had run for less than an hour")
	}
	if !m.pool.endOldest(0, reason) {
		t.Fatal("no query ended")
	}
	for range 2 {
		if _, err := next(oldQuery); err != reason {
			t.Errorf("the error of the oldest query is %v", err)
		}
	}
	if got, err := next(youngQuery); got != "2" || err != nil {
		t.Errorf("the other query returns %q, %v", got, err)
	}
	// The reader can be used for the next query.
	oldQuery.Close()
	q, _, err := old.Query("SELECT 5", nil)
	if err != nil {
		t.Fatal(err)
	}
	if oldQuery.end(reason) {
		t.Error("a closed query was ended")
	}
	if got, err := next(q); got != "5" || err != nil {
		t.Errorf("the next query returns %q, %v", got, err)
	}
	q.Close()
	youngQuery.Close()
	for _, r := range []*Reader{old, idle, young} {
		r.Release()
	}
	if m.pool.endOldest(0, reason) {
		t.Error("a query of a returned reader was ended")
	}
}

// EndOldest also ends a query that is inside SQLite. The query's error is the reason, not
// SQLite's "interrupted".
func TestEndOldestEndsARunningStep(t *testing.T) {
	m := newMachine(t)
	r, err := m.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	q, _, err := r.Query("SELECT count(*) FROM ("+forever+")", nil)
	if err != nil {
		t.Fatal(err)
	}
	reason := errors.New("ended")
	answer := make(chan error)
	go func() {
		_, err := next(q)
		answer <- err
	}()
	for !m.pool.endOldest(0, reason) {
		continue
	}
	if err := <-answer; err != reason {
		t.Errorf("the error of the query is %v", err)
	}
	q.Close()
	r.Release()
}

// While queries are ended, other queries start on the same readers. Only a query that was
// ended gets the error.
func TestEndingRacesWithTheNextQuery(t *testing.T) {
	m := newMachine(t)
	m.pool.max = 2
	var stop atomic.Bool
	var wg sync.WaitGroup
	var ended, met atomic.Int64
	reason := errors.New("ended")
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				r, err := m.Acquire(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				q, _, err := r.Query("SELECT 1 UNION ALL SELECT 2", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err = next(q); err == nil {
					_, err = next(q)
				}
				if err == reason {
					met.Add(1)
				} else if err != nil {
					t.Errorf("the error of a query that was not ended is %v", err)
				}
				q.Close()
				r.Release()
			}
		})
	}
	for range 2000 {
		if m.pool.endOldest(0, reason) {
			ended.Add(1)
		}
	}
	stop.Store(true)
	wg.Wait()
	if met.Load() > ended.Load() {
		t.Errorf("%d queries have the error, but %d were ended", met.Load(), ended.Load())
	}
}

func TestCloseEndsReads(t *testing.T) {
	m := newMachine(t)
	r, q, _ := m.read(forever)
	lent, err := m.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if _, err := next(q); err != ErrReplicaClosed {
		t.Errorf("the error of a running query is %v", err)
	}
	if _, _, err := lent.Query("SELECT 1", nil); err != ErrReplicaClosed {
		t.Errorf("the error of a lent reader is %v", err)
	}
	if _, err := m.Acquire(context.Background()); err != ErrReplicaClosed {
		t.Errorf("the error of Acquire after Close is %v", err)
	}
	if _, _, err := m.Hash(context.Background()); err != ErrReplicaClosed {
		t.Errorf("the error of Hash after Close is %v", err)
	}
	q.Close()
	r.Release()
	lent.Release()
}

// While reads overlap all the time, SQLite cannot reset its write-ahead log. The log must
// not grow without end.
func TestTheLogStaysSmallUnderOverlappingReads(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(100000))")
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				if _, err := m.query("SELECT length(a) FROM t"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	written, largest := int64(0), int64(0)
	for i := range 150 {
		m.must(fmt.Sprintf("UPDATE t SET a=randomblob(%d)", 1_000_000+i))
		written += 1_000_000
		if _, wal := m.Size(); wal > largest {
			largest = wal
		}
		if i%10 == 9 { // the checkpointer does this when it is woken; here it happens between writes
			if err := m.checkpoints.checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	if largest > written*2/3 {
		t.Errorf("%d MB were written, the log grew to %d MB", written>>20, largest>>20)
	}
}

func TestCommitsWakeTheCheckpointer(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	m.checkpoints.stop() // so that only this test receives from its channel
	m.checkpoints.commits = 0
	for range commitsPerCheck {
		m.must("INSERT INTO t VALUES(1)")
	}
	select {
	case <-m.checkpoints.wake:
		t.Error("the checkpointer was woken for a small log")
	default:
	}
	for range commitsPerCheck {
		m.must("INSERT INTO t VALUES(randomblob(2000000))")
	}
	select {
	case <-m.checkpoints.wake:
	default:
		t.Error("the checkpointer was not woken for a large log")
	}
}

// A snapshot's open read transaction keeps a checkpoint from resetting the log. The
// checkpoint must not wait for it, because apply would wait too.
func TestCheckpointsDoNotWaitForSnapshots(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	v, err := m.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	for range 70 {
		m.must("INSERT INTO t VALUES(randomblob(1000000))")
	}
	if err := m.checkpoints.checkpoint(); err != nil {
		t.Error(err)
	}
	if _, wal := m.Size(); wal < truncateFrom {
		t.Fatalf("the log has %d bytes: the test does not test it", wal)
	}
	defer m.conn.AsOwner(true)()
	if err := m.SaveSnapshot(v, io.Discard, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.checkpoints.checkpoint(); err != nil {
		t.Error(err)
	}
	if _, wal := m.Size(); wal != 0 {
		t.Errorf("after the read transaction the log has %d bytes", wal)
	}
}

func TestHashesDifferForEveryDifference(t *testing.T) {
	schema := "CREATE TABLE t(a, b); CREATE TABLE w(a PRIMARY KEY, b) WITHOUT ROWID; CREATE TABLE rowid(rowid, _rowid_, oid); INSERT INTO t VALUES(1,'x'),(2,NULL); INSERT INTO w VALUES(1,2); INSERT INTO rowid VALUES(1,2,3)"
	base := newMachine(t)
	base.must(schema)
	seen := map[string]string{base.hash(): "the base"}
	same := newMachine(t)
	for _, e := range []string{"CREATE TABLE t(a, b)", "CREATE TABLE w(a PRIMARY KEY, b) WITHOUT ROWID", "CREATE TABLE rowid(rowid, _rowid_, oid)", "INSERT INTO t VALUES(1,'x'),(2,NULL)", "INSERT INTO w VALUES(1,2)", "INSERT INTO rowid VALUES(1,2,3)"} {
		same.must(e)
	}
	if _, known := seen[same.hash()]; !known {
		t.Error("the same rows have another hash")
	}
	for _, change := range []string{
		"UPDATE t SET rowid=7 WHERE a=2", "UPDATE t SET b='' WHERE a=2", "UPDATE t SET b=0 WHERE a=2", "UPDATE t SET b=0.0 WHERE a=2", "UPDATE t SET b='0' WHERE a=2", "UPDATE t SET b=x'30' WHERE a=2",
		"UPDATE t SET b=x'' WHERE a=2", "UPDATE t SET b='0'||char(0)||'1' WHERE a=2", "UPDATE t SET b='0'||char(0)||'2' WHERE a=2", "UPDATE t SET a='1', b='x' WHERE a=1", "UPDATE w SET b=3", "DELETE FROM w", "UPDATE rowid SET rowid=9", "UPDATE rowid SET oid=9",
		"CREATE INDEX i ON t(a)", "CREATE INDEX i ON t(b)", "CREATE VIEW v AS SELECT 1", "PRAGMA user_version=1", "PRAGMA application_id=1", "CREATE TRIGGER tr AFTER INSERT ON t BEGIN SELECT 1; END",
		"CREATE TABLE e(a)", "CREATE TABLE e(b)", "CREATE VIRTUAL TABLE ft USING fts5(x)", "CREATE VIRTUAL TABLE ft USING fts5(x); INSERT INTO ft VALUES('a')", "ANALYZE", "CREATE TABLE au(a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO au VALUES(3); DELETE FROM au",
		"CREATE TABLE au(a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO au VALUES(4); DELETE FROM au",
	} {
		m := newMachine(t)
		m.must(schema)
		m.must(change)
		if other, known := seen[m.hash()]; known {
			t.Errorf("%q leads to the same hash as %q", change, other)
		}
		seen[m.hash()] = change
		m.Close()
	}
}

// The hash is that of the rows at the index that Hash returns, although entries are applied
// meanwhile.
func TestHashDuringWrites(t *testing.T) {
	h := newCounterHistory()
	for n := range 300 {
		h.do(insert(n))
	}
	byIndex := map[uint64]string{}
	slow := emptyMachine(t)
	for _, e := range h.entries {
		slow.apply(e)
		byIndex[e.Index] = slow.hash()
	}
	m := emptyMachine(t)
	var wg sync.WaitGroup
	var done atomic.Bool
	wg.Go(func() {
		for !done.Load() {
			sum, index, err := m.Hash(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			if got := fmt.Sprintf("%x", sum[:8]); index > 0 && got != byIndex[index] {
				t.Errorf("the hash of entry %d is that of other rows", index)
			}
		}
	})
	for _, e := range h.entries {
		m.apply(e)
	}
	done.Store(true)
	wg.Wait()
}

func TestACanceledHashLeavesNoTransaction(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a); INSERT INTO t SELECT zeroblob(5000000)")
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		go cancel()
		_, _, err := m.Hash(ctx)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the error of the query is %v", err)
		}
		cancel()
		m.must("INSERT INTO t VALUES(1)")
	}
	if got := m.rows("SELECT count(*) FROM t"); got != "21" {
		t.Errorf("a reader sees %s rows", got)
	}
}
