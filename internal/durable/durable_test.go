package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFileReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, content := range []string{"the first content", "", "the second"} {
		if err := WriteFile(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != content {
			t.Errorf("the file holds %q, want %q", got, content)
		}
	}
	checkOnlyFile(t, path)
}

// A crash may leave the temporary file of a WriteFile that was cut short.
func TestWriteFileAfterCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path+".tmp", []byte("longer than what comes next"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("whole")); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "whole" {
		t.Errorf("the file holds %q, want %q", got, "whole")
	}
	checkOnlyFile(t, path)
}

func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	if err := WriteFile(filepath.Join(dir, "missing", "file"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file in a missing folder: %v", err)
	}
	path := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(path, "inside"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("data")); err == nil {
		t.Error("a folder was replaced by a file")
	}
	checkOnlyFile(t, path)
}

// checkOnlyFile fails if there is anything beside path in its folder.
func checkOnlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the folder has %v, want only %s", entries, filepath.Base(path))
	}
}

func TestSync(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, path} {
		if err := Sync(name); err != nil {
			t.Error(err)
		}
	}
	if err := Sync(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Sync of a missing file: %v", err)
	}
}

func TestSpace(t *testing.T) {
	free, total, err := Space(t.TempDir())
	if err != nil || free <= 0 || total < free {
		t.Errorf("free %d, total %d, %v", free, total, err)
	}
}
