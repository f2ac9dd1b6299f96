package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// storage is the folder of the machine:
//
//	CURRENT          names the generation in use
//	generation-N/    a generation: data.db with its -wal and -shm, and state
//	*.tmp            left behind by a crash
//
// A snapshot of another node becomes a new generation. If a file were renamed over the
// database in use, SQLite would apply the old write-ahead log to it.
type storage struct {
	dir        string
	syncedFile string
	generation uint64
}

const (
	currentFile      = "CURRENT"
	databaseFile     = "data.db"
	stateFile        = "state"
	generationPrefix = "generation-"
)

// ErrDamaged says that files of the machine are missing, unreadable or too old.
var ErrDamaged = errors.New("hiqlite: the replica's files are damaged")

func (s *storage) path(generation uint64) string {
	return filepath.Join(s.dir, generationPrefix+strconv.FormatUint(generation, 10))
}

// open returns the path of the database. It creates a missing folder.
func (s *storage) open() (string, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", err
	}
	name, err := os.ReadFile(filepath.Join(s.dir, currentFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := s.noData(); err != nil {
			return "", err
		}
		if err := s.create(1); err != nil {
			return "", err
		}
		// An empty file is an empty database. It must exist before CURRENT names it,
		// or a crash between the two steps would look like a lost file.
		if err := durable.WriteFile(filepath.Join(s.path(1), databaseFile), nil); err != nil {
			return "", err
		}
		if err := s.switchTo(1); err != nil {
			return "", err
		}
	case err != nil:
		return "", err
	default:
		n, found := strings.CutPrefix(strings.TrimSpace(string(name)), generationPrefix)
		if s.generation, err = strconv.ParseUint(n, 10, 64); err != nil || !found {
			return "", fmt.Errorf("%w: %s says %q", ErrDamaged, filepath.Join(s.dir, currentFile), name)
		}
		if _, err := os.Stat(filepath.Join(s.path(s.generation), databaseFile)); err != nil {
			return "", fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	s.clean()
	return filepath.Join(s.path(s.generation), databaseFile), nil
}

// noData checks that a folder without CURRENT has never held data: at most the empty
// database of a first start that was interrupted.
func (s *storage) noData() error {
	found, err := fs.Glob(os.DirFS(s.dir), generationPrefix+"*/"+databaseFile+"*") // Glob on the folder itself, whose name may have special characters
	if err != nil {
		return err
	}
	for _, name := range found {
		if path := filepath.Join(s.dir, filepath.FromSlash(name)); fileSize(path) > 0 {
			return fmt.Errorf("%w: %s exists, but %s is missing", ErrDamaged, path, currentFile)
		}
	}
	return nil
}

// create makes the folder of a generation.
func (s *storage) create(generation uint64) error {
	path := s.path(generation)
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.MkdirAll(path, 0o700)
}

// switchTo durably makes a generation the one in use.
func (s *storage) switchTo(generation uint64) error {
	name := generationPrefix + strconv.FormatUint(generation, 10) + "\n"
	if err := durable.WriteFile(filepath.Join(s.dir, currentFile), []byte(name)); err != nil {
		return err
	}
	s.generation = generation
	return nil
}

// clean removes other generations and the files that crashes have left.
func (s *storage) clean() {
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		other := strings.HasPrefix(e.Name(), generationPrefix) && e.Name() != filepath.Base(s.path(s.generation))
		if other || strings.HasSuffix(e.Name(), ".tmp") || strings.HasSuffix(e.Name(), ".tmp-journal") {
			os.RemoveAll(filepath.Join(s.dir, e.Name())) // tried again at the next start
		}
	}
}

// sync makes the database durable up to state, and then state itself, in a file that
// counts only if the database is at the SQLite index that it names.
//
// A checkpoint is not enough, since SQLite skips its fsync while readers are in the way.
// The write-ahead log is synced through a descriptor of its own. The database file must
// not be opened for that: closing it would drop SQLite's POSIX locks.
func (s *storage) sync(state *wire.State) error {
	dir := s.path(s.generation)
	if err := durable.Sync(filepath.Join(dir, databaseFile+"-wal")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.writeState(dir, state); err != nil {
		return err
	}
	return s.writeSynced(state.Applied)
}

// writeSynced writes to syncedFile, which is outside of the folder, up to which index the
// machine was synced. The Raft log may be compacted up to that index, so a machine that
// is found at a lower one has lost its files. Dragonboat would end the process then.
func (s *storage) writeSynced(applied uint64) error {
	if s.syncedFile == "" {
		return nil
	}
	return durable.WriteFile(s.syncedFile, []byte(strconv.FormatUint(applied, 10)+"\n"))
}

// checkSynced returns ErrDamaged if the machine was synced at a later entry than applied.
func (s *storage) checkSynced(applied uint64) error {
	if s.syncedFile == "" {
		return nil
	}
	b, err := os.ReadFile(s.syncedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	synced, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return fmt.Errorf("%w: %s says %q", ErrDamaged, s.syncedFile, b)
	}
	if applied < synced {
		return fmt.Errorf("%w: %s is at entry %d but was synced at entry %d: it was lost, rolled back or replaced", ErrDamaged, s.dir, applied, synced)
	}
	return nil
}

var stateMagic = []byte("hiqlite state 1\n")

func (s *storage) writeState(dir string, state *wire.State) error {
	b := wire.AppendState(bytes.Clone(stateMagic), state)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return durable.WriteFile(filepath.Join(dir, stateFile), b)
}

// newerState returns the state of the state file if that belongs to the present SQLite
// index, and otherwise the state that SQLite holds.
func (s *storage) newerState(inSQLite *wire.State) (*wire.State, error) {
	b, err := os.ReadFile(filepath.Join(s.path(s.generation), stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return inSQLite, nil
	}
	if err != nil {
		return nil, err
	}
	synced, err := decodeStateFile(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, filepath.Join(s.path(s.generation), stateFile), err)
	}
	if synced.SQLIndex > inSQLite.SQLIndex {
		return nil, fmt.Errorf("%w: the database is at index %d but was synced at %d: it was rolled back or replaced", ErrDamaged, inSQLite.SQLIndex, synced.SQLIndex)
	}
	if synced.SQLIndex == inSQLite.SQLIndex && synced.Applied >= inSQLite.Applied {
		return synced, nil
	}
	return inSQLite, nil
}

func decodeStateFile(b []byte) (*wire.State, error) {
	body, sum := b[:max(0, len(b)-4)], b[max(0, len(b)-4):]
	if !bytes.HasPrefix(body, stateMagic) || binary.LittleEndian.Uint32(sum) != crc32.ChecksumIEEE(body) {
		return nil, errors.New("bad checksum")
	}
	return wire.DecodeState(body[len(stateMagic):])
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}
