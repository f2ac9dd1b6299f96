package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A client with the secret recognises the server by it; others can use TLS as well, but
// get nothing without the secret.
func TestTLSFromTheSecret(t *testing.T) {
	secret, err := hiqlite.NewSecret([]byte("the secret of this test"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := server.TLS(secret, "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := hiqlitetest.NewCluster(t, 1)
	s, err := server.New(server.Config{Backend: c.Node(0), Secret: secret.Text(), TLS: cfg})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	dial := func(secret hiqlite.Secret) error {
		r, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{l.Addr().String()}, Secret: secret, ReconnectTimeout: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		return r.DB().PingContext(testrun.Context(t))
	}
	if err := dial(secret); err != nil {
		t.Errorf("with the secret: %v", err)
	}
	other, err := hiqlite.NewSecret([]byte("another secret, for a stranger"))
	if err != nil {
		t.Fatal(err)
	}
	if err := dial(other); err == nil {
		t.Error("a client with another secret trusts the server")
	}
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, RootCAs: x509.NewCertPool()}}}
	defer stranger.CloseIdleConnections()
	for path, want := range map[string]int{"/ping": 200, "/hiqlite.v1.Cluster/Status": 401} {
		answer, err := stranger.Post("https://"+l.Addr().String()+path, "application/json", strings.NewReader("{}"))
		if path == "/ping" && err == nil {
			answer.Body.Close()
			answer, err = stranger.Get("https://" + l.Addr().String() + path)
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", path, answer.StatusCode, body, want)
		}
	}
}
