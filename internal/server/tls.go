package server

import (
	"crypto/tls"
	"log/slog"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// TLS returns the configuration of a server: with a key that is derived from the secret
// of the API, by which clients recognise the server, or with the certificate in the
// files, if they are named. The files are read again when they change.
func TLS(secret hiqlite.Secret, certificate, key string, logger *slog.Logger) (*tls.Config, error) {
	if certificate == "" {
		return protocol.ServerTLS(secret)
	}
	return protocol.ServerTLSFromFiles(certificate, key, logger)
}
