package hiqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// sqlShard is the id of the shard that replicates the SQL database.
const sqlShard = 1

// sqlMachine is what Raft applies entries to; exchanged by tests.
var sqlMachine = func(_ uint64, replica sm.IOnDiskStateMachine) sm.IOnDiskStateMachine { return replica }

// A Node is one node of a cluster, running inside this process.
type Node struct {
	cfg       Config
	host      *cluster.Host
	shard     *cluster.Shard // set before Open returns
	replica   *replica.SQL
	classes   classes
	db        *sql.DB
	lowDisk   atomic.Pointer[diskLow] // nil: there is enough space
	functions *sqlite.Functions       // of the program
	zoned     chan struct{}           // closed once the time zone is settled

	abandoned sync.Once // it was said that a transaction was left open

	leases *leases
	memory *memoryShards

	writes atomic.Pointer[cluster.Combiner[*wire.EncodedOperation, answer]]

	started   chan struct{}   // closed when shard is set
	migrated  chan struct{}   // closed when Config.Migrations were applied, or failed
	migration error           // why they failed; read once migrated is closed
	held      chan struct{}   // capacity 1: a hold was applied
	ctx       context.Context // ends with the node
	cancel    context.CancelFunc
	work      sync.WaitGroup
	lastTicks sync.WaitGroup // see tick
	closeOnce sync.Once
	closeErr  error
}

// Open starts the node in cfg.DataDir and returns when its files are open and
// it takes part in the cluster: not when there is a leader, see Ready. Nodes may
// be opened in any order. The caller must Close it.
//
// What is wrong with cfg, the folder or the ports is reported before anything
// is changed; ErrDamaged says that files have gone missing.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.started, n.held, n.migrated = make(chan struct{}), make(chan struct{}, 1), make(chan struct{})
	n.zoned = make(chan struct{})
	n.leases = newLeases(n)
	n.memory = newMemoryShards(n)
	if err := n.open(); err != nil {
		n.Close()
		return nil, err
	}
	n.db = sql.OpenDB(n.Connector())
	n.work.Go(n.setZone)
	n.work.Go(n.migrate)
	return n, nil
}

func (n *Node) open() error {
	members := make(map[uint64]string, len(n.cfg.Nodes))
	for _, m := range n.cfg.Nodes {
		members[m.ID] = m.RaftAddr
	}
	if len(members) == 1 {
		members[n.cfg.NodeID] = "127.0.0.1:1" // never listened on
	}
	raft := cluster.Config{Dir: filepath.Join(n.cfg.DataDir, "raft"), Node: n.cfg.NodeID, Members: members, Tick: n.cfg.Tick, Logger: n.cfg.Logger,
		Listen: n.cfg.ListenAddr}
	if by := cluster.InUse(raft.Dir); by != "" {
		return fmt.Errorf("hiqlite: the data folder %s is already open in %s: share that node, or close it first", n.cfg.DataDir, by)
	}
	if err := raft.Check(); err != nil {
		return err
	}
	err := claim(&n.cfg)
	if err != nil {
		return err
	}
	raft.Dir = filepath.Join(n.cfg.DataDir, "raft") // absolute by now
	n.host, err = cluster.Open(raft)
	if errors.Is(err, cluster.ErrUnreadable) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	} else if err != nil {
		return err
	}
	if n.functions, err = n.cfg.functions(); err != nil {
		return err
	}
	dir := filepath.Join(n.cfg.DataDir, "sql")
	n.replica = replica.New(replica.Config{
		Dir: dir, Marker: filepath.Join(n.cfg.DataDir, "synced"),
		Listener: listener{n}, Leases: listener{n}, Logger: n.cfg.Logger, MaxReaders: n.cfg.MaxReaders, Functions: n.functions,
		Term: func(index uint64) uint64 { return n.shard.Term(index) },
	})
	n.shard = n.host.NewShard(cluster.ShardConfig{ID: sqlShard, Name: "sql", Applied: n.replica.Applied, Failed: func(err error) { n.replica.Fail(n.shardFailure(err)) }})
	applied, err := n.replica.Open(nil)
	if err != nil {
		return fmt.Errorf("hiqlite: open the database in %s: %w", dir, err)
	}
	if err := durable.Sync(n.cfg.DataDir); err != nil { // the names raft and sql
		return err
	}
	if applied > 0 && !n.shard.Bootstrapped() {
		return fmt.Errorf("%w: %s holds a database but the Raft log beside it is gone; put the folder back; to start without it would forget whom this node voted for",
			ErrDamaged, dir)
	}
	if err := n.checkLog(n.shard, applied, n.replica.AppliedTerm()); err != nil {
		return err
	}
	if err := n.shard.Start(sqlMachine(n.cfg.NodeID, n.replica)); err != nil {
		return err
	}
	close(n.started)
	incarnation, err := incarnation(n.cfg.DataDir)
	if err != nil {
		return err
	}
	n.writes.Store(cluster.NewCombiner[*wire.EncodedOperation, answer](n.shard, codec{n.cfg.NodeID, incarnation}, cluster.CombinerConfig{MaxEntryBytes: maxOperation}))
	for _, s := range n.memory.all {
		if err := s.start(incarnation); err != nil {
			return err
		}
	}
	n.work.Go(n.leases.run)
	n.work.Go(n.tick)
	n.work.Go(n.compact)
	n.work.Go(n.watchDisk)
	n.work.Go(n.watchLeaders)
	return nil
}

// Ready returns once leaders are known, this node has applied everything that
// was acknowledged before the call (of kv, lock and pubsub too),
// and Config.Migrations are applied. The
// errors are ErrNoLeader, with that of ctx, ErrClosed, and that of the
// migrations; the first says which nodes it waits for, or which entries. A
// context without a deadline is bounded by Config.Timeout.
func (n *Node) Ready(ctx context.Context) error {
	switch err := n.caughtUp(ctx); {
	case errors.Is(err, ErrClosed):
		return err
	case err != nil:
		return n.notReady(err)
	}
	if err := n.inZone(ctx); err != nil || n.cfg.Migrations == nil {
		return err
	}
	ctx, cancel := n.within(ctx)
	defer cancel()
	select {
	case <-n.migrated:
		return n.migration
	case <-ctx.Done():
		return fmt.Errorf("hiqlite: the migrations are not applied yet: %w", ctx.Err())
	}
}

// caughtUp waits until this node has applied what was acknowledged before, in
// all shards.
func (n *Node) caughtUp(ctx context.Context) error {
	errs := make([]error, 1+len(n.memory.all))
	var wg sync.WaitGroup
	wg.Go(func() { errs[0] = n.linearize(ctx) })
	for i, s := range n.memory.all {
		wg.Go(func() { errs[i+1] = s.linearize(ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// migrateAgain is how soon migrations are tried again that found no leader.
const migrateAgain = 100 * time.Millisecond

// migrate applies Config.Migrations, as soon as there is a leader.
func (n *Node) migrate() {
	defer close(n.migrated)
	if n.cfg.Migrations == nil {
		return
	}
	for {
		err := Migrate(n.ctx, n.db, n.cfg.Migrations)
		switch {
		case n.ctx.Err() != nil:
			n.migration = ErrClosed
			return
		case errors.Is(err, ErrNoLeader), errors.Is(err, ErrOutcomeUnknown), repeatable(err):
			n.sleep(migrateAgain)
			continue
		}
		if n.migration = err; err != nil {
			n.cfg.Logger.Error("hiqlite: the migrations failed", "node", n.cfg.NodeID, "error", err)
		}
		return
	}
}

// Close stops the node: it hands leadership over, waits for what runs, and
// closes the database. A second of time is enough, or four if there is no leader
// when it gives back locks, or the lease of a transaction. Writes in flight get
// ErrOutcomeUnknown or ErrClosed. It is idempotent.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		n.cancel()
		n.work.Wait()
		if n.db != nil {
			n.closeErr = n.db.Close()
		}
		ctx, cancel := context.WithTimeout(context.Background(), closeWait)
		defer cancel()
		n.leases.close(ctx)
		n.memory.lock.leave(ctx)
		n.lastTicks.Wait()
		if n.host != nil {
			// Leadership first: writes that wait find the next leader.
			n.holdAll()
			n.closeErr = errors.Join(n.closeErr, n.host.Close())
		}
		if w := n.writes.Load(); w != nil {
			w.Close()
		}
		for _, s := range n.memory.all {
			if c := s.commands.Load(); c != nil {
				c.Close()
			}
		}
		if n.replica != nil {
			n.replica.Close()
		}
	})
	return n.closeErr
}

// handoverHold is for how long nodes propose nothing when the leader closes: the
// next one leads after some 20 ms, which ends the hold.
const handoverHold = 250 * time.Millisecond

// holdAll asks all nodes, this one included, to propose nothing to the shards
// that this node leads, and returns when this one has applied that.
func (n *Node) holdAll() {
	if len(n.cfg.Nodes) == 1 {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { n.hold(n.shard, n.held) })
	for _, s := range n.memory.all {
		wg.Go(func() { n.hold(s.shard, s.held) })
	}
	wg.Wait()
}

func (n *Node) hold(shard *cluster.Shard, held chan struct{}) {
	if shard == nil || shard.Leader().Node != n.cfg.NodeID {
		return
	}
	select {
	case <-held: // of a leader before
	default:
	}
	if _, err := shard.Propose(wire.EncodeHold(uint64(handoverHold.Milliseconds())), handoverHold); err != nil {
		return
	}
	timer := time.NewTimer(handoverHold / 2)
	defer timer.Stop()
	select {
	case <-held:
	case <-timer.C: // no majority: there is nobody to hand over to
	}
}

// explain prefers why the node stopped over its being closed.
func (n *Node) explain(err error) error {
	if err == nil || n.replica == nil {
		return err
	}
	if failure := n.failure(); failure != nil && errors.Is(err, ErrClosed) {
		return fmt.Errorf("%w: %w", err, failure)
	}
	if paused := n.pausedError(); paused != nil && errors.Is(err, ErrNoLeader) {
		return fmt.Errorf("%w: %w", err, paused)
	}
	return err
}

// failure returns why the replica stopped, or nil.
func (n *Node) failure() error {
	err := n.replica.Err()
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrDiskFull) {
		return err
	}
	var e *wire.Error
	full := errors.Is(err, syscall.ENOSPC) || errors.As(err, &e) && sqlite.PrimaryCode(e.Code) == sqlite.CodeFull
	if full {
		return fmt.Errorf("%w: %w; free some space and start the node again", ErrDiskFull, err)
	}
	return err
}

// within bounds operations whose context has no deadline.
func (n *Node) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	return &bounded{ctx, n.cfg.Timeout}, cancel
}

// bounded is a context that says whose bound was reached: the caller has set none.
type bounded struct {
	context.Context
	timeout time.Duration
}

func (b *bounded) Err() error {
	if err := b.Context.Err(); err != context.DeadlineExceeded {
		return err
	}
	return boundError(b.timeout)
}

type boundError time.Duration

func (e boundError) Error() string {
	return fmt.Sprintf("the %v of hiqlite.Config.Timeout are over", time.Duration(e))
}

func (boundError) Is(target error) bool { return target == context.DeadlineExceeded }

// An answer is what the combiner hands out: a result, and where the operation
// waits if it does.
type answer struct {
	wire.Result
	place *place
}

// do has an operation applied, or put into the queue for the write lease.
func (n *Node) do(ctx context.Context, op *wire.Operation) (answer, error) {
	return n.send(ctx, wire.EncodeOperation(op))
}

func (n *Node) send(ctx context.Context, op *wire.EncodedOperation) (answer, error) {
	a, err := n.writes.Load().Do(ctx, op)
	return a, n.explain(err)
}

// linearize waits until this node has applied what was acknowledged before.
func (n *Node) linearize(ctx context.Context) error {
	ctx, cancel := n.within(ctx)
	defer cancel()
	return n.explain(n.shard.ReadIndex(ctx))
}

// codec makes entries of operations.
type codec struct{ node, incarnation uint64 }

// maxOperation bounds an operation, and an entry, in bytes.
const maxOperation = 8 << 20

func (c codec) OpenSession(nonce uint64) []byte {
	return wire.EncodeOpenSession(nonce, c.node, c.incarnation)
}

func (codec) Encode(session, sequence uint64, ops []*wire.EncodedOperation) ([]byte, error) {
	return wire.EncodeEntry(session, sequence, ops), nil
}

func (codec) Size(op *wire.EncodedOperation) int       { return op.Size() }
func (codec) Exclusive(op *wire.EncodedOperation) bool { return op.Vacuum }

// listener hands what the replica tells to the combiner.
type listener struct{ n *Node }

func (l listener) Applied(session, sequence uint64, results []wire.Result) {
	w := l.n.writes.Load()
	if w == nil || w.Session() != session {
		return // another node's
	}
	answers := make([]answer, len(results))
	for i := range results {
		answers[i].Result = results[i]
		if results[i].Lease.State == wire.LeaseQueued {
			answers[i].place = l.n.leases.queued(results[i].Lease.ID)
		}
	}
	w.Applied(session, sequence, answers)
}

// Settled needs no session: nobody else's place has one of these ids.
func (l listener) Settled(_, id uint64, result wire.Result) { l.n.leases.settled(id, result) }

func (l listener) Wanted(held wire.HeldLease) {
	w := l.n.writes.Load()
	switch {
	case w == nil:
	case w.Session() == held.Session:
		l.n.leases.wanted(held)
	default:
		if node, _ := l.n.replica.LeaseHolder(); node == l.n.cfg.NodeID {
			l.n.leases.inherited()
		}
	}
}

func (l listener) Recovered(held wire.HeldLease, waits func(uint64) bool) {
	l.n.leases.recovered(held, waits)
}

func (l listener) SessionOpened(nonce, session uint64) {
	if w := l.n.writes.Load(); w != nil {
		w.SessionOpened(nonce, session)
	}
}

func (l listener) SessionUnknown(session, sequence uint64) {
	if w := l.n.writes.Load(); w != nil {
		w.SessionUnknown(session, sequence)
	}
}

func (l listener) Held(ms uint64) {
	if w := l.n.writes.Load(); w != nil {
		w.Hold(time.Duration(ms) * time.Millisecond)
	}
	select {
	case l.n.held <- struct{}{}:
	default:
	}
}

// Failed stops the replica, whose entry waits for that.
func (l listener) Failed(err error) {
	l.n.cfg.Logger.Error("hiqlite: the node stops taking part", "node", l.n.cfg.NodeID, "error", err)
	l.n.stopOnceStarted(l.n.started, &l.n.shard)
}

// stopOnceStarted stops a shard, which is set once started is closed, if it ever
// is: also while the node closes, or Raft would go on with a replica that cannot.
func (n *Node) stopOnceStarted(started <-chan struct{}, shard **cluster.Shard) {
	select {
	case <-started:
	case <-n.ctx.Done():
		select {
		case <-started:
		default:
			return // there is nothing to stop
		}
	}
	if err := (*shard).Stop(); err != nil {
		n.cfg.Logger.Error("hiqlite: stopping the replica", "error", err)
	}
}
