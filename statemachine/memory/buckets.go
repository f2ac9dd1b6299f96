package memory

import (
	"cmp"
	"hash/maphash"
	"slices"
	"sync/atomic"
)

// buckets finds buckets by name. Readers need no lock while apply adds and removes
// buckets: apply replaces the part that it changes, of about four buckets, by a copy.
type buckets struct {
	seed  maphash.Seed
	parts atomic.Pointer[[]bucketPart]
	n     int // how many buckets there are; only apply uses it
}

type bucketPart = atomic.Pointer[[]*bucket]

// minParts is the least number of parts.
const minParts = 64

func newBuckets() *buckets {
	s := &buckets{seed: maphash.MakeSeed()}
	s.rebuild(minParts, nil)
	return s
}

// rebuild distributes all buckets over this many parts.
func (s *buckets) rebuild(parts int, all []*bucket) {
	next, lists := make([]bucketPart, parts), make([][]*bucket, parts)
	for _, b := range all {
		i := s.index(b.name, parts)
		lists[i] = append(lists[i], b)
	}
	for i := range next {
		next[i].Store(&lists[i])
	}
	s.parts.Store(&next)
}

func (s *buckets) index(name string, parts int) int {
	return int(maphash.String(s.seed, name) % uint64(parts))
}

func (s *buckets) part(name string) *bucketPart {
	parts := *s.parts.Load()
	return &parts[s.index(name, len(parts))]
}

// find returns a bucket, or nil.
func (s *buckets) find(name string) *bucket {
	for _, b := range *s.part(name).Load() {
		if b.name == name {
			return b
		}
	}
	return nil
}

// add adds a bucket. There must be none with its name.
func (s *buckets) add(b *bucket) {
	part := s.part(b.name)
	next := append(slices.Clip(*part.Load()), b)
	part.Store(&next)
	s.n++
	if parts := len(*s.parts.Load()); s.n > 4*parts {
		s.rebuild(4*parts, s.all())
	}
}

// remove removes a bucket. It must be there.
func (s *buckets) remove(b *bucket) {
	part := s.part(b.name)
	next := slices.DeleteFunc(slices.Clone(*part.Load()), func(other *bucket) bool { return other == b })
	part.Store(&next)
	s.n--
	if parts := len(*s.parts.Load()); parts > minParts && s.n < parts/4 {
		s.rebuild(parts/4, s.all())
	}
}

func (s *buckets) all() []*bucket {
	all := make([]*bucket, 0, s.n)
	parts := *s.parts.Load()
	for i := range parts {
		all = append(all, *parts[i].Load()...)
	}
	return all
}

// sorted returns the buckets ordered by name, which is the same on all replicas.
func (s *buckets) sorted() []*bucket {
	all := s.all()
	slices.SortFunc(all, func(a, b *bucket) int { return cmp.Compare(a.name, b.name) })
	return all
}
