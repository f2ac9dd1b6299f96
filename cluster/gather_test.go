package cluster

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// gatherFixture returns a combiner whose two remote callers were answered just now, after
// an entry that took two milliseconds.
func gatherFixture(t *testing.T) *fixture {
	f := newFixture(t, CombinerConfig{})
	first := f.do("a")
	f.openSession(7)
	p := f.next()
	calls := f.enqueue("~b", "~c")
	f.apply(p)
	first.wantResult(t)
	p = f.next()
	time.Sleep(2 * time.Millisecond) // the entry takes so long in the bubble's time
	f.apply(p)
	for _, c := range calls {
		c.wantResult(t)
	}
	synctest.Wait()
	return f
}

// answer checks the operations of an entry, and answers it at once.
func (f *fixture) answer(want ...string) {
	f.t.Helper()
	p := f.next()
	if !slices.Equal(p.Ops, want) {
		f.t.Fatalf("got %v, want %v", p.Ops, want)
	}
	f.apply(p)
	synctest.Wait()
}

// An entry waits until the remote callers of the last one have come back.
func TestGathersRemoteCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := gatherFixture(t)
		f.do("~b2")
		time.Sleep(time.Millisecond)
		synctest.Wait()
		f.wantNone()
		f.do("~c2")
		synctest.Wait()
		f.answer("~b2", "~c2")
	})
}

// The wait for remote callers ends after twice the time that the last entry took. If it was
// in vain, the next entry does not wait.
func TestGatherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := gatherFixture(t)
		began := time.Now()
		f.do("~b2")
		p := f.next()
		if took := time.Since(began); took != 4*time.Millisecond || !slices.Equal(p.Ops, []string{"~b2"}) {
			t.Fatalf("%v was proposed after %v", p.Ops, took)
		}
		f.enqueue("~c2")
		time.Sleep(3 * time.Millisecond) // the entry takes so long
		f.apply(p)
		synctest.Wait()
		f.answer("~c2") // although the other one has not come back
	})
}

// Callers of this node, and remote callers that come late, wait for nobody.
func TestGathersNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := gatherFixture(t)
		time.Sleep(4 * time.Millisecond)
		began := time.Now()
		f.do("~b2")
		f.answer("~b2")
		local := f.do("d")
		p := f.next()
		f.enqueue("e", "f")
		time.Sleep(3 * time.Millisecond) // the entry takes so long
		f.apply(p)
		local.wantResult(t)
		f.answer("e", "f")
		f.do("g")
		f.answer("g")
		if took := time.Since(began); took != 3*time.Millisecond {
			t.Errorf("the entries waited for others: %v", took)
		}
	})
}

// Close ends a wait for remote callers.
func TestCloseWhileGathering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := gatherFixture(t)
		call := f.do("~b2")
		synctest.Wait()
		f.c.Close()
		call.wantError(t, ErrClosed)
	})
}

// Waits that are in vain become rare.
func TestGatherBackoff(t *testing.T) {
	var g gathering
	waits := 0
	for range 1000 {
		g.begin()
		g.end(4, 0)
		g.took = time.Hour
		if calls, _ := g.wanted(); calls != 0 {
			waits++
			g.waited(true)
		}
	}
	if waits < 5 || waits > 15 {
		t.Errorf("%d of 1000 entries waited", waits)
	}
	g.skip = 0
	g.waited(false)
	if g.waited(true); g.skip != 1 {
		t.Errorf("after a success, a wait in vain skips %d", g.skip)
	}
}
