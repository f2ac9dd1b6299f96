package statemachine

// A Listener is notified of the entries that a shard has applied. R is the type of a
// result or an outcome. The apply goroutine calls its methods; they must not
// block, except for Failed.
type Listener[R any] interface {
	// Applied is called once reads can see the changes of an entry. The listener
	// may keep results.
	Applied(session, sequence uint64, results []R)
	// SessionOpened is called when the entry with this nonce opened a session.
	SessionOpened(nonce, session uint64)
	// SessionUnknown is called for an entry whose session does not exist. The
	// entry was not applied.
	SessionUnknown(session, sequence uint64)
	// Held is called for an entry that asks all proposers to wait for ms
	// milliseconds, or until another node leads.
	Held(ms uint64)
	// Failed is called once, from a goroutine of its own, when this machine
	// cannot continue. It stops the replica; the entry being applied waits for it.
	Failed(err error)
}

// A Notification is a call of a Listener for an applied entry. A machine collects the
// notifications of one Update, and delivers them when reads can see the changes.
type Notification[R any] struct {
	Verdict           Verdict
	Opened            bool   // the entry opened Session
	Nonce             uint64 // of an entry that opened a session
	Session, Sequence uint64
	Results           []R
	HoldMS            uint64 // not 0: the entry asks proposers to wait
}

// Deliver calls the method of the listener that the notification is meant for, if
// there is one.
func (n *Notification[R]) Deliver(l Listener[R]) {
	switch {
	case n.HoldMS > 0:
		l.Held(n.HoldMS)
	case n.Opened:
		l.SessionOpened(n.Nonce, n.Session)
	case n.Verdict == Unknown:
		l.SessionUnknown(n.Session, n.Sequence)
	case n.Verdict == Apply, n.Verdict == Repeat:
		l.Applied(n.Session, n.Sequence, n.Results)
	}
}
