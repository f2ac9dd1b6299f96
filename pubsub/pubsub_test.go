package pubsub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/pubsub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eachSize runs a test on a cluster of one node and on one of three.
func eachSize(t *testing.T, test func(t *testing.T, c *hiqlitetest.Cluster)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) { test(t, hiqlitetest.NewCluster(t, size)) })
	}
}

func TestNotifyThenNext(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		ctx := testrun.Context(t)
		var subs []*pubsub.Subscription
		for _, n := range c.Nodes() {
			s, err := pubsub.Listen(ctx, n, "news")
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			subs = append(subs, s)
		}
		for i, n := range c.Nodes() {
			index, err := pubsub.Notify(ctx, n, "news", []byte{byte(i)})
			if err != nil {
				t.Fatal(err)
			}
			for j, s := range subs {
				m, err := s.Next(ctx)
				if err != nil || m.Index != index || m.Channel != "news" || string(m.Payload) != string([]byte{byte(i)}) {
					t.Errorf("node %d received %+v, %v, want message %d", j+1, m, err, index)
				}
			}
		}
	})
}

func listen(t testing.TB, n *hiqlite.Node, channel string, opts ...pubsub.Option) *pubsub.Subscription {
	t.Helper()
	s, err := pubsub.Listen(testrun.Context(t), n, channel, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func notify(t testing.TB, n *hiqlite.Node, channel, payload string) uint64 {
	t.Helper()
	index, err := pubsub.Notify(testrun.Context(t), n, channel, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func next(t testing.TB, s *pubsub.Subscription) pubsub.Message {
	t.Helper()
	m, err := s.Next(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// All subscribers on all nodes receive the same messages in the same order, each
// once, while all nodes send at the same time.
func TestOneOrder(t *testing.T) {
	const senders, each = 5, 60
	c := hiqlitetest.NewCluster(t, 3)
	var subs []*pubsub.Subscription
	for _, n := range c.Nodes() {
		subs = append(subs, listen(t, n, "*"), listen(t, n, "c*"))
	}
	var wg sync.WaitGroup
	for i, n := range c.Nodes() {
		for g := range senders {
			wg.Go(func() {
				last := uint64(0)
				for k := range each {
					index := notify(t, n, fmt.Sprint("c", g), fmt.Sprint(i, "-", g, "-", k))
					if index <= last {
						t.Errorf("message %d after %d", index, last)
					}
					last = index
				}
			})
		}
	}
	var first []string
	for i, s := range subs {
		var got []string
		seen := map[string]bool{}
		for range senders * each * 3 {
			m := next(t, s)
			line := fmt.Sprint(m.Index, m.Channel, string(m.Payload))
			if seen[string(m.Payload)] {
				t.Fatalf("subscriber %d has received %q twice", i, m.Payload)
			}
			seen[string(m.Payload)] = true
			got = append(got, line)
		}
		if first == nil {
			first = got
		}
		if !slices.Equal(got, first) {
			t.Errorf("subscriber %d received the messages in another order", i)
		}
	}
	wg.Wait()
}

// A subscription receives the messages of the channels that it selects.
func TestChannels(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	n := c.Node(0)
	exact, some, all := listen(t, n, "a"), listen(t, n, "a.*"), listen(t, n, "*")
	began := time.Now().Truncate(time.Millisecond)
	for _, channel := range []string{"a", "a.b", "ab", "b", "a.", "a"} {
		notify(t, n, channel, "to "+channel)
	}
	for what, s := range map[*pubsub.Subscription][]string{exact: {"a", "a"}, some: {"a.b", "a."}, all: {"a", "a.b", "ab", "b", "a.", "a"}} {
		for _, want := range s {
			m := next(t, what)
			if m.Channel != want || string(m.Payload) != "to "+want {
				t.Errorf("got %s %q, want %s", m.Channel, m.Payload, want)
			}
			if m.Time.Before(began) || time.Since(m.Time) < 0 {
				t.Errorf("the message has the time %v", m.Time)
			}
		}
	}
}

// After a restart, old messages are received only by subscriptions with After.
func TestRestart(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		first := notify(t, c.Node(0), "c", "first")
		second := notify(t, c.Node(0), "c", "second")
		for i := range c.Nodes() {
			c.Stop(i)
		}
		for i := range c.Nodes() {
			c.Start(i)
		}
		var fresh, resumed []*pubsub.Subscription
		for i, n := range c.Nodes() {
			c.WaitReady(i)
			fresh = append(fresh, listen(t, n, "c"))
			resumed = append(resumed, listen(t, n, "c", pubsub.After(first)))
			if start := fresh[i].Start(); start != second {
				t.Errorf("node %d starts after message %d, the last one was %d", i+1, start, second)
			}
		}
		third := notify(t, c.Node(0), "c", "third")
		for i := range c.Nodes() {
			if m := next(t, fresh[i]); m.Index != third {
				t.Errorf("node %d received message %d, %q", i+1, m.Index, m.Payload)
			}
			if m := next(t, resumed[i]); m.Index != second {
				t.Errorf("node %d goes on with message %d, %q", i+1, m.Index, m.Payload)
			}
			if m := next(t, resumed[i]); m.Index != third {
				t.Errorf("node %d goes on with message %d, %q", i+1, m.Index, m.Payload)
			}
		}
		fromTheFirst := listen(t, c.Node(0), "c", pubsub.After(0))
		for _, want := range []uint64{first, second, third} {
			if m := next(t, fromTheFirst); m.Index != want {
				t.Errorf("After(0) returns message %d, want %d", m.Index, want)
			}
		}
	})
}

// Subscribers receive each message once while leaders change.
func TestLeadersChange(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	s := listen(t, c.Node(0), "c")
	var want []string
	for round := range 4 {
		for k := range 20 {
			text := fmt.Sprint(round, "-", k)
			notify(t, c.Node(0), "c", text)
			want = append(want, text)
		}
		which := 1 + round%2
		c.Stop(which)
		text := fmt.Sprint(round, " without ", which)
		notify(t, c.Node(0), "c", text)
		want = append(want, text)
		c.Start(which)
		c.WaitReady(which)
	}
	for _, w := range want {
		if m := next(t, s); string(m.Payload) != w {
			t.Fatalf("received %q, want %q", m.Payload, w)
		}
	}
}

func TestBadInput(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	ctx, n := testrun.Context(t), c.Node(0)
	for _, channel := range []string{"", strings.Repeat("c", pubsub.MaxChannel+1), "a*b", "**"} {
		if _, err := pubsub.Notify(ctx, n, channel, nil); !errors.Is(err, pubsub.ErrChannel) {
			t.Errorf("Notify to %q: %v", channel, err)
		}
		if _, err := pubsub.Listen(ctx, n, channel); !errors.Is(err, pubsub.ErrChannel) {
			t.Errorf("Listen to %q: %v", channel, err)
		}
	}
	if _, err := pubsub.Notify(ctx, n, "c*", nil); !errors.Is(err, pubsub.ErrChannel) {
		t.Errorf("Notify to a pattern: %v", err)
	}
	s := listen(t, n, "c")
	_, err := pubsub.Notify(ctx, n, "c", make([]byte, pubsub.MaxPayload+1))
	if !errors.Is(err, hiqlite.ErrTooLarge) || !strings.Contains(err.Error(), "1048577") || !strings.Contains(err.Error(), `"c"`) {
		t.Errorf("a large payload: %v", err)
	}
	if index, err := pubsub.Notify(ctx, n, "c", make([]byte, pubsub.MaxPayload)); err != nil {
		t.Errorf("the largest payload: %v", err)
	} else if m := next(t, s); m.Index != index || len(m.Payload) != pubsub.MaxPayload {
		t.Errorf("the largest payload is received as %d bytes", len(m.Payload))
	}
	ended, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { _, err := s.Next(ended); done <- err }()
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("Next with a context that has ended: %v", err)
	}
	if _, err := pubsub.Notify(ended, n, "c", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Notify with a context that has ended: %v", err)
	}
	index := notify(t, n, "c", "still here")
	if m := next(t, s); m.Index != index {
		t.Errorf("after that, Next returned message %d, want %d", m.Index, index)
	}
	go func() { _, err := s.Next(ctx); done <- err }()
	c.Stop(0)
	if err := <-done; !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Next on a closed node: %v", err)
	}
	if _, err := pubsub.Notify(ctx, n, "c", nil); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Notify on a closed node: %v", err)
	}
	if _, err := pubsub.Listen(ctx, n, "c"); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Listen on a closed node: %v", err)
	}
}

// Close ends a Next that waits. Listen refuses an index of another cluster.
func TestClosingASubscription(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s := listen(t, c.Node(0), "c")
	done := make(chan error, 1)
	go func() { _, err := s.Next(testrun.Context(t)); done <- err }()
	s.Close()
	if err := <-done; !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Next: %v", err)
	}
	s.Close()
	last := notify(t, c.Node(0), "c", "x")
	_, err := pubsub.Listen(testrun.Context(t), c.Node(0), "c", pubsub.After(last+1))
	if !errors.Is(err, pubsub.ErrAhead) || !strings.Contains(err.Error(), fmt.Sprint("the last message is ", last)) {
		t.Errorf("After with an index that was never used: %v", err)
	}
}
