// Package table has a hash table from strings to strings. One goroutine writes it, and
// any number of goroutines read it at the same time, without locks and without waiting.
// A reader sees each key as it was at some moment during its call.
//
// Items never change. A write replaces the old item by a new one, and readers that have
// reached the old item finish with it. The table is divided into segments of at most some
// hundred items (extendible hashing). Only whole segments are rearranged, in a copy, so no
// write copies the table, however large it is. [Table.Freeze] is cheap because it only
// marks the segments: the writer copies a marked segment before it changes it.
package table

import (
	"hash/maphash"
	"iter"
	"strings"
	"sync/atomic"
)

const (
	leastHeads = 8   // of a segment, so that a small table needs little memory
	mostHeads  = 512 // of a segment; a full segment with so many is split
)

// An Item is a key with its value. It never changes.
type Item struct {
	next    atomic.Pointer[Item]
	hash    uint64
	data    string // the key, then the value
	version uint64
	keyLen  uint32
	mark    bool
}

// Key returns the key.
func (i *Item) Key() string { return i.data[:i.keyLen] }

// Value returns the value.
func (i *Item) Value() string { return i.data[i.keyLen:] }

// Version returns the version that was passed to Put.
func (i *Item) Version() uint64 { return i.version }

// Mark returns the mark that was passed to Put.
func (i *Item) Mark() bool { return i.mark }

// Size returns the bytes of key and value.
func (i *Item) Size() int { return len(i.data) }

// Ref returns a reference to this item. It does not refer to later items of the key.
func (i *Item) Ref() Ref { return Ref{i.hash, i.version} }

// A Ref refers to an item of a table whose items have different versions.
type Ref struct{ hash, version uint64 }

// Version returns the version of the item.
func (r Ref) Version() uint64 { return r.version }

// A Table is a hash table. It must be created by New.
type Table struct {
	dir  atomic.Pointer[directory]
	seed maphash.Seed
	n    int // the number of items; only the writer uses it
	size int // the bytes of all items; only the writer uses it
}

// A directory finds the segment of a hash by its highest bits.
type directory struct {
	depth    uint8
	segments []atomic.Pointer[segment] // 1 << depth pointers; several of them point to a segment of a lower depth
}

// A segment has the items whose hashes begin with the same bits.
type segment struct {
	depth  uint8 // the number of these bits
	frozen bool  // a Frozen has the segment, so it must not change; only the writer uses it
	n      int   // the number of items; only the writer uses it
	heads  []atomic.Pointer[Item]
}

// New returns an empty table.
func New() *Table {
	t := &Table{seed: maphash.MakeSeed()}
	t.Clear()
	return t
}

// Clear removes all items. Only the writer may call it.
func (t *Table) Clear() {
	d := &directory{segments: make([]atomic.Pointer[segment], 1)}
	d.segments[0].Store(newSegment(0, leastHeads))
	t.dir.Store(d)
	t.n, t.size = 0, 0
}

// Len returns the number of items. Only the writer may call it.
func (t *Table) Len() int { return t.n }

// Size returns the bytes of all keys and values. Only the writer may call it.
func (t *Table) Size() int { return t.size }

// Get returns the item of key, or nil.
func (t *Table) Get(key string) *Item {
	h := maphash.String(t.seed, key)
	for i := t.dir.Load().of(h).head(h).Load(); i != nil; i = i.next.Load() {
		if i.hash == h && i.Key() == key {
			return i
		}
	}
	return nil
}

func (d *directory) of(hash uint64) *segment {
	return d.segments[hash>>(64-d.depth)].Load()
}

func newSegment(depth uint8, heads int) *segment {
	return &segment{depth: depth, heads: make([]atomic.Pointer[Item], heads)}
}

// head returns the head of the chain for a hash. It uses the lower bits of the hash, because
// the higher ones are the same in the whole segment.
func (s *segment) head(hash uint64) *atomic.Pointer[Item] {
	return &s.heads[hash&uint64(len(s.heads)-1)]
}

// Put gives key a value, and returns its item and the one before, or nil. It
// copies key and value. Only the writer may call it.
func (t *Table) Put(key string, value []byte, version uint64, mark bool) (item, old *Item) {
	var data strings.Builder
	data.Grow(len(key) + len(value))
	data.WriteString(key)
	data.Write(value)
	item = &Item{hash: maphash.String(t.seed, key), data: data.String(), version: version, keyLen: uint32(len(key)), mark: mark}
	s := t.writable(item.hash)
	t.size += len(item.data)
	link := s.head(item.hash)
	for i := link.Load(); i != nil; i = link.Load() {
		if i.hash == item.hash && i.Key() == key {
			item.next.Store(i.next.Load())
			link.Store(item)
			t.size -= len(i.data)
			return item, i
		}
		link = &i.next
	}
	if s.n >= len(s.heads) {
		s = t.grow(s, item.hash)
	}
	s.insert(item)
	t.n++
	return item, nil
}

func (s *segment) insert(i *Item) {
	head := s.head(i.hash)
	i.next.Store(head.Load())
	head.Store(i)
	s.n++
}

// Delete removes the item of key and returns it, or nil. Only the writer may
// call it.
func (t *Table) Delete(key string) *Item {
	h := maphash.String(t.seed, key)
	return t.remove(h, func(i *Item) bool { return i.hash == h && i.Key() == key })
}

// Find returns the item, or nil if it is not in the table any more.
func (t *Table) Find(r Ref) *Item {
	for i := t.dir.Load().of(r.hash).head(r.hash).Load(); i != nil; i = i.next.Load() {
		if i.hash == r.hash && i.version == r.version {
			return i
		}
	}
	return nil
}

// Remove removes the item and returns it, or nil if it is not in the table any more. Only
// the writer may call it.
func (t *Table) Remove(r Ref) *Item {
	return t.remove(r.hash, func(i *Item) bool { return i.hash == r.hash && i.version == r.version })
}

func (t *Table) remove(hash uint64, is func(*Item) bool) *Item {
	link := t.dir.Load().of(hash).head(hash)
	i := link.Load()
	for ; i != nil && !is(i); i = i.next.Load() {
	}
	if i == nil {
		return nil // before anything is copied
	}
	if t.n == 1 {
		t.Clear() // releases the memory of a large table
		return i
	}
	s := t.writable(hash)
	for link = s.head(hash); ; {
		i := link.Load()
		if !is(i) {
			link = &i.next
			continue
		}
		// Readers that have reached i continue with the item after it.
		link.Store(i.next.Load())
		s.n--
		t.n--
		t.size -= len(i.data)
		return i
	}
}

// writable returns the segment of a hash. If that is frozen, it replaces it by a copy first.
func (t *Table) writable(hash uint64) *segment {
	d := t.dir.Load()
	s := d.of(hash)
	if !s.frozen {
		return s
	}
	c := newSegment(s.depth, len(s.heads))
	s.each(func(i *Item) bool { c.insert(i.copy()); return true })
	d.replace(s.depth, hash, c)
	return c
}

// copy returns a copy of the item, for another chain.
func (i *Item) copy() *Item {
	return &Item{hash: i.hash, data: i.data, version: i.version, keyLen: i.keyLen, mark: i.mark}
}

// replace replaces the segment of a hash, which has this depth, by s.
func (d *directory) replace(depth uint8, hash uint64, s *segment) {
	n := uint64(1) << (d.depth - depth)
	first := hash >> (64 - d.depth) &^ (n - 1)
	for k := range n {
		d.segments[first+k].Store(s)
	}
}

// grow replaces the full segment of a hash by a larger one, or splits it into two. It
// returns the new segment of the hash.
func (t *Table) grow(s *segment, hash uint64) *segment {
	d := t.dir.Load()
	if len(s.heads) < mostHeads {
		wide := newSegment(s.depth, 2*len(s.heads))
		s.each(func(i *Item) bool { wide.insert(i.copy()); return true })
		d.replace(s.depth, hash, wide)
		return wide
	}
	if s.depth == d.depth {
		if d.depth == 40 { // there would be 2^40 segments: the hashes are not random
			return s
		}
		twice := &directory{depth: d.depth + 1, segments: make([]atomic.Pointer[segment], 2*len(d.segments))}
		for k := range d.segments {
			other := d.segments[k].Load()
			twice.segments[2*k].Store(other)
			twice.segments[2*k+1].Store(other)
		}
		t.dir.Store(twice)
		d = twice
	}
	depth := s.depth + 1
	halves := [2]*segment{newSegment(depth, mostHeads), newSegment(depth, mostHeads)}
	bit := func(h uint64) uint64 { return h >> (64 - depth) & 1 }
	s.each(func(i *Item) bool { halves[bit(i.hash)].insert(i.copy()); return true })
	for b, half := range halves {
		h := hash&^(1<<(64-depth)) | uint64(b)<<(64-depth)
		d.replace(depth, h, half)
	}
	return halves[bit(hash)]
}

func (s *segment) each(f func(*Item) bool) bool {
	for h := range s.heads {
		for i := s.heads[h].Load(); i != nil; i = i.next.Load() {
			if !f(i) {
				return false
			}
		}
	}
	return true
}

// A Frozen is the content of a table at one moment.
type Frozen []*segment

// Freeze returns the present content of the table. Its time is proportional to the number
// of segments, about a hundredth of the number of items. Later the writer copies each
// segment before it changes it for the first time. Only the writer may call Freeze; any
// goroutine may use what it returns.
func (t *Table) Freeze() Frozen {
	d := t.dir.Load()
	v := make(Frozen, 0, len(d.segments))
	for k := 0; k < len(d.segments); {
		s := d.segments[k].Load()
		s.frozen = true
		v = append(v, s)
		k += 1 << (d.depth - s.depth)
	}
	return v
}

// All returns the items, in no order.
func (f Frozen) All() iter.Seq[*Item] {
	return func(yield func(*Item) bool) {
		for _, s := range f {
			if !s.each(yield) {
				return
			}
		}
	}
}

// Len returns the number of items.
func (f Frozen) Len() int {
	n := 0
	for _, s := range f {
		n += s.n
	}
	return n
}
