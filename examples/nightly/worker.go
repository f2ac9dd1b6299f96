package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/lock"
)

const schema = `
	CREATE TABLE sales(night INTEGER NOT NULL, shop INTEGER NOT NULL, cents INTEGER NOT NULL);
	CREATE TABLE totals(night INTEGER NOT NULL, cents INTEGER NOT NULL, node INTEGER NOT NULL, token INTEGER NOT NULL);
	CREATE TABLE job(name TEXT PRIMARY KEY, token INTEGER NOT NULL); -- the highest token so far
	INSERT INTO job VALUES('nightly', 0);
	WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < 2999)
		INSERT INTO sales SELECT 1 + i/1000, i%10, 100 + i%7 FROM n`

const (
	shops  = 10
	nights = 3

	// insertTotal adds a total, unless a holder with a higher token has been here
	// in the meantime.
	insertTotal = `INSERT INTO totals SELECT ?1, ?2, ?3, ?4 WHERE ?4 >= (SELECT token FROM job WHERE name = 'nightly')`
)

// A worker does the job on one node.
type worker struct {
	id    uint64
	node  *hiqlite.Node
	locks *lock.Locker

	midway func(held *lock.Held) // called in the middle of the job
	lost   *lock.Held            // the lock that it held when the example closed its node
}

// errFenced means that another worker got the lock before this one had finished.
var errFenced = errors.New("the lock was lost before the total was written")

// nightly does the job of a night, unless it has been done.
func (w *worker) nightly(ctx context.Context, night int) (err error) {
	held, err := w.locks.Lock(ctx, "nightly")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Unlock(ctx)) }()

	// The work has to end when the lock is lost, and when ctx ends.
	work, cancel := context.WithCancel(held.Context())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()

	// A holder can read what earlier holders wrote, on whatever nodes.
	var done bool
	db := w.node.DB()
	if err := db.QueryRowContext(work, "SELECT count(*) > 0 FROM totals WHERE night = ?", night).Scan(&done); err != nil || done {
		return err
	}
	// From now on, insertTotal refuses lower tokens.
	if _, err := db.ExecContext(work, "UPDATE job SET token = ?1 WHERE name = 'nightly' AND token < ?1", int64(held.Token())); err != nil {
		return err
	}
	fmt.Printf("night %d: node %d has the lock\n", night, w.id)
	total, err := w.total(work, night, held)
	if err != nil {
		return err
	}
	result, err := db.ExecContext(work, insertTotal, night, total, w.id, int64(held.Token()))
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, errFenced)
	}
	fmt.Printf("night %d: node %d has written %d cents\n", night, w.id, total)
	return nil
}

// total adds up the sales of a night, shop by shop.
func (w *worker) total(ctx context.Context, night int, held *lock.Held) (total int, err error) {
	for shop := range shops {
		if shop == shops/2 {
			w.midway(held)
		}
		var cents int
		err := w.node.DB().QueryRowContext(ctx, "SELECT sum(cents) FROM sales WHERE night = ? AND shop = ?", night, shop).Scan(&cents)
		if err != nil {
			return 0, err
		}
		total += cents
	}
	return total, nil
}
