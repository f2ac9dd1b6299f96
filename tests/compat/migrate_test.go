package compat

import (
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/golang-migrate/migrate/v4"
	migratedb "github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/database/sqlite"
	"github.com/golang-migrate/migrate/v4/source/iofs"
)

// Each script is one Exec, in a transaction unless Config.NoTxWrap is set.
var migrateScripts = fstest.MapFS{
	"1_tables.up.sql": {Data: []byte(`
CREATE TABLE owners(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE pets(id INTEGER PRIMARY KEY, owner INTEGER NOT NULL REFERENCES owners(id) ON DELETE CASCADE, name TEXT);
CREATE TRIGGER pets_named AFTER INSERT ON pets WHEN new.name IS NULL BEGIN
	UPDATE pets SET name = 'pet ' || new.id WHERE id = new.id; -- a semicolon; inside
END;
INSERT INTO owners(name) VALUES('ann;'), ('bob');
INSERT INTO pets(owner) VALUES(1), (2);`)},
	"1_tables.down.sql": {Data: []byte("DROP TABLE pets; DROP TABLE owners;")},
	// Inside a transaction the PRAGMA does nothing, as in SQLite.
	"2_rebuild.up.sql": {Data: []byte(`
PRAGMA foreign_keys = OFF;
CREATE TABLE pets_new(id INTEGER PRIMARY KEY, owner INTEGER NOT NULL REFERENCES owners(id), name TEXT, kind TEXT DEFAULT 'cat');
INSERT INTO pets_new(id, owner, name) SELECT id, owner, name FROM pets;
DROP TABLE pets;
ALTER TABLE pets_new RENAME TO pets;
CREATE INDEX pets_kind ON pets(kind);
PRAGMA foreign_keys = ON;`)},
	"2_rebuild.down.sql": {Data: []byte("DROP INDEX pets_kind; ALTER TABLE pets DROP COLUMN kind;")},
	"3_view.up.sql":      {Data: []byte("CREATE VIEW cats AS SELECT name FROM pets WHERE kind = 'cat'")},
	"3_view.down.sql":    {Data: []byte("DROP VIEW cats")},
}

// with returns the scripts and one more.
func with(name, script string) fstest.MapFS {
	files := fstest.MapFS{name: {Data: []byte(script)}}
	for name, file := range migrateScripts {
		files[name] = file
	}
	return files
}

func newMigrate(t *testing.T, db *sql.DB, files fstest.MapFS, config sqlite.Config) *migrate.Migrate {
	t.Helper()
	source, err := iofs.New(files, ".")
	must(t, err)
	target, err := sqlite.WithInstance(db, &config)
	must(t, err)
	m, err := migrate.NewWithInstance("iofs", source, "app", target)
	must(t, err)
	t.Cleanup(func() { // it closes db too
		source, database := m.Close()
		must(t, errors.Join(source, database))
	})
	return m
}

func TestMigrate(t *testing.T) {
	each(t, func(t *testing.T, d *database) {
		m := newMigrate(t, d.open(), migrateScripts, sqlite.Config{})
		version := func(want string) {
			t.Helper()
			v, dirty, err := m.Version()
			same(t, fmt.Sprintf("%d %v %v", v, dirty, err), want)
		}

		t.Run("up", func(t *testing.T) {
			version("0 false no migration")
			must(t, m.Up())
			version("3 false <nil>")
			fails(t, m.Up(), migrate.ErrNoChange)
			d.count(t, "cats WHERE name IN ('pet 1', 'pet 2')", 2)
			d.count(t, "owners WHERE name = 'ann;'", 1)
			d.count(t, "schema_migrations WHERE version = 3 AND NOT dirty", 1)
		})

		t.Run("steps", func(t *testing.T) {
			must(t, m.Steps(-2))
			version("1 false <nil>")
			d.count(t, "pragma_table_info('pets') WHERE name = 'kind'", 0)
			must(t, m.Steps(1))
			version("2 false <nil>")
			must(t, m.Migrate(3))
			version("3 false <nil>")
		})

		t.Run("dirty after a failure", func(t *testing.T) {
			bad := newMigrate(t, d.open(), with("4_bad.up.sql", `
				CREATE TABLE half(id INTEGER PRIMARY KEY);
				INSERT INTO owners(name) VALUES('lost');
				INSERT INTO owners(name) VALUES('bob');`), sqlite.Config{})
			var failure *migratedb.Error
			if err := bad.Up(); !errors.As(err, &failure) {
				t.Fatalf("the error is %v", err)
			}
			code(t, failure.OrigErr, 2067, "UNIQUE constraint failed: owners.name")
			version("4 true <nil>")
			d.count(t, "sqlite_master WHERE name = 'half'", 0)
			d.count(t, "owners", 2)
			var dirty migrate.ErrDirty
			if !errors.As(bad.Up(), &dirty) || dirty.Version != 4 {
				t.Error("went on from a dirty version")
			}
			must(t, bad.Force(3))
			good := newMigrate(t, d.open(), with("4_good.up.sql", "CREATE TABLE whole(id INTEGER PRIMARY KEY)"), sqlite.Config{})
			must(t, good.Up())
			version("4 false <nil>")
			d.count(t, "sqlite_master WHERE name = 'whole'", 1)
			must(t, good.Force(3))
		})

		t.Run("without a transaction", func(t *testing.T) {
			// The PRAGMA has effect now: the owners can be made anew without
			// deleting the pets.
			free := newMigrate(t, d.open(), with("4_free.up.sql", `
				PRAGMA foreign_keys = OFF;
				CREATE TABLE owners_new(id INTEGER PRIMARY KEY, name TEXT);
				INSERT INTO owners_new SELECT * FROM owners;
				DROP TABLE owners;
				ALTER TABLE owners_new RENAME TO owners;
				PRAGMA foreign_keys = ON;`), sqlite.Config{NoTxWrap: true})
			must(t, free.Up())
			version("4 false <nil>")
			d.count(t, "owners", 2)
			d.count(t, "pets", 2)
			must(t, free.Force(3))
		})

		t.Run("with a transaction of its own", func(t *testing.T) {
			own := newMigrate(t, d.open(), with("4_own.up.sql", `
				BEGIN IMMEDIATE;
				CREATE TABLE own(id INTEGER PRIMARY KEY);
				INSERT INTO own VALUES(1), (2);
				COMMIT;`), sqlite.Config{NoTxWrap: true})
			must(t, own.Up())
			version("4 false <nil>")
			d.count(t, "own", 2)
			must(t, own.Force(3))
		})

		t.Run("elsewhere", func(t *testing.T) {
			caughtUp := func() { // migrate has no contexts: it reads locally
				for _, n := range d.nodes {
					must(t, n.Ready(patient(t)))
				}
			}
			caughtUp()
			away := newMigrate(t, d.elsewhere(), migrateScripts, sqlite.Config{})
			fails(t, away.Up(), migrate.ErrNoChange)
			must(t, away.Down())
			caughtUp()
			version("0 false no migration")
			d.count(t, "sqlite_master WHERE name IN ('owners', 'pets', 'cats')", 0)
			must(t, m.Up())
			d.count(t, "cats", 2)
		})

		t.Run("drop", func(t *testing.T) {
			// It knows neither views nor foreign keys.
			must(t, m.Steps(-1))
			_, err := d.home.ExecContext(patient(t), "DELETE FROM pets")
			must(t, err)
			must(t, m.Drop()) // of hiqlite's own table, too, which stays
			d.count(t, "sqlite_master WHERE name IN ('owners', 'pets', 'schema_migrations')", 0)
		})

		t.Run("vacuum as Drop does it", func(t *testing.T) {
			_, err := d.open().Query("VACUUM") // and never closes the rows
			must(t, err)
		})
	})
}
