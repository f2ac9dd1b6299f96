package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/hiqlite/hiqlite/internal/protocol"
)

const (
	// maxDelay bounds how long the answer to a wrong secret is delayed. The delay
	// begins at minDelay and doubles with each failure of an address.
	minDelay = 10 * time.Millisecond
	maxDelay = 2 * time.Second
	// forgiveAfter is how long an address has to make no failure to be forgotten.
	forgiveAfter = time.Minute
	// maxOffenders bounds the addresses that are remembered.
	maxOffenders = 10_000
	// maxDelayed bounds the requests that are being delayed at the same time. Others
	// with a wrong secret are refused at once, so that they take no memory.
	maxDelayed = 1_000
)

// An authenticator lets only requests with the secret pass.
type authenticator struct {
	hash     [sha256.Size]byte // of the secret
	open     bool              // there is no secret: everything passes
	counters *counters
	delayed  gauge
	errors   *connect.ErrorWriter

	mu        sync.Mutex
	offenders map[string]offender // by address; guarded by mu
}

type offender struct {
	failures int
	last     time.Time
}

func newAuthenticator(secret string, c *counters) *authenticator {
	return &authenticator{
		hash: sha256.Sum256([]byte(secret)), open: secret == "", counters: c,
		errors: connect.NewErrorWriter(), offenders: map[string]offender{},
	}
}

// wrap returns a handler that refuses requests without the secret.
func (a *authenticator) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.allows(r) {
			next.ServeHTTP(w, r)
			return
		}
		a.counters.unauthorized.Add(1)
		if a.delayed.add(maxDelayed) {
			timer := time.NewTimer(a.delay(r.RemoteAddr))
			select {
			case <-timer.C:
			case <-r.Context().Done():
			}
			timer.Stop()
			a.delayed.remove()
		}
		w.Header().Set("WWW-Authenticate", "Bearer")
		a.refuse(w, r, protocol.ErrUnauthorized, http.StatusUnauthorized)
	})
}

// refuse answers a request with an error, in the client's protocol. code is the status
// for a client that speaks none of the API's.
func (a *authenticator) refuse(w http.ResponseWriter, r *http.Request, err error, code int) {
	if a.errors.IsSupported(r) {
		_ = a.errors.Write(w, r, connectError(err)) // if it fails, the client is gone
		return
	}
	http.Error(w, err.Error(), code)
}

// allows compares hashes in constant time, so that neither the length nor the bytes of
// the secret can be measured.
func (a *authenticator) allows(r *http.Request) bool {
	if a.open {
		return true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	given := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(given[:], a.hash[:]) == 1 && ok
}

// delay counts a failure of an address and returns how long its answer has to wait. A
// client with the secret is never delayed, even if it has the same address.
func (a *authenticator) delay(remote string) time.Duration {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	o := a.offenders[host]
	if now.Sub(o.last) > forgiveAfter {
		o.failures = 0
	}
	if len(a.offenders) >= maxOffenders {
		clear(a.offenders)
	}
	a.offenders[host] = offender{o.failures + 1, now}
	return min(minDelay<<min(o.failures, 20), maxDelay)
}
