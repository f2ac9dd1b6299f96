package protocol

import (
	"crypto/tls"

	"github.com/hiqlite/hiqlite/internal/identity"
)

// http2 is what both sides have to speak over TLS. HTTP/1.1 is for curl.
const http2, http1 = "h2", "http/1.1"

// ServerTLS returns the configuration of a server whose key is derived from the secret
// of the API. Clients are recognised by the secret that they send.
func ServerTLS(secret identity.Secret) (*tls.Config, error) {
	id, err := identity.FromSecret(secret, identity.APILabel, http2)
	if err != nil {
		return nil, err
	}
	cfg := id.Server()
	cfg.ClientAuth, cfg.VerifyConnection = tls.NoClientCert, nil
	cfg.NextProtos = []string{http2, http1}
	return cfg, nil
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
	return cfg, nil
}
