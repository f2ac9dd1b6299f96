//lint:file-ignore SA1019 the fake shard answers through CompletedC, which is what AppliedC returns

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

// entry is what the tests' codec writes and the tests' machine reads.
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

// textCodec: operations are strings; "!..." is exclusive, "bad" cannot be
// encoded. It reuses its buffer, as it may.
type textCodec struct{ buf []byte }

func (c *textCodec) keep(e entry) []byte {
	b, _ := json.Marshal(e)
	c.buf = append(c.buf[:0], b...)
	return c.buf
}
func (c *textCodec) OpenSession(nonce uint64) []byte { return c.keep(entry{Nonce: nonce}) }
func (c *textCodec) Encode(session, sequence uint64, ops []string) ([]byte, error) {
	if slices.Contains(ops, "bad") {
		return nil, errBad
	}
	return c.keep(entry{Session: session, Sequence: sequence, Ops: ops}), nil
}
func (c *textCodec) Size(op string) int       { return len(op) }
func (c *textCodec) Exclusive(op string) bool { return strings.HasPrefix(op, "!") }

// proposal is one that the fake Raft accepted.
type proposal struct {
	cmd string
	entry
	rs *dragonboat.RequestState
}

// fakeRaft records proposals and does nothing else.
type fakeRaft struct {
	t         testing.TB
	proposals chan proposal
	done      chan struct{}

	mu      sync.Mutex
	leader  Leader
	changed chan struct{}
	refuse  []error // what the next calls of Propose return
}

func (f *fakeRaft) Propose(cmd []byte, _ time.Duration) (*dragonboat.RequestState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.refuse) > 0 {
		err := f.refuse[0]
		f.refuse = f.refuse[1:]
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

func (f *fakeRaft) lead(node, term uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = Leader{node, term}
	close(f.changed)
	f.changed = make(chan struct{})
}

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

func (f *fakeRaft) quiet() {
	f.t.Helper()
	select {
	case p := <-f.proposals:
		f.t.Fatalf("unexpected proposal %s", p.cmd)
	default:
	}
}

// result makes a RequestResult, whose one relevant field is not exported.
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

type fixture struct {
	*fakeRaft
	c *Combiner[string, string]
}

const never = time.Hour

// begin starts a combiner that has a leader, and will have session 7.
func begin(t *testing.T, cfg CombinerConfig) *fixture {
	t.Helper()
	f := &fakeRaft{
		t: t, proposals: make(chan proposal, 1000), done: make(chan struct{}),
		leader: Leader{1, 1}, changed: make(chan struct{}),
	}
	if cfg.Resubmit == 0 {
		cfg.Resubmit = never
	}
	c := newCombiner[string, string](f, &textCodec{}, cfg)
	t.Cleanup(func() { c.Close() })
	return &fixture{f, c}
}

// open answers the entry that opens a session.
func (f *fixture) open(session uint64) {
	f.t.Helper()
	p := f.next()
	if p.Nonce == 0 {
		f.t.Fatalf("want a new session, got %s", p.cmd)
	}
	f.c.SessionOpened(p.Nonce, session)
}

// answer applies an entry: the result of an operation is "did <operation>".
func (f *fixture) answer(p proposal) {
	var results []string
	for _, op := range p.Ops {
		results = append(results, "did "+op)
	}
	f.c.Applied(p.Session, p.Sequence, results)
}

type call struct {
	op     string
	cancel context.CancelFunc
	done   chan struct{}
	result string
	err    error
}

func (f *fixture) do(op string) *call {
	ctx, cancel := context.WithCancel(context.Background())
	call := &call{op: op, cancel: cancel, done: make(chan struct{})}
	f.t.Cleanup(cancel)
	go func() {
		defer close(call.done)
		call.result, call.err = f.c.Do(ctx, op)
	}()
	return call
}

// queued calls Do for each operation in order, and waits until all n are in the
// queue. There must be an entry in flight.
func (f *fixture) queued(ops ...string) (calls []*call) {
	for i, op := range ops {
		calls = append(calls, f.do(op))
		f.until(func() bool { return len(f.c.queue) == i+1 })
	}
	return calls
}

func (f *fixture) until(cond func() bool) {
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

func (call *call) ok(t *testing.T) {
	t.Helper()
	<-call.done
	if call.err != nil || call.result != "did "+call.op {
		t.Fatalf("%s: got %q, %v", call.op, call.result, call.err)
	}
}

func (call *call) fails(t *testing.T, is ...error) {
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

func TestCombinesWhatWaits(t *testing.T) {
	f := begin(t, CombinerConfig{})
	first := f.do("a")
	f.open(7)
	p := f.next()
	if p.Session != 7 || p.Sequence != 1 || !slices.Equal(p.Ops, []string{"a"}) {
		t.Fatalf("got %s", p.cmd)
	}
	rest := f.queued("b", "c", "d")
	f.quiet()
	f.answer(p)
	first.ok(t)
	p = f.next()
	if p.Session != 7 || p.Sequence != 2 || !slices.Equal(p.Ops, []string{"b", "c", "d"}) {
		t.Fatalf("got %s", p.cmd)
	}
	f.answer(p)
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Completed)
	for _, c := range rest {
		c.ok(t)
	}
}

func TestBoundsOfAnEntry(t *testing.T) {
	f := begin(t, CombinerConfig{MaxEntryBytes: 10, MaxOperations: 3})
	if _, err := f.c.Do(t.Context(), "12345678901"); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	all := []*call{f.do("a")}
	f.open(7)
	p := f.next()
	all = append(all, f.queued("1234", "123456", "7", "8", "9", "10", "!x", "11", "!y")...)
	f.answer(p)
	for _, want := range [][]string{{"1234", "123456"}, {"7", "8", "9"}, {"10"}, {"!x"}, {"11"}, {"!y"}} {
		p := f.next()
		if !slices.Equal(p.Ops, want) {
			t.Fatalf("got %v, want %v", p.Ops, want)
		}
		f.answer(p)
	}
	for _, c := range all {
		c.ok(t)
	}
}

func TestEncodeErrorHitsOnlyTheGuilty(t *testing.T) {
	f := begin(t, CombinerConfig{})
	first := f.do("a")
	f.open(7)
	p := f.next()
	calls := f.queued("b", "bad", "c")
	f.answer(p)
	first.ok(t)
	for _, want := range []string{"b", "c"} {
		p := f.next()
		if !slices.Equal(p.Ops, []string{want}) {
			t.Fatalf("got %v, want %v", p.Ops, want)
		}
		f.answer(p)
	}
	calls[0].ok(t)
	calls[1].fails(t, errBad)
	calls[2].ok(t)
}

func TestDroppedIsProposedAgain(t *testing.T) {
	f := begin(t, CombinerConfig{})
	call := f.do("a")
	f.open(7)
	p := f.next()
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Dropped)
	again := f.next()
	if again.cmd != p.cmd {
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.answer(again)
	f.answer(again) // a duplicate: ignored
	call.ok(t)
}

func TestRefusedIsProposedAgain(t *testing.T) {
	f := begin(t, CombinerConfig{})
	f.refuse = []error{dragonboat.ErrSystemBusy, dragonboat.ErrShardNotReady}
	call := f.do("a")
	f.open(7)
	f.answer(f.next())
	call.ok(t)
}

func TestLeaderChangeProposesTheSameBytes(t *testing.T) {
	f := begin(t, CombinerConfig{})
	call := f.do("a")
	f.open(7)
	p := f.next()
	f.lead(0, 2)
	f.lead(2, 2)
	again := f.next()
	if again.cmd != p.cmd {
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.answer(again)
	call.ok(t)
	next := f.do("b")
	p = f.next()
	f.c.Applied(7, 1, []string{"late"}) // of the entry before
	f.answer(p)
	next.ok(t)
}

func TestTimerAndTimeoutProposeTheSameBytes(t *testing.T) {
	f := begin(t, CombinerConfig{Resubmit: time.Millisecond})
	call := f.do("a")
	f.open(7)
	p := f.next()
	for p.Nonce != 0 { // the timer may have asked for more than one session
		p = f.next()
	}
	if again := f.next(); again.cmd != p.cmd {
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.answer(p)
	call.ok(t)

	f = begin(t, CombinerConfig{})
	call = f.do("a")
	f.open(7)
	p = f.next()
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Timeout)
	if again := f.next(); again.cmd != p.cmd {
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.answer(p)
	call.ok(t)
}

// While a leader hands over nothing new is proposed; the next leader ends that.
func TestHoldEndsWithTheLeader(t *testing.T) {
	f := begin(t, CombinerConfig{})
	f.c.Hold(time.Hour)
	call := f.do("a")
	f.open(7)
	f.until(func() bool { return f.c.held.Load() == 0 }) // it is heeded
	f.quiet()
	f.lead(2, 2)
	f.answer(f.next())
	call.ok(t)

	f.c.Hold(time.Millisecond) // the leader stays
	call = f.do("b")
	f.answer(f.next())
	call.ok(t)
}

func TestNoLeader(t *testing.T) {
	f := begin(t, CombinerConfig{})
	f.lead(0, 1)
	call := f.do("a")
	call.cancel()
	call.fails(t, context.Canceled, ErrNoLeader)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := f.c.Do(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrNoLeader) || errors.Is(err, ErrOutcomeUnknown) {
		t.Fatal(err)
	}
	stays := f.do("c")
	f.lead(3, 2)
	f.open(7)
	p := f.next()
	if !slices.Equal(p.Ops, []string{"c"}) {
		t.Fatalf("got %s", p.cmd)
	}
	f.answer(p)
	stays.ok(t)
}

func TestAbandonedWaitersDoNotPileUp(t *testing.T) {
	f := begin(t, CombinerConfig{})
	f.lead(0, 1)
	for i := range 1000 {
		call := f.do(fmt.Sprint(i))
		f.until(func() bool { return len(f.c.queue) > f.c.left })
		call.cancel()
		call.fails(t, context.Canceled, ErrNoLeader)
		f.until(func() bool { return len(f.c.queue) <= 1 })
	}
}

func TestContextEndsInFlight(t *testing.T) {
	f := begin(t, CombinerConfig{})
	first := f.do("first")
	f.open(7)
	p := f.next()
	calls := f.queued("a", "b")
	f.answer(p)
	first.ok(t)
	p = f.next()
	calls[0].cancel()
	calls[0].fails(t, ErrOutcomeUnknown, context.Canceled)
	f.lead(0, 2)
	f.lead(2, 2)
	if again := f.next(); again.cmd != p.cmd { // for the other
		t.Fatalf("got %s, want %s", again.cmd, p.cmd)
	}
	f.answer(p)
	calls[1].ok(t)
}

func TestAllCallersGone(t *testing.T) {
	f := begin(t, CombinerConfig{})
	call := f.do("a")
	f.open(7)
	p := f.next()
	f.lead(0, 2)
	call.cancel()
	call.fails(t, ErrOutcomeUnknown, ErrNoLeader, context.Canceled)
	f.lead(1, 3)
	next := f.do("b")
	q := f.next()
	for q.cmd == p.cmd { // the leader came back before the combiner saw that the caller left
		q = f.next()
	}
	if q.Session != 7 || q.Sequence != 2 || !slices.Equal(q.Ops, []string{"b"}) {
		t.Fatalf("got %s", q.cmd)
	}
	f.answer(p) // late
	f.answer(q)
	next.ok(t)
}

// A caller that was told "not proposed" must not be in any entry, even though
// its entry, once dropped, waits to be proposed again.
func TestLeavingADroppedEntryIsCertain(t *testing.T) {
	f := begin(t, CombinerConfig{})
	first := f.do("first")
	f.open(7)
	p := f.next()
	calls := f.queued("a", "b")
	f.answer(p)
	first.ok(t)
	p = f.next()
	f.lead(0, 2)
	p.rs.CompletedC <- result(t, (*dragonboat.RequestResult).Dropped)
	f.until(func() bool { return !f.c.doubt })
	calls[0].cancel()
	calls[0].fails(t, ErrNoLeader, context.Canceled)
	f.quiet()
	f.lead(2, 2)
	q := f.next()
	if !slices.Equal(q.Ops, []string{"b"}) {
		t.Fatalf("got %s", q.cmd)
	}
	f.answer(q)
	calls[1].ok(t)
}

func TestSessionUnknownOnce(t *testing.T) {
	f := begin(t, CombinerConfig{})
	call := f.do("a")
	f.open(7)
	p := f.next()
	f.c.SessionUnknown(7, 99) // not ours
	f.c.SessionUnknown(p.Session, p.Sequence)
	f.open(8)
	p = f.next()
	if p.Session != 8 || p.Sequence != 1 || !slices.Equal(p.Ops, []string{"a"}) {
		t.Fatalf("got %s", p.cmd)
	}
	f.answer(p)
	call.ok(t)
}

func TestSessionUnknownAfterRepetition(t *testing.T) {
	f := begin(t, CombinerConfig{})
	call := f.do("a")
	f.open(7)
	p := f.next()
	f.lead(2, 2)
	f.next()
	f.c.SessionUnknown(p.Session, p.Sequence)
	call.fails(t, ErrOutcomeUnknown)
	next := f.do("b")
	f.open(8)
	f.answer(f.next())
	next.ok(t)
}

func TestSessionIsAskedForUntilItComes(t *testing.T) {
	f := begin(t, CombinerConfig{})
	call := f.do("a")
	p := f.next()
	f.lead(2, 2)
	q := f.next()
	if q.Nonce == 0 || q.Nonce == p.Nonce {
		t.Fatalf("got %s after %s", q.cmd, p.cmd)
	}
	f.c.SessionOpened(p.Nonce-1, 5) // of another node
	f.c.SessionOpened(p.Nonce, 7)   // the first comes late, and is as good
	f.c.SessionOpened(q.Nonce, 8)
	r := f.next()
	if r.Session != 7 && r.Session != 8 {
		t.Fatalf("got %s", r.cmd)
	}
	f.answer(r)
	call.ok(t)
}

// An eager combiner has a session before anybody asks for something, and opens
// no other for the first who does.
func TestAnEagerOneOpensItsSessionAtOnce(t *testing.T) {
	f := begin(t, CombinerConfig{Eager: true})
	f.open(7)
	call := f.do("a")
	p := f.next()
	if p.Session != 7 {
		t.Fatalf("got %s", p.cmd)
	}
	f.answer(p)
	call.ok(t)
}

func TestResultsNotKept(t *testing.T) {
	f := begin(t, CombinerConfig{})
	call := f.do("a")
	f.open(7)
	f.c.Applied(7, 1, nil) // not yet in flight, or in flight without results
	select {
	case p := <-f.proposals:
		f.c.Applied(p.Session, p.Sequence, nil)
	case <-call.done:
	}
	call.fails(t, ErrOutcomeUnknown)
}

func TestCloseWhileWaiting(t *testing.T) {
	f := begin(t, CombinerConfig{})
	flying := f.do("a")
	f.open(7)
	f.next()
	queued := f.queued("b")[0]
	f.c.Close()
	f.c.Close()
	flying.fails(t, ErrOutcomeUnknown, ErrClosed)
	queued.fails(t, ErrClosed)
	if _, err := f.c.Do(t.Context(), "c"); err != ErrClosed {
		t.Fatal(err)
	}

	f = begin(t, CombinerConfig{}) // while a session is opened
	call := f.do("a")
	f.next()
	f.c.Close()
	call.fails(t, ErrClosed)
}

func TestShardStops(t *testing.T) {
	f := begin(t, CombinerConfig{})
	flying := f.do("a")
	f.open(7)
	f.next()
	close(f.done)
	flying.fails(t, ErrOutcomeUnknown, ErrClosed)
	<-f.c.done
	if _, err := f.c.Do(t.Context(), "c"); err != ErrClosed {
		t.Fatal(err)
	}

	f = begin(t, CombinerConfig{}) // refused, so nothing was proposed
	f.lead(0, 1)
	call := f.do("a")
	f.mu.Lock()
	f.refuse = []error{ErrClosed}
	f.mu.Unlock()
	f.lead(1, 2)
	call.fails(t, ErrClosed)
}

// loopRaft applies every proposal at once, for the race detector and for the
// benchmark.
type loopRaft struct {
	fakeRaft
	c *Combiner[int, int]
	n uint64
}

type intCodec struct {
	loop *loopRaft
	ops  []int
}

func (c *intCodec) OpenSession(nonce uint64) []byte { c.loop.c.SessionOpened(nonce, 1); return nil }
func (c *intCodec) Encode(_, sequence uint64, ops []int) ([]byte, error) {
	c.ops = append(make([]int, 0, len(ops)), ops...)
	c.loop.n = sequence
	return nil, nil
}
func (c *intCodec) Size(int) int       { return 8 }
func (c *intCodec) Exclusive(int) bool { return false }

func (f *loopRaft) Propose([]byte, time.Duration) (*dragonboat.RequestState, error) {
	rs := &dragonboat.RequestState{CompletedC: make(chan dragonboat.RequestResult, 1)}
	go f.c.Applied(1, f.n, f.c.codec.(*intCodec).ops)
	return rs, nil
}

func newLoop(t testing.TB) *Combiner[int, int] {
	f := &loopRaft{fakeRaft: fakeRaft{t: t, done: make(chan struct{}), leader: Leader{1, 1}, changed: make(chan struct{})}}
	f.c = newCombiner[int, int](f, &intCodec{loop: f}, CombinerConfig{})
	t.Cleanup(func() { f.c.Close() })
	return f.c
}

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
