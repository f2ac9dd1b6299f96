package raftlog

import (
	"errors"
	"os"
	"syscall"
)

// allocate allocates space for a file. The first write to allocated space is as quick
// as a write over existing data.
func allocate(f *os.File, size int64) error {
	err := control(f, func(fd int) error { return syscall.Fallocate(fd, 0, 0, size) })
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return zeroFill(f, size)
	}
	if err != nil {
		return &os.PathError{Op: "allocate", Path: f.Name(), Err: err}
	}
	return nil
}

// syncData makes the content of a file durable, and of its metadata only what is
// needed to read the content.
func syncData(f *os.File) error {
	if err := control(f, syscall.Fdatasync); err != nil {
		return &os.PathError{Op: "sync", Path: f.Name(), Err: err}
	}
	return nil
}

// control calls f with the descriptor of a file until it is not interrupted.
func control(file *os.File, f func(fd int) error) error {
	c, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		for {
			if failed = f(int(fd)); failed != syscall.EINTR {
				return
			}
		}
	})
	return errors.Join(err, failed)
}
