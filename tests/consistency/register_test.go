package consistency_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

const (
	registerWindow = 3  // the number of registers in use at a time
	registerEach   = 60 // the number of operations after which the next register comes into use
	registerLength = 12 * time.Second
	// registerSearch bounds the time that the model needs for all registers.
	registerSearch = 30 * time.Second
)

// Workers on all nodes write, compare-and-swap and read single rows while nodes are
// killed and paused. Each row behaves like a linearizable register.
func TestRegisters(t *testing.T) {
	seed := seedOf(t)
	c := newCluster(t, 3, shortPatience)
	c.nodes[0].alive().must("CREATE TABLE register(k INTEGER PRIMARY KEY, v INTEGER NOT NULL)")
	for _, n := range c.nodes {
		if _, err := n.alive().query(true, "SELECT 1"); err != nil {
			t.Fatal(err)
		}
	}
	r := &registers{}
	tr := newTraffic(c, seed)
	tr.start(2, r.operate)
	tr.run(testrun.Length(3*time.Second, registerLength))
	c.equal()
	began := time.Now()
	problems(t, checkRegisters(r.history, registerSearch))
	t.Logf("%d operations on %d registers, checked in %v", len(r.history), r.count.Load()/registerEach, time.Since(began).Round(time.Millisecond))
	tr.require("committed", 200)
	tr.require("nothing written", 200)
	tr.require("expired", 1)
}

// registers is the traffic.
type registers struct {
	count atomic.Int64 // the number of operations

	mu      sync.Mutex
	history []registerOp
}

// operate does one operation on a register.
func (r *registers) operate(w *worker, l *life) {
	n := r.count.Add(1)
	op := registerOp{worker: w.id, key: int(n)/registerEach + w.random.IntN(registerWindow), value: int(n), call: w.now()}
	var err error
	switch kind := w.random.IntN(10); {
	case kind < 4:
		op.kind = readRegister
		err = op.read(l)
	case kind < 7:
		op.kind = writeRegister
		_, err = l.ask(request{Do: "exec", Within: w.within(), Args: [][]any{{op.key, op.value}},
			SQL: []string{"INSERT INTO register VALUES(?, ?) ON CONFLICT(k) DO UPDATE SET v = excluded.v"},
		}, func() { w.node.reach(committing) })
	case kind < 8:
		op.kind = swapRegister
		err = op.swapInStatement(w, l)
	default:
		op.kind = swapRegister
		err = op.swap(w, l)
	}
	op.ret = w.now()
	switch w.note(err, op.kind == writeRegister || op.kind == swapRegister && op.swapped) {
	case aborted:
		return // it did not happen
	case unknown:
		if op.kind == readRegister {
			return
		}
		op.unknown, op.ret = true, never
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, op)
}

func (op *registerOp) read(l *life) error {
	rows, err := l.query(true, "SELECT v FROM register WHERE k = ?", op.key)
	if err == nil && len(rows) > 0 {
		op.found = number(rows[0][0])
	}
	return err
}

// swapInStatement compares and swaps in one statement. It compares with a value from
// a local read.
func (op *registerOp) swapInStatement(w *worker, l *life) error {
	rows, err := l.query(false, "SELECT v FROM register WHERE k = ?", op.key)
	if err != nil {
		return certain{err}
	}
	if len(rows) > 0 {
		op.compare = number(rows[0][0])
	}
	text := "UPDATE register SET v = ?2 WHERE k = ?1 AND v = ?3"
	if op.compare == 0 {
		text = "INSERT INTO register SELECT ?1, ?2 WHERE ?3 = 0 ON CONFLICT DO NOTHING"
	}
	op.call = w.now()
	a, err := l.ask(request{Do: "exec", Within: w.within(), SQL: []string{text}, Args: [][]any{{op.key, op.value, op.compare}}},
		func() { w.node.reach(committing) })
	if err == nil {
		op.swapped = a.Affected[0] == 1
	}
	return err
}

// swap swaps in a transaction. It compares with the value that it has read in the
// transaction, and so always swaps.
func (op *registerOp) swap(w *worker, l *life) (err error) {
	within := w.within()
	tx, err := l.begin(request{Within: within})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tx.rollback()
		}
	}()
	rows, err := tx.query("SELECT v FROM register WHERE k = ?", op.key)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		_, err = tx.exec("INSERT INTO register VALUES(?, ?)", op.key, op.value)
	} else {
		op.compare = number(rows[0][0])
		_, err = tx.exec("UPDATE register SET v = ? WHERE k = ?", op.value, op.key)
	}
	if err != nil {
		return err
	}
	w.wrote(within)
	op.swapped = true
	return tx.commit()
}
