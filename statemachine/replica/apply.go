package replica

import (
	"errors"
	"fmt"
	"slices"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/invariants"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

const (
	// maxDecoded bounds the entries of one SQLite transaction, in bytes as decoded:
	// they may have been compressed a hundredfold, and all of them are kept in
	// memory until the commit, because replay may need them again.
	maxDecoded = 32 << 20
	// maxIdleDecoders bounds the entry decoders that are kept for the next batch,
	// with up to statemachine.MaxIdleDecoder bytes each.
	maxIdleDecoders = 256
)

// A batch is what one call of Update applies: entries, their operations in one
// SQLite transaction, and the notifications to send once that is committed.
type batch struct {
	decoders      []*wire.Decoder // one for each entry: replay needs all of them
	runs          []run           // operations of the open transaction
	notifications []notification
	wanted        wire.HeldLease // the lease, if somebody waits for it
	entry         entry
	open          bool            // a transaction is open
	functions     []wire.Function // r.functions when the transaction began
	zone          *wire.Zone      // r.zone when the transaction began
	stats         bool            // the transaction changed the statistics
	temp          bool            // TEMP objects were created and removed
	reloaded      bool            // the schema was loaded again, so after a ROLLBACK it has to be once more
	replayed      bool            // an operation ended the transaction, and the others were executed again
}

// A run is one operation of the batch.
type run struct {
	op      *wire.Operation
	result  *wire.Result
	exclude bool // it ended the transaction: it is not executed again and keeps its result
}

// A notification is a call of a listener, for an entry or for a waiter.
type notification struct {
	statemachine.Notification[wire.Result]
	waiter  uint64       // id of a waiter of Session that left the queue
	settled *wire.Result // its result; nil: the notification is not of a waiter
}

// notify adds the notification of an entry.
func (b *batch) notify(n statemachine.Notification[wire.Result]) {
	b.notifications = append(b.notifications, notification{Notification: n})
}

// deliver sends the notifications of the batch to the listeners.
func (b *batch) deliver(l Listener, leases LeaseListener) {
	for i := range b.notifications {
		n := &b.notifications[i]
		if n.settled != nil {
			leases.Settled(n.Session, n.waiter, *n.settled)
		} else {
			n.Deliver(l)
		}
	}
	clear(b.notifications)
	b.notifications = b.notifications[:0]
	if b.wanted.ID != 0 {
		leases.Wanted(b.wanted)
	}
}

// apply applies entries. An error is a failure of this machine; then nothing of the
// open transaction was applied.
func (r *SQL) apply(entries []sm.Entry) error {
	b := &r.batch
	b.notifications, b.runs = b.notifications[:0], b.runs[:0]
	defer b.trim()
	bytes, decoded, held := 0, 0, 0 // held is the number of decoders in use
	for i := range entries {
		index, cmd := entries[i].Index, entries[i].Cmd
		bytes += len(cmd)
		if len(cmd) > 0 {
			if held == len(b.decoders) {
				b.decoders = append(b.decoders, new(wire.Decoder))
			}
			e, err := b.decoders[held].Decode(cmd)
			if err == nil {
				err = r.applyEntry(index, e)
			}
			if err != nil {
				return errors.Join(fmt.Errorf("entry %d: %w", index, err), r.rollback())
			}
			decoded += b.decoders[held].Size()
			held++
		}
		r.applied = index
		r.history.add(index, cmd)
		r.checkInvariants()
		// After a replay the transaction is committed with this entry. Otherwise
		// each further operation that ends the transaction would make everything
		// before it execute once more, and the time that a node takes to catch up
		// would grow with the square of the entries that it has missed.
		if decoded > maxDecoded || b.replayed {
			if err := r.commit(); err != nil {
				return errors.Join(err, r.rollback())
			}
			decoded, held = 0, 0
			b.trim()
		}
	}
	if err := r.commit(); err != nil {
		return errors.Join(err, r.rollback())
	}
	r.logBytes.Add(uint64(bytes))
	r.publish()
	b.wanted = wire.HeldLease{}
	if len(r.lease.waiters) > 0 {
		b.wanted = r.lease.held
	}
	r.checkpoints.committed()
	return nil
}

// trim releases the memory of unusually large or many entries.
func (b *batch) trim() {
	if len(b.decoders) > maxIdleDecoders {
		b.decoders = b.decoders[:maxIdleDecoders:maxIdleDecoders]
	}
	for i, d := range b.decoders {
		if d.Size() > statemachine.MaxIdleDecoder {
			b.decoders[i] = new(wire.Decoder)
		}
	}
}

// applyEntry applies one entry in the open transaction, which it begins if needed.
func (r *SQL) applyEntry(index uint64, e *wire.Entry) error {
	b := &r.batch
	r.index = index
	b.entry = entry{}
	switch {
	case e.OpenSession:
		r.sessions.Open(index, r.now, e.Node, e.Incarnation)
		b.notify(statemachine.Notification[wire.Result]{Opened: true, Nonce: e.Nonce, Session: index})
		return r.lease.dropGoneSessions(&r.batch.entry)
	case e.ClockAdvance != nil:
		return r.advanceClock(*e.ClockAdvance)
	case e.HoldMS > 0:
		b.notify(statemachine.Notification[wire.Result]{HoldMS: e.HoldMS})
		return nil
	}
	if len(e.Operations) == 1 && e.Operations[0].Vacuum {
		// VACUUM runs between two transactions. The first one is committed as of the
		// entry before.
		if err := r.commit(); err != nil {
			return err
		}
	}
	session, verdict := r.sessions.Admit(e.Session, e.Sequence, e.Oldest, r.now)
	n := statemachine.Notification[wire.Result]{Verdict: verdict, Session: e.Session, Sequence: e.Sequence}
	switch verdict {
	case statemachine.Repeat:
		n.Results = slices.Clone(session.ResultsOf(e.Sequence)) // the session's change when a waiter is settled
		r.settledSince(e, n.Results)
	case statemachine.Apply:
		n.Results = make([]wire.Result, len(e.Operations))
		b.entry = entry{e.Session, e.Sequence, n.Results}
		for i := range e.Operations {
			if e.Operations[i].Vacuum && len(e.Operations) > 1 {
				n.Results[i].Err = sqlite.VacuumNotAlone()
				continue
			}
			if err := r.applyOnce(i, &e.Operations[i], &n.Results[i]); err != nil {
				return err
			}
		}
		session.Results = keptResults(n.Results)
	}
	b.notify(n)
	return nil
}

// applyOnce applies operation i of the entry, or puts it into the lease queue, unless it
// is a copy of an operation of a remote client that was applied or queued before.
func (r *SQL) applyOnce(i int, op *wire.Operation, result *wire.Result) error {
	if op.Origin == nil {
		return r.lease.applyOrQueue(&r.batch.entry, i, op, result)
	}
	session, verdict := r.sessions.AdmitClient(op.Origin, r.now)
	switch verdict {
	case statemachine.Unknown:
		result.Admission = wire.UnknownSession
		return nil
	case statemachine.Stale:
		result.Admission = wire.StaleSequence
		return nil
	case statemachine.Repeat:
		*result = session.Results[0]
		more := op.MaxSteps == 0 || op.MaxSteps > result.RetryAbove
		switch {
		case result.RetryAbove == 0:
			return nil
		case more, len(op.Statements) == 0: // it is applied; without statements: see Node.CommitOutcome
		case op.Origin.Last:
			result.RetryAbove = 0
			r.keepForClient(op, result)
			return nil
		default:
			return nil
		}
		*result = wire.Result{}
	}
	if err := r.lease.applyOrQueue(&r.batch.entry, i, op, result); err != nil {
		return err
	}
	r.keepForClient(op, result)
	return nil
}

// keepForClient makes result the result of copies of an operation of a remote client,
// and says in it whether a copy may be applied. The operation may be a copy itself, which
// was decoded from the lease queue.
func (r *SQL) keepForClient(op *wire.Operation, result *wire.Result) {
	transaction := op.Lease != nil && op.Lease.Transaction
	switch {
	case transaction:
	case result.Lease.State == wire.LeaseExpired: // it was removed from the queue
		result.RetryAbove = 1
	case result.Err != nil && result.Err.Code == sqlite.CodeInterrupt && !op.Origin.Last:
		result.RetryAbove = op.MaxSteps
	}
	r.sessions.Keep(op.Origin, keptResult(result))
}

// settledSince replaces, in the results of a copy of an entry, those of operations of
// remote clients that were copies themselves and are no longer in the lease queue.
func (r *SQL) settledSince(e *wire.Entry, results []wire.Result) {
	for i := range results {
		if i >= len(e.Operations) || e.Operations[i].Origin == nil || results[i].Lease.State != wire.LeaseQueued {
			continue
		}
		origin := e.Operations[i].Origin
		if s := r.sessions.Get(origin.Session); s != nil && s.Sequence == origin.Sequence && len(s.Results) == 1 {
			results[i] = s.Results[0]
		} else {
			results[i] = wire.Result{Admission: wire.StaleSequence}
		}
	}
}

// maxContendedAdvance bounds, in milliseconds, a clock advance while somebody waits
// for the lease. A larger one, proposed when nobody waited, would let the lease expire
// at once.
const maxContendedAdvance = idleTTL / 2

// advanceClock moves the shard's clock, if the proposer of the advance knew its
// present value, and expires what was silent for too long.
func (r *SQL) advanceClock(t wire.ClockAdvance) error {
	if err := r.history.check(t.Applied, t.History); err != nil {
		return err
	}
	if t.Expected != r.now || t.Next <= r.now {
		return nil
	}
	if len(r.lease.waiters) > 0 {
		t.Next = min(t.Next, r.now+maxContendedAdvance)
	}
	r.now, r.lastAdvanceNonce = t.Next, t.Nonce
	if r.now > r.cfg.SessionTTL {
		r.sessions.Expire(r.now - r.cfg.SessionTTL)
	}
	if err := r.lease.dropGoneSessions(&r.batch.entry); err != nil {
		return err
	}
	return r.lease.expireSilent(&r.batch.entry)
}

// applyOperation applies op in the batch's transaction or, if op is a VACUUM, between
// two transactions.
func (r *SQL) applyOperation(op *wire.Operation, result *wire.Result) error {
	r.changed = r.index
	if op.Vacuum {
		return r.vacuum(op, result)
	}
	if err := r.begin(); err != nil {
		return err
	}
	r.batch.runs = append(r.batch.runs, run{op: op, result: result})
	return r.replay(len(r.batch.runs) - 1)
}

// replay executes the operations of the batch from index first on. An operation that
// ends the transaction undoes the rows of the operations before it, too. So it is
// excluded, with its error as its result, and the others are executed again from the
// first. Each operation brings its own clock and randomness, so their results are the
// same again.
func (r *SQL) replay(first int) error {
	for i := first; i < len(r.batch.runs); i++ {
		run := &r.batch.runs[i]
		if run.exclude {
			continue
		}
		*run.result = wire.Result{Lease: run.result.Lease} // the lease queue has set Lease after the operation was executed
		ended, err := r.execute(run.op, run.result)
		if err != nil {
			return err
		}
		if !ended {
			continue
		}
		run.exclude = true
		r.batch.replayed = true
		if err := r.rollback(); err != nil {
			return err
		}
		if err := r.begin(); err != nil {
			return err
		}
		i = -1
	}
	return nil
}

// begin begins the batch's transaction, if none is open.
func (r *SQL) begin() error {
	if r.batch.open {
		return nil
	}
	// A speculative transaction may still hold SQLite's write lock. It has lost
	// its lease, since an operation is applied.
	r.endSpeculation(nil)
	if err := r.beginImmediate(); err != nil {
		return err
	}
	r.batch.functions, r.batch.zone = r.functions, r.zone.Load()
	r.batch.open, r.batch.stats, r.batch.temp, r.batch.reloaded = true, false, false, false
	return nil
}

// lockTries bounds the wait for SQLite's write lock; one try takes five seconds.
const lockTries = 6

// beginImmediate begins a SQLite transaction with the write lock. Another program that
// has opened the database, such as a shell, may hold the lock. Nothing has been done
// yet, so beginImmediate tries again.
func (r *SQL) beginImmediate() error {
	for tries := 1; ; tries++ {
		r.conn.ForgetFileErrors()
		err := r.conn.ExecAsOwner("BEGIN IMMEDIATE")
		if err == nil || !r.conn.Blocked(err) {
			return err
		}
		if tries == lockTries || r.failure.Err() != nil {
			return fmt.Errorf("another program holds SQLite's lock of the database; end it: %w", err)
		}
		r.log.Warn("hiqlite: another program holds SQLite's lock of the database: entries wait to be applied", "error", err)
	}
}

// rollback rolls the open transaction back, if there is one, and forgets everything
// that was prepared or loaded inside it.
func (r *SQL) rollback() error {
	reload := r.batch.open && (r.batch.stats || r.batch.reloaded)
	if r.batch.open {
		r.functions = r.batch.functions
		r.zone.Store(r.batch.zone)
	}
	r.batch.open = false
	r.stmts.clear()
	r.virtualKnown = false
	if !r.conn.Autocommit() {
		if err := r.conn.ExecAsOwner("ROLLBACK"); err != nil {
			return err
		}
	}
	if !reload {
		return nil
	}
	return r.reload()
}

// commit commits the batch's transaction, if one is open, with the meta rows.
func (r *SQL) commit() error {
	if !r.batch.open {
		return nil
	}
	if err := r.conn.FileError(); err != nil {
		return err // SQLite has ignored it
	}
	defer r.conn.AsOwner(true)()
	state := &wire.State{SQLIndex: r.applied, Applied: r.applied, Clock: r.now, Changed: r.changed, Functions: r.functions,
		Term: r.appliedTerm(), History: r.history.sum, Zone: r.zone.Load()}
	r.lease.describe(state)
	if err := r.meta.save(state, &r.sessions, &r.lease); err != nil {
		return err
	}
	if err := r.conn.Exec("COMMIT"); err != nil {
		return err
	}
	r.batch.open, r.batch.replayed = false, false
	clear(r.batch.runs)
	r.batch.runs = r.batch.runs[:0]
	if r.batch.stats {
		r.pool.refresh()
	}
	if r.batch.reloaded {
		r.speculative.discard()
	}
	if r.batch.temp {
		r.emptyTemp()
	}
	r.sqlIndex = r.applied
	r.sessions.Saved()
	r.lease.markSaved()
	return nil
}

// vacuum runs VACUUM, which cannot run inside a transaction. If the process is killed
// before the meta row is committed, VACUUM runs again after the next start, which
// changes nothing.
//
// The temporary copy goes to a file, since it is as large as the database.
func (r *SQL) vacuum(op *wire.Operation, result *wire.Result) error {
	r.stmts.clear()
	if err := r.useSettings(op.Settings); err != nil {
		return err
	}
	r.conn.Begin(op)
	r.endSpeculation(nil) // see begin
	if err := r.conn.ExecAsOwner("PRAGMA temp_store=FILE"); err != nil {
		return err
	}
	err := r.conn.ExecAsOwner("VACUUM")
	if err := r.conn.ExecAsOwner("PRAGMA temp_store=MEMORY"); err != nil {
		return err
	}
	if err != nil {
		var e *sqlite.Error
		if r.conn.Local(err) || !errors.As(err, &e) {
			return err
		}
		result.Err = e
	} else if err := r.conn.FileError(); err != nil {
		return err
	} else {
		result.Statements = make([]wire.StatementResult, 1)
	}
	return r.begin()
}

// checkInvariants panics if an invariant of the indexes or of the lease queue does not
// hold, in test builds. It is called between entries.
func (r *SQL) checkInvariants() {
	if !invariants.Enabled {
		return
	}
	if r.sqlIndex > r.applied || r.changed > r.applied {
		panic(fmt.Sprintf("hiqlite: the indexes are inconsistent: SQLite is at %d and rows changed at %d, but %d was applied last", r.sqlIndex, r.changed, r.applied))
	}
	r.lease.checkInvariants()
}
