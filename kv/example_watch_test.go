package kv_test

import (
	"context"
	"errors"
	"fmt"

	_ "github.com/hiqlite/hiqlite/driver"
	"github.com/hiqlite/hiqlite/kv"
)

func ExampleBucket_Watch() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	flags, err := kv.New[bool](client, "flags")
	must(err)
	watcher, err := flags.Watch(ctx, "ui/")
	must(err)
	defer watcher.Close()
	must(flags.Put(ctx, "ui/dark", true))
	must(flags.Put(ctx, "api/v2", true)) // not watched
	_, err = flags.Delete(ctx, "ui/dark")
	must(err)
	must(flags.Clear(ctx))
	for range 3 {
		e, err := watcher.Next(ctx)
		must(err)
		fmt.Printf("%v %q %v\n", e.Kind, e.Key, e.Value)
	}
	// Output:
	// put "ui/dark" true
	// deleted "ui/dark" false
	// cleared "" false
}

func ExampleBucket_WatchKey() {
	client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	config, err := kv.New[string](client, "config", kv.WithCodec(kv.String))
	must(err)
	watcher, err := config.WatchKey(ctx, "log-level", kv.WithoutOrder()) // the program does not read SQL after an event
	must(err)
	defer watcher.Close()
	must(config.Put(ctx, "log-level", "debug"))
	e, err := watcher.Next(ctx)
	must(err)
	fmt.Println(e.Value)
	// Output: debug
}

// A watcher that was too slow has missed events. Make another one, and then read the
// entries.
func ExampleWatcher_Next() {
	client, closeAll := openExample()
	defer closeAll()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	flags, err := kv.New[bool](client, "flags")
	must(err)
	must(flags.Put(ctx, "beta", true))

	mirror := func() error {
		watcher, err := flags.Watch(ctx, "")
		if err != nil {
			return err
		}
		defer watcher.Close()
		all, err := flags.Snapshot(ctx)
		if err != nil {
			return err
		}
		fmt.Println("begins with", all)
		stop() // only in this example: a program continues
		for {
			e, err := watcher.Next(ctx)
			if err != nil {
				return err
			}
			all[e.Key] = e.Value
		}
	}
	for {
		err := mirror()
		if errors.Is(err, kv.ErrLagged) {
			continue
		}
		fmt.Println(err)
		break
	}
	// Output:
	// begins with map[beta:true]
	// context canceled
}
