package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A remote client's writes carry a wire.Origin, so that the client can send the same
// write through another node when a node does not answer. The client has sessions of
// its own in each shard, and uses one for one write at a time.

// ErrSessionUnknown: the session of a remote client does not exist, or not any more. The
// write is not applied now. A copy that was sent earlier may have been applied.
var ErrSessionUnknown = errors.New("hiqlite: the client's session does not exist; open another one")

// errStale is returned for a write that is older than the session's last one.
var errStale = errors.New("hiqlite: the client has sent a later write in the same session")

// openInterval is how long openSession waits before it proposes again.
const openInterval = 400 * time.Millisecond

// OpenSession opens a session for a remote client in the shard of this name: sql, kv,
// lock or pubsub.
func (n *Node) OpenSession(ctx context.Context, name string) (id uint64, err error) {
	for _, s := range n.shards {
		if s.name == name {
			return s.openSession(ctx)
		}
	}
	return 0, fmt.Errorf("hiqlite: there is no shard %q", name)
}

func (s *shard) openSession(ctx context.Context) (id uint64, err error) {
	ctx, cancel := s.node.Within(ctx)
	defer cancel()
	nonce, opened := rand.Uint64(), make(chan uint64, 1)
	s.clients.Store(nonce, opened)
	defer s.clients.Delete(nonce)
	// If an entry is lost, the next one opens the session. If it is only late, another
	// session is opened that nobody uses, and that expires.
	retry := time.NewTicker(openInterval)
	defer retry.Stop()
	for {
		changed := s.raft.LeaderChanged()
		_, err := s.raft.Propose(wire.EncodeOpenSession(nonce, 0, 0), openInterval)
		if errors.Is(err, ErrClosed) {
			return 0, s.withCause(err)
		}
		select {
		case id := <-opened:
			return id, nil
		case <-ctx.Done():
			if s.raft.Leader().Node == 0 {
				return 0, fmt.Errorf("%w: no session was opened: %w", ErrNoLeader, ctx.Err())
			}
			return 0, fmt.Errorf("hiqlite: no session was opened: %w", ctx.Err())
		case <-s.raft.Done():
			return 0, s.withCause(ErrClosed)
		case <-changed:
		case <-retry.C:
		}
	}
}

// clientSessionOpened reports whether a client waits for the session, and passes it on.
func (s *shard) clientSessionOpened(nonce, session uint64) bool {
	opened, ok := s.clients.Load(nonce)
	if !ok {
		return false
	}
	select {
	case opened.(chan uint64) <- session:
	default: // it has one already
	}
	return true
}

// CommitOutcome finds out what became of a commit with this origin, which was sent
// through any node and not answered. It returns nil if the commit was applied, the error
// with which it failed, ErrTxExpired if it was not applied and never will be, or
// ErrOutcomeUnknown if the session has been forgotten meanwhile.
func (n *Node) CommitOutcome(ctx context.Context, origin wire.Origin) error {
	ctx, cancel := n.Within(ctx)
	defer cancel()
	// A transaction without a lease does nothing. If the commit comes later, it is taken
	// for a copy.
	r, err := n.sql.propose(ctx, wire.EncodeOperation(&wire.Operation{Origin: &origin, Lease: &wire.Lease{Transaction: true}}))
	switch {
	case err != nil && errors.Is(err, ErrOutcomeUnknown):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	case r.Admission != wire.Admitted:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, notAdmitted(r.Admission))
	case r.Lease.State == wire.LeaseExpired:
		return fmt.Errorf("%w: its node did not propose the commit in time; nothing is applied", ErrTxExpired)
	case r.Err != nil:
		return r.Err
	}
	return nil
}

// notAdmitted returns the error of an operation or command that its origin has kept
// from being applied.
func notAdmitted(why wire.Admission) error {
	switch why {
	case wire.UnknownSession:
		return ErrSessionUnknown
	case wire.StaleSequence:
		return errStale
	}
	return nil
}
