package server_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The calls in docs/api.md work as they stand there.
func TestDocumentedCalls(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("there is no curl")
	}
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	const secret = "a secret of the tests"
	c := hiqlitetest.NewCluster(t, 1)
	_, address := serve(t, server.Config{Backend: c.Node(0), Secret: secret})
	calls := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(doc), -1)
	want := []string{`"lastInsertId":"1"`, `"lastInsertId":"2"`, `"text":"hello"`, `"version":`, `"value":"InYi"`, `"nodeId":"1"`}
	if len(calls) != len(want) {
		t.Fatalf("there are %d calls, want %d", len(calls), len(want))
	}
	for i, call := range calls {
		cmd := exec.CommandContext(testrun.Context(t), "sh", "-c", call[1])
		cmd.Env = append(os.Environ(), "API=http://"+address, "SECRET="+secret)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(strings.ReplaceAll(string(out), " ", ""), want[i]) {
			t.Errorf("%s: %s, %v, want %s", call[1], out, err, want[i])
		}
	}
}
