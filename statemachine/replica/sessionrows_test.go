package replica

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// checkSavedSessions checks that the meta table holds exactly the machine's sessions, and
// that the machine knows which row holds which of them.
func (m *machine) checkSavedSessions() {
	m.t.Helper()
	reader := metaStatements{conn: m.conn}
	state, err := reader.load()
	if err != nil {
		m.t.Fatal(err)
	}
	var saved statemachine.Sessions[wire.Result]
	saved.Load(state.Sessions)
	if got, want := sessionsOf(&saved), sessionsOf(&m.sessions); got != want || len(state.Sessions) != m.sessions.Len() {
		m.t.Fatalf("the table has %d sessions, %q; the machine has %d, %q", len(state.Sessions), got, m.sessions.Len(), want)
	}
	own, there := &m.meta.rows, &reader.rows
	if !maps.Equal(own.alone, there.alone) || !maps.EqualFunc(own.groups, there.groups, sameMembers) {
		m.t.Fatalf("the machine knows of %v and %v, and the table has %v and %v", own.alone, own.groups, there.alone, there.groups)
	}
}

func sameMembers(a, b *sessionGroup) bool {
	return slices.EqualFunc(a.members, b.members, func(a, b groupMember) bool {
		return a.id == b.id && string(a.encoded) == string(b.encoded)
	})
}

func sessionsOf(s *statemachine.Sessions[wire.Result]) string {
	var b []byte
	for _, session := range s.All() {
		b = append(wire.AppendSession(b, &session), '\n')
	}
	return string(b)
}

// Sessions of clients with small and large results, in several groups, are saved with the
// rows, and are there after a restart.
func TestSavedSessions(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	m := newMachine(t)
	const ttl = 10_000
	m.cfg.SessionTTL = ttl
	m.must("CREATE TABLE applied(n INTEGER)")
	m.must("CREATE TABLE large(x)")
	m.must(fmt.Sprintf("INSERT INTO large VALUES(hex(zeroblob(%d)))", maxGrouped))
	sequences := map[uint64]uint64{}
	node := m.openFor(1, 1)
	sawAlone, sawGroups := false, 0
	for step := range 600 {
		clients := slices.DeleteFunc(slices.Sorted(maps.Keys(sequences)), func(id uint64) bool { return m.sessions.Get(id) == nil })
		switch n := random.IntN(20); {
		case n < 4 || len(clients) == 0:
			sequences[m.openFor(0, 0).session] = 0
		case n < 18:
			var ops []*wire.Operation
			for range 1 + random.IntN(5) {
				id := clients[random.IntN(len(clients))]
				o := insert(step)
				if random.IntN(4) == 0 {
					o = op("UPDATE large SET x=x RETURNING x")
				}
				sequences[id]++
				ops = append(ops, remote(&proposer{session: id}, sequences[id], o))
			}
			m.doAs(node, ops...)
		case n == 18:
			m.advance(ttl / 3)
			node = m.openFor(1, uint64(step+2)) // the last one may have expired
			m.doAs(node, insert(step))
		default:
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			m.start()
			m.cfg.SessionTTL = ttl
		}
		m.doAs(node, insert(step)) // sessions are saved with rows
		m.checkSavedSessions()
		sawAlone = sawAlone || len(m.meta.rows.alone) > 0
		sawGroups = max(sawGroups, len(m.meta.rows.groups))
	}
	if !sawAlone || sawGroups < 3 {
		t.Errorf("the test has seen sessions alone: %v, and %d groups", sawAlone, sawGroups)
	}
}

// A database from before there were groups has a row for each session of a client. They
// move to the rows of their groups when they change.
func TestSessionsFromBeforeGroups(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	client, other, node := m.openFor(0, 0), m.openFor(0, 0), m.openFor(1, 1)
	m.doAs(node, remote(client, 1, insert(1)), remote(other, 1, insert(2)))
	done := m.conn.AsOwner(true)
	for number := range m.meta.rows.groups {
		if err := m.meta.run(m.meta.remove, wire.IntegerValue(firstGroup+int64(number))); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []*proposer{client, other} {
		if err := m.meta.write(int64(p.session), wire.AppendSession(nil, m.sessions.Get(p.session))); err != nil {
			t.Fatal(err)
		}
	}
	done()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m.start()
	if got := len(m.meta.rows.alone); got != 2 {
		t.Errorf("%d sessions have rows of their own", got)
	}
	m.doAs(node, remote(client, 1, insert(1)), remote(client, 2, insert(3)))
	m.checkSavedSessions()
	if got := m.meta.rows.alone; len(got) != 1 || !got[other.session] {
		t.Errorf("sessions with rows of their own: %v", got)
	}
	if got := m.applied(); got != "1|1\n2|1\n3|1" {
		t.Errorf("applied %q", got)
	}
}
