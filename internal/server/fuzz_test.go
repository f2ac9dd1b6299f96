package server_test

import (
	"bytes"
	"context"
	"database/sql/driver"
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// FuzzSession sends arbitrary messages of sessions. The server must not fail, and must
// serve the next client.
func FuzzSession(f *testing.F) {
	c := hiqlitetest.NewCluster(f, 1)
	s, address := serve(f, server.Config{Backend: c.Node(0), Limits: server.Limits{MaxTime: time.Second}})
	client := httpClient(f, true)
	add := func(requests ...*apiv1.SessionRequest) {
		data, err := proto.Marshal(&apiv1.SessionRequests{Requests: requests})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	add(opening)
	add(opening, &apiv1.SessionRequest{Id: 2, Request: &apiv1.SessionRequest_Query{Query: &apiv1.Statement{Sql: "SELECT ?", Args: []*apiv1.Argument{{Value: &apiv1.Value{Kind: &apiv1.Value_Real{Real: 1}}}}}}})
	add(opening, &apiv1.SessionRequest{Id: 2, TimeoutUs: -1, Origin: &apiv1.Origin{Session: 1}, Request: &apiv1.SessionRequest_Exec{Exec: &apiv1.Statement{Sql: "CREATE TEMP TABLE t(a)"}}},
		&apiv1.SessionRequest{Id: 3, Request: &apiv1.SessionRequest_Begin{Begin: &apiv1.Begin{ReadOnly: true}}},
		&apiv1.SessionRequest{Id: 4, Request: &apiv1.SessionRequest_Cancel{Cancel: &apiv1.Cancel{Request: 3}}},
		&apiv1.SessionRequest{Id: 5, Request: &apiv1.SessionRequest_Rollback{Rollback: &apiv1.Rollback{}}},
		&apiv1.SessionRequest{Id: 6, Request: &apiv1.SessionRequest_CloseSession{CloseSession: &apiv1.CloseSession{}}})
	add(opening, &apiv1.SessionRequest{Id: 2, Request: &apiv1.SessionRequest_Batch{Batch: &apiv1.Batch{Statements: []*apiv1.Statement{nil, {RawSql: []byte{0xff}}}}}})
	f.Fuzz(func(t *testing.T, data []byte) {
		var m apiv1.SessionRequests
		if proto.Unmarshal(data, &m) != nil {
			t.Skip()
		}
		for _, r := range m.Requests {
			r.TimeoutUs = min(max(r.TimeoutUs, -1), 50_000) // no endless statements
			if r.TimeoutUs == 0 {
				r.TimeoutUs = 50_000
			}
		}
		ctx, cancel := context.WithTimeout(testrun.Context(t), 10*time.Second)
		defer cancel()
		x := newRawSession(ctx, client, address)
		_ = x.Send(&m)
		_ = x.CloseRequest()
		for {
			if _, err := x.Receive(); err != nil {
				break
			}
		}
		testrun.WaitFor(t, "the session to end", func() bool { return s.Counters().Sessions == 0 })
	})
}

// FuzzCells decodes arbitrary cells, and encodes them again.
func FuzzCells(f *testing.F) {
	f.Add(protocol.AppendCell(protocol.AppendCell(nil, int64(-5)), "text"))
	f.Add(protocol.AppendCell(protocol.AppendCell(nil, 0.5), []byte{}))
	f.Add([]byte{3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		for len(data) > 0 {
			v, rest, err := protocol.NextCell(data)
			if err != nil {
				return
			}
			if len(rest) >= len(data) || len(v.Data) > len(data) {
				t.Fatalf("a cell of %d bytes leaves %d of %d", len(v.Data), len(rest), len(data))
			}
			var value driver.Value
			switch v.Kind {
			case wire.Integer:
				value = int64(v.Num)
			case wire.Real:
				value = math.Float64frombits(v.Num)
			case wire.Text:
				value = string(v.Data)
			case wire.Blob:
				value = v.Data
			}
			again, more, err := protocol.NextCell(protocol.AppendCell(nil, value))
			if err != nil || len(more) > 0 || again.Kind != v.Kind || again.Num != v.Num || !bytes.Equal(again.Data, v.Data) {
				t.Fatalf("%v is encoded as %v, with %d bytes more, %v", v, again, len(more), err)
			}
			data = rest
		}
	})
}
