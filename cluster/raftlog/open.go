package raftlog

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"slices"

	"github.com/lni/dragonboat/v4/raftio"
)

// A CorruptError says that a log has lost records that were durable, or that a file of
// it cannot be read.
type CorruptError struct {
	Segment string // name of the file
	Offset  int64  // of the record, or -1
	Err     error
}

func (e *CorruptError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("segment %s: %v", e.Segment, e.Err)
	}
	return fmt.Sprintf("segment %s at offset %d: %v", e.Segment, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

var (
	errHeader = errors.New("there is no record")
	errSum    = errors.New("the checksum of a record is wrong")
)

// Open opens the log in a folder, which it creates if it is missing. If the log is
// damaged, the error is a *CorruptError, and the files stay as they are.
func Open(dir string, opts Options) (*Log, error) {
	opts.SegmentSize = max(cmp.Or(opts.SegmentSize, defaultSegmentSize), minSegmentSize)
	opts.Logger = cmp.Or(opts.Logger, slog.Default())
	if len(opts.Storage) > maxStorage {
		return nil, fmt.Errorf("the name of the storage has more than %d bytes", maxStorage)
	}
	if opts.FS == nil {
		fs, err := openFolder(dir)
		if err != nil {
			return nil, err
		}
		opts.FS = fs
	}
	l := &Log{
		opts: opts, fs: opts.FS, index: newIndex(), queued: map[raftio.NodeInfo]*queuedStates{},
		maintenance: make(chan struct{}, 1), flush: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	if err := l.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("the Raft log in %s: %w", dir, err), l.closeFiles())
	}
	l.workers.Go(l.maintainer)
	l.workers.Go(l.flusher)
	l.signal(l.maintenance)
	return l, nil
}

// closeFiles closes the files of all segments.
func (l *Log) closeFiles() error {
	var err error
	for _, s := range l.segments {
		err = errors.Join(err, s.file.Close())
	}
	if l.prepared != nil {
		err = errors.Join(err, l.prepared.file.Close())
	}
	return err
}

func (l *Log) open() error {
	found, err := listFiles(l.fs)
	if err != nil {
		return err
	}
	s := scan{fs: l.fs, storage: l.opts.Storage, index: l.index}
	err = s.run(found.segments)
	l.segments = s.segments
	if err != nil {
		return err
	}
	for _, name := range found.others {
		if err := l.fs.Remove(name); err != nil {
			return err
		}
	}
	l.spares = found.spares
	for _, number := range s.useless {
		if err := l.fs.Remove(segmentName(number)); err != nil {
			return err
		}
	}
	return l.begin(&s)
}

// begin makes the log ready to be written to.
func (l *Log) begin(s *scan) error {
	if s.empty {
		first, err := l.prepareSegment(1)
		if err != nil {
			return err
		}
		l.segments = []*segment{first}
		b := newBatch()
		b.sync = true
		if err := b.addCheckpoint(0, l.index); err != nil {
			return err
		}
		return l.tryWrite(b)
	}
	if n := len(l.segments); s.prepared {
		l.prepared, l.segments = l.segments[n-1], l.segments[:n-1]
		l.prepared.synced = segmentHeader
	}
	// What the last run of the program has written may not be on disk.
	last := l.last()
	if err := last.file.Sync(); err != nil {
		return err
	}
	last.synced = last.end
	if s.rotate {
		b := newBatch()
		b.sync, b.rotate = true, true
		return l.tryWrite(b)
	}
	return nil
}

// A scan reads all segments of a log and applies their records to an index.
type scan struct {
	fs      FS
	storage string
	index   *index
	visit   func(Record) // is called for each record; may be nil

	segments []*segment // in order
	useless  []uint64   // numbers of segments that are not needed
	prepared bool       // the last segment has no records
	rotate   bool       // the last record must be followed by a new segment
	empty    bool       // nothing was ever written
	closed   bool       // the last record says that the log was closed
}

func corrupt(number uint64, offset int64, format string, args ...any) error {
	return &CorruptError{Segment: segmentName(number), Offset: offset, Err: fmt.Errorf(format, args...)}
}

func (s *scan) run(numbers []uint64) error {
	if len(numbers) == 0 {
		s.empty = true
		return nil
	}
	// Only the segments without a gap up to the newest can be needed.
	first := len(numbers) - 1
	for first > 0 && numbers[first-1] == numbers[first]-1 {
		first--
	}
	checks := make([]*checkpoint, 0, len(numbers)-first)
	for _, number := range numbers[first:] {
		check, err := s.openSegment(number)
		if err != nil {
			return err
		}
		checks = append(checks, check)
	}
	if err := s.findLast(checks); err != nil || s.empty {
		return err
	}
	for i := range s.segments {
		if checks[i] == nil {
			break // the prepared one
		}
		if err := s.readSegment(i, checks); err != nil {
			return err
		}
	}
	return s.finish(numbers[:first])
}

// openSegment opens a segment, checks its header, and returns the checkpoint that it
// begins with, or nil if there is none.
func (s *scan) openSegment(number uint64) (*checkpoint, error) {
	file, err := s.fs.Open(segmentName(number))
	if err != nil {
		return nil, err
	}
	seg := &segment{number: number, file: file, end: segmentHeader}
	s.segments = append(s.segments, seg)
	if seg.size, err = file.Size(); err != nil {
		return nil, err
	}
	b := make([]byte, segmentHeader)
	if _, err := file.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, &CorruptError{segmentName(number), 0, err}
	}
	if err := checkSegmentHeader(b, number, s.storage); err != nil {
		return nil, &CorruptError{segmentName(number), -1, err}
	}
	rec, _, _, err := seg.readAt(segmentHeader)
	if err != nil && !errors.Is(err, errHeader) && !errors.Is(err, errSum) {
		return nil, &CorruptError{segmentName(number), segmentHeader, err}
	}
	return rec.check, nil
}

// findLast finds which segment is the last one with records.
func (s *scan) findLast(checks []*checkpoint) error {
	n := len(checks)
	last := n - 1
	for last >= 0 && checks[last] == nil {
		last--
	}
	if i := slices.Index(checks[:last+1], nil); i >= 0 {
		return corrupt(s.segments[i].number, segmentHeader, "the checkpoint cannot be read")
	}
	switch {
	case last == n-1:
		return nil
	case last == n-2 && last >= 0, last < 0 && n == 1 && s.segments[0].number == 1:
		// The newest segment was prepared only, or its first write was torn.
		newest := s.segments[n-1]
		later, err := newest.laterRecord(segmentHeader - recordAlign)
		if err != nil {
			return err
		}
		if later.durable > segmentHeader {
			return corrupt(newest.number, segmentHeader, "the checkpoint cannot be read")
		}
		s.empty, s.prepared = last < 0, last >= 0 && later.segment == 0
		if s.prepared {
			return nil
		}
		// It is prepared anew, so that nothing of the torn write is found again.
		s.segments = s.segments[:n-1]
		return newest.file.Close()
	}
	return corrupt(s.segments[last+1].number, segmentHeader, "the checkpoint cannot be read")
}

// readSegment applies the records of a segment.
func (s *scan) readSegment(i int, checks []*checkpoint) error {
	seg := s.segments[i]
	limit, last := int64(-1), i+1 == len(checks) || checks[i+1] == nil
	if !last {
		limit = int64(checks[i+1].end)
	}
	if err := s.checkpoint(i, checks[i]); err != nil {
		return err
	}
	for seg.end != limit {
		rec, h, _, err := seg.readAt(seg.end)
		if err == nil && rec.kind == kindCheckpoint && seg.end != segmentHeader {
			err = errors.New("a checkpoint is not the first record")
		}
		if err == nil {
			err = s.index.apply(&rec, place{seg, seg.end, h.size()})
		}
		if last && (errors.Is(err, errHeader) || errors.Is(err, errSum)) {
			return s.endSegment(seg, err)
		}
		if err != nil {
			return &CorruptError{segmentName(seg.number), seg.end, err}
		}
		if s.visit != nil {
			s.visit(newRecord(seg, seg.end, h, &rec))
		}
		s.closed = rec.kind == kindClosed
		seg.end += h.size()
	}
	seg.synced = seg.end
	return nil
}

// checkpoint takes the first checkpoint, and compares each other one with the records
// before it.
func (s *scan) checkpoint(i int, c *checkpoint) error {
	number := s.segments[i].number
	if i == 0 {
		s.index.replicas, s.index.oldest = c.replicas, c.oldest
		return nil
	}
	for node, r := range c.replicas {
		if had := s.index.replicas[node]; had == nil || !had.same(r) {
			return corrupt(number, segmentHeader, "the checkpoint does not follow from the records before it (shard %d, replica %d)", node.ShardID, node.ReplicaID)
		}
	}
	if len(s.index.replicas) != len(c.replicas) {
		return corrupt(number, segmentHeader, "the checkpoint does not have all replicas")
	}
	return nil
}

// endSegment decides what it means that no record follows the last one.
func (s *scan) endSegment(seg *segment, why error) error {
	later, err := seg.laterRecord(seg.end)
	if err != nil {
		return err
	}
	if later.durable > uint64(seg.end) {
		return &CorruptError{segmentName(seg.number), seg.end, why}
	}
	// Otherwise a record that follows belongs to the same write, which was not
	// acknowledged. It must not be found when something else is written before it.
	s.rotate = later.segment != 0
	return nil
}

// finish checks what was read.
func (s *scan) finish(before []uint64) error {
	for _, node := range sortedNodes(s.index.replicas) {
		if err := s.index.replicas[node].check(); err != nil {
			return corrupt(s.segments[0].number, -1, "shard %d, replica %d: %w", node.ShardID, node.ReplicaID, err)
		}
	}
	if first := s.segments[0].number; first > s.index.oldest {
		return corrupt(first-1, -1, "the file is missing")
	}
	newest := s.segments[len(s.segments)-1].number
	if s.prepared {
		newest--
	}
	if s.index.oldest > newest {
		return corrupt(newest, -1, "all segments are marked as not needed")
	}
	s.useless = before
	for s.segments[0].number < s.index.oldest {
		old := s.segments[0]
		if old.live > 0 {
			return corrupt(old.number, -1, "it has entries that are needed, and is marked as not needed")
		}
		if err := old.file.Close(); err != nil {
			return err
		}
		s.useless = append(s.useless, old.number)
		s.segments = s.segments[1:]
	}
	return nil
}

// readAt reads the record at an offset. The error wraps errHeader or errSum if there
// is none.
func (s *segment) readAt(offset int64) (record, header, []byte, error) {
	b := make([]byte, recordHeader)
	if _, err := s.file.ReadAt(b, offset); errors.Is(err, io.EOF) {
		return record{}, header{}, nil, errHeader
	} else if err != nil {
		return record{}, header{}, nil, err
	}
	h, ok := parseHeader(b, s.number)
	if !ok || offset+recordHeader+int64(h.length) > s.size {
		return record{}, header{}, nil, errHeader
	}
	payload := make([]byte, h.length)
	if _, err := s.file.ReadAt(payload, offset+recordHeader); errors.Is(err, io.EOF) {
		return record{}, h, nil, errHeader
	} else if err != nil {
		return record{}, h, nil, err
	}
	if crc32.Checksum(payload, castagnoli) != h.sum {
		return record{}, h, nil, errSum
	}
	rec, err := decode(h.kind, payload)
	return rec, h, payload, err
}

// laterRecord looks for headers of records after an offset. It returns the one with
// the highest durable offset, or the zero header.
func (s *segment) laterRecord(offset int64) (header, error) {
	var found header
	const chunk = 1 << 20
	b := make([]byte, chunk+recordHeader)
	for at := offset + recordAlign; at < s.size; at += chunk {
		n, err := s.file.ReadAt(b[:min(int64(len(b)), s.size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return found, err
		}
		for i := 0; i < chunk && i+recordHeader <= n; i += recordAlign {
			if h, ok := parseHeader(b[i:n], s.number); ok && (found.segment == 0 || h.durable > found.durable) {
				found = h
			}
		}
	}
	return found, nil
}
