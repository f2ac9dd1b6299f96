package process

import (
	"container/heap"
	"math/rand/v2"
	"sync"
	"time"
)

// Conditions are what happens to the packets of a VirtualNetwork.
type Conditions struct {
	Delay time.Duration // of each packet, in one direction
	Loss  float64       // the part of the packets that is lost, 0 to 1
}

// A wire decides about each packet: when, and whether, it arrives.
type wire struct {
	mu         sync.Mutex
	conditions Conditions
	cut        map[[2]byte]bool // from host, to host; guarded by mu
	late       lateQueue        // packets that are delayed; guarded by mu
	more       chan struct{}    // holds an element when late has changed
	done       chan struct{}    // closed when the network ends
}

// latePacket is a packet that arrives at a time.
type latePacket struct {
	at   time.Time
	to   byte
	data []byte
}

// lateQueue is a heap, the packet that arrives next first.
type lateQueue []latePacket

func (q lateQueue) Len() int           { return len(q) }
func (q lateQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q lateQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *lateQueue) Push(x any)        { *q = append(*q, x.(latePacket)) }
func (q *lateQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func newWire() *wire {
	return &wire{cut: map[[2]byte]bool{}, more: make(chan struct{}, 1), done: make(chan struct{})}
}

// packet takes a packet. It reports whether it is to be delivered at once.
func (w *wire) packet(from, to byte, data []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut[[2]byte{from, to}] || rand.Float64() < w.conditions.Loss {
		return false
	}
	if w.conditions.Delay == 0 {
		return true
	}
	heap.Push(&w.late, latePacket{time.Now().Add(w.conditions.Delay), to, append([]byte(nil), data...)})
	select {
	case w.more <- struct{}{}:
	default:
	}
	return false
}

// run delivers delayed packets until done is closed.
func (w *wire) run(deliver func(to byte, data []byte)) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.mu.Lock()
		wait := time.Hour
		for len(w.late) > 0 {
			if wait = time.Until(w.late[0].at); wait > 0 {
				break
			}
			p := heap.Pop(&w.late).(latePacket)
			w.mu.Unlock()
			deliver(p.to, p.data)
			w.mu.Lock()
			wait = time.Hour
		}
		w.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-w.more:
		case <-w.done:
			return
		}
	}
}
