package main

import (
	"os/exec"
	"syscall"
)

func ownGroup(*exec.Cmd) {}

// sendSignal ends a command: Windows has no other signal.
func sendSignal(c *exec.Cmd, _ bool, _ syscall.Signal) { _ = c.Process.Kill() }

func exitCodeOf(exit *exec.ExitError) int { return exit.ExitCode() }
