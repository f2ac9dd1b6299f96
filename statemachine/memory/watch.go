package memory

import (
	"errors"
	"strings"
	"sync"

	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/table"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// An Event is a change of a bucket.
type Event struct {
	Kind    shardapi.EventKind
	Key     string    // "": of a whole bucket
	Value   string    // that was written
	Version uint64    // of the change: if something was written, the entry's
	Seen    wire.Seen // what has to be applied before it is told
}

const (
	// watchEvents and watchBytes bound what waits for a watcher that is slow,
	// as events and as bytes of their entries.
	watchEvents = 4096
	watchBytes  = 16 << 20
)

// ErrLagged says that a reader was so slow that what it had not read is gone.
var ErrLagged = errors.New("hiqlite: lagged")

// A Watcher gets the changes of a bucket, in order.
type Watcher struct {
	kv     *KV
	bucket string
	text   string // of the key, or with which it begins
	prefix bool
	ready  chan struct{} // capacity 1: there is something

	mu     sync.Mutex
	events []Event
	bytes  int
	lagged bool
}

// Watch returns a watcher of the changes from now on to a key, or to those that
// begin alike. The caller must Close it.
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

// Close ends the watcher. Idempotent.
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

// emit tells who watches of an item that was written or removed; nil: all of the
// bucket were. The caller holds k.mu.
func (k *KV) emit(bucket string, kind shardapi.EventKind, i *table.Item) {
	watchers := k.watchers[bucket]
	if len(watchers) == 0 {
		return
	}
	e := Event{Kind: kind, Version: k.revision, Seen: k.seen}
	if i != nil {
		// Not the item, which would keep its neighbours in the table, nor a part
		// of its value, which a program that keeps the key would keep.
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
	if len(w.events) == watchEvents || w.bytes > watchBytes && len(w.events) > 0 {
		w.lag()
		return
	}
	w.events = append(w.events, e)
	w.signal()
}

// lag gives up what is not read: some of what follows is missing. The caller
// holds w.mu.
func (w *Watcher) lag() {
	w.events, w.bytes, w.lagged = nil, 0, true
	w.signal()
}

// fail makes Next return ErrLagged.
func (w *Watcher) fail() {
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

// Next returns the next events without waiting, or none if there are none yet;
// Ready tells when to call it again. ErrLagged is the last thing it says.
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

// Ready returns a channel that gets a value when there may be something for the
// one who calls Next.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// matches reports that name is text, or begins with it.
func matches(name, text string, prefix bool) bool {
	return name == text || prefix && strings.HasPrefix(name, text)
}
