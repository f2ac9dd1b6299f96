package hiqlite

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

// maxClassBytes bounds the texts whose class is kept. Some programs write their
// values into the text, and so a new one for each row.
const maxClassBytes = 8 << 20

// classes keeps what is known of texts. A class depends on nothing but its text
// and the connection's settings, so it is good for ever.
type classes struct {
	mu     sync.RWMutex
	byText map[string]*sqlite.Class
	bytes  int
}

func (c *classes) get(text string) *sqlite.Class {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byText[text]
}

func (c *classes) put(text string, class *sqlite.Class) {
	const overhead = 200
	if len(text) > maxClassBytes/64 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byText == nil || c.bytes+len(text)+overhead > maxClassBytes {
		c.byText, c.bytes = map[string]*sqlite.Class{}, 0
	}
	c.byText[text] = class
	c.bytes += len(text) + overhead
}

// staleWait bounds how long a text waits that this node does not understand
// because a table may not have arrived yet: since it came, or since there is no
// leader who could say, whichever is earlier. An election takes less.
const staleWait = 2 * time.Second

// classify finds out which way a text goes.
func (n *Node) classify(ctx context.Context, text string, settings wire.Settings) (*sqlite.Class, error) {
	return n.classifyBy(ctx, text, func(text string) (*sqlite.Class, error) { return n.classifyHere(text, settings) })
}

// classifyBy is classify, by what classify knows now.
func (n *Node) classifyBy(ctx context.Context, text string, classify func(string) (*sqlite.Class, error)) (*sqlite.Class, error) {
	class, err := classify(text)
	if mayBeStale(err) {
		// "no such table" may only mean that this replica is behind.
		behind := n.catchUp(ctx)
		if class, err = classify(text); mayBeStale(err) && behind != nil {
			return nil, unsure(err, behind)
		}
	}
	if err != nil {
		return nil, readError(ctx, err)
	}
	return class, nil
}

// catchUp waits until this replica has applied what was acknowledged before, as
// long as there is a leader to tell, or there can soon be one.
func (n *Node) catchUp(ctx context.Context) error {
	patience := staleWait - n.shard.Leaderless()
	if patience <= 0 {
		return ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return n.shard.ReadIndex(ctx)
}

// unsure is an error that a newer schema could make go away, on a node that
// could not find out whether there is one.
func unsure(err, behind error) error {
	e, ok := sqlError(err).(*Error)
	if !ok {
		return sqlError(err)
	}
	e.Hint = "this node could not find out whether it is behind: " + strings.TrimPrefix(behind.Error(), "hiqlite: ")
	return e
}

// classifyHere is classify by what this replica knows now.
func (n *Node) classifyHere(text string, settings wire.Settings) (*sqlite.Class, error) {
	key := text
	if settings != 0 {
		key = fmt.Sprintf("\x00%x\x00%s", settings, text) // no text that has a class begins so
	}
	if class := n.classes.get(key); class != nil {
		return class, nil
	}
	class, err := n.replica.Classify(text, settings)
	if err != nil {
		return nil, err
	}
	n.classes.put(strings.Clone(key), &class)
	return &class, nil
}

// mayBeStale reports an error that a newer schema could make go away.
func mayBeStale(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == sqlite.CodeError && e.Hint == "" && !sqlite.IsSyntaxError(e)
}
