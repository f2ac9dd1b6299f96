package replica

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/statemachine"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// fillDisk makes the disk of m full until the returned function is called.
func (m *machine) fillDisk() (free func()) {
	free = sqlite.FailFiles(func(op, path string) int {
		if op == "write" && strings.HasPrefix(path, m.dir) {
			return sqlite.CodeFull
		}
		return 0
	})
	m.t.Cleanup(free)
	return free
}

// A blockedListener is a machine whose Failed does not return before release is closed.
type blockedListener struct {
	*machine
	entered, release chan struct{}
}

func (b *blockedListener) Failed(err error) {
	close(b.entered)
	<-b.release
	b.machine.Failed(err)
}

// A full disk is a failure of this machine only, so it is never a result. The replica
// stops without results, and applies the entry again when there is space.
func TestAFullDiskIsNotAResult(t *testing.T) {
	h := newCounterHistory()
	h.sql("CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, a)", "CREATE TABLE spent(id INTEGER PRIMARY KEY AUTOINCREMENT)",
		"INSERT INTO spent VALUES(1)", "UPDATE sqlite_sequence SET seq=9223372036854775807 WHERE name='spent'")
	n := len(h.entries)
	large := "INSERT INTO applied SELECT zeroblob(100000)"
	for name, text := range map[string]string{
		"a statement":                            large,
		"a script":                               "INSERT INTO applied VALUES(1); " + large,
		"an AUTOINCREMENT that is not exhausted": "INSERT INTO auto(a) SELECT zeroblob(100000)",
		"a CREATE INDEX":                         "CREATE TABLE x AS SELECT zeroblob(1000000)",
	} {
		t.Run(name, func(t *testing.T) {
			m := emptyMachine(t)
			stop := &blockedListener{machine: m, entered: make(chan struct{}), release: make(chan struct{})}
			m.SQL.cfg.Listener = stop
			m.apply(h.entries...)
			if err := m.Sync(); err != nil {
				t.Fatal(err)
			}
			free := m.fillDisk()
			h := &history{entries: h.entries[:n:n], seq: h.seq}
			h.do(insert(7), op(text), insert(8))
			h.do(insert(9))
			answered, applied := m.answered, m.SQL.Applied()

			returned := make(chan struct{})
			go func() {
				defer close(returned)
				if _, err := m.Update(append([]sm.Entry{}, h.entries[n:]...)); err != nil {
					t.Error("an error from Update ends the process:", err)
				}
			}()
			<-stop.entered
			select {
			case <-returned:
				t.Error("Update returned before the replica was stopped, so the entry counts as applied")
			default:
			}
			close(stop.release)
			<-returned
			if err := <-m.failed; !strings.Contains(err.Error(), "full") {
				t.Errorf("the replica's error is %v", err)
			}
			if m.answered != answered || m.SQL.Applied() != applied {
				t.Errorf("Applied was called %d times; the replica is at entry %d, want %d", m.answered-answered, m.SQL.Applied(), applied)
			}
			// Later calls return at once.
			if _, err := m.Update(append([]sm.Entry{}, h.entries[n+1:]...)); err != nil || m.answered != answered {
				t.Errorf("a later Update: %v; Applied was called %d times", err, m.answered-answered)
			}
			if err := m.Sync(); err != nil {
				t.Error("a later Sync:", err)
			}
			if _, err := m.PrepareSnapshot(); err != sm.ErrSnapshotStopped {
				t.Error("a later PrepareSnapshot:", err)
			}
			if err := m.RecoverFromSnapshot(strings.NewReader(""), nil); err != sm.ErrSnapshotStopped {
				t.Error("a later RecoverFromSnapshot:", err)
			}
			select {
			case err := <-m.failed:
				t.Error("Failed was called again:", err)
			default:
			}
			free()
			m.index = uint64(len(h.entries))
			m.restart(h)
			if got := m.rows("SELECT n FROM applied WHERE n IN (7,8,9)"); got != "7\n8\n9" {
				t.Errorf("after the restart: %q", got)
			}
			healthy := emptyMachine(t)
			healthy.apply(h.entries...)
			if m.hash() != healthy.hash() {
				t.Error("the replica differs from one whose disk was never full")
			}
		})
	}
}

// The rows fit on the disk, but not the meta rows that are written with them.
func TestAFullDiskAtCommitIsNotAResult(t *testing.T) {
	h := newCounterHistory()
	m := emptyMachine(t)
	m.apply(h.entries...)
	m.fillDisk()
	n := len(h.entries)
	// The result, which is kept in the meta table, needs pages of its own.
	h.do(op(fmt.Sprintf("UPDATE applied SET n=1 RETURNING hex(zeroblob(%d))", 1)), op("SELECT hex(zeroblob(1900))"), op("SELECT hex(zeroblob(1901))"), op("SELECT hex(zeroblob(1902))"))
	answered := m.answered
	if _, err := m.Update(append([]sm.Entry{}, h.entries[n:]...)); err != nil {
		t.Fatal(err)
	}
	if err := <-m.failed; !strings.Contains(err.Error(), "full") {
		t.Errorf("the replica's error is %v", err)
	}
	if m.answered != answered {
		t.Errorf("Applied was called %d times", m.answered-answered)
	}
}

// SQLite's error for an exhausted AUTOINCREMENT is SQLITE_FULL too, but it happens on every
// replica, and so is a result.
func TestAnExhaustedAutoincrementIsAResult(t *testing.T) {
	for _, value := range []string{"9223372036854775807", "'9223372036854775807'", "9.3e18"} {
		h := newCounterHistory()
		h.sql("CREATE TABLE Auto(id INTEGER PRIMARY KEY AUTOINCREMENT)", "CREATE TABLE other(a); CREATE TRIGGER tr AFTER INSERT ON other BEGIN INSERT INTO auto VALUES(NULL); END",
			"INSERT INTO auto DEFAULT VALUES", "UPDATE sqlite_sequence SET seq="+value)
		h.do(insert(1), op("INSERT INTO auto DEFAULT VALUES"), insert(2), op("INSERT INTO other VALUES(1)"), insert(3))
		m := agree(t, h)
		r := m.got[[2]uint64{1, h.seq}]
		for _, i := range []int{1, 3} {
			if e := r[i].Err; e == nil || e.Code != sqlite.CodeFull || e.Hint == "" {
				t.Errorf("%s: the error of operation %d is %v", value, i, e)
			}
		}
		if got := m.applied(); got != "1|1\n2|1\n3|1" {
			t.Errorf("%s: the rows of the other operations are %q", value, got)
		}
	}
}

// The largest rowid is refused in every kind of statement, because SQLite would choose
// random rowids after it.
func TestTheLargestRowidIsRefused(t *testing.T) {
	for _, text := range []string{
		"INSERT INTO t(id) VALUES(9223372036854775807)",
		"UPDATE t SET id=9223372036854775807 WHERE id=1",
		"INSERT INTO t(id) VALUES(9223372036854775806); INSERT INTO t(v) VALUES('next'); INSERT INTO t(v) VALUES('random')",
		"INSERT INTO plain(rowid, a) VALUES(9223372036854775807, 1)",
		"INSERT INTO t(id) VALUES(9223372036854775807); DELETE FROM t WHERE id=9223372036854775807",
		"INSERT INTO v VALUES(9223372036854775807)",
		"INSERT INTO ft(rowid, x) VALUES(9223372036854775807, 'a')",
		"INSERT INTO rt VALUES(9223372036854775807, 1, 2)",
	} {
		h := newHistory()
		h.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE plain(a); INSERT INTO t VALUES(1,1)",
			"CREATE VIEW v AS SELECT id FROM t; CREATE TRIGGER tv INSTEAD OF INSERT ON v BEGIN INSERT INTO t(id) VALUES(new.id); END",
			"CREATE VIRTUAL TABLE ft USING fts5(x); CREATE VIRTUAL TABLE rt USING rtree(id, a, b)")
		h.sql(text, "INSERT INTO t(v) VALUES('after'); INSERT INTO plain VALUES('after'); INSERT INTO ft VALUES('after'); INSERT INTO rt(a,b) VALUES(5,6)")
		m := agree(t, h, "SELECT rowid, * FROM t", "SELECT rowid, * FROM plain", "SELECT rowid FROM ft", "SELECT id FROM rt")
		if e := m.got[[2]uint64{1, 4}][0].Err; e == nil || e.Code != sqlite.CodeFull || e.Hint == "" {
			t.Errorf("%s: the error is %v", text, e)
		}
		if e := m.got[[2]uint64{1, 5}][0].Err; e != nil {
			t.Errorf("after %s: %v", text, e)
		}
	}
}

// If a replica has failed, Update does not return before the replica is stopped. Raft would
// take the entries, which were not applied, for applied.
func TestUpdateWaitsForTheStop(t *testing.T) {
	disk := errors.New("the disk is nearly full")
	for name, start := range map[string]func(t *testing.T, failed func(error)) (fail func(error), update func() error){
		"SQL": func(t *testing.T, failed func(error)) (func(error), func() error) {
			m := emptyMachine(t)
			m.SQL.failure = statemachine.NewFailure(failed)
			return m.SQL.Fail, func() error { _, err := m.SQL.Update([]sm.Entry{{Index: 1}}); return err }
		},
		"in memory": func(t *testing.T, failed func(error)) (func(error), func() error) {
			kv := memory.NewKV(memory.Config{Listener: failureListener{failed: failed}})
			return kv.Fail, func() error { _, err := kv.Update([]sm.Entry{{Index: 1}}); return err }
		},
	} {
		t.Run(name, func(t *testing.T) {
			stopping, stopped := make(chan struct{}), make(chan struct{})
			fail, update := start(t, func(error) { close(stopping); <-stopped })
			failed, updated := make(chan struct{}), make(chan error, 1)
			go func() { fail(disk); close(failed) }()
			<-stopping
			go func() { updated <- update() }()
			for range 100 {
				runtime.Gosched()
				select {
				case <-updated:
					t.Fatal("Update returned before the replica was stopped")
				default:
				}
			}
			close(stopped)
			<-failed
			if err := <-updated; err != nil {
				t.Error(err)
			}
		})
	}
}

// A failureListener is the listener of an in-memory machine that handles only Failed.
type failureListener struct {
	memory.Listener
	failed func(error)
}

func (l failureListener) Failed(err error) { l.failed(err) }
