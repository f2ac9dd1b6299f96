package replica

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"

	_ "modernc.org/sqlite" // another SQLite

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// onDisk returns a replica with some hundred pages, all in the database file, and
// its history. It was restarted, so that nothing is in memory.
func onDisk(t *testing.T) (*machine, *history) {
	t.Helper()
	h := newHistory()
	h.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v)",
		"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<3000) INSERT INTO t(v) SELECT printf('%0*d', 50+n%400, n) FROM c")
	m := emptyMachine(t)
	m.apply(h.entries...)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	m.index = uint64(len(h.entries))
	m.restart(h)
	return m, h
}

func (m *machine) database() string {
	return filepath.Join(m.storage.path(m.storage.generation), databaseFile)
}

// flip flips a bit of a file. The file stays open until the test ends: to close
// it would drop SQLite's locks.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

const allRows = "SELECT count(*), sum(id*length(v)), (SELECT sum(length(v)) FROM (SELECT v FROM t INDEXED BY tv ORDER BY v)) FROM t"

// A page that is not as it was written is never an answer, nor part of a
// snapshot: whoever meets it stops the replica.
func TestDamageStopsTheReplica(t *testing.T) {
	for name, meet := range map[string]func(m *machine, h *history) error{
		"a read": func(m *machine, _ *history) error { _, err := m.query(allRows); return err },
		"a write": func(m *machine, h *history) error {
			told := m.told
			h.sql("UPDATE t SET v=v||'!'")
			if _, err := m.Update(h.entries[len(h.entries)-1:]); err != nil {
				m.t.Fatal(err)
			}
			if m.told != told {
				m.t.Error("the write was answered")
			}
			return m.Err()
		},
		"a transaction that reads": func(m *machine, _ *history) error {
			tx, err := m.Read(context.Background(), TransactionOptions{})
			if err != nil {
				return err
			}
			defer tx.Close()
			c, err := tx.Query(context.Background(), allRows, nil)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Next(nil)
			return err
		},
		"a snapshot": func(m *machine, _ *history) error {
			v, err := m.PrepareSnapshot()
			if err != nil {
				return err
			}
			var sent bytes.Buffer
			err = m.SaveSnapshot(v, &sent, nil)
			if sent.Len() > 0 {
				m.t.Error("a part of the snapshot was sent")
			}
			return err
		},
		"nobody but the scrubber": func(m *machine, h *history) error {
			copyFolder(m.t, m.dir, m.dir+"2") // as a kill leaves it
			m.Close()
			m.dir += "2"
			m.start()
			return <-m.failed
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, h := onDisk(t)
			m.log = slog.New(slog.NewTextHandler(io.Discard, nil))
			flip(t, m.database(), fileSize(m.database())/2+77)
			if err := meet(m, h); err == nil {
				t.Error("it went unnoticed")
			}
			if name != "nobody but the scrubber" {
				<-m.failed
			}
			if err := m.Err(); !errors.Is(err, ErrDamaged) {
				t.Errorf("the replica's error: %v", err)
			}
			if _, err := m.query("SELECT 1"); err == nil {
				t.Error("it reads on")
			}
			if _, err := m.PrepareSnapshot(); !errors.Is(err, sm.ErrSnapshotStopped) {
				t.Errorf("a later snapshot: %v", err)
			}
		})
	}
}

// Files that were cut, emptied or exchanged while the replica was down.
func TestDamagedFilesAreSeenAtOpen(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, database string){
		"cut to a half":           func(t *testing.T, p string) { cut(t, p, fileSize(p)/2/4096*4096) },
		"cut by a page":           func(t *testing.T, p string) { cut(t, p, fileSize(p)-4096) },
		"cut within a page":       func(t *testing.T, p string) { cut(t, p, fileSize(p)-100) },
		"emptied":                 func(t *testing.T, p string) { cut(t, p, 0) },
		"zeros from a half on":    func(t *testing.T, p string) { size := fileSize(p); cut(t, p, size/2/4096*4096); cut(t, p, size) },
		"another database":        func(t *testing.T, p string) { other(t, p) },
		"another SQLite wrote it": func(t *testing.T, p string) { stockWrite(t, p) },
	} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed: %v", name, killed), func(t *testing.T) {
				m, h := onDisk(t)
				h.sql("INSERT INTO t(v) VALUES('the last')") // in the write-ahead log
				m.apply(h.entries[len(h.entries)-1])
				want := m.rows(allRows)
				if err := m.Sync(); err != nil {
					t.Fatal(err)
				}
				path := m.database()
				if killed {
					copyFolder(t, m.dir, m.dir+"2")
					m.Close()
					m.dir += "2"
					path = strings.Replace(path, "/sql/", "/sql2/", 1)
				} else {
					m.Close()
				}
				harm(t, path)
				m.SQL = New(Config{Dir: m.dir, Listener: m, Leases: m, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
				defer m.SQL.Close()
				_, err := m.Open(nil)
				if err == nil {
					var got string
					if got, err = m.query(allRows); err == nil && got != want {
						t.Errorf("other rows: %s, want %s", got, want)
					} else if err == nil && killed {
						return // what is missing is in the write-ahead log
					}
					err = m.Err()
				}
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("%v, want ErrDamaged", err)
				}
			})
		}
	}
}

func cut(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// other puts a database of somebody else in the place of the one at path.
func other(t *testing.T, path string) {
	t.Helper()
	remove(t, path)
	c, err := sqlite.Open(path, sqlite.Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Exec("PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v); INSERT INTO t VALUES(1,'x')"); err != nil {
		t.Fatal(err)
	}
}

// A write-ahead log of which a part was copied into the database must not end
// before that: there would be old pages beside new ones.
func TestALogThatEndsBeforeItWasCopiedIsDamage(t *testing.T) {
	m, h := onDisk(t)
	for i := range 60 {
		h.sql(fmt.Sprintf("UPDATE t SET v='%d'||substr(v, 3) WHERE id%%60=%d", i+10, i))
		m.apply(h.entries[len(h.entries)-1])
	}
	if err := m.checkpoints.checkpoint(); err != nil {
		t.Fatal(err)
	}
	want := m.rows(allRows)
	m.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	dir := m.dir + "-killed"
	copyFolder(t, m.dir, dir)
	m.Close()
	wal := filepath.Join(dir, "generation-1", databaseFile+"-wal")
	size, wrong := fileSize(wal), 0
	if size < 1<<20 {
		t.Fatalf("the log has only %d bytes", size)
	}
	for at := int64(60); at < size; at += size / 23 {
		copyFolder(t, dir, m.dir)
		b, err := os.ReadFile(wal)
		if err != nil {
			t.Fatal(err)
		}
		b[at] ^= 0x10
		write(t, filepath.Join(m.dir, "generation-1", databaseFile+"-wal"), string(b))
		m.SQL = New(Config{Dir: m.dir, Listener: m, Leases: m, Logger: m.log})
		if _, err := m.Open(nil); err == nil {
			if got := m.rows(allRows); got != want {
				wrong++
				t.Errorf("bit at %d: other rows", at)
			}
		} else if !errors.Is(err, ErrDamaged) {
			t.Errorf("bit at %d: %v", at, err)
		}
		m.SQL.Close()
	}
}

// A snapshot that was made of damaged pages, or damaged on its way, is not taken.
func TestADamagedSnapshotIsNotTaken(t *testing.T) {
	m, _ := onDisk(t)
	path := filepath.Join(t.TempDir(), "copy.db")
	m.mu.Lock()
	err := m.conn.CopyTo(path, nil)
	m.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	write(t, path, string(b))
	var sent bytes.Buffer
	if err := writeSnapshot(&sent, wire.AppendState(nil, m.state()), path, nil); !errors.Is(damaged(err), ErrDamaged) || sent.Len() > 0 {
		t.Errorf("%d bytes of it were sent, %v", sent.Len(), err)
	}
}

// After a Close the next start has no need to read all pages; after a kill, and
// when somebody has exchanged the file, it has.
func TestWhenAllPagesAreRead(t *testing.T) {
	m, _ := onDisk(t)
	killed := m.dir + "-killed"
	copyFolder(t, m.dir, killed)
	m.Close()
	opened := func(dir string) bool {
		t.Helper()
		s := &storage{dir: dir}
		if _, err := s.open(); err != nil {
			t.Fatal(err)
		}
		asClosed, err := s.asClosed()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.opened(); err != nil {
			t.Fatal(err)
		}
		return asClosed
	}
	exchanged := m.dir + "-exchanged"
	copyFolder(t, m.dir, exchanged)
	if opened(exchanged) {
		t.Error("a copy is taken for the file that was closed")
	}
	if opened(killed) {
		t.Error("what a kill left is taken for closed")
	}
	if !opened(m.dir) {
		t.Error("a closed one is not known again")
	}
	if opened(m.dir) {
		t.Error("it is taken for closed twice")
	}
}

// stockWrite lets another SQLite write into the database at path.
func stockWrite(t *testing.T, path string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE t SET v='theirs' WHERE id=1500"); err != nil {
		t.Fatal(err)
	}
}
