package protocol

import (
	"errors"
	"runtime"
	"sync"
)

// HeadBytes is the size of what precedes the messages of a frame; see Stream.
const HeadBytes = 5

// maxIdleBuffer bounds the buffers that are kept for the next messages, in bytes.
const maxIdleBuffer = 256 << 10

// An Outbox collects the encoded messages of many sessions, which one goroutine sends
// together, because a frame costs more than what is in it.
type Outbox[M any] struct {
	encode func([]byte, M) ([]byte, error)
	wake   chan struct{} // capacity 1: there are messages
	room   chan struct{} // capacity 1: there is room for more

	mu    sync.Mutex
	frame []byte // room for the head, and the messages; guarded by mu
	count int    // messages in frame; guarded by mu
	held  bool   // between Hold and Release; guarded by mu
	due   int    // sessions that are likely to add a message soon; guarded by mu
	spare []byte // for the next frame; guarded by mu
}

// NewOutbox returns an Outbox. encode appends a message to a frame.
func NewOutbox[M any](encode func([]byte, M) ([]byte, error)) *Outbox[M] {
	return &Outbox[M]{encode: encode, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// ErrOutboxEnded is the error of Add when done is closed.
var ErrOutboxEnded = errors.New("hiqlite: the stream has ended")

// Add queues a message. It waits while the other side does not take the messages that are
// queued, until done is closed. The message is encoded before Add returns.
func (o *Outbox[M]) Add(m M, done <-chan struct{}) error {
	for waited := false; ; waited = true {
		o.mu.Lock()
		added, err := o.add(m)
		o.mu.Unlock()
		if waited && (added || err != nil) {
			notify(o.room) // there may be room for another one that waits
		}
		if added || err != nil {
			return err
		}
		select {
		case <-o.room:
		case <-done:
			return ErrOutboxEnded
		}
	}
}

// TryAdd is Add without waiting. It returns false if there is no room.
func (o *Outbox[M]) TryAdd(m M) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.add(m)
}

// add encodes a message, if the frame has room for it. The caller holds mu.
func (o *Outbox[M]) add(m M) (bool, error) {
	if o.count == 0 {
		o.frame = append(o.frame[:0], make([]byte, HeadBytes)...)
	}
	frame, err := o.encode(o.frame, m)
	if err != nil {
		return false, err
	}
	if o.count > 0 && len(frame)-HeadBytes > LinkBytes {
		return false, nil
	}
	o.frame = frame
	if o.count++; o.count == 1 && !o.held {
		notify(o.wake)
	}
	return true, nil
}

// Hold keeps Run from sending until Release is called. The goroutine that is about to
// wake many sessions calls it, so that what they answer is sent together. It must not
// wait for anything before it calls Release.
func (o *Outbox[M]) Hold() {
	o.mu.Lock()
	o.held = true
	o.mu.Unlock()
}

// Release ends Hold. due is how many sessions are likely to add a message soon: Run waits
// for them a little.
func (o *Outbox[M]) Release(due int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held, o.due = false, due
	if o.count > 0 {
		notify(o.wake)
	}
}

// Expect says that so many more messages are likely to be added soon.
func (o *Outbox[M]) Expect(due int) {
	o.mu.Lock()
	o.due = min(o.due+due, maxDue)
	o.mu.Unlock()
}

// maxDue bounds the messages that are said to be due. Some never come.
const maxDue = 64

// Run calls send with one frame after the other, until send fails, done is closed, or
// finish is closed and everything that was queued before has been sent. A frame has
// HeadBytes of room for its head.
func (o *Outbox[M]) Run(done, finish <-chan struct{}, send func(frame []byte) error) error {
	for finishing := false; ; {
		if !finishing {
			select {
			case <-o.wake:
			case <-finish:
				finishing = true
			case <-done:
				return nil
			}
		}
		o.yield()
		frame := o.take(finishing)
		switch {
		case frame != nil:
			if err := send(frame); err != nil {
				return err
			}
			o.giveBack(frame)
		case finishing:
			return nil
		}
	}
}

// Run yields the processor so often, without a new message, before it sends. The second
// bound applies as long as messages are due: it is about the time that a session needs.
const yields, yieldsForDue = 2, 64

// yield lets sessions that can run queue their messages.
func (o *Outbox[M]) yield() {
	last := -1
	for inVain := 0; inVain < yieldsForDue; inVain++ {
		o.mu.Lock()
		count, due := o.count, o.due
		o.mu.Unlock()
		if count != last {
			last, inVain = count, 0
		}
		if inVain >= yields && count >= due {
			return
		}
		runtime.Gosched()
	}
}

// take returns what is queued, or nil. While the Outbox is held, nothing is taken, unless
// it is the last time.
func (o *Outbox[M]) take(last bool) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count == 0 || o.held && !last {
		return nil
	}
	frame := o.frame
	o.frame, o.spare, o.due, o.count = o.spare[:0], nil, max(0, o.due-o.count), 0
	notify(o.room)
	return frame
}

// giveBack makes a frame that was sent the spare one.
func (o *Outbox[M]) giveBack(frame []byte) {
	if cap(frame) > maxIdleBuffer {
		return
	}
	o.mu.Lock()
	o.spare = frame
	o.mu.Unlock()
}

// notify fills a channel of capacity 1.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
