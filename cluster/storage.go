package cluster

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/hiqlite/hiqlite/internal/durable"
)

const storageFileName = "storage.json"

// storage names the Raft folder of this node, and remembers the names of the other
// nodes' folders since these have taken part in the cluster.
//
// A node whose folder has another name than before has lost its log, with the votes
// and acknowledgements that it gave; or it is a node of another cluster that has the
// same ids and secret. In both cases Raft must not hear of it.
type storage struct {
	path string

	mu   sync.Mutex
	file storageFile // what the file holds; guarded by mu
}

// storageFile is the content of the file.
type storageFile struct {
	Name  string            // random, made with the folder
	Nodes map[uint64]string // node -> the name of its folder
}

// openStorage reads the file, or makes it in a folder that has no log yet.
func openStorage(dir string) (*storage, error) {
	s := &storage{path: filepath.Join(dir, storageFileName)}
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) && !hasLog(dir) {
		return s, s.write(storageFile{Name: rand.Text(), Nodes: map[uint64]string{}})
	}
	if err == nil {
		err = json.Unmarshal(data, &s.file)
	}
	if err == nil && (s.file.Name == "" || s.file.Nodes == nil) {
		err = errors.New("it is incomplete")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w: put back a copy of the data folder", ErrUnreadable, s.path, err)
	}
	return s, nil
}

// same implements transport.Options.SameStorage.
func (s *storage) same(node uint64, name string, remember bool) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.file.Nodes[node]; ok {
		return known == name, nil
	}
	if !remember {
		return true, nil
	}
	next := storageFile{s.file.Name, maps.Clone(s.file.Nodes)}
	next.Nodes[node] = name
	return true, s.write(next)
}

// write replaces the file. The caller holds mu, or no other goroutine has s yet.
func (s *storage) write(next storageFile) error {
	data, err := json.MarshalIndent(next, "", "  ")
	if err == nil {
		err = durable.WriteFile(s.path, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("hiqlite: the name of the Raft folder cannot be written: %w", err)
	}
	s.file = next
	return nil
}
