package replica

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// copyFolder copies a folder as it is now on the disk.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// openAndClose opens a replica of dir and closes it again.
func openAndClose(dir, syncedFile string) (uint64, error) {
	r := New(Config{Dir: dir, SyncedFile: syncedFile, Listener: &machine{}, Leases: &machine{}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	defer r.Close()
	return r.Open(nil)
}

// newSyncedMachine returns a replica and an older copy of its folder, from before its last
// entries.
func newSyncedMachine(t *testing.T) (m *machine, old string) {
	t.Helper()
	h := newCounterHistory()
	h.do(insert(1))
	h.do(insert(2))
	m = emptyMachine(t)
	m.apply(h.entries[:3]...)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	old = filepath.Join(folder(t), "old")
	copyFolder(t, m.dir, old)
	m.apply(h.entries[3:]...)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	m.Close()
	return m, old
}

func TestDamageIsDetectedAtOpen(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, dir, old string){
		"CURRENT is garbage":                 func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, currentFile), "x\n") },
		"CURRENT is empty":                   func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, currentFile), "") },
		"CURRENT names no generation":        func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, currentFile), "generation-x\n") },
		"CURRENT names a missing generation": func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, currentFile), "generation-7\n") },
		"CURRENT is missing":                 func(t *testing.T, dir, _ string) { remove(t, filepath.Join(dir, currentFile)) },
		"the database is missing":            func(t *testing.T, dir, _ string) { remove(t, filepath.Join(dir, "generation-1", databaseFile)) },
		"the database is emptied":            func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, "generation-1", databaseFile), "") },
		"the database is garbage": func(t *testing.T, dir, _ string) {
			write(t, filepath.Join(dir, "generation-1", databaseFile), strings.Repeat("garbage ", 4096))
		},
		"the database's pages are garbage": func(t *testing.T, dir, _ string) {
			path := filepath.Join(dir, "generation-1", databaseFile)
			b, _ := os.ReadFile(path)
			write(t, path, string(b[:100])+strings.Repeat("\xff", len(b)-100))
		},
		"the database is rolled back": func(t *testing.T, dir, old string) {
			side, _ := os.ReadFile(filepath.Join(dir, "generation-1", stateFile))
			copyFolder(t, old, dir)
			write(t, filepath.Join(dir, "generation-1", stateFile), string(side))
		},
		"the state file is garbage": func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, "generation-1", stateFile), "garbage") },
		"the state file is empty":   func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, "generation-1", stateFile), "") },
		"a bit of the state file is flipped": func(t *testing.T, dir, _ string) {
			path := filepath.Join(dir, "generation-1", stateFile)
			b, _ := os.ReadFile(path)
			b[len(b)/2] ^= 1
			write(t, path, string(b))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, old := newSyncedMachine(t)
			harm(t, m.dir, old)
			before := tree(t, m.dir)
			if applied, err := openAndClose(m.dir, ""); !errors.Is(err, ErrDamaged) {
				t.Errorf("opened at %d, %v", applied, err)
			}
			for path := range before { // an operator may still need them
				if _, err := os.Stat(path); err != nil && !strings.HasSuffix(path, "-wal") && !strings.HasSuffix(path, "-shm") {
					t.Errorf("%s was removed", path)
				}
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func tree(t *testing.T, dir string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		out[path] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The synced file is outside of the folder. It shows that a folder that is missing as a whole
// had data.
func TestTheMarkerRevealsALostFolder(t *testing.T) {
	h := newCounterHistory()
	dir := folder(t)
	m := emptyMachine(t)
	m.Close()
	m.dir = filepath.Join(dir, "sql")
	syncedFile := filepath.Join(dir, "synced")
	m.SQL = New(Config{Dir: m.dir, SyncedFile: syncedFile, Listener: m, Leases: m})
	if _, err := m.Open(nil); err != nil {
		t.Fatal(err)
	}
	m.apply(h.entries...)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if applied, err := openAndClose(m.dir, syncedFile); err != nil || applied != 2 {
		t.Errorf("opened at %d, %v", applied, err)
	}
	if err := os.RemoveAll(m.dir); err != nil {
		t.Fatal(err)
	}
	if applied, err := openAndClose(m.dir, syncedFile); !errors.Is(err, ErrDamaged) {
		t.Errorf("opened at %d, %v", applied, err)
	}
	write(t, syncedFile, "garbage")
	if _, err := openAndClose(filepath.Join(dir, "other"), syncedFile); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

// If the first start is interrupted at any point, the next one starts from the beginning.
func TestAnInterruptedFirstStart(t *testing.T) {
	for name, left := range map[string]func(t *testing.T, dir string){
		"no folder":       func(t *testing.T, dir string) { os.RemoveAll(dir) },
		"an empty folder": func(*testing.T, string) {},
		"a generation":    func(t *testing.T, dir string) { os.Mkdir(filepath.Join(dir, "generation-1"), 0o755) },
		"an empty database": func(t *testing.T, dir string) {
			os.Mkdir(filepath.Join(dir, "generation-1"), 0o755)
			write(t, filepath.Join(dir, "generation-1", databaseFile), "")
		},
		"CURRENT partly written": func(t *testing.T, dir string) { write(t, filepath.Join(dir, currentFile+".tmp"), "gen") },
		"CURRENT written": func(t *testing.T, dir string) {
			os.Mkdir(filepath.Join(dir, "generation-1"), 0o755)
			write(t, filepath.Join(dir, "generation-1", databaseFile), "")
			write(t, filepath.Join(dir, currentFile), "generation-1\n")
		},
	} {
		dir := folder(t)
		left(t, dir)
		if applied, err := openAndClose(dir, ""); err != nil || applied != 0 {
			t.Errorf("%s: opened at %d, %v", name, applied, err)
		}
		if applied, err := openAndClose(dir, ""); err != nil || applied != 0 {
			t.Errorf("%s: opened again at %d, %v", name, applied, err)
		}
	}
}

// CURRENT is written after the database that it names. Otherwise a crash in between would
// look like a lost database.
func TestCurrentIsWrittenAfterTheDatabase(t *testing.T) {
	dir := folder(t)
	s := &storage{dir: dir}
	path, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("CURRENT names a database that does not exist yet:", err)
	}
}

func TestLeftoversOfCrashesAreRemoved(t *testing.T) {
	m, _ := newSyncedMachine(t)
	for _, name := range []string{"snapshot-0xc000123.tmp", "snapshot-0xc000123.tmp-journal", "CURRENT.tmp", "generation-2/data.db", "generation-9/state"} {
		path := filepath.Join(m.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, path, "left behind")
	}
	write(t, filepath.Join(m.dir, "a person's notes"), "keep")
	if applied, err := openAndClose(m.dir, ""); err != nil || applied != 4 {
		t.Fatalf("opened at %d, %v", applied, err)
	}
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, ","); got != "CURRENT,a person's notes,generation-1" {
		t.Errorf("the files are %s", got)
	}
}

// Sync writes the state that has not been written to SQLite to the state file, which
// counts until the next rows are written.
func TestTheStateFile(t *testing.T) {
	h := newCounterHistory()
	h.add(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 0, Next: 40}))
	h.add(wire.EncodeOpenSession(9, 0, 0))
	m := emptyMachine(t)
	m.apply(h.entries[:2]...)
	m.apply(h.entries[2:]...)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(m.storage.path(1), stateFile))
	if err != nil {
		t.Fatal(err)
	}
	state, err := decodeStateFile(b)
	if err != nil || state.SQLIndex != 2 || state.Applied != 4 || state.Clock != 40 || len(state.Sessions) != 2 {
		t.Errorf("the state file has %+v, %v", state, err)
	}
	m.Close()
	if applied := m.start(); applied != 4 {
		t.Errorf("the replica is at entry %d", applied)
	}
	h.do(insert(1))
	m.apply(h.entries[4:]...)
	m.Close()
	if applied := m.start(); applied != 5 {
		t.Errorf("after rows were written, the replica is at entry %d", applied)
	}
	if now := m.Clock().Now; now != 40 || m.sessions.Len() != 2 {
		t.Errorf("the clock is at %d, and there are %d sessions", now, m.sessions.Len())
	}
}

// After Sync all files are on the disk. A copy of them opens at the synced entry.
func TestSyncedFilesCanBeCopied(t *testing.T) {
	h := newCounterHistory()
	h.do(insert(1))
	m := emptyMachine(t)
	m.apply(h.entries...)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(folder(t), "copy")
	copyFolder(t, m.dir, dir)
	remove(t, filepath.Join(dir, "generation-1", databaseFile+"-shm"))
	if applied, err := openAndClose(dir, ""); err != nil || applied != 3 {
		t.Errorf("opened at %d, %v", applied, err)
	}
}

// A truncated write-ahead log of which nothing was synced is an earlier state. The replica
// applies the later entries again.
func TestATruncatedWriteAheadLogIsAnEarlierState(t *testing.T) {
	h := newCounterHistory()
	for n := range 20 {
		h.do(insert(n))
	}
	m := emptyMachine(t)
	for _, e := range h.entries {
		m.apply(e)
	}
	want := m.hash()
	dir := filepath.Join(folder(t), "torn")
	copyFolder(t, m.dir, dir)
	wal := filepath.Join(dir, "generation-1", databaseFile+"-wal")
	info, err := os.Stat(wal)
	if err != nil {
		t.Fatal(err)
	}
	for size := info.Size(); size >= 0; size -= info.Size() / 17 {
		torn := emptyMachine(t)
		torn.Close()
		copyFolder(t, dir, torn.dir)
		if err := os.Truncate(filepath.Join(torn.dir, "generation-1", databaseFile+"-wal"), size); err != nil {
			t.Fatal(err)
		}
		applied := torn.start()
		if applied > uint64(len(h.entries)) {
			t.Fatalf("the replica is at entry %d", applied)
		}
		torn.apply(h.entries[applied:]...)
		if torn.hash() != want {
			t.Errorf("truncated to %d of %d bytes, reopened at entry %d: the replica differs", size, info.Size(), applied)
		}
		torn.Close()
	}
}
