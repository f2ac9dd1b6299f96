package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// database makes a database at path with some thousand rows, and returns the connection
// that wrote it. Some of the rows are only in the write-ahead log.
func database(t *testing.T, path string) *Conn {
	t.Helper()
	c, err := Open(path, Apply)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.AsOwner(true)
	for _, text := range []string{
		"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=20", // pages are written, read and written again within a transaction
		"CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v); CREATE TABLE w(k TEXT PRIMARY KEY, n) WITHOUT ROWID",
		"BEGIN; WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<2000) INSERT INTO t(v) SELECT printf('%0*d', 50+n%500, n) FROM c; UPDATE t SET v=v||'x' WHERE id%3=0; DELETE FROM t WHERE id%5=0; COMMIT",
	} {
		if err := c.Exec(text); err != nil {
			t.Fatal(text, err)
		}
	}
	if err := c.Checkpoint(false); err != nil {
		t.Fatal(err)
	}
	if err := c.Exec("BEGIN; UPDATE t SET v=v||'y' WHERE id%7=0; SAVEPOINT s; UPDATE t SET v='lost'; ROLLBACK TO s; INSERT INTO w SELECT 'k'||id, id FROM t; COMMIT; DELETE FROM w WHERE n%11=0"); err != nil {
		t.Fatal(err)
	}
	return c
}

// digest is a query whose result depends on all rows of database.
const digest = "SELECT (SELECT count(*) FROM t) || ' ' || (SELECT sum(id*length(v)) FROM t) || ' ' || (SELECT group_concat(substr(v, -3), '') FROM (SELECT v FROM t ORDER BY v)) || (SELECT sum(n) FROM w)"

func (c *Conn) digest() (string, error) {
	s, _, err := c.Prepare(digest, false)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if _, err := s.Step(); err != nil {
		return "", err
	}
	return string(s.Bytes(0)), nil
}

// copyOf copies the files of a database that have the given suffixes ("", "-wal").
func copyOf(t *testing.T, path string, suffixes ...string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy.db")
	for _, suffix := range suffixes {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// Any SQLite can read the files, in particular the write-ahead log that a killed process
// leaves. If it copies the log into the database, the pages keep their seals.
func TestOtherSQLitesCanReadTheFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	c := database(t, path)
	want, err := c.digest()
	if err != nil {
		t.Fatal(err)
	}
	other := copyOf(t, path, "", "-wal")
	db, err := sql.Open("sqlite", other)
	if err != nil {
		t.Fatal(err)
	}
	var got, check string
	if err := db.QueryRow(digest).Scan(&got); err != nil || got != want {
		t.Errorf("another SQLite reads other rows: %v", err)
	}
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&check); err != nil || check != "ok" {
		t.Errorf("integrity_check of another SQLite: %q, %v", check, err)
	}
	if err := db.Close(); err != nil { // copies the log into the database
		t.Fatal(err)
	}
	if err := verify(other); err != nil {
		t.Errorf("after another SQLite has opened it: %v", err)
	}
	again, err := Open(other, Apply)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	again.AsOwner(true)
	if got, err := again.digest(); err != nil || got != want {
		t.Errorf("after another SQLite has opened it, the rows differ: %v", err)
	}
}

// Pages that another SQLite has written have no valid seal.
func TestWritesOfAnotherSQLiteAreDetected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	c := database(t, path)
	c.Close()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("UPDATE t SET v='theirs' WHERE id=77"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	c, err = Open(path, Apply)
	if err == nil {
		defer c.Close()
		_, err = c.digest()
	}
	if !isDamage(err) {
		t.Error("the write of another SQLite was not detected:", err)
	}
}

func isDamage(err error) bool {
	var e *Error
	var f *FileError
	return errors.As(err, &e) && IsCorrupt(e) || errors.As(err, &f) && f.Damaged
}

func verify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	v := new(Verifier)
	if _, err := io.Copy(v, f); err != nil {
		return err
	}
	return v.End()
}

// Whatever damages a page of the database, a query returns the right rows or an error.
func TestDamagedPages(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	path := filepath.Join(t.TempDir(), "x.db")
	c := database(t, path)
	want, err := c.digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil { // it copies the log into the database file
		t.Fatal(err)
	}
	if err := verify(path); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const size = 4096
	n := len(whole) / size
	page := func(b []byte, i int) []byte { return b[i*size : (i+1)*size] }
	damages := map[string]func(b []byte) []byte{
		"the second half is missing":       func(b []byte) []byte { return b[:n/2*size] },
		"the last page is missing":         func(b []byte) []byte { return b[:(n-1)*size] },
		"half of the last page is missing": func(b []byte) []byte { return b[:len(b)-size/2] },
		"the file is empty":                func([]byte) []byte { return nil },
		"the second half is zeros":         func(b []byte) []byte { clear(b[n/2*size:]); return b },
		"the first page is zeros":          func(b []byte) []byte { clear(b[:size]); return b },
		"a sector is zeros":                func(b []byte) []byte { clear(page(b, n/3)[size-512:]); return b },
		"two pages are exchanged": func(b []byte) []byte {
			keep := strings.Clone(string(page(b, 5)))
			copy(page(b, 5), page(b, 7))
			copy(page(b, 7), keep)
			return b
		},
		"a page has the content of another": func(b []byte) []byte { copy(page(b, 9), page(b, 8)); return b },
	}
	for at := 0; at < len(whole); at += 3061 {
		damages[fmt.Sprintf("bit %d of byte %d", at%8, at)] = func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b }
	}
	for at := range headerSize {
		damages[fmt.Sprintf("byte %d of the header", at)] = func(b []byte) []byte { b[at] ^= 0xff; return b }
	}
	dir, number := t.TempDir(), 0
	for name, damage := range damages {
		number++
		broken := filepath.Join(dir, fmt.Sprint(number))
		b := damage(append([]byte{}, whole...))
		if err := os.WriteFile(broken, b, 0o600); err != nil {
			t.Fatal(err)
		}
		verified := verify(broken)
		// The last eight bytes of a page, the balance, are not checked.
		harmless := strings.HasPrefix(name, "bit") && verified == nil
		if !harmless && !isDamage(verified) {
			t.Errorf("%s: the verifier returned %v", name, verified)
		}
		c, err := Open(broken, ReadOnly)
		if err == nil {
			var got string
			got, err = c.digest()
			if err == nil && got != want {
				t.Errorf("%s: the rows differ, and there is no error", name)
			}
			if err := c.CopyTo(broken+"-copied", nil); err == nil && !harmless && len(b) > 0 { // an empty file is an empty database
				t.Errorf("%s: the database was copied without an error", name)
			}
			c.Close()
		}
	}
}

// With a damaged write-ahead log, a query returns the right rows or an error.
func TestDamagedWriteAheadLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	c := database(t, path)
	now, err := c.digest()
	if err != nil {
		t.Fatal(err)
	}
	wal, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	frames := c.WALFrames()
	if frames < 50 {
		t.Fatalf("only %d frames", frames)
	}
	// The log is damaged while the database is open. SQLite itself does not check the
	// checksums of the log then.
	f, err := os.OpenFile(path+"-wal", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	detected := 0
	for at := 57; at < walHeader+frames*(frameHeader+4096); at += 4099 {
		if _, err := f.WriteAt([]byte{wal[at] ^ 4}, int64(at)); err != nil {
			t.Fatal(err)
		}
		var got string
		r, err := Open(path, ReadOnly)
		if err == nil {
			got, err = r.digest()
			r.Close()
		}
		switch {
		case err != nil && !isDamage(err):
			t.Errorf("byte %d: %v", at, err)
		case err != nil:
			detected++
		case got != now:
			t.Errorf("byte %d: the rows differ, and there is no error", at)
		}
		if _, err := f.WriteAt([]byte{wal[at]}, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if detected == 0 {
		t.Error("no flipped bit was detected")
	}
}

// BenchmarkSeal measures what the seal adds to the time of writing and reading a page.
func BenchmarkSeal(b *testing.B) {
	page := make([]byte, 4096)
	for i := range page {
		page[i] = byte(i * 7)
	}
	b.Run("write", func(b *testing.B) {
		for i := range b.N {
			seal(page, uint32(i+1))
		}
	})
	b.Run("read", func(b *testing.B) {
		seal(page, 5)
		for b.Loop() {
			if !validSeal(page, 5) {
				b.Fatal("the seal does not match")
			}
		}
	})
}
