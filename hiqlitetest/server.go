package hiqlitetest

import (
	"context"
	"net"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/server"
)

// A served is the API server of a node. It runs while the node runs.
type served struct {
	address string
	server  *server.Server
	ended   chan struct{} // closed when the server has ended
}

// shutdownWait bounds how long the server of a node that is stopped lets requests end.
const shutdownWait = 5 * time.Second

// Serve serves the API of node i on a loopback address, which it returns. The node must
// run. The server stops with its node, and starts with it again, under the same address.
func (c *Cluster) Serve(i int) (address string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.servers[i]; s != nil {
		return s.address
	}
	s := &served{}
	if err := s.start(c, i); err != nil {
		c.t.Fatalf("hiqlitetest: serving the API of node %d: %v", i, err)
	}
	if c.servers == nil {
		c.servers = map[int]*served{}
	}
	c.servers[i] = s
	return s.address
}

// Remote returns a database that is reached through the API of node i and, if the
// configuration of the nodes has API addresses, of the others. Serve must have been
// called for node i. The Remote is closed when the test ends.
func (c *Cluster) Remote(i int, change ...func(*hiqlite.RemoteConfig)) *hiqlite.Remote {
	c.t.Helper()
	cfg := hiqlite.RemoteConfig{Addresses: []string{c.Serve(i)}, Logger: c.configs[i].Logger, Conn: c.configs[i].Conn}
	for _, f := range change {
		f(&cfg)
	}
	remote, err := hiqlite.NewRemote(cfg)
	if err != nil {
		c.t.Fatalf("hiqlitetest: a remote database: %v", err)
	}
	c.t.Cleanup(func() { remote.Close() })
	return remote
}

// start starts the server of node i. The caller holds c.mu.
func (s *served) start(c *Cluster, i int) error {
	address := s.address
	if address == "" {
		if address = c.configs[i].Nodes[i].APIAddr; address == "" {
			address = "127.0.0.1:0"
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s.address = l.Addr().String()
	s.server, err = server.New(server.Config{Backend: c.nodes[i], Logger: c.configs[i].Logger})
	if err != nil {
		l.Close()
		return err
	}
	s.ended = make(chan struct{})
	go func(server *server.Server, ended chan struct{}) { // ends with stop
		defer close(ended)
		_ = server.Serve(l) // http.ErrServerClosed
	}(s.server, s.ended)
	return nil
}

// stop shuts the server down.
func (s *served) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownWait)
	defer cancel()
	_ = s.server.Shutdown(ctx) // what is still open has been closed then
	<-s.ended
}

// CutAPI breaks all connections to the API of node i, and serves it no longer, as if the
// node's machine were lost to its clients. The node itself runs on.
func (c *Cluster) CutAPI(i int) {
	c.t.Helper()
	c.mu.Lock()
	s := c.servers[i]
	c.mu.Unlock()
	_ = s.server.Close()
	<-s.ended
}

// MendAPI serves the API of node i again, under the same address.
func (c *Cluster) MendAPI(i int) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.servers[i].start(c, i); err != nil {
		c.t.Fatalf("hiqlitetest: serving the API of node %d: %v", i, err)
	}
}
