package statemachine

// A Savepoint says what becomes of a savepoint.
type Savepoint int

// What becomes of savepoints.
const (
	SetSavepoint Savepoint = iota
	ReleaseSavepoint
	RollbackToSavepoint
)

// Savepoint runs text, which does this to the savepoint of this name.
func (t *Transaction) Savepoint(what Savepoint, name, text string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return err
	}
	if err := t.owner(text); err != nil {
		return t.reason(err)
	}
	if what == SetSavepoint {
		t.savepoints = append(t.savepoints, savepointMark{name, t.mark()})
		return nil
	}
	for i := len(t.savepoints) - 1; i >= 0; i-- {
		if !sameName(t.savepoints[i].name, name) {
			continue
		}
		if what == ReleaseSavepoint {
			t.savepoints = t.savepoints[:i]
			return nil
		}
		t.back(t.savepoints[i].mark)
		t.savepoints = t.savepoints[:i+1]
		if t.dirty { // SQLite does not know any more that the schema has changed
			err := t.reload()
			if t.over != nil {
				t.finish(t.over)
			}
			return err
		}
		return nil
	}
	return nil
}

// Outermost reports that a name is that of the first savepoint, and of no other.
func (t *Transaction) Outermost(name string) bool {
	for i := len(t.savepoints) - 1; i >= 0; i-- {
		if sameName(t.savepoints[i].name, name) {
			return i == 0
		}
	}
	return false
}

// sameName compares names as SQLite does: only A to Z have two forms.
func sameName(a, b string) bool {
	lower := func(c byte) byte {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

const atomicSavepoint = "_hiqlite_script"

// Atomic calls f, and undoes what it did if it fails.
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
