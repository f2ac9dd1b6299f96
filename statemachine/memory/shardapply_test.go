package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// oneCommand returns a command for the kind of machine.
func oneCommand(s *shard) *wire.Command {
	switch s.machine.(type) {
	case *KV:
		return &wire.Command{Kind: wire.KindCounterAdd, Bucket: "b", Key: "n", Delta: 1}
	case *Locks:
		return &wire.Command{Kind: wire.KindLockAcquire, Key: "x", Owner: 5, Waiter: s.seq, OwnerTTLMS: 1000}
	}
	return &wire.Command{Kind: wire.KindNotify, Channel: "ch", Payload: []byte("x")}
}

func TestCopiesOfCommandsAreAppliedOnce(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		s := newShard(t, newMachine)
		first := s.entry(oneCommand(s), oneCommand(s))
		s.update(first)
		second := s.entry(oneCommand(s))
		s.update(second, second)
		key := [2]uint64{s.session, s.seq}
		want, state := s.got[key], s.state()[1:]
		before := len(s.notified)
		s.restore(s.snapshot())
		s.update(second)
		if !reflect.DeepEqual(s.got[key], want) || len(s.notified) != before+1 {
			t.Errorf("the outcomes of the copy are %+v, those of the first entry %+v", s.got[key], want)
		}
		s.update(first) // a copy of an older entry
		if len(s.notified) != before+1 {
			t.Errorf("there are notifications of a copy of an older entry: %q", s.notified[before+1:])
		}
		s.update(commandsOf(s.session, 0, oneCommand(s)), commandsOf(999, 1, oneCommand(s)))
		if !slices.Equal(s.unknown, [][2]uint64{{999, 1}}) {
			t.Errorf("the unknown entries are %v", s.unknown)
		}
		if got := s.state()[1:]; !slices.Equal(got, state) {
			t.Errorf("copies changed\n%s\nto\n%s", strings.Join(state, "\n"), strings.Join(got, "\n"))
		}
	})
}

// Sessions expire only by clock advances. A single advance counts only up to a bound: a
// leader that was paused for a day expires no session.
func TestMemorySessionsExpireByClockAdvances(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		s := emptyShard(t, newMachine)
		s.ttl = 60_000
		s.restart()
		s.session = s.open(77, 0, 0)
		other := s.open(78, 0, 0)
		s.advance(24 * 3600_000)
		if s.do(oneCommand(s)); len(s.unknown) > 0 {
			t.Fatal("the session expired by one long advance")
		}
		s.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 1, Next: 1 << 60}), wire.EncodeClockAdvance(wire.ClockAdvance{Expected: s.Clock().Now, Next: 5})) // both are ignored
		s.advance(10_000, 10_000, 10_000, 10_000)                                                                                                                      // in addition to the 20 s of the long advance
		if s.doAs(other, 1, oneCommand(s)); len(s.unknown) > 0 {
			t.Fatal("the session expired when its TTL had just passed; it must exceed it")
		}
		s.advance(10_000, 9_999, 1)
		s.restore(s.snapshot())
		if s.do(oneCommand(s)); len(s.unknown) > 0 {
			t.Fatal("the session expired too early")
		}
		s.advance(10_000, 10_000, 10_000, 10_000, 1)
		if s.doAs(other, 2, oneCommand(s)); len(s.unknown) != 1 {
			t.Fatal("the session did not expire")
		}
		if s.do(oneCommand(s)); len(s.unknown) != 1 {
			t.Fatal("a session in use expired")
		}
	})
}

// When an incarnation of a node opens a session, the sessions of its earlier incarnations
// end.
func TestSessionsEndWithTheirIncarnation(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		s := newShard(t, newMachine)
		old, others := s.open(1, 3, 5), []uint64{s.open(2, 4, 1), s.open(3, 3, 7)}
		s.open(4, 3, 6) // between the other two incarnations
		for _, session := range append(others, s.session) {
			if s.doAs(session, 1, oneCommand(s)); len(s.unknown) > 0 {
				t.Fatalf("session %d ended", session)
			}
		}
		if s.doAs(old, 1, oneCommand(s)); len(s.unknown) != 1 {
			t.Error("the session of an earlier incarnation did not end")
		}
	})
}

// Clock says until when the clock need not be advanced, and whether it has to be at all.
func TestClocksRunWhileSomethingIsCounted(t *testing.T) {
	s := emptyShard(t, shardKinds["kv"])
	expect := func(want statemachine.Clock) {
		t.Helper()
		if got := s.Clock(); got != want {
			t.Errorf("the clock is %+v, want %+v", got, want)
		}
	}
	expect(statemachine.Clock{Wait: statemachine.MaxAdvanceInterval})
	s.session = s.open(77, 0, 0)
	expect(statemachine.Clock{Runs: true, Wait: statemachine.MaxAdvanceInterval})
	s.do(&wire.Command{Kind: wire.KindKVPut, Bucket: "b", Key: "k", TTLMS: 700})
	expect(statemachine.Clock{Runs: true})
	s.advance(10)
	expect(statemachine.Clock{Now: 10, Runs: true})
	s.advance(10)
	expect(statemachine.Clock{Now: 20, Runs: true, Wait: 700})
	s.advance(300)
	expect(statemachine.Clock{Now: 320, Runs: true, Wait: 400})
	s.restore(s.snapshot())
	expect(statemachine.Clock{Now: 320, Runs: true, Wait: 400})
	s.advance(400)
	expect(statemachine.Clock{Now: 720, Runs: true, Wait: statemachine.MaxAdvanceInterval})
}

// For copies of its last entry, a session keeps the values of the outcomes only up to a
// bound. The first outcomes have all values.
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
			t.Errorf("outcome %d has %d bytes, dropped: %v", i, len(o.Value), o.ValueDropped)
		}
	}
	for _, when := range []string{"kept", "in a snapshot"} {
		s.update(cmd)
		kept := 0
		for i, o := range s.got[key] {
			kept += len(o.Value)
			if want := i == 2 || i == 3; o.ValueDropped != want || want && o.Value != "" || !o.Existed != (i == 5) {
				t.Errorf("%s: outcome %d of a copy has %d bytes, dropped: %v", when, i, len(o.Value), o.ValueDropped)
			}
		}
		if kept > maxKeptOutcomes {
			t.Errorf("%s: %d bytes are kept", when, kept)
		}
		s.restore(s.snapshot())
	}
}

// Several entries of a session are in flight, and one is lost. The machine applies none of
// those after it before it, and keeps all their outcomes within the bound.
func TestCommandsInFlightAreAppliedInOrder(t *testing.T) {
	s := newShard(t, shardKinds["kv"])
	s.do(&wire.Command{Kind: wire.KindKVPut, Bucket: "b", Key: "k", Value: []byte("0")})
	of := func(sequence, oldest uint64, size int) []byte {
		value := bytes.Repeat([]byte{byte('0' + sequence)}, size)
		c := &wire.Command{Kind: wire.KindKVReplace, Bucket: "b", Key: "k", Value: value}
		return wire.EncodeCommands(s.session, sequence, oldest, [][]byte{wire.EncodeCommand(c)})
	}
	half := maxKeptOutcomes/2 + 1
	s.update(of(2, 0, half), of(4, 2, 1), of(5, 2, 1), of(3, 2, half), of(4, 2, 1), of(5, 2, 1))
	first := maps.Clone(s.got)
	for sequence, before := range map[uint64]int{2: 1, 3: half, 4: half, 5: 1} {
		if o := first[[2]uint64{s.session, sequence}]; len(o) != 1 || len(o[0].Value) != before {
			t.Errorf("entry %d replaced a value of %d bytes", sequence, len(o[0].Value))
		}
	}
	for _, when := range []string{"kept", "in a snapshot"} {
		clear(s.got)
		s.update(of(4, 2, 1), of(2, 0, half), of(5, 2, 1), of(3, 2, half))
		for sequence, dropped := range map[uint64]bool{2: false, 3: false, 4: true, 5: false} {
			o := s.got[[2]uint64{s.session, sequence}]
			if len(o) != 1 || o[0].ValueDropped != dropped || !dropped && o[0].Value != first[[2]uint64{s.session, sequence}][0].Value {
				t.Errorf("%s: the outcome of a copy of entry %d is dropped: %v", when, sequence, o[0].ValueDropped)
			}
		}
		s.restore(s.snapshot())
	}
}

// An entry of a newer format stops the machine before any notification of the batch, also
// of the entries before it. They are applied again after the upgrade.
func TestNewerEntriesStopTheMachine(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		for name, bad := range map[string][]byte{"newer": {wire.FormatVersion + 1, 0}, "malformed": {wire.FormatVersion, 0, 8}} {
			s := newShard(t, newMachine)
			before, at := len(s.notified), s.index
			entries := []sm.Entry{{Index: at + 1, Cmd: s.entry(oneCommand(s))}, {Index: at + 2, Cmd: bad}, {Index: at + 3, Cmd: s.entry(oneCommand(s))}}
			if _, err := s.Update(entries); err != nil {
				t.Fatal(err)
			}
			err := <-s.failed
			if name == "newer" && !errors.Is(err, wire.ErrNewerFormat) || !strings.Contains(err.Error(), fmt.Sprint("entry ", at+2)) {
				t.Errorf("%s: the error is %v", name, err)
			}
			if s.Err() == nil || s.appliedIndex() > at+1 || len(s.notified) != before {
				t.Errorf("%s: the error is %v, the machine is at entry %d, the notifications are %q", name, s.Err(), s.appliedIndex(), s.notified[before:])
			}
			state := s.state()
			if _, err := s.Update(entries[2:]); err != nil || len(s.notified) != before || !slices.Equal(s.state(), state) {
				t.Errorf("%s: a later Update: %v", name, err)
			}
			// Dragonboat ends the process after an error of PrepareSnapshot.
			prepared, err := s.PrepareSnapshot()
			if err != nil {
				t.Errorf("%s: the error of PrepareSnapshot is %v", name, err)
			}
			if err := s.SaveSnapshot(prepared, io.Discard, nil, nil); err != sm.ErrSnapshotStopped {
				t.Errorf("%s: the error of SaveSnapshot is %v", name, err)
			}
			if err := s.RecoverFromSnapshot(bytes.NewReader(newShard(t, newMachine).snapshot()), nil, nil); err != sm.ErrSnapshotStopped {
				t.Errorf("%s: the error of RecoverFromSnapshot is %v", name, err)
			}
		}
	})
}

// The memory for decoding a large entry is released afterwards.
func TestTheMemoryOfLargeEntriesIsReleased(t *testing.T) {
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
		t.Error("the entries have no bytes")
	}
}
