package raftlog

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hiqlite/hiqlite/internal/durable"
)

// An FS is the file system under a log. Names are those of files in the log's folder.
type FS interface {
	// List returns the names of the files.
	List() ([]string, error)
	// Create creates a file, and allocates size bytes for it, which read as zeros.
	Create(name string, size int64) (File, error)
	// Open opens a file for reading and writing.
	Open(name string) (File, error)
	// Rename renames a file. An existing file of the new name is replaced.
	Rename(from, to string) error
	Remove(name string) error
	// Sync makes creations, renames and removals durable.
	Sync() error
}

// A File is a file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes durable what was written.
	Sync() error
	Size() (int64, error)
}

// folder is the FS of a folder of the operating system.
type folder string

// openFolder creates a folder if it is missing.
func openFolder(dir string) (folder, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
		if err := durable.Sync(filepath.Dir(dir)); err != nil {
			return "", err
		}
	}
	return folder(dir), nil
}

func (f folder) path(name string) string { return filepath.Join(string(f), name) }

func (f folder) List() ([]string, error) {
	entries, err := os.ReadDir(string(f))
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (f folder) Create(name string, size int64) (File, error) {
	file, err := os.OpenFile(f.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := allocate(file, size); err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(file.Name()))
	}
	return osFile{file}, nil
}

func (f folder) Open(name string) (File, error) {
	file, err := os.OpenFile(f.path(name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{file}, nil
}

func (f folder) Rename(from, to string) error { return os.Rename(f.path(from), f.path(to)) }
func (f folder) Remove(name string) error     { return os.Remove(f.path(name)) }
func (f folder) Sync() error                  { return durable.Sync(string(f)) }

type osFile struct{ *os.File }

func (f osFile) Sync() error { return syncData(f.File) }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// zeroFill allocates space by writing zeros.
func zeroFill(f *os.File, size int64) error {
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}
