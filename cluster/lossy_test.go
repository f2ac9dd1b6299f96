//lint:file-ignore SA1019 a lost proposal has a CompletedC, which is the channel that AppliedC returns

package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A lossyShard loses some proposals, proposes some twice, and keeps some back.
type lossyShard struct {
	*Shard
	mu   sync.Mutex
	kept [][]byte // to be proposed later
}

func (s *lossyShard) Propose(cmd []byte, timeout time.Duration) (*dragonboat.RequestState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) > 0 && rand.IntN(10) == 0 {
		_, _ = s.Shard.Propose(s.kept[0], timeout) // it may be lost again
		s.kept = s.kept[1:]
	}
	switch rand.IntN(20) {
	case 0:
		s.kept = append(s.kept, slices.Clone(cmd))
		fallthrough
	case 1:
		return &dragonboat.RequestState{CompletedC: make(chan dragonboat.RequestResult, 1)}, nil
	case 2:
		_, _ = s.Shard.Propose(cmd, timeout)
	}
	return s.Shard.Propose(cmd, timeout)
}

// Each node has several entries in flight, of which some are lost, repeated or late, and
// the leader changes. All nodes apply each operation once, and those of a caller in order.
func TestEntriesInFlightOfThreeNodes(t *testing.T) {
	nodes := newNodes(t, 3)
	for _, n := range nodes {
		n.around = func(s *Shard) raft { return &lossyShard{Shard: s} }
		n.bounds = CombinerConfig{LongRound: 1, Resubmit: 5 * testTick} // every round is long
		n.start()
	}
	calls := testrun.Rounds(60, 600)
	var mu sync.Mutex
	results := map[string]int{}
	var callers, transfers sync.WaitGroup
	for id, n := range nodes {
		for caller := range 6 {
			callers.Go(func() {
				for call := range calls {
					op := fmt.Sprintf("%d/%d/%d", id, caller, call)
					r, err := n.combiner.Do(patience(t), op)
					if err != nil {
						t.Errorf("%s: %v", op, err)
						return
					}
					at, _ := strconv.Atoi(r)
					mu.Lock()
					results[op] = at
					mu.Unlock()
				}
			})
		}
	}
	stop := make(chan struct{})
	transfers.Go(func() {
		for next := uint64(1); ; next = next%3 + 1 {
			select {
			case <-stop:
				return
			case <-time.After(30 * testTick):
			}
			leader := nodes[nodes[1].leader()]
			leader.shard.transferLeadership(patience(t), []uint64{next})
		}
	})
	callers.Wait()
	close(stop)
	transfers.Wait()
	for _, n := range nodes {
		n.wantTotal(18 * calls)
		for i, op := range n.disk.ops {
			if results[op] != i+1 {
				t.Errorf("node %d: %s is operation %d, and its caller was told %d", n.cfg.Node, op, i+1, results[op])
			}
		}
	}
	for id := range nodes {
		for caller := range 6 {
			last := 0
			for call := range calls {
				op := fmt.Sprintf("%d/%d/%d", id, caller, call)
				if results[op] <= last {
					t.Errorf("%s is operation %d, and the one before it %d", op, results[op], last)
				}
				last = results[op]
			}
		}
	}
}
