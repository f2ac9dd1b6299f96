package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is the command itself when a test has started this binary as such.
func TestMain(m *testing.M) {
	if os.Getenv("HIQLITE_TEST_COMMAND") != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// outcome is what a command did.
type outcome struct {
	code     int
	out, err string
}

// cli runs a command line in this process.
func cli(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	code := execute(t.Context(), args, strings.NewReader(stdin), &out, &errs)
	return outcome{code, out.String(), errs.String()}
}

// must runs a command line that has to succeed, and returns its output.
func must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	o := cli(t, stdin, args...)
	if o.code != 0 {
		t.Fatalf("%q: exit code %d: %s", args, o.code, o.err)
	}
	return o.out
}

func TestModes(t *testing.T) {
	data := t.TempDir()
	must(t, "", "sql", data, `CREATE TABLE t(n INTEGER, x REAL, s TEXT, b BLOB, d DATE, at DATETIME);
		INSERT INTO t VALUES(1, 2, 'a,"b"', x'00ff', '2024-02-29', '2024-02-29 10:00:00'), (NULL, 1e300, 'é'||char(10), '', '2024-02-29', '2024-02-29 10:00:00.5+02:00')`)
	const query = "SELECT * FROM t"
	for mode, want := range map[string]string{
		"--table": `n     x         s      b        d           at
----  --------  -----  -------  ----------  ------------------------------
   1       2.0  a,"b"  x'00ff'  2024-02-29  2024-02-29 10:00:00
NULL  1.0e+300  é\n             2024-02-29  2024-02-29 10:00:00.5+02:00
`,
		"--csv": `n,x,s,b,d,at
1,2.0,"a,""b""",x'00ff',2024-02-29,2024-02-29 10:00:00
,1e+300,"é
",,2024-02-29,2024-02-29 10:00:00.5+02:00
`,
		"--json": `[{"n":1,"x":2.0,"s":"a,\"b\"","b":"AP8=","d":"2024-02-29","at":"2024-02-29 10:00:00"},
{"n":null,"x":1e+300,"s":"é\n","b":"","d":"2024-02-29","at":"2024-02-29 10:00:00.5+02:00"}]
`,
		"--mode=line": "n = 1\nx = 2.0\n",
		"--mode=list": "1|2.0|a,\"b\"|x'00ff'|2024-02-29|2024-02-29 10:00:00\n",
	} {
		got := must(t, "", "sql", data, query, mode)
		if mode == "--table" {
			want, got = strings.Join(strings.Fields(want), " "), strings.Join(strings.Fields(got), " ")
			want = strings.ReplaceAll(strings.ReplaceAll(want, "1.0e+300", "1e+300"), "-", "")
			got = strings.ReplaceAll(got, "-", "")
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s prints\n%s\nwant\n%s", mode, got, want)
		}
	}
	if got := must(t, "", "sql", data, "SELECT 1 AS a WHERE 0", "--json"); got != "[]\n" {
		t.Errorf("no rows in JSON: %q", got)
	}
	if got := must(t, "", "sql", data, "SELECT 1; SELECT 2", "--mode=list"); got != "1\n2\n" {
		t.Errorf("two result sets: %q", got)
	}
	if got := must(t, "", "sql", data, "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c LIMIT 2500) SELECT i FROM c"); strings.Count(got, "\n") != 2502 || strings.Count(got, "\n----\n") != 1 {
		t.Errorf("a table of 2500 rows has %d lines", strings.Count(got, "\n"))
	}
}

func TestExitCodes(t *testing.T) {
	data := t.TempDir()
	absent := filepath.Join(t.TempDir(), "absent")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"sql", data, "SELECT 1"}, 0, ""},
		{[]string{"sql", data, "SELEC"}, 1, `near "SELEC": syntax error`},
		{[]string{"sql", data, "SELECT 1; SELECT x"}, 1, "no such column: x"},
		{[]string{"sql", data, "SELECT 1", "--json", "--csv"}, 2, "give one of --mode"},
		{[]string{"sql", data, "--mode", "xml"}, 2, "write one of table, csv, json"},
		{[]string{"sql", data + "?_fkk=1", "SELECT 1"}, 2, "did you mean _fk?"},
		{[]string{"sql", "postgres://x", "SELECT 1"}, 2, "postgres://"},
		{[]string{"sql", data, ".tabels"}, 1, "did you mean .tables?"},
		{[]string{"sql", data, ".import nothing t"}, 1, "no such file"},
		{[]string{"sql", "a", "b", "c"}, 2, "accepts at most 2"},
		{[]string{"sql", "--dsn", data, "SELECT 1"}, 0, ""},
		{[]string{"sql", "--dsn", data, ".tables"}, 0, ""},
		{[]string{"sql", "--dsn", data, data, "SELECT 1"}, 2, "give the database once"},
		{[]string{"sql", "SELECT 1"}, 2, "no folder for the data"}, // of the settings
		{[]string{"sql", ".tables"}, 2, "no folder for the data"},
		{[]string{"status", absent}, 2, "there is no data folder " + absent},
		{[]string{"frobnicate"}, 2, "unknown command"},
		{[]string{"status", "--nothing"}, 2, "unknown flag"},
		{[]string{"kv"}, 2, "give one of get, put"},
		{[]string{"kv", "get", "b"}, 2, "accepts 2 arg"},
		{[]string{"kv", "get", "b", "k", "--dsn", data}, 3, `no key "k"`},
		{[]string{"kv", "get", "", "k", "--dsn", data}, 2, "the bucket's name"},
		{[]string{"kv", "delete", "b", "k", "--dsn", data}, 3, `no key "k"`},
		{[]string{"lock", "k", "true"}, 2, "write a key, --, and a command"},
		{[]string{"lock", "--dsn", data, "k", "--", "sh", "-c", "exit 42"}, 42, ""},
		{[]string{"lock", "--dsn", data, "k", "--", "sh", "-c", "kill -9 $$"}, 137, ""},
		{[]string{"lock", "--dsn", data, "k", "--", "no-such-command"}, 127, "no-such-command"},
		{[]string{"lock", "--dsn", data, "k", "--", "/etc/passwd"}, 126, "permission denied"},
		{[]string{"lock", "--dsn", "x://y", "k", "--", "true"}, 125, "x://"},
		{[]string{"lock", "--dsn", data, "--ttl", "1ms", "k", "--", "true"}, 125, "time to live"},
	} {
		o := cli(t, "", c.args...)
		if o.code != c.code || !strings.Contains(o.err, c.want) || c.code == 0 && o.err != "" {
			t.Errorf("%q: exit code %d with %q, want %d with %q", c.args, o.code, o.err, c.code, c.want)
		}
		if strings.Contains(o.err, "\x1b[") {
			t.Errorf("%q: colours in a file: %q", c.args, o.err)
		}
	}
	if _, err := os.Stat(absent); err == nil {
		t.Error("status made a data folder")
	}
	if topic := must(t, "", "help", "exit-codes"); !strings.Contains(topic, exitCodesHelp) {
		t.Errorf("help exit-codes prints %q", topic)
	}
}

// docs/cli.md has the exit codes and all commands.
func TestTheManual(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), exitCodesHelp) {
		t.Errorf("docs/cli.md does not have the text of hiqlite help exit-codes")
	}
	root := rootCommand()
	for _, c := range root.Commands() {
		if !strings.Contains(string(b), "hiqlite "+c.Name()) {
			t.Errorf("docs/cli.md does not have hiqlite %s", c.Name())
		}
	}
	for _, c := range shellCommands {
		if !strings.Contains(string(b), "."+c.name) {
			t.Errorf("docs/cli.md does not have the command .%s of the shell", c.name)
		}
	}
}

func TestScript(t *testing.T) {
	data := t.TempDir()
	got := must(t, "\ufeffCREATE TABLE t(a);\n-- a comment\nINSERT INTO t VALUES('x;\ny');\n.mode list\nBEGIN;\nINSERT INTO t VALUES(2);\nCOMMIT;\nSELECT count(*) FROM t;\n.tables\n.schema t\n.quit\nSELECT 5;", "sql", data)
	if got != "2\nt\nCREATE TABLE t(a);\n" {
		t.Errorf("the script prints %q", got)
	}
	if got := must(t, "-- a comment\n\n.mode list\n/* and\nanother */ SELECT 7", "sql", data); got != "7\n" {
		t.Errorf("a command after a comment: %q", got)
	}
	// Each line of a long statement has what could be its end.
	if got := must(t, "SELECT length('"+strings.Repeat(";\n", 1<<20)+"');\nSELECT 8;", "sql", data, "--mode=list"); got != "2097152\n8\n" {
		t.Errorf("a long statement: %q", got)
	}
	o := cli(t, "SELECT 1;\n\nSELECT x;\nINSERT INTO t VALUES(3);", "sql", data, "--mode=list")
	if o.code != 1 || !strings.Contains(o.err, "line 3: ") || o.out != "1\n" {
		t.Errorf("an error in line 3: exit code %d, %q, %q", o.code, o.err, o.out)
	}
	if got := must(t, "SELECT count(*) FROM t", "sql", data, "--mode=list"); got != "2\n" {
		t.Errorf("after an error the script went on: %s rows", got)
	}
	file := filepath.Join(t.TempDir(), "a b.sql")
	if err := os.WriteFile(file, fmt.Appendf(nil, ".read '%s'\n", file), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := cli(t, "", "sql", data, ".read '"+file+"'"); o.code != 1 || !strings.Contains(o.err, "files read each other") {
		t.Errorf("a file that reads itself: %+v", o)
	}
	if got := must(t, "", "sql", data, ".help"); !strings.Contains(got, ".import [--skip N] FILE TABLE") {
		t.Errorf(".help prints %q", got)
	}
}

func TestImport(t *testing.T) {
	data, folder := t.TempDir(), t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole := file("whole file.csv", "\ufeffid,the name,note\r\n1,\"a \"\"b\"\"\",\"two\nlines\"\r\n2,\"x,y\",\r\n")
	o := cli(t, "", "sql", data, ".import '"+whole+"' new")
	if o.code != 0 || !strings.Contains(o.err, "2 rows were imported into new") {
		t.Fatalf("%+v", o)
	}
	if got := must(t, "", "sql", data, "SELECT \"the name\", note, typeof(id) FROM new", "--mode=list"); got != "a \"b\"|two\nlines|text\nx,y||text\n" {
		t.Errorf("the rows are %q", got)
	}
	must(t, "", "sql", data, "CREATE TABLE old(id INTEGER PRIMARY KEY, twice INTEGER AS (2*id), name TEXT NOT NULL)")
	must(t, "", "sql", data, ".import --skip 1 "+file("old.csv", "id,name\n1,a\n2,b\n")+" old")
	if got := must(t, "", "sql", data, "SELECT *, typeof(id) FROM old", "--mode=list"); got != "1|2|a|integer\n2|4|b|integer\n" {
		t.Errorf("the rows are %q", got)
	}
	for name, c := range map[string]struct{ content, want string }{
		"too few":     {"3,c\n4\n5,e\n", "line 2 has 1 values, and old has 2 columns; 1 rows before it"},
		"duplicate":   {"6,c\n6,d\n", "line 2: constraint failed: UNIQUE"},
		"wrong quote": {"7,c\n8,\"d\ne", "extraneous or missing"},
		"no number":   {"x,c\n", "datatype mismatch"},
	} {
		o := cli(t, "", "sql", data, ".import '"+file(name+".csv", c.content)+"' old")
		if o.code != 1 || !strings.Contains(o.err, c.want) {
			t.Errorf("%s: exit code %d with %q, want %q", name, o.code, o.err, c.want)
		}
	}
	if got := must(t, "", "sql", data, "SELECT group_concat(id) FROM old", "--mode=list"); got != "1,2,3,7\n" {
		t.Errorf("rows before an error are kept: %q", got)
	}
	for args, want := range map[string]string{".import": "write .import, a file", ".import " + folder + " old": "is a folder", ".import --skip x a b": "write a number"} {
		if o := cli(t, "", "sql", data, args); o.code != 1 || !strings.Contains(o.err, want) {
			t.Errorf("%s: %+v, want %q", args, o, want)
		}
	}
	if o := cli(t, "BEGIN;\nINSERT INTO old VALUES(9, 'x');\n.import '"+whole+"' old\n", "sql", data); o.code != 1 || !strings.Contains(o.err, "cannot run inside a transaction") {
		t.Errorf("in a transaction: %+v", o)
	}
	if got := must(t, "", "sql", data, ".import "+file("empty.csv", "")+" nothing"); got != "" {
		t.Errorf("an empty file: %q", got)
	}
}

// What .dump prints makes the same database.
func TestDump(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	must(t, `CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, s TEXT, b BLOB, r REAL, twice AS (id*2));
		INSERT INTO t(s, b, r) VALUES('it''s
two lines', x'00ff', 0.1), (NULL, '', 9e999);
		DELETE FROM t WHERE id=2; INSERT INTO t(s) VALUES('2024-01-01 10:00:00+02:00');
		CREATE TABLE "odd ""name"(a PRIMARY KEY, "select" DATETIME) WITHOUT ROWID; INSERT INTO "odd ""name" VALUES(1, '2024-01-01T10:00:00Z');
		CREATE INDEX i ON t(s); CREATE VIEW v AS SELECT s FROM t;
		CREATE TRIGGER g AFTER INSERT ON t BEGIN UPDATE t SET s=CASE WHEN 1 THEN 'x' END; END;
		CREATE VIRTUAL TABLE f USING fts5(text); INSERT INTO f VALUES('hello world');`, "sql", first)
	dump := must(t, "", "sql", first, ".dump")
	must(t, dump, "sql", second)
	if again := must(t, "", "sql", second, ".dump"); again != dump {
		t.Errorf("the dump of the copy differs:\n%s\nfirst:\n%s", again, dump)
	}
	if got := must(t, "", "sql", second, "SELECT text FROM f WHERE f MATCH 'world'; SELECT seq FROM sqlite_sequence", "--mode=list"); got != "hello world\n3\n" {
		t.Errorf("the copy has %q", got)
	}
	if one := must(t, "", "sql", first, `.dump 'odd "name'`); strings.Contains(one, "hello") || !strings.Contains(one, "2024-01-01T10:00:00Z") {
		t.Errorf("the dump of one table is %s", one)
	}
	if o := cli(t, "", "sql", first, ".dump nothing"); o.code != 1 || !strings.Contains(o.err, "there is no table nothing") || !strings.Contains(o.out, "ROLLBACK") {
		t.Errorf("%+v", o)
	}
}

func TestStatus(t *testing.T) {
	data := t.TempDir()
	must(t, "", "sql", data, "CREATE TABLE t(a)")
	var s statusReport
	if err := json.Unmarshal([]byte(must(t, "", "status", data, "--json", "--hash")), &s); err != nil {
		t.Fatal(err)
	}
	if s.NodeID != 1 || s.Leader != 1 || len(s.Members) != 1 || len(s.Shards) != 4 || s.DatabaseBytes == 0 || len(s.Hash) != 64 || s.HashIndex == 0 {
		t.Errorf("the status is %+v", s)
	}
	t.Setenv("HIQLITE_DSN", data)
	if text := must(t, "", "status"); !strings.Contains(text, "leader    node 1") {
		t.Errorf("the status is\n%s", text)
	}
}

// Two of three nodes are missing: there is no leader.
func TestStatusWithoutLeader(t *testing.T) {
	dsn := t.TempDir() + "?nodes=1=127.0.0.1:47101,2=127.0.0.1:47102,3=127.0.0.1:47103"
	o := cli(t, "", "status", dsn, "--wait", "300ms")
	if o.code != exitUnavailable || !strings.Contains(o.out, "leader    none") || !strings.Contains(o.err, "leader") {
		t.Errorf("%+v", o)
	}
}

func TestKV(t *testing.T) {
	t.Setenv("HIQLITE_DSN", t.TempDir())
	must(t, "", "kv", "put", "b", "k1", "v1")
	must(t, "from\x00input", "kv", "put", "b", "k2", "-")
	must(t, "", "kv", "put", "b", "short", "x", "--ttl", "1h")
	if got := must(t, "", "kv", "get", "b", "k2"); got != "from\x00input" {
		t.Errorf("k2 is %q", got)
	}
	if got := must(t, "", "kv", "keys", "b", "k"); got != "k1\nk2\n" {
		t.Errorf("the keys are %q", got)
	}
	must(t, "", "kv", "delete", "b", "k1")
	if got := must(t, "", "kv", "keys", "b"); got != "k2\nshort\n" {
		t.Errorf("the keys are %q", got)
	}
	if o := cli(t, "", "kv", "put", "b", "k", "v", "--ttl", "-1s"); o.code != 1 {
		t.Errorf("a negative TTL: %+v", o)
	}
}

func TestNotifyAndListen(t *testing.T) {
	t.Setenv("HIQLITE_DSN", t.TempDir())
	if got := must(t, "", "notify", "orders", "one"); got != "1\n" {
		t.Errorf("the index is %q", got)
	}
	must(t, "\xff", "notify", "orders", "-")
	if got := must(t, "", "listen", "ord*", "--after", "0", "--count", "2", "--json"); !strings.Contains(got, `{"index":1,"channel":"orders",`) || !strings.Contains(got, `"payload":"one"`) || !strings.Contains(got, `"payload_base64":"/w=="`) {
		t.Errorf("the messages are %s", got)
	}
}

// Ctrl-C is the normal end of what runs until it is interrupted.
func TestInterruptedWatch(t *testing.T) {
	data := t.TempDir()
	for _, args := range [][]string{{"kv", "watch", "b"}, {"listen", "c"}} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan int)
		go func() { done <- execute(ctx, append(args, "--dsn", data), nil, io.Discard, t.Output()) }()
		cancel()
		if code := <-done; code != 0 && code != exitInterrupted { // 130 if it had not begun to watch
			t.Errorf("%q ended with %d", args, code)
		}
	}
}

func TestGenerateConfig(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	must(t, "", "generate-config", "--secrets", "secrets.toml")
	for _, name := range []string{"hiqlite.toml", "secrets.toml"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	before, err := os.ReadFile("hiqlite.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"other.toml", "--secrets", "secrets.toml"}, {"hiqlite.toml", "--secrets", "new.toml"}} {
		o := cli(t, "", append([]string{"generate-config"}, args...)...)
		if o.code != 1 || !strings.Contains(o.err, "is not overwritten") {
			t.Errorf("%q: %+v", args, o)
		}
	}
	if after, err := os.ReadFile("hiqlite.toml"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed; %v", err)
	}
	for _, name := range []string{"other.toml", "new.toml"} {
		if _, err := os.Stat(name); err == nil {
			t.Errorf("%s was left behind", name)
		}
	}
	must(t, "CREATE TABLE t(a);", "sql", "env:") // the file works as it is
	if printed := must(t, "", "generate-config", "-"); !strings.Contains(printed, "secret_raft = ") {
		t.Errorf("- prints %q", printed)
	}
}

func TestCompletionAndVersion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := must(t, "", "completion", shell); !strings.Contains(got, "hiqlite") {
			t.Errorf("no completion for %s", shell)
		}
	}
	if got := must(t, "", "version"); !strings.Contains(got, "hiqlite ") || !strings.Contains(got, "modernc.org/sqlite") {
		t.Errorf("the version is %q", got)
	}
}
