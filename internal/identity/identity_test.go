package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const testProtocol = "test/1"

// meet lets two sides shake hands, and returns the error of each.
func meet(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			accepted <- err
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		s := tls.Server(c, server)
		if err = s.Handshake(); err == nil {
			_, err = s.Write([]byte("x"))
		}
		accepted <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(time.Minute))
	c := tls.Client(raw, client)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1)) // in TLS 1.3 the client learns only now that it was refused
	}
	raw.Close()
	return <-accepted, clientErr
}

func fromSecret(t *testing.T, secret, label, protocol string) *Identity {
	t.Helper()
	s, err := NewSecret([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	id, err := FromSecret(s, label, protocol)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

const secretA, secretB = "aaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbb"

func TestNodesWithTheSameSecretMeet(t *testing.T) {
	one, two := fromSecret(t, secretA, RaftLabel, testProtocol), fromSecret(t, "\n "+secretA+"\n", RaftLabel, testProtocol)
	if s, c := meet(t, one.Server(), two.Client()); s != nil || c != nil {
		t.Errorf("the sides say %v and %v", s, c)
	}
}

func TestOthersAreRefused(t *testing.T) {
	node := fromSecret(t, secretA, RaftLabel, testProtocol)
	for name, other := range map[string]*Identity{
		"another secret":              fromSecret(t, secretB, RaftLabel, testProtocol),
		"the key of another label":    fromSecret(t, secretA, APILabel, testProtocol),
		"another protocol":            fromSecret(t, secretA, RaftLabel, "test/2"),
		"a secret of a longer prefix": fromSecret(t, secretA+"a", RaftLabel, testProtocol),
	} {
		if s, c := meet(t, node.Server(), other.Client()); s == nil || c == nil {
			t.Errorf("%s: the sides say %v and %v", name, s, c)
		}
		if s, c := meet(t, other.Server(), node.Client()); s == nil || c == nil {
			t.Errorf("%s, as the server: the sides say %v and %v", name, s, c)
		}
	}
	for name, change := range map[string]func(*tls.Config){
		"no certificate": func(c *tls.Config) { c.GetClientCertificate = nil },
		"no protocol":    func(c *tls.Config) { c.NextProtos = nil },
		"TLS 1.2":        func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"a key of its own, in the certificate of the secret": func(c *tls.Config) {
			stolen, err := node.certificate()
			if err != nil {
				t.Fatal(err)
			}
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &tls.Certificate{Certificate: stolen.Certificate, PrivateKey: key}, nil
			}
		},
	} {
		cfg := node.Client()
		cfg.VerifyConnection = nil // a stranger does not check
		change(cfg)
		if s, _ := meet(t, node.Server(), cfg); s == nil {
			t.Errorf("%s: it is accepted", name)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	s, err := NewSecret([]byte(secretA))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	in := struct{ S Secret }{s}
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "in", in)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "in", in)
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		fmt.Sprint(s), fmt.Sprintf("%s %v %+v %#v %q %x %d %T", s, s, s, s, s, s, s, s), fmt.Sprintf("%v %+v %#v", in, in, in), fmt.Sprint(&in),
		fmt.Sprintf("%v", []Secret{s}), s.String(), s.GoString(), string(data), log.String(), fmt.Errorf("x %v", s).Error(),
	} {
		if strings.Contains(text, "aaaa") || strings.Contains(text, "97 97") || strings.Contains(text, "6161") || !strings.Contains(text, redacted) {
			t.Errorf("it prints %s", text)
		}
	}
}

func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		path string
		wide bool
		want string // part of the error
	}{
		{write("good", secretA+"\n", 0o600), false, ""},
		{write("readonly", secretA, 0o400), false, ""},
		{write("wide", secretA, 0o644), true, ""},
		{write("16 bytes", " \n1234567890123456\t\n", 0o600), false, ""},
		{write("15 bytes", "   123456789012345   ", 0o600), false, "15 bytes"},
		{write("empty", "", 0o600), false, "0 bytes"},
		{write("huge", strings.Repeat("x", maxSecret+1), 0o600), false, "larger"},
		{filepath.Join(dir, "missing"), false, "no such file"},
		{dir, false, "directory"},
	} {
		s, wide, err := ReadSecret(c.path)
		switch {
		case c.want == "" && (err != nil || wide != c.wide || len(s.bytes) < MinSecret):
			t.Errorf("%s: %v, %v", c.path, wide, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
}

// An authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key, a.cert = a.sign("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, time.Hour)
	return a
}

// sign writes the files name.crt and name.key.
func (a *authority) sign(name string, template *x509.Certificate, valid time.Duration) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	a.n++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(a.n), time.Now().Add(-2*time.Hour), time.Now().Add(valid)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	a.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	return key, cert
}

func (a *authority) write(name string, data []byte) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), data, 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) files(name string) Files {
	return Files{filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key"), filepath.Join(a.dir, "ca.crt")}
}

func (a *authority) identity(name string) *Identity {
	a.t.Helper()
	id, err := FromFiles(a.files(name), testProtocol, slog.New(slog.DiscardHandler))
	if err != nil {
		a.t.Fatal(err)
	}
	return id
}

func TestCertificates(t *testing.T) {
	a, foreign := newAuthority(t), newAuthority(t)
	for name, valid := range map[string]time.Duration{"one": time.Hour, "two": time.Hour, "expired": -time.Hour} {
		a.sign(name, &x509.Certificate{}, valid)
	}
	foreign.sign("foreign", &x509.Certificate{}, time.Hour)
	one := a.identity("one")
	if s, c := meet(t, one.Server(), a.identity("two").Client()); s != nil || c != nil {
		t.Errorf("two nodes of the authority say %v and %v", s, c)
	}
	for name, other := range map[string]*Identity{"expired": a.identity("expired"), "foreign": foreign.identity("foreign"), "a secret": fromSecret(t, secretA, RaftLabel, testProtocol)} {
		s, _ := meet(t, one.Server(), other.Client())
		if !errors.Is(s, ErrOtherKey) && !strings.Contains(fmt.Sprint(s), "remote error") {
			t.Errorf("%s: the server says %v", name, s)
		}
		if _, c := meet(t, other.Server(), one.Client()); !errors.Is(c, ErrOtherKey) {
			t.Errorf("%s: the client says %v", name, c)
		}
	}
	for name, files := range map[string]Files{
		"no file":      {filepath.Join(a.dir, "none"), a.files("one").Key, a.files("one").Authority},
		"another key":  {a.files("one").Certificate, a.files("two").Key, a.files("one").Authority},
		"no authority": {a.files("one").Certificate, a.files("one").Key, a.files("one").Key},
	} {
		if _, err := FromFiles(files, testProtocol, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Certificates are replaced while the node runs, the authority with them.
func TestCertificatesAreLoadedAgain(t *testing.T) {
	a, next := newAuthority(t), newAuthority(t)
	a.sign("one", &x509.Certificate{}, time.Hour)
	next.sign("one", &x509.Certificate{}, time.Hour)
	next.sign("two", &x509.Certificate{}, time.Hour)
	var log bytes.Buffer
	loaded := &loadedFiles{files: a.files("one"), log: slog.New(slog.NewTextHandler(&log, nil))}
	if err := loaded.load(); err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		certificate, _ := loaded.current()
		leaf, err := x509.ParseCertificate(certificate.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.Issuer.String() + leaf.SerialNumber.String() + string(leaf.Signature)
	}
	first := serial()
	a.write("one.crt", []byte("half a file"))
	second := serial()
	if second != first || serial() != first || strings.Count(log.String(), "former ones stay") != 1 {
		t.Errorf("an unreadable certificate is used, or it is logged not once: %s", log.String())
	}
	for _, ending := range []string{"one.crt", "one.key", "ca.crt"} {
		data, err := os.ReadFile(filepath.Join(next.dir, ending))
		if err != nil {
			t.Fatal(err)
		}
		a.write(ending, data)
	}
	if serial() == first || strings.Count(log.String(), "new connections use them") != 1 {
		t.Errorf("the new certificate is not used: %s", log.String())
	}
	if s, c := meet(t, a.identity("one").Server(), next.identity("two").Client()); s != nil || c != nil {
		t.Errorf("nodes of the new authority say %v and %v", s, c)
	}
}
