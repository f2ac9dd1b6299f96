package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A script is a lock shard whose outcomes a test decides. Without do, the outcome of
// each command is wire.Done.
type script struct {
	do func(ctx context.Context, c *wire.Command) (wire.Outcome, error)

	mu       sync.Mutex
	commands []wire.CommandKind
}

func (s *script) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	s.mu.Lock()
	s.commands = append(s.commands, c.Kind)
	s.mu.Unlock()
	if s.do != nil {
		return s.do(ctx, c)
	}
	return wire.Outcome{Token: 1, Epoch: 1}, nil
}

func (*script) Await(ctx context.Context, _, _ uint64) (wire.Outcome, bool, error) {
	<-ctx.Done()
	return wire.Outcome{}, false, ctx.Err()
}
func (*script) CatchUp(context.Context, wire.Outcome) error { return nil }
func (*script) QueueLen(string) int                         { return 0 }
func (*script) OnClose(func()) func()                       { return func() {} }

// scripted runs f with a Locker on a script, in a bubble of testing/synctest.
func scripted(t *testing.T, do func(ctx context.Context, c *wire.Command) (wire.Outcome, error), f func(t *testing.T, l *Locker, s *script)) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{do: do}
		f(t, &Locker{lock: s, ttl: DefaultTTL}, s)
	})
}

// The TTL of a lock counts from when it was asked for, so a lock whose grant
// arrives late is renewed at once.
func TestALateGrantIsRenewedAtOnce(t *testing.T) {
	scripted(t, func(_ context.Context, c *wire.Command) (wire.Outcome, error) {
		if c.Kind == wire.KindLockAcquire {
			time.Sleep(DefaultTTL * 6 / 10) // the outcome is late
		}
		return wire.Outcome{Epoch: 1}, nil
	}, func(t *testing.T, l *Locker, s *script) {
		h, err := l.Lock(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * DefaultTTL) // the lock is renewed meanwhile
		if err := h.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// The holder learns of the loss at TTL * 9/10, however late the grant arrived and
// whether its renewals fail or hang.
func TestTheHolderLearnsOfALossInTime(t *testing.T) {
	for late := range time.Duration(9) {
		for _, how := range []string{"fail", "take long"} {
			scripted(t, func(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
				switch {
				case c.Kind == wire.KindLockAcquire:
					time.Sleep(late * DefaultTTL / 10) // the outcome is late
				case c.Kind == wire.KindLockRenew && how == "fail":
					return wire.Outcome{}, hiqlite.ErrNoLeader
				case c.Kind == wire.KindLockRenew:
					<-ctx.Done()
					return wire.Outcome{}, ctx.Err()
				}
				return wire.Outcome{Epoch: 1}, nil
			}, func(t *testing.T, l *Locker, s *script) {
				began := time.Now()
				h, err := l.Lock(t.Context(), "k")
				if err != nil {
					t.Fatal(err)
				}
				<-h.Done()
				if known := time.Since(began); known != DefaultTTL/10*9 {
					t.Errorf("granted after %d tenths of TTL, where renewals %s: the holder learned of the loss after %v", late, how, known)
				}
			})
		}
	}
}

// A delayed command can create an owner again after the cluster has dropped it.
// An outcome that concerns this second owner, of a renewal or of a request for
// another lock, must not be taken for a renewal of the first one's locks.
func TestAnOwnerThatWasCreatedAgain(t *testing.T) {
	for _, kind := range []wire.CommandKind{wire.KindLockRenew, wire.KindLockTry} {
		scripted(t, func(_ context.Context, c *wire.Command) (wire.Outcome, error) {
			if c.Kind == kind {
				return wire.Outcome{Epoch: 2}, nil
			}
			return wire.Outcome{Epoch: 1}, nil
		}, func(t *testing.T, l *Locker, s *script) {
			h, err := l.Lock(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			if kind == wire.KindLockTry {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				other, err := l.TryLock(ctx, "other")
				if err != nil {
					t.Fatal(err)
				}
				defer other.Unlock(ctx)
			} else {
				time.Sleep(DefaultTTL / 2) // for the first renewal
			}
			if err := h.Unlock(t.Context()); !errors.Is(err, ErrLost) {
				t.Errorf("after command %d: Unlock returned %v", kind, err)
			}
		})
	}
}

// A request that was certainly not proposed is not released.
func TestARequestThatWasNotProposedIsNotReleased(t *testing.T) {
	scripted(t, func(context.Context, *wire.Command) (wire.Outcome, error) {
		return wire.Outcome{}, hiqlite.ErrNoLeader
	}, func(t *testing.T, l *Locker, s *script) {
		if _, err := l.Lock(t.Context(), "k"); !errors.Is(err, hiqlite.ErrNoLeader) {
			t.Error(err)
		}
		synctest.Wait()
		if len(s.commands) != 1 {
			t.Errorf("%d commands were sent", len(s.commands))
		}
	})
}

// If it is unknown whether a request was applied, the waiter is released, and the
// error says that the lock was not acquired.
func TestAWaiterWithAnUnknownOutcomeIsReleased(t *testing.T) {
	scripted(t, func(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
		if c.Kind == wire.KindLockAcquire {
			<-ctx.Done()
			return wire.Outcome{}, errors.Join(hiqlite.ErrOutcomeUnknown, ctx.Err())
		}
		return wire.Outcome{}, nil
	}, func(t *testing.T, l *Locker, s *script) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Lock(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, hiqlite.ErrOutcomeUnknown) {
			t.Error(err)
		}
		synctest.Wait()
		if len(s.commands) != 2 || s.commands[1] != wire.KindLockRelease {
			t.Errorf("the commands %d were sent", s.commands)
		}
	})
}

// Lock returns the reason of an unknown outcome, or tries again if the reason does
// not concern its caller.
func TestReasonsOfUnknownOutcomes(t *testing.T) {
	unknown := func(why ...error) error { return errors.Join(append(why, hiqlite.ErrOutcomeUnknown)...) }
	for name, test := range map[string]struct{ is, want error }{
		"session":   {unknown(errors.New("the session has expired")), nil},
		"closed":    {unknown(hiqlite.ErrClosed), hiqlite.ErrClosed},
		"disk full": {unknown(hiqlite.ErrClosed, hiqlite.ErrDiskFull), hiqlite.ErrDiskFull},
		"no leader": {unknown(hiqlite.ErrNoLeader, context.DeadlineExceeded), hiqlite.ErrNoLeader},
	} {
		asked := false
		scripted(t, func(_ context.Context, c *wire.Command) (wire.Outcome, error) {
			if c.Kind != wire.KindLockAcquire || asked {
				return wire.Outcome{Epoch: 1}, nil
			}
			asked = true
			return wire.Outcome{}, test.is
		}, func(t *testing.T, l *Locker, s *script) {
			h, err := l.Lock(t.Context(), "k")
			if !errors.Is(err, test.want) || errors.Is(err, hiqlite.ErrOutcomeUnknown) {
				t.Errorf("%s: %v", name, err)
			}
			if err == nil {
				if err := h.Unlock(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A late outcome that concerns an earlier owner with the same id does not end the
// locks of the present one.
func TestALateOutcomeOfAnEarlierOwner(t *testing.T) {
	asked := 0
	scripted(t, func(_ context.Context, c *wire.Command) (wire.Outcome, error) {
		if c.Kind == wire.KindLockAcquire {
			if asked++; asked == 1 {
				time.Sleep(time.Second) // the outcome arrives after those of later commands
				return wire.Outcome{Epoch: 1}, nil
			}
		}
		return wire.Outcome{Epoch: 2}, nil
	}, func(t *testing.T, l *Locker, s *script) {
		first := make(chan *Held)
		go func() {
			h, err := l.Lock(t.Context(), "first")
			if err != nil {
				t.Error(err)
			}
			first <- h
		}()
		synctest.Wait()
		second, err := l.Lock(t.Context(), "second")
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []*Held{<-first, second} {
			if err := h.Unlock(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// An Unlock that stops trying after TTL does not return DeadlineExceeded, because
// its caller has set no deadline.
func TestUnlockWithoutLeader(t *testing.T) {
	for _, proposed := range []bool{false, true} {
		scripted(t, func(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
			if c.Kind == wire.KindLockRelease {
				<-ctx.Done()
				if proposed {
					return wire.Outcome{}, fmt.Errorf("%w: %w", hiqlite.ErrOutcomeUnknown, ctx.Err())
				}
				return wire.Outcome{}, ctx.Err()
			}
			return wire.Outcome{Epoch: 1}, nil
		}, func(t *testing.T, l *Locker, s *script) {
			h, err := l.Lock(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			err = h.Unlock(t.Context())
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, hiqlite.ErrOutcomeUnknown) != proposed || errors.Is(err, hiqlite.ErrNoLeader) == proposed {
				t.Errorf("proposed: %v: %v", proposed, err)
			}
		})
	}
}
