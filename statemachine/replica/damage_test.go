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

	_ "modernc.org/sqlite" // to write a database without hiqlite

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// newMachineOnDisk returns a replica with some hundred pages, and its history. All pages
// are in the database file. The replica was restarted, so that nothing is cached.
func newMachineOnDisk(t *testing.T) (*machine, *history) {
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

// flip flips a bit of a file. It leaves the file open until the test ends, because closing
// it would release SQLite's locks.
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

// A damaged page never becomes part of a result or of a snapshot. Whatever reads it first
// stops the replica.
func TestDamageStopsTheReplica(t *testing.T) {
	for name, meet := range map[string]func(m *machine, h *history) error{
		"a read": func(m *machine, _ *history) error { _, err := m.query(allRows); return err },
		"a write": func(m *machine, h *history) error {
			answered := m.answered
			h.sql("UPDATE t SET v=v||'!'")
			if _, err := m.Update(h.entries[len(h.entries)-1:]); err != nil {
				m.t.Fatal(err)
			}
			if m.answered != answered {
				m.t.Error("the write has a result")
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
		"the scrubber": func(m *machine, h *history) error {
			copyFolder(m.t, m.dir, m.dir+"2") // the files as a kill leaves them
			m.Close()
			m.dir += "2"
			m.start()
			return <-m.failed
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, h := newMachineOnDisk(t)
			m.log = slog.New(slog.NewTextHandler(io.Discard, nil))
			flip(t, m.database(), fileSize(m.database())/2+77)
			if err := meet(m, h); err == nil {
				t.Error("the damage was not detected")
			}
			if name != "the scrubber" {
				<-m.failed
			}
			if err := m.Err(); !errors.Is(err, ErrDamaged) {
				t.Errorf("the replica's error: %v", err)
			}
			if _, err := m.query("SELECT 1"); err == nil {
				t.Error("a later read succeeds")
			}
			if _, err := m.PrepareSnapshot(); !errors.Is(err, sm.ErrSnapshotStopped) {
				t.Errorf("the error of a later snapshot is %v", err)
			}
		})
	}
}

// A replica does not open if its database file was truncated or replaced while the
// replica was down.
func TestDamagedFilesAreDetectedAtOpen(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, database string){
		"truncated to a half":     func(t *testing.T, p string) { cut(t, p, fileSize(p)/2/4096*4096) },
		"truncated by a page":     func(t *testing.T, p string) { cut(t, p, fileSize(p)-4096) },
		"truncated within a page": func(t *testing.T, p string) { cut(t, p, fileSize(p)-100) },
		"emptied":                 func(t *testing.T, p string) { cut(t, p, 0) },
		"zeros from a half on":    func(t *testing.T, p string) { size := fileSize(p); cut(t, p, size/2/4096*4096); cut(t, p, size) },
		"another database":        func(t *testing.T, p string) { replaceByOther(t, p) },
		"another SQLite wrote it": func(t *testing.T, p string) { stockWrite(t, p) },
	} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed: %v", name, killed), func(t *testing.T) {
				m, h := newMachineOnDisk(t)
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
						return // the write-ahead log has the missing pages
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

// replaceByOther replaces the database at path by another database.
func replaceByOther(t *testing.T, path string) {
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

// If a checkpoint has copied a part of the write-ahead log into the database, the log must
// not be damaged before the end of that part, because old pages would be mixed with new
// ones.
func TestDamageOfTheCheckpointedPartOfTheLogIsDetected(t *testing.T) {
	m, h := newMachineOnDisk(t)
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

// A snapshot of a damaged database is not sent.
func TestSnapshotsOfDamagedDatabasesAreNotSent(t *testing.T) {
	m, _ := newMachineOnDisk(t)
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
		t.Errorf("%d bytes were sent; the error is %v", sent.Len(), err)
	}
}

// If the replica was closed, the next start does not read all pages. It does so after a
// kill, and if somebody has replaced the file.
func TestWhenAllPagesAreRead(t *testing.T) {
	m, _ := newMachineOnDisk(t)
	killed := m.dir + "-killed"
	copyFolder(t, m.dir, killed)
	m.Close()
	openedAsClosed := func(dir string) bool {
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
	replaced := m.dir + "-replaced"
	copyFolder(t, m.dir, replaced)
	if openedAsClosed(replaced) {
		t.Error("a copy of the file counts as closed")
	}
	if openedAsClosed(killed) {
		t.Error("a file that a kill left counts as closed")
	}
	if !openedAsClosed(m.dir) {
		t.Error("the closed file does not count as closed")
	}
	if openedAsClosed(m.dir) {
		t.Error("the file counts as closed a second time")
	}
}

// stockWrite writes to the database at path without hiqlite.
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
