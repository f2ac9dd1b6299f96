package shardapi

import (
	"maps"
	"slices"
	"sync"
)

// CloseHooks are the functions that were passed to Lock.OnClose. The zero value is ready
// for use.
type CloseHooks struct {
	mu     sync.Mutex
	closed bool              // Close was called; guarded by mu
	serial uint64            // of the last function; guarded by mu
	all    map[uint64]func() // by serial; guarded by mu
}

// OnClose has f called by Close, or in a goroutine of its own if Close was called before.
// forget cancels the call.
func (h *CloseHooks) OnClose(f func()) (forget func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		go f()
		return func() {}
	}
	if h.all == nil {
		h.all = map[uint64]func(){}
	}
	h.serial++
	id := h.serial
	h.all[id] = f
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.all, id)
	}
}

// Close calls the functions, one after the other.
func (h *CloseHooks) Close() {
	h.mu.Lock()
	h.closed = true
	functions := slices.Collect(maps.Values(h.all))
	h.mu.Unlock()
	for _, f := range functions {
		f()
	}
}
