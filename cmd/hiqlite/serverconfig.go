package main

import (
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/settings"
)

// serverConfig returns what the settings say about a server.
func serverConfig(s *settings.Settings) server.Config {
	l := s.Limits
	return server.Config{
		Secret:      s.API.Secret.Text(),
		Rates:       l.Rates,
		HealthDelay: s.API.HealthDelay, LogStatements: s.Log.Statements,
		Limits: server.Limits{
			MaxBody: l.Body, MaxRows: l.Rows, MaxResult: l.Answer, MaxTime: l.Time,
			MaxSessions: l.Sessions, MaxConns: l.Connections, IdleSession: l.Idle,
		},
	}
}
