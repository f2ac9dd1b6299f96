package remote

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/hiqlite/hiqlite/internal/identity"
)

var (
	errServerUsesTLS = errors.New("the server uses TLS, and this client does not: give the client the secret (secret_file) or the certificates of the authority (tls_ca_file), and leave out insecure")
	errServerIsPlain = errors.New("the server does not use TLS: leave TLS out of the client's configuration (insecure=true), or configure TLS on the server")
	errOtherSecret   = errors.New("the server does not hold the secret of this client (secret_file), or has a certificate, which needs tls_ca_file")
	errNotHTTP2      = errors.New("the server does not answer in HTTP/2: it is no hiqlite server, or it uses TLS and this client does not")
)

// A server with TLS answers HTTP/2 without TLS by empty SETTINGS, and GOAWAY.
var emptySettings = []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}

const goAway, goAwayAt = 7, 12 // the type of the second frame, and where it is

// dial connects to a node. Without TLS it checks that the node answers in HTTP/2.
func (c *Client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	raw, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
	if err != nil {
		c.endpoint(address).mismatch.Store(nil) // now the node has another problem
	}
	if err != nil || c.opts.TLS != nil {
		return raw, err
	}
	return &plainConn{Conn: raw, endpoint: c.endpoint(address)}, nil
}

// A plainConn is a connection without TLS. Its reads fail if the other side does not
// speak HTTP/2: net/http would take the bytes for a frame that is too large.
type plainConn struct {
	net.Conn
	endpoint *endpoint
	checked  bool // only the goroutine that reads uses it
}

func (c *plainConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.checked || n == 0 {
		return n, err
	}
	c.checked = true
	var mismatch error
	switch p[0] {
	case 0: // a frame that has less than 64 KiB
		if bytes.HasPrefix(p[:n], emptySettings) && n > goAwayAt && p[goAwayAt] == goAway {
			mismatch = errServerUsesTLS
		}
	case 0x15: // an alert of TLS
		mismatch = errServerUsesTLS
	default:
		mismatch = errNotHTTP2
	}
	c.endpoint.mismatch.Store(&mismatch) // net/http does not always return the error
	if mismatch != nil {
		return 0, mismatch
	}
	return n, err
}

// misconfigured reports whether a node could not be reached because client and server
// are configured differently, so that another attempt would fail as well. errNotHTTP2 is
// not among these errors: a load balancer that passes on upgrades, but not HTTP/2, answers
// so while its servers are restarted.
func misconfigured(err error) bool {
	var unverified *tls.CertificateVerificationError
	return errors.Is(err, errServerUsesTLS) || errors.Is(err, errServerIsPlain) ||
		errors.Is(err, errOtherSecret) || errors.Is(err, identity.ErrOtherProtocol) || errors.As(err, &unverified)
}

// explain adds to an error of the transport what the user can do.
func explain(e *endpoint, err error) error {
	var record tls.RecordHeaderError
	if mismatch := e.mismatch.Load(); mismatch != nil && *mismatch != nil && !errors.Is(err, *mismatch) {
		err = fmt.Errorf("%w (%w)", *mismatch, err)
	}
	switch {
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%w (%w)", errServerIsPlain, err)
	case strings.Contains(err.Error(), "INADEQUATE_SECURITY"): // see firstRead of internal/server
		return fmt.Errorf("%w (%w)", errServerUsesTLS, err)
	case errors.Is(err, identity.ErrOtherKey):
		return errOtherSecret
	}
	return err
}
