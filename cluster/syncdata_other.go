//go:build !linux

package cluster

import "github.com/lni/vfs"

// syncData makes the content of a file durable.
func syncData(f vfs.File) error { return f.Sync() }
