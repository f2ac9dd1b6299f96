package main

import (
	"context"
	"database/sql"
	"math"
	"slices"
	"time"
)

const (
	txRows     = 20_000                // INSERTs of a large transaction from one goroutine
	txLeast    = 1000                  // the smallest large transaction from several goroutines
	txAlone    = 60                    // transactions that are measured with pauses
	txPause    = 30 * time.Millisecond // before each of these
	txRounds   = 5                     // rounds of txPerRound plain INSERTs and as many transactions, back to back
	txPerRound = 100
)

// transactions measures interactive transactions at one concurrency.
func (b *bench) transactions(ctx context.Context, nodes []target, db *sql.DB, c int, f *figures) error {
	next := 1_000_000_000 // larger than the ids of other measurements
	one := func(i int) error { return inTx(db, 1, next+i) }
	t, err := repeat(ctx, nodes, c, max(2*c, b.rows/20), one)
	if err != nil {
		return err
	}
	f.TxPerS = round(t.perSecond())
	next += b.rows + 10*c

	rows, count := max(txLeast, txRows/c), max(4, c)
	t, err = repeat(ctx, nodes, c, count, func(i int) error { return inTx(db, rows, next+i*rows) })
	if err != nil {
		return err
	}
	f.TxRowsPerS = round(float64(rows) * t.perSecond())
	if c > 1 {
		return nil
	}
	next += 2 * count * rows
	return b.ratios(ctx, db, next, f)
}

// inTx inserts rows in one transaction, with a statement that is prepared in it.
func inTx(db *sql.DB, rows, first int) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if rows == 1 {
		if _, err := tx.Exec(insert, row(first)...); err != nil {
			return err
		}
		return tx.Commit()
	}
	stmt, err := tx.Prepare(insert)
	if err != nil {
		return err
	}
	defer stmt.Close()
	ctx := context.Background()
	for i := range rows {
		if _, err := stmt.ExecContext(ctx, row(first+i)...); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// ratios compares transactions of one INSERT with plain INSERTs. It measures them in
// turn, because the speed of a machine changes from second to second.
func (b *bench) ratios(ctx context.Context, db *sql.DB, next int, f *figures) error {
	timed := func(f func() error) (time.Duration, error) {
		began := time.Now()
		err := f()
		return time.Since(began), err
	}
	insertOne := func() error { next++; _, err := db.Exec(insert, row(next)...); return err }
	tx := func() error { next++; return inTx(db, 1, next) }

	var txTimes, insertTimes []time.Duration
	for range txAlone {
		for _, m := range []struct {
			f    func() error
			into *[]time.Duration
		}{{insertOne, &insertTimes}, {tx, &txTimes}} {
			time.Sleep(txPause) // so that the node does not keep the write lease for the next one
			d, err := timed(m.f)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			*m.into = append(*m.into, d)
		}
	}
	f.TxRatio = ratio(txTimes, insertTimes)

	txTimes, insertTimes = nil, nil
	for range txRounds {
		for range txPerRound {
			d, err := timed(insertOne)
			if err != nil {
				return err
			}
			insertTimes = append(insertTimes, d)
		}
		for i := range txPerRound {
			d, err := timed(tx)
			if err != nil {
				return err
			}
			if i > 1 { // for the first two, the node has not kept the write lease
				txTimes = append(txTimes, d)
			}
		}
	}
	f.TxKeptRatio = ratio(txTimes, insertTimes)
	return nil
}

// ratio returns the ratio of the medians, with two decimals.
func ratio(a, b []time.Duration) float64 {
	slices.Sort(a)
	slices.Sort(b)
	return math.Round(100*float64(a[len(a)/2])/float64(b[len(b)/2])) / 100
}
