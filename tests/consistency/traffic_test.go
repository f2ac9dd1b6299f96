package consistency_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// traffic has workers on all nodes, which execute operations.
type traffic struct {
	c       *cluster
	seed    uint64
	began   time.Time
	tally   tally
	written []atomic.Int64 // the number of committed transactions that wrote, by node
	quit    chan struct{}
	wait    sync.WaitGroup
	workers int
}

func newTraffic(c *cluster, seed uint64) *traffic {
	return &traffic{c: c, seed: seed, began: time.Now(), written: make([]atomic.Int64, len(c.nodes)), quit: make(chan struct{})}
}

// now returns the time since the run began, in nanoseconds.
func (tr *traffic) now() int64 { return int64(time.Since(tr.began)) }

// A worker executes one operation after the other on one node.
type worker struct {
	*traffic
	id     int
	node   *node
	random *rand.Rand
	count  int // of operations
}

// start starts so many workers on each node. Each of them calls work in a loop, with
// the process that is to be used.
func (tr *traffic) start(each int, work func(*worker, *life)) {
	for range each {
		for _, n := range tr.c.nodes {
			w := &worker{traffic: tr, id: tr.workers, node: n, random: rand.New(rand.NewPCG(tr.seed, uint64(tr.workers)))}
			tr.workers++
			tr.wait.Go(func() {
				for ; ; w.count++ {
					l := w.node.usable(tr.quit)
					if l == nil || tr.stopped() {
						return
					}
					work(w, l)
				}
			})
		}
	}
}

func (tr *traffic) stopped() bool {
	select {
	case <-tr.quit:
		return true
	default:
		return false
	}
}

// stop stops the workers and waits for them.
func (tr *traffic) stop() {
	close(tr.quit)
	tr.wait.Wait()
}

// run injects faults until length has passed, and then stops the workers.
func (tr *traffic) run(length time.Duration) {
	tr.c.t.Helper()
	defer tr.tally.print(tr.c.t)
	defer tr.stop()
	n := &nemesis{c: tr.c, tr: tr, random: rand.New(rand.NewPCG(tr.seed, 1<<32))}
	n.injectFaults(length)
}

// note counts an operation by its kind of error, and fails the test if that error
// must not happen. It returns the outcome.
func (w *worker) note(err error, wrote bool) outcome {
	kind := kindOf(err)
	if kind == "" {
		w.c.t.Errorf("worker %d: %v", w.id, err)
		kind = "other"
	}
	if err == nil && wrote {
		w.written[w.node.cfg.NodeID-1].Add(1)
	} else if err == nil {
		kind = "nothing written"
	}
	w.tally.add(kind)
	var r *refusal
	if err != nil && !errors.As(err, &r) {
		time.Sleep(10 * time.Millisecond) // until the worker sees that the process has ended
	}
	return outcomeOf(err)
}

// within returns the timeout of an operation. Some operations give up early.
func (w *worker) within() time.Duration {
	if w.random.IntN(25) == 0 {
		return time.Duration(1+w.random.IntN(15)) * time.Millisecond
	}
	return operationTimeout
}

// wrote is called by a transaction that has the lease and has written. A transaction
// that gives up early does not reach the point, because if it is paused, its
// deadline ends it before the lease expires.
func (w *worker) wrote(within time.Duration) {
	if within == operationTimeout {
		w.node.reach(writing)
	}
}

// A tally counts events by kind.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (c *tally) add(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[kind]++
}

func (c *tally) of(kind string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[kind]
}

func (c *tally) print(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(c.counts)) {
		parts = append(parts, fmt.Sprintf("%s: %d", kind, c.counts[kind]))
	}
	t.Log(strings.Join(parts, ", "))
}

// require fails the test if there were fewer events of a kind than a run needs to
// test anything.
func (tr *traffic) require(kind string, least int) {
	tr.c.t.Helper()
	if n := tr.tally.of(kind); n < least {
		tr.c.t.Errorf("%s: only %d; a run has at least %d", kind, n, least)
	}
}

// problems fails a test with the violations that a model has found.
func problems(t testing.TB, found []string) {
	t.Helper()
	for i, p := range found {
		if i == 20 {
			t.Errorf("and %d more violations", len(found)-i)
			return
		}
		t.Error(p)
	}
}
