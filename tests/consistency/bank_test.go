package consistency_test

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

const (
	bankAccounts = 8
	bankOpening  = 100 // the first balance of each account
	bankLength   = 12 * time.Second
)

// Transactions on all nodes move money between accounts while nodes are killed and
// paused. At every moment, on every node, the sum of all accounts is the same.
func TestBank(t *testing.T) {
	seed := seedOf(t)
	c := newCluster(t, 3, shortPatience)
	l := c.nodes[0].alive()
	l.must("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
	l.must("CREATE TABLE journal(id TEXT NOT NULL, src INTEGER NOT NULL, dst INTEGER NOT NULL, amount INTEGER NOT NULL)") // without a unique index, so that a write that is applied twice is seen
	for id := range bankAccounts {
		l.must("INSERT INTO account VALUES(?, ?)", id, bankOpening)
	}
	for _, n := range c.nodes { // wait until each node has the tables
		if _, err := n.alive().query(true, "SELECT 1"); err != nil {
			t.Fatal(err)
		}
	}
	b := &bank{history: bankHistory{accounts: bankAccounts, opening: bankOpening}}
	tr := newTraffic(c, seed)
	tr.start(2, b.transfer)
	tr.start(1, b.audit)
	tr.run(testrun.Length(3*time.Second, bankLength))
	c.equal()
	problems(t, b.history.checkReadings())
	for _, n := range c.nodes {
		b.history.last = b.statement(t, n.alive())
		problems(t, b.history.checkLast())
	}
	t.Logf("%d transfers, %d of them in the journal, %d readings", len(b.history.transfers), len(b.history.last.journal), len(b.history.readings))
	tr.require("committed", 200)
	tr.require("expired", 1)
}

// shortPatience sets a busy timeout that is so short that both SQLITE_BUSY and
// expired leases happen.
func shortPatience(cfg *hiqlite.Config) { cfg.Conn.BusyTimeout = 1500 * time.Millisecond }

// bank is the traffic.
type bank struct {
	acked atomic.Int64 // the number of transfers that were acknowledged

	mu      sync.Mutex
	history bankHistory
}

// transfer moves money, in most cases in an interactive transaction.
func (b *bank) transfer(w *worker, l *life) {
	t := transfer{
		id: fmt.Sprintf("%d/%d", w.id, w.count), node: w.node.cfg.NodeID,
		src: w.random.IntN(bankAccounts), amount: 1 + w.random.IntN(40),
	}
	t.dst = (t.src + 1 + w.random.IntN(bankAccounts-1)) % bankAccounts
	var err error
	if w.random.IntN(4) == 0 {
		err = t.asBatch(w, l)
	} else {
		err = t.interactive(w, l)
	}
	t.outcome = w.note(err, !t.refused)
	t.error = fmt.Sprint(err)
	if t.outcome == committed && !t.refused {
		b.acked.Add(1)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.history.transfers = append(b.history.transfers, t)
}

// interactive transfers in an interactive transaction. It writes balances that it
// has computed from what it read, so that the sums are wrong if another transaction
// writes in between.
func (t *transfer) interactive(w *worker, l *life) (err error) {
	rollback := w.random.IntN(20) == 0
	within := w.within()
	tx, err := l.begin(request{Within: within})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil || t.refused {
			tx.rollback()
		}
	}()
	var balances [2]int
	for i, id := range []int{t.src, t.dst} {
		rows, err := tx.query("SELECT balance FROM account WHERE id=?", id)
		if err != nil {
			return err
		}
		balances[i], _ = strconv.Atoi(rows[0][0])
	}
	if balances[0] < t.amount {
		t.refused = true
		return nil
	}
	for i, change := range []int{-t.amount, t.amount} {
		if _, err := tx.exec("UPDATE account SET balance=? WHERE id=?", balances[i]+change, []int{t.src, t.dst}[i]); err != nil {
			return err
		}
		w.wrote(within)
	}
	if _, err := tx.exec("INSERT INTO journal VALUES(?,?,?,?)", t.id, t.src, t.dst, t.amount); err != nil {
		return err
	}
	if rollback {
		t.refused = true
		return nil
	}
	return tx.commit()
}

// asBatch transfers in a batch, which needs no lease of its own.
func (t *transfer) asBatch(w *worker, l *life) error {
	a, err := l.ask(request{Do: "batch", Within: w.within(),
		SQL: []string{
			`UPDATE account SET balance = balance + CASE id WHEN ?1 THEN -?3 ELSE ?3 END
			 WHERE id IN (?1, ?2) AND (SELECT balance FROM account WHERE id=?1) >= ?3`,
			"INSERT INTO journal SELECT ?1, ?2, ?3, ?4 WHERE changes()=2"},
		Args: [][]any{{t.src, t.dst, t.amount}, {t.id, t.src, t.dst, t.amount}},
	}, func() { w.node.reach(committing) })
	if err == nil {
		t.refused = a.Affected[1] == 0
	}
	return err
}

// audit reads all accounts.
func (b *bank) audit(w *worker, l *life) {
	k := reading{node: w.node.cfg.NodeID, acked: b.acked.Load()}
	var err error
	switch w.random.IntN(4) {
	case 0: // a linearizable query
		k.linearizable = true
		var rows [][]string
		rows, err = l.query(true, "SELECT sum(balance), min(balance), (SELECT count(*) FROM journal) FROM account")
		k.sum(rows)
	case 1: // a local query
		var rows [][]string
		rows, err = l.query(false, "SELECT sum(balance), min(balance), (SELECT count(*) FROM journal) FROM account")
		k.sum(rows)
	default: // a read-only transaction
		k.linearizable = w.random.IntN(2) == 0
		err = k.snapshot(w, l)
	}
	w.note(err, false)
	if err != nil {
		return
	}
	time.Sleep(time.Duration(w.random.IntN(10)) * time.Millisecond) // leave processor time to the transfers
	b.mu.Lock()
	defer b.mu.Unlock()
	b.history.readings = append(b.history.readings, k)
}

// sum adds the result of a query to the reading.
func (k *reading) sum(rows [][]string) {
	if len(rows) == 0 {
		return // the query failed
	}
	k.totals = append(k.totals, number(rows[0][0]))
	k.least = number(rows[0][1])
	k.journal = append(k.journal, number(rows[0][2]))
}

func number(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

// snapshot reads several times in one read-only transaction.
func (k *reading) snapshot(w *worker, l *life) (err error) {
	tx, err := l.begin(request{ReadOnly: true, Linearizable: k.linearizable})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tx.rollback()
		}
	}()
	for range 2 {
		rows, err := tx.query("SELECT sum(balance), min(balance), (SELECT count(*) FROM journal) FROM account")
		if err != nil {
			return err
		}
		k.sum(rows)
		time.Sleep(time.Duration(w.random.IntN(5)) * time.Millisecond) // other transactions commit meanwhile
	}
	rows, err := tx.query(`SELECT a.id FROM account a WHERE balance <> ? +
		(SELECT coalesce(sum(CASE a.id WHEN src THEN -amount WHEN dst THEN amount END), 0) FROM journal)`, bankOpening)
	if err != nil {
		return err
	}
	for _, row := range rows {
		k.wrong = append(k.wrong, row[0])
	}
	return tx.commit()
}

// statement returns the final rows of a node.
func (b *bank) statement(t *testing.T, l *life) (s bankStatement) {
	t.Helper()
	rows, err := l.query(true, "SELECT id, balance FROM account")
	if err != nil {
		t.Fatal(err)
	}
	s.balances = map[int]int{}
	for _, row := range rows {
		s.balances[number(row[0])] = number(row[1])
	}
	rows, err = l.query(true, "SELECT id, src, dst, amount FROM journal")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		s.journal = append(s.journal, entry{row[0], number(row[1]), number(row[2]), number(row[3])})
	}
	return s
}
