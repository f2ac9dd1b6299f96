//lint:file-ignore SA1019 the fake shard answers through CompletedC, which is the channel that AppliedC returns

package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Operations that wait while an entry is in flight are combined in the next one.
func TestCombinesWaitingOperations(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	first := f.do("a")
	f.openSession(7)
	p := f.next()
	if p.Session != 7 || p.Sequence != 1 || !slices.Equal(p.Ops, []string{"a"}) {
		t.Fatalf("got %s", p.cmd)
	}
	rest := f.enqueue("b", "c", "d")
	f.wantNone()
	f.apply(p)
	first.wantResult(t)
	p = f.next()
	if p.Session != 7 || p.Sequence != 2 || !slices.Equal(p.Ops, []string{"b", "c", "d"}) {
		t.Fatalf("got %s", p.cmd)
	}
	f.apply(p)
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Completed)
	for _, c := range rest {
		c.wantResult(t)
	}
}

func TestBoundsOfAnEntry(t *testing.T) {
	f := newFixture(t, CombinerConfig{MaxEntryBytes: 10, MaxOperations: 3})
	if _, err := f.c.Do(t.Context(), "12345678901"); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	all := []*testCall{f.do("a")}
	f.openSession(7)
	p := f.next()
	all = append(all, f.enqueue("1234", "123456", "7", "8", "9", "10", "!x", "11", "!y")...)
	f.apply(p)
	for _, want := range [][]string{{"1234", "123456"}, {"7", "8", "9"}, {"10"}, {"!x"}, {"11"}, {"!y"}} {
		p := f.next()
		if !slices.Equal(p.Ops, want) {
			t.Fatalf("got %v, want %v", p.Ops, want)
		}
		f.apply(p)
	}
	for _, c := range all {
		c.wantResult(t)
	}
}

// If an entry cannot be encoded, only the operation that is the reason fails.
func TestEncodeErrorFailsOneOperation(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	first := f.do("a")
	f.openSession(7)
	p := f.next()
	calls := f.enqueue("b", "bad", "c")
	f.apply(p)
	first.wantResult(t)
	for _, want := range []string{"b", "c"} {
		p := f.next()
		if !slices.Equal(p.Ops, []string{want}) {
			t.Fatalf("got %v, want %v", p.Ops, want)
		}
		f.apply(p)
	}
	calls[0].wantResult(t)
	calls[1].wantError(t, errBad)
	calls[2].wantResult(t)
}

func TestDroppedIsProposedAgain(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	call := f.do("a")
	f.openSession(7)
	p := f.next()
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Dropped)
	again := f.next()
	if again.cmd != p.cmd {
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.apply(again)
	f.apply(again) // a duplicate, which is ignored
	call.wantResult(t)
}

func TestRefusedIsProposedAgain(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	f.refusals = []error{dragonboat.ErrSystemBusy, dragonboat.ErrShardNotReady}
	call := f.do("a")
	f.openSession(7)
	f.apply(f.next())
	call.wantResult(t)
}

func TestLeaderChangeProposesTheSameBytes(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	call := f.do("a")
	f.openSession(7)
	p := f.next()
	f.setLeader(0, 2)
	f.setLeader(2, 2)
	again := f.next()
	if again.cmd != p.cmd {
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.apply(again)
	call.wantResult(t)
	next := f.do("b")
	p = f.next()
	f.c.Applied(7, 1, []string{"late"}) // of the entry before, which is ignored
	f.apply(p)
	next.wantResult(t)
}

func TestTimerAndTimeoutProposeTheSameBytes(t *testing.T) {
	f := newFixture(t, CombinerConfig{Resubmit: time.Millisecond})
	call := f.do("a")
	f.openSession(7)
	p := f.next()
	for p.Nonce != 0 { // the timer may have proposed several entries that open a session
		p = f.next()
	}
	if again := f.next(); again.cmd != p.cmd {
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.apply(p)
	call.wantResult(t)

	f = newFixture(t, CombinerConfig{})
	call = f.do("a")
	f.openSession(7)
	p = f.next()
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Timeout)
	if again := f.next(); again.cmd != p.cmd {
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.apply(p)
	call.wantResult(t)
}

// A hold keeps the combiner from proposing new entries until the leader changes, or
// until its time is over.
func TestHold(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	f.c.Hold(time.Hour)
	call := f.do("a")
	f.openSession(7)
	f.waitUntil(func() bool { return f.c.holdUntil.Load() == 0 }) // the combiner waits for its end
	f.wantNone()
	f.setLeader(2, 2)
	f.apply(f.next())
	call.wantResult(t)

	f.c.Hold(time.Millisecond) // the leader does not change
	call = f.do("b")
	f.apply(f.next())
	call.wantResult(t)
}

func TestNoLeader(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	f.setLeader(0, 1)
	call := f.do("a")
	call.cancel()
	call.wantError(t, context.Canceled, ErrNoLeader)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := f.c.Do(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrNoLeader) || errors.Is(err, ErrOutcomeUnknown) {
		t.Fatal(err)
	}
	stays := f.do("c")
	f.setLeader(3, 2)
	f.openSession(7)
	p := f.next()
	if !slices.Equal(p.Ops, []string{"c"}) {
		t.Fatalf("got %s", p.cmd)
	}
	f.apply(p)
	stays.wantResult(t)
}

// While there is no leader, calls whose contexts end do not stay in the queue.
func TestAbandonedCallsLeaveTheQueue(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	f.setLeader(0, 1)
	for i := range 1000 {
		call := f.do(fmt.Sprint(i))
		f.waitUntil(func() bool { return len(f.c.queue) > f.c.abandonedInQueue })
		call.cancel()
		call.wantError(t, context.Canceled, ErrNoLeader)
		f.waitUntil(func() bool { return len(f.c.queue) <= 1 })
	}
}

func TestContextEndsInFlight(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	first := f.do("first")
	f.openSession(7)
	p := f.next()
	calls := f.enqueue("a", "b")
	f.apply(p)
	first.wantResult(t)
	p = f.next()
	calls[0].cancel()
	calls[0].wantError(t, ErrOutcomeUnknown, context.Canceled)
	f.setLeader(0, 2)
	f.setLeader(2, 2)
	if again := f.next(); again.cmd != p.cmd { // for the other caller
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.apply(p)
	calls[1].wantResult(t)
}

// An entry whose callers have all left is abandoned, and its sequence is not used again.
func TestAllCallersLeave(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	call := f.do("a")
	f.openSession(7)
	p := f.next()
	f.setLeader(0, 2)
	call.cancel()
	call.wantError(t, ErrOutcomeUnknown, ErrNoLeader, context.Canceled)
	f.setLeader(1, 3)
	next := f.do("b")
	q := f.next()
	for q.cmd == p.cmd { // there was a leader again before the combiner saw that the caller had left
		q = f.next()
	}
	if q.Session != 7 || q.Sequence != 2 || !slices.Equal(q.Ops, []string{"b"}) {
		t.Fatalf("got %s", q.cmd)
	}
	f.apply(p) // late
	f.apply(q)
	next.wantResult(t)
}

// While an entry that Raft has dropped waits to be proposed again, a caller that
// leaves is told "not proposed". Its operation must not be in any later entry.
func TestLeaveDroppedEntry(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	first := f.do("first")
	f.openSession(7)
	p := f.next()
	calls := f.enqueue("a", "b")
	queued := f.queued()
	f.apply(p)
	first.wantResult(t)
	p = f.next()
	f.setLeader(0, 2)
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Dropped)
	f.waitUntil(func() bool { return queued[0].entry != nil && !queued[0].entry.maybeLogged })
	calls[0].cancel()
	calls[0].wantError(t, ErrNoLeader, context.Canceled)
	f.wantNone()
	f.setLeader(2, 2)
	q := f.next()
	if !slices.Equal(q.Ops, []string{"b"}) {
		t.Fatalf("got %s", q.cmd)
	}
	f.apply(q)
	calls[1].wantResult(t)
}

// If the only copy of an entry is refused, its operations are proposed with a new
// session.
func TestSessionUnknown(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	call := f.do("a")
	f.openSession(7)
	p := f.next()
	f.c.SessionUnknown(7, 99) // of no entry of this combiner
	f.c.SessionUnknown(p.Session, p.Sequence)
	f.openSession(8)
	p = f.next()
	if p.Session != 8 || p.Sequence != 1 || !slices.Equal(p.Ops, []string{"a"}) {
		t.Fatalf("got %s", p.cmd)
	}
	f.apply(p)
	call.wantResult(t)
}

// If one of two copies is refused, the other one may have been applied.
func TestSessionUnknownAfterTwoCopies(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	call := f.do("a")
	f.openSession(7)
	p := f.next()
	f.setLeader(2, 2)
	f.next()
	f.c.SessionUnknown(p.Session, p.Sequence)
	call.wantError(t, ErrOutcomeUnknown)
	next := f.do("b")
	f.openSession(8)
	f.apply(f.next())
	next.wantResult(t)
}

func TestSessionIsProposedUntilOpened(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	call := f.do("a")
	p := f.next()
	f.setLeader(2, 2)
	q := f.next()
	if q.Nonce == 0 || q.Nonce == p.Nonce {
		t.Fatalf("got %s after %s", q.cmd, p.cmd)
	}
	f.c.SessionOpened(p.Nonce-1, 5) // of another node
	f.c.SessionOpened(p.Nonce, 7)   // late, but the combiner can use it
	f.c.SessionOpened(q.Nonce, 8)
	r := f.next()
	if r.Session != 7 && r.Session != 8 {
		t.Fatalf("got %s", r.cmd)
	}
	f.apply(r)
	call.wantResult(t)
}

// An eager combiner opens a session before the first operation, which then uses it.
func TestEager(t *testing.T) {
	f := newFixture(t, CombinerConfig{Eager: true})
	f.openSession(7)
	call := f.do("a")
	p := f.next()
	if p.Session != 7 {
		t.Fatalf("got %s", p.cmd)
	}
	f.apply(p)
	call.wantResult(t)
}

func TestResultsNotKept(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	call := f.do("a")
	f.openSession(7)
	f.c.Applied(7, 1, nil) // ignored if the entry is not in flight yet
	select {
	case p := <-f.proposals:
		f.c.Applied(p.Session, p.Sequence, nil)
	case <-call.done:
	}
	call.wantError(t, ErrOutcomeUnknown)
}

func TestCloseCombiner(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	proposed := f.do("a")
	f.openSession(7)
	f.next()
	queued := f.enqueue("b")[0]
	f.c.Close()
	f.c.Close()
	proposed.wantError(t, ErrOutcomeUnknown, ErrClosed)
	queued.wantError(t, ErrClosed)
	if _, err := f.c.Do(t.Context(), "c"); err != ErrClosed {
		t.Fatal(err)
	}

	f = newFixture(t, CombinerConfig{}) // closed while it opens a session
	call := f.do("a")
	f.next()
	f.c.Close()
	call.wantError(t, ErrClosed)
}

func TestShardEnds(t *testing.T) {
	f := newFixture(t, CombinerConfig{})
	proposed := f.do("a")
	f.openSession(7)
	f.next()
	close(f.done)
	proposed.wantError(t, ErrOutcomeUnknown, ErrClosed)
	<-f.c.done
	if _, err := f.c.Do(t.Context(), "c"); err != ErrClosed {
		t.Fatal(err)
	}

	f = newFixture(t, CombinerConfig{}) // the shard refuses the proposal: it is in no log
	f.setLeader(0, 1)
	call := f.do("a")
	f.mu.Lock()
	f.refusals = []error{ErrClosed}
	f.mu.Unlock()
	f.setLeader(1, 2)
	call.wantError(t, ErrClosed)
}

// Many callers, some of which leave, for the race detector.
func TestManyCallers(t *testing.T) {
	c := newLoop(t)
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if (g+i)%5 == 0 {
					go cancel()
				}
				op := g*1000 + i
				r, err := c.Do(ctx, op)
				cancel()
				if err == nil && r != op {
					t.Errorf("got the result of %d for %d", r, op)
				} else if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkDo(b *testing.B) {
	c := newLoop(b)
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Do(context.Background(), 1); err != nil {
				b.Error(err)
			}
		}
	})
}
