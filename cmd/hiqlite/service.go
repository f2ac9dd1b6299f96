package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/settings"
)

// readyWithin bounds how long /ready waits for a leader and for entries to be applied.
const readyWithin = 2 * time.Second

// nodeService answers the questions of orchestrators about a node.
type nodeService struct {
	node    *hiqlite.Node
	http    http.Server
	ending  atomic.Bool
	started time.Time
	delay   time.Duration
}

func newNodeService(node *hiqlite.Node, s *settings.Settings, log *slog.Logger) service {
	n := &nodeService{node: node, started: time.Now(), delay: s.API.HealthDelay}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "pong\n") })
	mux.HandleFunc("GET /health", n.health)
	mux.HandleFunc("GET /ready", n.ready)
	n.http = http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	return n
}

// health answers whether the node runs, or is still starting.
func (n *nodeService) health(w http.ResponseWriter, r *http.Request) {
	s, err := n.node.Status(r.Context())
	for _, shard := range s.Shards {
		if shard.Error != "" {
			err = errors.Join(err, errors.New(shard.Name+": "+shard.Error))
		}
	}
	if err != nil && time.Since(n.started) > n.delay {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "healthy\n")
}

// ready answers whether there is a leader and the node has caught up.
func (n *nodeService) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyWithin)
	defer cancel()
	err := n.node.Ready(ctx)
	if n.ending.Load() {
		err = errors.New("the server is ending")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ready\n")
}

func (n *nodeService) Serve(l net.Listener) error { return n.http.Serve(l) }

func (n *nodeService) Shutdown(ctx context.Context) error {
	n.ending.Store(true)
	return n.http.Shutdown(ctx)
}

// proxy passes requests on to a cluster until ctx ends.
func proxy(context.Context, io.Writer, *settings.Settings) error {
	return errors.New("the proxy comes with a later version")
}
