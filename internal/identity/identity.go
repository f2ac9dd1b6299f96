// Package identity makes the TLS configurations by which the nodes of a cluster
// recognise each other: from a secret that all of them hold, or from the files of
// certificates.
//
// With a secret there are no certificates to manage. HKDF-SHA256 derives an Ed25519
// key from the secret, a node presents a certificate of that key, and accepts only
// peers that present the same key. With files, a node accepts peers whose
// certificate was signed by the given authority. Both sides of a connection check
// the other one, with TLS 1.3 only.
package identity

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Labels separate the keys that are derived from one secret. A label never changes
// its meaning; another use gets another label.
const (
	RaftLabel = "hiqlite raft v1"
	APILabel  = "hiqlite api v1"
)

// ErrOtherKey: the peer presented a key that was not derived from this node's secret,
// or a certificate that this node's authority has not signed.
var ErrOtherKey = errors.New("hiqlite: the peer does not hold the secret, or a certificate of the authority, of this node")

// ErrOtherProtocol: the peer speaks TLS, but another protocol over it.
var ErrOtherProtocol = errors.New("hiqlite: the peer speaks another protocol")

// An Identity is what a node presents to its peers, and how it recognises them. It
// may be used from any goroutine.
type Identity struct {
	protocol    string // that both sides have to name, by ALPN
	certificate func() (*tls.Certificate, error)
	verify      func(peer []*x509.Certificate) error
}

// FromSecret returns the identity of all nodes that hold a secret. The label says
// what for, and the protocol is what both sides have to name.
func FromSecret(s Secret, label, protocol string) (*Identity, error) {
	if !s.Set() {
		return nil, errors.New("hiqlite: there is no secret")
	}
	seed, err := hkdf.Key(sha256.New, s.bytes, nil, label, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("hiqlite: deriving the key of %q from the secret: %w", label, err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	public := key.Public().(ed25519.PublicKey)
	// Peers compare the key and nothing else, so that wrong clocks do no harm.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, fmt.Errorf("hiqlite: making a certificate from the secret: %w", err)
	}
	certificate := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &Identity{
		protocol:    protocol,
		certificate: func() (*tls.Certificate, error) { return certificate, nil },
		verify: func(peer []*x509.Certificate) error {
			if len(peer) == 1 {
				if its, ok := peer[0].PublicKey.(ed25519.PublicKey); ok && subtle.ConstantTimeCompare(its, public) == 1 {
					return nil
				}
			}
			return ErrOtherKey
		},
	}, nil
}

// Server returns the configuration of the side that accepts connections.
func (id *Identity) Server() *tls.Config {
	cfg := id.config()
	cfg.ClientAuth = tls.RequireAnyClientCert // checked by VerifyConnection
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate() }
	return cfg
}

// Client returns the configuration of the side that dials.
func (id *Identity) Client() *tls.Config {
	cfg := id.config()
	cfg.InsecureSkipVerify = true // names do not matter; VerifyConnection checks the key
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.certificate() }
	return cfg
}

func (id *Identity) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{id.protocol},
		SessionTicketsDisabled: true, // each connection is checked
		// Without this, Go sends the first 128 KiB of a connection in records of the
		// size of a packet.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.NegotiatedProtocol != id.protocol {
				return ErrOtherProtocol
			}
			return id.verify(state.PeerCertificates)
		},
	}
}
