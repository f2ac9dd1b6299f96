package statemachine

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// A failure is why a replica had to stop: this machine cannot go on. It is never
// an operation's result. What is being applied waits until the replica has been
// stopped, and is applied when it is started again.
type failure struct {
	once    sync.Once
	why     atomic.Pointer[error]
	tell    func(error)   // stops the replica
	stopped chan struct{} // closed when tell has returned
}

func newFailure(tell func(error)) failure {
	return failure{tell: tell, stopped: make(chan struct{})}
}

// Err returns why the replica stopped, or nil.
func (f *failure) Err() error {
	if err := f.why.Load(); err != nil {
		return *err
	}
	return nil
}

// over reports whether the replica has failed, once it has been stopped: what an
// Update leaves out before that counts as applied.
func (f *failure) over() bool {
	if f.Err() == nil {
		return false
	}
	<-f.stopped
	return true
}

// mark makes Err return err at once, unless there is an error already.
func (f *failure) mark(err error) { f.why.CompareAndSwap(nil, &err) }

// Fail stops the replica because this machine cannot go on, and returns when it
// has been: the entry being applied must not be answered, and must not count as
// applied.
func (f *failure) Fail(err error) {
	f.once.Do(func() {
		err = fmt.Errorf("hiqlite: this node's replica stopped: %w", err)
		f.why.Store(&err)
		go func() {
			f.tell(err)
			close(f.stopped)
		}()
	})
	<-f.stopped
}
