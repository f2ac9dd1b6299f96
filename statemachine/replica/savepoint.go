package replica

import "github.com/hiqlite/hiqlite/internal/sqlite"

// A Savepoint is what a statement does with a savepoint.
type Savepoint int

// The statements for savepoints.
const (
	SetSavepoint Savepoint = iota
	ReleaseSavepoint
	RollbackToSavepoint
)

// Savepoint runs text, a statement of this kind for the savepoint name.
func (t *Transaction) Savepoint(what Savepoint, name, text string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return err
	}
	if err := t.conn.ExecAsOwner(text); err != nil {
		return t.reason(err)
	}
	if what == SetSavepoint {
		t.savepoints = append(t.savepoints, savepointMark{name, t.mark()})
		return nil
	}
	i := t.findSavepoint(name)
	if i < 0 {
		return nil // SQLite has no savepoint either, and has reported that
	}
	if what == ReleaseSavepoint {
		t.savepoints = t.savepoints[:i]
		return nil
	}
	t.truncateRecording(t.savepoints[i].mark)
	t.savepoints = t.savepoints[:i+1]
	if !t.dirty {
		return nil
	}
	err := t.reload() // after ROLLBACK TO, SQLite does not know that the schema has changed back
	if t.fatal != nil {
		t.endTransaction(t.fatal)
	}
	return err
}

// findSavepoint returns the index of the latest savepoint of this name, or -1.
func (t *Transaction) findSavepoint(name string) int {
	for i := len(t.savepoints) - 1; i >= 0; i-- {
		if sqlite.SameName(t.savepoints[i].name, name) {
			return i
		}
	}
	return -1
}

// Outermost reports whether name is the name of the first savepoint, and of no other.
func (t *Transaction) Outermost(name string) bool { return t.findSavepoint(name) == 0 }

const atomicSavepoint = "_hiqlite_script"

// Atomic calls f. If f fails, what it has written is rolled back.
func (t *Transaction) Atomic(f func() error) error {
	if err := t.Savepoint(SetSavepoint, atomicSavepoint, "SAVEPOINT "+atomicSavepoint); err != nil {
		return err
	}
	err := f()
	if err != nil && t.Err() == nil {
		if err := t.Savepoint(RollbackToSavepoint, atomicSavepoint, "ROLLBACK TO "+atomicSavepoint); err != nil {
			t.End(err)
			return err
		}
	}
	if t.Err() == nil {
		if err := t.Savepoint(ReleaseSavepoint, atomicSavepoint, "RELEASE "+atomicSavepoint); err != nil {
			t.End(err)
			return err
		}
	}
	return err
}
