package transport

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

const (
	// dialInterval is the time between two attempts to connect. An attempt does not
	// wait for the one before, which may wait for an answer that never comes.
	dialInterval = 100 * time.Millisecond
	// maxAttempts bounds the attempts that are made at the same time.
	maxAttempts = 10
	// refusedInterval is the time between two attempts while the other node refuses
	// this one.
	refusedInterval = time.Second
	// bulkInterval is the time between two attempts of the bulk lane, which is also
	// woken when the urgent lane has been connected.
	bulkInterval = time.Second
)

// The states of a lane:
//
//	state        what it means                            what ends it
//	connecting   attempts to connect are made, at once    an attempt succeeds: connected. The other
//	             and then every dialInterval, each of      attempts are given up
//	             which looks up the name
//	connected    queued messages are sent                  the other side has closed the connection or
//	                                                       is silent for dialledSilence, or writing
//	                                                       fails: connecting
//	closed       the transport is closed
//
// While a lane is not connected, messages with entries are dropped, and Raft is told
// that they were not sent. Others wait, for at most maxQueued. When the other node
// makes a connection to this one, a lane that is not connected makes an attempt at
// once.

// run is the goroutine of a lane.
func (q *queue) run() {
	for {
		c := q.connect()
		if c == nil {
			return
		}
		q.l.refusal.Store(nil)
		q.connected(c)
		if q.lane == urgentLane {
			q.l.bulk.wake()
		}
		q.sendQueued(c)
		lost := q.disconnected()
		q.l.t.peers.remove(c)
		if q.l.t.ctx.Err() != nil {
			return
		}
		if q.lane == bulkLane {
			q.l.unreachable(append(lost, q.l.sentTo()...))
		}
	}
}

// sentTo returns a message, without its content, for each replica of the node that
// was sent entries.
func (l *link) sentTo() (all []raftpb.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for to, from := range l.replicas {
		all = append(all, raftpb.Message{ShardID: to.ShardID, To: to.ReplicaID, From: from})
	}
	return all
}

// connect makes attempts until one succeeds. It returns nil when the transport is
// closed.
func (q *queue) connect() *conn {
	t := q.l.t
	ctx, giveUp := context.WithCancel(t.ctx)
	defer giveUp()
	type result struct {
		c   *conn
		err error
	}
	results := make(chan result)
	pending, attempt := 0, 0
	try := func() {
		addresses := q.l.addresses()
		address := addresses[attempt%len(addresses)]
		attempt++
		if t.spawn(func() {
			c, err := t.dial(ctx, q.l.node, address, q.lane)
			if err != nil && authentication(err) {
				q.l.forget(address)
			}
			select {
			case results <- result{c, err}:
			case <-ctx.Done(): // another attempt was successful, or the transport is closed
				if c != nil {
					t.peers.remove(c)
				}
			}
		}) {
			pending++
		}
	}
	interval := dialInterval
	if q.lane == bulkLane {
		interval = bulkInterval
	}
	timer := time.NewTimer(interval)
	defer timer.Stop()
	try()
	for {
		select {
		case r := <-results:
			pending--
			if r.err == nil {
				t.opts.Dialled(q.l.node, nil)
				return r.c
			}
			if q.failed(r.err) && len(q.l.addresses()) == 1 {
				timer.Reset(refusedInterval)
			}
		case <-timer.C:
			timer.Reset(interval)
			if pending < maxAttempts {
				try()
			}
		case <-q.kick:
			if pending < maxAttempts {
				try()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// failed is called when an attempt to connect has failed. It reports whether the
// next one should wait.
func (q *queue) failed(err error) (wait bool) {
	t := q.l.t
	if t.ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return false
	}
	var refused *refusedError
	var refusal *Refusal
	switch {
	case errors.As(err, &refused):
		q.l.refused(refused)
		wait = true
	case errors.As(err, &refusal): // this node refuses the other one
		t.gate.refused(peerAddr{q.l.node}, err)
		wait = true
	case authentication(err):
		t.gate.refused(peerAddr{q.l.node}, err)
		wait = true
	}
	t.opts.Dialled(q.l.node, err)
	return wait
}

// sendQueued sends what is queued until the connection ends.
func (q *queue) sendQueued(c *conn) {
	t := q.l.t
	defer context.AfterFunc(t.ctx, c.close)()
	if !t.spawn(func() { q.watch(c) }) {
		c.close()
		return
	}
	timer := time.NewTimer(aliveInterval)
	defer timer.Stop()
	var all []raftpb.Message
	for {
		clear(all)
		if all = q.takeMessages(all[:0]); len(all) == 0 {
			select {
			case <-q.added:
				continue
			case <-c.done:
				return
			case <-timer.C:
				timer.Reset(aliveInterval)
				if t.writeAlive(c) != nil {
					c.close()
				}
				continue
			}
		}
		batch := *q.l.header.Load()
		batch.Requests = all
		if q.lane == bulkLane {
			q.l.remember(all)
		}
		if c.out.write(batchFrame, &batch) != nil {
			c.close()
			return
		}
	}
}

// remember notes which replicas are sent entries.
func (l *link) remember(all []raftpb.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range all {
		if m := &all[i]; m.Type == raftpb.Replicate {
			l.replicas[raftio.GetNodeInfo(m.ShardID, m.To)] = m.From
		}
	}
}

// watch reads from a connection that this node has dialled, to notice when it ends
// or falls silent.
func (q *queue) watch(c *conn) {
	defer c.close()
	for {
		kind, payload, err := c.in.next(dialledSilence)
		if err != nil {
			return
		}
		switch kind {
		case aliveFrame:
			if !q.l.t.alive(c, payload) {
				return
			}
		case refusalFrame:
			if r, err := readRefusal(payload); err == nil {
				q.l.refused(&refusedError{c.peer, r})
			}
			return
		default:
			return
		}
	}
}

func slicesSorted(members map[uint64]string) (ids []uint64) {
	for id := range members {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
