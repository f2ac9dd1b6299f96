package hiqlite_test

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The name of the meta table begins with sqlite_, so tools take it for one of SQLite's and
// leave it alone. It survives what programs do to all tables, and plain SQLite can read
// the file.
func TestToolsLeaveTheMetaTableAlone(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT, b); INSERT INTO t(b) VALUES('one')")
		for _, text := range []string{"ANALYZE", "VACUUM", "REINDEX", "DROP TABLE sqlite_hiqlite", "DROP TABLE IF EXISTS main.SQLITE_HIQLITE", "CREATE TABLE _hiqlite(a)", "INSERT INTO t(b) SELECT group_concat(name || sql) FROM sqlite_schema", "INSERT INTO t(b) SELECT group_concat(name) FROM pragma_table_list"} {
			mustExec(t, db, text)
		}
		c.stopAll()
		for i := range c.Len() {
			files, err := filepath.Glob(filepath.Join(c.Config(i).DataDir, "sql", "generation-*", "data.db"))
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			plain, err := sql.Open("sqlite", files[0]+"?mode=ro")
			if err != nil {
				t.Fatal(err)
			}
			for query, want := range map[string]string{
				"PRAGMA integrity_check": "ok", "SELECT count(*) FROM t": "3", "SELECT count(*) > 0 FROM sqlite_hiqlite": "1", "SELECT count(*) FROM sqlite_stat1 WHERE tbl='sqlite_hiqlite'": "0",
				"SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE type='table' AND name NOT LIKE 'sqlite_%' ORDER BY name)": "_hiqlite,t",
			} {
				if got := queryValue[string](t, plain, query); got != want {
					t.Errorf("node %d: %s: %s, want %s", i+1, query, got, want)
				}
			}
			if err := plain.Close(); err != nil {
				t.Error(err)
			}
		}
		c.startAll()
		c.WaitReady()
		mustExec(t, c.DB(c.Len()-1), "INSERT INTO t(b) VALUES('again')")
		if n := queryValue[int](t, c.DB(c.Len()-1), "SELECT count(*) FROM t"); n != 4 {
			t.Errorf("%d rows, want 4", n)
		}
		c.WaitEqual()
	})
}

// Tools that empty a database drop all tables that sqlite_master lists. The meta table
// must survive that.
func TestDroppingAllTables(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE a(x); CREATE TABLE b(x); INSERT INTO a VALUES(1)")
		err := hiqlite.RunTx(testrun.Context(t), c.DB(0), nil, func(tx *sql.Tx) error {
			rows, err := tx.Query("SELECT name FROM sqlite_master WHERE type='table'")
			if err != nil {
				return err
			}
			defer rows.Close()
			var names []string
			for rows.Next() {
				var name string
				if err := rows.Scan(&name); err != nil {
					return err
				}
				names = append(names, name)
			}
			for _, name := range names {
				if _, err := tx.Exec("DROP TABLE " + name); err != nil {
					return err
				}
			}
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		mustExec(t, c.DB(0), "DROP TABLE sqlite_hiqlite")
		var n int
		if err := c.DB(0).QueryRow("SELECT count(*) FROM sqlite_master WHERE name IN ('a', 'b')").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d tables are left, %v", n, err)
		}
		mustExec(t, c.DB(0), "CREATE TABLE a(x)")
		c.WaitEqual()
		c.restart(0) // the sessions, which the meta table has, must still be there
		c.WaitEqual()
	})
}
