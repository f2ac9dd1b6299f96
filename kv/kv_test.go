package kv_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testcluster"
	"github.com/hiqlite/hiqlite/kv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bucket returns a bucket of a node.
func bucket[V any](t testing.TB, n *hiqlite.Node, name string, opts ...kv.Option) *kv.Bucket[V] {
	t.Helper()
	b, err := kv.New[V](n, name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPutThenGet(t *testing.T) {
	type user struct {
		Name string
		Age  int
	}
	testcluster.Each(t, func(t *testing.T, c *testcluster.Cluster) {
		ctx := testcluster.Patient(t)
		for i, n := range c.Nodes {
			b := bucket[user](t, n, "users")
			want := user{"Ada", 36 + i}
			if err := b.Put(ctx, "ada", want); err != nil {
				t.Fatal(err)
			}
			if got, ok, err := b.Get(ctx, "ada"); err != nil || !ok || got != want {
				t.Errorf("node %d reads %v, %v, %v of what it put", i+1, got, ok, err)
			}
			for j, other := range c.Nodes {
				got, ok, err := bucket[user](t, other, "users").Get(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), "ada")
				if err != nil || !ok || got != want {
					t.Errorf("node %d reads %v, %v, %v of what node %d put", j+1, got, ok, err, i+1)
				}
			}
		}
	})
}
