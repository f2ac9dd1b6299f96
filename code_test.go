package hiqlite_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// An error of SQLite is its extended code and its primary one, to errors.Is.
func TestCodesOfErrors(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, `CREATE TABLE parent(id INTEGER PRIMARY KEY);
			CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, n NOT NULL DEFAULT 0, c CHECK(c > 0), p REFERENCES parent, s);
			CREATE TABLE strict(i INTEGER) STRICT; INSERT INTO t(id, u) VALUES(1, 1)`)
		for text, want := range map[string]hiqlite.Code{
			"INSERT INTO t(id) VALUES(1)":                       hiqlite.ErrConstraintPrimaryKey,
			"INSERT INTO t(u) VALUES(1)":                        hiqlite.ErrConstraintUnique,
			"INSERT INTO t(n) VALUES(NULL)":                     hiqlite.ErrConstraintNotNull,
			"INSERT INTO t(c) VALUES(0)":                        hiqlite.ErrConstraintCheck,
			"INSERT INTO t(p) VALUES(1)":                        hiqlite.ErrConstraintForeignKey,
			"INSERT INTO strict VALUES('text')":                 hiqlite.ErrConstraintDataType,
			"INSERT INTO t(id) VALUES('text')":                  hiqlite.ErrMismatch,
			"INSERT INTO t(s) VALUES(zeroblob(2000000000))":     hiqlite.ErrTooBig,
			"SELECT nothing":                                    hiqlite.ErrSQL,
			"ATTACH 'x' AS x":                                   hiqlite.ErrAuth,
			"INSERT INTO t(s) SELECT abs(-9223372036854775808)": hiqlite.ErrSQL,
		} {
			_, err := db.ExecContext(testrun.Context(t), text)
			var e *hiqlite.Error
			if !errors.Is(err, want) || !errors.Is(err, want.Primary()) || !errors.As(err, &e) || e.Code() != int(want) {
				t.Errorf("%s: %v is not %v", text, err, want)
			}
			if errors.Is(err, hiqlite.ErrBusy) || errors.Is(err, hiqlite.ErrNoLeader) || hiqlite.SafeToRetry(err) {
				t.Errorf("%s: %v is more than %v", text, err, want)
			}
		}
	})
}

func TestSafeToRetry(t *testing.T) {
	t.Parallel()
	busy, violated := &hiqlite.Error{ExtendedCode: hiqlite.ErrBusy}, &hiqlite.Error{ExtendedCode: hiqlite.ErrConstraintUnique}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{busy, true},
		{fmt.Errorf("of a library: %w", busy), true},
		{&hiqlite.Error{ExtendedCode: hiqlite.ErrBusySnapshot}, true},
		{violated, false},
		{hiqlite.ErrTxExpired, true},
		{hiqlite.ErrNoLeader, true},
		{hiqlite.ErrClosed, false},
		{hiqlite.ErrDiskFull, false},
		{hiqlite.ErrOutcomeUnknown, false},
		{fmt.Errorf("%w: %w", hiqlite.ErrOutcomeUnknown, hiqlite.ErrNoLeader), false},
		{fmt.Errorf("%w: %w", hiqlite.ErrOutcomeUnknown, busy), false},
		{context.DeadlineExceeded, false},
	} {
		if got := hiqlite.SafeToRetry(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
