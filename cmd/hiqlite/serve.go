package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/settings"
)

// A backend is what a server serves: a node, or a remote database.
type backend interface {
	server.Backend
	io.Closer
}

// A serving process is what serve and proxy run.
type serving struct {
	settings *settings.Settings
	log      *slog.Logger
	server   *server.Server
	backend  backend // closed after the server
}

func serveCommand() *cobra.Command {
	var file string
	var id uint64
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a node, alone or of a cluster, and serve clients",
		Long: `Runs a node and serves clients on its API address. The settings come from the
environment and from a file; docs/configuration.md has a table of them, and
hiqlite generate-config writes a file. All errors of the settings are printed at once.

SIGTERM and Ctrl-C end it: the node reports that it is not ready, finishes the
requests in flight, hands leadership over, and closes its database, within the
time of shutdown_timeout. A second one ends it at once.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := loadSettings(cmd, settings.Server, file, id)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cmd.ErrOrStderr(), s)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the file of settings (default $HQL_CONFIG, or hiqlite.toml if it exists)")
	cmd.Flags().Uint64Var(&id, "node-id", 0, "the number of this node, instead of that in the settings")
	return cmd
}

func proxyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Serve clients by passing their requests on to a cluster",
		Long: `Serves clients as a node does, but has no data of its own: it passes requests on to
the nodes that the settings list, to the leader first. It takes the same settings as
serve, of which it needs nodes and secret_api.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := loadSettings(cmd, settings.Proxy, file, 0)
			if err != nil {
				return err
			}
			return proxy(cmd.Context(), cmd.ErrOrStderr(), s)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the file of settings (default $HQL_CONFIG, or hiqlite.toml if it exists)")
	return cmd
}

func loadSettings(cmd *cobra.Command, role settings.Role, file string, id uint64) (*settings.Settings, error) {
	opts := settings.Options{Role: role, File: file, Environ: os.Environ()}
	if cmd.Flags().Changed("node-id") {
		opts.Environ = append(opts.Environ, fmt.Sprintf("%s=%d", settings.Variable("node_id"), id))
	}
	s, err := settings.Load(opts)
	if err != nil {
		return nil, usageError(err)
	}
	return s, nil
}

// newLogger returns the logger of a server, which is also that of the process.
func newLogger(w io.Writer, s settings.LogSettings) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.Level)); err != nil {
		panic(err) // the settings allow only names of levels
	}
	opts := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(w, opts)
	if s.Format == "json" {
		handler = slog.NewJSONHandler(w, opts)
	}
	log := slog.New(handler)
	slog.SetDefault(log)
	return log
}

// serve runs a node and its server until ctx ends.
func serve(ctx context.Context, errs io.Writer, s *settings.Settings) error {
	return serveBackend(ctx, errs, s, func(log *slog.Logger) (backend, error) {
		cfg := s.NodeConfig()
		cfg.Logger = log
		log.Info("hiqlite: opening the node", "node", cfg.NodeID, "data", cfg.DataDir)
		node, err := hiqlite.Open(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return node, nil
	})
}

// proxy passes requests on to the nodes of a cluster until ctx ends.
func proxy(ctx context.Context, errs io.Writer, s *settings.Settings) error {
	return serveBackend(ctx, errs, s, func(log *slog.Logger) (backend, error) {
		cfg := s.RemoteConfig()
		cfg.Logger = log
		remote, err := hiqlite.NewRemote(cfg)
		if err != nil {
			return nil, err
		}
		return remote, nil
	})
}

// serveBackend opens a backend and serves it.
func serveBackend(ctx context.Context, errs io.Writer, s *settings.Settings, open func(*slog.Logger) (backend, error)) (err error) {
	log := newLogger(errs, s.Log)
	for _, w := range s.Warnings {
		log.Warn("hiqlite: " + w)
	}
	cfg := serverConfig(s)
	cfg.Logger = log
	if s.API.TLS {
		if cfg.TLS, err = server.TLS(s.API.Secret, s.API.Certificates.Certificate, s.API.Certificates.Key, log); err != nil {
			return err
		}
	}
	// Listen first: if the port is taken, the node need not be opened.
	l, err := net.Listen("tcp", s.API.Listen)
	if err != nil {
		return fmt.Errorf("the API cannot listen on %s: %w", s.API.Listen, err)
	}
	p := &serving{settings: s, log: log}
	if p.backend, err = open(log); err != nil {
		return errors.Join(err, l.Close())
	}
	cfg.Backend = p.backend
	if p.server, err = server.New(cfg); err != nil {
		return errors.Join(err, l.Close(), p.backend.Close())
	}
	log.Info("hiqlite: serving", "api", l.Addr().String(), "tls", s.API.TLS)
	return p.run(ctx, l)
}

// run serves until ctx ends or the server fails, and then ends both.
func (p *serving) run(ctx context.Context, l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- p.server.Serve(l) }()
	select {
	case err := <-failed:
		return errors.Join(fmt.Errorf("the API has stopped: %w", err), p.backend.Close())
	case <-ctx.Done():
	}
	return p.shutdown()
}

// shutdown ends the server and then its backend. Together they get the time of the
// setting, of which requests in flight get the first half. Whatever has not ended by
// then ends with the process, which loses nothing that was acknowledged.
func (p *serving) shutdown() error {
	began, whole := time.Now(), p.settings.API.ShutdownTimeout
	p.log.Info("hiqlite: ending", "within", whole)
	ended := make(chan error, 1)
	go func() {
		waiting, cancel := context.WithTimeout(context.Background(), whole/2)
		defer cancel()
		err := p.server.Shutdown(waiting)
		if errors.Is(err, context.DeadlineExceeded) {
			p.log.Warn("hiqlite: requests that were in flight are cut off", "after", time.Since(began).Round(time.Millisecond))
			err = nil
		}
		ended <- errors.Join(err, p.backend.Close())
	}()
	select {
	case err := <-ended:
		if err == nil {
			p.log.Info("hiqlite: ended", "after", time.Since(began).Round(time.Millisecond))
		}
		return err
	case <-time.After(whole):
		p.log.Warn("hiqlite: the node could not be closed in time, and ends as if it were killed")
		return nil
	}
}
