package replica

import (
	"errors"

	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// tempUse is what a transaction has to do with TEMP objects.
type tempUse struct {
	used     bool // there are some, or were
	recorded bool // a statement that was recorded uses some
	changed  bool // one may have changed some
	others   bool // one may have changed anything else
}

// beginTemp gives the connection the TEMP objects that its caller has.
func (t *Transaction) beginTemp() error {
	t.conn.AllowTemp(true)
	if t.opts.Temp == nil {
		return nil
	}
	t.temp.used, t.dirty = true, true
	if err := t.conn.BoundTemp(); err != nil {
		return err
	}
	if err := t.conn.LoadTemp(t.opts.Temp); err != nil {
		return err
	}
	t.conn.SetState(t.opts.Changes, t.opts.TotalChanges, t.opts.LastInsertID)
	return nil
}

// useTemp notes what a statement that writes has to do with TEMP objects.
func (t *Transaction) useTemp(stmt *sqlite.Stmt) error {
	uses := stmt.UsesTemp()
	if uses && !t.temp.used {
		t.temp.used, t.dirty = true, true
		if err := t.conn.BoundTemp(); err != nil {
			return t.reason(err)
		}
	}
	changed, others := stmt.Changes()
	t.temp.recorded = t.temp.recorded || uses
	t.temp.changed = t.temp.changed || changed
	t.temp.others = t.temp.others || others
	return nil
}

// HasTemp reports that there are TEMP objects, or were: what a text does depends
// on them.
func (t *Transaction) HasTemp() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.temp.used
}

// Temp returns the TEMP objects as the transaction leaves them, nil if there are
// none, and whether it has changed them.
func (t *Transaction) Temp() (content []byte, changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil || !t.temp.changed {
		return nil, false, err
	}
	content, err = t.conn.DumpTemp()
	return content, true, t.reason(err)
}

// explainFull makes the error of a statement say that TEMP objects are bounded.
func explainFull(stmt *sqlite.Stmt, err error) {
	var e *sqlite.Error
	if errors.As(err, &e) {
		stmt.ExplainFull(e)
	}
}

// Written reports that statements were recorded, whatever they write.
func (t *Transaction) Written() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rec.Len() > 0
}
