package memory

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// A Listener is notified of the entries that an in-memory shard has applied.
type Listener = statemachine.Listener[wire.Outcome]

// Config of the machine of an in-memory shard.
type Config struct {
	Listener Listener
	Logger   *slog.Logger // nil: slog.Default()

	// SessionTTL is how long, in milliseconds of the shard's clock, an unused
	// session is kept; 0: one hour. All replicas must agree on it.
	SessionTTL uint64
}

// maxKeptOutcomes bounds, in bytes, the values that a session keeps to answer copies
// of its entries.
const maxKeptOutcomes = 1 << 20

// core is what the machines of all in-memory shards have in common: applying
// entries, sessions, the clock and snapshots. It is a concurrent state machine of
// Dragonboat's. What commands mean is known to its machine.
type core struct {
	cfg     Config
	machine machine
	failure *statemachine.Failure

	mu               sync.Mutex // held by apply, and by readers of the whole machine; guards what follows
	sessions         statemachine.Sessions[wire.Outcome]
	now              uint64 // the shard's clock, in milliseconds
	lastAdvanceNonce uint64 // nonce of the last clock advance since the start; 0: none
	// sessionClock is a clock for the ages of sessions and messages. It does not
	// count the time for which there was no leader. It is at most now.
	sessionClock  uint64
	seen          wire.Seen // what all commands have named up to now
	decoder       wire.Decoder
	notifications []notification // of this Update, to be sent to the listener

	clock     statemachine.PublishedClock
	followers statemachine.Followers
	applied   atomic.Uint64 // index of the last entry
	logBytes  atomic.Uint64
}

// A machine applies the commands of one in-memory shard. Its replicated state is a
// function of them; watchers and other readers of this node never change it. The
// caller holds core.mu.
type machine interface {
	// apply applies a command, whose strings and bytes are valid only until it
	// returns.
	apply(c *wire.Command, session *wire.Session[wire.Outcome]) wire.Outcome
	// advance is called when the clock has moved to now.
	advance(now uint64)
	// sessionOpened is called when a node has opened a session.
	sessionOpened(node, incarnation uint64)
	// nextAdvance says when the clock has to be advanced, as timers.next does.
	nextAdvance() (atOnce bool, end uint64, any bool)
	// freeze returns the present state as records, to be read later without mu.
	freeze() iter.Seq[wire.Record]

	// beginRestore is called before the records of a snapshot are passed to
	// restore. Until endRestore, the present state stays as it is.
	beginRestore()
	restore(r wire.Record) error
	endRestore() error
}

type notification = statemachine.Notification[wire.Outcome]

var _ sm.IConcurrentStateMachine = (*core)(nil)

// start prepares the core of a machine. machine is the value that embeds it.
func (m *core) start(cfg Config, machine machine) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.SessionTTL == 0 {
		cfg.SessionTTL = statemachine.DefaultSessionTTL
	}
	m.cfg, m.machine = cfg, machine
	m.failure = statemachine.NewFailure(cfg.Listener.Failed)
	m.sessions.Load(nil)
	m.publish()
}

// Update applies a batch of entries.
func (m *core) Update(entries []sm.Entry) ([]sm.Entry, error) {
	if m.failure.StoppedAfterFailure() {
		return entries, nil
	}
	m.mu.Lock()
	var err error
	for i := range entries {
		if err = m.applyEntry(entries[i].Index, entries[i].Cmd); err != nil {
			err = fmt.Errorf("entry %d: %w", entries[i].Index, err)
			m.failure.Mark(err)
			break
		}
		m.applied.Store(entries[i].Index)
	}
	m.publish()
	m.mu.Unlock()
	m.followers.Wake()
	if err != nil {
		m.failure.Fail(err)
		return entries, nil
	}
	m.deliver()
	return entries, nil
}

// applyEntry applies one entry. It fails only if this build cannot read the entry.
func (m *core) applyEntry(index uint64, cmd []byte) error {
	if len(cmd) == 0 {
		return nil
	}
	m.logBytes.Add(uint64(len(cmd)))
	e, err := m.decoder.Decode(cmd)
	if err != nil {
		return err
	}
	switch {
	case e.OpenSession:
		m.sessions.Open(index, m.sessionClock, e.Node, e.Incarnation)
		if e.Node != 0 {
			m.machine.sessionOpened(e.Node, e.Incarnation)
		}
		m.notifications = append(m.notifications, notification{Opened: true, Nonce: e.Nonce, Session: index})
		return nil
	case e.ClockAdvance != nil:
		m.advance(*e.ClockAdvance)
		return nil
	case e.HoldMS > 0:
		m.notifications = append(m.notifications, notification{HoldMS: e.HoldMS})
		return nil
	}
	session, verdict := m.sessions.Admit(e.Session, e.Sequence, e.Oldest, m.sessionClock)
	n := notification{Verdict: verdict, Session: e.Session, Sequence: e.Sequence}
	switch verdict {
	case statemachine.Repeat:
		n.Results = session.ResultsOf(e.Sequence)
	case statemachine.Apply:
		n.Results = make([]wire.Outcome, len(e.Commands))
		for i := range e.Commands {
			c := &e.Commands[i]
			m.seen = m.seen.Max(c.Seen)
			n.Results[i] = m.applyOnce(c, session)
		}
		session.Results = keptOutcomes(session.Earlier, n.Results)
	}
	m.notifications = append(m.notifications, n)
	if m.decoder.Size() > statemachine.MaxIdleDecoder {
		m.decoder = wire.Decoder{}
	}
	return nil
}

// applyOnce applies a command, unless it is a copy of a command of a remote client that
// was applied before. What belongs to a session of its node, such as the owner of a
// lock, belongs to the client's session instead.
func (m *core) applyOnce(c *wire.Command, session *wire.Session[wire.Outcome]) wire.Outcome {
	if c.Origin == nil {
		return m.machine.apply(c, session)
	}
	client, verdict := m.sessions.AdmitClient(c.Origin, m.sessionClock)
	switch verdict {
	case statemachine.Unknown:
		return wire.Outcome{Admission: wire.UnknownSession}
	case statemachine.Stale:
		return wire.Outcome{Admission: wire.StaleSequence}
	case statemachine.Repeat:
		return client.Results[0]
	}
	o := m.machine.apply(c, client)
	kept := o
	if len(kept.Value) > maxClientValue {
		kept.Value, kept.ValueDropped = "", true
	}
	m.sessions.Keep(c.Origin, kept)
	return o
}

// maxClientValue bounds, in bytes, the value that a remote client's session keeps. There
// may be thousands of these sessions.
const maxClientValue = 4 << 10

// keptOutcomes returns what a session keeps of the outcomes of its last entry, beside
// those of earlier ones: all but the values beyond maxKeptOutcomes.
func keptOutcomes(earlier [][]wire.Outcome, outcomes []wire.Outcome) []wire.Outcome {
	bytes, kept := 0, outcomes
	for _, of := range earlier {
		for i := range of {
			bytes += len(of[i].Value)
		}
	}
	for i := range outcomes {
		n := len(outcomes[i].Value)
		if bytes += n; n == 0 || bytes <= maxKeptOutcomes {
			continue
		}
		bytes -= n
		if &kept[0] == &outcomes[0] {
			kept = slices.Clone(outcomes)
		}
		kept[i].Value, kept[i].ValueDropped = "", true
	}
	return kept
}

// advance moves the clock, if the proposer of the advance knew its present value.
func (m *core) advance(t wire.ClockAdvance) {
	if t.Expected != m.now || t.Next <= m.now {
		return
	}
	m.sessionClock += min(t.Next-t.Expected, 2*statemachine.MaxAdvanceInterval)
	m.now, m.lastAdvanceNonce = t.Next, t.Nonce
	m.machine.advance(t.Next)
	if m.sessionClock > m.cfg.SessionTTL {
		m.sessions.Expire(m.sessionClock - m.cfg.SessionTTL)
	}
	m.sessions.Saved() // a snapshot always holds all sessions
}

// publish lets other goroutines see the clock, and when it has to be moved.
func (m *core) publish() {
	c := statemachine.Clock{Now: m.now, Nonce: m.lastAdvanceNonce, Wait: statemachine.MaxAdvanceInterval}
	atOnce, end, any := m.machine.nextAdvance()
	switch {
	case atOnce:
		c.Runs, c.Wait = true, 0
	case any:
		c.Runs, c.Wait = true, min(c.Wait, end-min(end, m.now))
	default:
		c.Runs = m.sessions.Len() > 0
	}
	m.clock.Publish(c)
}

// Clock returns the state of the shard's clock.
func (m *core) Clock() statemachine.Clock { return m.clock.Clock() }

// Err returns why the replica stopped, or nil.
func (m *core) Err() error { return m.failure.Err() }

// Fail stops the replica because this machine cannot continue, and returns when the
// replica has been stopped.
func (m *core) Fail(err error) { m.failure.Fail(err) }

// Applied returns the index of the last entry that was applied.
func (m *core) Applied() uint64 { return m.applied.Load() }

// WaitApplied returns once reads on this node see the entry at index. The
// error is that of ctx, or why the replica stopped.
func (m *core) WaitApplied(ctx context.Context, index uint64) error {
	return m.followers.Wait(ctx, &m.applied, index, m.failure)
}

// LogBytes returns how many bytes of entries this machine has applied since it was
// created.
func (m *core) LogBytes() uint64 { return m.logBytes.Load() }

// deliver sends the notifications of an Update to the listener.
func (m *core) deliver() {
	for i := range m.notifications {
		m.notifications[i].Deliver(m.cfg.Listener)
	}
	clear(m.notifications)
	m.notifications = m.notifications[:0]
}

// Lookup fails: the machines are read through their own methods.
func (m *core) Lookup(any) (any, error) {
	return nil, errors.New("hiqlite: an in-memory machine is not read through Lookup")
}

// Close does nothing: what is in memory stays readable.
func (m *core) Close() error { return nil }

// A snapshot is snapshotMagic followed by a zstd stream of records, each of which
// follows its length as a varint.
const snapshotMagic = "hiqlite memory snapshot 1\n"

// maxRecord bounds, in bytes, a record of a snapshot; a longer one means that the
// snapshot is damaged.
const maxRecord = 64 << 20

// PrepareSnapshot fixes what SaveSnapshot will write. It returns no error, since
// Dragonboat would panic. After a failure it returns nil, and SaveSnapshot stops.
func (m *core) PrepareSnapshot() (any, error) {
	if m.failure.Err() != nil {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	head := []wire.Record{&wire.ShardRecord{Clock: m.now, SessionClock: m.sessionClock, Seen: m.seen, Applied: m.applied.Load()}}
	for _, s := range m.sessions.All() {
		head = append(head, &wire.SessionRecord{Session: s})
	}
	rest := m.machine.freeze()
	return iter.Seq[wire.Record](func(yield func(wire.Record) bool) {
		for _, r := range head {
			if !yield(r) {
				return
			}
		}
		rest(yield)
	}), nil
}

// SaveSnapshot writes what PrepareSnapshot fixed, while entries are applied.
func (m *core) SaveSnapshot(prepared any, w io.Writer, _ sm.ISnapshotFileCollection, done <-chan struct{}) error {
	records, ok := prepared.(iter.Seq[wire.Record])
	if !ok {
		return sm.ErrSnapshotStopped
	}
	err := writeRecords(w, records, done)
	if err == nil {
		return nil
	}
	if errors.Is(err, sm.ErrSnapshotStopped) {
		return sm.ErrSnapshotStopped // unwrapped: Dragonboat compares with ==
	}
	// Dragonboat panics at any other error.
	m.cfg.Logger.Warn("hiqlite: a snapshot was not written; it will be tried again", "error", err)
	return sm.ErrSnapshotAborted
}

func writeRecords(w io.Writer, records iter.Seq[wire.Record], done <-chan struct{}) error {
	if _, err := io.WriteString(w, snapshotMagic); err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	out := bufio.NewWriterSize(z, 64<<10)
	var buf, length []byte
	var count uint64
	write := func(r wire.Record) error {
		count++
		buf = wire.AppendRecord(buf[:0], r)
		length = binary.AppendUvarint(length[:0], uint64(len(buf)))
		_, err := out.Write(length) // bufio keeps the first error
		if err == nil {
			_, err = out.Write(buf)
		}
		return err
	}
	for r := range records {
		select {
		case <-done:
			return sm.ErrSnapshotStopped
		default:
		}
		if err := write(r); err != nil {
			return err
		}
	}
	return errors.Join(write(&wire.EndRecord{Count: count}), out.Flush(), z.Close())
}

// RecoverFromSnapshot replaces the state by that of a snapshot: this node's own one
// at a start, or another node's if this node was away for long.
func (m *core) RecoverFromSnapshot(r io.Reader, _ []sm.SnapshotFile, done <-chan struct{}) error {
	if m.failure.Err() != nil {
		return sm.ErrSnapshotStopped
	}
	m.mu.Lock()
	err := m.recover(statemachine.StoppableReader(r, done))
	m.publish()
	m.mu.Unlock()
	m.followers.Wake()
	if err == nil {
		return nil
	}
	if !errors.Is(err, sm.ErrSnapshotStopped) {
		m.failure.Fail(fmt.Errorf("recover from a snapshot: %w", err))
	}
	return sm.ErrSnapshotStopped // unwrapped: Dragonboat compares with ==
}

func (m *core) recover(r io.Reader) error {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return err
	}
	if string(magic) != snapshotMagic {
		return errors.New("not a snapshot that this version reads; upgrade this node")
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	var sessions []wire.Session[wire.Outcome]
	var head *wire.ShardRecord
	m.machine.beginRestore()
	err = readRecords(z, func(r wire.Record) error {
		switch r := r.(type) {
		case *wire.ShardRecord:
			head = r
			return nil
		case *wire.SessionRecord:
			sessions = append(sessions, r.Session)
			return nil
		}
		return m.machine.restore(r)
	})
	if err == nil && head == nil {
		err = errors.New("the snapshot has no record of the shard")
	}
	if err != nil {
		return err
	}
	// Nothing has changed up to here, so an unreadable snapshot does not change the state.
	if err := m.machine.endRestore(); err != nil {
		return err
	}
	m.now, m.sessionClock, m.seen, m.lastAdvanceNonce = head.Clock, head.SessionClock, head.Seen, 0
	m.applied.Store(head.Applied)
	m.sessions.Load(sessions)
	return nil
}

func readRecords(src io.Reader, f func(wire.Record) error) error {
	in := bufio.NewReaderSize(src, 64<<10)
	var buf []byte
	for count := uint64(0); ; count++ {
		n, err := binary.ReadUvarint(in)
		if err == nil && n > maxRecord {
			err = fmt.Errorf("a record of %d bytes", n)
		}
		if err != nil {
			return fmt.Errorf("the snapshot is damaged after record %d: %w", count, err)
		}
		buf = slices.Grow(buf[:0], int(n))[:n]
		if _, err := io.ReadFull(in, buf); err != nil {
			return fmt.Errorf("the snapshot is damaged after record %d: %w", count, err)
		}
		r, err := wire.DecodeRecord(buf)
		if err != nil {
			return err
		}
		if end, ok := r.(*wire.EndRecord); ok {
			if end.Count != count {
				return fmt.Errorf("the snapshot has %d records instead of %d", count, end.Count)
			}
			if _, err := in.ReadByte(); err != io.EOF { // zstd checks its sum only here
				return fmt.Errorf("the snapshot is damaged at its end: %w", cmp.Or(err, errors.New("there is more")))
			}
			return nil
		}
		if err := f(r); err != nil {
			return fmt.Errorf("record %d: %w", count, err)
		}
	}
}
