//go:build !windows

package statemachine

import "syscall"

// FreeSpace returns the bytes that can still be written below dir.
func FreeSpace(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
