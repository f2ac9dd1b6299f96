package replica

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// The format of a snapshot is
//
//	magic | length of state | state | SHA-256 of state and database | zstd(database file)
//
// where lengths are little-endian 32-bit numbers.
var snapshotMagic = []byte("hiqlite snapshot 1\n")

// maxState bounds, in bytes, the state in a snapshot; a longer one means that the
// snapshot is damaged.
const maxState = 1 << 30

// A pinnedSnapshot is the read transaction of a snapshot that is to be written. It keeps
// the rows of one entry, and with them the write-ahead log.
type pinnedSnapshot struct {
	state  []byte
	closed atomic.Bool

	mu   sync.Mutex // held while conn is used
	conn *sqlite.Conn
}

// copyTo copies the database to a file, as it was when the snapshot was prepared. It
// stops when done is closed.
func (p *pinnedSnapshot) copyTo(path string, done <-chan struct{}) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	stopped := func() bool {
		select {
		case <-done:
			return true
		default:
			return p.closed.Load()
		}
	}
	if stopped() {
		return sm.ErrSnapshotStopped
	}
	err := p.conn.CopyTo(path, stopped)
	if err != nil && stopped() {
		return sm.ErrSnapshotStopped
	}
	return err
}

func (p *pinnedSnapshot) close() {
	p.closed.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn.Close()
}

// unpin closes the read transactions of snapshots that were not written.
func (r *SQL) unpin() {
	for p := range r.pinned {
		p.close()
	}
	clear(r.pinned)
}

// PrepareSnapshot begins the read transaction whose rows SaveSnapshot will write. It
// closes an earlier one: Dragonboat writes one snapshot at a time, and the transaction of
// a snapshot that it has abandoned would keep the write-ahead log from being reused.
func (r *SQL) PrepareSnapshot() (any, error) {
	if r.Err() != nil {
		return nil, sm.ErrSnapshotStopped
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unpin()
	path := r.pool.path()
	if path == "" {
		return nil, sm.ErrSnapshotStopped
	}
	conn, err := sqlite.Open(path, sqlite.ReadOnly)
	if err == nil {
		conn.AsOwner(true)
		err = conn.Exec("BEGIN; SELECT count(*) FROM " + sqlite.MetaTable)
	}
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		// Dragonboat panics at any other error.
		r.log.Warn("hiqlite: a snapshot was not begun; it will be tried again", "error", err)
		return nil, sm.ErrSnapshotAborted
	}
	p := &pinnedSnapshot{conn: conn, state: wire.AppendState(nil, r.state())}
	r.pinned[p] = true
	return p, nil
}

// SaveSnapshot writes a prepared snapshot to w. It first copies the database to a file, so
// that a slow receiver does not keep the write-ahead log from being reused.
func (r *SQL) SaveSnapshot(prepared any, w io.Writer, done <-chan struct{}) error {
	p := prepared.(*pinnedSnapshot)
	path := filepath.Join(r.storage.dir, fmt.Sprintf("snapshot-%p.tmp", p))
	defer os.Remove(path)
	err := p.copyTo(path, done)
	r.mu.Lock()
	if r.pinned[p] {
		delete(r.pinned, p)
		p.close()
	}
	r.mu.Unlock()
	if err == nil {
		err = writeSnapshot(w, p.state, path, done)
	}
	for _, known := range []error{nil, sm.ErrSnapshotStopped, sm.ErrSnapshotStreaming} {
		if errors.Is(err, known) {
			return known
		}
	}
	r.log.Warn("hiqlite: a snapshot was not sent; it will be tried again", "error", err)
	return sm.ErrSnapshotAborted
}

func writeSnapshot(w io.Writer, state []byte, path string, done <-chan struct{}) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, pages := sha256.New(), new(sqlite.Verifier)
	sum.Write(state)
	if _, err := io.Copy(io.MultiWriter(sum, pages), statemachine.StoppableReader(f, done)); err != nil {
		return err
	}
	if err := pages.End(); err != nil { // check the pages, since the copy has been on the disk for a while
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	head := bytes.Clone(snapshotMagic)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(state)))
	head = append(head, state...)
	if _, err := w.Write(sum.Sum(head)); err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	_, err = io.Copy(z, statemachine.StoppableReader(f, done))
	return errors.Join(err, z.Close())
}

// RecoverFromSnapshot replaces the machine's database by that of a snapshot. The
// database becomes a new generation, so a crash at any point leaves a complete one, the
// old or the new. Running queries finish on the old one.
func (r *SQL) RecoverFromSnapshot(src io.Reader, done <-chan struct{}) error {
	if r.Err() != nil {
		return sm.ErrSnapshotStopped
	}
	r.checkpoints.pause()
	r.mu.Lock()
	err := r.recover(src, done)
	held, waiting := r.lease.held, r.lease.ids()
	r.mu.Unlock()
	r.checkpoints.resume()
	if err == nil {
		r.cfg.Leases.Recovered(held, func(id uint64) bool { return waiting[id] })
		return nil
	}
	if errors.Is(err, sm.ErrSnapshotStopped) {
		return sm.ErrSnapshotStopped
	}
	r.Fail(fmt.Errorf("recover from a snapshot: %w", err))
	return sm.ErrSnapshotStopped
}

func (r *SQL) recover(src io.Reader, done <-chan struct{}) error {
	next := r.storage.generation + 1
	if err := r.storage.create(next); err != nil {
		return err
	}
	dir := r.storage.path(next)
	path := filepath.Join(dir, databaseFile)
	state, err := readSnapshot(statemachine.StoppableReader(src, done), path)
	if err != nil {
		os.RemoveAll(dir)
		return err
	}
	if err := r.storage.writeState(dir, state); err != nil {
		return err
	}
	if err := r.storage.switchTo(next); err != nil {
		return err
	}
	err = r.switchDatabase(path)
	r.endTransactions(errSuperseded) // they write to the old generation; no new ones begin
	if err != nil {
		return err
	}
	r.storage.clean()
	return nil
}

// readSnapshot writes the database of a snapshot to path and returns its state.
func readSnapshot(src io.Reader, path string) (*wire.State, error) {
	in := bufio.NewReaderSize(src, 64<<10)
	head := make([]byte, len(snapshotMagic)+4)
	if _, err := io.ReadFull(in, head); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[len(snapshotMagic):])
	if !bytes.HasPrefix(head, snapshotMagic) || n > maxState {
		return nil, errors.New("not a snapshot that this version reads; upgrade this node")
	}
	rest := make([]byte, int(n)+sha256.Size)
	if _, err := io.ReadFull(in, rest); err != nil {
		return nil, err
	}
	state, err := wire.DecodeState(rest[:n])
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	sum := sha256.New()
	sum.Write(rest[:n])
	return state, writeDatabase(path, z, sum, rest[n:])
}

// writeDatabase copies a database to path, checks its sum and makes it durable.
func writeDatabase(path string, src io.Reader, sum hash.Hash, want []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	pages := new(sqlite.Verifier)
	_, err = io.Copy(io.MultiWriter(f, sum, pages), src)
	if err == nil {
		err = pages.End()
	}
	if err == nil && !bytes.Equal(sum.Sum(nil), want) {
		err = errors.New("the snapshot was damaged on its way: its checksum differs")
	}
	return errors.Join(err, f.Sync(), f.Close())
}
