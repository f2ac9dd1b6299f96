package consistency_test

import (
	"math/rand/v2"
	"time"
)

// A point is where a worker has come to.
type point int

const (
	writing    point = iota // inside a transaction that has the lease and has written
	committing              // the commit is on its way to the node
)

// A trap waits for a worker at a point, and holds it there until the fault has
// happened.
type trap struct{ reached, sprung chan struct{} }

// reach tells that a worker is at a point on the node.
func (n *node) reach(p point) {
	if tr := n.traps[p].Swap(nil); tr != nil {
		close(tr.reached)
		<-tr.sprung
	}
}

// trapWait bounds the wait for a worker to come to a point.
const trapWait = 3 * time.Second

// at does something to the node while a worker is at a point, and reports
// whether there was one.
func (n *node) at(p point, do func()) bool {
	tr := &trap{make(chan struct{}), make(chan struct{})}
	n.traps[p].Store(tr)
	timer := time.NewTimer(trapWait)
	defer timer.Stop()
	defer close(tr.sprung)
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

// nemesis does harm to a cluster under traffic.
type nemesis struct {
	c      *cluster
	tr     *traffic
	random *rand.Rand
	missed int // no worker came to the point
}

// faults are what a run goes through, in an order that its seed tells.
var faults = []struct {
	name string
	do   func(*nemesis)
}{
	{"kill the leader", func(n *nemesis) { n.kill(n.c.leader(), n.anywhere()) }},
	{"kill the leader while it commits", func(n *nemesis) { n.kill(n.c.leader(), committing) }},
	{"kill a holder of the lease", func(n *nemesis) { n.kill(n.any(), writing) }},
	{"kill all", (*nemesis).killAll},
	{"pause a node shortly", func(n *nemesis) { n.pause(n.any(), n.anywhere(), 100+n.random.IntN(400), false) }},
	{"pause all but one", func(n *nemesis) { n.pauseAllBut(n.any(), 100+n.random.IntN(600)) }},
	{"pause a holder past its lease", func(n *nemesis) { n.pause(n.any(), writing, 1200, true) }},
	{"pause the leader past its lease", func(n *nemesis) { n.pause(n.c.leader(), writing, 1200, true) }},
	{"pause a committing node past its lease", func(n *nemesis) { n.pause(n.any(), committing, 1200, true) }},
}

func (n *nemesis) any() *node { return n.c.nodes[n.random.IntN(len(n.c.nodes))] }

func (n *nemesis) anywhere() point { return point(n.random.IntN(2)) }

// torment lets every fault happen once, and then more of them for as long as
// the run lasts.
func (n *nemesis) torment(length time.Duration) {
	n.c.t.Helper()
	end := time.Now().Add(length)
	for round := 0; ; round++ {
		for i, f := range n.random.Perm(len(faults)) {
			if round > 0 && time.Now().After(end) {
				n.c.t.Logf("%d faults, %d of them not where they should have been", round*len(faults)+i, n.missed)
				return
			}
			time.Sleep(time.Duration(50+n.random.IntN(200)) * time.Millisecond) // of peace
			began, before := time.Now(), n.tr.tally.of("committed")
			faults[f].do(n)
			n.c.t.Logf("%s: %v, %d committed", faults[f].name, time.Since(began).Round(time.Millisecond), n.tr.tally.of("committed")-before)
			n.progress(nil, 3)
		}
	}
}

// kill kills a node at a point, and starts it again once the others go on.
func (n *nemesis) kill(victim *node, p point) {
	n.c.t.Helper()
	if !victim.at(p, victim.kill) {
		n.missed++
		victim.kill()
	}
	dead := time.Now()
	n.progress(victim, 3)
	others := time.Since(dead)
	time.Sleep(time.Duration(n.random.IntN(300)) * time.Millisecond) // dead for so much longer
	started := time.Now()
	victim.restart()
	n.c.t.Logf("others went on after %v, the node was ready after %v", others.Round(time.Millisecond), time.Since(started).Round(time.Millisecond))
}

// killAll kills all nodes, while one of them writes, and starts them again.
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

// pause pauses a node at a point, for so many milliseconds or, if others shall
// have had the lease, until they have.
func (n *nemesis) pause(victim *node, p point, ms int, past bool) {
	n.c.t.Helper()
	if !victim.at(p, victim.pause) {
		n.missed++
		victim.pause()
	}
	time.Sleep(time.Duration(ms) * time.Millisecond) // the fault itself
	if past {
		n.progress(victim, 5)
	}
	victim.goOn()
}

// pauseAllBut leaves one node without a majority.
func (n *nemesis) pauseAllBut(lonely *node, ms int) {
	for _, other := range n.c.nodes {
		if other != lonely {
			other.pause()
		}
	}
	time.Sleep(time.Duration(ms) * time.Millisecond) // the fault itself
	for _, other := range n.c.nodes {
		if other != lonely {
			other.goOn()
		}
	}
}

// progress waits until so many transactions more, which write, have committed
// on every node but one.
func (n *nemesis) progress(without *node, more int64) {
	n.c.t.Helper()
	before := make([]int64, len(n.c.nodes))
	for i := range before {
		before[i] = n.tr.written[i].Load()
	}
	waitFor(n.c.t, "transactions to commit", func() bool {
		for i, other := range n.c.nodes {
			if other != without && n.tr.written[i].Load() < before[i]+more {
				return false
			}
		}
		return true
	})
}
