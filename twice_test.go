package hiqlite_test

import (
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// A folder that is open already is named as the user has named it, whoever has it
// open, and whatever else is in the way, such as the port.
func TestFolderOpenedTwice(t *testing.T) {
	check := func(t *testing.T, cfg hiqlite.Config, by string) {
		t.Helper()
		node, err := hiqlite.Open(testrun.Context(t), cfg)
		if err == nil {
			node.Close()
			t.Fatal("it opens")
		}
		if text := err.Error(); !containsAll(text, []string{"the data folder " + cfg.DataDir + " is already open in " + by, "close it first"}) || strings.Contains(text, "/raft") {
			t.Errorf("it says %v", err)
		}
	}
	t.Run("this process", func(t *testing.T) {
		eachSize(t, func(t *testing.T, c *testCluster) {
			check(t, c.Config(0), "this process")
			mustExec(t, c.DB(0), "CREATE TABLE t(x)") // the other one is none the worse
		})
	})
	t.Run("another process", func(t *testing.T) {
		all := process.NewNodes(t, 1, 1)
		check(t, all[0].Config, "another process")
		all[0].Ask("table")
	})
}
