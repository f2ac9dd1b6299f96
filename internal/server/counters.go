package server

import (
	"context"
	"sync/atomic"
	"time"
)

// counters count what clients did that was refused or ended.
type counters struct {
	unauthorized    atomic.Uint64 // requests without the secret
	refusedSessions atomic.Uint64 // sessions and streams beyond MaxSessions
	refusedConns    atomic.Uint64 // beyond MaxConns
	idleSessions    atomic.Uint64 // closed after IdleSession
	idleQueries     atomic.Uint64 // closed after IdleSession, because no rows were fetched
	tooLarge        atomic.Uint64 // requests or results beyond a limit
	tooMany         atomic.Uint64 // requests beyond Rates
	malformed       atomic.Uint64 // requests that cannot be decoded, or break the rules of a session
	wrongScheme     atomic.Uint64 // connections with TLS to a server without, or the reverse
	failedTLS       atomic.Uint64 // connections whose handshake of TLS failed
}

// Counters are what a server has counted since it was made.
type Counters struct {
	Sessions, Streams, Conns                                            int // open now
	Unauthorized, RefusedSessions, RefusedConns, IdleSessions, TooLarge uint64
	TooMany, Malformed, WrongScheme, FailedTLS, IdleQueries             uint64
}

// Counters returns what the server has counted.
func (s *Server) Counters() Counters {
	c := &s.counters
	return Counters{
		Sessions: s.sessions.now(), Streams: s.streams.now(), Conns: s.conns.now(), Unauthorized: c.unauthorized.Load(), RefusedSessions: c.refusedSessions.Load(),
		RefusedConns: c.refusedConns.Load(), IdleSessions: c.idleSessions.Load(), TooLarge: c.tooLarge.Load(),
		TooMany: c.tooMany.Load(), Malformed: c.malformed.Load(), WrongScheme: c.wrongScheme.Load(), FailedTLS: c.failedTLS.Load(), IdleQueries: c.idleQueries.Load(),
	}
}

// Refused returns what was refused since before, as attributes of a log line; nil:
// nothing.
func (c Counters) Refused(before Counters) (attributes []any) {
	for _, x := range []struct {
		name        string
		now, before uint64
	}{
		{"unauthorized", c.Unauthorized, before.Unauthorized},
		{"too_many_sessions", c.RefusedSessions, before.RefusedSessions},
		{"too_many_connections", c.RefusedConns, before.RefusedConns},
		{"too_large", c.TooLarge, before.TooLarge},
		{"too_many_requests", c.TooMany, before.TooMany},
		{"malformed", c.Malformed, before.Malformed},
		{"wrong_scheme", c.WrongScheme, before.WrongScheme},
		{"failed_tls", c.FailedTLS, before.FailedTLS},
		{"idle_queries", c.IdleQueries, before.IdleQueries},
	} {
		if x.now > x.before {
			attributes = append(attributes, x.name, x.now-x.before)
		}
	}
	return attributes
}

// reportInterval is how often a server logs what it has refused.
const reportInterval = time.Minute

// report logs what was refused, at most once in reportInterval, until ctx ends.
func (s *Server) report(ctx context.Context) {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	for before := s.Counters(); ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		now := s.Counters()
		if refused := now.Refused(before); refused != nil {
			s.logger.Warn("hiqlite: clients were refused", refused...)
		}
		before = now
	}
}

// A gauge counts what is open.
type gauge struct{ n atomic.Int64 }

// add counts one more, unless there are limit already.
func (g *gauge) add(limit int) bool {
	if g.n.Add(1) > int64(limit) {
		g.n.Add(-1)
		return false
	}
	return true
}

func (g *gauge) remove()  { g.n.Add(-1) }
func (g *gauge) now() int { return int(g.n.Load()) }
