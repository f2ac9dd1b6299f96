package benchmarks

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/pubsub"
)

const valueBytes = 100

// eachCluster runs f on a cluster of each size.
func eachCluster(b *testing.B, f func(b *testing.B, nodes []*hiqlite.Node)) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("nodes=%d", size), func(b *testing.B) { f(b, start(b, size)) })
	}
}

func bucket(b *testing.B, node *hiqlite.Node) *kv.Bucket[[]byte] {
	b.Helper()
	bucket, err := kv.New[[]byte](node, "bench", kv.WithCodec(kv.Bytes))
	if err != nil {
		b.Fatal(err)
	}
	return bucket
}

func key(i int) string { return fmt.Sprint("user:", i) }

// fill puts entries from many goroutines.
func fill(b *testing.B, bucket *kv.Bucket[[]byte], entries int) {
	b.Helper()
	const goroutines = 512 // the more callers wait, the more commands share an entry of the log
	var next atomic.Int64
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			value := make([]byte, valueBytes)
			for i := int(next.Add(1)) - 1; i < entries; i = int(next.Add(1)) - 1 {
				if err := bucket.Put(context.Background(), key(i), value); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkKVGet reads values from this node's memory, with as many goroutines as
// there are processors: always the same key, and many keys.
func BenchmarkKVGet(b *testing.B) {
	eachCluster(b, func(b *testing.B, nodes []*hiqlite.Node) {
		bucket := bucket(b, nodes[0])
		for _, count := range []int{1, 10_000} {
			b.Run(fmt.Sprintf("keys=%d", count), func(b *testing.B) {
				fill(b, bucket, count)
				keys := make([]string, count)
				for i := range keys {
					keys[i] = key(i)
				}
				b.ReportAllocs()
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					ctx := context.Background()
					for i := 0; pb.Next(); i++ {
						v, ok, err := bucket.Get(ctx, keys[i%count])
						if err != nil || !ok || len(v) != valueBytes {
							b.Errorf("%d bytes, %v, %v", len(v), ok, err)
							return
						}
					}
				})
			})
		}
	})
}

// BenchmarkKVPut puts entries, each with another key and acknowledged when a majority of
// the nodes has it on disk.
func BenchmarkKVPut(b *testing.B) {
	eachCluster(b, func(b *testing.B, nodes []*hiqlite.Node) {
		bucket, value := bucket(b, nodes[0]), make([]byte, valueBytes)
		var next atomic.Int64
		eachConcurrency(b, func() error {
			return bucket.Put(context.Background(), key(int(next.Add(1))), value)
		})
	})
}

// BenchmarkLockUnlock locks and unlocks keys that nobody else locks.
func BenchmarkLockUnlock(b *testing.B) {
	eachCluster(b, func(b *testing.B, nodes []*hiqlite.Node) {
		locks := lock.New(nodes[0])
		var next atomic.Int64
		eachConcurrency(b, func() error {
			held, err := locks.Lock(context.Background(), fmt.Sprint("job:", next.Add(1)))
			if err != nil {
				return err
			}
			return held.Unlock(context.Background())
		})
	})
}

// listen returns a subscription on each node.
func listen(b *testing.B, nodes []*hiqlite.Node) (subs []*pubsub.Subscription) {
	b.Helper()
	for _, n := range nodes {
		sub, err := pubsub.Listen(b.Context(), n, "bench")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { sub.Close() })
		subs = append(subs, sub)
	}
	return subs
}

// BenchmarkNotify sends messages while a subscriber on each node receives them.
func BenchmarkNotify(b *testing.B) {
	eachCluster(b, func(b *testing.B, nodes []*hiqlite.Node) {
		ctx, cancel := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		for _, sub := range listen(b, nodes) {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := sub.Next(ctx); err != nil && ctx.Err() == nil {
						b.Error(err)
						return
					}
				}
			})
		}
		b.Cleanup(func() { cancel(); wg.Wait() })
		payload := make([]byte, valueBytes)
		eachConcurrency(b, func() error {
			_, err := pubsub.Notify(context.Background(), nodes[0], "bench", payload)
			return err
		})
	})
}

// BenchmarkNotifyThenNext sends a message and waits until the subscribers on all nodes
// have received it.
func BenchmarkNotifyThenNext(b *testing.B) {
	eachCluster(b, func(b *testing.B, nodes []*hiqlite.Node) {
		subs, payload := listen(b, nodes), make([]byte, valueBytes)
		for b.Loop() {
			if _, err := pubsub.Notify(b.Context(), nodes[0], "bench", payload); err != nil {
				b.Fatal(err)
			}
			for _, sub := range subs {
				if _, err := sub.Next(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkKVMemory measures the memory of a million entries of 100 bytes, with their
// keys and everything that belongs to them: on the heap after garbage collection, and
// of the process.
func BenchmarkKVMemory(b *testing.B) {
	const entries = 1_000_000
	for range b.N {
		bucket := bucket(b, start(b, 1)[0])
		fill(b, bucket, 1) // allocates what the bucket itself needs
		heap, process := memory(b)
		fill(b, bucket, entries)
		heapThen, processThen := memory(b)
		if _, ok, err := bucket.Get(b.Context(), key(entries-1)); err != nil || !ok {
			b.Fatal(ok, err)
		}
		b.ReportMetric(float64(heapThen-heap)/entries, "heap-B/entry")
		b.ReportMetric(float64(processThen-process)/entries, "rss-B/entry")
		b.ReportMetric(float64(processThen)/(1<<20), "rss-MB")
	}
}

// memory returns the live bytes of the heap, and the bytes of memory that the process
// uses, or 0 if the system does not say.
func memory(b *testing.B) (heap, process int64) {
	b.Helper()
	runtime.GC()
	debug.FreeOSMemory() // collects once more, after finalizers have run
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return int64(m.HeapAlloc), 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if text, ok := strings.CutPrefix(s.Text(), "VmRSS:"); ok {
			var kb int64
			if _, err := fmt.Sscan(text, &kb); err != nil {
				b.Fatal(err)
			}
			return int64(m.HeapAlloc), kb << 10
		}
	}
	return int64(m.HeapAlloc), 0
}
