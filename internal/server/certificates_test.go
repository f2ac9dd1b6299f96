package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A signer writes certificates that one authority has signed.
type signer struct {
	t    *testing.T
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64 // serial number
}

func newSigner(t *testing.T) *signer {
	s := &signer{t: t, dir: t.TempDir()}
	s.ca, s.key = s.sign("ca", x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)})
	return s
}

// file returns the name of a file in the folder of s.
func (s *signer) file(name string) string { return filepath.Join(s.dir, name) }

// sign writes NAME.crt and NAME.key.
func (s *signer) sign(name string, template x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	s.last++
	template.SerialNumber, template.NotBefore = big.NewInt(s.last), time.Now().Add(-2*time.Hour)
	parent, by := s.ca, s.key
	if parent == nil {
		parent, by = &template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, by)
	if err != nil {
		s.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(s.file(file), pem.EncodeToMemory(block), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert, key
}

// A client refuses a server whose certificate has expired, has another name, or is of
// another authority, and says so at once. When the files of the server's certificate
// change, new connections use the new one.
func TestCertificates(t *testing.T) {
	own, other := newSigner(t), newSigner(t)
	loopback := []net.IP{net.IPv4(127, 0, 0, 1)}
	hour := time.Now().Add(time.Hour)
	own.sign("server", x509.Certificate{IPAddresses: loopback, NotAfter: time.Now().Add(-time.Hour)})
	secret, err := hiqlite.NewSecret([]byte("a secret of the tests"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := server.TLS(secret, own.file("server.crt"), own.file("server.key"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0), Secret: secret.Text(), TLS: cfg})
	dial := func(by *signer) error {
		remote, err := hiqlite.Dial(testrun.Context(t), hiqlite.RemoteConfig{Addresses: []string{address}, Secret: secret, TLSCAFile: by.file("ca.crt"), ReconnectTimeout: time.Hour})
		if err == nil {
			remote.Close()
		}
		return err
	}
	for _, x := range []struct {
		name     string
		template x509.Certificate
		by       *signer
		want     string
	}{
		{"an expired certificate", x509.Certificate{IPAddresses: loopback, NotAfter: time.Now().Add(-time.Hour)}, own, "has expired"},
		{"a certificate of another name", x509.Certificate{DNSNames: []string{"db.example"}, NotAfter: hour}, own, "127.0.0.1"},
		{"another authority", x509.Certificate{IPAddresses: loopback, NotAfter: hour}, other, "unknown authority"},
		{"a good certificate", x509.Certificate{IPAddresses: loopback, NotAfter: hour}, own, ""},
	} {
		own.sign("server", x.template)
		err := dial(x.by)
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	if n := s.Counters().FailedTLS; n < 3 {
		t.Errorf("the server has counted %d handshakes that failed", n)
	}
}
