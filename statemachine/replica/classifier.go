package replica

import (
	"sync"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// classifier prepares texts to find out what they do. It has a connection of
// its own: a write must not wait for readers, all of which its own program may
// hold open.
type classifier struct {
	mu    sync.Mutex
	conn  *sqlite.Conn
	epoch uint64
}

// Classify finds out which way a text goes on a connection of these settings, as
// this replica understands it now. Preparing takes microseconds, so it takes no
// context.
func (r *SQL) Classify(text string, settings wire.Settings) (sqlite.Class, error) {
	if err := r.Err(); err != nil {
		return sqlite.Class{}, err
	}
	c := &r.classifier
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connect(r.pool, settings); err != nil {
		return sqlite.Class{}, err
	}
	class, err := c.conn.Classify(text)
	if err == nil {
		return class, nil
	}
	if err := c.refresh(); err != nil {
		return sqlite.Class{}, err
	}
	return c.conn.Classify(text)
}

// refresh makes the connection know the schema: it may remember an older one.
// SQLite looks for a newer one if a table is missing, but not if ALTER TABLE
// names a new column, or CREATE a table that was dropped: a statement that runs
// does.
func (c *classifier) refresh() error {
	return c.conn.Exec(verifySchema)
}

// First classifies the first statement of a script, and returns what is behind
// it.
func (r *SQL) First(script string, settings wire.Settings) (part sqlite.Part, rest string, err error) {
	if err := r.Err(); err != nil {
		return part, "", err
	}
	c := &r.classifier
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connect(r.pool, settings); err != nil {
		return part, "", err
	}
	if part, rest, err = c.conn.First(script); err == nil {
		return part, rest, nil
	}
	if err := c.refresh(); err != nil {
		return part, "", err
	}
	return c.conn.First(script)
}

// connect opens the database in use, again after it was exchanged, and prepares
// under settings from now on.
func (c *classifier) connect(p *pool, settings wire.Settings) error {
	if err := c.open(p); err != nil {
		return err
	}
	return c.conn.SetSettings(settings)
}

func (c *classifier) open(p *pool) error {
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
	conn, err := p.connect(file, sqlite.ReadOnly)
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
