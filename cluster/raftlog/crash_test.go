package raftlog

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// A life is a log under a history, and beside it one that never fails.
type life struct {
	*history
	t      *testing.T
	seed   uint64
	opts   Options
	sim    *simFS
	log    *Log
	shadow *Log
	ends   []*Log
}

func newLife(t *testing.T, seed uint64, opts Options) *life {
	l := &life{history: newHistory(seed), t: t, seed: seed, opts: opts, sim: newSimFS()}
	l.shadow = mustOpen(t, newSimFS(), Options{})
	l.log = mustOpen(t, l.sim, opts)
	return l
}

func (l *life) close() {
	for _, log := range append(l.ends, l.shadow, l.log) {
		log.Close() // some have failed
	}
}

// failAfter makes all operations of the file system fail after the next n.
func (l *life) failAfter(n int) {
	l.sim.mu.Lock()
	defer l.sim.mu.Unlock()
	n += l.sim.ops
	l.sim.fail = func(string) error {
		if l.sim.ops > n {
			return errInjected
		}
		return nil
	}
}

// restart opens the log on what is left of the file system.
func (l *life) restart(left *simFS) {
	l.t.Helper()
	l.ends = append(l.ends, l.log)
	l.sim = left
	log, err := openSim(left, l.opts)
	if err != nil {
		l.t.Fatalf("seed %d: after a loss of power: %v", l.seed, err)
	}
	l.log = log
}

// After a loss of power at any moment, with writes that were lost, torn and reordered,
// a log has all that was acknowledged, and of what was not, all or nothing.
func TestLossOfPower(t *testing.T) {
	for seed := range uint64(testrun.Rounds(40, 300)) {
		l := newLife(t, seed, Options{})
		for crash := range 4 {
			l.failAfter(l.rng.IntN(150))
			before := mustRead(t, l.shadow, l.replicas)
			var op logOp
			for {
				op = l.next()
				if err := op.call(l.shadow); err != nil {
					t.Fatal(err)
				}
				after := mustRead(t, l.shadow, l.replicas)
				if err := op.call(l.log); err != nil {
					if !errors.Is(err, errInjected) {
						t.Fatalf("seed %d, %s: %v", seed, op.what, err)
					}
					l.restart(l.sim.withoutPower(l.rng))
					got := mustRead(t, l.log, l.replicas)
					if !reflect.DeepEqual(got, before) && !reflect.DeepEqual(got, after) {
						t.Fatalf("seed %d, crash %d at %s: found\n%v\nbefore it was\n%v\nand after\n%v", seed, crash, op.what, got, before, after)
					}
					break
				}
				before = after
			}
			if err := op.call(l.log); err != nil {
				t.Fatalf("seed %d, %s again: %v", seed, op.what, err)
			}
			got, want := mustRead(t, l.log, l.replicas), mustRead(t, l.shadow, l.replicas)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, crash %d, %s again: found\n%v\nwant\n%v", seed, crash, op.what, got, want)
			}
		}
		l.close()
	}
}

// With the relaxed levels, a loss of power takes the end of what was acknowledged, but
// not a vote; the end of the process takes nothing.
func TestRelaxedDurability(t *testing.T) {
	for seed := range uint64(testrun.Rounds(40, 200)) {
		opts := Options{Durability: Durability{Mode: Async}}
		if seed%2 == 1 {
			opts.Durability = Durability{Interval, time.Hour}
		}
		l := newLife(t, seed, opts)
		states := []contents{mustRead(t, l.shadow, l.replicas)}
		synced := 0
		for range 20 + l.rng.IntN(100) {
			votes := l.votes()
			op := l.next()
			for _, log := range []raftio.ILogDB{l.shadow, l.log} {
				if err := op.call(log); err != nil {
					t.Fatalf("seed %d, %s: %v", seed, op.what, err)
				}
			}
			states = append(states, mustRead(t, l.shadow, l.replicas))
			if !slices.Equal(votes, l.votes()) {
				synced = len(states) - 1
			}
			if l.rng.IntN(20) == 0 {
				if err := l.log.Sync(); err != nil {
					t.Fatal(err)
				}
				synced = len(states) - 1
			}
		}
		last := len(states) - 1
		find := func(left *simFS) int {
			log := mustOpen(t, left, opts)
			defer log.Close()
			got := mustRead(t, log, l.replicas)
			for i := last; i >= 0; i-- {
				if reflect.DeepEqual(got, states[i]) {
					return i
				}
			}
			t.Fatalf("seed %d: found what never was:\n%v", seed, got)
			return 0
		}
		if at := find(l.sim.killed()); !reflect.DeepEqual(states[at], states[last]) {
			t.Errorf("seed %d: after the end of the process, it is at %d of %d", seed, at, last)
		}
		if at := find(l.sim.withoutPower(l.rng)); at < synced && !reflect.DeepEqual(states[at], states[synced]) {
			t.Errorf("seed %d: after a loss of power, it is at %d, and %d was synced", seed, at, synced)
		}
		l.close()
	}
}

func (h *history) votes() []raftpb.State {
	var all []raftpb.State
	for _, r := range h.replicas {
		all = append(all, raftpb.State{Term: r.state.Term, Vote: r.state.Vote})
	}
	return all
}

// Every single bit of a log that was closed is guarded: if one is flipped, the log is
// refused, or nothing is missing. Of a log that was not closed, the last write may be
// taken for one that was never acknowledged.
func TestFlippedBits(t *testing.T) {
	l := newLife(t, 5, Options{})
	var before, after contents
	for range 60 {
		op := l.next()
		before = mustRead(t, l.log, l.replicas)
		if err := op.call(l.log); err != nil {
			t.Fatal(err)
		}
	}
	after = mustRead(t, l.log, l.replicas)
	running := l.sim.killed()
	if err := l.log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what    string
		sim     *simFS
		allowed []contents
	}{
		{"closed", l.sim.killed(), []contents{after}},
		{"killed", running, []contents{after, before}},
	} {
		refused, found := 0, 0
		names := mustList(t, c.sim)
		for range testrun.Rounds(600, 10000) {
			name := names[l.rng.IntN(len(names))]
			bit := l.rng.IntN(len(c.sim.names[name].data) * 8)
			damaged := c.sim.clone()
			damaged.names[name].data[bit/8] ^= 1 << (bit % 8)
			log, err := openSim(damaged, Options{})
			if err != nil {
				if corrupt := new(CorruptError); !errors.As(err, &corrupt) {
					t.Fatalf("%s, bit %d of %s: %v", c.what, bit, name, err)
				}
				refused++
				continue
			}
			found++
			got, err := read(log, l.replicas)
			if err != nil || !slices.ContainsFunc(c.allowed, func(want contents) bool { return reflect.DeepEqual(got, want) }) {
				t.Fatalf("%s, bit %d of %s was flipped: %v, found other contents", c.what, bit, name, err)
			}
			log.Close()
		}
		if refused < found/100 {
			t.Errorf("%s: %d flipped bits were refused, and %d not", c.what, refused, found)
		}
	}
	l.close()
}

func mustList(t *testing.T, s *simFS) []string {
	t.Helper()
	names, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// After a failed write or sync, the log accepts nothing any more, says why, and is
// opened again with all that was acknowledged.
func TestFailures(t *testing.T) {
	for n := range 60 {
		l := newLife(t, uint64(n), Options{})
		failed := make(chan error, 2)
		l.log.opts.Failed = func(err error) { failed <- err }
		l.failAfter(n)
		var first error
		for first == nil {
			op := l.next()
			before := mustRead(t, l.shadow, l.replicas)
			if err := op.call(l.shadow); err != nil {
				t.Fatal(err)
			}
			if first = op.call(l.log); first == nil {
				continue
			}
			if err := <-failed; !errors.Is(err, errInjected) {
				t.Fatal(err)
			}
			// The disk works again, which does not matter.
			l.sim.mu.Lock()
			l.sim.fail = nil
			l.sim.mu.Unlock()
			if err := op.call(l.log); !errors.Is(err, errInjected) {
				t.Fatalf("%s after the failure: %v", op.what, err)
			}
			if _, err := read(l.log, l.replicas); !errors.Is(err, errInjected) {
				t.Fatalf("read after the failure: %v", err)
			}
			l.restart(l.sim.killed())
			got, after := mustRead(t, l.log, l.replicas), mustRead(t, l.shadow, l.replicas)
			if !reflect.DeepEqual(got, before) && !reflect.DeepEqual(got, after) {
				t.Fatalf("%d: after %s failed: found\n%v\nbefore it was\n%v", n, op.what, got, before)
			}
		}
		if len(failed) > 0 {
			t.Error("the failure was reported twice")
		}
		l.close()
	}
}

// Many goroutines write at the same time, while others read, and segments are freed.
func TestManyWriters(t *testing.T) {
	sim := newSimFS()
	l := mustOpen(t, sim, Options{SegmentSize: 32 << 10})
	const shards, rounds = 4, 400
	var wg sync.WaitGroup
	for shard := range uint64(shards) {
		shard++
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(shard, 2))
			for i := range uint64(rounds) {
				u := raftpb.Update{ShardID: shard, ReplicaID: 1, State: raftpb.State{Term: 1 + i/100, Commit: i}}
				u.EntriesToSave = []raftpb.Entry{{Term: u.State.Term, Index: i + 1, Cmd: make([]byte, rng.IntN(500))}}
				if err := l.SaveRaftState([]raftpb.Update{u}, shard); err != nil {
					t.Error(err)
					return
				}
				low := i/100*100 + 1
				if entries, _, err := l.IterateEntries(nil, 0, shard, 1, low, i+2, 1<<40); err != nil || uint64(len(entries)) != i+2-low {
					t.Errorf("shard %d: %d entries from %d to %d: %v", shard, len(entries), low, i+1, err)
					return
				}
				// The last shard keeps its entries.
				if i%100 == 0 && shard != shards {
					if err := l.RemoveEntriesTo(shard, 1, i); err != nil {
						t.Error(err)
					}
					if _, err := l.CompactEntriesTo(shard, 1, i); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, sim.killed(), Options{SegmentSize: 32 << 10})
	defer l.Close()
	for shard := range uint64(shards) {
		if last := l.Last(shard+1, 1); last != rounds {
			t.Errorf("shard %d ends at %d", shard+1, last)
		}
	}
}

// A log that is closed while it frees and copies segments, and while others read and
// write, is closed properly: that it is closed is no failure of the disk.
func TestCloseUnderLoad(t *testing.T) {
	for seed := range uint64(testrun.Rounds(60, 600)) {
		sim, rng := newSimFS(), rand.New(rand.NewPCG(seed, 3))
		l := mustOpen(t, sim, Options{Failed: func(err error) { t.Errorf("seed %d: the disk has failed: %v", seed, err) }})
		var wg sync.WaitGroup
		for shard := range uint64(3) {
			wg.Go(func() {
				for i := uint64(1); ; i++ {
					u := update(shard+1, raftpb.State{Term: 1 + i/7}, entriesFrom(i, 1, 1+i/7, 400)...)
					err := l.SaveRaftState([]raftpb.Update{u}, 1)
					if err == nil && i%10 == 0 {
						err = l.RemoveEntriesTo(shard+1, 1, i-5)
						l.CompactEntriesTo(shard+1, 1, i-5) // it may be closed
					}
					if err == nil {
						_, _, err = l.IterateEntries(nil, 0, shard+1, 1, max(i, 4)-3, i+1, 1<<20)
					}
					if errors.Is(err, ErrClosed) {
						return
					} else if err != nil {
						t.Errorf("seed %d: %v", seed, err)
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond) // anywhere
		if err := l.Close(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		wg.Wait()
		again := mustOpen(t, sim.killed(), Options{})
		again.Close()
	}
}
