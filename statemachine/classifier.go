package statemachine

import (
	"sync"

	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// classifier prepares texts to find out what they do. It has a connection of
// its own: a write must not wait for readers, all of which its own program may
// hold open.
type classifier struct {
	mu    sync.Mutex
	conn  *sqlite.Conn
	epoch uint64
}

// Classify finds out which way a text goes, as this replica understands it now.
// Preparing takes microseconds, so it takes no context.
func (r *SQL) Classify(text string) (sqlite.Class, error) {
	if err := r.Err(); err != nil {
		return sqlite.Class{}, err
	}
	c := &r.classifier
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connect(r.pool); err != nil {
		return sqlite.Class{}, err
	}
	class, err := c.conn.Classify(text)
	if err == nil {
		return class, nil
	}
	// The connection may remember an older schema. SQLite looks for a newer one
	// if a table is missing, but not if ALTER TABLE names a new column, or
	// CREATE a table that was dropped: a statement that runs does.
	if err := c.conn.Exec("SELECT 1 FROM " + sqlite.MetaTable + " LIMIT 1"); err != nil {
		return sqlite.Class{}, err
	}
	return c.conn.Classify(text)
}

// connect opens the database in use, again after it was exchanged.
func (c *classifier) connect(p *pool) error {
	p.mu.Lock() // held while it is opened: the file stays where it is
	defer p.mu.Unlock()
	file, epoch := p.file, p.epoch
	if c.conn != nil && c.epoch == epoch && file != "" {
		return nil
	}
	c.closeConn()
	if file == "" {
		return ErrReplicaClosed
	}
	conn, err := sqlite.Open(file, sqlite.ReadOnly)
	if err != nil {
		return err
	}
	c.conn, c.epoch = conn, epoch
	return nil
}

func (c *classifier) closeConn() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *classifier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeConn()
}
