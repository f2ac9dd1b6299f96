package memory

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A shard is the machine of an in-memory shard under test. The tests make its log.
type shard struct {
	*core
	t          rapid.TB
	newMachine func(Config) *core
	ttl        uint64 // TTL of sessions
	index      uint64
	session    uint64
	seq        uint64

	got      map[[2]uint64][]wire.Outcome // the last outcomes, by session and sequence
	notified []string                     // all notifications of the listener, in order
	opened   map[uint64]uint64            // nonce -> session
	unknown  [][2]uint64
	failed   chan error
}

func (s *shard) Applied(session, sequence uint64, outcomes []wire.Outcome) {
	s.got[[2]uint64{session, sequence}] = outcomes
	s.notified = append(s.notified, fmt.Sprintf("%d/%d: %+v", session, sequence, outcomes))
}

func (s *shard) SessionOpened(nonce, session uint64) {
	s.opened[nonce] = session
	s.notified = append(s.notified, fmt.Sprintf("opened %d: %d", nonce, session))
}

func (s *shard) SessionUnknown(session, sequence uint64) {
	s.unknown = append(s.unknown, [2]uint64{session, sequence})
	s.notified = append(s.notified, fmt.Sprintf("unknown %d/%d", session, sequence))
}

func (s *shard) Held(ms uint64)   { s.notified = append(s.notified, fmt.Sprintf("held %d", ms)) }
func (s *shard) Failed(err error) { s.failed <- err }

// smallRetention has limits that the tests reach.
var smallRetention = Retention{Messages: 8, Bytes: 120, AgeMS: 1000}

// shardKinds are the functions that make the machines, by kind.
var shardKinds = map[string]func(Config) *core{
	"kv":       func(c Config) *core { return &NewKV(c).core },
	"locks":    func(c Config) *core { return &NewLocks(c).core },
	"messages": func(c Config) *core { return &NewMessages(c, smallRetention).core },
}

func eachShard(t *testing.T, f func(t *testing.T, newMachine func(Config) *core)) {
	for _, name := range []string{"kv", "locks", "messages"} {
		t.Run(name, func(t *testing.T) { f(t, shardKinds[name]) })
	}
}

// emptyShard returns a machine that has applied nothing.
func emptyShard(t rapid.TB, newMachine func(Config) *core) *shard {
	s := &shard{t: t, newMachine: newMachine, got: map[[2]uint64][]wire.Outcome{}, opened: map[uint64]uint64{}, failed: make(chan error, 1)}
	s.restart()
	return s
}

// newShard returns a machine with one session.
func newShard(t rapid.TB, newMachine func(Config) *core) *shard {
	t.Helper()
	s := emptyShard(t, newMachine)
	s.session = s.open(77, 0, 0)
	return s
}

// restart replaces the machine by one that has applied nothing.
func (s *shard) restart() {
	s.core = s.newMachine(Config{Listener: s, SessionTTL: s.ttl, Logger: slog.New(slog.DiscardHandler)})
}

// apply applies entries as one batch.
func (s *shard) apply(entries ...sm.Entry) {
	s.t.Helper()
	if len(entries) == 0 {
		return
	}
	// Raft uses the bytes again after Update, so the machine must not keep them.
	copied := make([]sm.Entry, len(entries))
	for i, e := range entries {
		copied[i] = sm.Entry{Index: e.Index, Cmd: bytes.Clone(e.Cmd)}
	}
	if _, err := s.Update(slices.Clone(copied)); err != nil {
		s.t.Fatalf("%v", err)
	}
	for _, e := range copied {
		for i := range e.Cmd {
			e.Cmd[i] = 0xee
		}
	}
	if err := s.Err(); err != nil {
		s.t.Fatalf("the machine stopped: %v", err)
	}
	s.index = entries[len(entries)-1].Index
	if s.appliedIndex() != s.index {
		s.t.Fatalf("the machine is at entry %d, want %d", s.appliedIndex(), s.index)
	}
}

// appliedIndex is Applied of memory, which is hidden by Applied of the listener.
func (s *shard) appliedIndex() uint64 { return s.core.Applied() }

// update applies encoded entries as one batch.
func (s *shard) update(cmds ...[]byte) {
	s.t.Helper()
	entries := make([]sm.Entry, len(cmds))
	for i, cmd := range cmds {
		entries[i] = sm.Entry{Index: s.index + uint64(i) + 1, Cmd: cmd}
	}
	s.apply(entries...)
}

// commandsOf encodes an entry with commands.
func commandsOf(session, sequence uint64, commands ...*wire.Command) []byte {
	encoded := make([][]byte, len(commands))
	for i, c := range commands {
		encoded[i] = wire.EncodeCommand(c)
	}
	return wire.EncodeCommands(session, sequence, 0, encoded)
}

// open opens a session.
func (s *shard) open(nonce, node, incarnation uint64) uint64 {
	s.t.Helper()
	s.update(wire.EncodeOpenSession(nonce, node, incarnation))
	return s.opened[nonce]
}

// entry encodes commands as the next entry of the session.
func (s *shard) entry(commands ...*wire.Command) []byte {
	s.seq++
	return commandsOf(s.session, s.seq, commands...)
}

// do applies commands in one entry and returns their outcomes.
func (s *shard) do(commands ...*wire.Command) []wire.Outcome {
	s.t.Helper()
	s.update(s.entry(commands...))
	outcomes, ok := s.got[[2]uint64{s.session, s.seq}]
	if !ok {
		s.t.Fatalf("there are no outcomes of the entry")
	}
	return outcomes
}

// doAs applies commands in an entry of another session.
func (s *shard) doAs(session, sequence uint64, commands ...*wire.Command) []wire.Outcome {
	s.t.Helper()
	s.update(commandsOf(session, sequence, commands...))
	return s.got[[2]uint64{session, sequence}]
}

// advance moves the clock by each of the steps.
func (s *shard) advance(steps ...uint64) {
	s.t.Helper()
	for _, step := range steps {
		now := s.Clock().Now
		s.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: now, Next: now + step}))
	}
}

// snapshot returns a snapshot of the machine.
func (s *shard) snapshot() []byte {
	s.t.Helper()
	prepared, err := s.PrepareSnapshot()
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	var b bytes.Buffer
	if err := s.SaveSnapshot(prepared, &b, nil, nil); err != nil {
		s.t.Fatalf("%v", err)
	}
	return b.Bytes()
}

// restore replaces the content of the machine by a snapshot.
func (s *shard) restore(snapshot []byte) {
	s.t.Helper()
	if err := s.RecoverFromSnapshot(bytes.NewReader(snapshot), nil, nil); err != nil {
		s.t.Fatalf("%v: %v", err, s.Err())
	}
	s.index = s.appliedIndex()
}

// state returns the whole content of the machine as sorted texts. It leaves out timers whose
// kv entry does not exist any more, because they do nothing and may be missing in a
// snapshot.
func (s *shard) state() []string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []string{fmt.Sprintf("clock %d, session clock %d, seen %d, at %d", s.now, s.sessionClock, s.seen, s.appliedIndex())}
	for _, session := range s.sessions.All() {
		if len(session.Results) == 0 {
			session.Results = nil
		}
		out = append(out, fmt.Sprintf("%+v", session))
	}
	expiring, timers := map[uint64]bool{}, 0
	for r := range s.machine.freeze() {
		text := fmt.Sprintf("%T%+v", r, r)
		switch r := r.(type) {
		case *wire.KVEntryRecord:
			expiring[r.Version] = expiring[r.Version] || r.Expires
		case *wire.ExpiryRecord: // entries come before timers
			if !expiring[r.Version] {
				continue
			}
			timers++
			text = fmt.Sprint(text, " is timer ", timers) // their order matters
		case *wire.LockRenewalRecord:
			timers++
			text = fmt.Sprint(text, " is timer ", timers)
		}
		out = append(out, text)
	}
	slices.Sort(out[1:])
	return out
}

// expectSame fails the test unless two machines have the same state and have sent the same
// notifications.
func expectSame(t rapid.TB, what string, a, b *shard) {
	t.Helper()
	if x, y := a.state(), b.state(); !slices.Equal(x, y) {
		t.Fatalf("%s: the state is\n%s\nwant\n%s", what, strings.Join(x, "\n"), strings.Join(y, "\n"))
	}
	if !slices.Equal(a.notified, b.notified) {
		t.Fatalf("%s: the notifications are\n%s\nwant\n%s", what, strings.Join(a.notified, "\n"), strings.Join(b.notified, "\n"))
	}
}

// Random logs.

// kvCommand returns a random command of the kv shard: any field may have any value.
func kvCommand(t *rapid.T) *wire.Command {
	return &wire.Command{
		Kind:       wire.CommandKind(rapid.IntRange(0, 14).Draw(t, "kind")),
		Seen:       wire.Seen{SQL: rapid.SampledFrom([]uint64{0, 5, 7, math.MaxUint64}).Draw(t, "sql")},
		Bucket:     rapid.SampledFrom([]string{"", "a", "a", "b", "c\xff"}).Draw(t, "bucket"),
		Key:        rapid.SampledFrom([]string{"", "k1", "k2", "k3", "other"}).Draw(t, "key"),
		Value:      rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "value"),
		TTLMS:      rapid.SampledFrom([]uint64{0, 0, 1, 100, 3000}).Draw(t, "ttl"),
		Version:    rapid.Uint64Range(0, 12).Draw(t, "version"),
		Delta:      rapid.SampledFrom([]int64{0, 1, -1, 1 << 40, math.MaxInt64, math.MinInt64}).Draw(t, "delta"),
		Counter:    rapid.SampledFrom([]int64{0, 1, -1, 1 << 40, math.MaxInt64, math.MinInt64}).Draw(t, "counter"),
		MaxEntries: rapid.Uint64Range(0, 4).Draw(t, "entries"),
		MaxBytes:   rapid.SampledFrom([]uint64{0, 0, 10, 40, math.MaxUint64}).Draw(t, "bytes"),
		Override:   rapid.Bool().Draw(t, "override"),
	}
}

// lockCommand returns a random command of the lock shard.
func lockCommand(t *rapid.T) *wire.Command {
	id := func(what string) uint64 { return rapid.SampledFrom([]uint64{0, 1, 2, 3, math.MaxUint64}).Draw(t, what) }
	c := &wire.Command{
		Kind:        wire.CommandKind(rapid.IntRange(int(wire.KindLockAcquire)-1, int(wire.KindLockLeave)+1).Draw(t, "kind")),
		Seen:        wire.Seen{SQL: rapid.Uint64Range(0, 9).Draw(t, "sql"), KV: rapid.Uint64Range(0, 9).Draw(t, "kv")},
		Key:         rapid.SampledFrom([]string{"", "x", "x", "y"}).Draw(t, "key"),
		OwnerTTLMS:  rapid.SampledFrom([]uint64{0, 100, 1000, 3000}).Draw(t, "ttl"),
		Owner:       rapid.SampledFrom([]uint64{0, 1, 2, 3, math.MaxUint64}).Draw(t, "owner"),
		Waiter:      id("waiter"),
		LastWaiter:  id("last"),
		OwnerExists: rapid.Bool().Draw(t, "exists"),
		CaughtUp:    rapid.Bool().Draw(t, "caughtup"),
		OwnerStays:  rapid.Bool().Draw(t, "stays"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "ids") {
		c.Waiters = append(c.Waiters, id("has"))
	}
	return c
}

// messageCommand returns a random command of the pubsub shard.
func messageCommand(t *rapid.T) *wire.Command {
	return &wire.Command{
		Kind:    rapid.SampledFrom([]wire.CommandKind{wire.KindNotify, wire.KindNotify, wire.KindNotify, wire.KindKVPut}).Draw(t, "kind"),
		Seen:    wire.Seen{SQL: rapid.Uint64Range(0, 9).Draw(t, "sql"), KV: rapid.Uint64Range(0, 9).Draw(t, "kv")},
		Channel: rapid.SampledFrom([]string{"a", "ab", "b", "\xff"}).Draw(t, "channel"),
		Payload: rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload"),
		TimeMS:  rapid.Int64().Draw(t, "clock"),
	}
}

var commandKinds = map[string]func(*rapid.T) *wire.Command{"kv": kvCommand, "locks": lockCommand, "messages": messageCommand}

// genLog returns a random log. Its proposers open sessions and end, and send entries late,
// twice, or in sessions that do not exist; some clock advances are valid and some are not.
func genLog(t *rapid.T, command func(*rapid.T) *wire.Command) (log []sm.Entry) {
	type proposer struct{ session, sequence uint64 }
	proposers := []*proposer{{9999, 0}} // a session that does not exist
	add := func(cmd []byte) {
		log = append(log, sm.Entry{Index: uint64(len(log)) + 1, Cmd: cmd})
	}
	now := uint64(0)
	for range rapid.IntRange(1, 60).Draw(t, "entries") {
		switch rapid.IntRange(0, 9).Draw(t, "entry") {
		case 0:
			add(wire.EncodeOpenSession(uint64(len(log)), rapid.Uint64Range(0, 2).Draw(t, "node"), rapid.Uint64Range(0, 4).Draw(t, "incarnation")))
			proposers = append(proposers, &proposer{uint64(len(log)), 0})
		case 1, 2, 3:
			advance := wire.ClockAdvance{Expected: now, Next: now + rapid.SampledFrom([]uint64{1, 50, 100, 1000, 50_000}).Draw(t, "step")}
			if rapid.IntRange(0, 5).Draw(t, "late") == 0 {
				advance.Expected += rapid.Uint64Range(0, 2).Draw(t, "expected")
				advance.Next -= rapid.Uint64Range(0, 60).Draw(t, "back")
			}
			if advance.Expected == now && advance.Next > now {
				now = advance.Next
			}
			add(wire.EncodeClockAdvance(advance))
		case 4:
			switch rapid.IntRange(0, 2).Draw(t, "other") {
			case 0:
				add(wire.EncodeHold(250))
			case 1:
				add(nil) // an empty entry of Raft
			default:
				if len(log) > 0 {
					add(log[rapid.IntRange(0, len(log)-1).Draw(t, "again")].Cmd)
				}
			}
		default:
			p := proposers[rapid.IntRange(0, len(proposers)-1).Draw(t, "proposer")]
			p.sequence += rapid.Uint64Range(0, 2).Draw(t, "ahead")
			add(commandsOf(p.session, p.sequence, rapid.SliceOfN(rapid.Custom(command), 0, 4).Draw(t, "commands")...))
		}
	}
	return log
}

// All machines have the same state and send the same notifications, whether they apply the
// log in batches or one entry at a time, with or without restarts from snapshots.
func TestMachinesApplyLogsAlike(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		command := commandKinds[t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]]
		rapid.Check(t, func(t *rapid.T) {
			ttl := rapid.SampledFrom([]uint64{0, 30_000}).Draw(t, "session ttl")
			fresh := func() *shard {
				s := emptyShard(t, newMachine)
				s.ttl = ttl
				s.restart()
				return s
			}
			log := genLog(t, command)
			single := fresh()
			for _, e := range log {
				single.apply(e)
			}
			together := fresh()
			together.apply(log...)
			expectSame(t, "in one batch", together, single)

			restored := fresh()
			restored.restart()
			for rest := log; len(rest) > 0; {
				n := rapid.IntRange(1, len(rest)).Draw(t, "batch")
				restored.apply(rest[:n]...)
				rest = rest[n:]
				switch rapid.IntRange(0, 2).Draw(t, "snapshot") {
				case 0: // a restart
					b := restored.snapshot()
					restored.restart()
					restored.restore(b)
				case 1: // a snapshot of the present state
					restored.restore(restored.snapshot())
				}
			}
			expectSame(t, "with restarts", restored, single)
		})
	})
}

// A snapshot has the state at the time when it was prepared, although entries are applied
// while it is saved. A machine that was restored from it applies the later entries like all
// others.
func TestSnapshotsAreOfOneMoment(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		command := commandKinds[t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]]
		rapid.Check(t, func(t *rapid.T) {
			log := genLog(t, command)
			cut := rapid.IntRange(0, len(log)).Draw(t, "cut")
			s := emptyShard(t, newMachine)
			s.apply(log[:cut]...)
			before := len(s.notified)
			want := s.state()
			prepared, err := s.PrepareSnapshot()
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			written := make(chan error, 1)
			go func() { written <- s.SaveSnapshot(prepared, &b, nil, nil) }()
			for _, e := range log[cut:] {
				s.apply(e)
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			other := emptyShard(t, newMachine)
			other.restore(b.Bytes())
			if got := other.state(); !slices.Equal(got, want) {
				t.Fatalf("the restored state is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			for _, e := range log[cut:] {
				other.apply(e)
			}
			if got, want := other.state(), s.state(); !slices.Equal(got, want) {
				t.Fatalf("the state after the whole log is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if !slices.Equal(other.notified, s.notified[before:]) {
				t.Fatalf("the notifications are %v, want %v", other.notified, s.notified[before:])
			}
		})
	})
}
