//go:build !linux

package transport

import "syscall"

// tune does nothing: the options that it sets exist on Linux only.
func tune(_, _ string, _ syscall.RawConn) error { return nil }
