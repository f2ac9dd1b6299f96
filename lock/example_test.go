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
		return work(held.Context()) // the context ends if the lock is lost
	}
	err := nightly(func(context.Context) error {
		fmt.Println("no other node does this now")
		return nil
	})
	fmt.Println(err)
	// Output:
	// no other node does this now
	// <nil>
}

func ExampleNew() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	// Use one Locker for all locks of a program, since it renews them together.
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
	// If this program is killed, others get the lock after two seconds.
	held, err := lock.New(client, lock.WithTTL(2*time.Second)).Lock(ctx, "leader")
	must(err)
	fmt.Println(held.Key(), held.Unlock(ctx))
	// Output: leader <nil>
}

func ExampleWithoutOrder() {
	_, client, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	// The printer is not in the database, so there is no need to wait for earlier
	// holders' writes.
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
	fmt.Println("the first holder unlocks")
	must(held.Unlock(ctx))
	second := <-next
	fmt.Println("the second holder has a higher token:", second.Token() > held.Token())
	must(second.Unlock(ctx))
	// Output:
	// the first holder unlocks
	// the second holder has a higher token: true
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
		fmt.Println("another node does it already")
	}
	// Output: another node does it already
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
	must(first.Unlock(ctx)) // or it lost the lock and did not notice, because it was suspended
	second, err := locks.Lock(ctx, "job")
	must(err)
	defer second.Unlock(ctx)
	write(second, "second holder")
	write(first, "first holder, late")
	// Output:
	// second holder: 1 row
	// first holder, late: 0 row
}

func ExampleHeld_Done() {
	_, client, closeAll := openExample()
	ctx := context.Background()
	held, err := lock.New(client).Lock(ctx, "leader")
	must(err)
	closeAll() // a node releases its locks when it is closed
	<-held.Done()
	fmt.Println(errors.Is(held.Unlock(ctx), lock.ErrLost))
	// Output: true
}

// Held.Context ends with the lock, not with the context that Lock was given. Work
// that has to end with either needs both.
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
	fmt.Println("the work has ended, the lock is still held:", held.Context().Err() == nil)

	must(held.Unlock(context.WithoutCancel(ctx))) // ctx has ended, but Unlock should wait
	fmt.Println(context.Cause(held.Context()))
	// Output:
	// the work has ended, the lock is still held: true
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
