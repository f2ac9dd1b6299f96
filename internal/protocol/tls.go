package protocol

import (
	"crypto/tls"
	"log/slog"

	"github.com/hiqlite/hiqlite/internal/identity"
)

// http2 and http1 are what the two sides may speak over TLS. HTTP/1.1 is for curl, and for
// the upgrade to a Stream.
const http2, http1 = "h2", "http/1.1"

// ServerTLS returns the configuration of a server whose key is derived from the secret
// of the API. Clients are recognised by the secret that they send.
func ServerTLS(secret identity.Secret) (*tls.Config, error) {
	id, err := identity.FromSecret(secret, identity.APILabel, http2)
	if err != nil {
		return nil, err
	}
	return server(id), nil
}

// ServerTLSFromFiles returns the configuration of a server with a certificate, in PEM.
// The files are read again when they change.
func ServerTLSFromFiles(certificate, key string, logger *slog.Logger) (*tls.Config, error) {
	// The server asks its clients for no certificate, so there is no authority, and the
	// certificate takes its place.
	id, err := identity.FromFiles(identity.Files{Certificate: certificate, Key: key, Authority: certificate}, http2, logger)
	if err != nil {
		return nil, err
	}
	return server(id), nil
}

// server returns the configuration of a server with an identity. It asks clients for no
// certificate, since they send the secret.
func server(id *identity.Identity) *tls.Config {
	cfg := id.Server()
	cfg.ClientAuth, cfg.VerifyConnection = tls.NoClientCert, nil
	cfg.NextProtos = []string{http2, http1}
	return cfg
}

// ClientTLS returns the configuration of a client that accepts servers of ServerTLS with
// the same secret.
func ClientTLS(secret identity.Secret) (*tls.Config, error) {
	id, err := identity.FromSecret(secret, identity.APILabel, http2)
	if err != nil {
		return nil, err
	}
	cfg := id.Client()
	cfg.GetClientCertificate = nil
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if state.NegotiatedProtocol == http1 { // for an upgrade; see Stream
			state.NegotiatedProtocol = http2
		}
		return verify(state)
	}
	return cfg, nil
}
