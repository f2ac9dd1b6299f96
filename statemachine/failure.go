package statemachine

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// A Failure is the reason why a replica had to stop: this machine cannot continue.
// It is never the result of an operation. The entry being applied waits until the
// replica has been stopped, and is applied again after the next start.
type Failure struct {
	once    sync.Once
	why     atomic.Pointer[error]
	stop    func(error)
	stopped chan struct{} // closed when stop has returned
}

// NewFailure returns a Failure that has not happened. If it happens, stop is
// called once, in a goroutine of its own; it stops the replica.
func NewFailure(stop func(error)) *Failure {
	return &Failure{stop: stop, stopped: make(chan struct{})}
}

// Err returns why the replica stopped, or nil.
func (f *Failure) Err() error {
	if err := f.why.Load(); err != nil {
		return *err
	}
	return nil
}

// Stopped returns a channel that is closed when the replica has been stopped
// because of the failure.
func (f *Failure) Stopped() <-chan struct{} { return f.stopped }

// StoppedAfterFailure reports whether the failure has happened. If so, it first
// waits until the replica has been stopped, since entries that an Update skips
// before that would count as applied.
func (f *Failure) StoppedAfterFailure() bool {
	if f.Err() == nil {
		return false
	}
	<-f.stopped
	return true
}

// Mark makes Err return err at once, unless there is an error already. It does not
// stop the replica.
func (f *Failure) Mark(err error) { f.why.CompareAndSwap(nil, &err) }

// Fail stops the replica because this machine cannot continue, and returns when the
// replica has been stopped. The caller is applying an entry which must neither be
// answered nor count as applied, so it must not return before that.
func (f *Failure) Fail(err error) {
	f.once.Do(func() {
		err = fmt.Errorf("hiqlite: this node's replica stopped: %w", err)
		f.why.Store(&err)
		go func() {
			f.stop(err)
			close(f.stopped)
		}()
	})
	<-f.stopped
}
