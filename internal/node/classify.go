package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxClassBytes bounds the texts in a classCache. Some programs write their values
// into the SQL text, and so make a new text for each row.
const maxClassBytes = 8 << 20

// A classCache keeps the classes of SQL texts. A class depends on nothing but its
// text and the connection's settings, so it never becomes stale. The cache is
// emptied when it is full.
type classCache struct {
	mu    sync.RWMutex
	byKey map[string]*sqlite.Class
	bytes int
}

func (c *classCache) get(key string) *sqlite.Class {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byKey[key]
}

func (c *classCache) put(key string, class *sqlite.Class) {
	const overhead = 200 // bytes of an entry, beside its key
	if len(key) > maxClassBytes/64 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil || c.bytes+len(key)+overhead > maxClassBytes {
		c.byKey, c.bytes = map[string]*sqlite.Class{}, 0
	}
	c.byKey[key] = class
	c.bytes += len(key) + overhead
}

// staleWait bounds how long Classify waits for entries that may create a table
// which is not known here. It counts from the call, or from when the shard lost its
// leader if that is earlier. An election takes less.
const staleWait = 2 * time.Second

// Classify returns the class of a text: how it has to be run. If the text names
// something that does not exist, Classify first waits until this node has applied
// what was acknowledged before the call.
func (n *Node) Classify(ctx context.Context, text string, settings wire.Settings) (*sqlite.Class, error) {
	return n.ClassifyBy(ctx, text, func(text string) (*sqlite.Class, error) { return n.ClassifyNow(text, settings) })
}

// ClassifyBy is Classify with another function in the place of ClassifyNow.
func (n *Node) ClassifyBy(ctx context.Context, text string, classify func(string) (*sqlite.Class, error)) (*sqlite.Class, error) {
	class, err := classify(text)
	if !MayBeStale(err) {
		return class, err
	}
	behind := n.catchUp(ctx)
	class, err = classify(text)
	var e *wire.Error
	if behind != nil && MayBeStale(err) && errors.As(err, &e) {
		stale := *e
		stale.Hint = "this node could not find out whether it is behind: " + strings.TrimPrefix(behind.Error(), "hiqlite: ")
		return nil, &stale
	}
	return class, err
}

// catchUp waits until this node has applied what was acknowledged before, unless
// the shard has had no leader for long.
func (n *Node) catchUp(ctx context.Context) error {
	wait := staleWait - n.sql.raft.Leaderless()
	if wait <= 0 {
		return ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return n.sql.raft.ReadIndex(ctx)
}

// ClassifyNow is Classify by the schema that this node has now.
func (n *Node) ClassifyNow(text string, settings wire.Settings) (*sqlite.Class, error) {
	key := text
	if settings != 0 {
		key = fmt.Sprintf("\x00%x\x00%s", settings, text) // a text that has a class never begins with NUL
	}
	if class := n.classes.get(key); class != nil {
		return class, nil
	}
	class, err := n.sql.machine.Classify(text, settings)
	if err != nil {
		return nil, err
	}
	n.classes.put(strings.Clone(key), &class)
	return &class, nil
}

// MayBeStale reports whether a newer schema could make an error of Classify go
// away.
func MayBeStale(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == sqlite.CodeError && e.Hint == "" && !sqlite.IsSyntaxError(e)
}
