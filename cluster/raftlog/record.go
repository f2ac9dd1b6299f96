package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// A kind says what the payload of a record holds. Its numbers are part of the format.
type kind uint8

const (
	kindUpdate     kind = 1 + iota // entries, state and received snapshot of a replica
	kindBootstrap                  // what a replica was created with
	kindSnapshot                   // a snapshot that the replica has made itself
	kindRemoveTo                   // entries up to an index are not needed any more
	kindRemoveData                 // a replica is forgotten
	kindImport                     // a replica begins anew with a snapshot
	kindCheckpoint                 // everything but entries; the first record of a segment
	kindCopied                     // entries that were copied from an older segment
	kindOldest                     // segments before a number are not needed any more
	kindClosed                     // the log was closed
)

var kindNames = map[kind]string{
	kindUpdate: "update", kindBootstrap: "bootstrap", kindSnapshot: "snapshot", kindRemoveTo: "remove-to",
	kindRemoveData: "remove-data", kindImport: "import", kindCheckpoint: "checkpoint", kindCopied: "copied",
	kindOldest: "oldest", kindClosed: "closed",
}

func (k kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

const (
	recordHeader = 32
	recordAlign  = 8

	// maxPayload bounds what is allocated for a record that is read.
	maxPayload = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A header precedes the payload of a record. On disk it is, in little-endian order:
// its own checksum (4 bytes), the checksum of the payload (4), the length of the
// payload (4), the kind (1), three zeros, the number of the segment (8) and the
// durable offset (8).
type header struct {
	sum     uint32 // of the payload
	length  uint32 // of the payload
	kind    kind
	segment uint64
	durable uint64
}

// size returns how many bytes a record takes, with its padding.
func (h header) size() int64 { return padded(recordHeader + int64(h.length)) }

func padded(n int64) int64 { return (n + recordAlign - 1) &^ (recordAlign - 1) }

// put writes the header to b, which has recordHeader bytes.
func (h header) put(b []byte) {
	binary.LittleEndian.PutUint32(b[4:], h.sum)
	binary.LittleEndian.PutUint32(b[8:], h.length)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.kind))
	binary.LittleEndian.PutUint64(b[16:], h.segment)
	binary.LittleEndian.PutUint64(b[24:], h.durable)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:recordHeader], castagnoli))
}

// parseHeader returns the header at the beginning of b. It returns false if there is
// none that belongs to the segment.
func parseHeader(b []byte, segment uint64) (header, bool) {
	if len(b) < recordHeader || binary.LittleEndian.Uint64(b[16:]) != segment {
		return header{}, false
	}
	if binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:recordHeader], castagnoli) {
		return header{}, false
	}
	h := header{
		sum:     binary.LittleEndian.Uint32(b[4:]),
		length:  binary.LittleEndian.Uint32(b[8:]),
		kind:    kind(b[12]),
		segment: segment,
		durable: binary.LittleEndian.Uint64(b[24:]),
	}
	return h, h.length <= maxPayload
}

// A record is the content of a payload. Which fields are set depends on the kind.
type record struct {
	kind      kind
	node      raftio.NodeInfo
	state     raftpb.State     // update
	snapshot  *raftpb.Snapshot // update, snapshot, import; nil: none
	bootstrap *raftpb.Bootstrap
	entries   entryRange  // update, copied
	index     uint64      // remove-to: of an entry; oldest: of a segment
	check     *checkpoint // checkpoint
}

// An entryRange says which entries a record has.
type entryRange struct {
	first, last uint64 // 0, 0: none
	term        uint64 // of all of them; 0: they differ
	at          int    // where the first entry begins in the payload
}

func (r entryRange) empty() bool { return r.last == 0 }

// A checkpoint holds what a reader needs of the segments before it, except entries.
type checkpoint struct {
	end      uint64 // where the records of the previous segment end; 0: there is none
	oldest   uint64 // number of the oldest segment that is needed
	replicas map[raftio.NodeInfo]*replica
}

// Parts of the payload of an update.
const (
	hasState = 1 << iota
	hasSnapshot
	hasEntries
	hasBootstrap
)

var errPayload = errors.New("the payload cannot be decoded")

type writer struct{ b []byte }

func (w *writer) uint(n uint64)          { w.b = binary.AppendUvarint(w.b, n) }
func (w *writer) node(n raftio.NodeInfo) { w.uint(n.ShardID); w.uint(n.ReplicaID) }
func (w *writer) state(s raftpb.State)   { w.uint(s.Term); w.uint(s.Vote); w.uint(s.Commit) }
func (w *writer) message(m raftpb.Marshaler) {
	w.bytes(raftpb.MustMarshal(m))
}

func (w *writer) bytes(b []byte) {
	w.uint(uint64(len(b)))
	w.b = append(w.b, b...)
}

// entries writes consecutive entries.
func (w *writer) entries(entries []raftpb.Entry) error {
	w.uint(uint64(len(entries)))
	w.uint(entries[0].Index)
	term := entries[0].Term
	for i := range entries {
		if entries[i].Index != entries[0].Index+uint64(i) {
			return fmt.Errorf("entry %d follows entry %d", entries[i].Index, entries[i-1].Index)
		}
		if entries[i].Term != term {
			term = 0
		}
	}
	w.uint(term)
	for i := range entries {
		w.uint(uint64(entries[i].Size()))
		n := len(w.b)
		w.b = append(w.b, make([]byte, entries[i].Size())...)
		if _, err := entries[i].MarshalTo(w.b[n:]); err != nil {
			return err
		}
	}
	return nil
}

// update writes the payload of an update.
func (w *writer) update(u *raftpb.Update) error {
	w.node(raftio.NodeInfo{ShardID: u.ShardID, ReplicaID: u.ReplicaID})
	parts := uint64(0)
	if !raftpb.IsEmptyState(u.State) {
		parts |= hasState
	}
	if !raftpb.IsEmptySnapshot(u.Snapshot) {
		parts |= hasSnapshot
	}
	if len(u.EntriesToSave) > 0 {
		parts |= hasEntries
	}
	w.uint(parts)
	if parts&hasState != 0 {
		w.state(u.State)
	}
	if parts&hasSnapshot != 0 {
		w.message(&u.Snapshot)
	}
	if parts&hasEntries != 0 {
		return w.entries(u.EntriesToSave)
	}
	return nil
}

func (w *writer) checkpoint(c *checkpoint) {
	w.uint(c.end)
	w.uint(c.oldest)
	w.uint(uint64(len(c.replicas)))
	for _, node := range sortedNodes(c.replicas) {
		r := c.replicas[node]
		w.node(node)
		parts := uint64(hasState)
		if r.snapshot != nil {
			parts |= hasSnapshot
		}
		if r.bootstrap != nil {
			parts |= hasBootstrap
		}
		w.uint(parts)
		w.state(r.state)
		if r.snapshot != nil {
			w.message(r.snapshot)
		}
		if r.bootstrap != nil {
			w.message(r.bootstrap)
		}
		w.uint(r.base)
		w.uint(r.last)
	}
}

// A reader decodes a payload. After the first failure all values are zero.
type reader struct {
	b   []byte
	at  int
	bad bool
}

func (r *reader) uint() uint64 {
	n, size := binary.Uvarint(r.b[r.at:])
	if size <= 0 {
		r.bad, r.at = true, len(r.b)
		return 0
	}
	r.at += size
	return n
}

func (r *reader) bytes() []byte {
	n := r.uint()
	if n > uint64(len(r.b)-r.at) {
		r.bad, r.at = true, len(r.b)
		return nil
	}
	b := r.b[r.at : r.at+int(n)]
	r.at += int(n)
	return b
}

func (r *reader) node() raftio.NodeInfo {
	return raftio.NodeInfo{ShardID: r.uint(), ReplicaID: r.uint()}
}

func (r *reader) state() raftpb.State {
	return raftpb.State{Term: r.uint(), Vote: r.uint(), Commit: r.uint()}
}

func (r *reader) message(m raftpb.Unmarshaler) {
	if b := r.bytes(); r.bad || m.Unmarshal(b) != nil {
		r.bad = true
	}
}

func (r *reader) snapshot() *raftpb.Snapshot {
	s := new(raftpb.Snapshot)
	r.message(s)
	return s
}

func (r *reader) bootstrap() *raftpb.Bootstrap {
	b := new(raftpb.Bootstrap)
	r.message(b)
	return b
}

// entryRange reads which entries follow.
func (r *reader) entryRange() entryRange {
	count, first, term := r.uint(), r.uint(), r.uint()
	// An entry takes at least one byte, that of its length.
	if r.bad || count == 0 || first == 0 || count > uint64(len(r.b)-r.at) || first+count < first {
		r.bad = true
		return entryRange{}
	}
	return entryRange{first: first, last: first + count - 1, term: term, at: r.at}
}

func (r *reader) checkpoint() *checkpoint {
	c := &checkpoint{end: r.uint(), oldest: r.uint(), replicas: map[raftio.NodeInfo]*replica{}}
	for n := r.uint(); n > 0 && !r.bad; n-- {
		node, rep := r.node(), new(replica)
		parts := r.uint()
		rep.state = r.state()
		if parts&hasSnapshot != 0 {
			rep.snapshot = r.snapshot()
		}
		if parts&hasBootstrap != 0 {
			rep.bootstrap = r.bootstrap()
		}
		rep.base, rep.last = r.uint(), r.uint()
		r.bad = r.bad || rep.base > rep.last
		c.replicas[node] = rep
	}
	return c
}

// decode decodes a payload. It does not decode entries, but says where they are.
func decode(k kind, payload []byte) (record, error) {
	r, rec := &reader{b: payload}, record{kind: k}
	switch k {
	case kindCheckpoint:
		rec.check = r.checkpoint()
	case kindOldest:
		rec.index = r.uint()
	case kindClosed:
	case kindUpdate:
		rec.node = r.node()
		parts := r.uint()
		if parts&hasState != 0 {
			rec.state = r.state()
		}
		if parts&hasSnapshot != 0 {
			rec.snapshot = r.snapshot()
		}
		if parts&hasEntries != 0 {
			rec.entries = r.entryRange()
		}
	case kindCopied:
		rec.node, rec.entries = r.node(), r.entryRange()
	case kindBootstrap:
		rec.node, rec.bootstrap = r.node(), r.bootstrap()
	case kindSnapshot, kindImport:
		rec.node, rec.snapshot = r.node(), r.snapshot()
	case kindRemoveTo:
		rec.node, rec.index = r.node(), r.uint()
	case kindRemoveData:
		rec.node = r.node()
	default:
		return rec, fmt.Errorf("%w: unknown kind %d", errPayload, k)
	}
	if r.bad {
		return rec, fmt.Errorf("%w: %v", errPayload, k)
	}
	return rec, nil
}

// eachEntry calls f with the entries of a payload in turn, until f returns false.
func eachEntry(payload []byte, r entryRange, f func(*raftpb.Entry) bool) error {
	in := &reader{b: payload, at: r.at}
	for index := r.first; index <= r.last; index++ {
		var e raftpb.Entry
		in.message(&e)
		if in.bad || e.Index != index {
			return fmt.Errorf("%w: entry %d", errPayload, index)
		}
		if !f(&e) {
			return nil
		}
	}
	return nil
}
