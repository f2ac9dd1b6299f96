package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hiqlite/hiqlite"
)

// running has the nodes of this process by their data folders.
var running = struct {
	mu       sync.Mutex
	byFolder map[string]*sharedNode
}{byFolder: map[string]*sharedNode{}}

// A sharedNode is a node that several connectors may use.
type sharedNode struct {
	folder string
	users  int // connectors, including those that wait for mu; guarded by running.mu

	mu   sync.Mutex // held while the node is opened and closed
	open int        // connectors that use the node; it is closed with the last one
	node *hiqlite.Node
	cfg  hiqlite.Config
}

// acquire returns the node that cfg describes, and starts it if it does not run. The
// caller has to release it.
func acquire(cfg hiqlite.Config) (*sharedNode, error) {
	folder, err := resolve(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("hiqlite: the data folder %s: %w", cfg.DataDir, err)
	}
	cfg.DataDir = folder
	// The DSN env: names these defaults, and the others leave them out.
	cfg.LeaseTTL = cmp.Or(cfg.LeaseTTL, hiqlite.DefaultLeaseTTL)
	cfg.MaxReaders = cmp.Or(cfg.MaxReaders, hiqlite.DefaultMaxReaders)

	running.mu.Lock()
	s := running.byFolder[folder]
	if s == nil {
		s = &sharedNode{folder: folder}
		running.byFolder[folder] = s
	}
	s.users++
	running.mu.Unlock()

	s.mu.Lock()
	err = s.openNode(cfg)
	s.mu.Unlock()
	if err != nil {
		s.removeUser()
		return nil, err
	}
	return s, nil
}

// openNode opens the node. If it is open already, it checks that its configuration is
// the same.
func (s *sharedNode) openNode(cfg hiqlite.Config) error {
	if s.node != nil {
		if err := checkSame(&s.cfg, &cfg); err != nil {
			return err
		}
		s.open++
		return nil
	}
	node, err := hiqlite.Open(context.Background(), cfg)
	if err != nil {
		return err
	}
	s.node, s.cfg, s.open = node, cfg, 1
	return nil
}

// release stops the node if the caller was the last one to use it.
func (s *sharedNode) release() error {
	s.mu.Lock()
	var err error
	if s.open--; s.open == 0 {
		err = s.node.Close()
		s.node = nil
	}
	s.mu.Unlock()
	s.removeUser()
	return err
}

// removeUser forgets the node when nobody uses it or waits for it.
func (s *sharedNode) removeUser() {
	running.mu.Lock()
	defer running.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(running.byFolder, s.folder)
	}
}

// checkSame returns an error that lists the differences of two configurations.
func checkSame(have, want *hiqlite.Config) error {
	var differences []string
	differ := func(key string, have, want any) {
		differences = append(differences, fmt.Sprintf("%s is %v, not %v", key, have, want))
	}
	if have.NodeID != want.NodeID {
		differ("node_id", have.NodeID, want.NodeID)
	}
	if !slices.Equal(have.Nodes, want.Nodes) {
		differ("nodes", formatNodes(have.Nodes), formatNodes(want.Nodes))
	}
	if have.ListenAddr != want.ListenAddr {
		differ("listen", have.ListenAddr, want.ListenAddr)
	}
	if have.SecretFile != want.SecretFile {
		differ("secret_file", have.SecretFile, want.SecretFile)
	}
	if have.TLSCertFile != want.TLSCertFile || have.TLSKeyFile != want.TLSKeyFile || have.TLSCAFile != want.TLSCAFile {
		differ("the files of certificates", []string{have.TLSCertFile, have.TLSKeyFile, have.TLSCAFile}, []string{want.TLSCertFile, want.TLSKeyFile, want.TLSCAFile})
	}
	if have.Insecure != want.Insecure {
		differ("insecure", have.Insecure, want.Insecure)
	}
	if have.Timeout != want.Timeout {
		differ("timeout", have.Timeout, want.Timeout)
	}
	if have.Timezone != want.Timezone {
		differ("timezone", have.Timezone, want.Timezone)
	}
	if have.LeaseTTL != want.LeaseTTL {
		differ("lease_ttl", have.LeaseTTL, want.LeaseTTL)
	}
	if have.MaxSteps != want.MaxSteps {
		differ("max_steps", have.MaxSteps, want.MaxSteps)
	}
	if have.MaxReaders != want.MaxReaders {
		differ("read_pool_size", have.MaxReaders, want.MaxReaders)
	}
	if have.Tick != want.Tick {
		differ("tick", have.Tick, want.Tick)
	}
	if differences == nil {
		return nil
	}
	return fmt.Errorf("hiqlite: this process already runs the node in %s with another configuration: %s; give the same keys of the node in each sql.Open",
		have.DataDir, strings.Join(differences, "; "))
}

// resolve makes a path absolute and resolves the symbolic links in the part of it
// that exists.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	missing := ""
	for {
		found, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(found, missing), nil
		}
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return "", err
		}
		missing = filepath.Join(filepath.Base(path), missing)
		path = parent
	}
}
