package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// snapshot returns the snapshot that m sends to another replica.
func (m *machine) snapshot() []byte {
	m.t.Helper()
	v, err := m.PrepareSnapshot()
	if err != nil {
		m.t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := m.SaveSnapshot(v, &buf, nil); err != nil {
		m.t.Fatal(err)
	}
	return buf.Bytes()
}

func TestSnapshotsAreOfTheMomentTheyWerePrepared(t *testing.T) {
	h := newCounterHistory()
	for n := range 200 {
		h.do(insert(n), op("INSERT INTO applied SELECT zeroblob(3000)"))
	}
	m := emptyMachine(t)
	m.apply(h.entries[:100]...)
	want := m.hash()
	v, err := m.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	// The snapshot is saved during writes and reads.
	var wg sync.WaitGroup
	var buf bytes.Buffer
	wg.Go(func() {
		if err := m.SaveSnapshot(v, &buf, nil); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		for range 50 {
			if _, err := m.query("SELECT sum(length(n)) FROM applied"); err != nil {
				t.Error(err)
			}
		}
	})
	for _, e := range h.entries[100:] {
		m.apply(e)
	}
	wg.Wait()
	other := emptyMachine(t)
	if err := other.RecoverFromSnapshot(&buf, nil); err != nil {
		t.Fatal(err)
	}
	if other.hash() != want || other.SQL.Applied() != 100 {
		t.Errorf("at entry %d the receiver differs from the sender at entry 100", other.SQL.Applied())
	}
	other.apply(h.entries[100:]...)
	if other.hash() != m.hash() {
		t.Error("the receiver differs from the sender after the same entries")
	}
	if left, _ := filepath.Glob(filepath.Join(m.dir, "*.tmp*")); len(left) > 0 {
		t.Errorf("files that were left: %v", left)
	}
}

// A replica that receives a damaged snapshot stops with an error and keeps its own data.
func TestDamagedSnapshotsAreRefused(t *testing.T) {
	h := newCounterHistory()
	for n := range 20 {
		h.do(insert(n))
	}
	sender := emptyMachine(t)
	sender.apply(h.entries...)
	good := sender.snapshot()
	for name, src := range map[string]io.Reader{
		"empty":                     bytes.NewReader(nil),
		"truncated in the header":   bytes.NewReader(good[:10]),
		"truncated in the state":    bytes.NewReader(good[:len(snapshotMagic)+10]),
		"truncated in the checksum": bytes.NewReader(good[:len(good)/5]),
		"truncated at the end":      bytes.NewReader(good[:len(good)-1]),
		"truncated to a half":       bytes.NewReader(good[:len(good)/2]),
		"a newer version":           bytes.NewReader(append([]byte("hiqlite snapshot 2\n"), good[len(snapshotMagic):]...)),
		"garbage":                   bytes.NewReader(bytes.Repeat([]byte("garbage"), 1000)),
		"a huge state":              bytes.NewReader(append(bytes.Clone(snapshotMagic), 0xff, 0xff, 0xff, 0x3f, 1, 2)),
		"too long":                  bytes.NewReader(append(bytes.Clone(good), "more"...)),
		"a broken connection":       io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(errors.New("connection reset"))),
	} {
		t.Run(name, func(t *testing.T) { expectRefused(t, src) })
	}
	for at := len(snapshotMagic); at < len(good); at += len(good)/40 + 1 {
		bad := bytes.Clone(good)
		bad[at] ^= 0x10
		if unpack(t, bad) == unpack(t, good) {
			continue // zstd ignores this bit
		}
		t.Run(fmt.Sprintf("a bit of byte %d flipped", at), func(t *testing.T) { expectRefused(t, bytes.NewReader(bad)) })
	}
}

// unpack returns the content of a snapshot, or "" if it cannot be read.
func unpack(t *testing.T, snapshot []byte) string {
	path := filepath.Join(t.TempDir(), "unpacked")
	state, err := readSnapshot(bytes.NewReader(snapshot), path)
	if err != nil {
		return ""
	}
	database, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(wire.AppendState(database, state))
}

// expectRefused fails the test unless a replica refuses the snapshot src and keeps its own
// data.
func expectRefused(t *testing.T, src io.Reader) {
	h := newCounterHistory()
	h.do(insert(1))
	m := emptyMachine(t)
	m.apply(h.entries...)
	want := m.hash()
	if err := m.RecoverFromSnapshot(src, nil); err != sm.ErrSnapshotStopped {
		t.Fatalf("RecoverFromSnapshot returned %v, which ends the process", err)
	}
	if err := <-m.failed; err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("the replica's error is %v", err)
	}
	m.restart(h)
	if m.hash() != want {
		t.Error("the replica's own data has changed")
	}
	entries, err := os.ReadDir(m.dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files that were left: %v, %v", entries, err)
	}
}

func TestSnapshotsMayComeInSmallPieces(t *testing.T) {
	h := newCounterHistory()
	h.do(insert(1))
	m, other := emptyMachine(t), emptyMachine(t)
	m.apply(h.entries...)
	if err := other.RecoverFromSnapshot(iotest.OneByteReader(bytes.NewReader(m.snapshot())), nil); err != nil {
		t.Fatal(err)
	}
	if other.hash() != m.hash() {
		t.Error("the receiver differs from the sender")
	}
}

func TestSnapshotsStoppedAtTheBeginning(t *testing.T) {
	h := newCounterHistory()
	h.do(insert(1))
	m := emptyMachine(t)
	m.apply(h.entries...)
	want := m.hash()
	done := make(chan struct{})
	close(done)
	v, err := m.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := m.SaveSnapshot(v, &buf, done); err != sm.ErrSnapshotStopped {
		t.Errorf("the error of a stopped SaveSnapshot is %v", err)
	}
	if err := m.RecoverFromSnapshot(bytes.NewReader(m.snapshot()), done); err != sm.ErrSnapshotStopped {
		t.Errorf("the error of a stopped RecoverFromSnapshot is %v", err)
	}
	if m.Err() != nil || m.hash() != want || len(m.pinned) != 0 {
		t.Errorf("the replica's error is %v, and %d pinned snapshots are left", m.Err(), len(m.pinned))
	}
	if entries, err := os.ReadDir(m.dir); err != nil || len(entries) != 2 {
		t.Errorf("files that were left: %v, %v", entries, err)
	}
}

// stopAt closes done at the first write.
type stopAt struct {
	done chan struct{}
	once sync.Once
}

func (s *stopAt) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.done) })
	return len(b), nil
}

func TestSnapshotsStoppedInTheMiddle(t *testing.T) {
	h := newCounterHistory()
	h.do(insert(1), op("INSERT INTO applied SELECT randomblob(3000000)"))
	m := emptyMachine(t)
	m.apply(h.entries...)
	v, err := m.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	w := &stopAt{done: make(chan struct{})}
	if err := m.SaveSnapshot(v, w, w.done); err != sm.ErrSnapshotStopped {
		t.Errorf("the error of SaveSnapshot is %v", err)
	}
	good := m.snapshot()
	done := make(chan struct{})
	src := io.MultiReader(bytes.NewReader(good[:len(good)/2]), &closing{done: done, Reader: bytes.NewReader(good[len(good)/2:])})
	other := emptyMachine(t)
	if err := other.RecoverFromSnapshot(src, done); err != sm.ErrSnapshotStopped || other.Err() != nil {
		t.Errorf("the errors of RecoverFromSnapshot and of the replica are %v, %v", err, other.Err())
	}
	if other.SQL.Applied() != 0 {
		t.Errorf("the replica is at entry %d", other.SQL.Applied())
	}
	other.apply(h.entries...) // it continues with its own data
}

// closing closes done at the first read.
type closing struct {
	io.Reader
	done chan struct{}
	once sync.Once
}

func (c *closing) Read(b []byte) (int, error) {
	c.once.Do(func() { close(c.done) })
	return c.Reader.Read(b)
}

func TestCloseWhileASnapshotIsPinned(t *testing.T) {
	h := newCounterHistory()
	m := emptyMachine(t)
	m.apply(h.entries...)
	v, err := m.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if err := m.SaveSnapshot(v, io.Discard, nil); err != sm.ErrSnapshotStopped {
		t.Errorf("saving after Close: %v", err)
	}
	if _, err := m.PrepareSnapshot(); err != sm.ErrSnapshotStopped {
		t.Errorf("preparing after Close: %v", err)
	}
	m.Close()
}

// If Raft prepares a snapshot and never saves it, its read transaction is ended when the
// next snapshot is prepared. Otherwise the write-ahead log could never be reset.
func TestAbandonedSnapshotsAreEnded(t *testing.T) {
	m := newMachine(t)
	first, err := m.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.PrepareSnapshot()
	if err != nil || len(m.pinned) != 1 {
		t.Fatalf("there are %d pinned snapshots, and the error is %v", len(m.pinned), err)
	}
	if err := m.SaveSnapshot(first, io.Discard, nil); err != sm.ErrSnapshotStopped {
		t.Errorf("the error of the abandoned snapshot is %v", err)
	}
	if err := m.SaveSnapshot(second, io.Discard, nil); err != nil || len(m.pinned) != 0 {
		t.Errorf("the error of the next snapshot is %v, and there are %d pinned snapshots", err, len(m.pinned))
	}
}

// If the receiver is gone, SaveSnapshot returns one of the errors that do not end the
// process.
func TestSnapshotsAreAbortedIfTheReceiverIsGone(t *testing.T) {
	m := newMachine(t)
	for _, test := range []struct{ err, want error }{{io.ErrClosedPipe, sm.ErrSnapshotAborted}, {sm.ErrSnapshotStreaming, sm.ErrSnapshotStreaming}, {sm.ErrSnapshotStopped, sm.ErrSnapshotStopped}} {
		v, err := m.PrepareSnapshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.SaveSnapshot(v, failing{test.err}, nil); err != test.want {
			t.Errorf("%v became %v", test.err, err)
		}
	}
	path := m.storage.path(1)
	if err := os.Rename(path, path+"x"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.PrepareSnapshot(); err != sm.ErrSnapshotAborted {
		t.Errorf("the error for a database that cannot be opened is %v", err)
	}
	if err := os.Rename(path+"x", path); err != nil {
		t.Fatal(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// read acquires a reader and starts a query on it, which stands on its first row. It
// returns the first cell of that row.
func (m *machine) read(sql string) (*Reader, *Query, string) {
	m.t.Helper()
	r, err := m.Acquire(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	q, _, err := r.Query(sql, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	value, err := next(q)
	if err != nil {
		m.t.Fatal(err)
	}
	return r, q, value
}

// next returns the first cell of the query's next row.
func next(q *Query) (value string, err error) {
	more, err := q.Next(func(s *sqlite.Stmt) { value = string(s.Bytes(0)) })
	if err == nil && !more {
		err = io.EOF
	}
	return value, err
}

func TestReadersDuringTheRecoveryFromASnapshot(t *testing.T) {
	old, h := newCounterHistory(), newCounterHistory()
	old.sql("INSERT INTO applied VALUES(1),(2),(3)")
	h.sql("INSERT INTO applied VALUES(11),(12)", "INSERT INTO applied VALUES(13)")
	m, sender := emptyMachine(t), emptyMachine(t)
	m.apply(old.entries...)
	sender.apply(h.entries...)
	const q = "SELECT n FROM applied ORDER BY n"

	running, query, value := m.read(q)
	if value != "1" {
		t.Fatal(value)
	}
	lent, err := m.Acquire(context.Background()) // lent, without a query yet
	if err != nil {
		t.Fatal(err)
	}
	lent.SetState(wire.ConnState{Changes: 7, TotalChanges: 8, LastInsertID: 9})
	used, usedQuery, _ := m.read(q) // has had a query
	usedQuery.Close()
	if err := m.RecoverFromSnapshot(bytes.NewReader(sender.snapshot()), nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2", "3"} {
		if got, err := next(query); got != want || err != nil {
			t.Errorf("the running query reads %q, %v, want %s", got, err, want)
		}
	}
	query.Close()
	for name, r := range map[string]*Reader{"running": running, "lent": lent, "used": used} {
		query, _, err := r.Query(q, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		if got, err := next(query); got != "11" || err != nil {
			t.Errorf("the next query of the %s reader reads %q, %v", name, got, err)
		}
		query.Close()
	}
	query, _, err = lent.Query("SELECT changes()||total_changes()||last_insert_rowid()", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := next(query); got != "789" || err != nil {
		t.Errorf("the query reads %q, %v", got, err)
	}
	query.Close()
	for _, r := range []*Reader{running, lent, used} {
		r.Release()
	}
	if got := m.rows(q); got != "11\n12\n13" {
		t.Errorf("a new reader reads %q", got)
	}
	m.index = sender.index
	h.sql("INSERT INTO applied VALUES(14)")
	m.apply(h.entries[m.index:]...)
	if got := m.rows(q); got != "11\n12\n13\n14" {
		t.Errorf("after the next entry: %q", got)
	}
	if entries, err := os.ReadDir(m.dir); err != nil || len(entries) != 2 {
		t.Errorf("files that were left: %v, %v", entries, err)
	}
}
