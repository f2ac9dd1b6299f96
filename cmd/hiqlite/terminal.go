package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// Colours of a terminal, as ANSI sequences.
const (
	red  = "\x1b[31m"
	bold = "\x1b[1m"
	dim  = "\x1b[2m"
)

// isTerminal reports whether a reader or writer is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// paint returns a text in a colour if w is a terminal that has some. See
// https://no-color.org.
func paint(w io.Writer, colour, text string) string {
	if !isTerminal(w) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return text
	}
	return colour + text + "\x1b[0m"
}
