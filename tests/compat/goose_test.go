package compat

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/pressly/goose/v3"
)

var gooseMigrations = fstest.MapFS{
	"00001_tables.sql": {Data: []byte(`
-- +goose Up
CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE posts(id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE, title TEXT);
CREATE TABLE audit(what TEXT, at DATETIME DEFAULT CURRENT_TIMESTAMP);
-- +goose StatementBegin
CREATE TRIGGER users_audit AFTER INSERT ON users BEGIN
	INSERT INTO audit(what) VALUES('added ' || new.name);
	INSERT INTO audit(what) SELECT 'now ' || count(*) FROM users;
END;
-- +goose StatementEnd
INSERT INTO users(name) VALUES('ann'), ('bob');
INSERT INTO posts(user_id, title) VALUES(1, 'first');
-- +goose Down
DROP TABLE audit;
DROP TABLE posts;
DROP TABLE users;
`)},
	// The table that posts refers to is made anew, as SQLite's documentation
	// says: the foreign keys have to be off, which only works outside of a
	// transaction.
	"00002_rebuild.sql": {Data: []byte(`
-- +goose NO TRANSACTION
-- +goose Up
PRAGMA foreign_keys = OFF;
BEGIN;
CREATE TABLE users_new(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, rank INTEGER NOT NULL DEFAULT 7);
INSERT INTO users_new(id, name) SELECT id, name FROM users;
DROP TABLE users;
ALTER TABLE users_new RENAME TO users;
PRAGMA foreign_key_check;
COMMIT;
PRAGMA foreign_keys = ON;
VACUUM;
-- +goose Down
ALTER TABLE users DROP COLUMN rank;
`)},
	"00005_view.sql": {Data: []byte(`
-- +goose Up
CREATE VIEW ranks AS SELECT rank, count(*) AS n FROM users GROUP BY rank;
CREATE INDEX by_rank ON users(rank);
-- +goose Down
DROP INDEX by_rank;
DROP VIEW ranks;
`)},
}

var gooseInGo = []*goose.Migration{
	goose.NewGoMigration(3,
		&goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			var n int
			if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM users").Scan(&n); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "UPDATE users SET rank = rank + ?", n)
			return err
		}},
		&goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE users SET rank = 7")
			return err
		}}),
	goose.NewGoMigration(4,
		&goose.GoFunc{RunDB: func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, "INSERT INTO users(name) VALUES('eve')")
			return err
		}},
		&goose.GoFunc{RunDB: func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, "DELETE FROM users WHERE name = 'eve'")
			return err
		}}),
}

func TestGoose(t *testing.T) {
	each(t, func(t *testing.T, d *database) {
		provider := func(db *sql.DB, files fstest.MapFS) *goose.Provider {
			return value[*goose.Provider](t)(goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithGoMigrations(gooseInGo...)))
		}
		p := provider(d.open(), gooseMigrations)

		t.Run("up", func(t *testing.T) {
			same(t, len(value[[]*goose.MigrationResult](t)(p.Up(patient(t)))), 5)
			same(t, value[int64](t)(p.GetDBVersion(patient(t))), 5)
			same(t, len(value[[]*goose.MigrationResult](t)(p.Up(patient(t)))), 0)
			d.count(t, "users WHERE rank = 9", 2)
			d.count(t, "posts", 1)
			d.count(t, "ranks WHERE n = 1", 1)
			same(t, audits(t, d), []string{"added ann", "now 1", "added bob", "now 2"})
			_, err := d.home.ExecContext(patient(t), "INSERT INTO posts(user_id) VALUES(99)")
			code(t, err, 787, "FOREIGN KEY constraint failed")
		})

		t.Run("seen by the other nodes", func(t *testing.T) {
			for _, db := range d.away {
				away := provider(db, gooseMigrations)
				same(t, value[int64](t)(away.GetDBVersion(latest(t))), 5)
				same(t, value[bool](t)(away.HasPending(latest(t))), false)
				for _, s := range value[[]*goose.MigrationStatus](t)(away.Status(latest(t))) {
					if s.State != goose.StateApplied || s.AppliedAt.IsZero() {
						t.Errorf("%d is %s, at %v", s.Source.Version, s.State, s.AppliedAt)
					}
				}
			}
		})

		t.Run("a migration that fails leaves nothing", func(t *testing.T) {
			files := fstest.MapFS{"00006_bad.sql": {Data: []byte(`
-- +goose Up
CREATE TABLE half(id INTEGER PRIMARY KEY);
INSERT INTO users(name) VALUES('lost');
INSERT INTO users(name) VALUES('ann');
`)}}
			for name, file := range gooseMigrations {
				files[name] = file
			}
			_, err := provider(d.home, files).Up(patient(t))
			var partial *goose.PartialError
			if !errors.As(err, &partial) || partial.Failed.Source.Version != 6 {
				t.Fatalf("the error is %v", err)
			}
			code(t, partial.Err, 2067, "UNIQUE constraint failed: users.name")
			same(t, value[int64](t)(p.GetDBVersion(patient(t))), 5)
			d.count(t, "sqlite_master WHERE name = 'half'", 0)
			d.count(t, "users WHERE name = 'lost'", 0)

			files["00006_bad.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE whole(id);\n-- +goose Down\nDROP TABLE whole;\n")}
			good := provider(d.home, files)
			same(t, value[*goose.MigrationResult](t)(good.UpByOne(patient(t))).Source.Version, 6)
			value[*goose.MigrationResult](t)(good.Down(patient(t)))
			d.count(t, "sqlite_master WHERE name = 'whole'", 0)
		})

		t.Run("cancellation", func(t *testing.T) {
			_, err := p.DownTo(cancelled(), 0)
			fails(t, err, context.Canceled)
			same(t, value[int64](t)(p.GetDBVersion(patient(t))), 5)
		})

		t.Run("down, elsewhere", func(t *testing.T) {
			away := provider(d.away[1], gooseMigrations)
			same(t, value[*goose.MigrationResult](t)(away.Down(latest(t))).Source.Version, 5)
			same(t, len(value[[]*goose.MigrationResult](t)(away.DownTo(latest(t), 1))), 3)
			d.count(t, "users", 2)
			d.count(t, "pragma_table_info('users') WHERE name = 'rank'", 0)
			same(t, len(value[[]*goose.MigrationResult](t)(away.DownTo(latest(t), 0))), 1)
			d.count(t, "sqlite_master WHERE name NOT LIKE 'sqlite%' AND name NOT LIKE '\\_hiqlite%' ESCAPE '\\'", 1)
			same(t, value[int64](t)(p.GetDBVersion(latest(t))), 0)
		})

		t.Run("up again", func(t *testing.T) {
			same(t, len(value[[]*goose.MigrationResult](t)(p.UpTo(latest(t), 2))), 2)
			d.count(t, "users WHERE rank = 7", 2)
		})
	})
}

func audits(t *testing.T, d *database) (what []string) {
	rows, err := d.away[0].QueryContext(latest(t), "SELECT what FROM audit ORDER BY rowid")
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var s string
		must(t, rows.Scan(&s))
		what = append(what, s)
	}
	must(t, rows.Err())
	return what
}
