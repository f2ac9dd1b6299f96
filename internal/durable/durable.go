// Package durable has what every package needs that keeps small files on disk:
// files that are replaced atomically and durably, and the free space of a
// volume.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// WriteFile replaces the file at path with one that holds data, atomically: a
// reader, and a program that starts after a crash, finds either the old file or
// the new one, complete. When WriteFile returns nil the new file is durable. It
// writes to path+".tmp" first, which a crash may leave behind.
func WriteFile(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return Sync(filepath.Dir(path)) // makes the new name durable
}

// Sync makes durable the content of a file, or the names in a folder.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
