// Package node runs one node of a cluster inside this process: its data folder,
// its Raft host, its four shards, and what keeps them going. The root package
// puts database/sql in front of it; kv, lock and pubsub use it through
// internal/shardapi.
//
// A shard is one replicated log with a machine on each node: [sqlShard] holds the
// database, and three in-memory shards hold the KV cache, the locks and the
// messages. Each has a combiner, which makes entries of operations and delivers
// their results.
//
// # Guarantees
//
//   - An operation is applied at most once. A nil error says that it was applied,
//     [ErrOutcomeUnknown] that it may have been or may still be, and any other
//     error that it never will be.
//   - Reads on this node see every operation that this node has returned.
//   - No method blocks beyond its context, [Options].Timeout or the node's end.
//
// Errors of SQL are *wire.Error values; callers turn them into their own.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/hiqlite/hiqlite/internal/identity"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/memory"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// MaxOperation bounds an operation or a command, in bytes: each has to fit into one entry.
const MaxOperation = wire.MaxEntrySize

// A Member is a node of the cluster.
type Member struct {
	ID       uint64
	RaftAddr string // host:port on which it listens for the other nodes
}

// Options describe a node. The caller has checked them and filled in defaults.
type Options struct {
	DataDir    string
	ID         uint64
	Members    []Member // this node included
	ListenAddr string   // "": this node's RaftAddr

	Secret       identity.Secret
	SecretFile   string         // takes the place of Secret; "": none
	Certificates identity.Files // take the place of the secret; empty: none

	Timeout    time.Duration // bounds operations whose context has no deadline
	MaxReaders int           // SQLite connections that read at the same time
	MaxSteps   uint64        // virtual machine steps of one write; see Write
	Tick       time.Duration // Raft's unit of time; 0: cluster's default
	LeaseTTL   time.Duration // how long an unreachable node keeps the write lease
	Timezone   string        // of SQL's 'localtime'; "": the cluster's
	Functions  *sqlite.Functions
	Logger     *slog.Logger

	Hooks Hooks
}

// Hooks let tests change what a node meets. The zero value changes nothing.
type Hooks struct {
	// DiskSpace returns the free and all bytes of a folder's volume.
	DiskSpace func(dir string) (free, total int64, err error)
	// CompactEvery is how often the size of the logs is checked, and CompactFrom
	// the size from which they are compacted.
	CompactEvery time.Duration
	CompactFrom  int64
	// FirstSteps bounds the first attempt of a write.
	FirstSteps uint64
	// LeaveWait bounds how long a write that gives up takes to leave the lease queue.
	LeaveWait time.Duration
	// Retention is what the pubsub shard keeps of its messages.
	Retention memory.Retention
	// Send decides what becomes of a message to another node, see transport.Hooks.
	Send func(from, to, shard uint64, kind string) []time.Duration
	// ApplySQL and ApplyKV are called before entries of these shards are applied.
	ApplySQL, ApplyKV func(node uint64)
}

func (h *Hooks) setDefaults() {
	if h.DiskSpace == nil {
		h.DiskSpace = durable.Space
	}
	if h.CompactEvery == 0 {
		h.CompactEvery = compactEvery
	}
	if h.CompactFrom == 0 {
		h.CompactFrom = compactFrom
	}
	if h.FirstSteps == 0 {
		h.FirstSteps = firstSteps
	}
	if h.LeaveWait == 0 {
		h.LeaveWait = leaveWait
	}
	if h.Retention == (memory.Retention{}) {
		h.Retention = memory.DefaultRetention
	}
}

// A Node is one node of a cluster. Its methods may be called from any goroutine.
type Node struct {
	opts Options
	host *cluster.Host

	// shards are all shards of the node, in the order of their ids. The fields
	// after it are the same ones, by what they hold.
	shards []*shard
	sql    *sqlShard
	kv     *kvShard
	lock   *lockShard
	pubsub *pubsubShard

	classes  classCache
	lowDisk  atomic.Pointer[lowDisk] // nil: there is enough free space
	zoneDone chan struct{}           // closed when setZone has ended

	ctx          context.Context // ends when Close begins
	cancel       context.CancelFunc
	work         sync.WaitGroup // goroutines that end with ctx
	lastAdvances sync.WaitGroup // clock advances proposed on Close; see runClocks
	closeOnce    sync.Once
	closeErr     error
}

// Open starts a node and returns when its files are open and it takes part in the
// cluster; see Ready for when it can serve. It changes nothing in a folder that
// belongs to another node or cluster. The caller must Close the node.
func Open(opts Options) (*Node, error) {
	opts.Hooks.setDefaults()
	n := &Node{opts: opts, zoneDone: make(chan struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.open(); err != nil {
		close(n.zoneDone)
		n.Close()
		return nil, err
	}
	n.work.Go(n.setZone)
	n.work.Go(n.sql.leases.run)
	n.work.Go(n.runClocks)
	n.work.Go(n.compactLogs)
	n.work.Go(n.watchDisk)
	n.work.Go(n.watchLeaders)
	return n, nil
}

// open builds the machines and shards first and starts them afterwards, so that
// everything exists before the first entry is applied.
func (n *Node) open() error {
	if err := n.openHost(); err != nil {
		return err
	}
	incarnation, err := nextIncarnation(n.opts.DataDir)
	if err != nil {
		return err
	}
	n.sql = newSQLShard(n, incarnation)
	n.kv = newKVShard(n, incarnation)
	n.lock = newLockShard(n, incarnation)
	n.pubsub = newPubSubShard(n, incarnation)
	n.shards = []*shard{&n.sql.shard, &n.kv.shard, &n.lock.shard, &n.pubsub.shard}
	if err := n.sql.start(); err != nil {
		return err
	}
	for _, s := range []*inMemoryShard{&n.kv.inMemoryShard, &n.lock.inMemoryShard, &n.pubsub.inMemoryShard} {
		if err := s.start(); err != nil {
			return err
		}
	}
	return nil
}

// openHost makes sure that the folder is this node's and opens the Raft host.
func (n *Node) openHost() error {
	members := make(map[uint64]string, len(n.opts.Members))
	for _, m := range n.opts.Members {
		members[m.ID] = m.RaftAddr
	}
	if len(members) == 1 {
		members[n.opts.ID] = "127.0.0.1:1" // a lone node never listens
	}
	cfg := cluster.Config{
		Dir: filepath.Join(n.opts.DataDir, "raft"), Node: n.opts.ID, Members: members, Listen: n.opts.ListenAddr,
		Tick: n.opts.Tick, Logger: n.opts.Logger,
	}
	if by := cluster.InUse(cfg.Dir); by != "" {
		return fmt.Errorf("hiqlite: the data folder %s is already open in %s: share that node, or close it first", n.opts.DataDir, by)
	}
	if err := cfg.Check(); err != nil {
		return err
	}
	cfg.Hooks.Send = n.opts.Hooks.Send
	var err error
	if cfg.Identity, err = n.identity(); err != nil {
		return err
	}
	if err := claim(&n.opts); err != nil {
		return err
	}
	cfg.Dir = filepath.Join(n.opts.DataDir, "raft") // claim made the path absolute
	host, err := cluster.Open(cfg)
	if errors.Is(err, cluster.ErrUnreadable) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	n.host = host
	return err
}

// Ready returns once leaders are known, this node has applied everything that was
// acknowledged before the call in all shards, and its time zone is the cluster's.
// The errors are ErrNoLeader, with that of ctx, and ErrClosed; the former names
// the nodes or entries that this node waits for. If other nodes refuse this one,
// Ready returns ErrNoLeader with their reason and does not wait.
func (n *Node) Ready(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer n.watchRefusals(ctx, cancel)()
	errs := make([]error, len(n.shards))
	var wait sync.WaitGroup
	for i, s := range n.shards {
		wait.Go(func() { errs[i] = s.linearize(ctx) })
	}
	wait.Wait()
	for _, err := range errs {
		if refused := (*refusedError)(nil); err != nil && errors.As(context.Cause(ctx), &refused) {
			return fmt.Errorf("%w: %w", ErrNoLeader, refused)
		}
		if err != nil && !errors.Is(err, ErrClosed) {
			return n.notReady(err)
		}
		if err != nil {
			return err
		}
	}
	return n.WaitZone(ctx)
}

// Linearize returns once reads of SQL on this node see everything that was
// acknowledged anywhere before the call.
func (n *Node) Linearize(ctx context.Context) error { return n.sql.linearize(ctx) }

// Machine returns the SQL machine, for reads and transactions.
func (n *Node) Machine() *replica.SQL { return n.sql.machine }

// InMemoryShards returns the in-memory shards, for the packages kv, lock and pubsub.
func (n *Node) InMemoryShards() shardapi.Shards {
	return shardapi.Shards{KV: n.kv, Lock: n.lock, PubSub: n.pubsub, LeaseQueueLen: n.sql.machine.LeaseQueue}
}

// Context returns a context that ends when the node begins to close.
func (n *Node) Context() context.Context { return n.ctx }

// Closed reports whether the node is closed, or closing.
func (n *Node) Closed() bool { return n.ctx.Err() != nil }

// Err returns why the node serves no SQL: ErrClosed, or why its SQL machine had to
// stop. It returns nil while the node serves.
func (n *Node) Err() error {
	if err := n.failure(); err != nil {
		return err
	}
	if n.Closed() {
		return ErrClosed
	}
	return nil
}

// Close stops the node. Before, it ends this node's transactions, releases its
// leases and locks, and transfers leadership, so that other nodes need not wait
// until these expire. That takes a second, or up to four if there is no leader.
// Operations in flight fail with ErrOutcomeUnknown or ErrClosed. Close may be
// called more than once.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		n.Shutdown()
		if n.pubsub != nil { // open has built the shards
			ctx, cancel := context.WithTimeout(context.Background(), closeWait)
			defer cancel()
			n.sql.leases.close(ctx)
			n.lock.releaseAll(ctx)
			n.lastAdvances.Wait()
			n.holdProposals() // first, so that waiting operations go to the next leader
		}
		if n.host != nil {
			n.closeErr = n.host.Close()
		}
		for _, s := range n.shards {
			s.combiner.Close()
		}
		if n.sql != nil {
			n.sql.machine.Close()
		}
	})
	return n.closeErr
}

// Shutdown begins to close the node: its goroutines end, no statement begins, and
// those that wait for other nodes fail with ErrClosed. It returns when the
// goroutines have ended. The caller then ends its own use of the node and calls
// Close.
func (n *Node) Shutdown() {
	n.cancel()
	n.work.Wait()
}

// closeWait bounds how long a node that closes tries to release its leases and
// locks. An election, at the defaults, takes less.
const closeWait = 3 * time.Second

// sleep waits for d. It returns false as soon as the node closes.
func (n *Node) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-n.ctx.Done():
		return false
	}
}

// alone reports whether the cluster consists of this node.
func (n *Node) alone() bool { return len(n.opts.Members) == 1 }
