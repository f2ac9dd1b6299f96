package hiqlite_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// A sturdy is a node with a table of three rows, which bad input must not harm.
type sturdy struct {
	*testCluster
}

func newSturdy(t testing.TB, size int, change ...func(*hiqlite.Config)) sturdy {
	s := sturdy{newCluster(t, size, change...)}
	mustExec(t, s.DB(0), "CREATE TABLE kept(id INTEGER PRIMARY KEY, v TEXT UNIQUE)")
	mustExec(t, s.DB(0), "INSERT INTO kept(v) VALUES('a'),('b'),('c')")
	return s
}

// unharmed fails unless all nodes answer, write, and hold what they held.
func (s sturdy) unharmed(what string) {
	s.t.Helper()
	answers(s.t, s.testCluster)
	ctx := hiqlite.WithConsistency(testrun.Context(s.t), hiqlite.Linearizable)
	for i := range s.Nodes() {
		mustExec(s.t, s.DB(i), "UPDATE kept SET v=v")
		var n int
		if err := s.DB(i).QueryRowContext(ctx, "SELECT count(*) FROM kept WHERE v IN ('a','b','c')").Scan(&n); err != nil || n != 3 {
			s.t.Fatalf("after %s, node %d holds %d rows, %v", what, i+1, n, err)
		}
	}
}

// refusal fails unless err is SQLite's, with this code and these words.
func refusal(t testing.TB, what string, err error, code int, words ...string) *hiqlite.Error {
	t.Helper()
	var e *hiqlite.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %v, want an *Error of %q", what, err, words)
		return &hiqlite.Error{}
	}
	if e.Code() != code {
		t.Errorf("%s: code %d, want %d (%v)", what, e.Code(), code, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", what, err, w)
		}
	}
	return e
}

func TestRefusedStatements(t *testing.T) {
	t.Parallel()
	s := newSturdy(t, 1)
	for text, want := range map[string]struct {
		code  int
		words []string
	}{
		"INSERT INTO kept(v) VALUES('a')":                   {2067, []string{"UNIQUE constraint failed: kept.v"}},
		"INSERT INTO kept(id) VALUES(1)":                    {1555, []string{"UNIQUE constraint failed: kept.id"}},
		"SELEC 1":                                           {1, []string{`near "SELEC": syntax error`}},
		"INSERT INTO kept(v) VALUES('x'); SELEC 1":          {1, []string{"syntax error"}},
		"INSERT INTO kept(v) VALUES('x'),('a')":             {2067, nil},
		"INSERT INTO kept(v) VALUES('x'); DELETE FROM nope": {1, []string{"no such table: nope"}},
		"SELECT * FROM nope":                                {1, []string{"no such table: nope"}},
		"ATTACH 'x.db' AS x":                                {23, []string{"ATTACH", "data folder"}},
		"INSERT INTO kept(v) VALUES('x'); ATTACH 'x' AS x":  {23, []string{"ATTACH"}},
		"DETACH main":                                       {23, []string{"DETACH"}},
		"CREATE VIRTUAL TABLE temp.x USING fts5(a)":         {23, []string{"TEMP", "ordinary virtual table"}},
		"CREATE TABLE temp.sqlite_hiqlite(a)":               {1, []string{"reserved"}},
		"CREATE TRIGGER temp.x AFTER INSERT ON sqlite_hiqlite BEGIN DELETE FROM kept; END": {1, []string{"system table"}},
		"SELECT load_extension('x')":                       {23, []string{"load_extension"}},
		"PRAGMA encoding='UTF-16'":                         {23, []string{"encoding"}},
		"PRAGMA schema_version=7":                          {23, []string{"schema_version"}},
		"DELETE FROM sqlite_hiqlite":                       {23, []string{"sqlite_hiqlite", "apply once"}},
		"ALTER TABLE sqlite_hiqlite RENAME TO x":           {1, []string{"may not be altered"}},
		"VACUUM INTO 'x.db'":                               {1, []string{"VACUUM INTO", "backup"}},
		"COMMIT":                                           {1, []string{"cannot commit - no transaction is active"}},
		"ROLLBACK TO x":                                    {1, []string{"no such savepoint: x"}},
		"INSERT INTO kept(v) VALUES('x'); COMMIT":          {1, []string{"cannot commit - no transaction is active"}},
		"BEGIN; INSERT INTO kept(v) VALUES('x'); SELEC 1":  {1, []string{"syntax error"}},
		"BEGIN; INSERT INTO kept(v) VALUES('x'),('a')":     {2067, nil},
		"SELECT 1\x00":                                     {1, []string{"NUL"}},
		"INSERT INTO kept(id) VALUES(9223372036854775807)": {13, []string{"largest rowid"}},
		"SELECT " + strings.Repeat("(", 5000) + "1":        {1, nil},
		"SELECT 1" + strings.Repeat("+1", 5000):            {1, []string{"too large"}},
		"SELECT 1" + strings.Repeat(",1", 5000):            {1, []string{"too many columns"}},
		"\xff\xfe":                                         {1, nil},
	} {
		name := text[:min(len(text), 60)]
		_, err := s.DB(0).ExecContext(testrun.Context(t), text)
		refusal(t, "exec "+name, err, want.code, want.words...)
		if rows, err := s.DB(0).QueryContext(testrun.Context(t), text); err == nil {
			t.Errorf("query %s: no error", name)
			rows.Close()
		}
		s.unharmed(name)
	}
	var n int
	if err := s.DB(0).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 3 {
		t.Errorf("%d rows, %v: a script that failed did something", n, err)
	}
}

func TestWrongArguments(t *testing.T) {
	t.Parallel()
	s := newSturdy(t, 1)
	for _, test := range []struct {
		text  string
		args  []any
		words string
	}{
		{"INSERT INTO kept(v) VALUES(?)", nil, "missing argument with index 1"},
		{"INSERT INTO kept(v) VALUES(?)", []any{"x", "y"}, "too many arguments"},
		{"SELECT ?, ?", []any{1}, "missing argument with index 2"},
		{"SELECT 1", []any{1}, "too many arguments"},
		{"SELECT ?2", []any{1, 2, 3}, "too many arguments"},
		{"SELECT :a, :b", []any{1}, `missing named argument "a"`},
		{"INSERT INTO kept(v) VALUES(?); DELETE FROM kept WHERE v=?", []any{"x", "y"}, "argument 2 is used by no statement"},
		{"INSERT INTO kept(v) VALUES(?1); DELETE FROM kept WHERE v=?2", []any{"x"}, "missing"},
		{"PRAGMA busy_timeout=5", []any{1}, "too many arguments"},
		{"", []any{1}, "too many arguments"},
	} {
		_, err := s.DB(0).ExecContext(testrun.Context(t), test.text, test.args...)
		refusal(t, test.text, err, 1, test.words)
		s.unharmed(test.text)
	}
	for _, arg := range []any{struct{}{}, []int{1}, make(chan int), complex(1, 1), uint64(1 << 63)} {
		if _, err := s.DB(0).ExecContext(testrun.Context(t), "INSERT INTO kept(v) VALUES(?)", arg); err == nil || !strings.Contains(err.Error(), "argument") {
			t.Errorf("%T: %v", arg, err)
		}
		_, err := hiqlite.Batch(testrun.Context(t), s.DB(0), hiqlite.Statement{SQL: "INSERT INTO kept(v) VALUES(?)", Args: []any{arg}})
		refusal(t, fmt.Sprintf("%T in a batch", arg), err, 1, "converting argument 1")
	}
	s.unharmed("unsupported types")
}

func TestBatchSaysWhichStatementFailed(t *testing.T) {
	t.Parallel()
	s := newSturdy(t, 1)
	good := hiqlite.Statement{SQL: "INSERT INTO kept(v) VALUES(?)", Args: []any{"x"}}
	for text, want := range map[string]struct {
		code  int
		words []string
	}{
		"INSERT INTO kept(v) VALUES('a')": {2067, []string{"UNIQUE"}},
		"INSERT INTO kept(v) VALUES('x')": {2067, []string{"UNIQUE"}},
		"SELEC":                           {1, []string{"syntax error"}},
		"INSERT INTO kept VALUES(?)":      {1, []string{"1 values were supplied"}},
		"INSERT INTO nope VALUES(1)":      {1, []string{"no such table"}},
		"UPDATE kept SET v=?":             {1, []string{"missing argument"}},
		"SELECT 1":                        {1, []string{"a batch consists of writes"}},
		"PRAGMA foreign_keys=OFF":         {1, []string{"a batch consists of writes"}},
		"VACUUM":                          {1, []string{"a batch consists of writes"}},
		"COMMIT":                          {1, []string{"a batch consists of writes"}},
		"":                                {1, []string{"a batch consists of writes"}},
		"ATTACH 'x' AS x":                 {23, []string{"ATTACH"}},
	} {
		_, err := hiqlite.Batch(testrun.Context(t), s.DB(0), good, hiqlite.Statement{SQL: "CREATE TABLE made(a)"}, hiqlite.Statement{SQL: "INSERT INTO made VALUES(1)"}, hiqlite.Statement{SQL: text}, good)
		e := refusal(t, text, err, want.code, want.words...)
		if e.Statement != 3 {
			t.Errorf("%q: the error is said to be statement %d's: %v", text, e.Statement, err)
		}
		s.unharmed(text)
		var n int
		if err := s.DB(0).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM kept, sqlite_schema WHERE sqlite_schema.name='made' OR kept.v='x'").Scan(&n); err != nil || n != 0 {
			t.Errorf("%q: the batch did something: %d, %v", text, n, err)
		}
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	s := newSturdy(t, 1)
	const limit = 8 << 20
	big := strings.Repeat("x", limit)
	_, err := s.DB(0).ExecContext(testrun.Context(t), "INSERT INTO kept(v) VALUES(?)", big)
	_, errText := s.DB(0).ExecContext(testrun.Context(t), "INSERT INTO kept(v) VALUES('"+big+"')")
	var stmts []hiqlite.Statement
	for i := range 100 {
		stmts = append(stmts, hiqlite.Statement{SQL: "INSERT INTO kept(v) VALUES(?)", Args: []any{fmt.Sprint(i, big[:limit/100])}})
	}
	_, errBatch := hiqlite.Batch(testrun.Context(t), s.DB(0), stmts...)
	for what, err := range map[string]error{"argument": err, "text": errText, "batch": errBatch} {
		if !errors.Is(err, hiqlite.ErrTooLarge) || !strings.Contains(err.Error(), fmt.Sprint(limit)) || !strings.Contains(err.Error(), "smaller") {
			t.Errorf("%s: %v", what, err)
		}
		s.unharmed(what)
	}
	if _, err := hiqlite.Batch(testrun.Context(t), s.DB(0), stmts[:90]...); err != nil {
		t.Errorf("below the limit: %v", err)
	}
	s.unharmed("a large batch")
}

func TestEndlessWrite(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	s := newSturdy(t, 3, func(cfg *hiqlite.Config) { cfg.MaxSteps = 1_000_000 })
	for _, text := range []string{"INSERT INTO kept(v) " + silent, "INSERT INTO kept(v) " + endless, "DELETE FROM kept WHERE id IN (" + endless + ")", "INSERT INTO kept(v) VALUES('x'); " + endless} {
		_, err := s.DB(1).ExecContext(testrun.Context(t), text)
		refusal(t, text, err, 9, "interrupted", "smaller parts")
		s.unharmed(text)
	}
	s.WaitEqual()
}

func TestContextsThatHaveEnded(t *testing.T) {
	t.Parallel()
	s := newSturdy(t, 1)
	over, cancel := context.WithCancel(testrun.Context(t))
	cancel()
	if _, err := s.DB(0).ExecContext(over, "DELETE FROM kept"); !errors.Is(err, context.Canceled) {
		t.Errorf("exec: %v", err)
	}
	if err := s.DB(0).QueryRowContext(over, "SELECT 1").Scan(new(int)); !errors.Is(err, context.Canceled) {
		t.Errorf("query: %v", err)
	}
	if _, err := hiqlite.Batch(over, s.DB(0), hiqlite.Statement{SQL: "DELETE FROM kept"}); !errors.Is(err, context.Canceled) {
		t.Errorf("batch: %v", err)
	}
	if err := s.DB(0).PingContext(over); !errors.Is(err, context.Canceled) {
		t.Errorf("ping: %v", err)
	}
	if node, err := hiqlite.Open(over, hiqlite.Config{DataDir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
		if err == nil {
			node.Close()
		}
	}
	conn, err := s.DB(0).Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(over, "DELETE FROM kept"); !errors.Is(err, context.Canceled) {
		t.Errorf("exec on a connection: %v", err)
	}
	mustExec(t, s.DB(0), "UPDATE kept SET v=v")
	s.unharmed("contexts that have ended")
}

func TestNoQuorum(t *testing.T) {
	t.Parallel()
	s := newSturdy(t, 3)
	s.WaitEqual() // the one that is left has all rows
	leader := s.Leader()
	s.Stop(leader)
	s.Stop((leader + 1) % 3)
	left := (leader + 2) % 3
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := s.DB(left).ExecContext(ctx, "INSERT INTO kept(v) VALUES('lost')"); !errors.Is(err, hiqlite.ErrNoLeader) {
		t.Errorf("a write without a majority: %v", err)
	}
	var n int
	if err := s.DB(left).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 3 {
		t.Errorf("a local read without a majority: %d, %v", n, err)
	}
	if _, err := s.DB(left).QueryContext(testrun.Context(t), "SELECT * FROM nope"); err == nil || !strings.Contains(err.Error(), "no such table") {
		t.Errorf("a wrong read without a majority: %v", err)
	}
	s.Start(leader)
	s.Start((leader + 1) % 3)
	for i := range 3 {
		s.WaitReady(i)
	}
	s.unharmed("a lost majority")
	s.WaitEqual()
}

func TestClosedNode(t *testing.T) {
	t.Parallel()
	s := newSturdy(t, 1)
	node, db := s.Node(0), s.DB(0)
	conn, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stmt, err := conn.PrepareContext(testrun.Context(t), "SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	s.Stop(0)
	_, err1 := conn.ExecContext(testrun.Context(t), "DELETE FROM kept")
	_, err2 := stmt.QueryContext(testrun.Context(t))
	_, err3 := node.Status(testrun.Context(t))
	c, err4 := node.Connector().Connect(testrun.Context(t))
	if err4 == nil {
		c.Close()
	}
	for i, err := range []error{err1, err2, err3, err4, node.Ready(testrun.Context(t))} {
		if !errors.Is(err, hiqlite.ErrClosed) {
			t.Errorf("%d: %v, want ErrClosed", i, err)
		}
	}
	if _, err := db.ExecContext(testrun.Context(t), "DELETE FROM kept"); err == nil {
		t.Error("a closed node deletes")
	}
	if err := node.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	s.Start(0)
	s.WaitReady(0)
	s.unharmed("closing")
}

func TestFoldersThatCannotBeUsed(t *testing.T) {
	s := newSturdy(t, 1)
	used := s.Config(0)
	file := filepath.Join(t.TempDir(), "file")
	foreign, newer := t.TempDir(), t.TempDir()
	for path, content := range map[string]string{file: "x", filepath.Join(foreign, "letter.txt"): "x", filepath.Join(newer, "hiqlite.json"): `{"format": 99, "node_id": 1, "nodes": [1]}`} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	other := newCluster(t, 1)
	closed := other.Config(0)
	other.Stop(0)
	apart := process.NewNodes(t, 1, 0)[0]
	for name, test := range map[string]struct {
		cfg   hiqlite.Config
		words []string
	}{
		"none":                      {hiqlite.Config{}, []string{"DataDir is empty"}},
		"in use":                    {used, []string{used.DataDir, "already open in this process"}},
		"in use by another process": {apart.Config, []string{apart.Config.DataDir, "another process"}},
		"a file":                    {hiqlite.Config{DataDir: file}, []string{"is a file", ".dump"}},
		"below a file":              {hiqlite.Config{DataDir: filepath.Join(file, "data")}, []string{"not a directory"}},
		"not ours":                  {hiqlite.Config{DataDir: foreign}, []string{"letter.txt", "name another one"}},
		"of a newer format":         {hiqlite.Config{DataDir: newer}, []string{"newer version", "upgrade"}},
		"of another node":           {hiqlite.Config{DataDir: closed.DataDir, NodeID: 5}, []string{"belongs to node 1"}},
		"of another cluster": {hiqlite.Config{DataDir: closed.DataDir, Nodes: []hiqlite.Member{{ID: 1, RaftAddr: "localhost:1"}, {ID: 2, RaftAddr: "localhost:2"}}},
			[]string{"a cluster of the nodes [1]", "lists [1 2]"}},
	} {
		node, err := hiqlite.Open(testrun.Context(t), test.cfg)
		if err == nil {
			node.Close()
			t.Errorf("%s: it opens", name)
			continue
		}
		for _, w := range test.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
	s.unharmed("opening what cannot be opened")
	apart.Ask("ready")
	other.Start(0)
	other.WaitReady(0)
}

func TestWrongMembers(t *testing.T) {
	t.Parallel()
	address := freePorts(t, 3)
	for name, test := range map[string]struct {
		cfg   hiqlite.Config
		words []string
	}{
		"an id twice":         {hiqlite.Config{Nodes: []hiqlite.Member{{ID: 1, RaftAddr: address[0]}, {ID: 1, RaftAddr: address[1]}}}, []string{"node id 1 is listed twice"}},
		"an address twice":    {hiqlite.Config{Nodes: []hiqlite.Member{{ID: 1, RaftAddr: address[0]}, {ID: 2, RaftAddr: address[0]}}}, []string{address[0] + " is listed twice"}},
		"not in the list":     {hiqlite.Config{NodeID: 3, Nodes: []hiqlite.Member{{ID: 1, RaftAddr: address[0]}, {ID: 2, RaftAddr: address[1]}}}, []string{"node 3 is not in the list"}},
		"no address":          {hiqlite.Config{Nodes: []hiqlite.Member{{ID: 1, RaftAddr: address[0]}, {ID: 2}}}, []string{"node 2", "not host:port"}},
		"several faults":      {hiqlite.Config{Timeout: -1, Tick: time.Microsecond, MaxReaders: -1, Nodes: []hiqlite.Member{{ID: 0}}}, []string{"Timeout", "Tick", "MaxReaders", "node id 0", "node 1 is not"}},
		"a wrong connection":  {hiqlite.Config{Conn: hiqlite.ConnConfig{TimeFormat: "x", TimeIntegerFormat: "y", BusyTimeout: -1, Consistency: 7, Pragmas: []string{"a;b"}}}, []string{`"x"`, `"y"`, "negative", "consistency 7", "more than one"}},
		"an id beyond 2^32-1": {hiqlite.Config{NodeID: 1 << 32}, []string{"2^32-1"}},
	} {
		test.cfg.DataDir = filepath.Join(t.TempDir(), "data")
		node, err := hiqlite.Open(testrun.Context(t), test.cfg)
		if err == nil {
			node.Close()
			t.Errorf("%s: it opens", name)
			continue
		}
		for _, w := range test.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
		if _, err := os.Stat(test.cfg.DataDir); err == nil {
			t.Errorf("%s: the folder was made", name)
		}
	}
}

func TestTakenPort(t *testing.T) {
	t.Parallel()
	ports := freePorts(t, 2)
	l, err := net.Listen("tcp", ports[0])
	if err != nil {
		t.Fatal(err)
	}
	members := []hiqlite.Member{{ID: 1, RaftAddr: ports[0]}, {ID: 2, RaftAddr: ports[1]}}
	cfg := hiqlite.Config{DataDir: filepath.Join(t.TempDir(), "data"), Nodes: members}
	node, err := hiqlite.Open(testrun.Context(t), cfg)
	if err == nil {
		node.Close()
	}
	if err == nil || !strings.Contains(err.Error(), members[0].RaftAddr) {
		t.Errorf("opening on a taken port: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if node, err = hiqlite.Open(testrun.Context(t), cfg); err != nil {
		t.Fatalf("when the port is free again: %v", err)
	}
	if err := node.Close(); err != nil {
		t.Error(err)
	}
}

// A first try that was wrong, and came to nothing, does not decide whose the
// folder is.
func TestAFailedFirstOpenLeavesTheFolderFree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ports := freePorts(t, 3)
	taken, err := net.Listen("tcp", ports[1])
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var members []hiqlite.Member
	for i, address := range ports {
		members = append(members, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
	}
	if _, err := hiqlite.Open(testrun.Context(t), hiqlite.Config{DataDir: dir, NodeID: 2, Nodes: members}); err == nil {
		t.Fatal("a taken port was not noticed")
	}
	node, err := hiqlite.Open(testrun.Context(t), hiqlite.Config{DataDir: dir, NodeID: 1, Nodes: members})
	if err != nil {
		t.Fatal(err)
	}
	node.Close()
}
