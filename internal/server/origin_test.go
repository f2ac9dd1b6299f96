package server_test

import (
	"errors"
	"testing"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A unary Execute with an origin is applied once and has the same answer each time, through
// whichever nodes and proxies it is sent.
func TestExecuteWithAnOrigin(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, n INT CHECK (n < 100))")
	_, proxy := serve(t, server.Config{Backend: c.Remote(0)})
	urls := []string{"http://" + c.Serve(0), "http://" + c.Serve(1), "http://" + c.Serve(2), "http://" + proxy}
	client, ctx := httpClient(t, true), testrun.Context(t)
	session, err := hiqlitev1connect.NewShardsClient(client, urls[0]).OpenSession(ctx, connect.NewRequest(&apiv1.OpenSessionRequest{Shard: "sql"}))
	if err != nil {
		t.Fatal(err)
	}
	execute := func(url string, sequence uint64, texts ...string) (*apiv1.ExecuteResponse, error) {
		r := &apiv1.ExecuteRequest{Origin: &apiv1.Origin{Session: session.Msg.Session, Sequence: sequence}}
		for _, text := range texts {
			r.Statements = append(r.Statements, &apiv1.Statement{Sql: text})
		}
		answer, err := hiqlitev1connect.NewDatabaseClient(client, url).Execute(ctx, connect.NewRequest(r))
		if err != nil {
			return nil, err
		}
		return answer.Msg, nil
	}
	for i, texts := range [][]string{
		{"INSERT INTO t(n) VALUES(1)"},
		{"INSERT INTO t(n) VALUES(2)", "INSERT INTO t(n) VALUES(3)"},
		{"INSERT INTO t(n) VALUES(4); INSERT INTO t(n) VALUES(5)"},
	} {
		for _, url := range urls {
			answer, err := execute(url, uint64(i+1), texts...)
			if err != nil || answer.Results[len(texts)-1].LastInsertId != int64(2*i+1) {
				t.Errorf("%s, %q: %v, %v", url, texts, answer, err)
			}
		}
	}
	for _, url := range urls {
		_, err := execute(url, 4, "INSERT INTO t(n) VALUES(6)", "INSERT INTO t(n) VALUES(100)")
		var failed *connect.Error
		if !errors.As(err, &failed) || len(failed.Details()) != 1 {
			t.Fatalf("%s: a broken constraint: %v", url, err)
		}
		detail, err := failed.Details()[0].Value()
		if e, ok := detail.(*apiv1.Error); !ok || !e.FailedOnReplicas || e.Sql.GetStatement() != 1 {
			t.Errorf("%s: a broken constraint: %v, %v", url, detail, err)
		}
	}
	for _, text := range []string{"INSERT INTO t(n) VALUES(7)", "INSERT INTO t(n) VALUES(7)"} { // without an origin
		_, err := hiqlitev1connect.NewDatabaseClient(client, urls[1]).Execute(ctx, connect.NewRequest(&apiv1.ExecuteRequest{Statements: []*apiv1.Statement{{Sql: text}}}))
		if err != nil {
			t.Error(err)
		}
	}
	// The node that has executed the last write has applied all.
	if got := value[string](t, c.DB(1), "SELECT group_concat(n, ' ') FROM (SELECT n FROM t ORDER BY id)"); got != "1 2 3 4 5 7 7" {
		t.Errorf("the rows are %s", got)
	}
}
