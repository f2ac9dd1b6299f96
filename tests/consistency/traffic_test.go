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

// traffic is workers on all nodes.
type traffic struct {
	c       *cluster
	seed    uint64
	began   time.Time
	tally   tally
	written []atomic.Int64 // transactions that committed and wrote, by node
	quit    chan struct{}
	wait    sync.WaitGroup
	workers int
}

func newTraffic(c *cluster, seed uint64) *traffic {
	return &traffic{c: c, seed: seed, began: time.Now(), written: make([]atomic.Int64, len(c.nodes)), quit: make(chan struct{})}
}

// now is the time, in nanoseconds of the run.
func (tr *traffic) now() int64 { return int64(time.Since(tr.began)) }

// A worker does one operation after the other on one node.
type worker struct {
	*traffic
	id     int
	node   *node
	random *rand.Rand
	count  int
}

// start starts so many workers on each node. Each calls work, again and again,
// with the process to use.
func (tr *traffic) start(each int, work func(*worker, *life)) {
	for range each {
		for _, n := range tr.c.nodes {
			w := &worker{traffic: tr, id: tr.workers, node: n, random: rand.New(rand.NewPCG(tr.seed, uint64(tr.workers)))}
			tr.workers++
			tr.wait.Go(func() {
				for ; ; w.count++ {
					l := w.node.usable(tr.quit)
					if l == nil || tr.over() {
						return
					}
					work(w, l)
				}
			})
		}
	}
}

func (tr *traffic) over() bool {
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

// run lets workers work while faults happen.
func (tr *traffic) run(length time.Duration) {
	tr.c.t.Helper()
	defer tr.tally.print(tr.c.t)
	defer tr.stop()
	n := &nemesis{c: tr.c, tr: tr, random: rand.New(rand.NewPCG(tr.seed, 1<<32))}
	n.torment(length)
}

// note counts what became of an operation, and fails the test if it must not
// happen. It returns how sure that is.
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
		time.Sleep(10 * time.Millisecond) // the process is gone: workers shall know soon
	}
	return outcomeOf(err)
}

// within is how long a transaction may take: some give up early.
func (w *worker) within() time.Duration {
	if w.random.IntN(25) == 0 {
		return time.Duration(1+w.random.IntN(15)) * time.Millisecond
	}
	return operationTimeout
}

// wrote is a point of a transaction that has the lease and has written. One that
// gives up early does not count: when it is paused, its deadline ends it, and not
// the lease.
func (w *worker) wrote(within time.Duration) {
	if within == operationTimeout {
		w.node.reach(writing)
	}
}

// tally counts.
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

// require fails a run that did not do what it was for.
func (tr *traffic) require(kind string, least int) {
	tr.c.t.Helper()
	if n := tr.tally.of(kind); n < least {
		tr.c.t.Errorf("%s: %d only, a run has at least %d", kind, n, least)
	}
}

// problems fails a test with what a model found.
func problems(t testing.TB, found []string) {
	t.Helper()
	for i, p := range found {
		if i == 20 {
			t.Errorf("and %d problems more", len(found)-i)
			return
		}
		t.Error(p)
	}
}
