//go:build !linux

package raftlog

import "os"

func allocate(f *os.File, size int64) error { return zeroFill(f, size) }

func syncData(f *os.File) error { return f.Sync() }
