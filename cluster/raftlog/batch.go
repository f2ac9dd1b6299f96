package raftlog

import (
	"hash/crc32"
	"slices"
	"time"
)

// A Durability says how durable a record is when the call that wrote it returns.
type Durability struct {
	Mode     Mode
	Interval time.Duration // between syncs, of Interval
}

// A Mode is a kind of Durability.
type Mode int

const (
	// Always waits until the record is on disk.
	Always Mode = iota
	// Async waits until the operating system has the record, and begins a sync. A loss
	// of power, or of the operating system, may take the records of the last
	// milliseconds; the end of the process takes none.
	Async
	// Interval is like Async, but there is one sync in each interval.
	Interval
)

// A batch is what one write writes: the records of several callers.
type batch struct {
	buf     []byte
	records []pendingRecord
	sync    bool // the callers wait for a sync
	rotate  bool // it begins a segment

	lead chan struct{} // holds one; its receiver writes the batch
	done chan struct{} // closed when the batch is written
	err  error         // set before done is closed
}

// pendingRecord is a record of a batch.
type pendingRecord struct {
	record
	at     int // where it begins in the buffer
	length uint32
}

func newBatch() *batch {
	return &batch{buf: make([]byte, 0, 1<<10), lead: make(chan struct{}, 1), done: make(chan struct{})}
}

// add appends a record whose payload is written by f. If f fails, the batch is as it
// was before.
func (b *batch) add(k kind, f func(*writer) error) error {
	at := len(b.buf)
	w := writer{append(b.buf, make([]byte, recordHeader)...)}
	if err := f(&w); err != nil {
		return err
	}
	payload := w.b[at+recordHeader:]
	rec, err := decode(k, payload)
	if err == nil && len(payload) > maxPayload {
		err = errPayload
	}
	if err != nil {
		return err
	}
	b.records = append(b.records, pendingRecord{rec, at, uint32(len(payload))})
	b.buf = append(w.b, make([]byte, padded(int64(len(w.b)))-int64(len(w.b)))...)
	return nil
}

func (b *batch) addCheckpoint(end uint64, x *index) error {
	return b.add(kindCheckpoint, func(w *writer) error {
		w.checkpoint(&checkpoint{end: end, oldest: x.oldest, replicas: x.replicas})
		return nil
	})
}

// finish writes the headers of the records.
func (b *batch) finish(segment, durable uint64) {
	for _, r := range b.records {
		payload := b.buf[r.at+recordHeader:][:r.length]
		h := header{sum: crc32.Checksum(payload, castagnoli), length: r.length, kind: r.kind, segment: segment, durable: durable}
		h.put(b.buf[r.at:])
	}
}

// append adds to the next batch what f adds, and returns when the batch is written.
// All calls at the same time share a batch, and one of them writes it. f is called
// with mu held.
func (l *Log) append(f func(*batch) error) error {
	l.mu.Lock()
	if err := l.usable(); err != nil {
		l.mu.Unlock()
		return err
	}
	b := l.pending
	if b == nil {
		b = newBatch()
	}
	before := len(b.records)
	if err := f(b); err != nil {
		// Records that were added before the failure are written: nothing depends on them.
		if len(b.records) > 0 {
			l.pending = b
		}
		l.mu.Unlock()
		return err
	}
	if len(b.records) == before {
		l.mu.Unlock()
		return nil
	}
	l.pending = b
	if l.writing {
		l.mu.Unlock()
		select {
		case <-b.done:
			return b.err
		case <-b.lead:
		}
		l.mu.Lock() // this goroutine writes now: writing stays true
	}
	l.writing = true
	l.pending = nil
	l.mu.Unlock()
	err := l.write(b)
	l.disown()
	return err
}

// own makes the caller the only one that writes.
func (l *Log) own() {
	l.mu.Lock()
	if !l.writing {
		l.writing = true
		l.mu.Unlock()
		return
	}
	turn := make(chan struct{})
	l.owners = append(l.owners, turn)
	l.mu.Unlock()
	<-turn
}

// disown lets another goroutine write: in turn one that waits in own, and one that
// waits for the next batch.
func (l *Log) disown() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(l.owners) > 0 && (l.pending == nil || l.ownersTurn):
		l.ownersTurn = false
		close(l.owners[0])
		l.owners = l.owners[1:]
	case l.pending != nil:
		l.ownersTurn = true
		l.pending.lead <- struct{}{}
	default:
		l.writing = false
	}
}

// write writes a batch to the last segment, or to the next one if there is not
// enough space, and applies its records to the index. Only the goroutine that owns
// writing calls it.
func (l *Log) write(b *batch) error {
	b.err = l.tryWrite(b)
	if b.err != nil {
		b.err = l.fail(b.err)
	}
	close(b.done)
	return b.err
}

func (l *Log) tryWrite(b *batch) error {
	l.mu.Lock()
	s, err := l.last(), l.err
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if b.rotate || s.end+int64(len(b.buf)) > s.size && s.end > segmentHeader {
		if s, err = l.nextSegment(s, b); err != nil {
			return err
		}
	}
	l.mu.Lock()
	durable := uint64(s.synced)
	l.mu.Unlock()
	b.finish(s.number, durable)
	start := s.end // only the owner of writing changes it
	end := start + int64(len(b.buf))
	if _, err := s.file.WriteAt(b.buf, start); err != nil {
		return err
	}
	if b.sync {
		if err := s.file.Sync(); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.end, s.size = end, max(s.size, end)
	if b.sync {
		s.synced = end
	} else if l.opts.Durability.Mode != Always {
		l.signal(l.flush)
	}
	for i := range b.records {
		r := &b.records[i]
		at := place{segment: s, offset: start + int64(r.at), size: header{length: r.length}.size()}
		if err := l.index.apply(&r.record, at); err != nil {
			return err
		}
	}
	if l.prepared == nil {
		l.signal(l.maintenance)
	}
	return nil
}

// last returns the segment that is written to. The caller holds mu.
func (l *Log) last() *segment { return l.segments[len(l.segments)-1] }

// nextSegment begins a segment with a checkpoint, which it puts before the other
// records of a batch.
func (l *Log) nextSegment(full *segment, b *batch) (*segment, error) {
	// What is in the full segment must be durable before anything in the next one is.
	if full.synced < full.end {
		if err := full.file.Sync(); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	full.synced = full.end
	l.mu.Unlock()
	// Until the next segment is the last one, none may be prepared: it would have the same
	// number, and its file would replace the one that is written to.
	l.preparing.Lock()
	defer l.preparing.Unlock()
	next, err := l.takePrepared(full.number + 1)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	first := newBatch()
	if err := first.addCheckpoint(uint64(full.end), l.index); err != nil {
		return nil, err
	}
	for i := range b.records {
		b.records[i].at += len(first.buf)
	}
	b.records = slices.Insert(b.records, 0, first.records[0])
	b.buf = append(first.buf, b.buf...)
	l.segments = append(l.segments, next)
	l.signal(l.maintenance)
	return next, nil
}

// signal asks a goroutine of the log to do something, unless it was asked already.
func (l *Log) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Sync returns once everything that was written before is durable.
func (l *Log) Sync() error {
	l.mu.Lock()
	s, err := l.last(), l.err
	end := s.end
	if err != nil || s.synced == end {
		l.mu.Unlock()
		return err
	}
	s.readers++
	l.mu.Unlock()
	defer l.release(s)
	// Records may be written meanwhile.
	if err := s.file.Sync(); err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	s.synced = max(s.synced, end)
	l.mu.Unlock()
	return nil
}

// flusher syncs what nobody waits for.
func (l *Log) flusher() {
	for {
		select {
		case <-l.flush:
		case <-l.stop:
			return
		}
		if l.opts.Durability.Mode == Interval {
			select {
			case <-time.After(l.opts.Durability.Interval):
			case <-l.stop:
				return
			}
		}
		if l.Sync() != nil {
			return
		}
	}
}
