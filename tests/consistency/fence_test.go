package consistency_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/tests/process"
)

const (
	// fenceWorkers is the number of workers on each node.
	fenceWorkers = 4
	// fenceCalm is how long a run lasts before the first fault.
	fenceCalm = 2 * time.Second
	// lockTimeout bounds a Lock. It is less than patience, and more than any waiter
	// needs to reach the head of its queue.
	lockTimeout = 30 * time.Second
)

var (
	fenceKeys = []string{"red", "green", "blue"}
	fenceTTLs = []time.Duration{lock.MinTTL, 3 * lock.MinTTL / 2}
)

// Workers on all nodes take the same few locks while nodes are killed, closed,
// paused and cut off. At no time do two holders believe that they hold the same
// lock; every worker gets locks; and the resource that a lock guards refuses the
// writes of a holder that was paused while it lost the lock.
func TestFences(t *testing.T) {
	seed := seedOf(t)
	f := newFences(t, seed)
	f.calm.Store(true)
	f.tr.start(fenceWorkers, f.work)
	stop := sync.OnceFunc(f.tr.stop)
	defer stop()
	time.Sleep(fenceCalm) // the run without faults
	f.progress("before the faults")
	f.calm.Store(false)
	f.progress("with short times to live")
	f.injectFaults()
	stop()
	f.tr.tally.print(t)
	f.tr.c.equal()
	f.judge(t)
}

// fences is the traffic: workers take locks, and write the resource that each lock
// guards, with the token of their lock.
type fences struct {
	tr     *traffic
	nw     *process.Network
	random *rand.Rand  // for the faults
	calm   atomic.Bool // there are no faults yet, and locks have a long TTL

	got   []atomic.Int64              // locks that were taken and released, by worker
	traps []atomic.Pointer[fenceTrap] // by node
	wrote map[string]*atomic.Uint64   // the highest token of an accepted write, by key

	stages []string // of the present fault

	mu      sync.Mutex
	history fenceHistory
}

func newFences(t *testing.T, seed uint64) *fences {
	t.Helper()
	nw := process.NewNetwork(t)
	c := newCluster(t, 3, nw.Route)
	l := c.nodes[0].alive()
	l.must("CREATE TABLE resource(k TEXT PRIMARY KEY, token INTEGER NOT NULL, writes INTEGER NOT NULL)")
	l.must("CREATE TABLE journal(n INTEGER PRIMARY KEY AUTOINCREMENT, k TEXT NOT NULL, id TEXT NOT NULL, token INTEGER NOT NULL)")
	f := &fences{
		tr: newTraffic(c, seed), nw: nw, random: rand.New(rand.NewPCG(seed, 1<<32)),
		got: make([]atomic.Int64, 3*fenceWorkers), traps: make([]atomic.Pointer[fenceTrap], 3),
		wrote: map[string]*atomic.Uint64{},
	}
	for _, key := range fenceKeys {
		l.must("INSERT INTO resource VALUES(?, 0, 0)", key)
		f.wrote[key] = new(atomic.Uint64)
	}
	c.catchUp()
	return f
}

// work takes a lock, writes under it, and releases it.
func (f *fences) work(w *worker, l *life) {
	o := &lockOrder{Key: fenceKeys[w.random.IntN(len(fenceKeys))], TTL: fenceTTLs[w.random.IntN(len(fenceTTLs))], Locker: w.random.IntN(2)}
	if f.calm.Load() {
		o.TTL = lock.DefaultTTL
	}
	within, hurried := lockTimeout, w.random.IntN(20) == 0
	if hurried {
		within = time.Duration(1+w.random.IntN(40)) * time.Millisecond
	}
	h := &hold{worker: w.id, node: w.node.cfg.NodeID, ttl: o.TTL, key: o.Key, called: clock()}
	a, err := l.ask(request{Do: "lock", Lock: o, Within: within}, nil)
	if err != nil {
		f.miss(miss{worker: w.id, node: h.node, called: h.called, till: clock(), hurried: hurried, err: err})
		if errors.Is(err, errDied) || lockKindOf(err) == "closed" {
			time.Sleep(10 * time.Millisecond) // until the worker sees that the process has ended
		}
		return
	}
	h.token, h.called, h.queued, h.at, h.until = a.Lock.Token, a.Lock.Called, a.Lock.Queued, a.Lock.At, a.Lock.Until
	o.Hold = a.Lock.Hold
	f.use(w, l, o, h)
	if h.end == unlocked {
		f.got[w.id].Add(1)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history.holds = append(f.history.holds, h)
}

func (f *fences) miss(m miss) {
	kind := lockKindOf(m.err)
	if m.hurried && kind == "timed out" {
		kind = "given up"
	}
	f.tr.tally.add(kind)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history.misses = append(f.history.misses, m)
}

// use reads and writes under a lock, and releases it.
func (f *fences) use(w *worker, l *life, o *lockOrder, h *hold) {
	if rows, err := l.query(false, "SELECT token, writes FROM resource WHERE k=?", h.key); err == nil && len(rows) == 1 {
		h.saw = &sighting{at: clock(), token: uint64(number(rows[0][0])), writes: number(rows[0][1])}
	}
	f.write(w, l, o, h)
	trapped := f.reach(h)
	time.Sleep(time.Duration(w.random.IntN(15)) * time.Millisecond) // the work under the lock
	if trapped || w.random.IntN(2) == 0 {
		f.write(w, l, o, h)
	}
	a, err := l.ask(request{Do: "unlock", Lock: o}, nil)
	h.ended, h.err = clock(), err
	if a.Lock != nil {
		h.until, h.unlockCalled = a.Lock.Until, a.Lock.Called
	}
	kind := lockKindOf(err)
	switch kind {
	case "unlocked":
		h.end = unlocked
	case "lost":
		h.end = lost
	default:
		h.end = failed
	}
	f.tr.tally.add(kind)
}

// write writes the resource with the token of the lock.
func (f *fences) write(w *worker, l *life, o *lockOrder, h *hold) {
	x := fencedWrite{id: fmt.Sprintf("%d/%d/%d", w.id, w.count, len(h.writes)), call: clock()}
	a, err := l.ask(request{Do: "fence", Lock: o,
		SQL: []string{
			"UPDATE resource SET token=?2, writes=writes+1 WHERE k=?1 AND token<=?2",
			"INSERT INTO journal(k, id, token) SELECT ?1, ?3, ?2 WHERE changes()=1",
		},
		Args: [][]any{{h.key, h.token}, {h.key, h.token, x.id}},
	}, nil)
	x.ret = clock()
	x.outcome = outcomeOf(err)
	switch {
	case err == nil:
		x.ret, x.accepted = a.Lock.At, a.Affected[0] == 1
		h.until = max(h.until, a.Lock.Until)
	case lockKindOf(err) == "" && kindOf(err) == "":
		f.tr.c.t.Errorf("worker %d: a write: %v", w.id, err)
	}
	switch {
	case x.accepted:
		f.tr.tally.add("writes")
		wrote := f.wrote[h.key]
		for last := wrote.Load(); last < h.token && !wrote.CompareAndSwap(last, h.token); last = wrote.Load() {
		}
	case err == nil:
		f.tr.tally.add("refused writes")
	}
	h.writes = append(h.writes, x)
}

// judge fails the test if the history is wrong, or if too little happened to test
// anything.
func (f *fences) judge(t *testing.T) {
	t.Helper()
	f.sameClock(t)
	h := &f.history
	h.resources = f.resources(t)
	problems(t, h.check())
	believed, queued, lostAfterUse := 0, 0, 0
	for _, x := range h.holds {
		if x.until > x.at {
			believed++
		}
		if x.queued != 0 && h.faultBetween(x.called, x.at) == nil {
			queued++
		}
		if x.end == lost && x.until > x.at {
			lostAfterUse++
		}
	}
	t.Logf("%d holds; the end of %d is known, and %d of those were lost; %d waited in a queue while there was no fault", len(h.holds), believed, lostAfterUse, queued)
	f.tr.require("unlocked", 200)
	f.tr.require("lost", 4)
	f.tr.require("refused writes", 2)
	f.tr.require("killed", 1)
	if lostAfterUse < 2 || believed < len(h.holds)/2 || queued < 30 {
		t.Error("too few of them to test anything")
	}
}

// sameClock fails the test if somebody has set the machine's clock, because the
// times of the processes can then not be compared.
func (f *fences) sameClock(t *testing.T) {
	t.Helper()
	now := time.Now()
	if d := now.Round(0).Sub(f.tr.began.Round(0)) - now.Sub(f.tr.began); d.Abs() > stall {
		t.Fatalf("the clock of this machine was set by %v during the test: run it again", d)
	}
}

// resources returns the resources that the locks guard, after the run.
func (f *fences) resources(t *testing.T) map[string]resource {
	t.Helper()
	out := map[string]resource{}
	for _, key := range fenceKeys {
		r := resource{}
		l := f.tr.c.nodes[f.random.IntN(3)].alive()
		rows, err := l.query(true, "SELECT token, writes FROM resource WHERE k=?", key)
		if err != nil {
			t.Fatal(err)
		}
		r.token, r.writes = uint64(number(rows[0][0])), number(rows[0][1])
		if rows, err = l.query(true, "SELECT id, token FROM journal WHERE k=? ORDER BY n", key); err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			r.journal = append(r.journal, journalEntry{strings.Clone(row[0]), uint64(number(row[1]))})
		}
		out[key] = r
	}
	return out
}
