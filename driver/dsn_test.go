package driver

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
)

func TestDSN(t *testing.T) {
	utc, err := time.LoadLocation("UTC")
	if err != nil {
		t.Fatal(err)
	}
	node := func(change func(*hiqlite.Config)) *source {
		s := &source{node: hiqlite.Config{DataDir: "data", NodeID: 1, Timeout: hiqlite.DefaultTimeout, MaxSteps: hiqlite.DefaultMaxSteps}}
		change(&s.node)
		return s
	}
	conn := func(change func(*hiqlite.ConnConfig)) *source {
		s := node(func(*hiqlite.Config) {})
		change(&s.conn)
		return s
	}
	folder := func(dir string) *source { return node(func(c *hiqlite.Config) { c.DataDir = dir }) }
	pragmas := func(list ...string) *source { return conn(func(c *hiqlite.ConnConfig) { c.Pragmas = list }) }
	three := []hiqlite.Member{{ID: 1, RaftAddr: "a:8200", APIAddr: "a:8100"}, {ID: 2, RaftAddr: "[::1]:8200", APIAddr: "[::1]:8100"}, {ID: 3, RaftAddr: "c:1"}}
	for dsn, want := range map[string]*source{
		"data": folder("data"), "data?": folder("data"), "file:data": folder("data"), "file:a%20b%23c": folder("a b#c"),
		"a%20b": folder("a%20b"), "/var/lib/x": folder("/var/lib/x"), "file:/x/y": folder("/x/y"), "file:///x/y": folder("/x/y"),
		"file://localhost/x": folder("/x"), "./a:b": folder("./a:b"),

		"data?node_id=2&nodes=1=a:8200/8100,2=[::1]:8200/8100,3=c:1&secret_file=/x%20y": node(func(c *hiqlite.Config) {
			c.NodeID, c.Nodes, c.SecretFile = 2, three, "/x y"
		}),
		"data?node_id=2&nodes=1=a:8200/8100,2=[::1]:8200/8100,3=c:1&insecure=true": node(func(c *hiqlite.Config) {
			c.NodeID, c.Nodes, c.Insecure = 2, three, true
		}),
		"data?node_id=1&nodes=1=[::1]:1,2=localhost:2,3=127.9.9.9:3": node(func(c *hiqlite.Config) {
			c.Nodes = []hiqlite.Member{{ID: 1, RaftAddr: "[::1]:1"}, {ID: 2, RaftAddr: "localhost:2"}, {ID: 3, RaftAddr: "127.9.9.9:3"}}
		}),
		"data?tls_cert_file=c&tls_key_file=k&tls_ca_file=a": node(func(c *hiqlite.Config) {
			c.TLSCertFile, c.TLSKeyFile, c.TLSCAFile = "c", "k", "a"
		}),
		"data?nodes=1=a:8200/b:8100": node(func(c *hiqlite.Config) {
			c.Nodes = []hiqlite.Member{{ID: 1, RaftAddr: "a:8200", APIAddr: "b:8100"}}
		}),
		"data?node_id=9":         node(func(c *hiqlite.Config) { c.NodeID = 9 }),
		"data?timeout=3s":        node(func(c *hiqlite.Config) { c.Timeout = 3 * time.Second }),
		"data?listen=:8200":      node(func(c *hiqlite.Config) { c.ListenAddr = ":8200" }),
		"data?tick=20ms":         node(func(c *hiqlite.Config) { c.Tick = 20 * time.Millisecond }),
		"data?max_steps=1000000": node(func(c *hiqlite.Config) { c.MaxSteps = 1_000_000 }),
		"data?durability=always": folder("data"),

		"data?consistency=linearizable":                        conn(func(c *hiqlite.ConnConfig) { c.Consistency = hiqlite.Linearizable }),
		"data?consistency=local":                               folder("data"),
		"data?_busy_timeout=70":                                conn(func(c *hiqlite.ConnConfig) { c.BusyTimeout = 70 * time.Millisecond }),
		"data?_timeout=70&_busy_timeout=70":                    conn(func(c *hiqlite.ConnConfig) { c.BusyTimeout = 70 * time.Millisecond }),
		"data?_timeout=0":                                      pragmas("busy_timeout=0"),
		"data?_busy_timeout=-1":                                pragmas("busy_timeout=0"),
		"data?_fk=Off":                                         pragmas("foreign_keys=Off"),
		"data?_foreign_keys=":                                  folder("data"),
		"data?_query_only=1&_sync=2&_journal=wal&_vacuum=none": pragmas("auto_vacuum=none", "journal_mode=wal", "synchronous=2", "query_only=1"),
		"data?_pragma=temp_store(2)&_pragma=Busy_Timeout%3D3&_pragma=cache_size(5)&_fk=1": pragmas("Busy_Timeout=3", "cache_size(5)", "temp_store(2)", "foreign_keys=1"),
		"data?_time_format=sqlite&_time_integer_format=unix_nano": conn(func(c *hiqlite.ConnConfig) {
			c.TimeFormat, c.TimeIntegerFormat = "sqlite", "unix_nano"
		}),
		"data?_timezone=UTC": conn(func(c *hiqlite.ConnConfig) { c.Location = utc }),
		"data?_inttotime=1&_texttotime=true": conn(func(c *hiqlite.ConnConfig) {
			c.IntToTime, c.TextToTime = true, true
		}),
		"data?_txlock=Immediate&_error_rc=1&_defensive=0&_dqs=1&mode=rwc&cache=private&immutable=0&nolock=no&psow=1&vfs=": folder("data"),
	} {
		got, err := parse(dsn)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v\nwant %+v", dsn, got, err, want)
		}
	}
}

func TestDSNFaultsSayWhatToDo(t *testing.T) {
	for dsn, want := range map[string]string{
		"": "names no data folder", "?node_id=1": "names no data folder", "file:": "names no data folder", "file:?x=1": "names no data folder",
		":memory:": "temporary folder", "file::memory:": "temporary folder", "file::memory:?cache=shared": "temporary folder",
		"env:": "set HQL_DATA_DIR", "env:PREFIX": "nothing but keys can follow env:",
		"postgres://u@h/db": "postgres:// is not a DSN", "file://host/x": `host "host"`, "file:x#y": "%23", "file:%zz": "escape", "a\x00b": "NUL",

		"d?nod_id=1": "did you mean node_id?", "d?node=1": "did you mean nodes?", "d?NODE_ID=1": "did you mean node_id?", "d?_busytimeout=1": "did you mean _busy_timeout?",
		"d?secretfile=x": "did you mean secret_file?", "d?_journl=WAL": "did you mean _journal?",
		"d?_loc=auto": "_timezone", "d?_mutex=full": "leave it out", "d?_cache_size=-2000": "_pragma=cache_size(-2000)",
		"d?_case_sensitive_like=1": "_pragma=case_sensitive_like(1)", "d?_cslike=true": "_pragma=case_sensitive_like(true)",
		"d?_recursive_triggers=1": "_pragma=recursive_triggers(1)", "d?_rt=": "_pragma=recursive_triggers(...)", "d?_writable_schema=1": "_pragma=writable_schema(1)",
		"d?_locking=NORMAL": "_pragma=locking_mode(NORMAL)", "d?_defer_fk=1": "_pragma=defer_foreign_keys(1)", "d?_secure_delete=FAST": "_pragma=secure_delete(FAST)",
		"d?_ignore_check_constraints=1": "_pragma=ignore_check_constraints(1)", "d?_auth_user=x": "no users", "d?parseTime=true": "leave it out", "d?_timefmt=auto": "_time_format",
		"d?node_id=1&node_id=2": "twice", "d?_fk=1&_foreign_keys=0": "the same key", "d?_timeout=1&_busy_timeout=2": "the same key",
		"d?node_id=": "node_id=: the value is empty", "d?nodes=": "nodes=: the value is empty", "d?%zz=1": "escape", "d?a=1;b=2": "semicolon",

		"d?node_id=0": "from 1 to", "d?node_id=x": "from 1 to", "d?node_id=4294967296": "from 1 to",
		"d?nodes=1": "id=host:raftport", "d?nodes=1=a": "id=host:raftport", "d?nodes=x=a:1": "id=host:raftport", "d?nodes=1=::1:82": "brackets",
		"d?nodes=1=:8200": "id=host:raftport", "d?nodes=1=a:1,,2=b:1": "id=host:raftport",
		"d?nodes=0=a:1,1=b:1": "between 1 and", "d?nodes=1=a:0,2=b:1": "no port", "d?nodes=1=a:99999,2=b:1": "no port", "d?nodes=1=a:1/0": "no port",
		"d?nodes=1=a:1,1=b:1": "node id 1 is listed twice", "d?nodes=1=a:1,2=a:1": "a:1 is listed twice", "d?nodes=1=a:1/1": "a:1 is listed twice",
		"d?node_id=3&nodes=1=a:1,2=b:1": "node 3 is not in the list",
		"d?timeout=5":                   "not a duration", "d?timeout=-5s": "not a duration", "d?tick=1us": "milliseconds", "d?max_steps=0": "not a number of steps", "d?max_steps=1e9": "not a number of steps",
		"d?durability=interval:200ms": "later version", "d?durability=never": "later version", "d?secret_file=": "value is empty", "d?insecure=x": "use 1",
		"d?nodes=1=a:1,2=127.0.0.1:2": "secret_file", "d?nodes=1=127.0.0.1:1,2=127.0.0.1:2&listen=:1": "secret_file", "d?nodes=1=a:1,2=b:2&insecure=0": "insecure=true",
		"d?tls_cert_file=c&tls_key_file=k": "all three",
		"d?consistency=strong":             "local or linearizable",

		"d?_busy_timeout=1s": "milliseconds", "d?_fk=2": "one of", "d?_query_only=maybe": "one of", "d?_journal=wal2": "one of",
		"d?_sync=4": "one of", "d?_vacuum=3": "one of", "d?_txlock=shared": "one of", "d?_time_format=rfc3339": "time format",
		"d?_time_integer_format=unix_pico": "integer time format", "d?_timezone=Mars/Base": "unknown time zone",
		"d?_inttotime=yes": "use 1", "d?_texttotime=2": "use 1", "d?_error_rc=x": "use 1", "d?_defensive=x": "use 1", "d?_dqs=0": "double-quoted",
		"d?_pragma=foreign_keys(1);ATTACH 'x' AS y": "semicolon", "d?_pragma=foreign_keys(1)%3BATTACH": "more than one",
		"d?mode=ro": "_query_only", "d?mode=memory": "not supported", "d?mode=rw": "not supported", "d?cache=shared": "share the node",
		"d?immutable=1": "not supported", "d?nolock=1": "not supported", "d?vfs=x": "file system", "d?modeof=x": "permissions",
	} {
		_, err := parse(dsn)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dsn, err, want)
		}
	}
}

func TestDSNFaultsAreReportedAtOnce(t *testing.T) {
	_, err := parse("d?node=1&_fk=maybe&consistency=x&node_id=4&nodes=1=a:1,1=a:1&_time_format=x&_timeout=1&_timeout=2")
	for _, want := range []string{`"node" is unknown`, "_foreign_keys=maybe", "consistency=x", "node 4 is not", "id 1 is listed twice", "a:1 is listed twice", "secret_file", "time format", "_timeout twice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
	if strings.Count(err.Error(), "\n") != 8 {
		t.Errorf("not one line each:\n%v", err)
	}
}

func FuzzDSN(f *testing.F) {
	for _, seed := range []string{"", "data", "file:///x?node_id=1&nodes=1=[::1]:1/2,2=b:1", "d?_pragma=a(1)&_timeout=1&_busy_timeout=2", "d?%zz&;=", "env:", "hiqlite://a", "d?nodes=1=a:1/,=,&tick=1h"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, dsn string) {
		s, err := parse(dsn)
		if (s == nil) == (err == nil) {
			t.Fatalf("%q: %v, %v", dsn, s, err)
		}
		if err != nil {
			return
		}
		if err := s.node.Validate(); err != nil {
			t.Fatalf("%q was taken: %v", dsn, err)
		}
		if s.node.Nodes == nil {
			return
		}
		if again, err := parseNodes(formatNodes(s.node.Nodes)); err != nil || !reflect.DeepEqual(again, s.node.Nodes) {
			t.Fatalf("%q: %v became %v, %v", dsn, s.node.Nodes, again, err)
		}
	})
}
