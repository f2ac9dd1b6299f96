package hiqlite_test

import (
	"encoding/json"
	"log/slog"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A Config can be passed to another process as JSON. Its logger, functions and
// migrations stay behind.
func TestConfigAsJSON(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(hiqlite.Config{DataDir: t.TempDir(), Logger: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	var cfg hiqlite.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		t.Fatal(err)
	}
	node, err := hiqlite.Open(testrun.Context(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if err := node.Ready(testrun.Context(t)); err != nil {
		t.Error(err)
	}
}
