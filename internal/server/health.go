package server

import (
	"context"
	"net/http"
	"time"

	"github.com/hiqlite/hiqlite"
)

// readyWait bounds how long /ready waits for the leader.
const readyWait = 2 * time.Second

// health says whether the node runs, or may still be starting. A node without a leader is healthy: a restart
// would not help it.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	if _, err := s.backend.Status(r.Context()); err != nil && time.Now().After(s.healthy) {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("healthy\n"))
}

// ready says whether the node should get requests: it knows a leader, has caught up,
// and is not shutting down.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if s.isDraining() {
		http.Error(w, "the server is shutting down", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readyWait)
	defer cancel()
	if err := s.backend.Ready(ctx); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ready\n"))
}

// leaderAddress returns the API address of the leader. A proxy returns "": its clients
// may not reach the nodes.
func (s *Server) leaderAddress(status hiqlite.Status) string {
	if s.isProxy() {
		return ""
	}
	for _, m := range status.Members {
		if m.ID == status.Leader {
			return m.APIAddr
		}
	}
	return ""
}

// isProxy reports whether the server has no node of its own.
func (s *Server) isProxy() bool {
	_, remote := s.backend.(*hiqlite.Remote)
	return remote
}
