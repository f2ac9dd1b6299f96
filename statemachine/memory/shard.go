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

// A Listener learns what became of the entries of an in-memory shard.
type Listener = statemachine.Listener[wire.Outcome]

// Config of the replica of an in-memory shard.
type Config struct {
	Listener Listener
	Logger   *slog.Logger // nil: slog.Default()

	// SessionTTL is how long, in milliseconds of the shard's ticks, an unused
	// session is kept; 0: one hour. All replicas must agree on it.
	SessionTTL uint64
}

// keepOutcomes bounds the bytes of values that a session keeps to answer its
// last entry once more.
const keepOutcomes = 1 << 20

// memory is what the replicas of the in-memory shards have in common: entries,
// sessions, the clock and snapshots, for a machine that knows what commands
// mean. It is a concurrent state machine of Dragonboat's.
type memory struct {
	cfg     Config
	machine memoryMachine
	failure *statemachine.Failure

	mu       sync.Mutex // serializes apply with who looks at the whole; guards what follows
	sessions statemachine.Sessions[wire.Outcome]
	ticks    uint64
	lastTick uint64    // nonce of the last one since the start
	pulse    uint64    // a clock for sessions: ticks, but for what a leader slept
	seen     wire.Seen // what commands have named
	decoder  wire.Decoder
	news     []memoryNews

	clock     statemachine.PublishedClock
	followers statemachine.Followers
	applied   atomic.Uint64 // index of the last entry
	logBytes  atomic.Uint64
}

// A memoryMachine applies the commands of one in-memory shard. What it holds is a
// function of them, but what its own readers registered. The caller holds
// memory.mu.
type memoryMachine interface {
	apply(c *wire.Command, session *wire.Session[wire.Outcome]) wire.Outcome // the command's texts and bytes are good until it returns
	tick(now uint64)                                                         // the clock moved
	opened(node, incarnation uint64)                                         // a node has a session of a new incarnation
	next() (atOnce bool, end uint64, any bool)                               // see timers.next
	freeze() iter.Seq[*wire.Record]                                          // what it holds now, to be read later
	begin()                                                                  // records come, of what will take the place of all
	restore(r *wire.Record) error
	restored() error // there are no more: now it does
}

// memoryNews is what the listener is told of an entry.
type memoryNews struct {
	kind              statemachine.Verdict
	opened            bool
	nonce             uint64
	session, sequence uint64
	outcomes          []wire.Outcome
	holdMS            uint64
}

var _ sm.IConcurrentStateMachine = (*memory)(nil)

// start makes m usable, for a machine that is part of the same value.
func (m *memory) start(cfg Config, machine memoryMachine) {
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
func (m *memory) Update(entries []sm.Entry) ([]sm.Entry, error) {
	if m.failure.StoppedAfterFailure() {
		return entries, nil
	}
	m.mu.Lock()
	var err error
	for i := range entries {
		if err = m.entry(entries[i].Index, entries[i].Cmd); err != nil {
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

// entry applies one entry. An error is this machine's: it cannot read it.
func (m *memory) entry(index uint64, cmd []byte) error {
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
		m.sessions.Open(index, m.pulse, e.Node, e.Incarnation)
		if e.Node != 0 {
			m.machine.opened(e.Node, e.Incarnation)
		}
		m.news = append(m.news, memoryNews{opened: true, nonce: e.Nonce, session: index})
		return nil
	case e.Tick != nil:
		m.tick(*e.Tick)
		return nil
	case e.HoldMS > 0:
		m.news = append(m.news, memoryNews{holdMS: e.HoldMS})
		return nil
	}
	session, verdict := m.sessions.Admit(e.Session, e.Sequence, m.pulse)
	n := memoryNews{kind: verdict, session: e.Session, sequence: e.Sequence}
	switch verdict {
	case statemachine.Repeat:
		n.outcomes = session.Results
	case statemachine.Apply:
		n.outcomes = make([]wire.Outcome, len(e.Commands))
		for i := range e.Commands {
			c := &e.Commands[i]
			m.seen = m.seen.Max(c.Seen)
			n.outcomes[i] = m.machine.apply(c, session)
		}
		session.Results = keptOutcomes(n.outcomes)
	}
	m.news = append(m.news, n)
	if m.decoder.Size() > statemachine.MaxIdleDecoder {
		m.decoder = wire.Decoder{}
	}
	return nil
}

// keptOutcomes returns what a session keeps: the values up to a bound.
func keptOutcomes(outcomes []wire.Outcome) []wire.Outcome {
	bytes, kept := 0, outcomes
	for i := range outcomes {
		n := len(outcomes[i].Value)
		if bytes += n; n == 0 || bytes <= keepOutcomes {
			continue
		}
		bytes -= n
		if &kept[0] == &outcomes[0] {
			kept = slices.Clone(outcomes)
		}
		kept[i].Value, kept[i].Dropped = "", true
	}
	return kept
}

// tick moves the clock if the tick's proposer knew where it stood.
func (m *memory) tick(t wire.Tick) {
	if t.Expected != m.ticks || t.Next <= m.ticks {
		return
	}
	m.pulse += min(t.Next-t.Expected, 2*statemachine.MaxTickInterval)
	m.ticks, m.lastTick = t.Next, t.Nonce
	m.machine.tick(t.Next)
	if m.pulse > m.cfg.SessionTTL {
		m.sessions.Expire(m.pulse - m.cfg.SessionTTL)
	}
	m.sessions.Saved() // they are not saved one by one
}

// publish shows the node when the clock has to be moved.
func (m *memory) publish() {
	c := statemachine.Clock{Now: m.ticks, Tick: m.lastTick, Wait: statemachine.MaxTickInterval}
	atOnce, end, any := m.machine.next()
	switch {
	case atOnce:
		c.Runs, c.Wait = true, 0
	case any:
		c.Runs, c.Wait = true, min(c.Wait, end-min(end, m.ticks))
	default:
		c.Runs = m.sessions.Len() > 0
	}
	m.clock.Publish(c)
}

// Clock returns the state of the shard's clock.
func (m *memory) Clock() statemachine.Clock { return m.clock.Clock() }

// Err returns why the replica stopped, or nil.
func (m *memory) Err() error { return m.failure.Err() }

// Fail stops the replica because this machine cannot go on, and returns when the
// replica has been stopped.
func (m *memory) Fail(err error) { m.failure.Fail(err) }

// Applied returns the index of the last entry that was applied.
func (m *memory) Applied() uint64 { return m.applied.Load() }

// WaitApplied returns once reads on this replica see the entry at index. The
// error is that of ctx, or why the replica stopped.
func (m *memory) WaitApplied(ctx context.Context, index uint64) error {
	return m.followers.Wait(ctx, &m.applied, index, m.failure)
}

// LogBytes returns how many bytes of entries this replica has applied since it
// was opened.
func (m *memory) LogBytes() uint64 { return m.logBytes.Load() }

func (m *memory) deliver() {
	l := m.cfg.Listener
	for i := range m.news {
		n := &m.news[i]
		switch {
		case n.holdMS > 0:
			l.Held(n.holdMS)
		case n.opened:
			l.SessionOpened(n.nonce, n.session)
		case n.kind == statemachine.Unknown:
			l.SessionUnknown(n.session, n.sequence)
		case n.kind != statemachine.Stale:
			l.Applied(n.session, n.sequence, n.outcomes)
		}
	}
	clear(m.news)
	m.news = m.news[:0]
}

// Lookup is not how the replica is read.
func (m *memory) Lookup(any) (any, error) {
	return nil, errors.New("hiqlite: an in-memory replica is not read through Lookup")
}

// Close has nothing to close: what is in memory stays readable.
func (m *memory) Close() error { return nil }

// A snapshot is memoryMagic and a zstd stream of records, each behind its length
// as a varint.
const memoryMagic = "hiqlite memory snapshot 1\n"

// maxRecord bounds, in bytes, a record that is believed.
const maxRecord = 64 << 20

// PrepareSnapshot fixes what SaveSnapshot will write. It returns no error, at
// which Dragonboat would panic: a replica that has stopped has nothing to write.
func (m *memory) PrepareSnapshot() (any, error) {
	if m.failure.Err() != nil {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	head := []*wire.Record{{Kind: wire.RecordShard, Ticks: m.ticks, TTLMS: m.pulse, Seen: m.seen, Number: int64(m.applied.Load())}}
	for _, s := range m.sessions.All() {
		head = append(head, &wire.Record{Kind: wire.RecordSession, Session: &s})
	}
	rest := m.machine.freeze()
	return iter.Seq[*wire.Record](func(yield func(*wire.Record) bool) {
		for _, r := range head {
			if !yield(r) {
				return
			}
		}
		rest(yield)
	}), nil
}

// SaveSnapshot writes what PrepareSnapshot fixed, beside apply.
func (m *memory) SaveSnapshot(prepared any, w io.Writer, _ sm.ISnapshotFileCollection, done <-chan struct{}) error {
	records, ok := prepared.(iter.Seq[*wire.Record])
	if !ok {
		return sm.ErrSnapshotStopped
	}
	err := writeRecords(w, records, done)
	if err == nil {
		return nil
	}
	if errors.Is(err, sm.ErrSnapshotStopped) {
		return sm.ErrSnapshotStopped // itself: Dragonboat compares
	}
	// Dragonboat panics at any other error.
	m.cfg.Logger.Warn("hiqlite: a snapshot was not written; it will be tried again", "error", err)
	return sm.ErrSnapshotAborted
}

func writeRecords(w io.Writer, records iter.Seq[*wire.Record], done <-chan struct{}) error {
	if _, err := io.WriteString(w, memoryMagic); err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	out := bufio.NewWriterSize(z, 64<<10)
	var buf, length []byte
	var count int64
	write := func(r *wire.Record) error {
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
	return errors.Join(write(&wire.Record{Kind: wire.RecordEnd, Number: count}), out.Flush(), z.Close())
}

// RecoverFromSnapshot replaces what the replica holds by a snapshot: its own at
// a start, another node's if this one was away for long.
func (m *memory) RecoverFromSnapshot(r io.Reader, _ []sm.SnapshotFile, done <-chan struct{}) error {
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
	return sm.ErrSnapshotStopped // itself: Dragonboat compares
}

func (m *memory) recover(r io.Reader) error {
	magic := make([]byte, len(memoryMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return err
	}
	if string(magic) != memoryMagic {
		return errors.New("not a snapshot that this version reads; upgrade this node")
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	var sessions []wire.Session[wire.Outcome]
	var head *wire.Record
	m.machine.begin()
	err = readRecords(z, func(record *wire.Record) error {
		switch record.Kind {
		case wire.RecordShard:
			head = record
			return nil
		case wire.RecordSession:
			if record.Session == nil {
				return errors.New("a session is missing")
			}
			sessions = append(sessions, *record.Session)
			return nil
		}
		return m.machine.restore(record)
	})
	if err == nil && head == nil {
		err = errors.New("the snapshot does not say what it is of")
	}
	if err != nil {
		return err
	}
	// Until here nothing has changed: readers see what was there before.
	if err := m.machine.restored(); err != nil {
		return err
	}
	m.ticks, m.pulse, m.seen, m.lastTick = head.Ticks, head.TTLMS, head.Seen, 0
	m.applied.Store(uint64(head.Number))
	m.sessions.Load(sessions)
	return nil
}

func readRecords(src io.Reader, take func(*wire.Record) error) error {
	in := bufio.NewReaderSize(src, 64<<10)
	var buf []byte
	for count := int64(0); ; count++ {
		n, err := binary.ReadUvarint(in)
		if err == nil && n > maxRecord {
			err = fmt.Errorf("a record of %d bytes", n)
		}
		if err != nil {
			return fmt.Errorf("the snapshot is damaged behind record %d: %w", count, err)
		}
		buf = slices.Grow(buf[:0], int(n))[:n]
		if _, err := io.ReadFull(in, buf); err != nil {
			return fmt.Errorf("the snapshot is damaged behind record %d: %w", count, err)
		}
		r, err := wire.DecodeRecord(buf)
		if err != nil {
			return err
		}
		if r.Kind == wire.RecordEnd {
			if r.Number != count {
				return fmt.Errorf("the snapshot has %d records instead of %d", count, r.Number)
			}
			if _, err := in.ReadByte(); err != io.EOF { // zstd checks its sum only here
				return fmt.Errorf("the snapshot is damaged at its end: %w", cmp.Or(err, errors.New("there is more")))
			}
			return nil
		}
		if err := take(r); err != nil {
			return fmt.Errorf("record %d: %w", count, err)
		}
	}
}
