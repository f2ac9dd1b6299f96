package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
)

func update(shard uint64, state raftpb.State, entries ...raftpb.Entry) raftpb.Update {
	return raftpb.Update{ShardID: shard, ReplicaID: 1, State: state, EntriesToSave: entries}
}

// entriesFrom returns n entries of a term.
func entriesFrom(first, n, term uint64, size int) []raftpb.Entry {
	entries := make([]raftpb.Entry, n)
	for i := range entries {
		entries[i] = raftpb.Entry{Index: first + uint64(i), Term: term, Cmd: make([]byte, size)}
	}
	return entries
}

func mustSave(t testing.TB, l *Log, updates ...raftpb.Update) {
	t.Helper()
	if err := l.SaveRaftState(updates, 1); err != nil {
		t.Fatal(err)
	}
}

// An update is not written if only its commit index has changed. The commit index is
// written with the next update.
func TestCommitIndexesAreNotWritten(t *testing.T) {
	sim := newSimFS()
	l := mustOpen(t, sim, Options{})
	defer func() { l.Close() }()
	state := func(term, vote, commit uint64) raftpb.State {
		return raftpb.State{Term: term, Vote: vote, Commit: commit}
	}
	for _, step := range []struct {
		what   string
		u      raftpb.Update
		saved  bool
		commit uint64 // that is on disk
	}{
		{"the first state", raftpb.Update{State: state(1, 0, 1)}, true, 1},
		{"a commit index", raftpb.Update{State: state(1, 0, 2)}, false, 1},
		{"nothing", raftpb.Update{CommittedEntries: entriesFrom(1, 1, 1, 0)}, false, 1},
		{"entries without a state", raftpb.Update{EntriesToSave: entriesFrom(1, 9, 1, 0)}, true, 2},
		{"a commit index", raftpb.Update{State: state(1, 0, 3)}, false, 2},
		{"a vote", raftpb.Update{State: state(1, 2, 3)}, true, 3},
		{"a term", raftpb.Update{State: state(2, 2, 3)}, true, 3},
		{"a commit index", raftpb.Update{State: state(2, 2, 4)}, false, 3},
		{"a change of members that is committed", raftpb.Update{CommittedEntries: []raftpb.Entry{{Type: raftpb.ConfigChangeEntry}}}, true, 4},
		{"a commit index", raftpb.Update{State: state(2, 2, 5)}, false, 4},
		{"a snapshot", raftpb.Update{Snapshot: raftpb.Snapshot{Index: 9, Term: 2}}, true, 5},
	} {
		before := l.last().end
		step.u.ShardID, step.u.ReplicaID = 1, 1
		mustSave(t, l, step.u)
		if saved := l.last().end != before; saved != step.saved {
			t.Errorf("%s is written: %v", step.what, saved)
		}
		again := mustOpen(t, sim.killed(), Options{})
		if s, err := again.ReadRaftState(1, 1, 0); err != nil || s.State.Commit != step.commit {
			t.Errorf("after %s the commit index is %d, %v, want %d", step.what, s.State.Commit, err, step.commit)
		}
		again.Close()
	}
}

// The files of a log take at most twice what is needed and five segments, though one
// replica keeps an old entry for ever; and files are used again.
func TestSpaceIsGivenBack(t *testing.T) {
	dir := t.TempDir()
	const segment = 64 << 10
	l, err := Open(dir, Options{SegmentSize: segment})
	if err != nil {
		t.Fatal(err)
	}
	mustSave(t, l, update(2, raftpb.State{Term: 1}, entriesFrom(1, 1, 1, 100)...))
	for i := range uint64(2000) {
		mustSave(t, l, update(1, raftpb.State{Term: 1, Commit: i}, entriesFrom(i+1, 1, 1, 1000)...))
		if i%20 != 19 {
			continue
		}
		if err := l.RemoveEntriesTo(1, 1, i-10); err != nil {
			t.Fatal(err)
		}
		done, err := l.CompactEntriesTo(1, 1, i-10)
		if err != nil {
			t.Fatal(err)
		}
		<-done
		if size := folderSize(t, dir); size > 2*20_000+(5+maxSpares)*segment {
			t.Fatalf("after %d entries, the log takes %d bytes", i+1, size)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = Open(dir, Options{SegmentSize: segment})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for shard, want := range map[uint64]uint64{1: 2000, 2: 1} {
		entries, _, err := l.IterateEntries(nil, 0, shard, 1, want, want+1, 1<<20)
		if err != nil || len(entries) != 1 || l.Last(shard, 1) != want {
			t.Errorf("shard %d: %d entries, the last is %d, %v", shard, len(entries), l.Last(shard, 1), err)
		}
	}
}

func folderSize(t *testing.T, dir string) (size int64) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil { // it may be gone
			size += info.Size()
		}
	}
	return size
}

// A record may be larger than a segment.
func TestLargeRecords(t *testing.T) {
	sim := newSimFS()
	l := mustOpen(t, sim, Options{})
	for i := range uint64(5) {
		mustSave(t, l, update(1, raftpb.State{Term: 1}, entriesFrom(2*i+1, 1, 1, 30_000)...), update(2, raftpb.State{Term: 1}, entriesFrom(i+1, 1, 1, 10)...))
		mustSave(t, l, update(1, raftpb.State{}, entriesFrom(2*i+2, 1, 1, 100)...))
	}
	for _, opened := range []*Log{l, mustOpen(t, sim.killed(), Options{})} {
		entries, _, err := opened.IterateEntries(nil, 0, 1, 1, 1, 11, 1<<30)
		if err != nil || len(entries) != 10 || len(entries[8].Cmd) != 30_000 {
			t.Errorf("%d entries, %v", len(entries), err)
		}
		opened.Close()
	}
}

// An update that cannot be written leaves the log as it is, and usable.
func TestRefusedUpdates(t *testing.T) {
	l := mustOpen(t, newSimFS(), Options{})
	defer l.Close()
	gap := append(entriesFrom(1, 1, 1, 0), entriesFrom(3, 1, 1, 0)...)
	if err := l.SaveRaftState([]raftpb.Update{update(1, raftpb.State{Term: 1}, gap...)}, 1); err == nil {
		t.Error("entries with a gap are written")
	}
	mustSave(t, l, update(1, raftpb.State{Term: 1}, entriesFrom(1, 2, 1, 0)...))
	if last := l.Last(1, 1); last != 2 {
		t.Errorf("the last entry is %d", last)
	}
	// Entries that do not follow the last one would leave a hole.
	if err := l.SaveRaftState([]raftpb.Update{update(1, raftpb.State{Term: 1}, entriesFrom(5, 1, 1, 0)...)}, 1); err == nil {
		t.Error("entries after a gap are written")
	}
	mustSave(t, l, update(1, raftpb.State{Term: 1}, entriesFrom(3, 1, 1, 0)...))
}

// A closed log refuses everything.
func TestClosed(t *testing.T) {
	l := mustOpen(t, newSimFS(), Options{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, compact := l.CompactEntriesTo(1, 1, 1)
	_, snapshot := l.GetSnapshot(1, 1)
	_, list := l.ListNodeInfo()
	for what, err := range map[string]error{
		"Close": l.Close(), "Err": l.Err(), "CompactEntriesTo": compact, "GetSnapshot": snapshot, "ListNodeInfo": list,
		"SaveRaftState":   l.SaveRaftState([]raftpb.Update{update(1, raftpb.State{Term: 1})}, 1),
		"RemoveEntriesTo": l.RemoveEntriesTo(1, 1, 1),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What is wrong with a folder is said in a sentence, and nothing is changed.
func TestBadFolders(t *testing.T) {
	l := newLife(t, 8, Options{Storage: "mine"})
	for range 100 {
		if err := l.next().call(l.log); err != nil {
			t.Fatal(err)
		}
	}
	whole := l.sim.killed()
	l.close()
	var names []string
	for _, name := range mustList(t, whole) {
		if strings.HasSuffix(name, segmentSuffix) {
			names = append(names, name)
		}
	}
	first, second, newest := names[0], names[1], names[len(names)-1]
	if len(names) < 4 {
		t.Fatal(names)
	}
	header := func(f *simFile, change func(b []byte)) {
		change(f.data)
		binary.LittleEndian.PutUint32(f.data[segmentHeader-4:], crc32.Checksum(f.data[:segmentHeader-4], castagnoli))
	}
	for what, test := range map[string]struct {
		change func(s *simFS)
		want   string
	}{
		"the first segment is missing":  {func(s *simFS) { delete(s.names, first) }, "missing"},
		"the second segment is missing": {func(s *simFS) { delete(s.names, second) }, "missing"},
		"a segment twice": {func(s *simFS) {
			s.names[second] = &simFile{fs: s, data: slices.Clone(s.names[first].data)}
		}, "copy of segment"},
		"another node's segment": {func(s *simFS) {
			header(s.names[second], func(b []byte) { copy(b[24:], "your") })
		}, "another node"},
		"a newer format": {func(s *simFS) {
			header(s.names[second], func(b []byte) { b[8] = 2 })
		}, "newer program"},
		"an empty file":      {func(s *simFS) { s.names[second].data = nil }, "no segment"},
		"a truncated file":   {func(s *simFS) { s.names[first].data = s.names[first].data[:3000] }, "no record"},
		"a file of zeros":    {func(s *simFS) { clear(s.names[second].data) }, "no segment"},
		"the records erased": {func(s *simFS) { clear(s.names[second].data[segmentHeader:]) }, "checkpoint"},
		"the newest is a text": {func(s *simFS) {
			s.names[newest].data = []byte(strings.Repeat("this is a text\n", 1000))
		}, "no segment"},
	} {
		s := whole.clone()
		test.change(s)
		before := dump(s)
		_, err := openSim(s, Options{Storage: "mine"})
		if corrupt := new(CorruptError); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "segment ") {
			t.Errorf("%s: %v, want %q", what, err, test.want)
		}
		if !reflect.DeepEqual(before, dump(s)) {
			t.Errorf("%s: the files were changed", what)
		}
	}
}

func dump(s *simFS) map[string]string {
	all := map[string]string{}
	for name, f := range s.names {
		all[name] = string(f.data)
	}
	return all
}

// Inspect describes each record and the log as a whole, and changes nothing.
func TestInspect(t *testing.T) {
	dir := t.TempDir()
	if _, err := Inspect(dir, nil); err == nil {
		t.Error("an empty folder is a log")
	}
	l, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	mustSave(t, l, update(1, raftpb.State{Term: 2, Vote: 1}, entriesFrom(1, 5, 2, 10)...))
	if err := l.SaveSnapshots([]raftpb.Update{{ShardID: 1, ReplicaID: 1, Snapshot: raftpb.Snapshot{Index: 3, Term: 2}}}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.RemoveEntriesTo(1, 1, 2), l.Close()); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	sum, err := Inspect(dir, func(r Record) { kinds = append(kinds, r.Kind) })
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(kinds, " "); got != "checkpoint update snapshot remove-to closed" {
		t.Error(got)
	}
	want := ReplicaSummary{Shard: 1, Replica: 1, First: 3, Last: 5, Term: 2, Vote: 1, Snapshot: 3}
	if len(sum.Replicas) != 1 || sum.Replicas[0] != want || !sum.Closed {
		t.Errorf("%+v", sum)
	}
	path := filepath.Join(dir, segmentName(1))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[segmentHeader+recordHeader+1] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(dir, nil); !errors.As(err, new(*CorruptError)) {
		t.Error(err)
	}
}

// Whatever a segment holds, the log is opened or refused. If it is opened, it is of
// use, and is opened again.
func FuzzOpen(f *testing.F) {
	l, err := openSim(newSimFS(), Options{})
	if err != nil {
		f.Fatal(err)
	}
	h := newHistory(3)
	for range 12 {
		if err := h.next().call(l); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(slices.Clone(l.last().file.(*simFile).data[segmentHeader:l.last().end]), false)
	f.Add([]byte{}, false)
	l.Close()
	f.Fuzz(func(t *testing.T, records []byte, resum bool) {
		if resum {
			records = withSums(records)
		}
		sim := newSimFS()
		sim.names[segmentName(1)] = &simFile{fs: sim, data: append(encodeSegmentHeader(1, ""), records...)}
		l, err := openSim(sim, Options{})
		if err != nil {
			return
		}
		var nodes []*past
		for node := range l.index.replicas {
			nodes = append(nodes, &past{node: node})
		}
		before, err := read(l, nodes)
		if err != nil && !errors.As(err, new(*CorruptError)) && !strings.Contains(err.Error(), "entries after") {
			t.Fatal(err)
		}
		mustSave(t, l, update(99, raftpb.State{Term: 5}, entriesFrom(1, 3, 5, 100)...))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = mustOpen(t, sim.killed(), Options{})
		defer l.Close()
		if after, again := read(l, nodes); fmt.Sprint(again) != fmt.Sprint(err) || !reflect.DeepEqual(before, after) {
			t.Fatalf("%v, %v, and then %v, %v", before, err, after, again)
		}
		if last := l.Last(99, 1); last != 3 {
			t.Fatalf("the last entry is %d", last)
		}
	})
}

// withSums sets the checksums of what may be records, so that their payloads are
// decoded.
func withSums(b []byte) []byte {
	b = slices.Clone(b)
	for at := 0; at+recordHeader <= len(b); {
		h := header{length: min(binary.LittleEndian.Uint32(b[at+8:]), uint32(len(b)-at-recordHeader)), kind: kind(b[at+12]), segment: 1, durable: uint64(at)}
		h.sum = crc32.Checksum(b[at+recordHeader:][:h.length], castagnoli)
		h.put(b[at:])
		at += int(h.size())
	}
	return b
}

func BenchmarkSave(b *testing.B) {
	for _, size := range []int{100, 4000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l, err := Open(b.TempDir(), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			for i := 0; b.Loop(); i++ {
				mustSave(b, l, update(1, raftpb.State{Term: 1, Commit: uint64(i)}, entriesFrom(uint64(i)+1, 1, 1, size)...))
			}
		})
	}
}
