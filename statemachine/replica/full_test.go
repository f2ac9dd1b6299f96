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

// fill makes the disk of m full until the returned function is called.
func (m *machine) fill() (free func()) {
	free = sqlite.FailFiles(func(op, path string) int {
		if op == "write" && strings.HasPrefix(path, m.dir) {
			return sqlite.CodeFull
		}
		return 0
	})
	m.t.Cleanup(free)
	return free
}

// blocked is a Failed that does not return before it is told to.
type blocked struct {
	*machine
	entered, leave chan struct{}
}

func (b *blocked) Failed(err error) {
	close(b.entered)
	<-b.leave
	b.machine.Failed(err)
}

// A disk that is full is this node's trouble: nobody is told anything, the
// replica stops, and applies the entry again when there is space.
func TestAFullDiskIsNoResult(t *testing.T) {
	h := counter()
	h.sql("CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, a)", "CREATE TABLE spent(id INTEGER PRIMARY KEY AUTOINCREMENT)",
		"INSERT INTO spent VALUES(1)", "UPDATE sqlite_sequence SET seq=9223372036854775807 WHERE name='spent'")
	n := len(h.entries)
	large := "INSERT INTO applied SELECT zeroblob(100000)"
	for name, text := range map[string]string{
		"a statement":                large,
		"a script":                   "INSERT INTO applied VALUES(1); " + large,
		"an AUTOINCREMENT with room": "INSERT INTO auto(a) SELECT zeroblob(100000)",
		"a CREATE INDEX":             "CREATE TABLE x AS SELECT zeroblob(1000000)",
	} {
		t.Run(name, func(t *testing.T) {
			m := emptyMachine(t)
			stop := &blocked{machine: m, entered: make(chan struct{}), leave: make(chan struct{})}
			m.SQL.cfg.Listener = stop
			m.apply(h.entries...)
			if err := m.Sync(); err != nil {
				t.Fatal(err)
			}
			free := m.fill()
			h := &history{entries: h.entries[:n:n], seq: h.seq}
			h.do(insert(7), op(text), insert(8))
			h.do(insert(9))
			told, applied := m.told, m.SQL.Applied()

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
				t.Error("Update returned before the replica was stopped: the entry counts as applied")
			default:
			}
			close(stop.leave)
			<-returned
			if err := <-m.failed; !strings.Contains(err.Error(), "full") {
				t.Errorf("it stopped because %v", err)
			}
			if m.told != told || m.SQL.Applied() != applied {
				t.Errorf("%d answers, at entry %d instead of %d", m.told-told, m.SQL.Applied(), applied)
			}
			// Later calls return without work.
			if _, err := m.Update(append([]sm.Entry{}, h.entries[n+1:]...)); err != nil || m.told != told {
				t.Errorf("a later Update: %v, %d answers", err, m.told-told)
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
				t.Error("the replica differs from one that was never full")
			}
		})
	}
}

// The rows fit, but not what the replica writes with them.
func TestAFullDiskAtCommitIsNoResult(t *testing.T) {
	h := counter()
	m := emptyMachine(t)
	m.apply(h.entries...)
	m.fill()
	n := len(h.entries)
	// The answer, kept in the meta table, takes pages of its own.
	h.do(op(fmt.Sprintf("UPDATE applied SET n=1 RETURNING hex(zeroblob(%d))", 1)), op("SELECT hex(zeroblob(1900))"), op("SELECT hex(zeroblob(1901))"), op("SELECT hex(zeroblob(1902))"))
	told := m.told
	if _, err := m.Update(append([]sm.Entry{}, h.entries[n:]...)); err != nil {
		t.Fatal(err)
	}
	if err := <-m.failed; !strings.Contains(err.Error(), "full") {
		t.Errorf("it stopped because %v", err)
	}
	if m.told != told {
		t.Errorf("%d answers", m.told-told)
	}
}

// SQLite says "full" of an AUTOINCREMENT at its end too, on every replica.
func TestAnExhaustedAutoincrementIsAResult(t *testing.T) {
	for _, value := range []string{"9223372036854775807", "'9223372036854775807'", "9.3e18"} {
		h := counter()
		h.sql("CREATE TABLE Auto(id INTEGER PRIMARY KEY AUTOINCREMENT)", "CREATE TABLE other(a); CREATE TRIGGER tr AFTER INSERT ON other BEGIN INSERT INTO auto VALUES(NULL); END",
			"INSERT INTO auto DEFAULT VALUES", "UPDATE sqlite_sequence SET seq="+value)
		h.do(insert(1), op("INSERT INTO auto DEFAULT VALUES"), insert(2), op("INSERT INTO other VALUES(1)"), insert(3))
		m := agree(t, h)
		r := m.got[[2]uint64{1, h.seq}]
		for _, i := range []int{1, 3} {
			if e := r[i].Err; e == nil || e.Code != sqlite.CodeFull || e.Hint == "" {
				t.Errorf("%s: operation %d answered %v", value, i, e)
			}
		}
		if got := m.applied(); got != "1|1\n2|1\n3|1" {
			t.Errorf("%s: the others: %q", value, got)
		}
	}
}

// Behind the largest rowid SQLite chooses at random.
func TestTheLargestRowidIsRefusedWhateverTakesIt(t *testing.T) {
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
			t.Errorf("%s answered %v", text, e)
		}
		if e := m.got[[2]uint64{1, 5}][0].Err; e != nil {
			t.Errorf("after %s: %v", text, e)
		}
	}
}

// A replica that others have found unable to go on leaves nothing out before it
// has been stopped: Raft would take it for applied.
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

// A failureListener of an in-memory shard is told of the failure only.
type failureListener struct {
	memory.Listener
	failed func(error)
}

func (l failureListener) Failed(err error) { l.failed(err) }
