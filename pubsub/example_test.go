package pubsub_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/hiqlite/hiqlite"
	_ "github.com/hiqlite/hiqlite/driver"
	"github.com/hiqlite/hiqlite/pubsub"
)

// openExample opens a cluster of one node in a temporary folder.
func openExample() (db *sql.DB, client hiqlite.Client, closeAll func()) {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	db, err = sql.Open("hiqlite", dir)
	if err != nil {
		log.Fatal(err)
	}
	client, err = hiqlite.From(context.Background(), db)
	if err != nil {
		log.Fatal(err)
	}
	return db, client, func() {
		db.Close()
		os.RemoveAll(dir)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// A program that receives a message can read what was written before it was sent.
func Example() {
	db, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	sub, err := pubsub.Listen(ctx, client, "orders")
	must(err)
	defer sub.Close()

	_, err = db.Exec("CREATE TABLE orders(id INTEGER PRIMARY KEY, what TEXT); INSERT INTO orders VALUES(7, 'tea')")
	must(err)
	_, err = pubsub.Notify(ctx, client, "orders", []byte("7"))
	must(err)

	m, err := sub.Next(ctx)
	must(err)
	var what string
	must(db.QueryRow("SELECT what FROM orders WHERE id = ?", string(m.Payload)).Scan(&what))
	fmt.Println(m.Channel, string(m.Payload), what)
	// Output: orders 7 tea
}

func ExampleNotify() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	first, err := pubsub.Notify(ctx, client, "news", []byte("nobody listens"))
	must(err)
	second, err := pubsub.Notify(ctx, client, "weather", nil)
	must(err)
	fmt.Println(second - first)

	_, err = pubsub.Notify(ctx, client, "news/*", nil)
	fmt.Println(errors.Is(err, pubsub.ErrChannel))
	_, err = pubsub.Notify(ctx, client, "news", make([]byte, pubsub.MaxPayload+1))
	fmt.Println(errors.Is(err, hiqlite.ErrTooLarge))
	// Output:
	// 1
	// true
	// true
}

// A * at the end selects all channels that begin with the text before it.
func ExampleListen() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	sub, err := pubsub.Listen(ctx, client, "orders/*")
	must(err)
	defer sub.Close()
	for _, channel := range []string{"orders/at", "invoices/at", "orders/de"} {
		_, err := pubsub.Notify(ctx, client, channel, nil)
		must(err)
	}
	for range 2 {
		m, err := sub.Next(ctx)
		must(err)
		fmt.Println(m.Channel)
	}
	// Output:
	// orders/at
	// orders/de
}

// A program that was away continues after the last message that it has seen.
func ExampleAfter() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	seen, err := pubsub.Notify(ctx, client, "news", []byte("one"))
	must(err)
	for _, text := range []string{"two", "three"} { // while it is away
		_, err := pubsub.Notify(ctx, client, "news", []byte(text))
		must(err)
	}
	sub, err := pubsub.Listen(ctx, client, "news", pubsub.After(seen))
	if errors.Is(err, pubsub.ErrTooOld) {
		log.Fatal("the program was away for too long: listen without After, and then read again what the messages are about")
	}
	must(err)
	defer sub.Close()
	for range 2 {
		m, err := sub.Next(ctx)
		must(err)
		fmt.Printf("%s, %d later\n", m.Payload, m.Index-seen)
	}
	// Output:
	// two, 1 later
	// three, 2 later
}

func ExampleWithoutOrder() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	// The message is complete in itself, so there is no need to wait for SQL.
	sub, err := pubsub.Listen(ctx, client, "chat", pubsub.WithoutOrder())
	must(err)
	defer sub.Close()
	_, err = pubsub.Notify(ctx, client, "chat", []byte("hello"))
	must(err)
	m, err := sub.Next(ctx)
	must(err)
	fmt.Printf("%s\n", m.Payload)
	// Output: hello
}

func ExampleSubscription_Start() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	index, err := pubsub.Notify(ctx, client, "news", nil)
	must(err)
	sub, err := pubsub.Listen(ctx, client, "news")
	must(err)
	defer sub.Close()
	fmt.Println(sub.Start() == index)
	// Output: true
}

func ExampleSubscription_Next() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	sub, err := pubsub.Listen(ctx, client, "chat")
	must(err)
	defer sub.Close()
	for _, text := range []string{"hello", "bye"} {
		_, err := pubsub.Notify(ctx, client, "chat", []byte(text))
		must(err)
	}
	for {
		m, err := sub.Next(ctx)
		if errors.Is(err, pubsub.ErrLagged) {
			fmt.Println("some messages were missed; the next ones follow")
			continue
		}
		if err != nil {
			fmt.Println(err)
			break
		}
		fmt.Println(strings.ToUpper(string(m.Payload)))
		if string(m.Payload) == "bye" {
			stop()
		}
	}
	// Output:
	// HELLO
	// BYE
	// context canceled
}
