//lint:file-ignore SA1019 the fake shard answers through CompletedC, which is the channel that AppliedC returns

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/lni/dragonboat/v4"
)

// entry is the format of an entry in these tests.
type entry struct {
	Nonce    uint64   `json:",omitempty"` // not 0: opens a session
	Session  uint64   `json:",omitempty"`
	Sequence uint64   `json:",omitempty"`
	Oldest   uint64   `json:",omitempty"`
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
// cannot be encoded.
type textCodec struct{}

func (textCodec) marshal(e entry) []byte {
	b, _ := json.Marshal(e)
	return b
}
func (c textCodec) OpenSession(nonce uint64) []byte { return c.marshal(entry{Nonce: nonce}) }
func (c textCodec) Encode(session, sequence, oldest uint64, ops []string) ([]byte, error) {
	if slices.Contains(ops, "bad") {
		return nil, errBad
	}
	return c.marshal(entry{Session: session, Sequence: sequence, Oldest: oldest, Ops: ops}), nil
}
func (textCodec) Remote(op string) bool    { return strings.HasPrefix(op, "~") }
func (textCodec) Size(op string) int       { return len(op) }
func (textCodec) Exclusive(op string) bool { return strings.HasPrefix(op, "!") }

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
	if cfg.LongRound == 0 {
		cfg.LongRound = -1 // how long a test takes must not decide
	}
	c := newCombiner[string, string](f, textCodec{}, cfg)
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

// testCall is a call of Do in a goroutine.
type testCall struct {
	op     string
	cancel context.CancelFunc
	done   chan struct{}
	result string
	err    error
}

func (f *fixture) do(op string) *testCall {
	ctx, cancel := context.WithCancel(context.Background())
	call := &testCall{op: op, cancel: cancel, done: make(chan struct{})}
	f.t.Cleanup(cancel)
	go func() {
		defer close(call.done)
		call.result, call.err = f.c.Do(ctx, op)
	}()
	return call
}

// enqueue calls Do for each operation in order, and waits until all are in the
// queue. There must be an entry in flight.
func (f *fixture) enqueue(ops ...string) (calls []*testCall) {
	for i, op := range ops {
		calls = append(calls, f.do(op))
		f.waitUntil(func() bool { return len(f.c.queue) == i+1 })
	}
	return calls
}

// queued returns the calls in the queue.
func (f *fixture) queued() []*doCall[string, string] {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	return slices.Clone(f.c.queue)
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
func (call *testCall) wantResult(t *testing.T) {
	t.Helper()
	<-call.done
	if call.err != nil || call.result != "did "+call.op {
		t.Fatalf("%s: got %q, %v", call.op, call.result, call.err)
	}
}

// wantError waits for the call and checks that its error is all of is, and no other
// sentinel.
func (call *testCall) wantError(t *testing.T, is ...error) {
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
func (c *intCodec) Encode(_, sequence, _ uint64, ops []int) ([]byte, error) {
	c.ops = append(make([]int, 0, len(ops)), ops...)
	c.loop.sequence = sequence
	return nil, nil
}
func (c *intCodec) Size(int) int       { return 8 }
func (c *intCodec) Remote(int) bool    { return false }
func (c *intCodec) Exclusive(int) bool { return false }

func (f *loopRaft) Propose([]byte, time.Duration) (*dragonboat.RequestState, error) {
	rs := &dragonboat.RequestState{CompletedC: make(chan dragonboat.RequestResult, 1)}
	go f.c.Applied(1, f.sequence, f.c.codec.(*intCodec).ops)
	return rs, nil
}

func newLoop(t testing.TB) *Combiner[int, int] {
	f := &loopRaft{fakeRaft: fakeRaft{t: t, done: make(chan struct{}), leader: Leader{1, 1}, changed: make(chan struct{})}}
	f.c = newCombiner[int, int](f, &intCodec{loop: f}, CombinerConfig{MaxEntryBytes: testEntryBytes, LongRound: -1})
	t.Cleanup(func() { f.c.Close() })
	return f.c
}
