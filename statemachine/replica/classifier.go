package replica

import (
	"sync"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A classifier prepares texts to find out what they would do. It has a connection of its
// own, because a write must not wait for a reader: its program may hold all of them.
type classifier struct {
	mu    sync.Mutex
	conn  *sqlite.Conn
	epoch uint64
}

// Classify finds out what a text would do on a connection with these settings, given the
// present schema of this replica. It takes microseconds, so it takes no context.
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

// refresh makes the connection load the schema again, if it has changed. During prepare,
// SQLite does so by itself if a table is missing, but not if ALTER TABLE names a new
// column or CREATE a table that was dropped. Running any statement does it, too.
func (c *classifier) refresh() error {
	return c.conn.Exec(verifySchema)
}

// First classifies the first statement of a script, and returns the rest of the script.
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
	if part, rest, err = c.conn.ClassifyFirst(script); err == nil {
		return part, rest, nil
	}
	if err := c.refresh(); err != nil {
		return part, "", err
	}
	return c.conn.ClassifyFirst(script)
}

// connect opens the database of the generation in use, if that is not open, and switches
// the connection to settings.
func (c *classifier) connect(p *pool, settings wire.Settings) error {
	if err := c.open(p); err != nil {
		return err
	}
	return c.conn.SetSettings(settings)
}

func (c *classifier) open(p *pool) error {
	p.mu.Lock() // held while the file is opened, so that no snapshot replaces it
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
