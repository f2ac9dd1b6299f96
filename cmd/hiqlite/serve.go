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
	"github.com/hiqlite/hiqlite/internal/settings"
)

// A service answers clients on a listener.
type service interface {
	// Serve accepts connections until Shutdown.
	Serve(net.Listener) error
	// Shutdown reports not ready from now on, accepts no more requests, and waits for
	// those in flight until ctx ends.
	Shutdown(ctx context.Context) error
}

// A server is what serve and proxy run: a service and, for serve, a node.
type server struct {
	settings *settings.Settings
	log      *slog.Logger
	service  service
	closer   io.Closer // what the service uses; it is closed after the service
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

// serve runs a node with its service until ctx ends.
func serve(ctx context.Context, errs io.Writer, s *settings.Settings) error {
	log := newLogger(errs, s.Log)
	for _, w := range s.Warnings {
		log.Warn("hiqlite: " + w)
	}
	// Listen first: if the port is taken, the node need not be opened.
	l, err := net.Listen("tcp", s.API.Listen)
	if err != nil {
		return fmt.Errorf("the API cannot listen on %s: %w", s.API.Listen, err)
	}
	cfg := s.NodeConfig()
	cfg.Logger = log
	node, err := hiqlite.Open(ctx, cfg)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	log.Info("hiqlite: serving", "node", max(1, cfg.NodeID), "api", l.Addr().String(), "data", cfg.DataDir)
	srv := &server{settings: s, log: log, service: newNodeService(node, s, log), closer: node}
	return srv.run(ctx, l)
}

// run serves until ctx ends or the service fails, and then ends both.
func (s *server) run(ctx context.Context, l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- s.service.Serve(l) }()
	select {
	case err := <-failed:
		return errors.Join(fmt.Errorf("the API has stopped: %w", err), s.closer.Close())
	case <-ctx.Done():
	}
	return s.shutdown()
}

// shutdown ends the service and then what it uses. Together they get the time of the
// setting, of which requests in flight get the first half. Whatever has not ended by
// then ends with the process, which loses nothing that was acknowledged.
func (s *server) shutdown() error {
	began, whole := time.Now(), s.settings.API.ShutdownTimeout
	s.log.Info("hiqlite: ending", "within", whole)
	ended := make(chan error, 1)
	go func() {
		waiting, cancel := context.WithTimeout(context.Background(), whole/2)
		defer cancel()
		err := s.service.Shutdown(waiting)
		if errors.Is(err, context.DeadlineExceeded) {
			s.log.Warn("hiqlite: requests that were in flight are cut off", "after", time.Since(began).Round(time.Millisecond))
			err = nil
		}
		ended <- errors.Join(err, s.closer.Close())
	}()
	select {
	case err := <-ended:
		if err == nil {
			s.log.Info("hiqlite: ended", "after", time.Since(began).Round(time.Millisecond))
		}
		return err
	case <-time.After(whole):
		s.log.Warn("hiqlite: the node could not be closed in time, and ends as if it were killed")
		return nil
	}
}
