package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/lni/vfs"
)

// A diskWatch is the file system under the Raft log, which panics where a write
// fails, in goroutines of its own, and so ends the program. Here a goroutine whose
// write fails, once the node runs, never returns from it, and the node is told.
// What it had written before is what a power loss would have left: nothing was
// acknowledged that is not on disk.
//
// The goroutine, and what waits for it, stays until the program ends.
//
// Dragonboat itself writes few other files, snapshots of shards in memory above
// all. They are not watched: given such a file system, it would also swallow
// panics that have nothing to do with it.
type diskWatch struct {
	vfs.FS
	failed func(error)   // called once
	never  chan struct{} // closed by tests alone

	mu    sync.Mutex
	armed bool
	err   error // the first; guarded by mu
}

func newDiskWatch(failed func(error)) *diskWatch {
	return &diskWatch{FS: vfs.Default, failed: failed, never: make(chan struct{})}
}

// wrapped returns it in the form that Dragonboat takes: it knows its own file
// systems only, one of which wraps others to inject errors for tests.
func (w *diskWatch) wrapped() vfs.FS { return vfs.Wrap(w, noErrors{}) }

// noErrors injects none.
type noErrors struct{}

func (noErrors) MaybeError(vfs.Op) error { return nil }

// arm makes failed writes block from now on: before, they are returned to who
// opens the node.
func (w *diskWatch) arm() {
	w.mu.Lock()
	w.armed = true
	w.mu.Unlock()
}

// check returns err, or, if it says that the disk fails, never.
func (w *diskWatch) check(what, name string, err error) error {
	if err == nil {
		return nil
	}
	w.mu.Lock()
	armed, first := w.armed, w.err == nil
	if armed && first {
		if path := new(fs.PathError); !errors.As(err, &path) {
			err = fmt.Errorf("%s %s: %w", what, name, err)
		}
		w.err = err
	}
	w.mu.Unlock()
	if !armed {
		return err
	}
	if first {
		go w.failed(err)
	}
	<-w.never
	return err
}

// checkName is check for what may fail because of the name.
func (w *diskWatch) checkName(what, name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
		return err
	}
	return w.check(what, name, err)
}

func (w *diskWatch) file(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &watchedFile{File: f, name: name, watch: w}, nil
}

func (w *diskWatch) Create(name string) (vfs.File, error) {
	f, err := w.FS.Create(name)
	return w.file(name, f, w.checkName("create", name, err))
}

func (w *diskWatch) Link(oldname, newname string) error {
	return w.checkName("link", newname, w.FS.Link(oldname, newname))
}

func (w *diskWatch) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := w.FS.Open(name, opts...)
	return w.file(name, f, err)
}

func (w *diskWatch) OpenDir(name string) (vfs.File, error) {
	f, err := w.FS.OpenDir(name)
	return w.file(name, f, err)
}

func (w *diskWatch) OpenForAppend(name string) (vfs.File, error) {
	f, err := w.FS.OpenForAppend(name)
	return w.file(name, f, w.checkName("open", name, err))
}

func (w *diskWatch) Rename(oldname, newname string) error {
	return w.checkName("rename", newname, w.FS.Rename(oldname, newname))
}

func (w *diskWatch) ReuseForWrite(oldname, newname string) (vfs.File, error) {
	f, err := w.FS.ReuseForWrite(oldname, newname)
	return w.file(newname, f, w.checkName("reuse", newname, err))
}

func (w *diskWatch) MkdirAll(dir string, perm os.FileMode) error {
	return w.checkName("make", dir, w.FS.MkdirAll(dir, perm))
}

func (w *diskWatch) Remove(name string) error {
	return w.checkName("remove", name, w.FS.Remove(name))
}

func (w *diskWatch) RemoveAll(name string) error {
	return w.checkName("remove", name, w.FS.RemoveAll(name))
}

type watchedFile struct {
	vfs.File
	name  string
	watch *diskWatch
}

func (f *watchedFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, f.watch.check("write", f.name, err)
}

func (f *watchedFile) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(b, at)
	return n, f.watch.check("write", f.name, err)
}

func (f *watchedFile) Sync() error { return f.watch.check("sync", f.name, syncData(f.File)) }

func (f *watchedFile) Read(b []byte) (int, error) {
	n, err := f.File.Read(b)
	return n, f.checkRead(err)
}

func (f *watchedFile) ReadAt(b []byte, at int64) (int, error) {
	n, err := f.File.ReadAt(b, at)
	return n, f.checkRead(err)
}

// checkRead is check for what a disk alone can be the reason of.
func (f *watchedFile) checkRead(err error) error {
	if errors.Is(err, syscall.EIO) {
		return f.watch.check("read", f.name, err)
	}
	return err
}
