package transport

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
)

const (
	// aliveInterval is how often a side of a lane sends something, so that the other
	// side sees that it lives.
	aliveInterval = 200 * time.Millisecond
	// dialledSilence is the silence after which a node dials the other one anew.
	dialledSilence = time.Second
	// acceptedSilence is the silence after which the accepting side frees what a
	// connection takes.
	acceptedSilence = 5 * time.Second
)

// A queue has the messages that wait to be sent on a lane, in order. connect.go has
// the goroutine that sends them.
type queue struct {
	l     *link
	lane  lane
	limit int           // of bytes
	kick  chan struct{} // holds an element when the node should be dialled at once
	added chan struct{} // holds an element when the goroutine should look at all

	conn atomic.Pointer[conn] // the connection; nil: there is none

	mu    sync.Mutex
	all   []queued // guarded by mu
	bytes int      // size of all; guarded by mu
}

// queued is a message that waits.
type queued struct {
	m    raftpb.Message
	size int
	at   time.Time
}

func newQueue(l *link, as lane, limit int) *queue {
	return &queue{l: l, lane: as, limit: limit, kick: make(chan struct{}, 1), added: make(chan struct{}, 1)}
}

// isUp reports whether the lane has a connection on which the other side is not
// silent.
func (q *queue) isUp() bool {
	c := q.conn.Load()
	return c != nil && c.received() > sinceStart(time.Now().Add(-dialledSilence))
}

// wake lets the goroutine dial at once if there is no connection.
func (q *queue) wake() {
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// add queues messages. It returns those with entries that it had to drop.
func (q *queue) add(all []raftpb.Message) (lost []raftpb.Message) {
	if len(all) == 0 {
		return nil
	}
	now := time.Now()
	q.mu.Lock()
	down := q.conn.Load() == nil
	if down {
		q.dropOld(now)
	}
	for _, m := range all {
		size := m.SizeUpperLimit()
		switch {
		case m.Type == raftpb.Replicate && (down || q.bytes+size > q.limit && len(q.all) > 0):
			lost = append(lost, m)
		case q.bytes+size > q.limit && len(q.all) > 0:
		default:
			q.all = append(q.all, queued{m, size, now})
			q.bytes += size
		}
	}
	q.mu.Unlock()
	select {
	case q.added <- struct{}{}:
	default:
	}
	return lost
}

// dropOld drops messages that have waited too long. The caller holds mu.
func (q *queue) dropOld(now time.Time) {
	n := 0
	for n < len(q.all) && now.Sub(q.all[n].at) > maxQueued {
		q.bytes -= q.all[n].size
		n++
	}
	q.all = append(q.all[:0:0], q.all[n:]...)
}

// takeMessages appends the next messages for a frame to all. The rest stays.
func (q *queue) takeMessages(all []raftpb.Message) []raftpb.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.all) && (n == 0 || size < splitFrame) {
		size += q.all[n].size
		all = append(all, q.all[n].m)
		n++
	}
	q.bytes -= size
	clear(q.all[:n]) // the entries are not kept in memory
	if n == len(q.all) {
		q.all = q.all[:0]
	} else {
		q.all = q.all[n:]
	}
	return all
}

// connected is called when the lane has a new connection: what has waited for too
// long is not sent any more.
func (q *queue) connected(c *conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropOld(time.Now())
	q.conn.Store(c)
}

// disconnected is called when the connection has ended. It drops, and returns,
// messages with entries: those before them were lost.
func (q *queue) disconnected() (lost []raftpb.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.conn.Store(nil)
	kept := q.all[:0:0]
	q.bytes = 0
	for _, e := range q.all {
		if e.m.Type == raftpb.Replicate {
			lost = append(lost, e.m)
		} else {
			kept = append(kept, e)
			q.bytes += e.size
		}
	}
	q.all = kept
	return lost
}
