//go:build unix

package process

import (
	"os/signal"
	"syscall"
)

// failDisk makes every write of this process to a file fail.
func failDisk() error {
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	limit.Cur = 0
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
}
