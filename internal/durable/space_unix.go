//go:build !windows

package durable

import "syscall"

// Space returns how many bytes this user can still write below dir, and how many
// the volume has in total.
func Space(dir string) (free, total int64, err error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), int64(s.Blocks) * int64(s.Bsize), nil
}
