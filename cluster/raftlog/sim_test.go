package raftlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// errInjected is what an operation of a simFS returns that is made to fail.
var errInjected = errors.New("injected")

// A simFS is a file system in memory that knows what is durable. It can fail
// operations, and can be turned into what a loss of power leaves of it.
type simFS struct {
	mu      sync.Mutex
	names   map[string]*simFile
	durable map[string]*simFile // the names as of the last Sync
	changes []func(map[string]*simFile)
	fail    func(op string) error // may be nil; called with mu held
	ops     int                   // writes, syncs and changes of names so far
}

type simFile struct {
	fs      *simFS
	data    []byte
	durable []byte     // the content as of the last Sync
	writes  []simWrite // since then
}

type simWrite struct {
	at   int64
	data []byte
}

func newSimFS() *simFS {
	return &simFS{names: map[string]*simFile{}, durable: map[string]*simFile{}}
}

// op counts an operation, and returns an error if it is made to fail.
func (s *simFS) op(name string) error {
	s.ops++
	if s.fail != nil {
		return s.fail(name)
	}
	return nil
}

func (s *simFS) change(f func(map[string]*simFile)) {
	f(s.names)
	s.changes = append(s.changes, f)
}

func (s *simFS) List() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.names)), nil
}

func (s *simFS) Create(name string, size int64) (File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.op("create"); err != nil {
		return nil, err
	}
	f := &simFile{fs: s, data: make([]byte, size)}
	s.change(func(names map[string]*simFile) { names[name] = f })
	return f, nil
}

func (s *simFS) Open(name string) (File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.names[name]
	if f == nil {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return f, nil
}

func (s *simFS) Rename(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.op("rename"); err != nil {
		return err
	}
	f := s.names[from]
	if f == nil {
		return fmt.Errorf("%s: %w", from, fs.ErrNotExist)
	}
	s.change(func(names map[string]*simFile) {
		delete(names, from)
		names[to] = f
	})
	return nil
}

func (s *simFS) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.op("remove"); err != nil {
		return err
	}
	s.change(func(names map[string]*simFile) { delete(names, name) })
	return nil
}

func (s *simFS) Sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.op("sync folder"); err != nil {
		return err
	}
	s.durable, s.changes = maps.Clone(s.names), nil
	return nil
}

func (f *simFile) ReadAt(b []byte, at int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if at >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.data[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *simFile) WriteAt(b []byte, at int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.fs.op("write")
	if err != nil {
		b = b[:len(b)/2] // a failed write may have written something
	}
	f.writes = append(f.writes, simWrite{at, slices.Clone(b)})
	f.data = writeAt(f.data, b, at)
	return len(b), err
}

func writeAt(data, b []byte, at int64) []byte {
	if grow := at + int64(len(b)) - int64(len(data)); grow > 0 {
		data = append(data, make([]byte, grow)...)
	}
	copy(data[at:], b)
	return data
}

func (f *simFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.op("sync"); err != nil {
		return err
	}
	f.durable, f.writes = slices.Clone(f.data), nil
	return nil
}

func (f *simFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.data)), nil
}

func (f *simFile) Close() error { return nil }

// killed returns what a new process finds after the end of the old one.
func (s *simFS) killed() *simFS {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.copyOf(s.names, func(f *simFile) []byte { return f.data })
}

// withoutPower returns what a loss of power may leave: of what was not synced, some
// sectors are written and others are not, in any order; the last changes of names are
// lost.
func (s *simFS) withoutPower(rng *rand.Rand) *simFS {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := maps.Clone(s.durable)
	for _, change := range s.changes[:rng.IntN(len(s.changes)+1)] {
		change(names)
	}
	p := rng.Float64()
	return s.copyOf(names, func(f *simFile) []byte {
		data := slices.Clone(f.durable)
		for _, w := range f.writes {
			const sector = 512
			for from := int64(0); from < int64(len(w.data)); {
				to := min((w.at+from)/sector*sector+sector-w.at, int64(len(w.data)))
				if rng.Float64() < p {
					data = writeAt(data, w.data[from:to], w.at+from)
				}
				from = to
			}
		}
		return data
	})
}

func (s *simFS) copyOf(names map[string]*simFile, content func(*simFile) []byte) *simFS {
	c := newSimFS()
	for name, f := range names {
		data := slices.Clone(content(f))
		c.names[name] = &simFile{fs: c, data: data, durable: slices.Clone(data)}
	}
	c.durable = maps.Clone(c.names)
	return c
}

// clone returns a copy of the current state.
func (s *simFS) clone() *simFS { return s.killed() }

func mustOpen(t testing.TB, s *simFS, opts Options) *Log {
	t.Helper()
	l, err := openSim(s, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func openSim(s *simFS, opts Options) (*Log, error) {
	opts.FS = s
	opts.Logger = slog.New(slog.DiscardHandler)
	if opts.SegmentSize == 0 {
		opts.SegmentSize = minSegmentSize
	}
	return Open("sim", opts)
}
