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

// A diskWatch is the file system under the Raft log. When a write fails, the Raft
// log panics in a goroutine of its own, which would end the program. So once the
// host runs, an operation that fails because of the disk does not return: its
// goroutine, and those that wait for it, block until the program ends, and the host
// is told about the failure. The log then has what a loss of power would have left.
// Nothing was acknowledged that is not on disk.
//
// Dragonboat writes a few other files itself, mostly snapshots of shards in memory.
// They are not watched: if Dragonboat were given a file system like this one, it
// would also recover from panics that have other causes.
type diskWatch struct {
	vfs.FS
	failed func(error)   // is called once, in a goroutine of its own
	never  chan struct{} // failed operations wait for it to be closed; only tests close it

	mu    sync.Mutex
	armed bool  // failed operations block; guarded by mu
	err   error // the first failure since then; guarded by mu
}

func newDiskWatch(failed func(error)) *diskWatch {
	return &diskWatch{FS: vfs.Default, failed: failed, never: make(chan struct{})}
}

// wrapped returns the diskWatch in a form that Dragonboat accepts. Dragonboat
// accepts only file systems of its own; one of these wraps another file system, to
// inject errors in tests.
func (w *diskWatch) wrapped() vfs.FS { return vfs.Wrap(w, noErrors{}) }

// noErrors injects no errors.
type noErrors struct{}

func (noErrors) MaybeError(vfs.Op) error { return nil }

// arm makes failed operations block from now on. Before, their errors are returned,
// and reach the caller of Open.
func (w *diskWatch) arm() {
	w.mu.Lock()
	w.armed = true
	w.mu.Unlock()
}

// check returns err while the diskWatch is not armed. Once it is armed, check
// returns only if err is nil.
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

// checkName is check for operations on names. That a file exists, or does not, is
// returned: it is no failure of the disk.
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

// checkRead is check for errors that only the disk can cause. Others, such as
// io.EOF, are returned.
func (f *watchedFile) checkRead(err error) error {
	if errors.Is(err, syscall.EIO) {
		return f.watch.check("read", f.name, err)
	}
	return err
}
