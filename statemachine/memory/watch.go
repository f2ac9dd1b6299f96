package memory

import (
	"errors"
	"strings"
	"sync"

	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/table"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// An Event is a change of an entry or of a whole bucket.
type Event struct {
	Kind    shardapi.EventKind
	Key     string    // "": the whole bucket was cleared
	Value   string    // what was written
	Version uint64    // the revision of the change; of a written entry, its version
	Seen    wire.Seen // what the node has to have applied before it delivers the event
}

const (
	// maxPendingEvents and maxPendingBytes bound the events that a slow watcher has
	// not yet read, and the bytes of their keys and values.
	maxPendingEvents = 4096
	maxPendingBytes  = 16 << 20
)

// ErrLagged says that events or messages were dropped because their reader was too
// slow, or because the state was replaced by a snapshot.
var ErrLagged = errors.New("hiqlite: lagged")

// A Watcher receives the changes of a key, or of keys with a prefix, in the order in
// which they were applied, without gaps until it lags.
type Watcher struct {
	kv     *KV
	bucket string
	text   string // the key, or its prefix
	prefix bool
	ready  chan struct{} // capacity 1: has a value when Next has something to return

	mu     sync.Mutex
	events []Event
	bytes  int
	lagged bool
}

// Watch returns a watcher of the changes from now on to the key text or, if prefix is
// set, to all keys that begin with it. The caller must Close it.
func (k *KV) Watch(bucket, text string, prefix bool) *Watcher {
	w := &Watcher{kv: k, bucket: bucket, text: text, prefix: prefix, ready: make(chan struct{}, 1)}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.watchers[bucket] == nil {
		k.watchers[bucket] = map[*Watcher]bool{}
	}
	k.watchers[bucket][w] = true
	return w
}

// Close ends the watcher. It may be called more than once.
func (w *Watcher) Close() {
	k := w.kv
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.watchers[w.bucket][w] {
		return
	}
	if delete(k.watchers[w.bucket], w); len(k.watchers[w.bucket]) == 0 {
		delete(k.watchers, w.bucket)
	}
}

// emit gives watchers the event that an item was written or removed; a nil item
// stands for the whole bucket. The caller holds k.mu.
func (k *KV) emit(bucket string, kind shardapi.EventKind, i *table.Item) {
	watchers := k.watchers[bucket]
	if len(watchers) == 0 {
		return
	}
	e := Event{Kind: kind, Version: k.revision, Seen: k.seen}
	if i != nil {
		// An event must not refer to the item, which would keep its neighbours in
		// the table in memory. The key shares the memory of the value, so it is
		// copied: a program may keep it for long.
		e.Key = strings.Clone(i.Key())
		if kind == shardapi.Written {
			e.Value = i.Value()
		}
	}
	for w := range watchers {
		if i == nil || matches(e.Key, w.text, w.prefix) {
			w.push(e)
		}
	}
}

func (w *Watcher) push(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lagged {
		return
	}
	w.bytes += len(e.Key) + len(e.Value)
	if len(w.events) == maxPendingEvents || w.bytes > maxPendingBytes && len(w.events) > 0 {
		w.lag()
		return
	}
	w.events = append(w.events, e)
	w.signal()
}

// lag drops the unread events and makes Next return ErrLagged from now on. The caller
// holds w.mu.
func (w *Watcher) lag() {
	w.events, w.bytes, w.lagged = nil, 0, true
	w.signal()
}

// markLagged is lag for a caller that does not hold w.mu.
func (w *Watcher) markLagged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lag()
}

func (w *Watcher) signal() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// Next returns the unread events. It does not wait: if there are none it returns none,
// and Ready says when to call it again. Once it has returned ErrLagged, it always does.
func (w *Watcher) Next() ([]Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lagged {
		return nil, ErrLagged
	}
	events := w.events
	w.events, w.bytes = nil, 0
	return events, nil
}

// Ready returns a channel that receives a value when Next may have something to
// return.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// matches reports whether name is text or, with prefix, begins with text.
func matches(name, text string, prefix bool) bool {
	return name == text || prefix && strings.HasPrefix(name, text)
}
