package lock_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite/internal/testcluster"
	"github.com/hiqlite/hiqlite/lock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLockAndUnlock(t *testing.T) {
	testcluster.Each(t, func(t *testing.T, c *testcluster.Cluster) {
		ctx := testcluster.Patient(t)
		token := uint64(0)
		for i, n := range c.Nodes {
			l := lock.New(n)
			held, err := l.Lock(ctx, "job")
			if err != nil {
				t.Fatal(err)
			}
			if held.Token() <= token {
				t.Errorf("token %d after %d", held.Token(), token)
			}
			token = held.Token()
			for _, other := range c.Nodes {
				if _, err := lock.New(other).TryLock(ctx, "job"); !errors.Is(err, lock.ErrHeld) {
					t.Errorf("TryLock of a held lock: %v", err)
				}
			}
			if err := held.Unlock(ctx); err != nil {
				t.Errorf("node %d unlocks: %v", i+1, err)
			}
			if err := held.Unlock(ctx); !errors.Is(err, lock.ErrNotHeld) {
				t.Errorf("node %d unlocks twice: %v", i+1, err)
			}
		}
	})
}
