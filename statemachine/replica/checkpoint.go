package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/hiqlite/hiqlite/internal/sqlite"
)

const (
	// checkpointFrom is the size, in bytes, from which the write-ahead log is copied
	// into the database file, so that SQLite writes it from its start again.
	checkpointFrom = 16 << 20
	// truncateFrom is the size, in bytes, from which new queries wait for the
	// checkpoint. The log reaches it when queries overlap all the time.
	truncateFrom = 64 << 20
	// quiesceWait is how long the checkpoint then waits for running queries.
	quiesceWait = 20 * time.Millisecond
	// commitsPerCheck is the number of commits between two checks of the log's size.
	commitsPerCheck = 16
	// readPatience is how long a query may run before a checkpoint may end it.
	readPatience = 10 * time.Second
)

// A checkpointer keeps SQLite's write-ahead log small. It does not decide what is
// durable: the Raft log and Sync do.
type checkpointer struct {
	r       *SQL
	commits int
	wake    chan struct{}
	quit    chan struct{}
	done    chan struct{}
	once    sync.Once

	mu   sync.Mutex // held while the connection is used
	conn *sqlite.Conn
	path string

	index uint64 // the applied index at the last checkpoint
}

func (c *checkpointer) start(r *SQL) {
	c.r = r
	c.wake = make(chan struct{}, 1)
	c.quit = make(chan struct{})
	c.done = make(chan struct{})
	go c.run()
}

// committed is called after each commit, by the goroutine that applies.
func (c *checkpointer) committed() {
	if c.commits++; c.commits < commitsPerCheck {
		return
	}
	c.commits = 0
	if c.r.conn.WALFrames() < checkpointFrom/4096 {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *checkpointer) run() {
	defer close(c.done)
	for {
		select {
		case <-c.quit:
			return
		case <-c.wake:
			if err := c.checkpoint(); err != nil {
				c.r.log.Warn("hiqlite: checkpoint", "error", err)
			}
		}
	}
}

// checkpoint copies the log while entries are applied, and then, between two batches,
// the little that was added in the meantime. SQLite writes the log from its start again
// only if all of it was copied and no reader needs it.
func (c *checkpointer) checkpoint() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.conn.Checkpoint(false); err != nil {
		return err
	}
	if err := c.conn.SyncDatabase(); err != nil { // so that the next sync is short
		return err
	}
	if err := c.betweenBatches(false); err != nil {
		return err
	}
	if err := writeCopied(c.path, c.index); err != nil {
		return err
	}
	wal := c.path + "-wal"
	if fileSize(wal) < truncateFrom {
		return nil
	}
	var err error
	if c.r.pool.quiesce(quiesceWait, func() { err = c.betweenBatches(true) }) {
		return err
	}
	if limit := c.r.cfg.WALLimit; fileSize(wal) > limit {
		reason := sqlite.Interrupted("the query held back the write-ahead log",
			fmt.Sprintf("it ran for more than %v while writes filled %d MiB; read in smaller parts", readPatience, limit>>20))
		c.r.pool.endOldest(readPatience, reason)
		c.r.temporaries.endOldest(readPatience, reason)
	}
	return nil
}

func (c *checkpointer) betweenBatches(truncate bool) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	err := c.conn.Checkpoint(truncate)
	c.index = c.r.sqlIndex
	var e *sqlite.Error
	if errors.As(err, &e) && e.Code == sqlite.CodeBusy {
		return nil // a snapshot is being written, or a connection opened: try the next time
	}
	return err
}

// connect opens the database of the generation in use.
func (c *checkpointer) connect() error {
	path := c.r.pool.path()
	if c.conn != nil && c.path == path {
		return nil
	}
	c.disconnect()
	if path == "" {
		return os.ErrClosed
	}
	conn, err := sqlite.Open(path, sqlite.Plain)
	if err != nil {
		return err
	}
	// It must not wait for a lock, since no entry is applied while it empties the log.
	if err := conn.Exec("PRAGMA busy_timeout=0"); err != nil {
		conn.Close()
		return err
	}
	c.conn, c.path = conn, path
	return nil
}

func (c *checkpointer) disconnect() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// pause waits until no checkpoint runs, and lets none begin until resume. The caller
// must not hold SQL.mu, which a checkpoint may be waiting for.
func (c *checkpointer) pause() {
	c.mu.Lock()
	c.disconnect()
}

func (c *checkpointer) resume() { c.mu.Unlock() }

func (c *checkpointer) stop() {
	if c.r == nil {
		return
	}
	c.once.Do(func() { close(c.quit) })
	<-c.done
	c.mu.Lock()
	c.disconnect()
	c.mu.Unlock()
}

// copiedFile, in the folder of a generation, says up to which entry the write-ahead log
// may have been copied into the database file.
const copiedFile = "copied"

// writeCopied writes copiedFile. From then on the write-ahead log must not end before that
// entry. SQLite accepts a log that has lost its end, and would combine its old pages with
// newer ones in the database file.
func writeCopied(path string, index uint64) error {
	if err := durable.Sync(path + "-wal"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.WriteFile(filepath.Join(filepath.Dir(path), copiedFile), []byte(strconv.FormatUint(index, 10)+"\n"))
}

// checkCopied checks that the database, as it was opened at index, has not lost a part
// of its write-ahead log that was copied.
func (s *storage) checkCopied(index uint64) error {
	path := filepath.Join(s.path(s.generation), copiedFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	copied, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return fmt.Errorf("%w: %s says %q", ErrDamaged, path, b)
	}
	if index < copied {
		return fmt.Errorf("%w: the write-ahead log in %s ends at entry %d, but was copied into the database up to %d: a part of it was lost", ErrDamaged, filepath.Dir(path), index, copied)
	}
	return nil
}
