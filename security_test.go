package hiqlite_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A cluster that talks over a network needs a secret, or has to be told to do
// without.
func TestNetworksNeedASecret(t *testing.T) {
	t.Parallel()
	if _, err := hiqlite.NewSecret([]byte("short")); err == nil {
		t.Error("a short secret is accepted")
	}
	secret, err := hiqlite.NewSecret([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	remote := []hiqlite.Member{{ID: 1, RaftAddr: "10.0.0.1:8200"}, {ID: 2, RaftAddr: "10.0.0.2:8200"}}
	local := []hiqlite.Member{{ID: 1, RaftAddr: "127.0.0.1:8200"}, {ID: 2, RaftAddr: "[::1]:8201"}, {ID: 3, RaftAddr: "localhost:8202"}}
	for name, c := range map[string]struct {
		cfg hiqlite.Config
		ok  bool
	}{
		"a network":                         {hiqlite.Config{Nodes: remote}, false},
		"a network with a secret":           {hiqlite.Config{Nodes: remote, SecretFile: "s"}, true},
		"a network with a secret in memory": {hiqlite.Config{Nodes: remote, Secret: secret}, true},
		"a secret given twice":              {hiqlite.Config{Nodes: remote, Secret: secret, SecretFile: "s"}, false},
		"a network with certificates":       {hiqlite.Config{Nodes: remote, TLSCertFile: "c", TLSKeyFile: "k", TLSCAFile: "a"}, true},
		"a part of the certificates":        {hiqlite.Config{Nodes: remote, TLSCertFile: "c", TLSCAFile: "a"}, false},
		"a network that is insecure":        {hiqlite.Config{Nodes: remote, Insecure: true}, true},
		"loopback":                          {hiqlite.Config{Nodes: local}, true},
		"loopback with a name":              {hiqlite.Config{Nodes: append(local[:2:2], hiqlite.Member{ID: 3, RaftAddr: "db-3:8200"})}, false},
		"loopback, listening everywhere":    {hiqlite.Config{Nodes: local, ListenAddr: ":8200"}, false},
		"one node":                          {hiqlite.Config{Nodes: remote[:1]}, true},
	} {
		c.cfg.DataDir = "x"
		if err := c.cfg.Validate(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		} else if err != nil && !strings.Contains(err.Error(), "secret") && !strings.Contains(err.Error(), "TLSKeyFile") {
			t.Errorf("%s does not say what to do: %v", name, err)
		}
	}
}

// A secret that cannot be used is an error of Open, and one that others can read is
// logged.
func TestSecretsAreChecked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	var log bytes.Buffer
	open := func() error {
		node, err := hiqlite.Open(testrun.Context(t), hiqlite.Config{DataDir: filepath.Join(dir, "data"), SecretFile: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err == nil {
			err = node.Close()
		}
		return err
	}
	if err := open(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte("  too short   "), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "9 bytes") {
		t.Errorf("a short secret: %v", err)
	}
	if err := os.WriteFile(path, []byte("0123456789abcdef\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil || strings.Count(log.String(), "can read the secret") != 1 {
		t.Errorf("a secret that all can read: %v\n%s", err, log.String())
	}
	if strings.Contains(log.String(), "0123456789abcdef") {
		t.Error("the secret is logged")
	}
}

// A node that talks in the clear over a network says so at each start.
func TestInsecureIsLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	address := freeAddresses(t, 1)[0]
	node, err := hiqlite.Open(testrun.Context(t), hiqlite.Config{
		DataDir: t.TempDir(), ListenAddr: address, Insecure: true, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Nodes: []hiqlite.Member{{ID: 1, RaftAddr: "node-1.invalid:8200"}, {ID: 2, RaftAddr: "node-2.invalid:8200"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Close(); err != nil {
		t.Error(err)
	}
	if strings.Count(log.String(), "INSECURE") != 1 {
		t.Errorf("logged:\n%s", log.String())
	}
}

// Nodes recognise each other by certificates of an authority, which are replaced while
// they run.
func TestClusterWithCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := newAuthority(t, dir, "first"), newAuthority(t, dir, "second")
	files := func(cfg *hiqlite.Config) {
		name := filepath.Join(dir, fmt.Sprint("node-", cfg.NodeID))
		first.sign(name)
		cfg.SecretFile, cfg.TLSCertFile, cfg.TLSKeyFile, cfg.TLSCAFile = "", name+".crt", name+".key", filepath.Join(dir, "ca.crt")
	}
	writeAuthorities(t, dir, first)
	c := newCluster(t, 3, files)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	writeAuthorities(t, dir, first, second) // both, until all nodes have certificates of the second one
	for i := range 3 {
		second.sign(filepath.Join(dir, fmt.Sprint("node-", i+1)))
		c.Stop(i)
		c.Start(i)
		c.WaitReady()
		mustExec(t, c.DB(i), "INSERT INTO t VALUES(1)")
	}
	writeAuthorities(t, dir, second)
	c.Stop(2)
	first.sign(filepath.Join(dir, "node-3"))
	c.Start(2)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := c.Node(2).Ready(ctx); !errors.Is(err, hiqlite.ErrNoLeader) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a node with a certificate of the former authority: %v", err)
	}
}

// An authority signs certificates.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB, dir, name string) *authority {
	a := &authority{t: t}
	a.key, a.cert = a.sign(filepath.Join(dir, name))
	return a
}

// sign writes name.crt and name.key. The first certificate is that of the authority.
func (a *authority) sign(name string) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(rand.Int64()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	parent, signer := a.cert, a.key
	if parent == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(crand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for ending, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(name+ending, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert
}

// writeAuthorities writes the file of the authorities that nodes trust.
func writeAuthorities(t testing.TB, dir string, all ...*authority) {
	t.Helper()
	var text []byte
	for _, a := range all {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A node with another secret takes no part, and says why.
func TestAnotherSecretIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	c.Stop(2)
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("another secret of 31 characters"), 0o600); err != nil {
		t.Fatal(err)
	}
	right := c.Config(2).SecretFile
	c.Configure(2, func(cfg *hiqlite.Config) { cfg.SecretFile = path })
	c.Start(2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.Node(2).Ready(ctx); !errors.Is(err, hiqlite.ErrNoLeader) || !strings.Contains(err.Error(), "secret") {
		t.Errorf("a node with another secret: %v", err)
	}
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(1)")
	c.Stop(2)
	c.Configure(2, func(cfg *hiqlite.Config) { cfg.SecretFile = right })
	c.Start(2)
	c.WaitEqual()
}

// Of two processes with the same node id, the second one learns that it is refused,
// and the first one goes on.
func TestSecondNodeWithAnIDIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	cfg := c.Config(2)
	cfg.DataDir = filepath.Join(t.TempDir(), "3")
	cfg.Nodes[2].RaftAddr = freeAddresses(t, 1)[0]
	second, err := hiqlite.Open(testrun.Context(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	began := time.Now()
	if err := second.Ready(testrun.Context(t)); !errors.Is(err, hiqlite.ErrNoLeader) || !strings.Contains(err.Error(), "node 3 runs already") {
		t.Errorf("the second node says %v", err)
	}
	t.Logf("refused after %v", time.Since(began))
	for i := range 3 {
		mustExec(t, c.DB(i), "INSERT INTO t VALUES(1)")
	}
	c.WaitEqual()
}

// A node with an empty folder in place of its own would have forgotten its votes: it
// takes no part.
func TestNodeWithAnotherFolderIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	testrun.WaitFor(t, "the others to know the folder", func() bool {
		for i := range 2 {
			text, err := os.ReadFile(filepath.Join(c.Config(i).DataDir, "raft", "storage.json"))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), `"3":`) {
				return false
			}
		}
		return true
	})
	c.Stop(2)
	c.Configure(2, func(cfg *hiqlite.Config) { cfg.DataDir = filepath.Join(t.TempDir(), "empty") })
	c.Start(2)
	if err := c.Node(2).Ready(testrun.Context(t)); !errors.Is(err, hiqlite.ErrNoLeader) || !strings.Contains(err.Error(), "another data folder") {
		t.Errorf("it says %v", err)
	}
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(1)")
}

// A node whose address has changed is found by the others, whose lists have the
// former one.
func TestNodeThatMoves(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	known := slices.Clone(c.Config(0).Nodes)
	for i := range 3 {
		c.Stop(i)
		known[i].RaftAddr = freeAddresses(t, 1)[0]
		c.Configure(i, func(cfg *hiqlite.Config) { cfg.Nodes = slices.Clone(known) })
		c.Start(i)
		c.WaitReady()
		mustExec(t, c.DB(i), "INSERT INTO t VALUES(1)")
	}
	c.WaitEqual()
}

// Messages are lost, delayed, overtaken and repeated, by their kind: what was
// acknowledged is there once on all nodes.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	var calm sync.Map // "" -> true when the network is good again
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		cfg.HookSend(func(_, _, _ uint64, kind string) []time.Duration {
			if _, ok := calm.Load(""); ok {
				return []time.Duration{0}
			}
			late := func() time.Duration { return time.Duration(rand.N(int64(30 * time.Millisecond))) }
			switch n := rand.N(100); {
			case n < 5:
				return nil
			case n < 10 && kind != "Replicate":
				return []time.Duration{0, late(), late()}
			case n < 20:
				return []time.Duration{late()}
			}
			return []time.Duration{0}
		})
	})
	mustExec(t, c.DB(0), "CREATE TABLE t(node INTEGER, writer INTEGER, n INTEGER)")
	var work sync.WaitGroup
	const writers, writes = 4, 40
	for i := range 3 {
		for w := range writers {
			db := c.DB(i)
			work.Go(func() {
				for n := range testrun.Rounds(writes, 10*writes) {
					if _, err := db.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(?,?,?)", i, w, n); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	work.Wait()
	calm.Store("", true)
	c.WaitEqual()
	var rows, distinct int
	if err := c.DB(1).QueryRow("SELECT count(*), count(DISTINCT format('%d %d %d', node, writer, n)) FROM t").Scan(&rows, &distinct); err != nil {
		t.Fatal(err)
	}
	if want := 3 * writers * testrun.Rounds(writes, 10*writes); rows != want || distinct != want {
		t.Errorf("%d rows, %d of them different; %d were acknowledged", rows, distinct, want)
	}
}
