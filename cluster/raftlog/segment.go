package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
)

const (
	segmentSuffix = ".log"
	spareSuffix   = ".spare" // a segment that is not needed any more; the next one takes its file
	newSuffix     = ".new"   // a segment that is being prepared

	segmentHeader = 512 // bytes before the first record
	formatVersion = 1
	maxSpares     = 2

	// maxStorage bounds the length of the name of a storage.
	maxStorage = 128
)

// magic begins each segment.
var magic = [8]byte{'h', 'i', 'q', 'l', 'o', 'g', 0, '\n'}

// A segment is a file with records.
type segment struct {
	number uint64
	file   File
	size   int64 // of the file when it was opened
	end    int64 // where the next record goes
	synced int64 // everything before it is durable
	live   int64 // bytes of records that have needed entries

	readers int  // how many calls read from it now
	freed   bool // it is not needed any more: the last reader frees the file
}

func segmentName(number uint64) string { return fmt.Sprintf("%016x%s", number, segmentSuffix) }

// segmentNumber returns the number of the segment in a file. It returns false for the
// name of another file.
func segmentNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 16, 64)
	return number, err == nil && number > 0
}

// encodeSegmentHeader returns what a segment begins with: the magic, the version of
// the format (4 bytes), the length of the name of the storage (4), the number of the
// segment (8), the name, zeros, and at the end a checksum.
func encodeSegmentHeader(number uint64, storage string) []byte {
	b := make([]byte, segmentHeader)
	copy(b, magic[:])
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(storage)))
	binary.LittleEndian.PutUint64(b[16:], number)
	copy(b[24:], storage)
	binary.LittleEndian.PutUint32(b[segmentHeader-4:], crc32.Checksum(b[:segmentHeader-4], castagnoli))
	return b
}

// checkSegmentHeader reports why a segment cannot be read. An empty storage stands
// for any.
func checkSegmentHeader(b []byte, number uint64, storage string) error {
	switch {
	case len(b) < segmentHeader || [8]byte(b) != magic:
		return errors.New("it is no segment of a Raft log")
	case binary.LittleEndian.Uint32(b[8:]) > formatVersion:
		return fmt.Errorf("it has format %d, and this program knows formats up to %d: start a newer program", binary.LittleEndian.Uint32(b[8:]), formatVersion)
	case binary.LittleEndian.Uint32(b[segmentHeader-4:]) != crc32.Checksum(b[:segmentHeader-4], castagnoli):
		return errors.New("the checksum of its header is wrong")
	case binary.LittleEndian.Uint64(b[16:]) != number:
		return fmt.Errorf("it is a copy of segment %d", binary.LittleEndian.Uint64(b[16:]))
	}
	n := binary.LittleEndian.Uint32(b[12:])
	if n > maxStorage {
		return errors.New("its header is damaged")
	}
	if got := string(b[24 : 24+n]); storage != "" && got != storage {
		return fmt.Errorf("it belongs to another node: to storage %q, and this is %q", got, storage)
	}
	return nil
}

// prepareSegment makes a segment that can be written to, durably. It takes the file
// of a spare one if there is one.
func (l *Log) prepareSegment(number uint64) (*segment, error) {
	name, tmp := segmentName(number), segmentName(number)+newSuffix
	file, err := l.takeSpare(tmp)
	if err == nil && file == nil {
		file, err = l.fs.Create(tmp, l.opts.SegmentSize)
	}
	if err != nil {
		return nil, err
	}
	_, err = file.WriteAt(encodeSegmentHeader(number, l.opts.Storage), 0)
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = l.fs.Rename(tmp, name)
	}
	if err == nil {
		err = l.fs.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &segment{number: number, file: file, size: l.opts.SegmentSize, end: segmentHeader, synced: segmentHeader}, nil
}

// takeSpare opens the file of a spare segment under another name. It returns nil if
// there is none.
func (l *Log) takeSpare(name string) (File, error) {
	l.mu.Lock()
	n := len(l.spares)
	if n == 0 {
		l.mu.Unlock()
		return nil, nil
	}
	spare := l.spares[n-1]
	l.spares = l.spares[:n-1]
	l.mu.Unlock()
	if err := l.fs.Rename(spare, name); err != nil {
		return nil, err
	}
	// If the file had its old name after a loss of power, and new content, it would be
	// taken for a damaged segment.
	if err := l.fs.Sync(); err != nil {
		return nil, err
	}
	return l.fs.Open(name)
}

// retire gives up the file of a segment that is not needed any more, to be used again
// or removed. The caller does not hold mu.
func (l *Log) retire(s *segment) error {
	if err := s.file.Close(); err != nil {
		return err
	}
	name := segmentName(s.number)
	l.mu.Lock()
	spare := s.size == l.opts.SegmentSize && len(l.spares) < maxSpares
	l.mu.Unlock()
	if !spare {
		return l.fs.Remove(name)
	}
	if err := l.fs.Rename(name, name+spareSuffix); err != nil {
		return err
	}
	l.mu.Lock()
	l.spares = append(l.spares, name+spareSuffix)
	l.mu.Unlock()
	return nil
}

// files is what a folder holds, by kind.
type files struct {
	segments []uint64 // in order
	spares   []string
	others   []string // of preparations that were interrupted
}

func listFiles(fs FS) (files, error) {
	var all files
	names, err := fs.List()
	for _, name := range names {
		if number, ok := segmentNumber(name); ok {
			all.segments = append(all.segments, number)
		} else if strings.HasSuffix(name, segmentSuffix+spareSuffix) {
			all.spares = append(all.spares, name)
		} else if strings.HasSuffix(name, segmentSuffix+newSuffix) {
			all.others = append(all.others, name)
		}
	}
	slices.Sort(all.segments)
	return all, err
}
