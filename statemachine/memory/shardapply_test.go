package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// one is a command that each kind of machine applies.
func one(s *shard) *wire.Command {
	switch s.machine.(type) {
	case *KV:
		return &wire.Command{Kind: wire.KindCounterAdd, Bucket: "b", Key: "n", Delta: 1}
	case *Locks:
		return &wire.Command{Kind: wire.KindLockAcquire, Key: "x", Owner: 5, Waiter: s.seq, OwnerTTLMS: 1000}
	}
	return &wire.Command{Kind: wire.KindNotify, Channel: "ch", Payload: []byte("x")}
}

func TestCopiesOfCommandsAreAppliedOnce(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		s := newShard(t, made)
		first := s.entry(one(s), one(s))
		s.update(first)
		second := s.entry(one(s))
		s.update(second, second)
		key := [2]uint64{s.session, s.seq}
		want, state := s.got[key], s.state()[1:]
		told := len(s.notified)
		s.restore(s.snapshot())
		s.update(second)
		if !reflect.DeepEqual(s.got[key], want) || len(s.notified) != told+1 {
			t.Errorf("the copy was answered %+v, the first %+v", s.got[key], want)
		}
		s.update(first) // its caller is gone
		if len(s.notified) != told+1 {
			t.Errorf("told of an old one: %q", s.notified[told+1:])
		}
		s.update(commandsOf(s.session, 0, one(s)), commandsOf(999, 1, one(s)))
		if !slices.Equal(s.unknown, [][2]uint64{{999, 1}}) {
			t.Errorf("unknown: %v", s.unknown)
		}
		if got := s.state()[1:]; !slices.Equal(got, state) {
			t.Errorf("copies changed\n%s\nto\n%s", strings.Join(state, "\n"), strings.Join(got, "\n"))
		}
	})
}

// Sessions end by the clock alone, and only by what a leader may have counted
// while it lived: one that slept for a day ends none.
func TestMemorySessionsExpireByTicks(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		s := emptyShard(t, made)
		s.ttl = 60_000
		s.restart()
		s.session = s.open(77, 0, 0)
		other := s.open(78, 0, 0)
		s.tick(24 * 3600_000)
		if s.do(one(s)); len(s.unknown) > 0 {
			t.Fatal("it ended while a leader slept")
		}
		s.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 1, Next: 1 << 60}), wire.EncodeClockAdvance(wire.ClockAdvance{Expected: s.Clock().Now, Next: 5})) // of no use
		s.tick(10_000, 10_000, 10_000, 10_000)                                                                                                                         // and the 20 s of the one who slept
		if s.by(other, 1, one(s)); len(s.unknown) > 0 {
			t.Fatal("it ended after its time to live, not behind it")
		}
		s.tick(10_000, 9_999, 1)
		s.restore(s.snapshot())
		if s.do(one(s)); len(s.unknown) > 0 {
			t.Fatal("it ended early")
		}
		s.tick(10_000, 10_000, 10_000, 10_000, 1)
		if s.by(other, 2, one(s)); len(s.unknown) != 1 {
			t.Fatal("it outlived its time to live")
		}
		if s.do(one(s)); len(s.unknown) != 1 {
			t.Fatal("one in use ended")
		}
	})
}

// The sessions of a node's earlier starts end with the next.
func TestASessionEndsWithItsIncarnation(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		s := newShard(t, made)
		old, others := s.open(1, 3, 5), []uint64{s.open(2, 4, 1), s.open(3, 3, 7)}
		s.open(4, 3, 6) // late
		for _, session := range append(others, s.session) {
			if s.by(session, 1, one(s)); len(s.unknown) > 0 {
				t.Fatalf("session %d ended", session)
			}
		}
		if s.by(old, 1, one(s)); len(s.unknown) != 1 {
			t.Error("it outlived its incarnation")
		}
	})
}

// What the clock is needed for: see Clock.
func TestClocksRunWhileSomethingIsCounted(t *testing.T) {
	s := emptyShard(t, shardKinds["kv"])
	expect := func(want statemachine.Clock) {
		t.Helper()
		if got := s.Clock(); got != want {
			t.Errorf("the clock is %+v, want %+v", got, want)
		}
	}
	expect(statemachine.Clock{Wait: statemachine.MaxTickInterval})
	s.session = s.open(77, 0, 0)
	expect(statemachine.Clock{Runs: true, Wait: statemachine.MaxTickInterval})
	s.do(&wire.Command{Kind: wire.KindKVPut, Bucket: "b", Key: "k", TTLMS: 700})
	expect(statemachine.Clock{Runs: true})
	s.tick(10)
	expect(statemachine.Clock{Now: 10, Runs: true})
	s.tick(10)
	expect(statemachine.Clock{Now: 20, Runs: true, Wait: 700})
	s.tick(300)
	expect(statemachine.Clock{Now: 320, Runs: true, Wait: 400})
	s.restore(s.snapshot())
	expect(statemachine.Clock{Now: 320, Runs: true, Wait: 400})
	s.tick(400)
	expect(statemachine.Clock{Now: 720, Runs: true, Wait: statemachine.MaxTickInterval})
}

// A session keeps the values of its last entry up to a bound, to answer it once
// more; what it was answered first is whole.
func TestLargeValuesAreNotKept(t *testing.T) {
	s := newShard(t, shardKinds["kv"])
	large := bytes.Repeat([]byte("x"), maxKeptOutcomes/2)
	put := func(key string, value []byte) *wire.Command {
		return &wire.Command{Kind: wire.KindKVPut, Bucket: "b", Key: key, Value: value}
	}
	s.do(put("1", large), put("2", large), put("3", large), put("4", []byte("small")), put("5", nil))
	remove := func(key string) *wire.Command {
		return &wire.Command{Kind: wire.KindKVGetRemove, Bucket: "b", Key: key}
	}
	cmd := s.entry(remove("1"), remove("2"), remove("3"), remove("4"), remove("5"), remove("6"))
	key := [2]uint64{s.session, s.seq}
	s.update(cmd)
	for i, n := range []int{len(large), len(large), len(large), 5, 0, 0} {
		if o := s.got[key][i]; len(o.Value) != n || o.ValueDropped {
			t.Errorf("%d was answered with %d bytes, dropped: %v", i, len(o.Value), o.ValueDropped)
		}
	}
	for _, when := range []string{"kept", "in a snapshot"} {
		s.update(cmd)
		kept := 0
		for i, o := range s.got[key] {
			kept += len(o.Value)
			if want := i == 2 || i == 3; o.ValueDropped != want || want && o.Value != "" || !o.Existed != (i == 5) {
				t.Errorf("%s: %d is answered with %d bytes, %v", when, i, len(o.Value), o.ValueDropped)
			}
		}
		if kept > maxKeptOutcomes {
			t.Errorf("%s: %d bytes", when, kept)
		}
		s.restore(s.snapshot())
	}
}

// What this build does not know stops the replica before anybody is told, of
// what stood before it in the batch either: that is applied again.
func TestANewerEntryStopsAMemoryShard(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		for name, bad := range map[string][]byte{"newer": {wire.FormatVersion + 1, 0}, "malformed": {wire.FormatVersion, 0, 8}} {
			s := newShard(t, made)
			told, at := len(s.notified), s.index
			entries := []sm.Entry{{Index: at + 1, Cmd: s.entry(one(s))}, {Index: at + 2, Cmd: bad}, {Index: at + 3, Cmd: s.entry(one(s))}}
			if _, err := s.Update(entries); err != nil {
				t.Fatal(err)
			}
			err := <-s.failed
			if name == "newer" && !errors.Is(err, wire.ErrNewerFormat) || !strings.Contains(err.Error(), fmt.Sprint("entry ", at+2)) {
				t.Errorf("%s: it says %v", name, err)
			}
			if s.Err() == nil || s.at() > at+1 || len(s.notified) != told {
				t.Errorf("%s: %v, at %d, told %q", name, s.Err(), s.at(), s.notified[told:])
			}
			state := s.state()
			if _, err := s.Update(entries[2:]); err != nil || len(s.notified) != told || !slices.Equal(s.state(), state) {
				t.Errorf("%s: it goes on: %v", name, err)
			}
			// At an error of PrepareSnapshot Dragonboat would end the process.
			prepared, err := s.PrepareSnapshot()
			if err != nil {
				t.Errorf("%s: a snapshot cannot be prepared: %v", name, err)
			}
			if err := s.SaveSnapshot(prepared, io.Discard, nil, nil); err != sm.ErrSnapshotStopped {
				t.Errorf("%s: a snapshot is written: %v", name, err)
			}
			if err := s.RecoverFromSnapshot(bytes.NewReader(newShard(t, made).snapshot()), nil, nil); err != sm.ErrSnapshotStopped {
				t.Errorf("%s: a snapshot is read: %v", name, err)
			}
		}
	})
}

// What decoding a large entry took is given back.
func TestALargeEntryIsForgotten(t *testing.T) {
	s := newShard(t, shardKinds["kv"])
	var all []*wire.Command
	for i := range 5000 {
		all = append(all, &wire.Command{Kind: wire.KindKVPut, Bucket: "b", Key: fmt.Sprint(i), Value: []byte("value")})
	}
	s.do(all...)
	if n := s.decoder.Size(); n > statemachine.MaxIdleDecoder {
		t.Errorf("%d bytes are kept", n)
	}
	if n := s.LogBytes(); n == 0 {
		t.Error("the log has no bytes")
	}
}
