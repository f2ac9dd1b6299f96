package replica

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// endlessInsert is a statement that ends only if it is interrupted.
const endlessInsert = "INSERT INTO t(v) WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x) SELECT n FROM x"

// runEndless begins a transaction, which writes a row and then executes endlessInsert in the
// background. The channel receives the error of that statement.
func runEndless(m *machine, p *proposer, id uint64) (*Transaction, <-chan error) {
	m.t.Helper()
	base := m.grantTo(p, id, 1000)
	tx, err := m.Speculate(TransactionOptions{Seed: wire.Seed{1}, MaxSteps: 1 << 60})
	if err == nil {
		err = tx.Lease(id, base)
	}
	if err == nil {
		_, err = tx.Exec(context.Background(), "INSERT INTO t(v) VALUES('lost')", nil)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	ctx := &observedContext{Context: context.Background(), checked: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		_, err := tx.Exec(ctx, endlessInsert, nil)
		done <- err
	}()
	<-ctx.checked // now the statement is running
	return tx, done
}

// An observedContext is a context that reports when its Err is called for the first time,
// which a running statement does.
type observedContext struct {
	context.Context
	once    sync.Once
	checked chan struct{}
}

func (w *observedContext) Done() <-chan struct{} { return make(chan struct{}) }
func (w *observedContext) Err() error {
	w.once.Do(func() { close(w.checked) })
	return nil
}

// expectEnded fails the test unless the statement that runEndless started, and everything
// that the transaction does later, have the error want.
func expectEnded(t *testing.T, tx *Transaction, done <-chan error, want error) {
	t.Helper()
	if err := <-done; !errors.Is(err, want) {
		t.Errorf("the error of the statement is %v", err)
	}
	if err := tx.Err(); !errors.Is(err, want) {
		t.Errorf("the error of the transaction is %v", err)
	}
	if _, err := tx.Exec(context.Background(), "INSERT INTO t(v) VALUES(1)", nil); !errors.Is(err, want) {
		t.Errorf("the error of the next statement is %v", err)
	}
	if _, err := tx.Record(&wire.Operation{Lease: &wire.Lease{}}); !errors.Is(err, want) {
		t.Errorf("the error of Record is %v", err)
	}
	tx.Close()
}

// A transaction loses its lease while its view holds SQLite's write lock in an endless
// statement. The waiting operations are applied at once.
func TestTheEndOfALeaseEndsTheView(t *testing.T) {
	for name, end := range map[string]func(m *machine, p *proposer){
		"its lease expires":             func(m *machine, p *proposer) { m.advanceFor(1000) },
		"its node starts again":         func(m *machine, p *proposer) { m.openFor(2, 2) },
		"its lease is released":         func(m *machine, p *proposer) { m.doAs(p, release(9)) },
		"a VACUUM under the lease":      func(m *machine, p *proposer) { o := under(9, false, "VACUUM"); o.Vacuum = true; m.doAs(p, o) },
		"a plain write under the lease": func(m *machine, p *proposer) { m.doAs(p, under(9, true, "INSERT INTO t(id) VALUES(2)")) },
		"a commit with another base":    func(m *machine, p *proposer) { m.doAs(p, inserting(9, 1, false, 7)) },
		"a commit that was sent before": func(m *machine, p *proposer) { m.doAs(p, inserting(9, m.lease.held.Base, false, 2)) },
	} {
		t.Run(name, func(t *testing.T) {
			m, other := newLeaseMachine(t)
			tx, done := runEndless(m, other, 9)
			wait := m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
			end(m, other)
			if err := m.Err(); err != nil {
				t.Fatal(err)
			}
			if m.settled[wait].Err != nil || !m.holds(0) {
				t.Errorf("the result of the waiter is %+v", m.settled[wait])
			}
			if got := m.rows("SELECT count(*) FROM t WHERE v='lost'"); got != "0" {
				t.Error("a row that was written on the view is in the database")
			}
			expectEnded(t, tx, done, ErrLeaseLost)
			m.must("INSERT INTO t(id) VALUES(100)")
			// The next transaction works.
			base := m.grantTo(m.openFor(3, 1), 10, 1000)
			next, err := m.Speculate(TransactionOptions{})
			if err == nil {
				err = next.Lease(10, base)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := next.Exec(context.Background(), "INSERT INTO t(id) VALUES(101)", nil); err != nil {
				t.Error(err)
			}
			next.Close()
		})
	}
}

func TestARecoveryFromASnapshotEndsViews(t *testing.T) {
	m, other := newLeaseMachine(t)
	m.must("INSERT INTO t(id) VALUES(1)")
	tx, done := runEndless(m, other, 9)
	deferred, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	reading, err := m.Read(context.Background(), TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	image := m.snapshot() // while the transactions are open
	sum := m.hash()
	if err := m.RecoverFromSnapshot(bytes.NewReader(image), nil); err != nil {
		t.Fatal(err, m.Err())
	}
	expectEnded(t, tx, done, ErrLeaseLost)
	if err := deferred.Err(); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("the error of a transaction that had only read is %v", err)
	}
	deferred.Close()
	if c, err := reading.Query(context.Background(), "SELECT id FROM t", nil); err != nil {
		t.Errorf("the error of a read-only transaction is %v", err)
	} else if more, err := c.Next(nil); !more || err != nil {
		t.Errorf("the error of a read-only transaction is %v", err)
	}
	reading.Close()
	if !m.holds(9) || m.hash() != sum {
		t.Errorf("the lease in the snapshot is %+v", m.lease.held)
	}
	// The holder can continue on another view.
	next, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Lease(9, m.lease.held.Base); err != nil {
		t.Error(err)
	}
	next.Close()
}

func TestCloseEndsViews(t *testing.T) {
	m, other := newLeaseMachine(t)
	tx, done := runEndless(m, other, 9)
	deferred, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	reading, err := m.Read(context.Background(), TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	expectEnded(t, tx, done, ErrReplicaClosed)
	for _, tx := range []*Transaction{deferred, reading} {
		if err := tx.Err(); !errors.Is(err, ErrReplicaClosed) {
			t.Errorf("the error of the transaction is %v", err)
		}
		tx.Close()
	}
	if _, err := m.Speculate(TransactionOptions{}); !errors.Is(err, ErrReplicaClosed) {
		t.Errorf("the error of a new transaction is %v", err)
	}
	m.SQL.speculative.mu.Lock()
	defer m.SQL.speculative.mu.Unlock()
	if len(m.SQL.speculative.idle)+len(m.SQL.speculative.lent) > 0 {
		t.Errorf("%d connections are left open", len(m.SQL.speculative.idle)+len(m.SQL.speculative.lent))
	}
}

// Transactions that begin while the replica is being closed leave no connection open.
func TestTransactionsThatBeginWhileTheReplicaCloses(t *testing.T) {
	for range 10 {
		m := newMachine(t)
		m.must("CREATE TABLE t(a)")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					tx, err := m.Speculate(TransactionOptions{})
					if errors.Is(err, ErrReplicaClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					if c, err := tx.Query(context.Background(), "SELECT 1", nil); err == nil {
						_, _ = c.Next(nil)
					}
					tx.Close()
				}
			})
		}
		m.Close()
		wg.Wait()
		if n := len(m.SQL.speculative.idle) + len(m.SQL.speculative.lent); n > 0 {
			t.Errorf("%d connections are left open", n)
		}
	}
}

// End may be called by any goroutine at any time. Concurrent calls of the transaction's
// methods succeed or return the reason that was given to End.
func TestEndDuringEverything(t *testing.T) {
	m, other := newLeaseMachine(t)
	reason := errors.New("enough")
	for i := range uint64(60) {
		base := m.grantTo(other, 100+i, 1000)
		tx, err := m.Speculate(TransactionOptions{Seed: wire.Seed{byte(i), byte(i >> 8)}, MaxSteps: 1 << 60})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { tx.End(reason) })
		if i%3 == 0 {
			wg.Go(func() { tx.End(ErrLeaseLost) })
		}
		ok := func(err error) {
			if err != nil && !errors.Is(err, reason) && !errors.Is(err, ErrLeaseLost) {
				t.Errorf("the error is %v", err)
			}
		}
		ok(tx.Lease(100+i, base))
		if tx.Err() == nil {
			_, err = tx.Exec(context.Background(), "INSERT INTO t(v) VALUES(1)", nil)
			ok(err)
			if c, err := tx.Query(context.Background(), "SELECT count(*) FROM t", nil); err == nil {
				_, err = c.Next(nil)
				ok(err)
				c.Close()
			}
			if i%2 == 0 {
				_, err = tx.Exec(context.Background(), endlessInsert, nil)
				ok(err)
			}
		}
		if i%5 == 0 {
			_, err := tx.Record(&wire.Operation{Lease: &wire.Lease{}})
			ok(err)
		}
		tx.Close()
		wg.Wait()
		m.doAs(other, release(100+i))
	}
	m.must("INSERT INTO t(id) VALUES(1)")
	m.expectRows("1")
}

// The lease ends after its grant, before the transaction uses it.
func TestLeasesThatEndBeforeTheyAreUsed(t *testing.T) {
	m, other := newLeaseMachine(t)
	base := m.grantTo(other, 9, 1000)
	early, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.doAs(other, release(9))
	late, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tx := range []*Transaction{early, late} {
		if err := tx.Lease(9, base); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("the error is %v", err)
		}
	}
	m.must("INSERT INTO t(id) VALUES(1)") // while both are open
	early.Close()
	late.Close()
}

// Two deferred transactions have read. One of them writes and commits, so the rows that the
// other one has read have changed.
func TestTheSecondOfTwoDeferredTransactions(t *testing.T) {
	m, other := newLeaseMachine(t)
	count := func(tx *Transaction) string {
		c, err := tx.Query(context.Background(), "SELECT count(*) FROM t", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		out := ""
		if _, err := c.Next(func(s *sqlite.Stmt) { out = string(s.Bytes(0)) }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	first, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	count(first)
	count(second)
	base := m.grantTo(other, 9, 1000)
	if err := first.Lease(9, base); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Exec(context.Background(), "INSERT INTO t(id) VALUES(1)", nil); err != nil {
		t.Fatal(err)
	}
	e, err := first.Record(&wire.Operation{Lease: &wire.Lease{}})
	if err != nil {
		t.Fatal(err)
	}
	other.seq++
	m.update(wire.EncodeEntry(other.session, other.seq, 0, []*wire.EncodedOperation{e}))
	m.expectRows("1")
	base = m.grantTo(other, 10, 1000)
	if got := count(second); got != "0" {
		t.Errorf("the view of the other transaction has changed: it sees %s rows", got)
	}
	if err := second.Lease(10, base); !errors.Is(err, ErrChanged) {
		t.Errorf("the error is %v", err)
	}
	second.Close()
	m.doAs(other, release(10))
}

// A checkpoint resets the write-ahead log after a transaction's view began and before the
// transaction has the lease. It changes no rows, so the transaction can write.
func TestCheckpointsBeforeTheLease(t *testing.T) {
	m, other := newLeaseMachine(t)
	m.must("INSERT INTO t(id) VALUES(1)")
	base := m.grantTo(other, 9, 1000)
	conn, err := sqlite.Open(m.pool.path(), sqlite.Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-m.scrubber.done                              // its reads would keep the checkpoint from copying the whole log
	if err := conn.Checkpoint(false); err != nil { // so that the view does not read from the log
		t.Fatal(err)
	}
	tx, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Close()
	if err := conn.Checkpoint(true); err != nil {
		t.Fatal(err)
	}
	if err := tx.Lease(9, base); err != nil {
		t.Errorf("the error is %v", err)
	}
	if _, err := tx.Exec(context.Background(), "INSERT INTO t(id) VALUES(2)", nil); err != nil {
		t.Error(err)
	}
}

// A snapshot that is made while a transaction is open has none of its rows.
func TestSnapshotsHaveNothingOfOpenTransactions(t *testing.T) {
	m, other := newLeaseMachine(t)
	m.must("INSERT INTO t(id) VALUES(1)")
	sum := m.hash()
	tx, done := runEndless(m, other, 9)
	to := newMachine(t)
	m.snapshotTo(to)
	if to.hash() != sum || !to.holds(9) {
		t.Errorf("the rows in the snapshot are\n%s", to.rows("SELECT * FROM t"))
	}
	m.doAs(other, release(9))
	expectEnded(t, tx, done, ErrLeaseLost)
}

// If this machine fails while a lease ends and the waiting operations are applied, the
// replica stops.
func TestAFailureAtTheEndOfALease(t *testing.T) {
	m, other := newLeaseMachine(t)
	m.grantTo(other, 9, 1000)
	m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
	if err := m.conn.ExecAsOwner("PRAGMA busy_timeout=0"); err != nil {
		t.Fatal(err)
	}
	conn, err := sqlite.Open(m.pool.path(), sqlite.Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	m.cfg.SessionTTL = 100
	m.advance(200)
	if m.Err() == nil {
		t.Error("the replica continues")
	}
	<-m.failed
}
