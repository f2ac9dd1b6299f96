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

// A shard is the replica of an in-memory shard under test, fed with a log by hand.
type shard struct {
	*memory
	t       rapid.TB
	made    func(Config) *memory // makes one of its kind
	ttl     uint64               // of sessions
	index   uint64
	session uint64
	seq     uint64

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

// smallRetention is little enough to be reached.
var smallRetention = Retention{Messages: 8, Bytes: 120, AgeMS: 1000}

// shardKinds make the machines.
var shardKinds = map[string]func(Config) *memory{
	"kv":       func(c Config) *memory { return &NewKV(c).memory },
	"locks":    func(c Config) *memory { return &NewLocks(c).memory },
	"messages": func(c Config) *memory { return &NewMessages(c, smallRetention).memory },
}

func eachShard(t *testing.T, f func(t *testing.T, made func(Config) *memory)) {
	for _, name := range []string{"kv", "locks", "messages"} {
		t.Run(name, func(t *testing.T) { f(t, shardKinds[name]) })
	}
}

// emptyShard returns a replica that has applied nothing.
func emptyShard(t rapid.TB, made func(Config) *memory) *shard {
	s := &shard{t: t, made: made, got: map[[2]uint64][]wire.Outcome{}, opened: map[uint64]uint64{}, failed: make(chan error, 1)}
	s.restart()
	return s
}

// newShard returns a replica with one session.
func newShard(t rapid.TB, made func(Config) *memory) *shard {
	t.Helper()
	s := emptyShard(t, made)
	s.session = s.open(77, 0, 0)
	return s
}

// restart makes the replica a fresh one.
func (s *shard) restart() {
	s.memory = s.made(Config{Listener: s, SessionTTL: s.ttl, Logger: slog.New(slog.DiscardHandler)})
}

// apply applies entries as one batch.
func (s *shard) apply(entries ...sm.Entry) {
	s.t.Helper()
	if len(entries) == 0 {
		return
	}
	// The bytes are Raft's: nothing may be kept of them.
	own := make([]sm.Entry, len(entries))
	for i, e := range entries {
		own[i] = sm.Entry{Index: e.Index, Cmd: bytes.Clone(e.Cmd)}
	}
	if _, err := s.Update(slices.Clone(own)); err != nil {
		s.t.Fatalf("%v", err)
	}
	for _, e := range own {
		for i := range e.Cmd {
			e.Cmd[i] = 0xee
		}
	}
	if err := s.Err(); err != nil {
		s.t.Fatalf("the replica stopped: %v", err)
	}
	s.index = entries[len(entries)-1].Index
	if s.at() != s.index {
		s.t.Fatalf("it is at %d, not %d", s.at(), s.index)
	}
}

// at is memory's Applied, which the listener's hides.
func (s *shard) at() uint64 { return s.memory.Applied() }

// update applies commands as one batch, each as an entry of its own.
func (s *shard) update(cmds ...[]byte) {
	s.t.Helper()
	entries := make([]sm.Entry, len(cmds))
	for i, cmd := range cmds {
		entries[i] = sm.Entry{Index: s.index + uint64(i) + 1, Cmd: cmd}
	}
	s.apply(entries...)
}

func commandsOf(session, sequence uint64, commands ...*wire.Command) []byte {
	encoded := make([][]byte, len(commands))
	for i, c := range commands {
		encoded[i] = wire.EncodeCommand(c)
	}
	return wire.EncodeCommands(session, sequence, encoded)
}

// open opens a session.
func (s *shard) open(nonce, node, incarnation uint64) uint64 {
	s.t.Helper()
	s.update(wire.EncodeOpenSession(nonce, node, incarnation))
	return s.opened[nonce]
}

// entry encodes commands as the session's next entry.
func (s *shard) entry(commands ...*wire.Command) []byte {
	s.seq++
	return commandsOf(s.session, s.seq, commands...)
}

// do applies commands in one entry and returns what they came to.
func (s *shard) do(commands ...*wire.Command) []wire.Outcome {
	s.t.Helper()
	s.update(s.entry(commands...))
	outcomes, ok := s.got[[2]uint64{s.session, s.seq}]
	if !ok {
		s.t.Fatalf("nothing was told of the entry")
	}
	return outcomes
}

// by applies a command in another session's entry.
func (s *shard) by(session, sequence uint64, commands ...*wire.Command) []wire.Outcome {
	s.t.Helper()
	s.update(commandsOf(session, sequence, commands...))
	return s.got[[2]uint64{session, sequence}]
}

// tick moves the clock by each step.
func (s *shard) tick(steps ...uint64) {
	s.t.Helper()
	for _, step := range steps {
		now := s.Clock().Now
		s.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: now, Next: now + step}))
	}
}

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

// restore replaces what the replica holds.
func (s *shard) restore(snapshot []byte) {
	s.t.Helper()
	if err := s.RecoverFromSnapshot(bytes.NewReader(snapshot), nil, nil); err != nil {
		s.t.Fatalf("%v: %v", err, s.Err())
	}
	s.index = s.at()
}

// state returns all that the replica holds as sorted texts. Timers whose entry
// is gone do nothing, and need not be in a snapshot.
func (s *shard) state() []string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []string{fmt.Sprintf("clock %d, session clock %d, seen %d, at %d", s.now, s.sessionClock, s.seen, s.at())}
	for _, session := range s.sessions.All() {
		if len(session.Results) == 0 {
			session.Results = nil
		}
		out = append(out, fmt.Sprintf("%+v", session))
	}
	expiring, timers := map[uint64]bool{}, 0
	records := slices.Collect(s.machine.freeze())
	for _, r := range records {
		expiring[r.Version] = expiring[r.Version] || r.Kind == wire.RecordEntry && r.Expires
	}
	for _, r := range records {
		text := fmt.Sprintf("%+v", *r)
		switch r.Kind {
		case wire.RecordExpiry:
			if !expiring[r.Version] {
				continue
			}
			fallthrough
		case wire.RecordRenewal:
			timers++
			text = fmt.Sprint(text, " is timer ", timers) // their order counts
		}
		out = append(out, text)
	}
	slices.Sort(out[1:])
	return out
}

// alike fails unless two machines have the same state and gave the same notifications.
func alike(t rapid.TB, what string, a, b *shard) {
	t.Helper()
	if x, y := a.state(), b.state(); !slices.Equal(x, y) {
		t.Fatalf("%s: it holds\n%s\nwant\n%s", what, strings.Join(x, "\n"), strings.Join(y, "\n"))
	}
	if !slices.Equal(a.notified, b.notified) {
		t.Fatalf("%s: it told\n%s\nwant\n%s", what, strings.Join(a.notified, "\n"), strings.Join(b.notified, "\n"))
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
		Used:        rapid.Bool().Draw(t, "used"),
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

// genLog returns a random log: of proposers who come and go, send their entries
// twice, late or to a session that is none, and of a clock that is moved, or not.
func genLog(t *rapid.T, command func(*rapid.T) *wire.Command) (log []sm.Entry) {
	type proposer struct{ session, sequence uint64 }
	proposers := []*proposer{{9999, 0}} // whom nobody knows
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
			tick := wire.ClockAdvance{Expected: now, Next: now + rapid.SampledFrom([]uint64{1, 50, 100, 1000, 50_000}).Draw(t, "step")}
			if rapid.IntRange(0, 5).Draw(t, "late") == 0 {
				tick.Expected += rapid.Uint64Range(0, 2).Draw(t, "expected")
				tick.Next -= rapid.Uint64Range(0, 60).Draw(t, "back")
			}
			if tick.Expected == now && tick.Next > now {
				now = tick.Next
			}
			add(wire.EncodeClockAdvance(tick))
		case 4:
			switch rapid.IntRange(0, 2).Draw(t, "other") {
			case 0:
				add(wire.EncodeHold(250))
			case 1:
				add(nil) // Raft's own
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

// However a log comes, in batches or one by one, with restarts from snapshots
// between, all replicas hold, and tell, the same.
func TestMemoryShardsApplyAlike(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		command := commandKinds[t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]]
		rapid.Check(t, func(t *rapid.T) {
			ttl := rapid.SampledFrom([]uint64{0, 30_000}).Draw(t, "session ttl")
			fresh := func() *shard {
				s := emptyShard(t, made)
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
			alike(t, "in one batch", together, single)

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
				case 1: // another's, which is further on
					restored.restore(restored.snapshot())
				}
			}
			alike(t, "with restarts", restored, single)
		})
	})
}

// A snapshot holds what was there when it was prepared, whatever is applied
// while it is written; who begins with it goes on like all others.
func TestASnapshotIsOfOneMoment(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		command := commandKinds[t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]]
		rapid.Check(t, func(t *rapid.T) {
			log := genLog(t, command)
			cut := rapid.IntRange(0, len(log)).Draw(t, "cut")
			s := emptyShard(t, made)
			s.apply(log[:cut]...)
			told := len(s.notified)
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
			other := emptyShard(t, made)
			other.restore(b.Bytes())
			if got := other.state(); !slices.Equal(got, want) {
				t.Fatalf("restored it holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			for _, e := range log[cut:] {
				other.apply(e)
			}
			if got, want := other.state(), s.state(); !slices.Equal(got, want) {
				t.Fatalf("in the end it holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if !slices.Equal(other.notified, s.notified[told:]) {
				t.Fatalf("it told %v, want %v", other.notified, s.notified[told:])
			}
		})
	})
}
