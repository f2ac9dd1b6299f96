//go:build !linux

package cluster

import "github.com/lni/vfs"

// syncData makes what was written to a file durable.
func syncData(f vfs.File) error { return f.Sync() }
