package cluster

import (
	"context"
	"errors"
	"testing"
)

// Calls that wait at the same time share a request, which begins after all of them.
func TestSharedReads(t *testing.T) {
	type request struct {
		ctx    context.Context
		answer chan error
	}
	requests := make(chan request)
	reads := sharedReads{ctx: t.Context(), ask: func(ctx context.Context) error {
		r := request{ctx, make(chan error)}
		requests <- r
		return <-r.answer
	}}
	call := func(n int) []*sharedRead {
		calls := make([]*sharedRead, n)
		for i := range calls {
			calls[i] = reads.join()
		}
		return calls
	}
	wait := func(calls []*sharedRead, want error) {
		t.Helper()
		for _, r := range calls {
			<-r.done
			if !errors.Is(r.err, want) {
				t.Errorf("%v, want %v", r.err, want)
			}
			reads.leave(r)
		}
	}
	first := call(1)
	one := <-requests
	second := call(100) // none of them may get the first answer
	for _, r := range second {
		if r != second[0] || r == first[0] {
			t.Fatal("calls at the same time do not share one request, or share one that began before")
		}
	}
	two := <-requests // though the first is not answered: its answer may be far away
	third := call(3)
	two.answer <- nil
	wait(second, nil)
	failure := errors.New("failure")
	one.answer <- failure
	wait(first, failure)
	three := <-requests
	for _, r := range third {
		select {
		case <-three.ctx.Done():
			t.Fatal("a request that is waited for was cancelled")
		default:
		}
		reads.leave(r)
	}
	<-three.ctx.Done() // nobody waits any more
	three.answer <- nil

	// A request that everybody has left before it began is not made.
	blocked := call(1)
	four := <-requests
	for _, r := range call(2) {
		reads.leave(r)
	}
	four.answer <- nil
	wait(blocked, nil)
	last := call(1)
	five := <-requests
	five.answer <- nil
	wait(last, nil)
}
