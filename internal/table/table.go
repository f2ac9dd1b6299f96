// Package table is a hash table from strings to strings that one goroutine
// writes while any number read, without a lock and without waiting: a reader
// sees each key as it was at some moment during its call.
//
// Items never change. A write puts a new item in the place of the old one;
// readers that are at the old one finish there. What is larger than a chain is
// copied when it has to be rearranged, a segment of at most some hundred items
// at a time (extendible hashing): no write copies the table, however large.
// For the same reason [Table.Freeze] is cheap: it takes hold of the segments,
// and the writer copies those that it comes to change.
package table

import (
	"hash/maphash"
	"iter"
	"strings"
	"sync/atomic"
)

const (
	leastHeads = 8   // of a segment: a small table is small
	mostHeads  = 512 // of a segment; a full one is split
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

// Ref returns what names this item, and no later one of its key.
func (i *Item) Ref() Ref { return Ref{i.hash, i.version} }

// A Ref names an item, if the versions of a table's items differ.
type Ref struct{ hash, version uint64 }

// Version returns the item's.
func (r Ref) Version() uint64 { return r.version }

// A Table is a hash table. The zero Table is not one: see New.
type Table struct {
	dir  atomic.Pointer[directory]
	seed maphash.Seed
	n    int // of the writer
	size int // of the writer
}

// A directory finds the segment of a hash by its highest bits.
type directory struct {
	depth    uint8
	segments []atomic.Pointer[segment] // 1 << depth; a segment of a lower depth stands there several times
}

// A segment holds the items whose hashes begin alike.
type segment struct {
	depth  uint8 // how many bits are alike
	frozen bool  // of the writer: somebody keeps it as it is
	n      int   // of the writer
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

// head returns the chain of a hash. Its lower bits choose: the higher ones are
// alike in a segment.
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

// Find returns the item, if it is in the table still.
func (t *Table) Find(r Ref) *Item {
	for i := t.dir.Load().of(r.hash).head(r.hash).Load(); i != nil; i = i.next.Load() {
		if i.hash == r.hash && i.version == r.version {
			return i
		}
	}
	return nil
}

// Remove removes the item, if it is in the table still, and returns it, or nil.
// Only the writer may call it.
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
		t.Clear() // gives back what a large table leaves
		return i
	}
	s := t.writable(hash)
	for link = s.head(hash); ; {
		i := link.Load()
		if !is(i) {
			link = &i.next
			continue
		}
		// Readers that are at i go on to what follows it.
		link.Store(i.next.Load())
		s.n--
		t.n--
		t.size -= len(i.data)
		return i
	}
}

// writable returns the segment of a hash, in place of a frozen one a copy.
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

// copy returns the item for another chain.
func (i *Item) copy() *Item {
	return &Item{hash: i.hash, data: i.data, version: i.version, keyLen: i.keyLen, mark: i.mark}
}

// replace puts s wherever the segment of a hash, which has so many bits alike,
// stands.
func (d *directory) replace(depth uint8, hash uint64, s *segment) {
	n := uint64(1) << (d.depth - depth)
	first := hash >> (64 - d.depth) &^ (n - 1)
	for k := range n {
		d.segments[first+k].Store(s)
	}
}

// grow gives the full segment of a hash more room, or splits it, and returns
// the hash's.
func (t *Table) grow(s *segment, hash uint64) *segment {
	d := t.dir.Load()
	if len(s.heads) < mostHeads {
		wide := newSegment(s.depth, 2*len(s.heads))
		s.each(func(i *Item) bool { wide.insert(i.copy()); return true })
		d.replace(s.depth, hash, wide)
		return wide
	}
	if s.depth == d.depth {
		if d.depth == 40 { // 2^40 segments: hashes are not random any more
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

// A View is what a table held at a moment.
type View []*segment

// Freeze returns what the table holds now. It takes time in proportion to a few
// hundredths of the number of items, and the writer then copies each segment that it
// changes first. Only the writer may call it; the view is anybody's.
func (t *Table) Freeze() View {
	d := t.dir.Load()
	v := make(View, 0, len(d.segments))
	for k := 0; k < len(d.segments); {
		s := d.segments[k].Load()
		s.frozen = true
		v = append(v, s)
		k += 1 << (d.depth - s.depth)
	}
	return v
}

// All returns the items, in no order.
func (v View) All() iter.Seq[*Item] {
	return func(yield func(*Item) bool) {
		for _, s := range v {
			if !s.each(yield) {
				return
			}
		}
	}
}

// Len returns the number of items.
func (v View) Len() int {
	n := 0
	for _, s := range v {
		n += s.n
	}
	return n
}
