package hiqlite

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// Migrate brings the schema up to date: it applies the files of migrations that
// were not applied yet, in the order of their numbers. Every node may call it
// at every start, even if all of them start at the same moment:
//
//	//go:embed migrations/*.sql
//	var embedded embed.FS
//
//	files, err := fs.Sub(embedded, "migrations")
//	...
//	err = hiqlite.Migrate(ctx, db, files)
//
// What is guaranteed:
//
//   - A file is applied once in the cluster, as one atomic write together with
//     the row in the table hiqlite_migrations that says so: all of it or, if
//     one statement fails, nothing. The files before it stay applied.
//   - A file is applied after all files with lower numbers, and only if the caller
//     has all files that were applied before.
//   - Concurrent callers each return when all files are applied, whoever
//     applied them. If a file fails, each of them gets its error.
//   - When Migrate has returned nil, reads on the caller's node see the new schema.
//     Other nodes see it a moment later, or at once with [Linearizable] reads.
//   - If there is nothing to do, Migrate writes nothing. It needs a majority of the
//     nodes nevertheless, because it reads linearizably.
//
// The files are called 1_name.sql or 0001_name.sql. Each has a number of its own,
// which is greater than 0. The files lie in the root of migrations, where files with
// another ending are ignored. A file may hold any number of statements. A byte order
// mark is ignored, and CRLF counts as LF. A file that was applied may get another name,
// but not another number, and its text must not change.
//
// A file runs as if on a new connection of db, whatever other users of the pool have
// set: foreign keys are enforced unless the DSN switches them off. To rebuild a table,
// begin the file with PRAGMA foreign_keys=OFF and end it with PRAGMA foreign_keys=ON. A
// PRAGMA that sets something has no effect after its file. A file that writes nothing,
// even an empty one, counts as applied.
//
// A file is bounded like every write: by the deadline of ctx or, without one, by
// Config.Timeout, by Config.MaxSteps, and by 8 MiB of text.
//
// All faults in the names and texts of the files are reported together, before anything
// is applied. It is an error if a file that was applied has changed or is missing, or if
// a new file has a lower number than one that was applied. The error says what to do.
// All errors name the file. They wrap the *Error of a failed statement, ErrTooLarge,
// ErrNoLeader, ErrClosed or the error of ctx. After every error, ErrOutcomeUnknown
// included, it is safe to call Migrate again.
func Migrate(ctx context.Context, db *sql.DB, migrations fs.FS) error {
	files, err := readMigrations(migrations)
	if err != nil {
		return err
	}
	m, err := newMigrator(ctx, db)
	if err != nil {
		return fmt.Errorf("hiqlite: migrate: %w", err)
	}
	defer m.db.Close()
	// Each time that another node was faster, it has applied at least one more file.
	for range len(files) + 1 {
		done, err := m.applied(ctx)
		if err != nil {
			return fmt.Errorf("hiqlite: migrate: read the table hiqlite_migrations: %w", err)
		}
		pending, err := compareMigrations(files, done)
		if err != nil {
			return err
		}
		faster, err := m.apply(ctx, pending, highest(done))
		if err != nil || !faster {
			return err
		}
	}
	return errors.New("hiqlite: migrate: the table hiqlite_migrations has changed while migrations were applied: only Migrate may write to it")
}

// A migration is a file, or a row of hiqlite_migrations, which has no text.
type migration struct {
	version              int64
	name, checksum, text string
}

// highest returns the highest version that was applied, or 0.
func highest(done []migration) int64 {
	if len(done) == 0 {
		return 0
	}
	return done[len(done)-1].version
}

const (
	createMigrations = `CREATE TABLE IF NOT EXISTS hiqlite_migrations(version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at TEXT NOT NULL)`

	// recordMigration fails because name would be NULL, unless the highest version
	// that was applied is still the one that the caller has read. With the primary
	// key alone, two programs with different files could apply them out of order.
	recordMigration = `INSERT INTO hiqlite_migrations(version, name, checksum, applied_at)
VALUES(?1, CASE WHEN (SELECT coalesce(max(version), 0) FROM hiqlite_migrations) = ?4 THEN ?2 END, ?3, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))`

	recordIndex = 1 // index of recordMigration in its batch
)

// A migrator is one call of Migrate.
type migrator struct {
	// db is not the caller's pool, whose connections may have settings such as PRAGMA
	// foreign_keys=OFF, and may all be in use.
	db *sql.DB
}

// newMigrator makes a migrator. The caller closes its db.
func newMigrator(ctx context.Context, db *sql.DB) (*migrator, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var m *migrator
	err = conn.Raw(func(raw any) error {
		c, err := unwrapConn(raw)
		if err != nil {
			return err
		}
		m = &migrator{sql.OpenDB(c.connectorWith(func(cfg *ConnConfig) {
			cfg.BusyTimeout = math.MaxInt32 * time.Millisecond // so that only ctx bounds the wait for transactions
		}))}
		return nil
	})
	return m, err
}

// applied returns the migrations that any node had applied before the call, sorted by
// version.
func (m *migrator) applied(ctx context.Context) (done []migration, err error) {
	linearizable := WithConsistency(ctx, Linearizable)
	var exists bool
	err = m.db.QueryRowContext(linearizable, "SELECT count(*) FROM sqlite_schema WHERE name = 'hiqlite_migrations' COLLATE NOCASE").Scan(&exists)
	if err != nil || !exists {
		return nil, err
	}
	// The linearizable read has brought this node up to date, so a local one suffices.
	rows, err := m.db.QueryContext(WithConsistency(ctx, Local), "SELECT version, name, checksum FROM hiqlite_migrations ORDER BY version")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var row migration
		if err := rows.Scan(&row.version, &row.name, &row.checksum); err != nil {
			return nil, err
		}
		done = append(done, row)
	}
	return done, rows.Err()
}

// apply applies files in their order. last is the version that was applied before the
// first of them. apply ends early if another node was faster.
func (m *migrator) apply(ctx context.Context, files []migration, last int64) (faster bool, err error) {
	for i := range files {
		f := &files[i]
		if faster, err = m.applyOne(ctx, f, last); faster {
			return true, nil
		}
		if errors.Is(err, ErrOutcomeUnknown) {
			return false, fmt.Errorf("hiqlite: migration %s: %w; call Migrate again: it finds out whether the file was applied, and else applies it", f.name, err)
		}
		if err != nil {
			return false, fmt.Errorf("hiqlite: migration %s: %w", f.name, migrationError(err))
		}
		last = f.version
	}
	return false, nil
}

// applyOne applies a file if last is still the highest version that was applied. If it
// is not, another node was faster.
func (m *migrator) applyOne(ctx context.Context, f *migration, last int64) (faster bool, err error) {
	writes, err := m.hasWrites(ctx, f.text)
	if err != nil {
		return false, err
	}
	// The first statement changes the schema, so Batch does not insist on classifying
	// the other ones by this node's schema, which may be older than the cluster's. If
	// another node has just applied this file, recordMigration has to fail, and not a
	// statement of the file.
	stmts := []Statement{
		{SQL: createMigrations},
		{SQL: recordMigration, Args: []any{f.version, f.name, f.checksum, last}},
	}
	if writes {
		stmts = append(stmts, Statement{SQL: f.text})
	}
	_, err = Batch(ctx, m.db, stmts...)
	if e, ok := err.(*Error); ok && e.Statement == recordIndex && e.ExtendedCode == sqlite.CodeNotNull {
		return true, nil
	}
	return false, err
}

// hasWrites reports whether a text writes anything. It returns an error if the text has
// a statement that a migration cannot have.
func (m *migrator) hasWrites(ctx context.Context, text string) (bool, error) {
	class, err := m.describe(ctx, text)
	if err != nil {
		return false, err
	}
	if class.Missing {
		return true, nil // the replicas find out what it does
	}
	switch class.Kind {
	case sqlite.Transaction:
		return false, misuse("leave BEGIN, COMMIT and SAVEPOINT out", "a migration is one transaction already and cannot contain %s", class.Control)
	case sqlite.Vacuum:
		return false, misuse(vacuumHint, "VACUUM cannot run inside a transaction, which a migration is")
	}
	return class.Kind == sqlite.Write, nil
}

func (m *migrator) describe(ctx context.Context, text string) (d connapi.Description, err error) {
	conn, err := m.db.Conn(ctx)
	if err != nil {
		return d, err
	}
	defer conn.Close()
	err = conn.Raw(func(raw any) error {
		c, err := unwrapConn(raw)
		if err == nil {
			d, err = c.Describe(ctx, text, true)
		}
		return err
	})
	return d, err
}

const vacuumHint = "leave VACUUM out of the file, and run it with db.Exec"

// migrationError turns the error of a batch into that of a file. The index of the
// statement in the batch would mean nothing to the caller.
func migrationError(err error) error {
	e, ok := err.(*Error)
	if !ok {
		return err
	}
	e.Statement = 0
	if e.ExtendedCode == sqlite.CodeError && strings.Contains(e.Message, "VACUUM") {
		e.Hint = vacuumHint
	}
	return e
}

// compareMigrations returns the files that were not applied. Each migration that was
// applied must have a file with the same text, and the other files must have higher
// numbers. files and done are sorted.
func compareMigrations(files, done []migration) (pending []migration, err error) {
	byVersion := make(map[int64]*migration, len(files))
	for i := range files {
		byVersion[files[i].version] = &files[i]
	}
	var missing []string
	for _, row := range done {
		f := byVersion[row.version]
		if f == nil {
			missing = append(missing, row.name)
		} else if f.checksum != row.checksum {
			return nil, alteredMigration(f, row)
		}
		delete(byVersion, row.version)
	}
	if len(missing) > 0 {
		return nil, missingMigrations(missing, files)
	}
	for _, f := range files {
		if byVersion[f.version] == nil {
			continue
		}
		if f.version < highest(done) {
			return nil, fmt.Errorf("hiqlite: migration %s is new, but %s was applied before it: give the new file a number above %d", f.name, done[len(done)-1].name, highest(done))
		}
		pending = append(pending, f)
	}
	return pending, nil
}

// alteredMigration returns the error of a file whose text has changed since it was
// applied.
func alteredMigration(f *migration, applied migration) error {
	as := ""
	if f.name != applied.name {
		as = ", as " + applied.name
	}
	return fmt.Errorf("hiqlite: migration %s is not what was applied%s: restore the file as it was then, and make the change in a new file with a higher number", f.name, as)
}

// missingMigrations returns the error of migrations that were applied and have no file.
func missingMigrations(names []string, files []migration) error {
	const most = 5
	list := strings.Join(names[:min(most, len(names))], ", ")
	if more := len(names) - most; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Errorf("hiqlite: migrate: %s was applied, but this program has no file for it; its last one is %s: "+
		"if the program is older than the database, start the newer one; if a file was deleted or got another number, restore it", list, files[len(files)-1].name)
}

var migrationName = regexp.MustCompile(`^(-?[0-9]+)_.+\.[sS][qQ][lL]$`)

// readMigrations reads and checks the files, and sorts them by number.
func readMigrations(fsys fs.FS) ([]migration, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("hiqlite: migrate: read the folder of migrations: %w", err)
	}
	var files []migration
	var faults []error
	byVersion := map[int64]string{}
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() || !isSQL(name) {
			continue
		}
		f, err := readMigration(fsys, name)
		if err != nil {
			faults = append(faults, fmt.Errorf("hiqlite: migration %s: %w", name, err))
			continue
		}
		if other, ok := byVersion[f.version]; ok {
			faults = append(faults, fmt.Errorf("hiqlite: migrations %s and %s have the same number: give one of them another", other, name))
		}
		byVersion[f.version] = name
		files = append(files, f)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if len(files) == 0 {
		return nil, noMigrations(fsys)
	}
	slices.SortFunc(files, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	return files, nil
}

func isSQL(name string) bool { return strings.EqualFold(path.Ext(name), ".sql") }

// readMigration reads one file. It removes what differs between checkouts, such as CRLF,
// before it computes the checksum and returns the text: the same checksum has to mean
// the same text, and so the same rows.
func readMigration(fsys fs.FS, name string) (migration, error) {
	match := migrationName.FindStringSubmatch(name)
	if match == nil {
		return migration{}, errors.New("the name has no number: call it like 0001_name.sql")
	}
	version, err := strconv.ParseInt(match[1], 10, 64)
	// The replicas refuse the largest rowid.
	if err != nil || version < 1 || version == math.MaxInt64 {
		return migration{}, fmt.Errorf("the number %s is not between 1 and 2^63-2", match[1])
	}
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return migration{}, err
	}
	if len(data) > node.MaxOperation {
		return migration{}, fmt.Errorf("%w: the file has %d bytes, and a write at most %d; split the file into several smaller ones", ErrTooLarge, len(data), node.MaxOperation)
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if i := strings.IndexByte(text, 0); i >= 0 {
		return migration{}, fmt.Errorf("there is a NUL in line %d: save the file as UTF-8 text", 1+strings.Count(text[:i], "\n"))
	}
	return migration{version, name, fmt.Sprintf("%x", sha256.Sum256([]byte(text))), text}, nil
}

// maxSearched bounds, in files and folders, the search for the folder that the caller may
// have meant.
const maxSearched = 10_000

// noMigrations returns the error of a file system without migrations. It names the folder
// that has .sql files, if there is only one.
func noMigrations(fsys fs.FS) error {
	var folders []string
	searched := 0
	_ = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if searched++; searched > maxSearched {
			return fs.SkipAll
		}
		if err == nil && !d.IsDir() && isSQL(name) && !slices.Contains(folders, path.Dir(name)) {
			folders = append(folders, path.Dir(name))
		}
		return nil
	})
	err := errors.New("hiqlite: migrate: no migrations: looked for files like 0001_name.sql in the root of the given file system")
	if len(folders) == 1 {
		return fmt.Errorf("%w; there are .sql files in its folder %s: pass what fs.Sub(..., %q) returns", err, folders[0], folders[0])
	}
	return err
}
