// Package faults has the tests of what nodes keep, and lose, when their processes are
// killed or paused, when they are cut off, when their disks fail, and when their
// folders are replaced by older copies.
package faults

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

func TestMain(m *testing.M) {
	process.ServeNodes()
	testrun.MoreParallel()
	goleak.VerifyTestMain(m)
}
