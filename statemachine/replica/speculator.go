package replica

import (
	"slices"
	"sync"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxSpare is how many connections are kept for the next transactions: one has
// the lease at a time, others have only read yet.
const maxSpare = 4

// A speculator is a connection for a transaction that may write.
type speculator struct {
	conn     *sqlite.Conn
	programs *programs
	epoch    uint64 // of the pool when conn was opened
}

func (s *speculator) close() {
	s.programs.clear()
	s.conn.Close()
}

// spare holds the connections that transactions write on: those that are free,
// and who has the others.
type spare struct {
	mu   sync.Mutex
	idle []*speculator
	lent map[*Transaction]bool // whether it may hold SQLite's write lock
	shut bool                  // none is lent any more
}

// take returns a connection to the database in use, one of these settings if
// there is one.
func (s *spare) take(p *pool, settings wire.Settings) (*speculator, error) {
	p.mu.Lock() // held while one is opened: the file stays where it is
	defer p.mu.Unlock()
	if p.file == "" {
		return nil, ErrReplicaClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.idle); n > 0; n = len(s.idle) {
		i := slices.IndexFunc(s.idle, func(o *speculator) bool { return o.conn.Settings() == settings })
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
	conn.Owner(true)
	err = conn.Exec("PRAGMA temp_store=MEMORY; PRAGMA user_version")
	conn.Owner(false)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &speculator{conn: conn, programs: newPrograms(conn), epoch: p.epoch}, nil
}

// lend notes who has a connection. It is closed, and lend returns false, if the
// replica was meanwhile.
func (s *spare) lend(t *Transaction) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		t.spec.close()
		return false
	}
	if s.lent == nil {
		s.lent = map[*Transaction]bool{}
	}
	s.lent[t] = false
	return true
}

// give takes a transaction's connection back, to be used again if it is good
// for that.
func (s *spare) give(t *Transaction, good bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lent, t)
	if !good || s.shut || len(s.idle) >= maxSpare {
		t.spec.close()
		return
	}
	if len(t.spec.programs.byText) > maxReaderPrograms {
		t.spec.programs.evict()
	}
	s.idle = append(s.idle, t.spec)
}

func (s *spare) close() {
	s.mu.Lock()
	s.shut = true
	s.mu.Unlock()
	s.discard()
}

// discard closes the connections that are free, because schema or statistics
// have changed: SQLite would load them anew by itself, but remember some of what
// it had estimated, and plan otherwise than replicas do.
func (s *spare) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, found := range s.idle {
		found.close()
	}
	s.idle = nil
}

// writes makes apply know of a transaction that holds SQLite's write lock, or
// will. It returns false if its lease has ended already.
func (r *SQL) writes(t *Transaction, lease uint64) bool {
	r.spare.mu.Lock()
	defer r.spare.mu.Unlock()
	if r.holder.Load() != lease {
		return false
	}
	t.lease = lease
	r.spare.lent[t] = true
	return true
}

// endSpeculation ends the transactions that write under the leases that match;
// nil: all.
func (r *SQL) endSpeculation(match func(lease uint64) bool) {
	r.end(ErrLeaseLost, func(t *Transaction, writes bool) bool { return writes && (match == nil || match(t.lease)) })
}

// endTransactions ends all transactions that write or may come to.
func (r *SQL) endTransactions(reason error) {
	r.end(reason, func(*Transaction, bool) bool { return true })
}

func (r *SQL) end(reason error, match func(t *Transaction, writes bool) bool) {
	var found []*Transaction
	r.spare.mu.Lock()
	for t, writes := range r.spare.lent {
		if match(t, writes) {
			found = append(found, t)
		}
	}
	r.spare.mu.Unlock()
	for _, t := range found {
		t.End(reason)
	}
}
