package replica

import (
	"slices"
	"sync"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxIdleSpeculative is how many idle connections are kept for the next transactions.
// Only one transaction has the lease at a time; the others have only read so far.
const maxIdleSpeculative = 4

// A speculativeConn is a connection for a view that may write. It cannot commit.
type speculativeConn struct {
	conn  *sqlite.Conn
	stmts *stmtCache
	epoch uint64 // of the pool when conn was opened
}

func (s *speculativeConn) close() {
	s.stmts.clear()
	s.conn.Close()
}

// A speculativePool has the connections for views that may write: those that are idle,
// and the transactions that use the others.
type speculativePool struct {
	mu     sync.Mutex
	idle   []*speculativeConn
	lent   map[*Transaction]bool // by transaction: it may hold SQLite's write lock
	closed bool                  // the machine was closed: no connection is lent
}

// acquire returns a connection to the database in use, preferably an idle one with these
// settings.
func (s *speculativePool) acquire(p *pool, settings wire.Settings) (*speculativeConn, error) {
	p.mu.Lock() // held while the file is opened, so that no snapshot replaces it
	defer p.mu.Unlock()
	if p.file == "" {
		return nil, ErrReplicaClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.idle); n > 0; n = len(s.idle) {
		i := slices.IndexFunc(s.idle, func(o *speculativeConn) bool { return o.conn.Settings() == settings })
		if i < 0 {
			i = n - 1
		}
		found := s.idle[i]
		s.idle = slices.Delete(s.idle, i, i+1)
		if found.epoch == p.epoch {
			return found, nil
		}
		found.close()
	}
	conn, err := p.connect(p.file, sqlite.Speculate)
	if err != nil {
		return nil, err
	}
	err = conn.ExecAsOwner("PRAGMA temp_store=MEMORY; PRAGMA user_version")
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &speculativeConn{conn: conn, stmts: newStmtCache(conn), epoch: p.epoch}, nil
}

// register records the transaction that uses a connection. If the machine was closed
// in the meantime, it closes the connection and returns false.
func (s *speculativePool) register(t *Transaction) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		t.spec.close()
		return false
	}
	if s.lent == nil {
		s.lent = map[*Transaction]bool{}
	}
	s.lent[t] = false
	return true
}

// release takes a transaction's connection back. It keeps the connection for others if
// it is reusable, and closes it otherwise.
func (s *speculativePool) release(t *Transaction, reusable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lent, t)
	if !reusable || s.closed || len(s.idle) >= maxIdleSpeculative {
		t.spec.close()
		return
	}
	if len(t.spec.stmts.byText) > maxReaderStmts {
		t.spec.stmts.evict()
	}
	s.idle = append(s.idle, t.spec)
}

func (s *speculativePool) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.discard()
}

// discard closes the idle connections after a change of the schema or the statistics.
// SQLite would load both again by itself, but would keep some of its former estimates,
// and choose other query plans than the replicas.
func (s *speculativePool) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, found := range s.idle {
		found.close()
	}
	s.idle = nil
}

// registerWriter records that a transaction holds SQLite's write lock, or is going to, so
// that apply can end it. It returns false if its lease has ended already.
func (r *SQL) registerWriter(t *Transaction, lease uint64) bool {
	r.speculative.mu.Lock()
	defer r.speculative.mu.Unlock()
	if r.holder.Load() != lease {
		return false
	}
	t.lease = lease
	r.speculative.lent[t] = true
	return true
}

// endSpeculation ends the writing transactions whose leases match; nil matches all.
func (r *SQL) endSpeculation(match func(lease uint64) bool) {
	r.endMatching(ErrLeaseLost, func(t *Transaction, writes bool) bool { return writes && (match == nil || match(t.lease)) })
}

// endTransactions ends all transactions on speculative connections.
func (r *SQL) endTransactions(reason error) {
	r.endMatching(reason, func(*Transaction, bool) bool { return true })
}

// endMatching ends the transactions on speculative connections that match.
func (r *SQL) endMatching(reason error, match func(t *Transaction, writes bool) bool) {
	var found []*Transaction
	r.speculative.mu.Lock()
	for t, writes := range r.speculative.lent {
		if match(t, writes) {
			found = append(found, t)
		}
	}
	r.speculative.mu.Unlock()
	for _, t := range found {
		t.End(reason)
	}
}
