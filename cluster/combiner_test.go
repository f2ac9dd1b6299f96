//lint:file-ignore SA1019 the fake shard answers through CompletedC, which is the channel that AppliedC returns

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/lni/dragonboat/v4"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// entry is the format of an entry in these tests.
type entry struct {
	Nonce    uint64   `json:",omitempty"` // not 0: opens a session
	Session  uint64   `json:",omitempty"`
	Sequence uint64   `json:",omitempty"`
	Ops      []string `json:",omitempty"`
}

func decode(t testing.TB, cmd []byte) entry {
	t.Helper()
	var e entry
	if err := json.Unmarshal(cmd, &e); err != nil {
		t.Fatalf("%q: %v", cmd, err)
	}
	return e
}

var errBad = errors.New("bad operation")

// textCodec is a Codec of strings. An operation "!..." is exclusive, and "bad"
// cannot be encoded. It reuses its buffer, as a Codec may.
type textCodec struct{ buf []byte }

func (c *textCodec) marshal(e entry) []byte {
	b, _ := json.Marshal(e)
	c.buf = append(c.buf[:0], b...)
	return c.buf
}
func (c *textCodec) OpenSession(nonce uint64) []byte { return c.marshal(entry{Nonce: nonce}) }
func (c *textCodec) Encode(session, sequence uint64, ops []string) ([]byte, error) {
	if slices.Contains(ops, "bad") {
		return nil, errBad
	}
	return c.marshal(entry{Session: session, Sequence: sequence, Ops: ops}), nil
}
func (c *textCodec) Size(op string) int       { return len(op) }
func (c *textCodec) Exclusive(op string) bool { return strings.HasPrefix(op, "!") }

// proposal is a proposal that fakeRaft accepted.
type proposal struct {
	cmd string
	entry
	rs *dragonboat.RequestState
}

// fakeRaft records proposals and applies nothing.
type fakeRaft struct {
	t         testing.TB
	proposals chan proposal
	done      chan struct{}

	mu       sync.Mutex
	leader   Leader
	changed  chan struct{}
	refusals []error // the results of the next calls of Propose
}

func (f *fakeRaft) Propose(cmd []byte, _ time.Duration) (*dragonboat.RequestState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.refusals) > 0 {
		err := f.refusals[0]
		f.refusals = f.refusals[1:]
		return nil, err
	}
	rs := &dragonboat.RequestState{CompletedC: make(chan dragonboat.RequestResult, 1)}
	f.proposals <- proposal{string(cmd), decode(f.t, cmd), rs}
	return rs, nil
}
func (f *fakeRaft) Leader() Leader {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leader
}
func (f *fakeRaft) LeaderChanged() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}
func (f *fakeRaft) Done() <-chan struct{} { return f.done }

func (f *fakeRaft) setLeader(node, term uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = Leader{node, term}
	close(f.changed)
	f.changed = make(chan struct{})
}

// next returns the next proposal.
func (f *fakeRaft) next() proposal {
	f.t.Helper()
	select {
	case p := <-f.proposals:
		return p
	case <-time.After(20 * time.Second):
		f.t.Fatal("nothing was proposed")
		panic("unreachable")
	}
}

// wantNone fails if there was another proposal.
func (f *fakeRaft) wantNone() {
	f.t.Helper()
	select {
	case p := <-f.proposals:
		f.t.Fatalf("unexpected proposal %s", p.cmd)
	default:
	}
}

// result makes a RequestResult for which is returns true. The field that decides is
// not exported.
func result(t testing.TB, is func(*dragonboat.RequestResult) bool) dragonboat.RequestResult {
	t.Helper()
	for code := range 8 {
		var r dragonboat.RequestResult
		*(*int)(unsafe.Pointer(&r)) = code
		if is(&r) {
			return r
		}
	}
	t.Fatal("dragonboat.RequestResult has changed")
	panic("unreachable")
}

const testEntryBytes = 1 << 20

// fixture is a combiner on a fakeRaft.
type fixture struct {
	*fakeRaft
	c *Combiner[string, string]
}

const never = time.Hour // for Resubmit

// newFixture starts a combiner that has a leader.
func newFixture(t *testing.T, cfg CombinerConfig) *fixture {
	t.Helper()
	f := &fakeRaft{
		t: t, proposals: make(chan proposal, 1000), done: make(chan struct{}),
		leader: Leader{1, 1}, changed: make(chan struct{}),
	}
	if cfg.MaxEntryBytes == 0 {
		cfg.MaxEntryBytes = testEntryBytes
	}
	if cfg.Resubmit == 0 {
		cfg.Resubmit = never
	}
	c := newCombiner[string, string](f, &textCodec{}, cfg)
	t.Cleanup(func() { c.Close() })
	return &fixture{f, c}
}

// openSession answers the entry that opens a session.
func (f *fixture) openSession(session uint64) {
	f.t.Helper()
	p := f.next()
	if p.Nonce == 0 {
		f.t.Fatalf("want a new session, got %s", p.cmd)
	}
	f.c.SessionOpened(p.Nonce, session)
}

// apply answers an entry: the result of an operation is "did <operation>".
func (f *fixture) apply(p proposal) {
	var results []string
	for _, op := range p.Ops {
		results = append(results, "did "+op)
	}
	f.c.Applied(p.Session, p.Sequence, results)
}

// doCall is a call of Do in a goroutine.
type doCall struct {
	op     string
	cancel context.CancelFunc
	done   chan struct{}
	result string
	err    error
}

func (f *fixture) do(op string) *doCall {
	ctx, cancel := context.WithCancel(context.Background())
	call := &doCall{op: op, cancel: cancel, done: make(chan struct{})}
	f.t.Cleanup(cancel)
	go func() {
		defer close(call.done)
		call.result, call.err = f.c.Do(ctx, op)
	}()
	return call
}

// enqueue calls Do for each operation in order, and waits until all are in the
// queue. There must be an entry in flight.
func (f *fixture) enqueue(ops ...string) (calls []*doCall) {
	for i, op := range ops {
		calls = append(calls, f.do(op))
		f.waitUntil(func() bool { return len(f.c.queue) == i+1 })
	}
	return calls
}

// waitUntil waits until cond, which it calls with the combiner's mu held, is true.
func (f *fixture) waitUntil(cond func() bool) {
	for {
		f.c.mu.Lock()
		ok := cond()
		f.c.mu.Unlock()
		if ok {
			return
		}
		runtime.Gosched()
	}
}

// wantResult waits for the call and checks that it was applied.
func (call *doCall) wantResult(t *testing.T) {
	t.Helper()
	<-call.done
	if call.err != nil || call.result != "did "+call.op {
		t.Fatalf("%s: got %q, %v", call.op, call.result, call.err)
	}
}

// wantError waits for the call and checks that its error is all of is, and no other
// sentinel.
func (call *doCall) wantError(t *testing.T, is ...error) {
	t.Helper()
	<-call.done
	for _, want := range is {
		if !errors.Is(call.err, want) {
			t.Fatalf("%s: got %q, %v; want %v", call.op, call.result, call.err, want)
		}
	}
	for _, e := range []error{ErrOutcomeUnknown, ErrNoLeader, ErrClosed} {
		if !slices.Contains(is, e) && errors.Is(call.err, e) {
			t.Fatalf("%s: %v is also %v", call.op, call.err, e)
		}
	}
}

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
	all := []*doCall{f.do("a")}
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

// An entry whose callers have all left is given up, and its sequence is not used
// again.
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
	f.apply(p)
	first.wantResult(t)
	p = f.next()
	f.setLeader(0, 2)
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Dropped)
	f.waitUntil(func() bool { return !f.c.maybeLogged })
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

// loopRaft applies every proposal at once.
type loopRaft struct {
	fakeRaft
	c        *Combiner[int, int]
	sequence uint64 // of the last entry
}

// intCodec is the codec for loopRaft. It keeps the operations instead of encoding
// them, and opens sessions at once.
type intCodec struct {
	loop *loopRaft
	ops  []int
}

func (c *intCodec) OpenSession(nonce uint64) []byte { c.loop.c.SessionOpened(nonce, 1); return nil }
func (c *intCodec) Encode(_, sequence uint64, ops []int) ([]byte, error) {
	c.ops = append(make([]int, 0, len(ops)), ops...)
	c.loop.sequence = sequence
	return nil, nil
}
func (c *intCodec) Size(int) int       { return 8 }
func (c *intCodec) Exclusive(int) bool { return false }

func (f *loopRaft) Propose([]byte, time.Duration) (*dragonboat.RequestState, error) {
	rs := &dragonboat.RequestState{CompletedC: make(chan dragonboat.RequestResult, 1)}
	go f.c.Applied(1, f.sequence, f.c.codec.(*intCodec).ops)
	return rs, nil
}

func newLoop(t testing.TB) *Combiner[int, int] {
	f := &loopRaft{fakeRaft: fakeRaft{t: t, done: make(chan struct{}), leader: Leader{1, 1}, changed: make(chan struct{})}}
	f.c = newCombiner[int, int](f, &intCodec{loop: f}, CombinerConfig{MaxEntryBytes: testEntryBytes})
	t.Cleanup(func() { f.c.Close() })
	return f.c
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
