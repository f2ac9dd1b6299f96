package replica

import (
	"errors"

	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// A tempUse says how a transaction uses TEMP objects.
type tempUse struct {
	used     bool // the transaction has TEMP objects, or had some
	recorded bool // a recorded statement uses TEMP objects
	changed  bool // a recorded statement may have changed TEMP objects
	others   bool // a recorded statement may have changed anything else
}

// beginTemp creates the TEMP objects of the caller's connection in the view.
func (t *Transaction) beginTemp() error {
	t.conn.AllowTemp(true)
	if t.opts.Temp == nil {
		return nil
	}
	t.temp.used, t.dirty = true, true
	if err := t.conn.LimitTemp(); err != nil {
		return err
	}
	if err := t.conn.LoadTemp(t.opts.Temp); err != nil {
		return err
	}
	t.conn.SetState(t.opts.Changes, t.opts.TotalChanges, t.opts.LastInsertID)
	return nil
}

// useTemp records how a statement that writes uses TEMP objects.
func (t *Transaction) useTemp(stmt *sqlite.Stmt) error {
	uses := stmt.UsesTemp()
	if uses && !t.temp.used {
		t.temp.used, t.dirty = true, true
		if err := t.conn.LimitTemp(); err != nil {
			return t.reason(err)
		}
	}
	changed, others := stmt.MayWrite()
	t.temp.recorded = t.temp.recorded || uses
	t.temp.changed = t.temp.changed || changed
	t.temp.others = t.temp.others || others
	return nil
}

// HasTemp reports whether the transaction has TEMP objects, or had some: then the
// meaning of a text depends on them.
func (t *Transaction) HasTemp() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.temp.used
}

// Temp returns the content of the TEMP objects at the end of the transaction, nil if
// there are none, and whether the transaction has changed them.
func (t *Transaction) Temp() (content []byte, changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil || !t.temp.changed {
		return nil, false, err
	}
	content, err = t.conn.DumpTemp()
	return content, true, t.reason(err)
}

// explainFull adds to a statement's error that the size of TEMP objects is bounded.
func explainFull(stmt *sqlite.Stmt, err error) {
	var e *sqlite.Error
	if errors.As(err, &e) {
		stmt.ExplainTempFull(e)
	}
}

// Written reports whether any statements were recorded.
func (t *Transaction) Written() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rec.Len() > 0
}
