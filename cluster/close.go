package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
)

// Close transfers the leadership of every shard that this node leads to another
// node, which takes at most half a second, ends all shards, started or not, and
// stops Raft. Calls of Shard methods that are in progress return ErrClosed. Close
// is idempotent and returns once everything is stopped. It waits for a machine whose
// Update does not return.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closing {
		h.mu.Unlock()
		<-h.closed
		return h.closeErr
	}
	h.closing = true
	shards := slices.Collect(maps.Values(h.shards))
	h.mu.Unlock()
	defer close(h.closed)

	if len(h.cfg.Members) > 1 {
		h.transferLeadership(shards)
	}
	h.end()
	h.gate.Lock()
	nh := h.nh
	h.nh = nil
	h.gate.Unlock()
	closed := make(chan error, 1)
	go func() { closed <- closeNodeHost(nh) }()
	stuck := false
	select {
	case h.closeErr = <-closed:
	case <-h.broken:
		select {
		case h.closeErr = <-closed:
		case <-time.After(brokenCloseTime):
			stuck = true
			h.closeErr = fmt.Errorf("hiqlite: the disk of the Raft folder %s has failed: goroutines that write to it are left behind, and the folder stays open until this program ends", h.cfg.Dir)
		}
	}
	close(h.stopSaver)
	h.saver.Wait()
	if !stuck {
		h.release()
	}
	return h.closeErr
}

// closeNodeHost returns the panics of NodeHost.Close as errors.
func closeNodeHost(nh *dragonboat.NodeHost) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("hiqlite: Raft did not close cleanly: %v", r)
		}
	}()
	nh.Close()
	return nil
}

// transferLeadership transfers the leadership of those shards that this node leads. Raft
// does not answer a request for that: who leads shows whether it was successful.
func (h *Host) transferLeadership(shards []*Shard) {
	ctx, cancel := context.WithTimeout(context.Background(), transferTime)
	defer cancel()
	shards = slices.DeleteFunc(shards, func(s *Shard) bool { return s.Leader().Node != h.cfg.Node })
	if len(shards) == 0 {
		return
	}
	reachable := h.net.Reachable()
	var wg sync.WaitGroup
	for _, s := range shards {
		wg.Go(func() { s.transferLeadership(ctx, reachable) })
	}
	wg.Wait()
}
