package kv_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/hiqlite/hiqlite"
	_ "github.com/hiqlite/hiqlite/driver"
	"github.com/hiqlite/hiqlite/kv"
)

// openExample opens a cluster of one node in a temporary folder.
func openExample() (client hiqlite.Client, closeAll func()) {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	db, err := sql.Open("hiqlite", dir)
	if err != nil {
		log.Fatal(err)
	}
	client, err = hiqlite.From(context.Background(), db)
	if err != nil {
		log.Fatal(err)
	}
	return client, func() {
		db.Close()
		os.RemoveAll(dir)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func Example() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	flags, err := kv.New[bool](client, "flags")
	must(err)
	must(flags.Put(ctx, "dark-mode", true))
	on, ok, err := flags.Get(ctx, "dark-mode")
	must(err)
	fmt.Println(on, ok)
	on, ok, err = flags.Get(ctx, "beta")
	must(err)
	fmt.Println(on, ok)
	// Output:
	// true true
	// false false
}

type session struct {
	User  string
	Admin bool `json:",omitempty"`
}

func ExampleNew() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	sessions, err := kv.New[session](client, "sessions") // as JSON
	must(err)
	must(sessions.Put(ctx, "c3a1", session{User: "ada", Admin: true}))
	s, _, err := sessions.Get(ctx, "c3a1")
	must(err)
	fmt.Println(sessions.Name(), s)

	// The same entries as JSON, as they are stored.
	raw, err := kv.New[string](client, "sessions", kv.WithCodec(kv.String))
	must(err)
	text, _, err := raw.Get(ctx, "c3a1")
	must(err)
	fmt.Println(text)
	// Output:
	// sessions {ada true}
	// {"User":"ada","Admin":true}
}

func ExampleWithCodec() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	pages, err := kv.New[[]byte](client, "pages", kv.WithCodec(kv.Bytes))
	must(err)
	must(pages.Put(ctx, "/", []byte("<h1>Hello</h1>")))
	page, _, err := pages.Get(ctx, "/")
	must(err)
	fmt.Printf("%s\n", page)
	// Output: <h1>Hello</h1>
}

// timeCodec stores times in the form of RFC 3339.
type timeCodec struct{}

func (timeCodec) Encode(t time.Time) ([]byte, error) { return t.AppendFormat(nil, time.RFC3339), nil }

func (timeCodec) Decode(data []byte) (time.Time, error) {
	return time.Parse(time.RFC3339, string(data))
}

func ExampleCodec() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	seen, err := kv.New[time.Time](client, "last-seen", kv.WithCodec[time.Time](timeCodec{}))
	must(err)
	must(seen.Put(ctx, "ada", time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)))
	t, _, err := seen.Get(ctx, "ada")
	must(err)
	fmt.Println(t.Format(time.DateOnly))

	texts, err := kv.New[string](client, "last-seen", kv.WithCodec(kv.String))
	must(err)
	must(texts.Put(ctx, "bob", "yesterday"))
	_, ok, err := seen.Get(ctx, "bob")
	fmt.Println(ok, errors.Is(err, kv.ErrDecode))
	// Output:
	// 2026-01-02
	// false true
}

func ExampleWithLimits() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	// At most two entries, of any size: the third evicts the oldest.
	recent, err := kv.New[string](client, "recent", kv.WithCodec(kv.String), kv.WithLimits(2, 0))
	must(err)
	for _, word := range []string{"one", "two", "three"} {
		must(recent.Put(ctx, word, "seen"))
	}
	keys, err := recent.Keys(ctx, "")
	must(err)
	fmt.Println(keys)

	// The limits belong to the cluster, so a program with others gets an error.
	other, err := kv.New[string](client, "recent", kv.WithCodec(kv.String), kv.WithLimits(10, 0))
	must(err)
	fmt.Println(errors.Is(other.Put(ctx, "four", "seen"), kv.ErrLimits))
	// Output:
	// [three two]
	// true
}

func ExampleBucket_SetLimits() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	recent, err := kv.New[int](client, "recent")
	must(err)
	for i := range 5 {
		must(recent.Put(ctx, fmt.Sprint("k", i), i))
	}
	must(recent.SetLimits(ctx, 2, 0))
	entries, err := recent.Snapshot(ctx)
	must(err)
	fmt.Println(entries)
	// Output: map[k3:3 k4:4]
}

func ExampleBucket_Get() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	stock, err := kv.New[int](client, "stock")
	must(err)
	must(stock.Put(ctx, "tea", 7))
	// This read asks the leader, and sees every change that any node has
	// acknowledged before. Without WithConsistency, Get reads this node's memory.
	ctx = hiqlite.WithConsistency(ctx, hiqlite.Linearizable)
	n, ok, err := stock.Get(ctx, "tea")
	must(err)
	fmt.Println(n, ok)
	// Output: 7 true
}

func ExampleBucket_PutTTL() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	codes, err := kv.New[string](client, "codes", kv.WithCodec(kv.String))
	must(err)
	watcher, err := codes.WatchKey(ctx, "ada")
	must(err)
	defer watcher.Close()
	must(codes.PutTTL(ctx, "ada", "481516", 50*time.Millisecond))
	for range 2 {
		e, err := watcher.Next(ctx)
		must(err)
		fmt.Println(e.Kind, e.Key)
	}
	_, ok, err := codes.Get(ctx, "ada")
	must(err)
	fmt.Println(ok)
	// Output:
	// put ada
	// expired ada
	// false
}

func ExampleBucket_PutIfAbsent() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	names, err := kv.New[int](client, "names")
	must(err)
	for user := range 2 {
		taken, err := names.PutIfAbsent(ctx, "ada", user)
		must(err)
		fmt.Printf("user %d gets the name: %v\n", user, taken)
	}
	// Output:
	// user 0 gets the name: true
	// user 1 gets the name: false
}

func ExampleBucket_Replace() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	config, err := kv.New[string](client, "config", kv.WithCodec(kv.String))
	must(err)
	for _, level := range []string{"info", "debug"} {
		old, had, err := config.Replace(ctx, "log-level", level)
		must(err)
		fmt.Printf("%q %v\n", old, had)
	}
	// Output:
	// "" false
	// "info" true
}

func ExampleBucket_CompareAndSwap() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	carts, err := kv.New[[]string](client, "carts")
	must(err)
	add := func(item string) error {
		for {
			cart, version, _, err := carts.GetVersion(ctx, "ada") // version 0: there is no cart yet
			if err != nil {
				return err
			}
			_, swapped, err := carts.CompareAndSwap(ctx, "ada", version, append(cart, item))
			if err != nil || swapped {
				return err
			}
		}
	}
	must(add("tea"))
	must(add("cake"))
	cart, _, err := carts.Get(ctx, "ada")
	must(err)
	fmt.Println(cart)
	// Output: [tea cake]
}

func ExampleBucket_GetVersion() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	flags, err := kv.New[bool](client, "flags")
	must(err)
	must(flags.Put(ctx, "beta", true))
	on, first, _, err := flags.GetVersion(ctx, "beta")
	must(err)
	must(flags.Put(ctx, "beta", true))
	_, second, _, err := flags.GetVersion(ctx, "beta")
	must(err)
	fmt.Println(on, second > first)
	// Output: true true
}

func ExampleBucket_Delete() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	flags, err := kv.New[bool](client, "flags")
	must(err)
	must(flags.Put(ctx, "beta", true))
	for range 2 {
		had, err := flags.Delete(ctx, "beta")
		must(err)
		fmt.Println(had)
	}
	// Output:
	// true
	// false
}

func ExampleBucket_GetRemove() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	links, err := kv.New[string](client, "login-links", kv.WithCodec(kv.String))
	must(err)
	must(links.Put(ctx, "x7f2", "ada"))
	for range 2 { // a link can be used once, on any node
		user, ok, err := links.GetRemove(ctx, "x7f2")
		must(err)
		fmt.Printf("%q %v\n", user, ok)
	}
	// Output:
	// "ada" true
	// "" false
}

func ExampleBucket_Keys() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	sessions, err := kv.New[int](client, "sessions")
	must(err)
	for i, key := range []string{"bob/1", "ada/2", "ada/1"} {
		must(sessions.Put(ctx, key, i))
	}
	keys, err := sessions.Keys(ctx, "ada/")
	must(err)
	fmt.Println(keys)
	// Output: [ada/1 ada/2]
}

func ExampleBucket_Snapshot() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	stock, err := kv.New[int](client, "stock")
	must(err)
	must(stock.Put(ctx, "tea", 7))
	must(stock.Put(ctx, "cake", 2))
	all, err := stock.Snapshot(ctx)
	must(err)
	fmt.Println(all)
	// Output: map[cake:2 tea:7]
}

func ExampleBucket_Clear() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	cache, err := kv.New[int](client, "cache")
	must(err)
	must(cache.Put(ctx, "a", 1))
	must(cache.Clear(ctx))
	keys, err := cache.Keys(ctx, "")
	must(err)
	fmt.Println(len(keys))
	// Output: 0
}

func ExampleClearAll() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	for _, name := range []string{"cache", "sessions"} {
		b, err := kv.New[int](client, name)
		must(err)
		must(b.Put(ctx, "a", 1))
		defer func() {
			_, ok, err := b.Get(ctx, "a")
			must(err)
			fmt.Println(ok)
		}()
	}
	must(kv.ClearAll(ctx, client))
	// Output:
	// false
	// false
}

func ExampleBucket_Add() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	counters, err := kv.New[int](client, "visits")
	must(err)
	for _, delta := range []int64{1, 1, 10} {
		sum, err := counters.Add(ctx, "home", delta)
		must(err)
		fmt.Println(sum)
	}
	// Output:
	// 1
	// 2
	// 12
}

func ExampleBucket_Counter() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	counters, err := kv.New[int](client, "visits")
	must(err)
	must(counters.SetCounter(ctx, "home", 41))
	_, err = counters.Add(ctx, "home", 1)
	must(err)
	n, ok, err := counters.Counter(ctx, "home")
	must(err)
	fmt.Println(n, ok)
	n, ok, err = counters.Counter(ctx, "about")
	must(err)
	fmt.Println(n, ok)
	// Output:
	// 42 true
	// 0 false
}

func ExampleBucket_SetCounter() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	counters, err := kv.New[int](client, "quota")
	must(err)
	must(counters.SetCounter(ctx, "ada", 100))
	left, err := counters.Add(ctx, "ada", -30)
	must(err)
	fmt.Println(left)
	// Output: 70
}

func ExampleBucket_DeleteCounter() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	counters, err := kv.New[int](client, "visits")
	must(err)
	_, err = counters.Add(ctx, "home", 1)
	must(err)
	for range 2 {
		had, err := counters.DeleteCounter(ctx, "home")
		must(err)
		fmt.Println(had)
	}
	// Output:
	// true
	// false
}
