package replica

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A machine is a replica under test. The tests make its log.
type machine struct {
	*SQL
	t       *testing.T
	dir     string
	index   uint64
	session uint64
	seq     uint64

	got       map[[2]uint64][]wire.Result // the last results, by session and sequence
	answered  int                         // the number of calls of Applied
	unknown   [][2]uint64
	opened    map[uint64]uint64      // nonce -> session
	settled   map[uint64]wire.Result // by the id of the waiter
	wanted    []wire.HeldLease
	recovered int
	failed    chan error

	functions *sqlite.Functions // the program's functions
}

func (m *machine) Applied(session, sequence uint64, results []wire.Result) {
	m.got[[2]uint64{session, sequence}] = results
	m.answered++
}
func (m *machine) SessionOpened(nonce, session uint64)            { m.opened[nonce] = session }
func (m *machine) Held(uint64)                                    {}
func (m *machine) Settled(session, id uint64, result wire.Result) { m.settled[id] = result }
func (m *machine) Wanted(lease wire.HeldLease)                    { m.wanted = append(m.wanted, lease) }
func (m *machine) Recovered(wire.HeldLease, func(uint64) bool)    { m.recovered++ }
func (m *machine) SessionUnknown(session, sequence uint64) {
	m.unknown = append(m.unknown, [2]uint64{session, sequence})
}
func (m *machine) Failed(err error) { m.failed <- err }

// newMachine returns an open replica with one session.
func newMachine(t *testing.T) *machine { return newMachineWith(t, nil) }

// newMachineWith is newMachine for a program that has functions.
func newMachineWith(t *testing.T, functions *sqlite.Functions) *machine {
	t.Helper()
	m := &machine{t: t, functions: functions, dir: filepath.Join(folder(t), "sql"), got: map[[2]uint64][]wire.Result{}, opened: map[uint64]uint64{}, settled: map[uint64]wire.Result{}, failed: make(chan error, 1)}
	m.start()
	m.update(wire.EncodeOpenSession(77, 99, 1))
	m.session = m.opened[77]
	return m
}

// start opens the replica's folder. It may have been open before.
func (m *machine) start() uint64 {
	m.t.Helper()
	m.SQL = New(Config{Dir: m.dir, Listener: m, Leases: m, Functions: m.functions})
	applied, err := m.Open(nil)
	if err != nil {
		m.t.Fatal(err)
	}
	replica := m.SQL
	m.t.Cleanup(func() { replica.Close() })
	return applied
}

// update applies commands as one batch. Each command is an entry.
func (m *machine) update(cmds ...[]byte) {
	m.t.Helper()
	entries := make([]sm.Entry, len(cmds))
	for i, cmd := range cmds {
		m.index++
		entries[i] = sm.Entry{Index: m.index, Cmd: cmd}
	}
	if _, err := m.Update(entries); err != nil {
		m.t.Fatal(err)
	}
}

// seedOf returns a seed that depends only on n.
func seedOf(n uint64) (s wire.Seed) {
	binary.LittleEndian.PutUint64(s[:], n)
	return s
}

// op returns an operation of statements without arguments.
func op(texts ...string) *wire.Operation {
	o := &wire.Operation{StampMS: 1_700_000_000_000, Seed: wire.Seed{42}}
	for _, text := range texts {
		o.Statements = append(o.Statements, wire.Statement{SQL: text})
	}
	return o
}

// entry encodes operations as the session's next entry.
func (m *machine) entry(ops ...*wire.Operation) []byte {
	m.seq++
	return entryOf(m.session, m.seq, ops...)
}

func entryOf(session, sequence uint64, ops ...*wire.Operation) []byte {
	encoded := make([]*wire.EncodedOperation, len(ops))
	for i, o := range ops {
		encoded[i] = wire.EncodeOperation(o)
	}
	return wire.EncodeEntry(session, sequence, 0, encoded)
}

// do applies operations as one entry and returns their results.
func (m *machine) do(ops ...*wire.Operation) []wire.Result {
	m.t.Helper()
	m.update(m.entry(ops...))
	results, ok := m.got[[2]uint64{m.session, m.seq}]
	if !ok {
		m.t.Fatal("there are no results of the entry")
	}
	return results
}

// must applies an operation that has to succeed.
func (m *machine) must(texts ...string) wire.Result {
	m.t.Helper()
	r := m.do(op(texts...))[0]
	if r.Err != nil {
		m.t.Fatalf("%q: %v (%s)", texts, r.Err, r.Err.Hint)
	}
	return r
}

// rows returns the rows of a query. Cells are joined by "|" and rows by "\n".
func (m *machine) rows(sql string) string {
	m.t.Helper()
	out, err := m.query(sql)
	if err != nil {
		m.t.Fatalf("%s: %v", sql, err)
	}
	return out
}

func (m *machine) query(sql string) (string, error) {
	r, err := m.Acquire(context.Background())
	if err != nil {
		return "", err
	}
	defer r.Release()
	q, _, err := r.Query(sql, nil)
	if err != nil {
		return "", err
	}
	defer q.Close()
	var out []string
	for {
		more, err := q.Next(func(s *sqlite.Stmt) {
			var cells []string
			for i := range s.ColumnCount() {
				cells = append(cells, string(s.Bytes(i)))
			}
			out = append(out, strings.Join(cells, "|"))
		})
		if err != nil {
			return "", err
		}
		if !more {
			return strings.Join(out, "\n"), nil
		}
	}
}

func TestApplyAndRead(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT UNIQUE)")
	insert := &wire.Operation{Statements: []wire.Statement{{SQL: "INSERT INTO t(v) VALUES(?)", Args: []wire.Argument{{Value: wire.TextValue("one")}}}}}
	r := m.do(insert, insert, op("INSERT INTO t(v) VALUES('two') RETURNING id, v"))
	if s := r[0].Statements[0]; s.RowsAffected != 1 || s.LastInsertID != 1 {
		t.Errorf("the result of the first insert is %+v", s)
	}
	if r[1].Err == nil || r[1].Err.Code != 2067 || r[1].Err.Message != "constraint failed: UNIQUE constraint failed: t.v (2067)" {
		t.Errorf("the error of the second insert is %v", r[1].Err)
	}
	if rows := r[2].Statements[0].Rows; rows.Len() != 1 || rows.Cells[0].Int() != 2 || string(rows.Cells[1].Data) != "two" || rows.Columns[1].DeclType != "TEXT" {
		t.Errorf("the rows of RETURNING are %+v", rows)
	}
	if got := m.rows("SELECT * FROM t"); got != "1|one\n2|two" {
		t.Errorf("the rows are %q", got)
	}
}

func TestReopen(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(id INTEGER PRIMARY KEY)")
	for i := range 10 {
		m.must(fmt.Sprintf("INSERT INTO t VALUES(%d)", i))
	}
	written := m.index
	m.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 0, Next: 500})) // changes no rows
	m.Close()
	if applied := m.start(); applied != written {
		t.Fatalf("without Sync the replica is at entry %d, and its rows are at entry %d", applied, written)
	}
	m.index = written
	m.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 0, Next: 500}))
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if applied := m.start(); applied != m.index {
		t.Fatalf("after Sync the replica is at entry %d, want %d", applied, m.index)
	}
	if now := m.Clock().Now; now != 500 {
		t.Errorf("the clock is at %d", now)
	}
	m.must("INSERT INTO t VALUES(100)")
	if got := m.rows("SELECT count(*) FROM t"); got != "11" {
		t.Errorf("there are %s rows", got)
	}
}
