// Package ratelimit bounds how many requests a second a server accepts from each
// client.
package ratelimit

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A Limit is a number of requests per second, and how many may come at once after a
// pause. The zero Limit allows everything.
type Limit struct {
	PerSecond int
	Burst     int // 0: PerSecond
}

// A Kind is what a request asks for.
type Kind int

const (
	SQL   Kind = iota // statements
	Cache             // kv, lock and pubsub
	kinds
)

// Limits are the Limit of each Kind, for one client.
type Limits struct{ SQL, Cache Limit }

// maxClients bounds the clients that a Limiter remembers. The one that has been silent
// for the longest time is forgotten first, and begins with a full burst again.
const maxClients = 10_000

// A Limiter counts the requests of clients. Its methods may be called from any
// goroutine. A nil Limiter allows everything.
type Limiter struct {
	limits [kinds]Limit
	most   int // clients

	mu      sync.Mutex
	clients map[string]*list.Element // of *client
	recent  list.List                // clients, the one that was seen last at the front
}

type client struct {
	name  string
	rates [kinds]*rate.Limiter // nil: no limit
}

// New returns a Limiter, or nil if limits limit nothing.
func New(limits Limits) *Limiter {
	if limits.SQL.PerSecond == 0 && limits.Cache.PerSecond == 0 {
		return nil
	}
	return &Limiter{limits: [kinds]Limit{limits.SQL, limits.Cache}, most: maxClients, clients: map[string]*list.Element{}}
}

// Allow reports whether a client may send n requests of a kind now. Otherwise it
// returns after what time the client may try again; then the requests do not count.
// The name of a client is the address of its host, or what else identifies it.
func (l *Limiter) Allow(name string, kind Kind, n int) (retry time.Duration, ok bool) {
	if l == nil {
		return 0, true
	}
	limiter := l.client(name).rates[kind]
	if limiter == nil {
		return 0, true
	}
	// A request that is larger than a burst would never be allowed.
	r := limiter.ReserveN(time.Now(), min(n, limiter.Burst()))
	if delay := r.Delay(); delay > 0 {
		r.Cancel()
		return delay, false
	}
	return 0, true
}

// client returns the counts of a client.
func (l *Limiter) client(name string) *client {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.clients[name]; ok {
		l.recent.MoveToFront(e)
		return e.Value.(*client)
	}
	if l.recent.Len() >= l.most {
		oldest := l.recent.Remove(l.recent.Back()).(*client)
		delete(l.clients, oldest.name)
	}
	c := &client{name: name}
	for kind, limit := range l.limits {
		if limit.PerSecond == 0 {
			continue
		}
		burst := limit.Burst
		if burst == 0 {
			burst = limit.PerSecond
		}
		c.rates[kind] = rate.NewLimiter(rate.Limit(limit.PerSecond), burst)
	}
	l.clients[name] = l.recent.PushFront(c)
	return c
}
