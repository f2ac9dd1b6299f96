package replica

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A history is a log that several machines apply, in batches of different sizes, with
// restarts, or by snapshots. Its first entry opens session 1.
type history struct {
	entries []sm.Entry
	seq     uint64
}

func newHistory() *history {
	h := &history{}
	h.add(wire.EncodeOpenSession(77, 0, 0))
	return h
}

func (h *history) add(cmd []byte) {
	h.entries = append(h.entries, sm.Entry{Index: uint64(len(h.entries)) + 1, Cmd: cmd})
}

// do adds an entry with these operations.
func (h *history) do(ops ...*wire.Operation) {
	h.seq++
	h.add(entryOf(1, h.seq, ops...))
}

// sql adds an entry for each text. Each has its own time and seed.
func (h *history) sql(texts ...string) {
	for _, text := range texts {
		o := op(text)
		o.StampMS += int64(h.seq) * 1000
		o.Seed = seedOf(h.seq)
		h.do(o)
	}
}

// folder returns a folder that is removed after the test. It is in memory if possible,
// because these tests call fsync thousands of times.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hiqlite-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// emptyMachine returns an open replica that has applied nothing.
func emptyMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, dir: filepath.Join(folder(t), "sql"), got: map[[2]uint64][]wire.Result{}, opened: map[uint64]uint64{}, settled: map[uint64]wire.Result{}, failed: make(chan error, 1)}
	m.start()
	m.session = 1
	return m
}

// apply applies entries as one batch.
func (m *machine) apply(entries ...sm.Entry) {
	m.t.Helper()
	if len(entries) == 0 {
		return
	}
	// Update may change the elements of the slice, and other machines use them too.
	if _, err := m.Update(append([]sm.Entry{}, entries...)); err != nil {
		m.t.Fatal(err)
	}
	if err := m.Err(); err != nil {
		m.t.Fatalf("the replica stopped: %v", err)
	}
	m.index = entries[len(entries)-1].Index
}

// restart closes and opens the replica, and applies again what it had lost.
func (m *machine) restart(h *history) {
	m.t.Helper()
	was := m.index
	m.Close()
	applied := m.start()
	if applied > was {
		m.t.Fatalf("the replica is at entry %d but had applied entry %d", applied, was)
	}
	m.apply(h.entries[applied:was]...)
}

// hash returns the hash of all rows that SQL can see.
func (m *machine) hash() string {
	m.t.Helper()
	sum, index, err := m.Hash(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	if index != m.SQL.publishedIndex.Load() {
		m.t.Fatalf("the hash is of entry %d, the replica is at entry %d", index, m.SQL.publishedIndex.Load())
	}
	return fmt.Sprintf("%x", sum[:8])
}

// snapshotTo replaces the content of to by a snapshot of m.
func (m *machine) snapshotTo(to *machine) {
	m.t.Helper()
	v, err := m.PrepareSnapshot()
	if err != nil {
		m.t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := m.SaveSnapshot(v, &buf, nil); err != nil {
		m.t.Fatal(err)
	}
	if err := to.RecoverFromSnapshot(&buf, nil); err != nil {
		m.t.Fatal(err, to.Err())
	}
	to.index = m.index
}

// ways are the ways in which replicas receive the same log.
var ways = []struct {
	name string
	run  func(t *testing.T, h *history) *machine
}{
	{"entry by entry", func(t *testing.T, h *history) *machine {
		m := emptyMachine(t)
		for _, e := range h.entries {
			m.apply(e)
		}
		return m
	}},
	{"one batch", func(t *testing.T, h *history) *machine {
		m := emptyMachine(t)
		m.apply(h.entries...)
		return m
	}},
	{"batches of three", func(t *testing.T, h *history) *machine {
		m := emptyMachine(t)
		for from := 0; from < len(h.entries); from += 3 {
			m.apply(h.entries[from:min(from+3, len(h.entries))]...)
		}
		return m
	}},
	{"killed after each entry", func(t *testing.T, h *history) *machine {
		m := emptyMachine(t)
		for _, e := range h.entries {
			m.apply(e)
			m.restart(h)
		}
		return m
	}},
	{"synced and restarted after two entries each", func(t *testing.T, h *history) *machine {
		m := emptyMachine(t)
		for from := 0; from < len(h.entries); from += 2 {
			m.apply(h.entries[from:min(from+2, len(h.entries))]...)
			if err := m.Sync(); err != nil {
				t.Fatal(err)
			}
			m.restart(h)
		}
		return m
	}},
	{"snapshots back and forth", func(t *testing.T, h *history) *machine {
		m, other := emptyMachine(t), emptyMachine(t)
		for _, e := range h.entries {
			m.apply(e)
			m.snapshotTo(other)
			m, other = other, m
		}
		return m
	}},
}

// agree applies the history in every way, and fails the test if the replicas differ. It
// returns the machine that applied it entry by entry.
func agree(t *testing.T, h *history, queries ...string) *machine {
	t.Helper()
	var first *machine
	var want string
	for i, way := range ways {
		m := way.run(t, h)
		got := "hash " + m.hash()
		for _, q := range queries {
			got += "\n" + q + "\n" + m.rows(q)
		}
		if i == 0 {
			first, want = m, got
			continue
		}
		if got != want {
			t.Errorf("%s:\n%s\n\n%s:\n%s", ways[0].name, want, way.name, got)
		}
		m.Close()
	}
	return first
}
