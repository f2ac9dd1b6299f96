package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Before the watch is armed, errors are returned. Then a failed write does not
// return, and the failure is reported once.
func TestDiskWatch(t *testing.T) {
	failures := make(chan error, 2)
	w := newDiskWatch(func(err error) { failures <- err })
	fs := w.wrapped()
	name := filepath.Join(t.TempDir(), "f")
	f, err := fs.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a write to a closed file before the watch is armed: %v", err)
	}
	w.arm()
	if _, err := fs.Create(filepath.Join(name+"-missing", "g")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is missing: %v", err)
	}
	if err := fs.Remove(name + "-missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is missing: %v", err)
	}
	returned := make(chan struct{})
	go func() { f.Write([]byte("x")); close(returned) }()
	if err := <-failures; !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	select {
	case <-returned:
		t.Error("a failed write returned")
	case <-time.After(10 * time.Millisecond):
	}
	close(w.never)
	<-returned
}
