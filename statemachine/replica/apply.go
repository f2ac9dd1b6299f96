package replica

import (
	"errors"
	"fmt"
	"slices"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

const (
	// maxDecoded bounds the entries, in bytes as decoded, that one transaction
	// holds: replaying it needs all of them, and they may have been compressed
	// a hundredfold.
	maxDecoded = 32 << 20
	// maxIdleDecoders bounds the entry decoders that are kept for the next batch,
	// with up to statemachine.MaxIdleDecoder bytes each.
	maxIdleDecoders = 256
)

// A batch is what one call of Update applies: entries, their operations in one
// SQLite transaction, and what to tell the listener once it is committed.
type batch struct {
	decoders  []*wire.Decoder // one an entry: replaying needs all of them
	runs      []run           // operations of the open transaction
	news      []news
	wanted    wire.HeldLease // others wait for it
	entry     entry
	open      bool            // a transaction is open
	functions []wire.Function // that the schema needed when it began
	zone      *wire.Zone      // of the cluster when it began
	stats     bool            // it changed the statistics
	temp      bool            // TEMP objects were made, and removed
	reloaded  bool            // it loaded the schema anew: ROLLBACK will not know that it must be again
	replayed  bool            // an operation ended it, and the others were executed again
}

// A run is one operation of the batch.
type run struct {
	op      *wire.Operation
	result  *wire.Result
	exclude bool // it ended the transaction once: its result stands
}

// news is what the listener is told of an entry.
type news struct {
	kind              statemachine.Verdict
	opened            bool
	nonce             uint64
	session, sequence uint64
	results           []wire.Result
	holdMS            uint64
	place             uint64       // of one that was settled
	settled           *wire.Result // what it came to
}

func (b *batch) deliver(l Listener, leases LeaseListener) {
	for i := range b.news {
		n := &b.news[i]
		switch {
		case n.settled != nil:
			leases.Settled(n.session, n.place, *n.settled)
		case n.holdMS > 0:
			l.Held(n.holdMS)
		case n.opened:
			l.SessionOpened(n.nonce, n.session)
		case n.kind == statemachine.Unknown:
			l.SessionUnknown(n.session, n.sequence)
		case n.kind != statemachine.Stale:
			l.Applied(n.session, n.sequence, n.results)
		}
	}
	clear(b.news)
	b.news = b.news[:0]
	if b.wanted.ID != 0 {
		leases.Wanted(b.wanted)
	}
}

// apply applies entries. An error is this machine's: nothing of the batch's
// open transaction was applied then.
func (r *SQL) apply(entries []sm.Entry) error {
	b := &r.batch
	b.news, b.runs = b.news[:0], b.runs[:0]
	defer b.trim()
	bytes, decoded, held := 0, 0, 0 // held: decoders in use
	for i := range entries {
		index, cmd := entries[i].Index, entries[i].Cmd
		bytes += len(cmd)
		if len(cmd) > 0 {
			if held == len(b.decoders) {
				b.decoders = append(b.decoders, new(wire.Decoder))
			}
			e, err := b.decoders[held].Decode(cmd)
			if err == nil {
				err = r.entry(index, e)
			}
			if err != nil {
				return errors.Join(fmt.Errorf("entry %d: %w", index, err), r.rollback())
			}
			decoded += b.decoders[held].Size()
			held++
		}
		r.applied = index
		r.history.add(index, cmd)
		r.lease.check()
		// After a replay the transaction is committed with its entry. Otherwise
		// each further operation that ends the transaction would have everything
		// before it executed once more, and a node that has much to catch up with
		// would take a time that grows with the square of it.
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

// trim gives back what unusually large or many entries took.
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

func (r *SQL) entry(index uint64, e *wire.Entry) error {
	b := &r.batch
	r.index = index
	b.entry = entry{}
	switch {
	case e.OpenSession:
		r.sessions.Open(index, r.ticks, e.Node, e.Incarnation)
		b.news = append(b.news, news{opened: true, nonce: e.Nonce, session: index})
		return r.lease.dropGoneSessions(&r.batch.entry)
	case e.Tick != nil:
		return r.tick(*e.Tick)
	case e.HoldMS > 0:
		b.news = append(b.news, news{holdMS: e.HoldMS})
		return nil
	}
	if len(e.Operations) == 1 && e.Operations[0].Vacuum {
		// It stands between two transactions. The first must not know of it yet.
		if err := r.commit(); err != nil {
			return err
		}
	}
	session, verdict := r.sessions.Admit(e.Session, e.Sequence, r.ticks)
	n := news{kind: verdict, session: e.Session, sequence: e.Sequence}
	switch verdict {
	case statemachine.Repeat:
		n.results = slices.Clone(session.Results) // they change when a place is settled
	case statemachine.Apply:
		n.results = make([]wire.Result, len(e.Operations))
		b.entry = entry{e.Session, e.Sequence, n.results}
		for i := range e.Operations {
			if e.Operations[i].Vacuum && len(e.Operations) > 1 {
				n.results[i].Err = sqlite.VacuumNotAlone()
				continue
			}
			if err := r.lease.applyOrQueue(&b.entry, i, &e.Operations[i], &n.results[i]); err != nil {
				return err
			}
		}
		session.Results = keptResults(n.results)
	}
	b.news = append(b.news, n)
	return nil
}

// maxFineTick bounds, in milliseconds, a step of the clock while somebody waits
// for the lease: a coarse one, that was on its way, would let it lapse at once.
const maxFineTick = idleTTL / 2

// tick moves the shard's clock if the tick's proposer knew where it stood.
func (r *SQL) tick(t wire.Tick) error {
	if err := r.history.check(t.Applied, t.History); err != nil {
		return err
	}
	if t.Expected != r.ticks || t.Next <= r.ticks {
		return nil
	}
	if len(r.lease.waiters) > 0 {
		t.Next = min(t.Next, r.ticks+maxFineTick)
	}
	r.ticks, r.lastTick = t.Next, t.Nonce
	if r.ticks > r.cfg.SessionTTL {
		r.sessions.Expire(r.ticks - r.cfg.SessionTTL)
	}
	if err := r.lease.dropGoneSessions(&r.batch.entry); err != nil {
		return err
	}
	return r.lease.expireSilent(&r.batch.entry)
}

// operation applies op in the batch's transaction, or, a VACUUM, between two.
func (r *SQL) operation(op *wire.Operation, result *wire.Result) error {
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

// replay executes the batch's operations from the one at first on. One that
// ends the transaction takes the others' rows with it, so it is excluded, its
// result being its error, and the others are executed again from the first:
// each brings its own clock and randomness, so they come out the same.
func (r *SQL) replay(first int) error {
	for i := first; i < len(r.batch.runs); i++ {
		run := &r.batch.runs[i]
		if run.exclude {
			continue
		}
		*run.result = wire.Result{Lease: run.result.Lease} // what was decided after it ran stays
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

// owner runs the replica's own SQL.
func (r *SQL) owner(sql string) error {
	r.conn.Owner(true)
	defer r.conn.Owner(false)
	return r.conn.Exec(sql)
}

func (r *SQL) begin() error {
	if r.batch.open {
		return nil
	}
	// Nothing that speculates may hold what this needs. What still does has
	// lost its lease.
	r.endSpeculation(nil)
	if err := r.lock(); err != nil {
		return err
	}
	r.batch.functions, r.batch.zone = r.functions, r.zone.Load()
	r.batch.open, r.batch.stats, r.batch.temp, r.batch.reloaded = true, false, false, false
	return nil
}

// lockTries bounds the wait for SQLite's write lock, in times of five seconds.
const lockTries = 6

// lock begins a transaction. Another program that has the database open may hold
// the lock, a shell for example: nothing has been done yet, so it is tried again.
func (r *SQL) lock() error {
	for tries := 1; ; tries++ {
		r.conn.ForgetFileErrors()
		err := r.owner("BEGIN IMMEDIATE")
		if err == nil || !r.conn.Blocked(err) {
			return err
		}
		if tries == lockTries || r.failure.Err() != nil {
			return fmt.Errorf("another program holds SQLite's lock of the database; end it: %w", err)
		}
		r.log.Warn("hiqlite: another program holds SQLite's lock of the database: entries wait to be applied", "error", err)
	}
}

// rollback leaves no transaction open, and nothing that was prepared or loaded
// in one that is gone now.
func (r *SQL) rollback() error {
	reload := r.batch.open && (r.batch.stats || r.batch.reloaded)
	if r.batch.open {
		r.functions = r.batch.functions
		r.zone.Store(r.batch.zone)
	}
	r.batch.open = false
	r.programs.clear()
	r.virtualKnown = false
	if !r.conn.Autocommit() {
		if err := r.owner("ROLLBACK"); err != nil {
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
		return err // SQLite went on in spite of it
	}
	r.conn.Owner(true)
	defer r.conn.Owner(false)
	state := &wire.State{SQLIndex: r.applied, Applied: r.applied, Ticks: r.ticks, Changed: r.changed, Functions: r.functions,
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
		r.spare.discard()
	}
	if r.batch.temp {
		r.emptyTemp()
	}
	r.sqlIndex = r.applied
	r.sessions.Saved()
	r.lease.markSaved()
	return nil
}

// vacuum runs VACUUM, which cannot run inside a transaction. Should the machine
// die before the meta row tells of it, it is run again: it changes nothing then.
//
// The copy that it makes goes to a file: it is as large as the database.
func (r *SQL) vacuum(op *wire.Operation, result *wire.Result) error {
	r.programs.clear()
	if err := r.useSettings(op.Settings); err != nil {
		return err
	}
	r.conn.Begin(op)
	r.endSpeculation(nil) // see begin
	if err := r.owner("PRAGMA temp_store=FILE"); err != nil {
		return err
	}
	err := r.owner("VACUUM")
	if err := r.owner("PRAGMA temp_store=MEMORY"); err != nil {
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
