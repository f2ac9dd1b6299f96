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

// The states of a shard:
//
//	state     entered by                            what its methods do
//	created   Host.NewShard                         what they do while no leader is known: they wait, and
//	                                                return ErrNoLeader when their context ends
//	starting  a call of Start or StartInMemory      the same
//	running   Start or StartInMemory returned nil   what their comments say
//	ended     Stop; Host.Close; a Start that        return ErrClosed, Start too
//	          failed; a disk that failed; the
//	          removal of the replica by Raft
//
// Each state is followed by the next one of the table or, at any time, by ended.
// Nothing follows ended. The context of the shard says whether it has ended, and
// its phase says which of the other states it is in.
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

	// Applied returns the index of the last entry that the machine has applied. It is
	// nil for a machine in memory, whose state is lost in a restart. It is not called
	// before Start, and must not block.
	Applied func() uint64

	// Failed is called at most once, from a goroutine of its own, when this node's
	// replica must be stopped: with ErrForgotten when the shard's log has lost
	// entries, here or on another node, and with ErrDiskFailed when the disk fails
	// while the host runs. From then on the replica neither gets nor sends messages.
	// It is not called before Start, but it may be called before Start returns. It may
	// be nil.
	Failed func(err error)
}

// Shard is this node's replica of one replicated log and its machine. Its methods
// may be called from any goroutine, also before the shard is started. Once the shard
// has ended they return ErrClosed.
type Shard struct {
	host    *Host
	cfg     ShardConfig
	replica uint64

	ctx    context.Context // ends with the shard
	stop   context.CancelFunc
	failed sync.Once // around the call of ShardConfig.Failed

	reads   sharedReads
	session *client.Session // these machines do not use it, but Propose needs one; set before phase is running

	mu           sync.Mutex
	phase        phase         // guarded by mu
	leader       Leader        // guarded by mu
	leaderLostAt time.Time     // when the shard was made, or the last leader was lost; guarded by mu
	changed      chan struct{} // closed and replaced at every change of leader; guarded by mu
}

// NewShard makes a shard, which takes part in the cluster once it is started. The
// shard can be used at once, for example by a Combiner, and behaves like a shard
// without a leader until it is started. A shard that is never started need not be
// stopped: it ends when the host is closed. If the host is closed already, the shard
// has ended from the beginning.
func (h *Host) NewShard(cfg ShardConfig) *Shard {
	if cfg.Name == "" {
		cfg.Name = strconv.FormatUint(cfg.ID, 10)
	}
	s := &Shard{
		host:         h,
		cfg:          cfg,
		replica:      replicaID(h.cfg.Node),
		changed:      make(chan struct{}),
		leaderLostAt: time.Now(),
	}
	s.ctx, s.stop = context.WithCancel(h.ctx)
	s.reads.ctx, s.reads.ask = s.ctx, s.readIndex
	return s
}

// Bootstrapped reports whether this node's replica of the shard was ever started in
// this Raft folder. It returns false if the host is closed.
func (s *Shard) Bootstrapped() bool {
	s.host.gate.RLock()
	defer s.host.gate.RUnlock()
	return s.host.nh != nil && s.host.nh.HasNodeInfo(s.cfg.ID, s.replica)
}

// Start starts this node's replica, with a machine that keeps its state on disk. It
// blocks until the machine is open and the local log is loaded. It does not wait for
// a leader, as WaitLeader does. When a shard starts for the first time its members
// are those of the Config; afterwards its log says who they are.
//
// A shard can be started once. If Start fails, the shard has ended. Start returns
// ErrClosed if the shard was stopped or its host closed, before the call or during
// it.
//
// If the machine's Open returns an error other than sm.ErrOpenStopped, the process
// ends. The caller checks beforehand what can fail.
func (s *Shard) Start(machine sm.IOnDiskStateMachine) error {
	return s.start(func(nh *dragonboat.NodeHost, members map[uint64]string, cfg config.Config) error {
		cfg.WaitReady = true
		return nh.StartOnDiskReplica(members, false, func(uint64, uint64) sm.IOnDiskStateMachine { return machine }, cfg)
	})
}

// StartInMemory is Start for a machine in memory, whose state is restored from its
// snapshot and log. It does not wait until they are read, as ReadIndex does. A
// machine that cannot read its snapshot must have the shard stopped, and then return
// sm.ErrSnapshotStopped; any other error ends the process.
func (s *Shard) StartInMemory(machine sm.IConcurrentStateMachine) error {
	return s.start(func(nh *dragonboat.NodeHost, members map[uint64]string, cfg config.Config) error {
		return nh.StartConcurrentReplica(members, false, func(uint64, uint64) sm.IConcurrentStateMachine { return machine }, cfg)
	})
}

// A starter starts a replica with one kind of machine.
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
	if err := h.register(s); err != nil { // before the start, to miss no leader event
		s.stop()
		return err
	}
	started := make(chan error, 1)
	nh := h.nh // h.nh may change while the goroutine runs: if the disk fails, start returns first
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
		h.unregister(s)
		return err
	}
	s.mu.Lock()
	ended := s.ctx.Err() != nil
	if !ended {
		s.phase = running
	}
	s.mu.Unlock()
	if ended {
		// If Stop was called before there was a replica, it has stopped nothing.
		_ = nh.StopReplica(s.cfg.ID, s.replica)
		h.unregister(s)
		return ErrClosed
	}
	return nil
}

// callStart calls startReplica and returns its panics as errors.
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
		ElectionRTT:         16, // an election begins after 16 to 32 ticks without a leader
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
	} // otherwise the log has the members, and the Config may have changed
	return startReplica(nh, members, cfg)
}

// Stop ends the shard and leaves the host and its other shards running. It is meant
// for a failure of this node alone, such as a full disk. It may be called before and
// during Start, and while the machine's Update blocks. The machine is closed in the
// background, some time after Stop has returned. Stop is idempotent.
func (s *Shard) Stop() error {
	s.mu.Lock() // so that either start sees that the shard has ended, or Stop that it runs
	s.stop()
	phase := s.phase
	s.mu.Unlock()
	h := s.host
	if h.shard(s.cfg.ID) != s {
		return nil // either there is no replica, or start will stop it
	}
	if phase == running {
		defer h.unregister(s) // otherwise start does
	}
	// If the gate is not free, Close holds it or waits for it, and will stop all
	// replicas itself. Stop must not wait for Close, because Close may be waiting for a
	// Start whose machine is calling Stop.
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

// reportFailed calls ShardConfig.Failed, once.
func (s *Shard) reportFailed(err error) {
	s.failed.Do(func() {
		if s.cfg.Failed != nil {
			s.cfg.Failed(err)
		}
	})
}
