package consistency_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

const (
	appendKeys   = 2000
	appendWindow = 4  // the number of keys in use at a time
	appendEach   = 10 // the number of appends after which the next key comes into use
	appendLength = 12 * time.Second
)

// Transactions on all nodes append to lists and read them while nodes are killed and
// paused. What they read shows the order in which they happened. There must be such
// an order.
func TestListAppend(t *testing.T) {
	seed := seedOf(t)
	c := newCluster(t, 3, shortPatience)
	l := c.nodes[0].alive()
	l.must("CREATE TABLE list(k INTEGER PRIMARY KEY, v TEXT NOT NULL)")
	l.must("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < ?) INSERT INTO list SELECT i, '' FROM n", appendKeys-1)
	for _, n := range c.nodes {
		if _, err := n.alive().query(true, "SELECT 1"); err != nil {
			t.Fatal(err)
		}
	}
	a := &appends{}
	tr := newTraffic(c, seed)
	tr.start(3, a.transact)
	tr.run(testrun.Length(3*time.Second, appendLength))
	c.equal()
	final := a.final(t, c.nodes[0].alive())
	began := time.Now()
	problems(t, checkAppends(a.history, final))
	t.Logf("%d transactions with %d appends, checked in %v", len(a.history), a.values.Load(), time.Since(began).Round(time.Millisecond))
	tr.require("committed", 200)
	tr.require("nothing written", 50)
	tr.require("expired", 1)
}

// appends is the traffic.
type appends struct {
	values atomic.Int64 // the last value that was appended

	mu      sync.Mutex
	history []appendTxn
}

// key returns a key in use.
func (a *appends) key(w *worker) int {
	return (int(a.values.Load())/appendEach + w.random.IntN(appendWindow)) % appendKeys
}

// transact does one transaction of a random kind.
func (a *appends) transact(w *worker, l *life) {
	x := appendTxn{worker: w.id, life: l.number, outcome: aborted}
	x.call = w.now()
	var err error
	switch kind := w.random.IntN(100); {
	case kind < 55:
		x.kind, x.strict = "transaction", true
		err = a.interactive(w, l, &x, request{Within: w.within()})
	case kind < 65:
		x.kind = "deferred"
		err = a.interactive(w, l, &x, request{Within: w.within(), Deferred: true})
		x.strict = x.writes() // otherwise it is a local snapshot
	case kind < 78:
		x.kind = "snapshot"
		err = a.interactive(w, l, &x, request{ReadOnly: true})
	case kind < 86:
		x.kind, x.strict = "linearizable snapshot", true
		err = a.interactive(w, l, &x, request{ReadOnly: true, Linearizable: true})
	case kind < 93:
		x.kind, x.strict = "statement", true
		err = a.plain(w, l, &x, 1)
	default:
		x.kind, x.strict = "batch", true
		err = a.plain(w, l, &x, 1+w.random.IntN(4))
	}
	x.ret = w.now()
	if x.rolledBack {
		w.note(err, false)
		x.outcome = aborted
	} else {
		x.outcome = w.note(err, x.writes())
	}
	if err != nil {
		x.error = err.Error()
	}
	if x.outcome == unknown {
		x.ret = never
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.history = append(a.history, x)
}

const appendSQL = "UPDATE list SET v = v || ? WHERE k = ?"

// plain appends by a statement or batch outside of transactions.
func (a *appends) plain(w *worker, l *life, x *appendTxn, n int) error {
	r := request{Do: "batch", Within: w.within()}
	for range n {
		op := a.next(w)
		x.ops = append(x.ops, op)
		r.SQL = append(r.SQL, appendSQL)
		r.Args = append(r.Args, []any{strconv.Itoa(op.value) + ",", op.key})
	}
	if n == 1 {
		r.Do = "exec"
	}
	_, err := l.ask(r, func() { w.node.reach(committing) })
	return err
}

func (a *appends) next(w *worker) appendOp {
	return appendOp{key: a.key(w), value: int(a.values.Add(1))}
}

// interactive does one to four operations in a transaction.
func (a *appends) interactive(w *worker, l *life, x *appendTxn, r request) (err error) {
	rollback := w.random.IntN(20) == 0
	tx, err := l.begin(r)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil || x.rolledBack {
			tx.rollback()
		}
	}()
	for range 1 + w.random.IntN(4) {
		switch kind := w.random.IntN(100); {
		case kind < 45 || r.ReadOnly:
			err = read(tx, x, a.key(w))
		case kind < 80:
			op := a.next(w)
			x.ops = append(x.ops, op)
			_, err = tx.exec(appendSQL, strconv.Itoa(op.value)+",", op.key)
		case kind < 90:
			op := a.next(w)
			x.ops = append(x.ops, op)
			tx.writes = true
			var rows [][]string
			if rows, err = tx.query(appendSQL+" RETURNING v", strconv.Itoa(op.value)+",", op.key); err == nil {
				err = x.saw(op.key, rows)
			}
		default:
			err = a.appendAndUndo(w, tx, x)
		}
		if err != nil {
			return err
		}
		if x.writes() && !rollback { // a rollback does not report that the lease has expired
			w.wrote(r.Within)
		}
		if w.random.IntN(10) == 0 {
			time.Sleep(time.Duration(w.random.IntN(4)) * time.Millisecond) // the program thinks
		}
	}
	if rollback {
		x.rolledBack = true
		return nil
	}
	return tx.commit()
}

// appendAndUndo appends in a savepoint, rolls back to it, and reads.
func (a *appends) appendAndUndo(w *worker, tx *transaction, x *appendTxn) error {
	op := a.next(w)
	x.undone = append(x.undone, op.value)
	if _, err := tx.exec("SAVEPOINT undone"); err != nil {
		return err
	}
	if _, err := tx.exec(appendSQL, strconv.Itoa(op.value)+",", op.key); err != nil {
		return err
	}
	if _, err := tx.exec("ROLLBACK TO undone"); err != nil {
		return err
	}
	if _, err := tx.exec("RELEASE undone"); err != nil {
		return err
	}
	return read(tx, x, op.key)
}

func read(tx *transaction, x *appendTxn, key int) error {
	rows, err := tx.query("SELECT v FROM list WHERE k = ?", key)
	if err != nil {
		return err
	}
	return x.saw(key, rows)
}

var errNoList = errors.New("a list is missing")

// saw adds a read with this result to the transaction.
func (x *appendTxn) saw(key int, rows [][]string) error {
	if len(rows) != 1 {
		return errNoList
	}
	list, err := parseList(rows[0][0])
	if err != nil {
		return err
	}
	x.ops = append(x.ops, appendOp{key: key, read: true, list: list})
	return nil
}

func parseList(text string) ([]int, error) {
	var list []int
	for text != "" {
		item, rest, found := strings.Cut(text, ",")
		n, err := strconv.Atoi(item)
		if err != nil || !found {
			return nil, fmt.Errorf("a list ends with %q", text)
		}
		list, text = append(list, n), rest
	}
	return list, nil
}

// final returns the lists after the run.
func (a *appends) final(t *testing.T, l *life) map[int][]int {
	t.Helper()
	rows, err := l.query(true, "SELECT k, v FROM list WHERE v <> ''")
	if err != nil {
		t.Fatal(err)
	}
	final := map[int][]int{}
	for _, row := range rows {
		if final[number(row[0])], err = parseList(row[1]); err != nil {
			t.Fatal(err)
		}
	}
	return final
}
