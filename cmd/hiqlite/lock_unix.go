//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// ownGroup starts a command in a process group of its own, so that signals reach its
// children too.
func ownGroup(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// sendSignal sends a signal to a command and, if it has a group, to its children.
func sendSignal(c *exec.Cmd, group bool, s syscall.Signal) {
	pid := c.Process.Pid
	if group {
		pid = -pid
	}
	_ = syscall.Kill(pid, s) // it may have ended already
}

// exitCodeOf returns the exit code of a command as a shell does.
func exitCodeOf(exit *exec.ExitError) int {
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}
