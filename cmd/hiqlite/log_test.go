package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hiqlite log reads the log of a stopped node, finds damage, and refuses what is not a
// log or is in use.
func TestLog(t *testing.T) {
	data := t.TempDir()
	must(t, "", "sql", data, "CREATE TABLE t(n); INSERT INTO t VALUES(1)")
	for _, folder := range []string{data, filepath.Join(data, "raft"), filepath.Join(data, "raft", "log")} {
		if out := must(t, "", "log", "verify", folder); !strings.Contains(out, "it was closed") || !strings.Contains(out, "last entry") {
			t.Error(out)
		}
	}
	if out := must(t, "", "log", "dump", data); !strings.Contains(out, "checkpoint") || !strings.Contains(out, "entries 1 to") || !strings.Contains(out, "closed") {
		t.Error(out)
	}
	if o := cli(t, "", "log", "verify", t.TempDir()); o.code != 1 || !strings.Contains(o.err, "name the data folder of a node") {
		t.Errorf("%+v", o)
	}
	segments, err := filepath.Glob(filepath.Join(data, "raft", "log", "*.log"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	b[600] ^= 1
	if err := os.WriteFile(segments[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if o := cli(t, "", "log", "verify", data); o.code != 1 || !strings.Contains(o.err, "at offset") || strings.Contains(o.out, "segments") {
		t.Errorf("%+v", o)
	}
}
