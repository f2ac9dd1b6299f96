package replica

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A trial executes a transaction on a view of one replica and applies it on two.
type trial struct {
	*Transaction
	t    require
	h    *history
	a, b *machine
	id   uint64
	op   wire.Operation // the recording of the transaction
}

type require interface {
	Helper()
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

func newTrial(t *testing.T, rt require, schema ...string) *trial {
	t.Helper()
	h := newHistory()
	h.sql(schema...)
	x := &trial{t: rt, h: h, a: emptyMachine(t), b: emptyMachine(t), id: 1 << 63}
	x.a.apply(h.entries...)
	x.b.apply(h.entries...)
	for i := range schema {
		if r := x.a.got[[2]uint64{1, uint64(i + 1)}][0]; r.Err != nil {
			rt.Fatalf("%s: %v", schema[i], r.Err)
		}
	}
	return x
}

// send has both replicas apply an entry of the first session, and returns its results,
// which must be the same.
func (x *trial) send(ops ...*wire.EncodedOperation) []wire.Result {
	x.t.Helper()
	x.h.seq++
	x.h.add(wire.EncodeEntry(1, x.h.seq, 0, ops))
	e := x.h.entries[len(x.h.entries)-1]
	x.a.apply(e)
	x.b.apply(e)
	key := [2]uint64{1, x.h.seq}
	if a, b := x.a.final(key), x.b.final(key); a != b {
		x.t.Fatalf("the results of one replica are %+v, those of the other %+v", x.a.got[key], x.b.got[key])
	}
	return x.a.got[key]
}

// begin begins the transaction under a new lease.
func (x *trial) begin(opts TransactionOptions) *trial {
	x.t.Helper()
	x.id++
	a := x.send(wire.EncodeOperation(acquire(x.id, 1000)))[0].Lease
	tx, err := x.a.Speculate(opts)
	if err == nil {
		err = tx.Lease(x.id, a.Base)
	}
	if err != nil {
		x.t.Fatalf("beginning: %v", err)
	}
	x.Transaction = tx
	return x
}

var savepointWords = map[string]Savepoint{"SAVEPOINT": SetSavepoint, "RELEASE": ReleaseSavepoint, "ROLLBACK TO": RollbackToSavepoint}

// run executes one statement as a connection would.
func (x *trial) run(text string) (string, error) {
	class, err := x.Classify(text)
	if err != nil {
		return "", err
	}
	switch class.Kind {
	case sqlite.Transaction:
		return "", x.Savepoint(savepointWords[class.Control], class.Savepoint, text)
	case sqlite.Read:
		return x.rows(text)
	}
	s, err := x.Exec(context.Background(), text, nil)
	return cells(s.Rows), err
}

func cells(rows *wire.Rows) string {
	var out []string
	for i := range rows.Len() {
		var row []string
		for _, v := range rows.Cells[i*len(rows.Columns) : (i+1)*len(rows.Columns)] {
			switch v.Kind {
			case wire.Integer:
				row = append(row, fmt.Sprint(v.Int()))
			case wire.Real:
				row = append(row, fmt.Sprint(v.Float()))
			default:
				row = append(row, string(v.Data))
			}
		}
		out = append(out, strings.Join(row, "|"))
	}
	return strings.Join(out, "\n")
}

// rows returns the rows of a query inside the transaction, in the form of machine.rows.
func (x *trial) rows(text string) (string, error) {
	c, err := x.Query(context.Background(), text, nil)
	if err != nil {
		return "", err
	}
	defer c.Close()
	var out []string
	for {
		more, err := c.Next(func(s *sqlite.Stmt) {
			var cells []string
			for i := range s.ColumnCount() {
				cells = append(cells, string(s.Bytes(i)))
			}
			out = append(out, strings.Join(cells, "|"))
		})
		if err != nil || !more {
			return strings.Join(out, "\n"), err
		}
	}
}

// must executes statements. Those that begin with "!" must fail and leave the transaction
// open; the others must succeed.
func (x *trial) must(texts ...string) {
	x.t.Helper()
	for _, text := range texts {
		text, fails := strings.CutPrefix(text, "!")
		if _, err := x.run(text); (err != nil) != fails {
			x.t.Fatalf("%s: %v", text, err)
		}
		if err := x.Err(); err != nil {
			x.t.Fatalf("%s: the transaction has ended: %v", text, err)
		}
	}
}

// everything returns all rows, with their rowids, that query sees in a transaction or on a
// reader. It leaves out the tables in which FTS5 keeps its index.
func everything(t require, query func(string) (string, error)) string {
	t.Helper()
	must := func(sql string) string {
		out, err := query(sql)
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return out
	}
	out := must("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name") + "\n" + must("PRAGMA user_version")
	for _, table := range strings.Fields(must("SELECT name FROM pragma_table_list WHERE schema='main' AND type IN ('table','virtual') AND wr=0 AND name NOT IN ('sqlite_hiqlite','sqlite_schema') ORDER BY name")) {
		out += "\n-- " + table + "\n" + must("SELECT rowid, * FROM main."+table+" ORDER BY rowid")
	}
	return out
}

// shadows returns the rows of the tables in which modules keep their content.
func shadows(t require, query func(string) (string, error)) (out string) {
	t.Helper()
	tables, err := query("SELECT name FROM pragma_table_list WHERE type='shadow' ORDER BY name")
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, table := range strings.Fields(tables) {
		columns, err := query("SELECT group_concat('quote(\"'||name||'\")', '||'',''||') FROM pragma_table_info('" + table + "')")
		if err != nil {
			t.Fatalf("%v", err)
		}
		rows, err := query("SELECT '" + table + ": '||" + columns + " FROM " + table)
		if err != nil {
			t.Fatalf("%v", err)
		}
		out += "\n" + rows
	}
	return out
}

// commit applies the transaction. Both replicas must then have the rows that it saw.
func (x *trial) commit() {
	x.t.Helper()
	saw := everything(x.t, x.rows)
	r := x.apply()
	if r.Err != nil || r.Lease.State != wire.LeaseNone {
		x.t.Fatalf("the result of the commit is %v, %+v", r.Err, r.Lease)
	}
	x.compareReplicas(saw)
}

// apply records the transaction and applies it on both replicas.
func (x *trial) apply() wire.Result {
	x.t.Helper()
	x.op = wire.Operation{Lease: &wire.Lease{}}
	e, err := x.Record(&x.op)
	if err != nil {
		x.t.Fatalf("recording: %v", err)
	}
	if e == nil {
		e = wire.EncodeOperation(release(x.id))
	}
	return x.send(e)[0]
}

// compareReplicas fails the test unless both replicas have the rows that a transaction saw.
func (x *trial) compareReplicas(saw string) {
	x.t.Helper()
	if got := everything(x.t, x.a.query); got != saw {
		x.t.Errorf("the transaction saw\n%s\nand the replica has\n%s", linesMissing(saw, got), linesMissing(got, saw))
	}
	if x.a.hash() != x.b.hash() {
		a, b := everything(x.t, x.a.query)+shadows(x.t, x.a.query), everything(x.t, x.b.query)+shadows(x.t, x.b.query)
		x.t.Errorf("the replicas differ:\n%s\n\n%s", linesMissing(a, b), linesMissing(b, a))
	}
}

// linesMissing returns the lines of a that b does not have.
func linesMissing(a, b string) string {
	var out []string
	for _, line := range strings.Split(a, "\n") {
		if !strings.Contains("\n"+b+"\n", "\n"+line+"\n") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}
