package cluster

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	sm "github.com/lni/dragonboat/v4/statemachine"
)

// The life of a shard:
//
//	state     entered by                          what its methods do
//	created   Host.NewShard                       as for a shard without a leader: they wait,
//	                                              and return ErrNoLeader when their context ends
//	starting  Start, StartInMemory                the same
//	running   Start, StartInMemory returned nil   what they say
//	ended     Stop, Host.Close, a Start that      return ErrClosed; Start too
//	          failed, a failure of the disk, the
//	          removal of the replica by Raft
//
// Every state leads to ended, created too, and nothing leads out of it. A state
// is left in the order of the table. The context of the shard says whether it has
// ended, its phase says which of the other states it is in.
type phase int

const (
	created phase = iota
	starting
	running
)

// ShardConfig describes a shard.
type ShardConfig struct {
	ID   uint64
	Name string // in errors and log lines; empty: the id

	// Applied returns the index of the last entry that the machine has applied; nil
	// for a machine in memory, whose state is gone after a restart. It is not called
	// before Start, and must not block.
	Applied func() uint64

	// Failed is called at most once, from a goroutine of its own, when this node's
	// replica must be stopped: with ErrForgotten when the shard's log has lost
	// entries, here or on another node, and with ErrDiskFailed when the disk fails
	// while the host runs. From then on the replica neither gets nor sends messages.
	// It is not called before Start, but may be before Start returns. nil: nobody is
	// told.
	Failed func(err error)
}

// Shard is this node's replica of one replicated log and its machine. Its
// methods may be called from any goroutine, also before it is started. Once it is
// stopped, or its host closed, they return ErrClosed.
type Shard struct {
	host    *Host
	cfg     ShardConfig
	replica uint64

	ctx    context.Context // ends with the shard
	stop   context.CancelFunc
	failed sync.Once // around Failed

	session *client.Session // of no use to machines on disk, but Propose wants one; set before phase is running

	mu      sync.Mutex
	phase   phase         // guarded by mu
	leader  Leader        // guarded by mu
	lost    time.Time     // when no leader was known any more; guarded by mu
	changed chan struct{} // closed and replaced at every change of leader; guarded by mu
}

// NewShard makes a shard that takes no part yet: Start does that. It can be used
// at once, by a Combiner for instance, and behaves like a shard without a leader
// until it is started. A shard that is never started needs no Stop: it ends when
// the host is closed. On a closed host it has ended from the beginning.
func (h *Host) NewShard(cfg ShardConfig) *Shard {
	if cfg.Name == "" {
		cfg.Name = strconv.FormatUint(cfg.ID, 10)
	}
	s := &Shard{
		host:    h,
		cfg:     cfg,
		replica: replicaID(h.cfg.Node),
		changed: make(chan struct{}),
		lost:    time.Now(),
	}
	s.ctx, s.stop = context.WithCancel(h.ctx)
	return s
}

// Bootstrapped reports whether the Raft folder knows this node's replica of the
// shard, that is whether it was ever started in this folder. It is false on a
// closed host.
func (s *Shard) Bootstrapped() bool {
	s.host.gate.RLock()
	defer s.host.gate.RUnlock()
	return s.host.nh != nil && s.host.nh.HasNodeInfo(s.cfg.ID, s.replica)
}

// Start starts this node's replica, with a machine that keeps its state on disk.
// It blocks until the machine is open and the local log is loaded, not until
// there is a leader: WaitLeader does. The members of a shard that starts for the
// first time are those of the Config; later ones come from its log.
//
// A shard can be started once. If Start fails the shard has ended. It returns
// ErrClosed if the shard was stopped, or its host closed, before or meanwhile.
//
// Any error that the machine returns from Open, other than sm.ErrOpenStopped,
// ends the process: check what can fail first.
func (s *Shard) Start(machine sm.IOnDiskStateMachine) error {
	return s.start(func(nh *dragonboat.NodeHost, members map[uint64]string, cfg config.Config) error {
		cfg.WaitReady = true
		return nh.StartOnDiskReplica(members, false, func(uint64, uint64) sm.IOnDiskStateMachine { return machine }, cfg)
	})
}

// StartInMemory is Start for a machine in memory, whose state comes from its own
// snapshots and log. It does not wait until they are read: ReadIndex does. A
// machine that cannot read its snapshot must not return another error than
// sm.ErrSnapshotStopped, and must have the shard stopped first.
func (s *Shard) StartInMemory(machine sm.IConcurrentStateMachine) error {
	s.host.inMemory.Store(s.cfg.ID, true)
	return s.start(func(nh *dragonboat.NodeHost, members map[uint64]string, cfg config.Config) error {
		return nh.StartConcurrentReplica(members, false, func(uint64, uint64) sm.IConcurrentStateMachine { return machine }, cfg)
	})
}

// A starter calls Dragonboat for one kind of machine.
type starter func(nh *dragonboat.NodeHost, members map[uint64]string, cfg config.Config) error

func (s *Shard) start(startReplica starter) error {
	h := s.host
	h.gate.RLock()
	defer h.gate.RUnlock()
	select {
	case <-h.broken:
		return h.diskErr
	default:
	}
	if h.nh == nil || s.ctx.Err() != nil {
		return ErrClosed
	}
	s.mu.Lock()
	again := s.phase != created
	if !again {
		s.phase, s.session = starting, h.nh.GetNoOPSession(s.cfg.ID)
	}
	s.mu.Unlock()
	if again {
		return fmt.Errorf("hiqlite: shard %d is already started", s.cfg.ID)
	}
	if err := h.register(s); err != nil { // before the start: leader events follow
		s.stop()
		return err
	}
	started := make(chan error, 1)
	nh := h.nh // the goroutine may outlive the gate if the disk fails
	go func() { started <- s.callStart(nh, startReplica) }()
	var err error
	select {
	case err = <-started:
		err = h.withHint(err)
	case <-h.broken:
		err = h.diskErr
	}
	if err != nil {
		s.stop()
		h.forget(s)
		return err
	}
	s.mu.Lock()
	ended := s.ctx.Err() != nil
	if !ended {
		s.phase = running
	}
	s.mu.Unlock()
	if ended {
		// Stop came too early to find a replica, or has found it: then this does nothing.
		_ = nh.StopReplica(s.cfg.ID, s.replica)
		h.forget(s)
		return ErrClosed
	}
	return nil
}

// callStart calls Dragonboat, and returns its panics as errors.
func (s *Shard) callStart(nh *dragonboat.NodeHost, startReplica starter) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("hiqlite: shard %d could not start: %v", s.cfg.ID, r)
		}
	}()
	cfg := config.Config{
		ShardID:             s.cfg.ID,
		ReplicaID:           s.replica,
		HeartbeatRTT:        2,
		ElectionRTT:         20,
		CheckQuorum:         true,
		PreVote:             true,
		OrderedConfigChange: true,
		SnapshotEntries:     0, // Compact decides
	}
	configured := s.host.cfg.Members
	if len(configured) == 1 {
		cfg.HeartbeatRTT, cfg.ElectionRTT = 1, 5
	}
	var members map[uint64]string
	if !nh.HasNodeInfo(s.cfg.ID, s.replica) {
		members = make(map[uint64]string, len(configured))
		for node := range configured {
			members[replicaID(node)] = nodeTarget(node)
		}
	} // else the log knows them, and the Config may have changed since
	return startReplica(nh, members, cfg)
}

// Stop ends the shard, and leaves the host and its other shards running: for a
// failure of this node only, such as a full disk. It may be called before and
// during Start, and while the machine's Update blocks. The machine is closed in
// the background, some time after Stop has returned. Idempotent.
func (s *Shard) Stop() error {
	s.mu.Lock() // so that either start sees that the shard has ended, or Stop that it runs
	s.stop()
	phase := s.phase
	s.mu.Unlock()
	h := s.host
	if h.shard(s.cfg.ID) != s {
		return nil // there is no replica, or start stops it
	}
	if phase == running {
		defer h.forget(s) // otherwise start does
	}
	// Close holds the gate, or waits for it, when it stops all replicas itself. Not
	// to wait for it matters: Close may be waiting for a Start whose machine is the
	// caller of Stop.
	if !h.gate.TryRLock() {
		return nil
	}
	defer h.gate.RUnlock()
	select {
	case <-h.broken:
		return nil // Dragonboat may be stuck in a write
	default:
	}
	if h.nh == nil {
		return nil
	}
	if err := h.nh.StopReplica(s.cfg.ID, s.replica); err != nil && !isClosed(err) {
		return err
	}
	return nil
}

// tellFailed calls Failed, once.
func (s *Shard) tellFailed(err error) {
	s.failed.Do(func() {
		if s.cfg.Failed != nil {
			s.cfg.Failed(err)
		}
	})
}
