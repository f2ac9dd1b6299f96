package statemachine

// A Listener learns what became of the entries of a shard. R is the type of a
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
	// cannot go on. It stops the replica; the entry being applied waits for it.
	Failed(err error)
}
