package lock_test

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
	"github.com/hiqlite/hiqlite/lock"
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

func Example() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	nightly := func(work func(ctx context.Context) error) (err error) {
		held, err := lock.New(client).Lock(ctx, "nightly")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, held.Unlock(ctx)) }()
		return work(held.Context()) // which ends if the lock is lost
	}
	err := nightly(func(context.Context) error {
		fmt.Println("nobody else does this now")
		return nil
	})
	fmt.Println(err)
	// Output:
	// nobody else does this now
	// <nil>
}

func ExampleNew() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	// One Locker for all locks of a program: it renews them together.
	locks := lock.New(client, lock.WithTTL(5*time.Second))
	for _, key := range []string{"invoices", "mails"} {
		held, err := locks.Lock(ctx, key)
		must(err)
		defer held.Unlock(ctx)
		fmt.Println(held.Key())
	}
	// Output:
	// invoices
	// mails
}

func ExampleWithTTL() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	// If this program is killed, others have the lock after two seconds.
	held, err := lock.New(client, lock.WithTTL(2*time.Second)).Lock(ctx, "leader")
	must(err)
	fmt.Println(held.Key(), held.Unlock(ctx))
	// Output: leader <nil>
}

func ExampleWithoutOrder() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	// What it guards is not in SQL: no need to wait for that.
	held, err := lock.New(client, lock.WithoutOrder()).Lock(ctx, "printer")
	must(err)
	fmt.Println(held.Key(), held.Unlock(ctx))
	// Output: printer <nil>
}

func ExampleLocker_Lock() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	held, err := lock.New(client).Lock(ctx, "job")
	must(err)
	next := make(chan *lock.Held)
	go func() {
		second, err := lock.New(client).Lock(ctx, "job") // waits
		must(err)
		next <- second
	}()
	fmt.Println("the first gives it back")
	must(held.Unlock(ctx))
	second := <-next
	fmt.Println("the second has it, with a higher token:", second.Token() > held.Token())
	must(second.Unlock(ctx))
	// Output:
	// the first gives it back
	// the second has it, with a higher token: true
}

// A context bounds how long Lock waits.
func ExampleLocker_Lock_timeout() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	held, err := lock.New(client).Lock(ctx, "job")
	must(err)
	defer held.Unlock(ctx)

	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = lock.New(client).Lock(short, "job")
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// Output: true
}

func ExampleLocker_TryLock() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	held, err := lock.New(client).TryLock(ctx, "job")
	must(err)
	defer held.Unlock(ctx)

	_, err = lock.New(client).TryLock(ctx, "job")
	if errors.Is(err, lock.ErrHeld) {
		fmt.Println("somebody does it already")
	}
	// Output: somebody does it already
}

func ExampleHeld_Token() {
	db, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	_, err := db.Exec("CREATE TABLE job(id INTEGER PRIMARY KEY, result TEXT, token INTEGER NOT NULL); INSERT INTO job VALUES(1, NULL, 0)")
	must(err)
	write := func(held *lock.Held, result string) {
		r, err := db.Exec("UPDATE job SET result=?1, token=?2 WHERE id=1 AND token<=?2", result, int64(held.Token()))
		must(err)
		n, err := r.RowsAffected()
		must(err)
		fmt.Printf("%s: %d row\n", result, n)
	}
	locks := lock.New(client)
	first, err := locks.Lock(ctx, "job")
	must(err)
	must(first.Unlock(ctx)) // or it was lost, unnoticed by a program that was stopped
	second, err := locks.Lock(ctx, "job")
	must(err)
	defer second.Unlock(ctx)
	write(second, "of the second")
	write(first, "of the first, late")
	// Output:
	// of the second: 1 row
	// of the first, late: 0 row
}

func ExampleHeld_Done() {
	_, client, closeAll := openExample()
	ctx := context.Background()
	held, err := lock.New(client).Lock(ctx, "leader")
	must(err)
	closeAll() // a node that closes gives its locks back
	<-held.Done()
	fmt.Println(errors.Is(held.Unlock(ctx), lock.ErrLost))
	// Output: true
}

// The context ends with the lock. What has to end with the caller's, too, needs
// both.
func ExampleHeld_Context() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	held, err := lock.New(client).Lock(ctx, "job")
	must(err)

	work, cancel := context.WithCancel(held.Context())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	stop()
	<-work.Done()
	fmt.Println("the work ends, the lock is still held:", held.Context().Err() == nil)

	must(held.Unlock(context.WithoutCancel(ctx))) // with ctx, it would not wait until that is certain
	fmt.Println(context.Cause(held.Context()))
	// Output:
	// the work ends, the lock is still held: true
	// lock: not held
}

func ExampleHeld_Unlock() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	held, err := lock.New(client).Lock(ctx, "job")
	must(err)
	fmt.Println(held.Unlock(ctx))
	fmt.Println(held.Unlock(ctx))
	// Output:
	// <nil>
	// lock: not held: "job"
}
