package cluster

import "sync"

// A mailbox is where the apply goroutine leaves the machine's answer to the entry
// in flight, or to the entry that opens a session, for the combiner's goroutine.
// There is room for one answer, because one entry is in flight at a time. The
// mailbox has a lock of its own, held for a few instructions, so that apply never
// waits for the combiner.
type mailbox[R any] struct {
	wake chan struct{} // the combiner's

	mu       sync.Mutex // guards all fields below
	session  uint64     // of the entry in flight
	sequence uint64     // of the entry in flight; 0: none is, or it is answered
	nonce    uint64     // the first of those proposed to open a session; 0: no session is being opened, or one has been
	nonces   uint64     // how many were proposed: nonce, nonce+1, ...
	kind     answerKind
	results  []R    // of the entry, if kind is entryApplied
	opened   uint64 // the new session, if kind is sessionOpened
}

type answerKind int

const (
	noAnswer answerKind = iota
	entryApplied
	sessionUnknown // the machine refused the entry in flight
	sessionOpened
)

// expect makes the mailbox accept the answer to the given entry and to no other.
// expect(0, 0) makes it accept no answer.
func (m *mailbox[R]) expect(session, sequence uint64) {
	m.mu.Lock()
	m.session, m.sequence, m.kind = session, sequence, noAnswer
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

// takeAnswer returns the answer and removes it.
func (m *mailbox[R]) takeAnswer() (kind answerKind, results []R, session uint64) {
	m.mu.Lock()
	kind, results, session = m.kind, m.results, m.opened
	m.kind, m.results = noAnswer, nil
	m.mu.Unlock()
	return kind, results, session
}

func (m *mailbox[R]) answer(session, sequence uint64, kind answerKind, results []R) {
	m.mu.Lock()
	expected := sequence != 0 && session == m.session && sequence == m.sequence
	if expected {
		m.sequence, m.kind, m.results = 0, kind, results
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
		m.nonce, m.kind, m.opened = 0, sessionOpened, session
	}
	m.mu.Unlock()
	if expected {
		signal(m.wake)
	}
}
