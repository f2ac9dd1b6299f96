package replica

import (
	"strings"

	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// maxCachedStmts and maxCachedBytes bound a stmtCache: the statements, and the bytes of
// their texts. Some programs write a new text for each row.
const (
	maxCachedStmts = 512
	maxCachedBytes = 4 << 20
)

// A stmtCache keeps prepared statements of one connection by their text. That of the
// apply connection is cleared whenever the schema or the statistics change: SQLite would
// prepare its statements again by itself, and then count their steps differently than on
// replicas that have not cached them.
type stmtCache struct {
	conn   *sqlite.Conn
	byText map[string]*cachedStmt
	bytes  int
	uses   uint64 // of statements; orders them by their last use
}

// A cachedStmt is a prepared statement that is alone in its text.
type cachedStmt struct {
	*sqlite.Stmt
	text string
	used uint64 // uses of the cache, at the last use of this statement
	busy bool   // a cursor runs it: it must not be closed
	gone bool   // it has left the cache: the cursor closes it
}

func newStmtCache(conn *sqlite.Conn) *stmtCache {
	return &stmtCache{conn: conn, byText: map[string]*cachedStmt{}}
}

// get returns the cached statement of text, or nil.
func (p *stmtCache) get(text string) *cachedStmt {
	found := p.byText[text]
	if found != nil {
		p.uses++
		found.used = p.uses
	}
	return found
}

// keep adds a statement that is alone in text. It copies text.
func (p *stmtCache) keep(text string, stmt *sqlite.Stmt) *cachedStmt {
	if len(p.byText) >= maxCachedStmts || p.bytes+len(text) > maxCachedBytes {
		p.evict()
	}
	p.uses++
	text = strings.Clone(text)
	found := &cachedStmt{Stmt: stmt, text: text, used: p.uses}
	p.byText[text] = found
	p.bytes += len(text)
	return found
}

// evict closes the half of the statements that has been unused for longest.
func (p *stmtCache) evict() {
	p.drop(p.uses - uint64(len(p.byText))/2)
	if len(p.byText) >= maxCachedStmts || p.bytes > maxCachedBytes {
		p.dropIdle()
	}
}

// dropIdle closes all statements that no cursor runs.
func (p *stmtCache) dropIdle() { p.drop(p.uses) }

// drop closes the statements that were last used at limit or before and are not busy.
func (p *stmtCache) drop(limit uint64) {
	for text, found := range p.byText {
		if found.used <= limit && !found.busy {
			found.Close()
			delete(p.byText, text)
			p.bytes -= len(text)
		}
	}
}

// remove takes a statement out of the cache. The caller closes it.
func (p *stmtCache) remove(found *cachedStmt) {
	if p.byText[found.text] == found {
		delete(p.byText, found.text)
		p.bytes -= len(found.text)
	}
}

// removeAll empties the cache. It closes the statements, except those that a cursor runs:
// the cursor closes these.
func (p *stmtCache) removeAll() {
	for _, found := range p.byText {
		if found.busy {
			found.gone = true
		} else {
			found.Close()
		}
	}
	clear(p.byText)
	p.bytes = 0
}

// clear closes all statements. None may be busy.
func (p *stmtCache) clear() {
	for _, found := range p.byText {
		found.Close()
	}
	clear(p.byText)
	p.bytes = 0
}
