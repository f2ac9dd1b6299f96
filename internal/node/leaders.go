package node

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"
)

const (
	// leaderlessTicks is how long, in Raft's ticks, a shard may have no leader
	// before the node logs it: an election takes 16 to 32, and may fail once or twice.
	leaderlessTicks = 80
	// minLeaderless is the least such time, because ticks may be very short.
	minLeaderless = 2 * time.Second
	// defaultTick is Raft's unit of time if Options.Tick is 0.
	defaultTick = 50 * time.Millisecond
	// leaderInterval is how often the node checks whether its shards have leaders.
	leaderInterval = 100 * time.Millisecond
	// silentTicks is when a node that sends nothing is called silent. Without a
	// leader, requests for votes come after 32 ticks at the latest.
	silentTicks = 60
)

func (n *Node) raftTick() time.Duration { return cmp.Or(n.opts.Tick, defaultTick) }

// watchLeaders logs once when shards have had no leader for long, and once when
// they all have one again. Without these lines an operator could not tell why
// writes wait.
func (n *Node) watchLeaders() {
	lost := map[*shard]time.Time{} // when a shard was first seen without a leader
	var logged []string            // names of the shards in the last line
	var since time.Time            // of that line
	for n.sleep(leaderInterval) {
		var without []string
		long := false
		var first time.Time
		for _, s := range n.shards {
			if s.raft.Leader().Node != 0 || s.ended() {
				delete(lost, s)
				continue
			}
			if _, ok := lost[s]; !ok {
				lost[s] = time.Now()
			}
			if without == nil {
				first = lost[s]
			}
			without = append(without, s.name)
			long = long || time.Since(lost[s]) > max(leaderlessTicks*n.raftTick(), minLeaderless)
		}
		switch {
		case long && logged == nil:
			logged, since = without, first
			n.opts.Logger.Info("hiqlite: no leader, so no writes: "+n.missingPeers(),
				"node", n.opts.ID, "shard", strings.Join(without, ","))
		case len(without) == 0 && logged != nil:
			n.opts.Logger.Info("hiqlite: there is a leader again", "node", n.opts.ID, "shard", strings.Join(logged, ","),
				"leader", n.sql.raft.Leader().Node, "after", time.Since(since).Round(time.Millisecond).String())
			logged = nil
		}
	}
}

// missingPeers says which other nodes this one needs and does not hear.
func (n *Node) missingPeers() string {
	if err := n.pausedError(); err != nil {
		return err.Error()
	}
	all := n.host.Peers()
	var unheard []string // other nodes, each with the reason
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
		unheard = append(unheard, fmt.Sprintf("node %d at %s (%s)", p.Node, p.Address, why))
	}
	heard := 1 + len(all) - len(unheard)
	majority := (1+len(all))/2 + 1
	if heard < majority {
		return fmt.Sprintf("waiting for %d more of %s", majority-heard, strings.Join(unheard, ", "))
	}
	return fmt.Sprintf("waiting for an election among the %d nodes that are heard", heard)
}

// refusedError is why other nodes refuse this one.
type refusedError struct{ error }

func (e *refusedError) Unwrap() error { return e.error }

// watchRefusals cancels a context when there is no leader and other nodes refuse
// this one. The caller has to call stop.
func (n *Node) watchRefusals(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(leaderInterval)
		defer ticker.Stop()
		for {
			if err := n.host.Refused(); err != nil && n.sql.raft.Leader().Node == 0 {
				cancel(&refusedError{err})
				return
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

// notReady adds to an error of Ready what the node waits for.
func (n *Node) notReady(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), leaderInterval)
	defer cancel()
	var without, reasons []string
	for _, s := range n.shards {
		if s.ended() {
			continue
		}
		if s.raft.Leader().Node == 0 {
			without = append(without, s.name)
			continue
		}
		applied := s.machine.Applied()
		if commit, err := s.raft.Commit(ctx); err == nil && commit > applied {
			reasons = append(reasons, fmt.Sprintf("shard %s has applied entry %d of %d", s.name, applied, commit))
		}
	}
	if without != nil {
		reasons = append(reasons, fmt.Sprintf("shards without a leader: %s: %s", strings.Join(without, ", "), n.missingPeers()))
	}
	if reasons == nil {
		return err
	}
	return fmt.Errorf("%w: node %d is not ready: %s", err, n.opts.ID, strings.Join(reasons, "; "))
}
