package consistency_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite/tests/process"
)

// A fenceTrap waits for a worker that has a lock and has written, and keeps it
// there until it is sprung.
type fenceTrap struct {
	reached chan *hold
	sprung  chan struct{}
}

// reach tells that a worker has a lock and has written. It reports whether that
// was waited for.
func (f *fences) reach(h *hold) bool {
	tr := f.traps[h.node-1].Swap(nil)
	if tr == nil {
		return false
	}
	tr.reached <- h
	<-tr.sprung
	return true
}

// catch waits for a worker on a node to have a lock. It is kept there until
// goOn is called.
func (f *fences) catch(n *node) (h *hold, goOn func()) {
	f.tr.c.t.Helper()
	tr := &fenceTrap{make(chan *hold, 1), make(chan struct{})}
	f.traps[n.cfg.NodeID-1].Store(tr)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case h = <-tr.reached:
	case <-timer.C:
		if f.traps[n.cfg.NodeID-1].CompareAndSwap(tr, nil) {
			f.tr.c.t.Fatalf("waited %v for a lock on node %d", patience, n.cfg.NodeID)
		}
		h = <-tr.reached
	}
	return h, func() { close(tr.sprung) }
}

// fenceFaults are what a run goes through, in an order that its seed tells.
var fenceFaults = []struct {
	name   string
	leader bool // the victim leads the shard of the locks; else it is any node
	do     func(*fences, *node)
}{
	{"kill", false, (*fences).kill},
	{"kill the leader", true, (*fences).kill},
	{"kill all", false, (*fences).killAll},
	{"close", false, (*fences).close},
	{"pause", false, (*fences).pause},
	{"pause the leader", true, (*fences).pause},
	{"cut off", false, isolate(process.BothWays)},
	{"cut off the leader", true, isolate(process.BothWays)},
	{"deafen", false, isolate(process.Inbound)},
	{"silence", false, isolate(process.Outbound)},
}

// torment lets every fault happen once.
func (f *fences) torment() {
	c := f.tr.c
	c.t.Helper()
	for _, i := range f.random.Perm(len(fenceFaults)) {
		kind := fenceFaults[i]
		victim := c.nodes[f.random.IntN(len(c.nodes))]
		if kind.leader {
			victim = c.lockLeader()
		}
		harmed := map[uint64]bool{victim.cfg.NodeID: true}
		if kind.name == "kill all" {
			harmed = map[uint64]bool{1: true, 2: true, 3: true}
		}
		lost := f.tr.tally.of("lost")
		f.mu.Lock()
		f.history.faults = append(f.history.faults, fault{name: kind.name, nodes: harmed, from: clock(), to: never})
		f.mu.Unlock()
		f.stages = nil
		kind.do(f, victim)
		f.progress("all went on")
		f.mu.Lock()
		f.history.faults[len(f.history.faults)-1].to = clock()
		f.mu.Unlock()
		c.t.Logf("%s, node %d: %d lost; %s", kind.name, victim.cfg.NodeID, f.tr.tally.of("lost")-lost, strings.Join(f.stages, ", "))
	}
}

// lockLeader returns the node that leads the shard of the locks, as all know it:
// they must be alive.
func (c *cluster) lockLeader() *node {
	c.t.Helper()
	var leader uint64
	waitFor(c.t, "a leader of the locks that all agree on", func() bool {
		seen := map[uint64]bool{}
		for _, n := range c.nodes {
			a, err := n.alive().ask(request{Do: "status"}, nil)
			if err != nil {
				c.t.Fatal(err)
			}
			for _, s := range a.Status.Shards {
				if s.Name == "lock" {
					leader = s.Leader
					seen[leader] = true
				}
			}
		}
		return len(seen) == 1 && leader != 0
	})
	return c.nodes[leader-1]
}

// progress waits until every worker, but those of some nodes, has got a lock
// that it asked for now or later, and has given it back.
func (f *fences) progress(stage string, without ...*node) {
	f.tr.c.t.Helper()
	before := make([]int64, len(f.got))
	for i := range before {
		before[i] = f.got[i].Load()
	}
	began := time.Now()
	defer func() { f.stage(stage, began) }()
	waitFor(f.tr.c.t, "all workers to get a lock: "+stage, func() bool {
		for i := range f.got {
			n := f.tr.c.nodes[i%len(f.tr.c.nodes)]
			if !contains(without, n) && f.got[i].Load() < before[i]+2 {
				return false
			}
		}
		return true
	})
}

// stage notes how long a stage of a fault took.
func (f *fences) stage(name string, began time.Time) {
	f.stages = append(f.stages, fmt.Sprintf("%s after %v", name, time.Since(began).Round(time.Millisecond)))
}

// succeeded waits until a later holder of the same lock has written.
func (f *fences) succeeded(h *hold) {
	f.tr.c.t.Helper()
	began := time.Now()
	defer func() { f.stage("another had the lock", began) }()
	waitFor(f.tr.c.t, fmt.Sprintf("another to write after token %d of %s, of worker %d", h.token, h.key, h.worker), func() bool {
		return f.wrote[h.key].Load() > h.token
	})
}

// kill kills a holder, and starts its node again once another has its lock.
func (f *fences) kill(victim *node) {
	h, goOn := f.catch(victim)
	victim.kill()
	goOn()
	f.succeeded(h)
	f.progress("others went on", victim)
	f.restart(victim)
}

func (f *fences) restart(n *node) {
	f.tr.c.t.Helper()
	began := time.Now()
	defer func() { f.stage("ready", began) }()
	n.restart()
}

// killAll kills all nodes while one of them has a lock.
func (f *fences) killAll(holder *node) {
	h, goOn := f.catch(holder)
	for _, n := range f.tr.c.nodes {
		n.kill()
	}
	goOn()
	f.tr.c.start()
	f.succeeded(h)
}

// close closes a node while it has a lock.
func (f *fences) close(victim *node) {
	h, goOn := f.catch(victim)
	victim.close()
	goOn()
	f.succeeded(h)
	f.progress("others went on", victim)
	f.restart(victim)
}

// close closes the node, ends its process and waits for that.
func (n *node) close() {
	n.c.t.Helper()
	l := n.alive()
	n.set(nil)
	if _, err := l.ask(request{Do: "close"}, nil); err != nil {
		n.c.t.Errorf("closing node %d: %v", n.cfg.NodeID, err)
	}
	l.Close()
}

// pause stops a holder until another has its lock. What it was about to write
// comes after that.
func (f *fences) pause(victim *node) {
	h, goOn := f.catch(victim)
	victim.pause()
	goOn()
	f.succeeded(h)
	f.progress("others went on", victim)
	victim.goOn()
}

// isolate cuts off a holder, in one way or both, until another has its lock.
// What is sent meanwhile is lost, or comes late.
func isolate(d process.Direction) func(*fences, *node) {
	return func(f *fences, victim *node) {
		h, goOn := f.catch(victim)
		f.nw.Cut(victim.cfg.NodeID, d, []process.LinkState{process.LinkDown, process.LinkHeld}[f.random.IntN(2)])
		goOn()
		f.succeeded(h)
		f.progress("others went on", victim)
		f.nw.Heal()
	}
}
