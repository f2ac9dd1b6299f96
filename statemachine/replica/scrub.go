package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/hiqlite/hiqlite/internal/sqlite"
)

const (
	// scrubPages is how many pages are read before the next pause.
	scrubPages = 64
	// scrubPause makes that, with pages of 4096 bytes, 16 MiB a second at most.
	scrubPause = 16 * time.Millisecond
)

// closedFile, in the folder of a generation, says that the machine was closed, and
// identifies the database file as it was then. It is missing after the process was killed
// or the power failed.
const closedFile = "closed"

// A scrubber reads all pages of the database once, in the background. It finds damage
// while other nodes still have the rows, and not only when a query needs them. It runs
// after a start that did not follow a Close, or if the file has changed since the Close.
// Queries do not rely on it: each page is checked whenever it is read.
type scrubber struct {
	quit chan struct{}
	done chan struct{}
	once sync.Once
}

// scrub starts reading the database at path.
func (s *scrubber) scrub(r *SQL, path string) {
	s.quit, s.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(s.done)
		pages, err := s.read(path)
		switch {
		case errors.Is(err, os.ErrClosed), r.Err() != nil, r.pool.path() != path:
		case err != nil:
			r.log.Warn("hiqlite: not all of the database could be checked", "error", err)
		default:
			r.log.Debug("hiqlite: the database was checked", "pages", pages)
		}
	}()
}

func (s *scrubber) read(path string) (pages int64, err error) {
	conn, err := sqlite.Open(path, sqlite.ReadOnly)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.AsOwner(true)
	p, err := conn.Pages()
	if err != nil {
		return 0, err
	}
	defer p.Close()
	for more := true; more; pages += scrubPages {
		if more, err = p.Check(scrubPages); err != nil {
			return pages, err
		}
		select {
		case <-s.quit:
			return pages, os.ErrClosed
		case <-time.After(scrubPause):
		}
	}
	return pages, nil
}

func (s *scrubber) stop() {
	if s.quit == nil {
		return
	}
	s.once.Do(func() { close(s.quit) })
	<-s.done
}

// closed writes closedFile after the database was closed. If there still is a
// write-ahead log, another program has the database open, and closed writes nothing.
func (s *storage) closed() error {
	dir := s.path(s.generation)
	if fileSize(filepath.Join(dir, databaseFile+"-wal")) > 0 {
		return nil
	}
	was, err := identity(filepath.Join(dir, databaseFile))
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, closedFile), []byte(was))
}

// asClosed reports whether the database file is the same as when it was closed.
func (s *storage) asClosed() (bool, error) {
	dir := s.path(s.generation)
	was, err := os.ReadFile(filepath.Join(dir, closedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	is, err := identity(filepath.Join(dir, databaseFile))
	return err == nil && is == string(was) && fileSize(filepath.Join(dir, databaseFile+"-wal")) == 0, err
}

// opened durably removes closedFile.
func (s *storage) opened() error {
	dir := s.path(s.generation)
	if err := os.Remove(filepath.Join(dir, closedFile)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return durable.Sync(dir)
}

// identity returns size and modification time of a file, which identify its content as
// long as only SQLite writes to it.
func identity(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes, written at %s\n", info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano)), nil
}
