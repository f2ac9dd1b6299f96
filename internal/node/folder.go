package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite/internal/durable"
)

const (
	// identityFile says to which node and cluster a data folder belongs.
	identityFile   = "hiqlite.json"
	identityFormat = 1
	// incarnationFile has the number of the last start of the node, its
	// incarnation. The first session of an incarnation ends those of earlier ones.
	incarnationFile = "incarnation"
	// syncedFile says up to which entry the database of the SQL shard was synced.
	syncedFile = "synced"
)

// folderIdentity is the content of identityFile.
type folderIdentity struct {
	Format  int      `json:"format"`
	NodeID  uint64   `json:"node_id"`
	Nodes   []uint64 `json:"nodes"` // of the cluster, sorted
	Created string   `json:"created"`
}

// claim makes opts.DataDir absolute and makes sure that the folder belongs to the
// node, or is new. It writes the identity of a new folder.
func claim(opts *Options) error {
	dir, err := filepath.Abs(opts.DataDir)
	if err != nil {
		return err
	}
	opts.DataDir = dir
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("hiqlite: %s is a file: name a folder for the node's data; to take over a SQLite database, load its .dump", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("hiqlite: the data folder cannot be made: %w", err)
	}
	if err := durable.Sync(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("hiqlite: the data folder cannot be made durable: %w", err)
	}
	path := filepath.Join(dir, identityFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return writeIdentity(opts)
	}
	if err != nil {
		return fmt.Errorf("hiqlite: the data folder cannot be read: %w", err)
	}
	var id folderIdentity
	if err := json.Unmarshal(data, &id); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	if id.Format > identityFormat {
		return fmt.Errorf("hiqlite: %s was written by a newer version (format %d, this one reads %d): upgrade this program", dir, id.Format, identityFormat)
	}
	if !hasData(dir) { // an earlier start failed before it wrote any data
		return writeIdentity(opts)
	}
	if id.NodeID != opts.ID {
		return fmt.Errorf("hiqlite: %s belongs to node %d, not to node %d: check the node id and the folder", dir, id.NodeID, opts.ID)
	}
	if ids := memberIDs(opts.Members); !slices.Equal(ids, id.Nodes) {
		return fmt.Errorf("hiqlite: %s belongs to a cluster of the nodes %v, the configuration lists %v: list the same ones", dir, id.Nodes, ids)
	}
	return nil
}

// hasData reports whether a data folder holds more than its identity.
func hasData(dir string) bool {
	for _, name := range []string{"raft", "sql", syncedFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// writeIdentity writes the identity of a folder without data.
func writeIdentity(opts *Options) error {
	entries, err := os.ReadDir(opts.DataDir)
	if err != nil {
		return fmt.Errorf("hiqlite: the data folder cannot be read: %w", err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "lost+found" && name != identityFile && name != identityFile+".tmp" {
			return fmt.Errorf("hiqlite: %s is not empty (%s) and no data folder of hiqlite: name another one", opts.DataDir, name)
		}
	}
	data, err := json.MarshalIndent(folderIdentity{identityFormat, opts.ID, memberIDs(opts.Members), time.Now().UTC().Format(time.RFC3339)}, "", "  ")
	if err == nil {
		err = durable.WriteFile(filepath.Join(opts.DataDir, identityFile), append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("hiqlite: the data folder cannot be written: %w", err)
	}
	return nil
}

func memberIDs(members []Member) []uint64 {
	ids := make([]uint64, len(members))
	for i, m := range members {
		ids[i] = m.ID
	}
	slices.Sort(ids)
	return ids
}

// nextIncarnation makes this start of the node a new incarnation, and returns it.
func nextIncarnation(dir string) (uint64, error) {
	path := filepath.Join(dir, incarnationFile)
	n := uint64(0)
	data, err := os.ReadFile(path)
	if err == nil {
		n, err = strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%w: %s says %q", ErrDamaged, path, data)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return n + 1, durable.WriteFile(path, []byte(strconv.FormatUint(n+1, 10)+"\n"))
}
