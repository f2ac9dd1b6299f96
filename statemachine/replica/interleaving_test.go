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

// long is a statement that ends only if it is made to.
const long = "INSERT INTO t(v) WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x) SELECT n FROM x"

// running begins a transaction that has written and sits in a statement without
// end. The channel tells how that ended.
func running(m *machine, p *proposer, id uint64) (*Transaction, <-chan error) {
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
	ctx := &watched{Context: context.Background(), seen: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		_, err := tx.Exec(ctx, long, nil)
		done <- err
	}()
	<-ctx.seen // by the statement, which runs
	return tx, done
}

// watched is a context that tells when a statement has looked at it twice: once
// it runs.
type watched struct {
	context.Context
	once sync.Once
	seen chan struct{}
}

func (w *watched) Done() <-chan struct{} { return make(chan struct{}) }
func (w *watched) Err() error {
	w.once.Do(func() { close(w.seen) })
	return nil
}

func over(t *testing.T, tx *Transaction, done <-chan error, want error) {
	t.Helper()
	if err := <-done; !errors.Is(err, want) {
		t.Errorf("the statement answers %v", err)
	}
	if err := tx.Err(); !errors.Is(err, want) {
		t.Errorf("the transaction answers %v", err)
	}
	if _, err := tx.Exec(context.Background(), "INSERT INTO t(v) VALUES(1)", nil); !errors.Is(err, want) {
		t.Errorf("the next statement answers %v", err)
	}
	if _, err := tx.Record(&wire.Operation{Lease: &wire.Lease{}}); !errors.Is(err, want) {
		t.Errorf("recording it answers %v", err)
	}
	tx.Close()
}

// A transaction that holds SQLite's write lock, in the middle of a statement
// without end, loses its lease: what waits is applied at once.
func TestAnExpiryEndsWhatRuns(t *testing.T) {
	for name, end := range map[string]func(m *machine, p *proposer){
		"its time is over":        func(m *machine, p *proposer) { m.tickFor(1000) },
		"its node starts again":   func(m *machine, p *proposer) { m.openFor(2, 2) },
		"it is given up":          func(m *machine, p *proposer) { m.by(p, release(9)) },
		"a VACUUM under it":       func(m *machine, p *proposer) { o := under(9, false, "VACUUM"); o.Vacuum = true; m.by(p, o) },
		"a plain write under it":  func(m *machine, p *proposer) { m.by(p, under(9, true, "INSERT INTO t(id) VALUES(2)")) },
		"a commit on other rows":  func(m *machine, p *proposer) { m.by(p, inserting(9, 1, false, 7)) },
		"its commit, sent before": func(m *machine, p *proposer) { m.by(p, inserting(9, m.lease.held.Base, false, 2)) },
	} {
		t.Run(name, func(t *testing.T) {
			m, other := leasing(t)
			tx, done := running(m, other, 9)
			wait := m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
			end(m, other)
			if err := m.Err(); err != nil {
				t.Fatal(err)
			}
			if m.settled[wait].Err != nil || !m.holds(0) {
				t.Errorf("who waited is told %+v", m.settled[wait])
			}
			if got := m.rows("SELECT count(*) FROM t WHERE v='lost'"); got != "0" {
				t.Error("what was speculated is there")
			}
			over(t, tx, done, ErrLeaseLost)
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

func TestASnapshotEndsWhatRuns(t *testing.T) {
	m, other := leasing(t)
	m.must("INSERT INTO t(id) VALUES(1)")
	tx, done := running(m, other, 9)
	deferred, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	reading, err := m.Read(context.Background(), TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	image := m.snapshot() // beside it
	sum := m.hash()
	if err := m.RecoverFromSnapshot(bytes.NewReader(image), nil); err != nil {
		t.Fatal(err, m.Err())
	}
	over(t, tx, done, ErrLeaseLost)
	if err := deferred.Err(); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("one that had only read answers %v", err)
	}
	deferred.Close()
	if c, err := reading.Query(context.Background(), "SELECT id FROM t", nil); err != nil {
		t.Errorf("one that only reads: %v", err)
	} else if more, err := c.Next(nil); !more || err != nil {
		t.Errorf("one that only reads: %v", err)
	}
	reading.Close()
	if !m.holds(9) || m.hash() != sum {
		t.Errorf("the snapshot's lease is %+v", m.lease.held)
	}
	// Its holder, on another view, can go on.
	next, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Lease(9, m.lease.held.Base); err != nil {
		t.Error(err)
	}
	next.Close()
}

func TestCloseEndsWhatRuns(t *testing.T) {
	m, other := leasing(t)
	tx, done := running(m, other, 9)
	deferred, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	reading, err := m.Read(context.Background(), TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	over(t, tx, done, ErrReplicaClosed)
	for _, tx := range []*Transaction{deferred, reading} {
		if err := tx.Err(); !errors.Is(err, ErrReplicaClosed) {
			t.Errorf("the transaction answers %v", err)
		}
		tx.Close()
	}
	if _, err := m.Speculate(TransactionOptions{}); !errors.Is(err, ErrReplicaClosed) {
		t.Errorf("a new one answers %v", err)
	}
	m.SQL.speculative.mu.Lock()
	defer m.SQL.speculative.mu.Unlock()
	if len(m.SQL.speculative.idle)+len(m.SQL.speculative.lent) > 0 {
		t.Errorf("%d connections are left open", len(m.SQL.speculative.idle)+len(m.SQL.speculative.lent))
	}
}

// Transactions that begin while the replica is closed leave nothing open.
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

// End may come from anywhere, at any time: the others' answer is its reason, or
// their own.
func TestEndBesideEverything(t *testing.T) {
	m, other := leasing(t)
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
				t.Errorf("it answers %v", err)
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
				_, err = tx.Exec(context.Background(), long, nil)
				ok(err)
			}
		}
		if i%5 == 0 {
			_, err := tx.Record(&wire.Operation{Lease: &wire.Lease{}})
			ok(err)
		}
		tx.Close()
		wg.Wait()
		m.by(other, release(100+i))
	}
	m.must("INSERT INTO t(id) VALUES(1)")
	m.expectRows("1")
}

// A lease that has ended already, between its grant and the transaction's start.
func TestALeaseThatEndedBeforeItWasUsed(t *testing.T) {
	m, other := leasing(t)
	base := m.grantTo(other, 9, 1000)
	early, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.by(other, release(9))
	late, err := m.Speculate(TransactionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tx := range []*Transaction{early, late} {
		if err := tx.Lease(9, base); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("it answers %v", err)
		}
	}
	m.must("INSERT INTO t(id) VALUES(1)") // while both are open
	early.Close()
	late.Close()
}

// Of two that have read, one writes and commits; the other has seen rows that
// are no more.
func TestTheSecondOfTwoDeferredTransactions(t *testing.T) {
	m, other := leasing(t)
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
	m.update(wire.EncodeEntry(other.session, other.seq, []*wire.EncodedOperation{e}))
	m.expectRows("1")
	base = m.grantTo(other, 10, 1000)
	if got := count(second); got != "0" {
		t.Errorf("its view moved: %s rows", got)
	}
	if err := second.Lease(10, base); !errors.Is(err, ErrChanged) {
		t.Errorf("it answers %v", err)
	}
	second.Close()
	m.by(other, release(10))
}

// A checkpoint that empties the write-ahead log between a transaction's view and
// its lease changes no rows: it is not in the transaction's way.
func TestACheckpointBeforeTheLease(t *testing.T) {
	m, other := leasing(t)
	m.must("INSERT INTO t(id) VALUES(1)")
	base := m.grantTo(other, 9, 1000)
	conn, err := sqlite.Open(m.pool.path(), sqlite.Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-m.scrubber.done                              // while it reads a page, the checkpoint leaves something in the log
	if err := conn.Checkpoint(false); err != nil { // a view does not need the log then
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
		t.Errorf("it answers %v", err)
	}
	if _, err := tx.Exec(context.Background(), "INSERT INTO t(id) VALUES(2)", nil); err != nil {
		t.Error(err)
	}
}

// A snapshot taken while a transaction is open holds nothing of it.
func TestASnapshotHoldsNothingOfAnOpenTransaction(t *testing.T) {
	m, other := leasing(t)
	m.must("INSERT INTO t(id) VALUES(1)")
	sum := m.hash()
	tx, done := running(m, other, 9)
	to := newMachine(t)
	m.snapshotTo(to)
	if to.hash() != sum || !to.holds(9) {
		t.Errorf("the snapshot holds\n%s", to.rows("SELECT * FROM t"))
	}
	m.by(other, release(9))
	over(t, tx, done, ErrLeaseLost)
}

// This machine's failure while a lease passes on stops the replica, and nothing
// else.
func TestAFailureWhileTheLeasePassesOn(t *testing.T) {
	m, other := leasing(t)
	m.grantTo(other, 9, 1000)
	m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
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
	m.tick(200)
	if m.Err() == nil {
		t.Error("it goes on")
	}
	<-m.failed
}
