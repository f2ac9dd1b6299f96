package pubsub_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite/internal/testcluster"
	"github.com/hiqlite/hiqlite/pubsub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNotifyThenNext(t *testing.T) {
	testcluster.Each(t, func(t *testing.T, c *testcluster.Cluster) {
		ctx := testcluster.Patient(t)
		var subs []*pubsub.Subscription
		for _, n := range c.Nodes {
			s, err := pubsub.Listen(ctx, n, "news")
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			subs = append(subs, s)
		}
		for i, n := range c.Nodes {
			index, err := pubsub.Notify(ctx, n, "news", []byte{byte(i)})
			if err != nil {
				t.Fatal(err)
			}
			for j, s := range subs {
				m, err := s.Next(ctx)
				if err != nil || m.Index != index || m.Channel != "news" || string(m.Payload) != string([]byte{byte(i)}) {
					t.Errorf("node %d is told %+v, %v, want message %d", j+1, m, err, index)
				}
			}
		}
	})
}
