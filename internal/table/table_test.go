package table

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

func contents(f Frozen) map[string]string {
	m := map[string]string{}
	for i := range f.All() {
		m[i.Key()] = i.Value()
	}
	return m
}

// A table has the same content as a map, and what Freeze returned keeps the content that the
// table had then.
func TestTablesBehaveLikeMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, want := New(), map[string]string{}
		refs := map[string]Ref{}
		type kept struct {
			frozen Frozen
			want   map[string]string
		}
		var freezes []kept
		key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("k", rapid.IntRange(0, 3000).Draw(t, "n")) })
		version := uint64(0)
		put := func(k, v string) {
			version++
			item, old := table.Put(k, []byte(v), version, version%2 == 0)
			if before, ok := want[k]; ok != (old != nil) || ok && old.Value() != before {
				t.Fatalf("Put(%s) replaced %v, want %q", k, old, before)
			}
			want[k], refs[k] = v, item.Ref()
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "step") {
			case 0: // many, so that segments split
				first := rapid.IntRange(0, 2000).Draw(t, "first")
				for i := range 700 {
					put(fmt.Sprint("k", first+i), fmt.Sprint("v", i))
				}
			case 1, 2:
				put(key.Draw(t, "key"), rapid.String().Draw(t, "value"))
			case 3:
				k := key.Draw(t, "key")
				old := table.Delete(k)
				if before, ok := want[k]; ok != (old != nil) || ok && old.Value() != before {
					t.Fatalf("Delete(%s) returned %v, want %q", k, old, before)
				}
				delete(want, k)
			case 4:
				k := key.Draw(t, "key")
				if ref, ok := refs[k]; ok {
					_, there := want[k]
					if there != (table.Find(ref) != nil) || there != (table.Remove(ref) != nil) {
						t.Fatalf("key %s exists: %v; Find and Remove disagree", k, there)
					}
					delete(want, k)
				}
			case 5:
				freezes = append(freezes, kept{table.Freeze(), maps.Clone(want)})
			case 6:
				for k := range want {
					table.Delete(k)
				}
				clear(want)
			case 7:
				table.Clear()
				clear(want)
			}
			size := 0
			for k, v := range want {
				size += len(k) + len(v)
				i := table.Get(k)
				if i == nil || i.Value() != v || i.Key() != k || i.Mark() != (i.Version()%2 == 0) {
					t.Fatalf("Get(%s) is %v, want %q", k, i, v)
				}
			}
			if table.Len() != len(want) || table.Size() != size {
				t.Fatalf("%d items of %d bytes, want %d of %d", table.Len(), table.Size(), len(want), size)
			}
		}
		freezes = append(freezes, kept{table.Freeze(), want})
		for n, v := range freezes {
			if got := contents(v.frozen); !maps.Equal(got, v.want) || v.frozen.Len() != len(v.want) {
				t.Fatalf("freeze %d has %d items, want %d", n, len(got), len(v.want))
			}
		}
	})
}

// While the writer splits, copies and empties segments, readers find every key that
// exists, and see the versions of a key in order.
func TestReadersDuringWrites(t *testing.T) {
	const stay, come = 2000, 20_000
	table := New()
	for k := range stay {
		table.Put(fmt.Sprint("stay", k), []byte("0"), 1, false)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			seen := make([]uint64, stay)
			for n := 0; !stop.Load(); n++ {
				k := n % stay
				i := table.Get(fmt.Sprint("stay", k))
				if i == nil {
					t.Errorf("key %d was missing", k)
					return
				}
				if i.Version() < seen[k] {
					t.Errorf("key %d went back from version %d to %d", k, seen[k], i.Version())
					return
				}
				seen[k] = i.Version()
			}
		})
	}
	var walks sync.WaitGroup
	for n := range come {
		table.Put(fmt.Sprint("come", n), []byte("x"), uint64(n+2), false)
		table.Put(fmt.Sprint("stay", n%stay), []byte("1"), uint64(n+2), false)
		if n >= come/2 {
			table.Delete(fmt.Sprint("come", n-come/2))
		}
		if n%1000 == 0 {
			frozen, want := table.Freeze(), table.Len()
			walks.Go(func() {
				if got := len(contents(frozen)); got != want {
					t.Errorf("a frozen table has %d items, want %d", got, want)
				}
			})
		}
	}
	stop.Store(true)
	wg.Wait()
	walks.Wait()
}

// A large table that is emptied releases its memory.
func TestEmptyTablesAreSmall(t *testing.T) {
	table := New()
	for n := range 10_000 {
		table.Put(fmt.Sprint(n), nil, uint64(n+1), false)
	}
	for n := range 10_000 {
		table.Delete(fmt.Sprint(n))
	}
	if d := table.dir.Load(); len(d.segments) != 1 || len(d.segments[0].Load().heads) != leastHeads {
		t.Errorf("an empty table has %d segments", len(d.segments))
	}
}

func BenchmarkGet(b *testing.B) {
	table := New()
	keys := make([]string, 1<<20)
	for n := range keys {
		keys[n] = fmt.Sprint("key", n)
		table.Put(keys[n], make([]byte, 100), uint64(n+1), false)
	}
	b.Run("scattered", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for n := 0; pb.Next(); n += 7919 {
				if table.Get(keys[n&(len(keys)-1)]) == nil {
					b.Error("missing")
				}
			}
		})
	})
	b.Run("one", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if table.Get(keys[42]) == nil {
					b.Error("missing")
				}
			}
		})
	})
}

func BenchmarkPut(b *testing.B) {
	table, value := New(), make([]byte, 100)
	keys := make([]string, 1<<20)
	for n := range keys {
		keys[n] = fmt.Sprint("key", n)
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		table.Put(keys[n*7919&(len(keys)-1)], value, uint64(n+1), false)
	}
}
