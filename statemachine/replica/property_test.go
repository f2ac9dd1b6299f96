package replica

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// trialTexts are the statements of random transactions.
var trialTexts = []string{
	"INSERT INTO t(u,v) VALUES(%d, random())",
	"INSERT INTO t(u,v) VALUES(%d, datetime('now')) RETURNING *",
	"INSERT INTO t(u,v) VALUES('s'||%d, changes()||' '||total_changes()||' '||last_insert_rowid())",
	"INSERT OR IGNORE INTO t(u) VALUES(%d),('taken'),(%[1]d+1)",
	"INSERT OR REPLACE INTO t(id,u,v) VALUES(%d%%5+2, %[1]d, hex(randomblob(3)))",
	"INSERT OR FAIL INTO t(u) VALUES(%d),('taken')",
	"INSERT INTO t(u) VALUES(%d),('taken')",
	"INSERT INTO t(u,v) VALUES(%d,1),(%[1]d+1,'raise'),(%[1]d+2,3)",
	"UPDATE t SET v=v||'+'||random() WHERE id%%3=%d%%3",
	"UPDATE OR FAIL t SET u='taken' WHERE id%%4=%d%%4",
	"DELETE FROM t WHERE id=%d%%7+2",
	"INSERT INTO p VALUES(%d)", "INSERT INTO now VALUES(%d)", "INSERT INTO c SELECT id FROM p WHERE id<%d",
	"INSERT INTO ft VALUES('w%d common')",
	"UPDATE ft SET x=x||' w%d' WHERE rowid%%3=%[1]d%%3",
	"DELETE FROM ft WHERE rowid=%d%%9",
	"INSERT INTO t(u) SELECT 'n%d '||count(*) FROM ft('common')",
	"CREATE TABLE n%d(a DEFAULT (random()))", "ALTER TABLE t ADD COLUMN c%d DEFAULT 3",
	"CREATE TRIGGER tr%d AFTER DELETE ON t BEGIN INSERT INTO log(what) VALUES(total_changes()||' '||last_insert_rowid()); END",
	"CREATE INDEX i%d ON t(v, u)", "PRAGMA user_version=%d", "REINDEX /* %d */", "ANALYZE t -- %d",
	"SAVEPOINT s%d", "SAVEPOINT s /* %d */", "RELEASE s /* %d */", "ROLLBACK TO s /* %d */", "ROLLBACK TO s /* again %d */",
	"SELECT count(*) FROM t WHERE id>%d", "SELECT * FROM ft('common') LIMIT %d", "SELECT nonsense %d",
}

// After a transaction of random statements, both replicas have the rows that it saw.
func TestRandomTransactionsAreAppliedAsTheyRan(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	rapid.Check(t, func(rt *rapid.T) {
		x := newTrial(t, rt, trialSchema...)
		defer x.a.Close()
		defer x.b.Close()
		n := 100
		for i := range rapid.IntRange(1, 3).Draw(rt, "transactions") {
			x.begin(TransactionOptions{Seed: seedOf(uint64(i)), Changes: 3, TotalChanges: 11, LastInsertID: 12, Settings: rapid.SampledFrom([]wire.Settings{0, 0, 0, wire.ForeignKeysOff, wire.ForeignKeysOff | wire.RecursiveTriggers | wire.ReverseUnorderedSelects}).Draw(rt, "settings")})
			for range rapid.IntRange(1, 25).Draw(rt, "statements") {
				n++
				text := fmt.Sprintf(rapid.SampledFrom(trialTexts).Draw(rt, "text"), n)
				_, _ = x.run(text)
				if err := x.Err(); err != nil {
					rt.Fatalf("%s: %v", text, err)
				}
			}
			x.commit()
		}
	})
}
