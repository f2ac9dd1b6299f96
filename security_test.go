package hiqlite_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
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
		t.Error(fmt.Sprintf("%d rows, %d of them different; %d were acknowledged", rows, distinct, want))
	}
}
