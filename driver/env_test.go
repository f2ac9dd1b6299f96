package driver_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEnvironment(t *testing.T) {
	t.Chdir(t.TempDir())
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile("hiqlite.toml", []byte("data_dir = \"other\"\nmax_steps = 300000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HQL_DATA_DIR", dir)
	db := open(t, "env:?_fk=off")
	mustExec(t, db, "CREATE TABLE t(a); INSERT INTO t VALUES(5)")
	if queryValue[int](t, db, "PRAGMA foreign_keys") != 0 {
		t.Error("the key of the connection has no effect")
	}
	second := open(t, dir+"?max_steps=300000000") // the same node
	if got := queryValue[int](t, second, "SELECT a FROM t"); got != 5 {
		t.Errorf("the node of the folder in HQL_DATA_DIR reads %d, want 5", got)
	}
	if _, err := os.Stat("other"); err == nil {
		t.Error("the folder that hiqlite.toml names was created, although the environment names another one")
	}
}

func TestEnvironmentRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	for dsn, want := range map[string]string{
		"env:":                  "no folder for the data: set HQL_DATA_DIR",
		"env:data":              "nothing but keys can follow env:",
		"env:?_fkk=1":           "no folder for the data",
		"env:?node_id=1&_fkk=1": "no folder for the data",
	} {
		if _, err := sql.Open("hiqlite", dsn); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dsn, err, want)
		}
	}
	t.Setenv("HQL_DATA_DIR", "data")
	_, err := sql.Open("hiqlite", "env:?node_id=1&_fkk=1")
	for _, want := range []string{"write node_id to hiqlite.toml, or set HQL_NODE_ID", "did you mean _fk?"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not contain %q", err, want)
		}
	}
	t.Setenv("HQL_TICK", "5")
	t.Setenv("HQL_NODEID", "1")
	_, err = sql.Open("hiqlite", "env:")
	for _, want := range []string{"HQL_TICK = 5: the unit is missing", "HQL_NODEID", "did you mean HQL_NODE_ID?"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not contain %q", err, want)
		}
	}
}

func TestSecretsDoNotBelongInADSN(t *testing.T) {
	for _, dsn := range []string{"data?secret=hidden-value-of-a-secret", "hiqlite://127.0.0.1:1?secret_api=hidden-value-of-a-secret"} {
		_, err := sql.Open("hiqlite", dsn)
		if err == nil || !strings.Contains(err.Error(), "name a file with the secret as secret_file") || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}
