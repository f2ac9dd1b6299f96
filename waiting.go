package hiqlite

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite/cluster"
)

const (
	// leaderlessTicks is for how long a shard has no leader before it is said, in
	// Raft's ticks: an election takes 20 to 40, and may fail once.
	leaderlessTicks = 80
	// leaderlessLeast is the least such time: ticks may be very short.
	leaderlessLeast = 2 * time.Second
	// defaultTick is that of a node with others; see Config.Tick.
	defaultTick = 50 * time.Millisecond
	// leaderLook is how often it is looked whether there are leaders.
	leaderLook = 100 * time.Millisecond
	// silentTicks is when a node that sends nothing is called silent: without a
	// leader, requests for votes come after 40 ticks at the latest.
	silentTicks = 60
)

// A namedShard is one of the node's shards.
type namedShard struct {
	name    string
	shard   *cluster.Shard
	applied func() uint64
}

func (n *Node) shards() []namedShard {
	all := []namedShard{{"sql", n.shard, n.replica.Applied}}
	for _, s := range n.memory.all {
		all = append(all, namedShard{s.name, s.shard, s.replica.Applied})
	}
	return all
}

// watchLeaders says once when shards have no leader, and once when they have one
// again: nothing else tells an operator why nothing happens.
func (n *Node) watchLeaders() {
	began := time.Now()
	lost := map[string]time.Time{} // shard -> when it had no leader for the first time
	var said []string              // shards, in the last line
	for n.sleep(leaderLook) {
		var without []string
		long := false
		for _, s := range n.shards() {
			if s.shard.Leader().Node != 0 || s.ended() {
				delete(lost, s.name)
				continue
			}
			if _, ok := lost[s.name]; !ok {
				lost[s.name] = time.Now()
			}
			without = append(without, s.name)
			long = long || time.Since(lost[s.name]) > max(leaderlessTicks*n.raftTick(), leaderlessLeast)
		}
		switch {
		case long && said == nil:
			said, began = without, lost[without[0]]
			n.cfg.Logger.Info("hiqlite: no leader, so no writes: "+n.waitsForPeers(),
				"node", n.cfg.NodeID, "shard", strings.Join(without, ","))
		case len(without) == 0 && said != nil:
			n.cfg.Logger.Info("hiqlite: there is a leader again", "node", n.cfg.NodeID, "shard", strings.Join(said, ","),
				"leader", n.shard.Leader().Node, "after", time.Since(began).Round(time.Millisecond).String())
			said = nil
		}
	}
}

func (n *Node) raftTick() time.Duration { return cmp.Or(n.cfg.Tick, defaultTick) }

func (s namedShard) ended() bool {
	select {
	case <-s.shard.Done():
		return true
	default:
		return false
	}
}

// waitsForPeers says which other nodes this one needs and does not hear.
func (n *Node) waitsForPeers() string {
	if err := n.pausedError(); err != nil {
		return err.Error()
	}
	all := n.host.Peers()
	var silent []string
	for _, p := range all {
		if p.Err == nil && time.Since(p.Heard) < silentTicks*n.raftTick() {
			continue
		}
		why := "connected, but silent"
		switch {
		case p.Err != nil:
			why = strings.TrimPrefix(p.Err.Error(), "dial tcp: ")
		case p.Heard.IsZero():
			why = "not heard yet"
		}
		silent = append(silent, fmt.Sprintf("node %d at %s (%s)", p.Node, p.Address, why))
	}
	heard := 1 + len(all) - len(silent)
	need := (1+len(all))/2 + 1
	if heard < need {
		return fmt.Sprintf("waiting for %d more of %s", need-heard, strings.Join(silent, ", "))
	}
	return fmt.Sprintf("waiting for an election among the %d nodes that are heard", heard)
}

// notReady adds to an error what the node waits for.
func (n *Node) notReady(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), leaderLook)
	defer cancel()
	var without, behind []string
	for _, s := range n.shards() {
		if s.ended() {
			continue
		}
		if s.shard.Leader().Node == 0 {
			without = append(without, s.name)
			continue
		}
		applied := s.applied()
		if commit, err := s.shard.Commit(ctx); err == nil && commit > applied {
			behind = append(behind, fmt.Sprintf("shard %s has applied entry %d of %d", s.name, applied, commit))
		}
	}
	if without != nil {
		behind = append(behind, fmt.Sprintf("shards without a leader: %s: %s", strings.Join(without, ", "), n.waitsForPeers()))
	}
	if behind == nil {
		return err
	}
	return fmt.Errorf("%w: node %d is not ready: %s", err, n.cfg.NodeID, strings.Join(behind, "; "))
}
