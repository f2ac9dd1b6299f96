package consistency_test

import (
	"math/rand/v2"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A point is a step of a worker at which a fault can happen.
type point int

const (
	writing    point = iota // inside a transaction that has the lease and has written
	committing              // the request to commit has been sent to the node
)

// A trap stops the first worker that reaches a point, until the fault has happened.
type trap struct {
	reached  chan struct{} // closed when a worker has reached the point
	released chan struct{} // closed when the worker may continue
}

// reach is called by a worker of the node that has reached a point.
func (n *node) reach(p point) {
	if tr := n.traps[p].Swap(nil); tr != nil {
		close(tr.reached)
		<-tr.released
	}
}

// trapWait bounds the wait for a worker to reach a point.
const trapWait = 3 * time.Second

// at calls do while a worker of the node is at a point. If none reaches the point
// within trapWait, it returns false without calling do.
func (n *node) at(p point, do func()) bool {
	tr := &trap{make(chan struct{}), make(chan struct{})}
	n.traps[p].Store(tr)
	timer := time.NewTimer(trapWait)
	defer timer.Stop()
	defer close(tr.released)
	select {
	case <-tr.reached:
	case <-timer.C:
		if n.traps[p].CompareAndSwap(tr, nil) {
			return false
		}
		<-tr.reached
	}
	do()
	return true
}

// nemesis injects faults into a cluster under traffic.
type nemesis struct {
	c      *cluster
	tr     *traffic
	random *rand.Rand
	missed int // faults that happened although no worker had reached the point
}

// faults are the faults of a run. The seed determines their order.
var faults = []struct {
	name string
	do   func(*nemesis)
}{
	{"kill the leader", func(n *nemesis) { n.kill(n.c.leader("sql"), n.anywhere()) }},
	{"kill the leader while it commits", func(n *nemesis) { n.kill(n.c.leader("sql"), committing) }},
	{"kill a holder of the lease", func(n *nemesis) { n.kill(n.any(), writing) }},
	{"kill all", (*nemesis).killAll},
	{"pause a node briefly", func(n *nemesis) { n.pause(n.any(), n.anywhere(), 100+n.random.IntN(400), false) }},
	{"pause all but one", func(n *nemesis) { n.pauseAllBut(n.any(), 100+n.random.IntN(600)) }},
	{"pause a holder past its lease", func(n *nemesis) { n.pause(n.any(), writing, 1200, true) }},
	{"pause the leader past its lease", func(n *nemesis) { n.pause(n.c.leader("sql"), writing, 1200, true) }},
	{"pause a committing node past its lease", func(n *nemesis) { n.pause(n.any(), committing, 1200, true) }},
}

func (n *nemesis) any() *node { return n.c.nodes[n.random.IntN(len(n.c.nodes))] }

func (n *nemesis) anywhere() point { return point(n.random.IntN(2)) }

// injectFaults injects every fault once, and then more of them until length has
// passed.
func (n *nemesis) injectFaults(length time.Duration) {
	n.c.t.Helper()
	end := time.Now().Add(length)
	for round := 0; ; round++ {
		for i, f := range n.random.Perm(len(faults)) {
			if round > 0 && time.Now().After(end) {
				n.c.t.Logf("%d faults, %d of them not at the intended point", round*len(faults)+i, n.missed)
				return
			}
			time.Sleep(time.Duration(50+n.random.IntN(200)) * time.Millisecond) // without a fault
			began, before := time.Now(), n.tr.tally.of("committed")
			faults[f].do(n)
			n.c.t.Logf("%s: %v, %d committed", faults[f].name, time.Since(began).Round(time.Millisecond), n.tr.tally.of("committed")-before)
			n.progress(nil, 3)
		}
	}
}

// kill kills a node at a point, and starts it again after the others have committed
// more transactions.
func (n *nemesis) kill(victim *node, p point) {
	n.c.t.Helper()
	if !victim.at(p, victim.kill) {
		n.missed++
		victim.kill()
	}
	dead := time.Now()
	n.progress(victim, 3)
	others := time.Since(dead)
	time.Sleep(time.Duration(n.random.IntN(300)) * time.Millisecond) // the node stays dead for a while
	started := time.Now()
	victim.restart()
	n.c.t.Logf("the others continued after %v, the node was ready after %v", others.Round(time.Millisecond), time.Since(started).Round(time.Millisecond))
}

// killAll kills all nodes while a transaction is open on one of them, and starts
// them again.
func (n *nemesis) killAll() {
	n.c.t.Helper()
	all := func() {
		for _, victim := range n.c.nodes {
			victim.kill()
		}
	}
	if !n.any().at(writing, all) {
		n.missed++
		all()
	}
	n.c.start()
}

// pause pauses a node at a point for so many milliseconds and, if pastLease is
// set, until the others have committed transactions.
func (n *nemesis) pause(victim *node, p point, ms int, pastLease bool) {
	n.c.t.Helper()
	if !victim.at(p, victim.pause) {
		n.missed++
		victim.pause()
	}
	time.Sleep(time.Duration(ms) * time.Millisecond) // the fault itself
	if pastLease {
		n.progress(victim, 5)
	}
	victim.resume()
}

// pauseAllBut pauses all nodes but one for so many milliseconds.
func (n *nemesis) pauseAllBut(running *node, ms int) {
	for _, other := range n.c.nodes {
		if other != running {
			other.pause()
		}
	}
	time.Sleep(time.Duration(ms) * time.Millisecond) // the fault itself
	for _, other := range n.c.nodes {
		if other != running {
			other.resume()
		}
	}
}

// progress waits until every node, except without, has committed so many more
// transactions that write.
func (n *nemesis) progress(without *node, more int64) {
	n.c.t.Helper()
	before := make([]int64, len(n.c.nodes))
	for i := range before {
		before[i] = n.tr.written[i].Load()
	}
	testrun.WaitFor(n.c.t, "transactions to commit", func() bool {
		for i, other := range n.c.nodes {
			if other != without && n.tr.written[i].Load() < before[i]+more {
				return false
			}
		}
		return true
	})
}
