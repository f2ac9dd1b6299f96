package hiqlite_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check that all replicas hold the same rows.

// A workload is what one client does: random SQL. Much of it would not be
// deterministic in plain SQLite, and some of it fails.
type workload struct {
	random *rand.Rand
	tables int
}

func (w *workload) statement() (text string, args []any) {
	r := w.random
	t := fmt.Sprintf("e%d", r.IntN(w.tables))
	switch r.IntN(20) {
	case 0, 1, 2, 3:
		return "INSERT INTO " + t + "(k, v) VALUES(?, ?)", []any{r.IntN(500), fmt.Sprint("v", r.IntN(1000))}
	case 4:
		return "INSERT INTO " + t + "(k, v) VALUES(?, hex(randomblob(8))) ON CONFLICT(k) DO UPDATE SET v = v || random(), n = n + 1 RETURNING *", []any{r.IntN(500)}
	case 5:
		return "UPDATE " + t + " SET v = random(), at = datetime('now', 'subsec') WHERE k % 7 = ?", []any{r.IntN(7)}
	case 6:
		return "DELETE FROM " + t + " WHERE rowid IN (SELECT rowid FROM " + t + " ORDER BY random() LIMIT 3)", nil
	case 7:
		return "INSERT OR REPLACE INTO " + t + "(k, v) SELECT k + 1, v FROM " + t + " ORDER BY random() LIMIT 5", nil
	case 8:
		return "INSERT OR ROLLBACK INTO " + t + "(k, v) VALUES(?, 'rollback'), (1, 'again'), (1, 'again')", []any{r.IntN(500)}
	case 9:
		return "INSERT OR FAIL INTO " + t + "(k, v) VALUES(?, 'kept'), (1, 'x'), (1, 'fails')", []any{500 + r.IntN(500)}
	case 10:
		return "INSERT INTO " + t + "(k, v) VALUES(?, NULL)", []any{r.IntN(500)} // NOT NULL
	case 11:
		return fmt.Sprintf("INSERT INTO %s(k, v) VALUES(%d, datetime('now','localtime')); UPDATE %s SET n = changes() + last_insert_rowid() WHERE k = %d; SELECT 1", t, 2000+r.IntN(500), t, r.IntN(500)), nil
	case 12:
		return fmt.Sprintf("INSERT INTO %s(k, v) VALUES(%d, 'half'); INSERT INTO missing VALUES(1)", t, 3000+r.IntN(500)), nil
	case 13:
		return "INSERT INTO child(parent) SELECT id FROM parent ORDER BY random() LIMIT 2", nil
	case 14:
		return "INSERT INTO child(parent) VALUES(?)", []any{r.IntN(100)} // may violate the deferred key
	case 15:
		return "INSERT INTO parent DEFAULT VALUES RETURNING id, made, dice", nil
	case 16:
		return fmt.Sprintf("CREATE TABLE IF NOT EXISTS x%d(a DEFAULT (random()), b DEFAULT CURRENT_TIMESTAMP); INSERT INTO x%d DEFAULT VALUES", r.IntN(4), r.IntN(4)), nil
	case 17:
		return []string{"DROP TABLE IF EXISTS x1", "CREATE INDEX IF NOT EXISTS e0v ON e0(v)", "DROP INDEX IF EXISTS e0v", "ANALYZE", "REINDEX", "PRAGMA user_version=7", "VACUUM"}[r.IntN(7)], nil
	case 18:
		return "INSERT INTO words(body) VALUES(?)", []any{fmt.Sprint("some words ", r.IntN(100))}
	default:
		return "DELETE FROM words WHERE rowid IN (SELECT rowid FROM words WHERE words MATCH ? ORDER BY random() LIMIT 1)", []any{fmt.Sprint(r.IntN(100))}
	}
}

const equalitySchema = `
	CREATE TABLE parent(id INTEGER PRIMARY KEY AUTOINCREMENT, made TEXT DEFAULT CURRENT_TIMESTAMP, dice INTEGER DEFAULT (random()));
	CREATE TABLE child(id INTEGER PRIMARY KEY, parent REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED, at DEFAULT (julianday('now')));
	CREATE TABLE log(what, at DEFAULT (strftime('%f','now')), r DEFAULT (random()));
	CREATE VIRTUAL TABLE words USING fts5(body)`

// Clients run random SQL through all nodes, with restarts and snapshots in between.
// All replicas then hold the same rows with the same rowids.
func TestReplicasAreEqual(t *testing.T) {
	t.Parallel()
	const rounds, clients, each = 4, 6, 120
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), equalitySchema)
	for i := range 3 {
		mustExec(t, c.DB(i), fmt.Sprintf(`CREATE TABLE e%d(k INTEGER UNIQUE, v TEXT NOT NULL, n INTEGER DEFAULT 0, at DEFAULT CURRENT_TIMESTAMP);
			CREATE TRIGGER e%[1]dt AFTER UPDATE ON e%[1]d BEGIN INSERT INTO log(what) VALUES(new.k || '/' || abs(random() %% 10)); END`, i))
	}
	for round := range rounds {
		var wait sync.WaitGroup
		for client := range clients {
			w := &workload{random: rand.New(rand.NewPCG(seed, uint64(round*clients+client))), tables: 3}
			db := c.DB(client % 3)
			wait.Go(func() {
				for range each {
					text, args := w.statement()
					_, err := db.ExecContext(testrun.Context(t), text, args...)
					var e *hiqlite.Error
					if err != nil && !errors.As(err, &e) {
						t.Errorf("%s: %v", text, err)
					}
				}
			})
		}
		wait.Wait()
		c.WaitEqual()
		// A node that was stopped while the log was compacted gets a snapshot.
		away := round % 3
		c.Stop(away)
		mustExec(t, c.DB((away+1)%3), "INSERT INTO log(what) VALUES('one is away')")
		for i, n := range c.Nodes() {
			if i != away {
				c.WaitReady(i)
				if err := n.Compact(0); err != nil {
					t.Fatal(err)
				}
			}
		}
		mustExec(t, c.DB((away+1)%3), "INSERT INTO log(what) SELECT random() FROM log LIMIT 10")
		c.Start(away)
		c.WaitReady(away)
		c.WaitEqual()
	}
	var n int
	if err := c.DB(0).QueryRow("SELECT count(*) FROM log").Scan(&n); err != nil || n == 0 {
		t.Errorf("the workload has written %d rows into the log, %v", n, err)
	}
}

// A node that was stopped while entries that it needs were removed from the log
// receives the database, and its readers then read the new one.
func TestSnapshotReplacesTheDatabase(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	mustExec(t, c.DB(0), "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM s WHERE n < 2000) INSERT INTO t(v) SELECT randomblob(1000) FROM s")
	c.WaitReady(2)
	c.Stop(2)
	mustExec(t, c.DB(0), "UPDATE t SET v = randomblob(1000)")
	for i := range 2 {
		c.WaitReady(i)
		if err := c.Node(i).Compact(0); err != nil {
			t.Fatal(err)
		}
	}
	mustExec(t, c.DB(1), "INSERT INTO t(v) VALUES('after')")
	c.Start(2)
	// This opens a reader on the old database, which must not be used afterwards.
	var before int
	if err := c.DB(2).QueryRow("SELECT count(*) FROM t").Scan(&before); err != nil {
		t.Fatal(err)
	}
	ctx := linearizable(t)
	var after int
	if err := c.DB(2).QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&after); err != nil || after != 2001 {
		t.Errorf("a linearizable read counts %d rows, want 2001, %v; a read before it has counted %d", after, err, before)
	}
	c.WaitEqual()
	c.restart(2)
	c.WaitEqual()
}

// Nodes compact the log by themselves when it has grown: a node that was stopped in
// the meantime receives the database.
func TestLogIsCompactedBySize(t *testing.T) {
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.HookCompaction(20*time.Millisecond, 1<<20) })
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	c.WaitReady(2)
	c.Stop(2)
	generation := filepath.Join(c.Config(2).DataDir, "sql", "CURRENT")
	before, err := os.ReadFile(generation)
	if err != nil {
		t.Fatal(err)
	}
	testrun.WaitFor(t, "the database to be sent", func() bool {
		for range 20 {
			mustExec(t, c.DB(0), "INSERT OR REPLACE INTO t VALUES(1, ?)", make([]byte, 100<<10)) // which are few bytes in the compressed log
			mustExec(t, c.DB(1), "INSERT OR REPLACE INTO t VALUES(2, ?)", random(100<<10))
		}
		c.Start(2)
		c.WaitReady(2)
		c.Stop(2)
		after, err := os.ReadFile(generation)
		if err != nil {
			t.Fatal(err)
		}
		return string(after) != string(before)
	})
	c.Start(2)
	c.WaitEqual()
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// SQLite draws some numbers from a generator of the process, not of the operation.
// None of them may get into rows or the schema, because replicas would differ.
func TestNoRandomNumbersOfTheProcessInRows(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE t(id INTEGER PRIMARY KEY, a); CREATE TABLE six(a,b,c,d,e,f); CREATE TABLE log(what); CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO auto VALUES(5); INSERT INTO t(a) VALUES('x'),('y'); ANALYZE")
		mustExec(t, db, "CREATE VIEW wide AS SELECT a, a, a, a, a, a FROM t; CREATE VIEW broken AS SELECT * FROM nosuch")
		mustExec(t, db, `CREATE VIRTUAL TABLE r USING rtree(id, lo, hi); CREATE VIRTUAL TABLE f USING fts5(x); CREATE VIRTUAL TABLE ext USING fts5(a, content='t', content_rowid='id'); CREATE VIRTUAL TABLE less USING fts5(x, content='');
			CREATE VIRTUAL TABLE loc USING fts5(x, locale=1); CREATE VIRTUAL TABLE g USING geopoly(n)`)
		wantRefused := func(words string, texts ...string) {
			t.Helper()
			for _, text := range texts {
				if _, err := db.ExecContext(testrun.Context(t), text); err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("%s: %v", text, err)
				}
				if _, err := db.ExecContext(testrun.Context(t), "INSERT INTO log VALUES('before'); "+text); err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("%s in a script: %v", text, err)
				}
				tx := mustBegin(t, db)
				if _, err := tx.ExecContext(testrun.Context(t), text); err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("%s in a transaction: %v", text, err)
				}
				tx.Rollback()
			}
		}
		wantRefused("named at random",
			"CREATE TABLE u AS SELECT a, a, a, a, a, a FROM t",
			"CREATE TABLE u AS SELECT * FROM t a, t b, t c, t d, t e, t f",
			"CREATE TABLE u AS SELECT a, A, a, A, a, A, a, A FROM t",
			`CREATE TABLE u AS SELECT 1 AS "x:12", 2 AS "x:12", 3 AS "x:12", 4 AS "x:12", 5 AS "x:12", 6 AS "x:12"`,
			"CREATE TABLE u AS SELECT * FROM wide", "CREATE TABLE u AS SELECT * FROM (SELECT a, a, a, a, a, a FROM t)", "CREATE TABLE u AS WITH c AS (SELECT a, a, a, a, a, a FROM t) SELECT * FROM c",
			"CREATE TABLE u AS SELECT t.*, wide.* FROM t NATURAL JOIN wide",
			"INSERT INTO log SELECT name FROM pragma_table_info('wide')", "INSERT INTO log SELECT x.name FROM sqlite_schema s, pragma_table_xinfo(s.name) x WHERE s.name<>'broken'",
			"UPDATE log SET what=(SELECT group_concat(name) FROM pragma_table_info('wide'))")
		for _, text := range []string{
			"CREATE TABLE five AS SELECT a, a, a, a, a FROM t", "CREATE TABLE named AS SELECT a AS b, a, a, a, a, a FROM t", "INSERT INTO six SELECT * FROM wide", "INSERT INTO six SELECT * FROM (SELECT a, a, a, a, a, a FROM t)",
			`CREATE TABLE numbers AS SELECT 1 AS "x:1", 2 AS "x:2", 3 AS "x:3", 4 AS "y:4", 5 AS "x:99", 6 AS ":5", 7 AS "x:4"`, `CREATE TABLE given("x:1", "x:2", "x:3", "x:4", "x:5")`,
			"INSERT INTO log VALUES(fts5_locale('en_US', 'localized'))", "INSERT INTO loc VALUES(fts5_locale('de', 'worte'))", "INSERT INTO loc SELECT what FROM log",
		} {
			mustExec(t, db, text)
		}
		var n int
		if err := db.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM wide").Scan(&n); err != nil || n != 2 {
			t.Errorf("the view has %d rows, %v", n, err)
		}
		wantRefused("largest rowid", "INSERT INTO t(id) VALUES(9223372036854775807)", "UPDATE t SET id=9223372036854775807 WHERE id=1", "INSERT INTO six(rowid,a) VALUES(9223372036854775807,1)", "REPLACE INTO t(id) SELECT 9223372036854775807",
			"INSERT INTO r VALUES(9223372036854775807,1,2)", "INSERT INTO f(rowid,x) VALUES(9223372036854775807,'w')", "INSERT INTO ext(rowid,a) VALUES(9223372036854775807,'w')", "INSERT INTO less(rowid,x) VALUES(9223372036854775807,'w')",
			"INSERT INTO g(rowid,_shape) VALUES(9223372036854775807,'[[0,0],[1,0],[1,1],[0,0]]')", "INSERT INTO sqlite_sequence(rowid,name,seq) VALUES(9223372036854775807,'x',1)", "INSERT INTO sqlite_stat1(rowid,tbl) VALUES(9223372036854775807,'x')")
		mustExec(t, db, "INSERT INTO t(a) VALUES('next'); INSERT INTO r VALUES(NULL,1,2); INSERT INTO f VALUES('next'); INSERT INTO less VALUES('next'); INSERT INTO sqlite_sequence(name,seq) VALUES('y',1); ANALYZE")
		// By now, the random generators of the nodes are in different states.
		for i := range c.Len() {
			if err := c.DB(i).QueryRowContext(testrun.Context(t), "SELECT count(*), max(id) FROM t").Scan(&n, new(int)); err != nil {
				t.Error(err)
			}
			mustExec(t, c.DB(i), "INSERT INTO log VALUES(fts5_locale('en_US', 'again'))")
		}
		c.WaitEqual()
	})
}
