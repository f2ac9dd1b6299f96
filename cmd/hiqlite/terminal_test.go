//go:build unix

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// A terminal is a pseudo terminal with the command in it.
type terminal struct {
	t    *testing.T
	file *os.File
	out  lockedBuffer
	read chan struct{} // closed when the output has ended
	done chan error
}

func openTerminal(t *testing.T, home string, args ...string) *terminal {
	t.Helper()
	c := commandLine(t, []string{"XDG_STATE_HOME=" + home}, args...)
	f, err := pty.StartWithSize(c, &pty.Winsize{Rows: 40, Cols: 120})
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, file: f, read: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		_, _ = io.Copy(&term.out, f) // ends with an error when the process ends
		close(term.read)
	}()
	go func() { term.done <- c.Wait() }()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-term.read
		f.Close()
		if t.Failed() {
			t.Logf("the terminal showed:\n%q", term.out.String())
		}
	})
	return term
}

// typed types keys and waits until the terminal shows a text that it did not show
// before.
func (term *terminal) typed(keys, want string) {
	term.t.Helper()
	before := len(term.out.String())
	if _, err := term.file.WriteString(keys); err != nil {
		term.t.Fatal(err)
	}
	waitFor(term.t, "the text "+want, func() bool { return strings.Contains(term.out.String()[before:], want) })
}

func (term *terminal) end(keys string) {
	term.t.Helper()
	if _, err := term.file.WriteString(keys); err != nil {
		term.t.Fatal(err)
	}
	if err := <-term.done; err != nil {
		term.t.Errorf("the shell ended with %v", err)
	}
}

func TestShell(t *testing.T) {
	data, home := t.TempDir(), t.TempDir()
	term := openTerminal(t, home, "sql", data)
	term.typed("", "hiqlite> ")
	term.typed("CREATE TABLE customers(id INTEGER PRIMARY KEY, moniker TEXT);\r", "hiqlite> ")
	term.typed("INSERT INTO customers(moniker)\r", "...> ")
	term.typed("VALUES('Ada -- Lovelace'); SELECT 'now ' || 'shown';\r", "now shown")
	term.typed("SELECT * FROM cust\t", "customers")
	term.typed(";\r", "Ada -- Lovelace")
	term.typed("selec\t 'lower ' || 'case';\r", "lower case")
	term.typed("SELECT mon\t FROM customers WHERE moniker='nobody';\r", "moniker")
	term.typed(".tab\t\r", "customers\r\n")
	term.typed("SELECT nix;\r", "no such column: nix")
	if !strings.Contains(term.out.String(), red+"hiqlite:") {
		t.Error("no colours on a terminal")
	}
	term.typed("SELECT 'forgotten\r", "...> ")
	term.typed("\x03", "hiqlite> ") // Ctrl-C
	term.typed("BEGIN; INSERT INTO customers(moniker) VALUES('in a transaction'); ROLLBACK; SELECT 'rows ' || count(*) FROM customers;\r", "rows 1")
	term.typed("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c) SELECT count(*) FROM c;\r", "\r\n")
	term.typed("\x03", "interrupted after")
	rows := filepath.Join(t.TempDir(), "rows.csv")
	if err := os.WriteFile(rows, []byte("n\n"+strings.Repeat("1\n", 1500)), 0o600); err != nil {
		t.Fatal(err)
	}
	term.typed(".import "+rows+" imported\r", "1500 rows were imported")
	if !strings.Contains(term.out.String(), " %") {
		t.Error("no progress bar on a terminal")
	}
	term.end(".quit\r")

	info, err := os.Stat(filepath.Join(home, "hiqlite", "history"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the history: %v, %v", info, err)
	}
	term = openTerminal(t, home, "sql", data)
	term.typed("", "hiqlite> ")
	term.typed("INSERT INTO customers(moniker) VALUES('A\x1b[A", "Ada -- Lovelace');") // the earlier statement, on one line
	term.typed("\r", "hiqlite> ")
	term.typed("SELECT 'rows ' || count(*) FROM customers;\r", "rows 2")
	term.end("\x04") // Ctrl-D
}

// Statements that come through a pipe are executed as they come.
func TestStatementsOfAPipe(t *testing.T) {
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(binary, "sql", t.TempDir(), "--mode=list")
	c.Env = append(os.Environ(), "HIQLITE_TEST_COMMAND=1")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	for n := range 3 {
		fmt.Fprintf(in, "SELECT\n%d;\n", n)
		if line, err := out.ReadString('\n'); err != nil || line != fmt.Sprintln(n) {
			t.Errorf("%q, %v", line, err)
		}
	}
	in.Close()
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

// A pager or head may close standard output early.
func TestClosedOutput(t *testing.T) {
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sh", "-c", `"$0" sql "$1" "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c LIMIT 1000000) SELECT i FROM c" --csv | head -1`, binary, t.TempDir())
	c.Env = append(os.Environ(), "HIQLITE_TEST_COMMAND=1")
	out, err := c.Output()
	if err != nil || string(out) != "i\n" {
		t.Errorf("%q, %v", out, err)
	}
}
