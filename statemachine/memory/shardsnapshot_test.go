package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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

// records reads a snapshot's.
func records(t rapid.TB, snapshot []byte) (all []*wire.Record) {
	t.Helper()
	b, ok := bytes.CutPrefix(snapshot, []byte(snapshotMagic))
	if !ok {
		t.Fatalf("it begins with %q", snapshot[:20])
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

// filled returns a replica of each kind that holds something of everything.
func filled(t rapid.TB, made func(Config) *memory) *shard {
	s := newShard(t, made)
	session := s.open(78, 2, 3)
	for i := range 4 {
		key := fmt.Sprint("key", i)
		s.do(&wire.Command{Kind: wire.KindKVSetLimits, Bucket: "limited", MaxEntries: 3},
			&wire.Command{Kind: wire.KindKVPut, Bucket: "limited", Key: key, Value: []byte("value")},
			&wire.Command{Kind: wire.KindKVPut, Bucket: "plain", Key: key, Value: []byte(strings.Repeat("value", 3)), TTLMS: uint64(500 + 100*i)},
			&wire.Command{Kind: wire.KindCounterAdd, Bucket: "plain", Key: key, Delta: int64(i)},
			&wire.Command{Kind: wire.KindNotify, Channel: "channel", Payload: []byte("payload"), TimeMS: 99})
		s.by(session, uint64(i)+1, &wire.Command{Kind: wire.KindLockAcquire, Key: "lock", Owner: uint64(10 + i), Waiter: 1, OwnerTTLMS: 1000, Seen: wire.Seen{SQL: 30, KV: 3}},
			&wire.Command{Kind: wire.KindLockAcquire, Key: key, Owner: uint64(10 + i), Waiter: 2, OwnerTTLMS: 1000},
			&wire.Command{Kind: wire.KindKVGetRemove, Bucket: "plain", Key: "key0"})
		s.tick(100)
	}
	return s
}

// broken has a fresh replica read a snapshot, and reports whether it did; a
// failure has to be told.
func (s *shard) broken(snapshot []byte) bool {
	s.t.Helper()
	s.restart()
	err := s.RecoverFromSnapshot(bytes.NewReader(snapshot), nil, nil)
	if err == nil {
		return false
	}
	if err != sm.ErrSnapshotStopped || s.Err() == nil {
		s.t.Fatalf("Raft is told %v, others %v", err, s.Err())
	}
	<-s.failed
	return true
}

// A snapshot that is damaged, cut or another shard's stops the replica: it is
// never taken for another state.
func TestDamagedMemorySnapshots(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		whole := filled(t, made)
		b, want := whole.snapshot(), whole.state()
		s := emptyShard(t, made)
		for n := range b {
			if !s.broken(b[:n]) {
				t.Fatalf("cut at %d of %d bytes it is whole", n, len(b))
			}
			for _, bit := range []byte{1, 0x80} {
				damaged := bytes.Clone(b)
				damaged[n] ^= bit
				if !s.broken(damaged) && !slices.Equal(s.state(), want) {
					t.Fatalf("with another bit in byte %d of %d it holds\n%s\nwant\n%s", n, len(b), strings.Join(s.state(), "\n"), strings.Join(want, "\n"))
				}
			}
		}
		if s.broken(b) || !slices.Equal(s.state(), want) {
			t.Fatal("the whole one is not")
		}
		for name, others := range shardKinds {
			if other := filled(t, others).snapshot(); reflect.TypeOf(emptyShard(t, others).machine) != reflect.TypeOf(whole.machine) && !s.broken(other) {
				t.Errorf("it takes one of %s for its own", name)
			}
			if other := emptyShard(t, others).snapshot(); reflect.TypeOf(emptyShard(t, others).machine) != reflect.TypeOf(whole.machine) && !s.broken(other) {
				t.Errorf("it takes an empty one of %s for its own", name)
			}
		}
		if !s.broken([]byte(strings.Replace(snapshotMagic, "1", "2", 1))) || !strings.Contains(s.Err().Error(), "upgrade") {
			t.Errorf("of a later version's it says %v", s.Err())
		}
	})
}

// One that ends before its last record is not whole, though its bytes are.
func TestASnapshotHasAllItsRecords(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		s := filled(t, made)
		all := records(t, s.snapshot())
		short := append(slices.Clone(all[:len(all)-2]), all[len(all)-1])
		if !s.broken(snapshotOf(t, short)) || !strings.Contains(s.Err().Error(), "instead of") {
			t.Errorf("without its last record it says %v", s.Err())
		}
	})
}

// snapshotOf writes records as they are.
func snapshotOf(t rapid.TB, all []*wire.Record) []byte {
	var b bytes.Buffer
	if err := writeRecords(&b, slices.Values(all), nil); err != nil {
		t.Fatalf("%v", err)
	}
	return b.Bytes()
}

// Whatever records a snapshot is made of, it is refused, or the replica goes on.
func TestAnyRecordsDoNotPanic(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		command := commandKinds[t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]]
		whole := filled(t, made)
		all := records(t, whole.snapshot())
		rapid.Check(t, func(t *rapid.T) {
			mixed := slices.Clone(all[:len(all)-1])
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				if len(mixed) == 0 {
					break
				}
				i, j := rapid.IntRange(0, len(mixed)-1).Draw(t, "i"), rapid.IntRange(0, len(mixed)-1).Draw(t, "j")
				switch rapid.IntRange(0, 4).Draw(t, "change") {
				case 0:
					mixed = slices.Delete(mixed, i, i+1)
				case 1:
					mixed = slices.Insert(mixed, j, mixed[i])
				case 2:
					mixed[i], mixed[j] = mixed[j], mixed[i]
				default:
					r := *mixed[i]
					n := rapid.SampledFrom([]uint64{0, 1, 2, 11, 400, math.MaxUint64}).Draw(t, "n")
					switch rapid.IntRange(0, 11).Draw(t, "field") {
					case 0:
						r.Version = n
					case 1:
						r.Bucket = ""
					case 2:
						r.Key = ""
					case 3:
						r.Waiter, r.Renewal, r.Epoch, r.LostToken, r.Forgotten = n, n, n, n, n
					case 4:
						r.Owner = n
					case 5:
						r.End, r.Clock, r.SessionClock = n, n, n
					case 6:
						r.Phase = uint8(n)
					case 7:
						r.Expires, r.HolderLost = !r.Expires, !r.HolderLost
					case 8:
						r.Session = nil
					case 9:
						r.MaxEntries, r.MaxBytes = n, n
					case 10:
						r.Kind = wire.RecordKind(n)
					case 11:
						r.TTLMS, r.Counter, r.Count, r.Applied, r.Token, r.Index, r.TimeMS = n, int64(n), n, n, n, n, int64(n)
					}
					mixed[i] = &r
				}
			}
			s := emptyShard(t, made)
			if s.broken(snapshotOf(t, mixed)) {
				return
			}
			s.index = s.at()
			s.seq = 100
			s.session = s.open(79, 2, 4)
			for range 5 {
				s.do(rapid.SliceOfN(rapid.Custom(command), 1, 4).Draw(t, "commands")...)
				s.tick(rapid.SampledFrom([]uint64{1, 100, 1000}).Draw(t, "step"))
			}
			s.snapshot()
		})
	})
}

// A snapshot ends when it is told to, and so does a restore, which leaves the
// replica for a later one.
func TestMemorySnapshotsStop(t *testing.T) {
	eachShard(t, func(t *testing.T, made func(Config) *memory) {
		s := filled(t, made)
		b, want := s.snapshot(), s.state()
		done := make(chan struct{})
		close(done)
		prepared, err := s.PrepareSnapshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SaveSnapshot(prepared, io.Discard, nil, done); err != sm.ErrSnapshotStopped {
			t.Errorf("a snapshot that is stopped says %v", err)
		}
		if err := s.RecoverFromSnapshot(bytes.NewReader(b), nil, done); err != sm.ErrSnapshotStopped || s.Err() != nil {
			t.Errorf("a restore that is stopped says %v, %v", err, s.Err())
		}
		s.restore(b)
		if !slices.Equal(s.state(), want) {
			t.Error("it holds something else")
		}
		if err := s.SaveSnapshot(prepared, failingWriter{}, nil, nil); err != sm.ErrSnapshotAborted || s.Err() != nil {
			t.Errorf("on a full disk it says %v, %v", err, s.Err())
		}
	})
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no space") }
