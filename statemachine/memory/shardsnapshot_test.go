package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	sm "github.com/lni/dragonboat/v4/statemachine"
	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// records returns the records of a snapshot.
func records(t rapid.TB, snapshot []byte) (all []wire.Record) {
	t.Helper()
	b, ok := bytes.CutPrefix(snapshot, []byte(snapshotMagic))
	if !ok {
		t.Fatalf("the snapshot begins with %q", snapshot[:20])
	}
	z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer z.Close()
	b, err = io.ReadAll(z)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for len(b) > 0 {
		n, used := binary.Uvarint(b)
		r, err := wire.DecodeRecord(b[used : used+int(n)])
		if err != nil {
			t.Fatalf("%v", err)
		}
		all, b = append(all, r), b[used+int(n):]
	}
	return all
}

// filledShard returns a machine that has some of everything that its kind can have.
func filledShard(t rapid.TB, newMachine func(Config) *core) *shard {
	s := newShard(t, newMachine)
	session := s.open(78, 2, 3)
	for i := range 4 {
		key := fmt.Sprint("key", i)
		s.do(&wire.Command{Kind: wire.KindKVSetLimits, Bucket: "limited", MaxEntries: 3},
			&wire.Command{Kind: wire.KindKVPut, Bucket: "limited", Key: key, Value: []byte("value")},
			&wire.Command{Kind: wire.KindKVPut, Bucket: "plain", Key: key, Value: []byte(strings.Repeat("value", 3)), TTLMS: uint64(500 + 100*i)},
			&wire.Command{Kind: wire.KindCounterAdd, Bucket: "plain", Key: key, Delta: int64(i)},
			&wire.Command{Kind: wire.KindNotify, Channel: "channel", Payload: []byte("payload"), TimeMS: 99})
		s.doAs(session, uint64(i)+1, &wire.Command{Kind: wire.KindLockAcquire, Key: "lock", Owner: uint64(10 + i), Waiter: 1, OwnerTTLMS: 1000, Seen: wire.Seen{SQL: 30, KV: 3}},
			&wire.Command{Kind: wire.KindLockAcquire, Key: key, Owner: uint64(10 + i), Waiter: 2, OwnerTTLMS: 1000},
			&wire.Command{Kind: wire.KindKVGetRemove, Bucket: "plain", Key: "key0"})
		s.advance(100)
	}
	return s
}

// refuses has a new machine read a snapshot, and reports whether it fails. A failure must
// be reported to the listener.
func (s *shard) refuses(snapshot []byte) bool {
	s.t.Helper()
	s.restart()
	err := s.RecoverFromSnapshot(bytes.NewReader(snapshot), nil, nil)
	if err == nil {
		return false
	}
	if err != sm.ErrSnapshotStopped || s.Err() == nil {
		s.t.Fatalf("RecoverFromSnapshot returned %v, and the machine's error is %v", err, s.Err())
	}
	<-s.failed
	return true
}

// A snapshot that is damaged, truncated or of another kind of shard stops the machine, which
// never gets another state from it.
func TestDamagedMemorySnapshots(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		whole := filledShard(t, newMachine)
		b, want := whole.snapshot(), whole.state()
		s := emptyShard(t, newMachine)
		for n := range b {
			if !s.refuses(b[:n]) {
				t.Fatalf("a snapshot truncated to %d of %d bytes was accepted", n, len(b))
			}
			for _, bit := range []byte{1, 0x80} {
				damaged := bytes.Clone(b)
				damaged[n] ^= bit
				if !s.refuses(damaged) && !slices.Equal(s.state(), want) {
					t.Fatalf("with a flipped bit in byte %d of %d the state is\n%s\nwant\n%s", n, len(b), strings.Join(s.state(), "\n"), strings.Join(want, "\n"))
				}
			}
		}
		if s.refuses(b) || !slices.Equal(s.state(), want) {
			t.Fatal("the undamaged snapshot was refused, or its state is wrong")
		}
		for name, others := range shardKinds {
			if other := filledShard(t, others).snapshot(); reflect.TypeOf(emptyShard(t, others).machine) != reflect.TypeOf(whole.machine) && !s.refuses(other) {
				t.Errorf("a snapshot of %s was accepted", name)
			}
			if other := emptyShard(t, others).snapshot(); reflect.TypeOf(emptyShard(t, others).machine) != reflect.TypeOf(whole.machine) && !s.refuses(other) {
				t.Errorf("an empty snapshot of %s was accepted", name)
			}
		}
		if !s.refuses([]byte(strings.Replace(snapshotMagic, "1", "2", 1))) || !strings.Contains(s.Err().Error(), "upgrade") {
			t.Errorf("the error for a later version is %v", s.Err())
		}
	})
}

// A snapshot without its last record is refused, although its checksum is right.
func TestSnapshotsWithoutTheirLastRecordAreRefused(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		s := filledShard(t, newMachine)
		all := records(t, s.snapshot())
		short := append(slices.Clone(all[:len(all)-2]), all[len(all)-1])
		if !s.refuses(snapshotOf(t, short)) || !strings.Contains(s.Err().Error(), "instead of") {
			t.Errorf("the error without the last record is %v", s.Err())
		}
	})
}

// snapshotOf returns a snapshot with these records, which may be wrong.
func snapshotOf(t rapid.TB, all []wire.Record) []byte {
	var b bytes.Buffer
	if err := writeRecords(&b, slices.Values(all), nil); err != nil {
		t.Fatalf("%v", err)
	}
	return b.Bytes()
}

// withOtherField returns a copy of a record in which one field, or one of a field's fields,
// has another value.
func withOtherField(t *rapid.T, r wire.Record) wire.Record {
	v := reflect.New(reflect.TypeOf(r).Elem()).Elem()
	v.Set(reflect.ValueOf(r).Elem())
	out := v.Addr().Interface().(wire.Record)
	for v.Kind() == reflect.Struct {
		v = v.Field(rapid.IntRange(0, v.NumField()-1).Draw(t, "field"))
	}
	n := rapid.SampledFrom([]uint64{0, 1, 2, 11, 400, math.MaxUint64}).Draw(t, "n")
	switch v.Kind() {
	case reflect.Uint64, reflect.Uint8:
		v.SetUint(n)
	case reflect.Int64:
		v.SetInt(int64(n))
	case reflect.Bool:
		v.SetBool(!v.Bool())
	default:
		v.SetZero()
	}
	return out
}

// A snapshot of any records is refused, or the machine works with it. It never panics.
func TestAnyRecordsDoNotPanic(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		command := commandKinds[t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]]
		whole := filledShard(t, newMachine)
		all := records(t, whole.snapshot())
		var others []wire.Record // of all kinds of shards
		for _, kind := range slices.Sorted(maps.Keys(shardKinds)) {
			others = append(others, records(t, filledShard(t, shardKinds[kind]).snapshot())...)
		}
		rapid.Check(t, func(t *rapid.T) {
			mixed := slices.Clone(all[:len(all)-1])
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				if len(mixed) == 0 {
					break
				}
				i, j := rapid.IntRange(0, len(mixed)-1).Draw(t, "i"), rapid.IntRange(0, len(mixed)-1).Draw(t, "j")
				switch rapid.IntRange(0, 5).Draw(t, "change") {
				case 0:
					mixed = slices.Delete(mixed, i, i+1)
				case 1:
					mixed = slices.Insert(mixed, j, mixed[i])
				case 2:
					mixed[i], mixed[j] = mixed[j], mixed[i]
				case 3:
					mixed[i] = rapid.SampledFrom(others).Draw(t, "other")
				default:
					mixed[i] = withOtherField(t, mixed[i])
				}
			}
			s := emptyShard(t, newMachine)
			if s.refuses(snapshotOf(t, mixed)) {
				return
			}
			s.index = s.appliedIndex()
			s.seq = 100
			s.session = s.open(79, 2, 4)
			for range 5 {
				s.do(rapid.SliceOfN(rapid.Custom(command), 1, 4).Draw(t, "commands")...)
				s.advance(rapid.SampledFrom([]uint64{1, 100, 1000}).Draw(t, "step"))
			}
			s.snapshot()
		})
	})
}

// SaveSnapshot and RecoverFromSnapshot end when their channel is closed. After that, the
// machine can be restored by another snapshot.
func TestMemorySnapshotsCanBeStopped(t *testing.T) {
	eachShard(t, func(t *testing.T, newMachine func(Config) *core) {
		s := filledShard(t, newMachine)
		b, want := s.snapshot(), s.state()
		done := make(chan struct{})
		close(done)
		prepared, err := s.PrepareSnapshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SaveSnapshot(prepared, io.Discard, nil, done); err != sm.ErrSnapshotStopped {
			t.Errorf("the error of a stopped SaveSnapshot is %v", err)
		}
		if err := s.RecoverFromSnapshot(bytes.NewReader(b), nil, done); err != sm.ErrSnapshotStopped || s.Err() != nil {
			t.Errorf("the error of a stopped RecoverFromSnapshot is %v, that of the machine %v", err, s.Err())
		}
		s.restore(b)
		if !slices.Equal(s.state(), want) {
			t.Error("the restored state is wrong")
		}
		if err := s.SaveSnapshot(prepared, failingWriter{}, nil, nil); err != sm.ErrSnapshotAborted || s.Err() != nil {
			t.Errorf("the error on a full disk is %v, that of the machine %v", err, s.Err())
		}
	})
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no space") }
