package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Files name the files of certificates, in PEM.
type Files struct {
	Certificate string // of this node, with the intermediate ones
	Key         string // of the certificate
	Authority   string // the certificates of those who sign the certificates of nodes
}

// FromFiles returns an identity from files. A peer is recognised if an authority
// has signed its certificate, for whatever use and name, and it has not expired: so
// the authority has to be one that signs for this cluster only. When the files
// change, connections that are made from then on use the new ones. While the new
// files cannot be read, the former ones stay in use.
func FromFiles(files Files, protocol string, log *slog.Logger) (*Identity, error) {
	f := &loadedFiles{files: files, log: log}
	if err := f.load(); err != nil {
		return nil, err
	}
	return &Identity{
		protocol: protocol,
		certificate: func() (*tls.Certificate, error) {
			certificate, _ := f.current()
			return certificate, nil
		},
		verify: func(peer []*x509.Certificate) error {
			if len(peer) == 0 {
				return ErrOtherKey
			}
			_, roots := f.current()
			between := x509.NewCertPool()
			for _, c := range peer[1:] {
				between.AddCert(c)
			}
			_, err := peer[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if err != nil {
				return fmt.Errorf("%w: %w", ErrOtherKey, err)
			}
			return nil
		},
	}, nil
}

// loadedFiles is what Files hold.
type loadedFiles struct {
	files Files
	log   *slog.Logger

	mu          sync.Mutex // guards what follows
	stamps      [3]fileStamp
	failed      bool // the files have changed and cannot be read; this was logged
	certificate *tls.Certificate
	roots       *x509.CertPool
}

// fileStamp tells whether a file has changed.
type fileStamp struct {
	modified time.Time
	size     int64
}

// current returns what the files hold, and reads them again if they have changed. It
// is called for each handshake.
func (f *loadedFiles) current() (*tls.Certificate, *x509.CertPool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if stamps, err := f.stat(); err == nil && stamps == f.stamps {
		return f.certificate, f.roots
	}
	err := f.load()
	if err != nil && !f.failed {
		f.log.Error("hiqlite: the certificates have changed and cannot be used; the former ones stay in use", "error", err)
	} else if err == nil {
		f.log.Info("hiqlite: the certificates have changed, and new connections use them", "file", f.files.Certificate)
	}
	f.failed = err != nil
	return f.certificate, f.roots
}

func (f *loadedFiles) stat() (stamps [3]fileStamp, err error) {
	for i, path := range []string{f.files.Certificate, f.files.Key, f.files.Authority} {
		info, err := os.Stat(path)
		if err != nil {
			return stamps, err
		}
		stamps[i] = fileStamp{info.ModTime(), info.Size()}
	}
	return stamps, nil
}

// load reads the files. If that fails it changes nothing. The caller holds mu, or no
// other goroutine has f yet.
func (f *loadedFiles) load() error {
	stamps, err := f.stat() // first: if they change meanwhile, they are read again
	if err != nil {
		return fmt.Errorf("hiqlite: the certificates cannot be read: %w", err)
	}
	certificate, err := tls.LoadX509KeyPair(f.files.Certificate, f.files.Key)
	if err != nil {
		return fmt.Errorf("hiqlite: the certificate %s with the key %s cannot be used: %w", f.files.Certificate, f.files.Key, err)
	}
	authority, err := os.ReadFile(f.files.Authority)
	if err != nil {
		return fmt.Errorf("hiqlite: the certificates of the authority cannot be read: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return fmt.Errorf("hiqlite: %s holds no certificate of an authority in PEM", f.files.Authority)
	}
	f.stamps, f.certificate, f.roots = stamps, &certificate, roots
	return nil
}
