package cluster

import (
	"syscall"

	"github.com/lni/vfs"
)

// syncData makes what was written to a file durable, and of its metadata only
// what is needed to read it.
func syncData(f vfs.File) error {
	if d, ok := f.(interface{ Fd() uintptr }); ok {
		for {
			if err := syscall.Fdatasync(int(d.Fd())); err != syscall.EINTR {
				return err
			}
		}
	}
	return f.Sync()
}
