package faults

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// The processes of nodes are killed while a remote client writes through them. No
// statement and no commit of the client gets an error but that a transaction has to be
// run again, and each acknowledged row is there once, and no other.
func TestKilledNodesOfARemoteClient(t *testing.T) {
	t.Parallel()
	addresses, err := loopback.Addresses(3)
	if err != nil {
		t.Fatal(err)
	}
	nodes := process.NewNodes(t, 3, 0, func(cfg *hiqlite.Config) {
		for i := range cfg.Nodes {
			cfg.Nodes[i].APIAddr = addresses[i]
		}
	})
	nodes[0].Ask("table")
	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remote.Close() })
	db, ctx := remote.DB(), testrun.Context(t)

	var acknowledged sync.Map // writer and number -> true
	var count atomic.Int64
	var quit atomic.Bool
	var writers sync.WaitGroup
	start := func(name string, write func(ctx context.Context, writer string, n int) error) {
		writers.Go(func() {
			for n := 0; !quit.Load(); n++ {
				if err := write(ctx, name, n); err != nil {
					t.Errorf("%s, write %d: %v", name, n, err)
					return
				}
				acknowledged.Store(fmt.Sprint(name, " ", n), true)
				count.Add(1)
			}
		})
	}
	const insert = "INSERT INTO w(writer, n, r) VALUES(?, ?, random())"
	for i := range 6 {
		start(fmt.Sprintf("statements %d", i), func(ctx context.Context, writer string, n int) error {
			_, err := db.ExecContext(ctx, insert, writer, n)
			return err
		})
	}
	for i := range 2 {
		start(fmt.Sprintf("transactions %d", i), func(ctx context.Context, writer string, n int) error {
			return hiqlite.RunTx(ctx, db, nil, func(tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, insert, writer, n)
				return err
			})
		})
	}
	for i := range testrun.Rounds(6, 20) {
		victim := nodes[i%len(nodes)]
		if i%2 == 0 {
			victim = process.Leader(t, nodes)
		}
		victim.Kill()
		before := count.Load()
		testrun.WaitFor(t, "the client's writes to go on", func() bool { return count.Load() > before+50 || t.Failed() })
		victim.Start()
		victim.Ask("ready")
	}
	quit.Store(true)
	writers.Wait()

	rows, err := db.QueryContext(ctx, "SELECT writer || ' ' || n, count(*) FROM w GROUP BY writer, n")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	found := map[string]bool{}
	for rows.Next() {
		var write string
		var times int
		if err := rows.Scan(&write, &times); err != nil {
			t.Fatal(err)
		}
		found[write] = true
		if _, ok := acknowledged.Load(write); times != 1 || !ok {
			t.Errorf("%s was applied %d times, acknowledged %v", write, times, ok)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	acknowledged.Range(func(write, _ any) bool {
		if !found[write.(string)] {
			t.Errorf("%s was acknowledged and is lost", write)
		}
		return true
	})
	t.Logf("%d writes were acknowledged", count.Load())
}
