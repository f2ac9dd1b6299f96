package hiqlite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/durable"
)

// compactTo bounds, in bytes, the log between compactions; see compactFrom.
const compactTo = 1 << 30

// Exchanged by tests.
var (
	// compactEvery is how often the log's size is looked at.
	compactEvery = 5 * time.Second
	// compactFrom is the least size, in bytes, of the log between compactions,
	// which otherwise follows the size of the database: a node that was away
	// for less is brought up to date by the log, for more by a snapshot.
	compactFrom int64 = 64 << 20
)

// A compactor lets a shard's log forget what all need no more.
type compactor struct {
	replica interface {
		LogBytes() uint64
		Applied() uint64
	}
	size    func() int64 // of the state, in bytes
	compact func(keep uint64) error

	bytes, entries uint64 // as of the last compaction
}

// compact keeps the logs of all shards short.
func (n *Node) compact() {
	all := []*compactor{{replica: n.replica, size: func() int64 { size, _ := n.replica.Size(); return size }, compact: n.compactTo}}
	for _, s := range n.memory.all {
		all = append(all, &compactor{replica: s.replica, size: s.replica.Size, compact: func(keep uint64) error { return s.shard.Compact(n.ctx, keep) }})
	}
	var wg sync.WaitGroup
	for _, c := range all { // beside each other: a large cache takes its time
		wg.Go(func() {
			for n.sleep(compactEvery) {
				if err := c.look(); err != nil && n.ctx.Err() == nil && !errors.Is(err, ErrClosed) {
					n.cfg.Logger.Warn("hiqlite: compacting the log", "error", err)
				}
			}
		})
	}
	wg.Wait()
}

// look compacts the log if what was added since the last time outweighs the
// state.
func (c *compactor) look() error {
	now, applied := c.replica.LogBytes(), c.replica.Applied()
	if c.entries == 0 {
		c.entries = applied
	}
	if now-c.bytes < uint64(compactFrom) || now-c.bytes < uint64(min(c.size(), compactTo)) {
		return nil
	}
	// A quarter stays, for nodes that are a little behind.
	if err := c.compact((applied - c.entries) / 4); err != nil {
		return err
	}
	c.bytes, c.entries = now, applied
	return nil
}

func (n *Node) compactTo(keep uint64) error {
	defer n.replica.Compacting()()
	return n.shard.Compact(n.ctx, keep)
}

// sleep waits, and reports false when the node closes.
func (n *Node) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-n.ctx.Done():
		return false
	}
}

// checkLog makes sure, before a shard takes part, that its log fits what its
// machine has applied: Raft would take the next entries, having lower indexes,
// for applied. Whatever the log lacks, this node may have voted for it, so that
// the others are not asked for it.
func (n *Node) checkLog(shard *cluster.Shard, applied, term uint64) error {
	err := shard.CheckLog(applied, term)
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w: files of different moments, or of another node, were put together; put back a copy of the whole folder that was made while the node was stopped",
		ErrDamaged, n.cfg.DataDir, err)
}

// shardFailure says why a shard of this node has to stop: its log has lost
// entries, here or elsewhere, or the disk has failed.
func (n *Node) shardFailure(err error) error {
	if errors.Is(err, cluster.ErrDiskFailed) {
		return fmt.Errorf("the disk of %s fails: %w; this program has to be started anew, once it works", n.cfg.DataDir, err)
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// bootsFile counts how often the node was started: sessions of an earlier
// incarnation end when the next one opens its first.
const bootsFile = "boots"

// incarnation counts this start of the node.
func incarnation(dir string) (uint64, error) {
	path := filepath.Join(dir, bootsFile)
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

// identity is what a data folder says of itself.
type identity struct {
	Format  int      `json:"format"`
	NodeID  uint64   `json:"node_id"`
	Nodes   []uint64 `json:"nodes"`
	Created string   `json:"created"`
}

const (
	identityFile   = "hiqlite.json"
	identityFormat = 1
)

// claim makes sure that the data folder is the node's: a new one, or one that
// it has used before.
func claim(cfg *Config) error {
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return err
	}
	cfg.DataDir = dir
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
		return found(cfg, dir, path)
	}
	if err != nil {
		return fmt.Errorf("hiqlite: the data folder cannot be read: %w", err)
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	if id.Format > identityFormat {
		return fmt.Errorf("hiqlite: %s was written by a newer version (format %d, this one reads %d): upgrade this program", dir, id.Format, identityFormat)
	}
	if unused(dir) {
		return found(cfg, dir, path) // an attempt that came no further
	}
	if id.NodeID != cfg.NodeID {
		return fmt.Errorf("hiqlite: %s belongs to node %d, not to node %d: check the node id and the folder", dir, id.NodeID, cfg.NodeID)
	}
	if ids := memberIDs(cfg.Nodes); !slices.Equal(ids, id.Nodes) {
		return fmt.Errorf("hiqlite: %s belongs to a cluster of the nodes %v, the configuration lists %v: list the same ones", dir, id.Nodes, ids)
	}
	return nil
}

// unused reports that a folder holds an identity and nothing else.
func unused(dir string) bool {
	for _, name := range []string{"raft", "sql", "synced"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// found writes the identity of a new folder.
func found(cfg *Config, dir, path string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("hiqlite: the data folder cannot be read: %w", err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "lost+found" && name != identityFile && name != identityFile+".tmp" {
			return fmt.Errorf("hiqlite: %s is not empty (%s) and no data folder of hiqlite: name another one", dir, name)
		}
	}
	data, err := json.MarshalIndent(identity{identityFormat, cfg.NodeID, memberIDs(cfg.Nodes), time.Now().UTC().Format(time.RFC3339)}, "", "  ")
	if err == nil {
		err = durable.WriteFile(path, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("hiqlite: the data folder cannot be written: %w", err)
	}
	return nil
}

// A ShardStatus describes one of a node's replicated logs.
type ShardStatus struct {
	Name    string // sql, kv, lock or pubsub
	Leader  uint64 // node id; 0: none known
	Term    uint64
	Applied uint64 // index of the last entry that this node has applied
	Error   string // why this node takes no part in it: for good, or until there is free disk space
}

// A Status describes a node as it sees itself and the cluster. Leader, Term,
// Applied and Commit are of the SQL database.
type Status struct {
	NodeID        uint64
	Leader        uint64 // node id; 0: none known
	Term          uint64
	Applied       uint64 // index of the last entry that reads on this node see
	Commit        uint64 // index of the last entry known to be committed
	Members       []Member
	DatabaseBytes int64
	WALBytes      int64 // of SQLite's write-ahead log
	Shards        []ShardStatus
}

// Status returns the node's status, without asking others.
func (n *Node) Status(ctx context.Context) (Status, error) {
	if err := ctx.Err(); err != nil {
		return Status{}, err
	}
	if err := n.failure(); err != nil {
		return Status{}, err
	}
	if n.ctx.Err() != nil {
		return Status{}, ErrClosed
	}
	leader := n.shard.Leader()
	s := Status{NodeID: n.cfg.NodeID, Leader: leader.Node, Term: leader.Term, Applied: n.replica.Applied(), Members: slices.Clone(n.cfg.Nodes)}
	s.Commit = s.Applied
	if commit, err := n.shard.Commit(ctx); err == nil { // busy: what was applied will do
		s.Commit = max(s.Commit, commit)
	}
	s.DatabaseBytes, s.WALBytes = n.replica.Size()
	s.Shards = []ShardStatus{{Name: "sql", Leader: s.Leader, Term: s.Term, Applied: s.Applied}}
	paused := n.pausedError()
	for _, m := range n.memory.all {
		leader := m.shard.Leader()
		shard := ShardStatus{Name: m.name, Leader: leader.Node, Term: leader.Term, Applied: m.replica.Applied()}
		if err := m.replica.Err(); err != nil {
			shard.Error = err.Error()
		}
		s.Shards = append(s.Shards, shard)
	}
	for i := range s.Shards {
		if paused != nil && s.Shards[i].Error == "" {
			s.Shards[i].Error = paused.Error()
		}
	}
	return s, nil
}

// Hash returns a SHA-256 over the whole database, schema and rowids included,
// and the index of the log that it stands for: at the same index all nodes have
// the same. It reads every row.
func (n *Node) Hash(ctx context.Context) (hash [32]byte, index uint64, err error) {
	hash, index, err = n.replica.Hash(ctx)
	return hash, index, sqlError(err)
}
