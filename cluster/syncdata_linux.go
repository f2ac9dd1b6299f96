package cluster

import (
	"syscall"

	"github.com/lni/vfs"
)

// syncData makes the content of a file durable, and of its metadata only what is
// needed to read the content.
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
