package driver

import (
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

// running are the nodes that this process runs, by their folder.
var running = struct {
	mu       sync.Mutex
	byFolder map[string]*sharedNode
}{byFolder: map[string]*sharedNode{}}

// A sharedNode is a node and those who use it.
type sharedNode struct {
	folder string
	users  int // those who wait for it included; guarded by running.mu

	mu   sync.Mutex // held while the node opens and closes
	open int        // connectors that have it
	node *hiqlite.Node
	cfg  hiqlite.Config
}

// acquire returns the node that cfg describes, running. The caller releases it.
func acquire(cfg hiqlite.Config) (*sharedNode, error) {
	folder, err := resolve(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("hiqlite: the data folder %s: %w", cfg.DataDir, err)
	}
	cfg.DataDir = folder

	running.mu.Lock()
	s := running.byFolder[folder]
	if s == nil {
		s = &sharedNode{folder: folder}
		running.byFolder[folder] = s
	}
	s.users++
	running.mu.Unlock()

	s.mu.Lock()
	err = s.join(cfg)
	s.mu.Unlock()
	if err != nil {
		s.leave()
		return nil, err
	}
	return s, nil
}

// join opens the node, or checks that it is the one that is wanted.
func (s *sharedNode) join(cfg hiqlite.Config) error {
	if s.node != nil {
		if err := same(&s.cfg, &cfg); err != nil {
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

// release stops the node if it is the last one's.
func (s *sharedNode) release() error {
	s.mu.Lock()
	var err error
	if s.open--; s.open == 0 {
		err = s.node.Close()
		s.node = nil
	}
	s.mu.Unlock()
	s.leave()
	return err
}

func (s *sharedNode) leave() {
	running.mu.Lock()
	defer running.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(running.byFolder, s.folder)
	}
}

// same says what two configurations of a node differ in.
func same(have, want *hiqlite.Config) error {
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
	if have.Timeout != want.Timeout {
		differ("timeout", have.Timeout, want.Timeout)
	}
	if have.LeaseTTL != want.LeaseTTL {
		differ("lease_ttl", have.LeaseTTL, want.LeaseTTL)
	}
	if have.MaxSteps != want.MaxSteps {
		differ("max_steps", have.MaxSteps, want.MaxSteps)
	}
	if have.Tick != want.Tick {
		differ("tick", have.Tick, want.Tick)
	}
	if differences == nil {
		return nil
	}
	return fmt.Errorf("hiqlite: this process runs the node in %s already, differently: %s; say the same about the node in each sql.Open",
		have.DataDir, strings.Join(differences, "; "))
}

// resolve makes a path absolute and follows its links, as far as it exists.
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
