//go:build !windows

package statemachine

import "syscall"

// minFree is the free space, in bytes, under which a full disk is believed.
const minFree = 16 << 20

// FreeSpace returns the bytes that can still be written below dir.
func FreeSpace(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
