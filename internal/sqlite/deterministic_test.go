package sqlite

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// query returns the rows of a query as text: columns separated by |, one row a line.
func query(t *testing.T, c *Conn, sql string) string {
	t.Helper()
	s, _, err := c.Prepare(sql, false)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	defer s.Close()
	var out []string
	for {
		row, err := s.Step()
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if !row {
			return strings.Join(out, "\n")
		}
		var cells []string
		for i := range s.ColumnCount() {
			cells = append(cells, string(s.Bytes(i)))
		}
		out = append(out, strings.Join(cells, "|"))
	}
}

// Two replicas execute the same operations in different time zones of their processes, and
// have the same rows.
func TestReplicasComputeTheSame(t *testing.T) {
	zone := time.Local
	defer func() { time.Local = zone }()
	script := []string{
		`CREATE TABLE t(id INTEGER PRIMARY KEY, a DEFAULT CURRENT_TIMESTAMP, b DEFAULT (datetime('now','subsec')), c DEFAULT (random()),
			d DEFAULT (hex(randomblob(5))), e DEFAULT (strftime('%s','now')), f DEFAULT (datetime('now','localtime')), g DEFAULT (julianday('now','utc')));
		 CREATE TABLE log(x);
		 CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES(random()||'/'||julianday('now')); END`,
		`INSERT INTO t DEFAULT VALUES`, `INSERT INTO t DEFAULT VALUES`, `INSERT INTO t(a) SELECT a FROM t ORDER BY random()`,
		`INSERT INTO log SELECT c FROM t ORDER BY random() LIMIT 2`, `INSERT INTO log VALUES(changes()), (total_changes()), (last_insert_rowid())`,
	}
	var dumps []string
	for i, name := range []string{"Asia/Tokyo", "America/New_York"} {
		t.Setenv("TZ", name)
		c, err := Open(filepath.Join(t.TempDir(), "data.db"), Apply)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			c.SetState(99, 98, 97) // as if other statements had run before
		}
		for n, sql := range script {
			c.Begin(&wire.Operation{StampMS: 1_700_000_000_123 + int64(n), Seed: wire.Seed{byte(n)}})
			if err := c.Exec(sql); err != nil {
				t.Fatal(err)
			}
		}
		dumps = append(dumps, query(t, c, "SELECT * FROM t")+"\n"+query(t, c, "SELECT * FROM log"))
		c.Close()
	}
	if dumps[0] != dumps[1] {
		t.Errorf("replicas differ:\n%s\n\n%s", dumps[0], dumps[1])
	}
	if !strings.Contains(dumps[0], "2023-11-14 22:13:20") {
		t.Errorf("the rows do not have the time of the operation: %s", dumps[0])
	}
}

func TestLargestRowidIsNoticed(t *testing.T) {
	c, _ := openPair(t)
	c.Begin(&wire.Operation{})
	if err := c.Exec("INSERT INTO t(a) VALUES(1)"); err != nil || c.TookMaxRowid() {
		t.Fatal("an ordinary rowid was reported as the largest", err)
	}
	for _, sql := range []string{"INSERT INTO t(a) VALUES(9223372036854775807)", "DELETE FROM t WHERE a<>1; UPDATE t SET a=9223372036854775807"} {
		if err := c.Exec(sql); err != nil || !c.TookMaxRowid() {
			t.Errorf("%s: the largest rowid was not reported: %v", sql, err)
		}
	}
}

// All replicas must reach the bound of steps at the same step, whatever their connections
// have executed before.
func TestCountOfStepsDoesNotDependOnEarlierRuns(t *testing.T) {
	c, _ := openPair(t)
	text := "INSERT INTO t(b) WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<500) SELECT n FROM x"
	s, _, err := c.Prepare(text, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	used := func() uint64 {
		c.Begin(&wire.Operation{MaxSteps: 1 << 40})
		s.ResetSteps()
		before := c.op.checksLeft
		if err := s.Run(); err != nil {
			t.Fatal(err)
		}
		return before - c.op.checksLeft
	}
	first := used()
	for range 50 {
		if n := used(); n != first {
			t.Fatalf("the statement took %d checks in a later run, and %d in the first", n, first)
		}
	}
}

func TestEndlessStatementEnds(t *testing.T) {
	c, _ := openPair(t)
	c.Begin(&wire.Operation{MaxSteps: 100_000})
	err := c.Exec("INSERT INTO t(b) WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x) SELECT n FROM x")
	if e, ok := err.(*Error); !ok || e.Code != CodeInterrupt || !c.OutOfSteps() {
		t.Fatalf("got %v", err)
	}
	c.Begin(&wire.Operation{})
	if err := c.Exec("INSERT INTO t(b) VALUES(1)"); err != nil {
		t.Fatal("the next operation failed:", err)
	}
}

func TestCopyHasTheRowsThatTheTransactionReads(t *testing.T) {
	apply, reader := openPair(t)
	if err := apply.Exec("INSERT INTO t VALUES(1,'old')"); err != nil {
		t.Fatal(err)
	}
	reader.AsOwner(true)
	if err := reader.Exec("BEGIN; SELECT * FROM t"); err != nil {
		t.Fatal(err)
	}
	if err := apply.Exec("UPDATE t SET b='new'; INSERT INTO t VALUES(2,'new')"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := reader.CopyTo(path, nil); err != nil {
		t.Fatal(err)
	}
	copied, err := Open(path, Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if got := query(t, copied, "SELECT a, b FROM t"); got != "1|old" {
		t.Errorf("the copy has %q", got)
	}
}

// The numbers of random() are part of the meaning of an entry. Replicas of other builds
// must compute the same ones.
func TestRandomNumbersOfASeed(t *testing.T) {
	c, err := Open(filepath.Join(t.TempDir(), "data.db"), Apply)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seed := wire.Seed{1, 2, 3, 31: 255}
	numbers := func(n uint64) string {
		c.SetStatementClock(0, &seed, n)
		return query(t, c, "SELECT random(), hex(randomblob(3)), random()")
	}
	c.Begin(&wire.Operation{Seed: seed})
	got := query(t, c, "SELECT random(), hex(randomblob(3)), random()") + "\n" + numbers(0) + "\n" + numbers(1)
	if want := "3217475920152506943|637682|-7758643783683145544\n3478268339163286243|CAEE7F|3405452484611050176\n3733403872684785104|8DFCE1|4484586171358818316"; got != want {
		t.Errorf("got the numbers\n%s\nwant\n%s", got, want)
	}
	c.SetClock(0, nil)
	a := query(t, c, "SELECT random(), random()")
	c.SetClock(0, nil)
	if b := query(t, c, "SELECT random(), random()"); a == b {
		t.Errorf("without a seed, random() returned %s twice", a)
	}
}
