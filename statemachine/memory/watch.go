package memory

import (
	"cmp"
	"errors"
	"slices"
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

// Watch returns a watcher of the changes to the key text or, if prefix is set, to all
// keys that begin with it: those from now on or, if after is not nil, those after the
// change with this version. It also returns the version of the last change that the
// watcher does not get. The caller must Close the watcher. ok is false if the machine
// does not have all changes after that version any more, or has no such version yet.
func (k *KV) Watch(bucket, text string, prefix bool, after *uint64) (w *Watcher, version uint64, ok bool) {
	w = &Watcher{kv: k, bucket: bucket, text: text, prefix: prefix, ready: make(chan struct{}, 1)}
	k.mu.Lock()
	defer k.mu.Unlock()
	version = k.revision
	if after != nil {
		version = *after
		if version < k.recent.forgotten || version > k.revision {
			return nil, k.revision, false
		}
		for _, e := range k.recent.after(version) {
			if e.bucket == bucket && (e.Kind == shardapi.Cleared || matches(e.Key, text, prefix)) {
				w.push(e.Event)
			}
		}
	}
	if k.watchers[bucket] == nil {
		k.watchers[bucket] = map[*Watcher]bool{}
	}
	k.watchers[bucket][w] = true
	return w, version, true
}

// recentEvents are the last events of all buckets, so that a remote watcher can
// continue on another node, or after its connection was broken.
type recentEvents struct {
	events    []recentEvent
	bytes     int    // of their keys and values
	forgotten uint64 // version of the last event that is not kept any more
}

type recentEvent struct {
	bucket string
	Event
}

const (
	// maxRecentEvents and maxRecentBytes bound the recent events.
	maxRecentEvents = 4096
	maxRecentBytes  = 4 << 20
)

// add adds an event, and forgets the oldest ones if there are too many.
func (r *recentEvents) add(bucket string, e Event) {
	r.events = append(r.events, recentEvent{bucket, e})
	r.bytes += len(e.Key) + len(e.Value)
	for len(r.events) > maxRecentEvents || r.bytes > maxRecentBytes {
		old := &r.events[0]
		r.bytes -= len(old.Key) + len(old.Value)
		r.forgotten = old.Version
		*old = recentEvent{} // append copies the rest to a new array from time to time
		r.events = r.events[1:]
	}
}

// after returns the events after a version.
func (r *recentEvents) after(version uint64) []recentEvent {
	i, _ := slices.BinarySearchFunc(r.events, version+1, func(e recentEvent, v uint64) int { return cmp.Compare(e.Version, v) })
	return r.events[i:]
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

// emit records an event and passes it to the watchers of its bucket: item i was written
// or removed. If i is nil, the whole bucket was cleared. The caller holds k.mu.
func (k *KV) emit(bucket string, kind shardapi.EventKind, i *table.Item) {
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
	k.recent.add(bucket, e)
	for w := range k.watchers[bucket] {
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
