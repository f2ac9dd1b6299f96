package cluster

import "sync"

// A mailbox is where the apply goroutine leaves the machine's answers to the entries in
// flight, or to the entry that opens a session, for the combiner's goroutine. There is
// room for one answer to each entry of a window. The mailbox has a lock of its own, held
// for a few instructions, so that apply never waits for the combiner.
type mailbox[R any] struct {
	wake chan struct{} // the combiner's

	mu      sync.Mutex // guards all fields below
	session uint64     // of the entries in flight
	slots   [maxWindow]slot[R]
	nonce   uint64 // the first of those proposed to open a session; 0: no session is being opened, or one has been
	nonces  uint64 // how many were proposed: nonce, nonce+1, ...
	opened  uint64 // the session that was opened; 0: none
}

// A slot is for the answer to the entries whose sequences have the slot's position as
// remainder. At most one of them is in flight.
type slot[R any] struct {
	sequence uint64 // of the entry in flight; 0: none is, or its answer was taken
	kind     answerKind
	results  []R // of the entry, if kind is entryApplied
}

type answerKind int

const (
	noAnswer answerKind = iota
	entryApplied
	sessionUnknown // the machine refused the entry
)

// expect makes the mailbox accept the answer to an entry, beside those that it accepts
// already.
func (m *mailbox[R]) expect(session, sequence uint64) {
	m.mu.Lock()
	m.session = session
	m.slots[sequence%maxWindow] = slot[R]{sequence: sequence}
	m.mu.Unlock()
}

// expectNone makes the mailbox accept no answer to an entry.
func (m *mailbox[R]) expectNone() {
	m.mu.Lock()
	clear(m.slots[:])
	m.mu.Unlock()
}

// expectSession makes the mailbox accept the answer to an entry that opens a session
// with one of count nonces, from first on. expectSession(0, 0) makes it accept no
// such answer.
func (m *mailbox[R]) expectSession(first, count uint64) {
	m.mu.Lock()
	m.nonce, m.nonces = first, count
	m.mu.Unlock()
}

// take returns the answer to an entry and removes it. After a refusal, it accepts
// another answer; after results, none.
func (m *mailbox[R]) take(sequence uint64) (kind answerKind, results []R) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.slots[sequence%maxWindow]
	if s.sequence != sequence {
		return noAnswer, nil
	}
	kind, results = s.kind, s.results
	*s = slot[R]{sequence: sequence}
	if kind == entryApplied {
		s.sequence = 0
	}
	return kind, results
}

// takeSession returns the session that was opened, or 0, and forgets it.
func (m *mailbox[R]) takeSession() (session uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	session, m.opened = m.opened, 0
	return session
}

func (m *mailbox[R]) answer(session, sequence uint64, kind answerKind, results []R) {
	m.mu.Lock()
	s := &m.slots[sequence%maxWindow]
	expected := sequence != 0 && session == m.session && sequence == s.sequence && s.kind != entryApplied
	if expected {
		s.kind, s.results = kind, results
	}
	m.mu.Unlock()
	if expected {
		signal(m.wake)
	}
}

// Applied reports that an entry was applied, with one result for each of its
// operations. The machine calls it from its apply goroutine after its commit, for
// every entry of every session, also when it only repeated the results that it had
// stored for a sequence. An entry that is not in flight here is ignored. If the
// number of results differs from that of the operations (nil, if the machine did
// not keep them), the callers get ErrOutcomeUnknown. The combiner keeps results;
// they must not be changed any more. Applied never blocks.
func (c *Combiner[O, R]) Applied(session, sequence uint64, results []R) {
	c.answers.answer(session, sequence, entryApplied, results)
}

// SessionUnknown reports that an entry was refused because its session does not
// exist. The machine calls it like Applied. It never blocks.
func (c *Combiner[O, R]) SessionUnknown(session, sequence uint64) {
	c.answers.answer(session, sequence, sessionUnknown, nil)
}

// SessionOpened reports that the entry OpenSession(nonce) was applied and has
// opened the session. The machine calls it like Applied, for every such entry. It
// never blocks.
func (c *Combiner[O, R]) SessionOpened(nonce, session uint64) {
	m := &c.answers
	m.mu.Lock()
	expected := m.nonce != 0 && nonce-m.nonce < m.nonces
	if expected {
		m.nonce, m.opened = 0, session
	}
	m.mu.Unlock()
	if expected {
		signal(m.wake)
	}
}
