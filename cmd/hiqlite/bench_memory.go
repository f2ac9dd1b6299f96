package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/pubsub"
)

const memoryHelp = `Through the same node it then measures the in-memory shards: kv.Put of 100 bytes,
each under another key; kv.Get of these; Lock and Unlock, with a key for each
goroutine; and pubsub.Notify, whose p50 is the time until a subscriber on every
node has received the message. kv_get_ns is the time that one Get takes its
goroutine: the duration of all Gets, divided by their number, times the number of
goroutines that can run at once, which is at most the number of cores.

The speed of a machine changes from second to second. So these operations and
INSERTs are measured in turn, in slices of a quarter of a second, and the ratios
are medians over the slices: kv_put_to_insert_ratio is the number of Puts in the
time of one INSERT, lock_to_insert_ratio the number of INSERTs in the time of one
Lock and Unlock, and notify_to_insert_ratio the p50 of Notify divided by that of
INSERT.

SQL, kv, lock and pubsub each have a leader. Unless there are two nodes, they are
started so that the first one leads all four. If the leaders differ, a line on
standard error says so.`

const (
	memoryRounds = 8                      // slices of each kind of operation
	memorySlice  = 250 * time.Millisecond // about the duration of a slice of INSERTs; the others have as many operations
	valueBytes   = 100
	getKeys      = 4096 // number of keys that are read
	getsPerPut   = 25   // Gets measured for each Put, since they are so much faster
	fillers      = 64   // goroutines that put the entries to be read
)

// memoryFigures are the results of kv, lock and pubsub at one concurrency.
type memoryFigures struct {
	PutsPerS     float64 `json:"kv_put_per_s"`
	PutP50       float64 `json:"kv_put_p50_us"`
	GetNS        float64 `json:"kv_get_ns"`
	LocksPerS    float64 `json:"lock_per_s"`
	LockP50      float64 `json:"lock_p50_us"`
	NotifiesPerS float64 `json:"notify_per_s"`
	NotifyP50    float64 `json:"notify_p50_us"`

	// Compared with INSERTs that were measured in turn; see memoryHelp.
	PutRatio    float64 `json:"kv_put_to_insert_ratio"`
	LockRatio   float64 `json:"lock_to_insert_ratio"`
	NotifyRatio float64 `json:"notify_to_insert_ratio"`
}

// inMemory measures kv, lock and pubsub in turn with INSERTs.
type inMemory struct {
	node        target
	nodes       []target
	concurrency int
	operations  int                  // in a slice
	insert      func(id int) error   // an INSERT
	next        int                  // id of the next INSERT, and number of the next key of a Put
	sum         map[string]*times    // by kind of operation, over all slices
	ratios      map[string][]float64 // by kind, to INSERT; one for each slice
}

func (m *inMemory) measure(ctx context.Context, f *memoryFigures) error {
	bucket, err := kv.New[[]byte](m.node, benchBucket, kv.WithCodec(kv.Bytes))
	if err != nil {
		return err
	}
	l, err := listen(ctx, m.nodes)
	defer l.close()
	if err != nil {
		return err
	}
	m.sum, m.ratios = map[string]*times{}, map[string][]float64{}
	for round := range memoryRounds + 1 {
		n := m.operations
		if round == 0 { // to warm up; not counted
			n = max(m.concurrency, n/warmUp)
		}
		slice, err := m.slice(ctx, bucket, l, n)
		if err != nil {
			return err
		}
		if round > 0 {
			m.add(slice)
		}
	}
	m.figures(f)
	if f.GetNS, err = m.gets(ctx, bucket); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return bucket.Clear(ctx)
}

// slice measures n operations of each kind, one kind after the other.
func (m *inMemory) slice(ctx context.Context, bucket *kv.Bucket[[]byte], l listener, n int) (map[string]*times, error) {
	value, locker, background := make([]byte, valueBytes), lock.New(m.node), context.Background()
	each := func(f func(g, i int) error) func() (*times, error) {
		return func() (*times, error) { return split(ctx, m.concurrency, m.next, n, f) }
	}
	slice := map[string]*times{}
	for _, k := range []struct {
		name    string
		measure func() (*times, error)
	}{
		{"INSERT", each(func(_, i int) error { return m.insert(i) })},
		{"Put", each(func(_, i int) error { return bucket.Put(background, putKey(i), value) })},
		{"Lock", each(func(g, _ int) error {
			held, err := locker.Lock(background, fmt.Sprintf("hiqlite_bench:%d", g))
			if err != nil {
				return err
			}
			return held.Unlock(background)
		})},
		{"Notify", func() (*times, error) { return m.notify(ctx, l, n) }},
	} {
		err := ready(ctx, m.nodes)
		if err == nil {
			slice[k.name], err = k.measure()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.name, err)
		}
	}
	m.next += n
	return slice, nil
}

func putKey(i int) string { return fmt.Sprintf("user:%09d", i) }

// add adds the results of a slice.
func (m *inMemory) add(slice map[string]*times) {
	insert := slice["INSERT"]
	m.ratios["Put"] = append(m.ratios["Put"], slice["Put"].perSecond()/insert.perSecond())
	m.ratios["Lock"] = append(m.ratios["Lock"], insert.perSecond()/slice["Lock"].perSecond())
	m.ratios["Notify"] = append(m.ratios["Notify"], slice["Notify"].quantile(0.5)/insert.quantile(0.5))
	for name, t := range slice {
		s := m.sum[name]
		if s == nil {
			s = &times{}
			m.sum[name] = s
		}
		s.all, s.count, s.each = s.all+t.all, s.count+t.count, append(s.each, t.each...)
	}
}

func (m *inMemory) figures(f *memoryFigures) {
	for _, t := range m.sum {
		slices.Sort(t.each)
	}
	put, locked, notified := m.sum["Put"], m.sum["Lock"], m.sum["Notify"]
	f.PutsPerS, f.PutP50, f.PutRatio = round(put.perSecond()), put.quantile(0.5), median(m.ratios["Put"])
	f.LocksPerS, f.LockP50, f.LockRatio = round(locked.perSecond()), locked.quantile(0.5), median(m.ratios["Lock"])
	f.NotifiesPerS, f.NotifyP50, f.NotifyRatio = round(notified.perSecond()), notified.quantile(0.5), median(m.ratios["Notify"])
}

// median returns the median of x, with two decimals.
func median(x []float64) float64 {
	slices.Sort(x)
	return math.Round(100*x[len(x)/2]) / 100
}

// gets returns how many nanoseconds a Get takes, as the median of several slices.
func (m *inMemory) gets(ctx context.Context, bucket *kv.Bucket[[]byte]) (float64, error) {
	if err := bucket.Clear(ctx); err != nil {
		return 0, err
	}
	keys := make([]string, getKeys)
	for i := range keys {
		keys[i] = putKey(i)
	}
	value := make([]byte, valueBytes)
	if _, err := split(ctx, fillers, 0, getKeys, func(_, i int) error { return bucket.Put(ctx, keys[i], value) }); err != nil {
		return 0, err
	}
	if err := ready(ctx, m.nodes); err != nil {
		return 0, err
	}
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	each := (getsPerPut*m.operations + m.concurrency - 1) / m.concurrency
	atOnce := min(m.concurrency, runtime.GOMAXPROCS(0))
	var ns []float64
	for range memoryRounds {
		// One call for each goroutine, since reading the clock takes about as long
		// as a Get.
		t, err := split(ctx, m.concurrency, 0, m.concurrency, func(g, _ int) error {
			background, next := context.Background(), g*getKeys/m.concurrency
			for range each {
				v, ok, err := bucket.Get(background, keys[next%getKeys])
				if err != nil || !ok || len(v) != valueBytes {
					return fmt.Errorf("%q has %d bytes, %v: %w", keys[next%getKeys], len(v), ok, err)
				}
				next++
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		ns = append(ns, float64(t.all.Nanoseconds())*float64(atOnce)/float64(each*m.concurrency))
	}
	slices.Sort(ns)
	return round(ns[len(ns)/2]), nil
}

// A listener has a subscription on each node.
type listener []*pubsub.Subscription

const (
	benchBucket  = "hiqlite_bench"
	benchChannel = "hiqlite_bench"
)

// listen listens on all nodes. It also returns the subscriptions that it has made
// before an error.
func listen(ctx context.Context, nodes []target) (l listener, err error) {
	for _, n := range nodes {
		sub, err := pubsub.Listen(ctx, n, benchChannel)
		if err != nil {
			return l, err
		}
		l = append(l, sub)
	}
	return l, nil
}

func (l listener) close() {
	for _, sub := range l {
		sub.Close()
	}
}

// notify sends the n numbers from m.next on. The duration of each ends when the
// subscribers of all nodes have received it; the duration of the whole run ends when
// the last call of Notify has returned.
func (m *inMemory) notify(ctx context.Context, l listener, n int) (*times, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent, received, errs := make([]time.Time, n), make([][]time.Time, len(l)), make([]error, len(l))
	var wg sync.WaitGroup
	for j, sub := range l {
		received[j] = make([]time.Time, n)
		wg.Go(func() { errs[j] = receive(ctx, sub, m.next, received[j]) })
	}
	t, err := split(ctx, m.concurrency, m.next, n, func(_, i int) error {
		payload := binary.LittleEndian.AppendUint64(make([]byte, 0, valueBytes), uint64(i))
		sent[i-m.next] = time.Now()
		_, err := pubsub.Notify(context.Background(), m.node, benchChannel, payload[:valueBytes])
		return err
	})
	if err != nil {
		cancel() // some numbers will never be received
	}
	defer time.AfterFunc(readyTimeout, cancel).Stop()
	wg.Wait()
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	for i := range n {
		t.each[i] = 0
		for j := range l {
			t.each[i] = max(t.each[i], received[j][i].Sub(sent[i]))
		}
	}
	slices.Sort(t.each)
	return t, nil
}

// receive records when it receives each of the numbers from first on.
func receive(ctx context.Context, sub *pubsub.Subscription, first int, received []time.Time) error {
	for range received {
		m, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		received[int(binary.LittleEndian.Uint64(m.Payload))-first] = time.Now()
	}
	return nil
}

// printMemory prints the figures of all concurrencies.
func printMemory(out io.Writer, all []figures) error {
	fmt.Fprint(out, "\nkv, lock and pubsub, compared with plain inserts that were measured in turn (see --help)\n\n")
	w := tabwriter.NewWriter(out, 12, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "concurrency\tputs/s\tp50\tto inserts\tget\tlocks/s\tp50\tin inserts\tnotifies/s\tall received p50\tin inserts\t\n")
	for _, f := range all {
		fmt.Fprintf(w, "%d\t%.0f\t%.0f us\t%.2f\t%.0f ns\t%.0f\t%.0f us\t%.2f\t%.0f\t%.0f us\t%.2f\t\n",
			f.Concurrency, f.PutsPerS, f.PutP50, f.PutRatio, f.GetNS, f.LocksPerS, f.LockP50, f.LockRatio, f.NotifiesPerS, f.NotifyP50, f.NotifyRatio)
	}
	return w.Flush()
}
