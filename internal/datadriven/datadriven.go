// Package datadriven runs tests whose cases are text files: blocks of commands,
// each with the output that is expected of it. It is for tests only.
//
// A block is some lines of commands, a line "----", and the expected output up to
// the next empty line. Lines that begin with # are comments. The format is that
// of the interaction tests of etcd-io/raft.
package datadriven

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the present output of data-driven tests into their files")

// Run runs a subtest for each file that matches pattern. Each gets a new function
// from start; that is called with each line of commands, in order, and returns the
// output of the line. With the flag -rewrite the files get the present output.
func Run(t *testing.T, pattern string, start func(t *testing.T) func(line string) string) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files match %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)), func(t *testing.T) {
			RunFile(t, file, start(t))
		})
	}
}

// RunFile tests one file, as Run does, but not in a subtest: a bubble of testing/synctest
// cannot have any.
func RunFile(t *testing.T, file string, run func(line string) string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := output(string(text), run)
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	compare(t, file, string(text), got)
}

// output returns the file's text with the output that run gives.
func output(text string, run func(line string) string) string {
	var out, result strings.Builder
	expected := false // the line belongs to the output that was expected
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case expected && line != "":
			continue
		case expected:
			expected = false
		case line == "----":
			expected = true
			out.WriteString("----\n" + result.String())
			result.Reset()
			continue
		case line != "" && !strings.HasPrefix(line, "#"):
			if s := strings.TrimSuffix(run(line), "\n"); s != "" {
				result.WriteString(s + "\n")
			}
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}

// compare reports the first lines that differ.
func compare(t *testing.T, file, want, got string) {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		at := func(lines []string) string {
			if i < len(lines) {
				return lines[i]
			}
			return "(the end)"
		}
		if at(w) != at(g) {
			t.Fatalf("%s:%d: the output is\n%s\nbut the file has\n%s\n(see the flag -rewrite)", file, i+1, at(g), at(w))
		}
	}
}
