package consistency_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// A fenceTrap stops the first worker of a node that holds a lock and has written,
// until the fault has happened.
type fenceTrap struct {
	reached  chan *hold
	released chan struct{} // closed when the worker may continue
}

// reach is called by a worker that holds a lock and has written. It reports whether
// a trap stopped the worker.
func (f *fences) reach(h *hold) bool {
	tr := f.traps[h.node-1].Swap(nil)
	if tr == nil {
		return false
	}
	tr.reached <- h
	<-tr.released
	return true
}

// catch waits until a worker of a node holds a lock and has written, and stops the
// worker there until release is called.
func (f *fences) catch(n *node) (h *hold, release func()) {
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
	return h, func() { close(tr.released) }
}

// fenceFaults are the faults of a run. The seed determines their order.
var fenceFaults = []struct {
	name   string
	leader bool // the victim is the leader of the lock shard; otherwise a random node
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
	{"cut off incoming", false, isolate(process.Inbound)},
	{"cut off outgoing", false, isolate(process.Outbound)},
}

// injectFaults injects every fault once.
func (f *fences) injectFaults() {
	c := f.tr.c
	c.t.Helper()
	for _, i := range f.random.Perm(len(fenceFaults)) {
		kind := fenceFaults[i]
		victim := c.nodes[f.random.IntN(len(c.nodes))]
		if kind.leader {
			victim = c.leader("lock")
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
		f.progress("all continued")
		f.mu.Lock()
		f.history.faults[len(f.history.faults)-1].to = clock()
		f.mu.Unlock()
		c.t.Logf("%s, node %d: %d lost; %s", kind.name, victim.cfg.NodeID, f.tr.tally.of("lost")-lost, strings.Join(f.stages, ", "))
	}
}

// progress waits until every worker, except those of some nodes, has taken a lock
// that it asked for after the call, and has released it.
func (f *fences) progress(stage string, without ...*node) {
	f.tr.c.t.Helper()
	before := make([]int64, len(f.got))
	for i := range before {
		before[i] = f.got[i].Load()
	}
	began := time.Now()
	defer func() { f.stage(stage, began) }()
	testrun.WaitFor(f.tr.c.t, "all workers to get a lock: "+stage, func() bool {
		for i := range f.got {
			n := f.tr.c.nodes[i%len(f.tr.c.nodes)]
			if !slices.Contains(without, n) && f.got[i].Load() < before[i]+2 {
				return false
			}
		}
		return true
	})
}

// stage notes how long a stage of the present fault took.
func (f *fences) stage(name string, began time.Time) {
	f.stages = append(f.stages, fmt.Sprintf("%s after %v", name, time.Since(began).Round(time.Millisecond)))
}

// waitForNextHolder waits until a later holder of the same lock has written.
func (f *fences) waitForNextHolder(h *hold) {
	f.tr.c.t.Helper()
	began := time.Now()
	defer func() { f.stage("another had the lock", began) }()
	testrun.WaitFor(f.tr.c.t, fmt.Sprintf("another to write after token %d of %s, of worker %d", h.token, h.key, h.worker), func() bool {
		return f.wrote[h.key].Load() > h.token
	})
}

// kill kills the node of a holder, and starts it again when another worker has had
// the lock.
func (f *fences) kill(victim *node) {
	h, release := f.catch(victim)
	victim.kill()
	release()
	f.waitForNextHolder(h)
	f.progress("others continued", victim)
	f.restart(victim)
}

func (f *fences) restart(n *node) {
	f.tr.c.t.Helper()
	began := time.Now()
	defer func() { f.stage("ready", began) }()
	n.restart()
}

// killAll kills all nodes while a worker holds a lock.
func (f *fences) killAll(holder *node) {
	h, release := f.catch(holder)
	for _, n := range f.tr.c.nodes {
		n.kill()
	}
	release()
	f.tr.c.start()
	f.waitForNextHolder(h)
}

// close closes the node of a holder.
func (f *fences) close(victim *node) {
	h, release := f.catch(victim)
	victim.close()
	release()
	f.waitForNextHolder(h)
	f.progress("others continued", victim)
	f.restart(victim)
}

// close closes the node, ends its process and waits for its end.
func (n *node) close() {
	n.c.t.Helper()
	l := n.alive()
	n.set(nil)
	if _, err := l.ask(request{Do: "close"}, nil); err != nil {
		n.c.t.Errorf("closing node %d: %v", n.cfg.NodeID, err)
	}
	l.Close()
}

// pause pauses the node of a holder until another worker has had the lock. The node
// writes after that, with the old token.
func (f *fences) pause(victim *node) {
	h, release := f.catch(victim)
	victim.pause()
	release()
	f.waitForNextHolder(h)
	f.progress("others continued", victim)
	victim.resume()
}

// isolate cuts off the node of a holder, in one or both directions, until another
// worker has had the lock. Messages that are sent meanwhile are lost or delayed.
func isolate(d process.Direction) func(*fences, *node) {
	return func(f *fences, victim *node) {
		h, release := f.catch(victim)
		f.nw.Cut(victim.cfg.NodeID, d, []process.LinkState{process.LinkDown, process.LinkHeld}[f.random.IntN(2)])
		release()
		f.waitForNextHolder(h)
		f.progress("others continued", victim)
		f.nw.Heal()
	}
}
