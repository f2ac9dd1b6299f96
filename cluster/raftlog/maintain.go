package raftlog

import (
	"errors"

	"github.com/lni/dragonboat/v4/raftio"
)

// copyBytes bounds, roughly, how much is copied at a time: other writes wait for it.
const copyBytes = 256 << 10

// maintainer prepares segments and frees those that are not needed any more.
func (l *Log) maintainer() {
	for {
		select {
		case <-l.maintenance:
		case <-l.stop:
			return
		}
		l.mu.Lock()
		waiting := l.compacted
		l.compacted = nil
		l.mu.Unlock()
		if err := l.prepare(); err != nil {
			// The writer tries again when it needs the segment, and fails if it must.
			l.opts.Logger.Warn("hiqlite: the next segment of the Raft log could not be prepared", "error", err)
		}
		if err := l.collect(); err != nil && !errors.Is(err, ErrClosed) {
			l.fail(err)
		}
		for _, done := range waiting {
			close(done)
		}
	}
}

// prepare prepares the next segment, if there is none.
func (l *Log) prepare() error {
	l.preparing.Lock()
	defer l.preparing.Unlock()
	l.mu.Lock()
	ready, number := l.prepared != nil || l.err != nil, l.last().number+1
	l.mu.Unlock()
	if ready {
		return nil
	}
	// When a segment exists, the checkpoint of the one before it is durable.
	if err := l.Sync(); err != nil {
		return err
	}
	s, err := l.prepareSegment(number)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.prepared = s
	l.mu.Unlock()
	return nil
}

// takePrepared returns the next segment. The caller holds preparing.
func (l *Log) takePrepared(number uint64) (*segment, error) {
	l.mu.Lock()
	s := l.prepared
	l.prepared = nil
	l.mu.Unlock()
	if s != nil {
		return s, nil
	}
	return l.prepareSegment(number)
}

// collect frees segments from the oldest on, while they are not needed or little of
// them is.
func (l *Log) collect() error {
	for {
		select {
		case <-l.stop:
			return nil
		default:
		}
		l.mu.Lock()
		oldest := l.segments[0]
		useless := 0
		for useless < len(l.segments)-1 && l.segments[useless].live == 0 {
			useless++
		}
		sparse := useless == 0 && l.sparse()
		l.mu.Unlock()
		switch {
		case useless > 0:
			if err := l.freeSegments(useless); err != nil {
				return err
			}
		case sparse:
			if err := l.copySegment(oldest); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// sparse reports whether the segments take so much more space than what is needed of
// them that it is copied from the oldest one. The caller holds mu.
func (l *Log) sparse() bool {
	var size, live int64
	for _, s := range l.segments {
		size += s.size
		live += s.live
	}
	return len(l.segments) > 1 && size > 2*live+4*l.opts.SegmentSize
}

// freeSegments frees the first n segments, which must not be needed.
func (l *Log) freeSegments(n int) error {
	l.mu.Lock()
	first := l.segments[n].number
	l.mu.Unlock()
	// What was copied out of the segments, and the records that made other entries
	// useless, are before this record. So they are durable when it is.
	if err := l.appendSynced(kindOldest, func(w *writer) { w.uint(first) }); err != nil {
		return err
	}
	l.mu.Lock()
	var free []*segment
	for _, s := range l.segments[:n] {
		s.freed = true
		if s.readers == 0 {
			free = append(free, s)
		}
	}
	l.segments = append([]*segment(nil), l.segments[n:]...)
	l.mu.Unlock()
	for _, s := range free {
		if err := l.retire(s); err != nil {
			return err
		}
	}
	return nil
}

// free retires a segment whose last reader is done.
func (l *Log) free(s *segment) {
	if err := l.retire(s); err != nil {
		l.fail(err)
	}
}

// copySegment copies what is needed of a segment to the end of the log.
func (l *Log) copySegment(s *segment) error {
	for {
		select {
		case <-l.stop:
			return nil
		default:
		}
		more, err := l.copySome(s)
		if err != nil || !more {
			return err
		}
	}
}

// copySome copies some of what is needed of a segment. While it does, nothing else is
// written. It returns false when there is nothing left.
func (l *Log) copySome(s *segment) (bool, error) {
	l.own()
	defer l.disown()
	b := newBatch()
	for _, c := range l.neededOf(s) {
		if len(b.buf) > copyBytes {
			break
		}
		entries, _, _, err := c.read(nil, 0, max(c.first, c.base+1), c.last+1, maxPayload)
		if err != nil {
			return false, err
		}
		if err := b.add(kindCopied, func(w *writer) error {
			w.node(c.node)
			return w.entries(entries)
		}); err != nil {
			return false, err
		}
	}
	if len(b.records) == 0 {
		return false, nil
	}
	return true, l.write(b)
}

// neededSpan is a span of a replica.
type neededSpan struct {
	span
	node raftio.NodeInfo
	base uint64 // of the replica
}

// neededOf returns the spans in a segment. They stay as they are while the caller
// owns writing.
func (l *Log) neededOf(s *segment) []neededSpan {
	l.mu.Lock()
	defer l.mu.Unlock()
	var needed []neededSpan
	for _, node := range sortedNodes(l.index.replicas) {
		r := l.index.replicas[node]
		for _, sp := range r.spans {
			if sp.segment == s {
				needed = append(needed, neededSpan{sp, node, r.base})
			}
		}
	}
	return needed
}
