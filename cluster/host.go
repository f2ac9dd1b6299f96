package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
)

const (
	defaultTick     = 50 * time.Millisecond // with peers: elections after 1-2 s
	defaultLoneTick = 20 * time.Millisecond // alone: leads after 0.1-0.2 s

	// handover bounds how long Close waits for others to take the lead, for
	// all shards together.
	handover = 500 * time.Millisecond

	// maxSendQueue bounds, in bytes, what waits to be sent to a peer. Beyond it
	// messages are dropped, which Raft repeats: a peer that was cut off would
	// otherwise be sent the same entries many times over, all of them in memory.
	maxSendQueue = 16 << 20

	// brokenClose bounds how long Close waits for goroutines that may be stuck in
	// a write to a disk that has failed.
	brokenClose = time.Second

	// saveEvery is how often it is written what peers have acknowledged.
	saveEvery = time.Second
)

// Config describes a Host.
type Config struct {
	Dir     string            // folder of the Raft log; created if missing
	Node    uint64            // id of this node, a key of Members; 1 to 2^32-1
	Members map[uint64]string // node id -> host:port of its Raft listener
	Tick    time.Duration     // Raft's unit of time, whole milliseconds up to 250; 0: 50 ms, a single member 20 ms
	Logger  *slog.Logger      // for this package's own lines; nil: slog.Default()

	// Listen is the host:port on which this node listens; empty: its address in
	// Members. It differs where others reach the node under another address.
	Listen string
}

// validate reports every fault at once.
func (c Config) validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("hiqlite: "+format, args...))
	}
	if c.Dir == "" {
		fault("Config.Dir is empty: name the folder of the Raft log")
	}
	if _, ok := c.Members[c.Node]; !ok {
		fault("this node, %d, is not among the members %v", c.Node, slices.Sorted(maps.Keys(c.Members)))
	}
	seen := map[string]uint64{}
	for _, id := range slices.Sorted(maps.Keys(c.Members)) {
		address := c.Members[id]
		if id == 0 || id > maxNode {
			fault("node id %d is not between 1 and %d", id, uint64(maxNode))
		}
		if len(c.Members) == 1 {
			break // a lone node has no listener: its address does not matter
		}
		if err := checkAddress(address); err != nil {
			fault("the Raft address %q of node %d is not host:port: %w", address, id, err)
		}
		if other, ok := seen[address]; ok {
			fault("nodes %d and %d have the same Raft address %s", other, id, address)
		}
		seen[address] = id
	}
	if c.Listen != "" {
		if _, port, err := net.SplitHostPort(c.Listen); err != nil {
			fault("the listen address %q is not host:port: %w", c.Listen, err)
		} else if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
			fault("the listen address %q has no port between 1 and 65535", c.Listen)
		}
	}
	if c.Tick < 0 || c.Tick%time.Millisecond != 0 || c.Tick > firstAttempt {
		fault("Config.Tick %v is not a whole number of milliseconds up to %v", c.Tick, firstAttempt)
	}
	return errors.Join(faults...)
}

// Check reports what Open would refuse before it touches the folder: faults of
// the Config, and a port that cannot be listened on.
func (c Config) Check() error {
	if err := c.validate(); err != nil || len(c.Members) == 1 {
		return err
	}
	return probePort(c.listenOn())
}

// listenOn returns the address on which this node listens.
func (c Config) listenOn() string { return cmp.Or(c.Listen, c.Members[c.Node]) }

// Host runs the replicas of one node, in one folder. Its methods may be called
// from any goroutine.
type Host struct {
	cfg     Config
	log     *slog.Logger
	reg     *registry
	release func()   // gives the folder back
	memory  sync.Map // id -> true, of the shards in memory
	guard   *guard
	raftLog *raftLog // set by Open
	saving  sync.WaitGroup
	noSave  chan struct{} // closed to end saving
	disk    *diskWatch
	broken  chan struct{} // closed when the disk has failed
	diskErr error         // how the disk failed; read after broken

	ctx context.Context // ends when Close has handed over, or when the disk fails; parent of every shard's
	end context.CancelFunc

	// gate is held for reading around every call of nh: a closed NodeHost has
	// nil fields and would panic. Callers hold it briefly, except for Shard.Start.
	gate sync.RWMutex
	nh   *dragonboat.NodeHost // nil once closed; guarded by gate

	mu      sync.Mutex
	shards  map[uint64]*Shard // those for which Start was called and that were not stopped; guarded by mu
	closing bool              // guarded by mu
	closed  chan struct{}     // closed when Close is done
	err     error             // what Close returned; read after closed
}

// Open starts Raft in cfg.Dir and, when there is more than one member, listens
// on this node's address. It takes tens of milliseconds and starts no replica:
// Shard.Start does. Faults of the Config, the folder or the port are errors that
// say what to do. Only one Host at a time can use a folder.
func Open(cfg Config) (*Host, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	useSlog()
	cfg.Members = maps.Clone(cfg.Members)
	if cfg.Tick == 0 {
		cfg.Tick = defaultTick
		if len(cfg.Members) == 1 {
			cfg.Tick = defaultLoneTick
		}
	}
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	dir, release, err := claimFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Dir = dir
	h := &Host{
		cfg:     cfg,
		log:     cfg.Logger,
		reg:     newRegistry(cfg.Members),
		release: release,
		shards:  map[uint64]*Shard{},
		closed:  make(chan struct{}),
		noSave:  make(chan struct{}),
		broken:  make(chan struct{}),
	}
	h.ctx, h.end = context.WithCancel(context.Background())
	if err := h.open(); err != nil {
		h.end()
		release()
		return nil, err
	}
	return h, nil
}

func (h *Host) open() error {
	former, err := adoptHostname(h.cfg.Dir)
	if err != nil {
		return err
	}
	if former != "" {
		h.log.Info("hiqlite: adopted the Raft folder of another hostname", "dir", h.cfg.Dir, "former", former)
	}
	h.disk = newDiskWatch(h.diskFailed)
	nhc := config.NodeHostConfig{
		NodeHostID:        nodeTarget(h.cfg.Node),
		NodeHostDir:       h.cfg.Dir,
		RTTMillisecond:    uint64(h.cfg.Tick.Milliseconds()),
		RaftAddress:       h.cfg.Members[h.cfg.Node],
		RaftEventListener: leaderListener{h},
		Expert: config.ExpertConfig{
			// Dragonboat's defaults are sized for thousands of shards. Exec
			// and the log's Shards are frozen once a folder is written.
			Engine:              config.EngineConfig{ExecShards: 4, CommitShards: 1, ApplyShards: 4, SnapshotShards: 4, CloseShards: 2},
			LogDB:               config.GetTinyMemLogDBConfig(),
			NodeRegistryFactory: h.reg,
			LogDBFactory:        logFactory{&h.memory, h.disk, h.logCreated},
		},
		MaxSendQueueSize: maxSendQueue,
	}
	nhc.Expert.LogDB.Shards = 4
	if err := checkLogFiles(h.cfg.Dir); err != nil {
		return err
	}
	if h.guard, err = newGuard(h.cfg, h); err != nil {
		return err
	}
	if len(h.cfg.Members) == 1 {
		nhc.Expert.TransportFactory = loneTransport{}
	} else {
		listen := h.cfg.listenOn()
		if err := probePort(listen); err != nil {
			return err
		}
		nhc.Expert.TransportFactory = transportFactory{listenOn: listen, log: h.log, guard: h.guard}
	}
	if h.nh, err = newNodeHost(nhc); err != nil {
		return h.explain(err)
	}
	h.disk.arm()
	h.saving.Go(h.saveAcknowledged)
	return nil
}

// diskFailed ends all shards and stops the exchange of messages with other nodes.
func (h *Host) diskFailed(err error) {
	h.diskErr = fmt.Errorf("%w: %w", ErrDiskFailed, err)
	close(h.broken)
	h.guard.paused.Store(true)
	h.end()
	h.mu.Lock()
	shards := slices.Collect(maps.Values(h.shards))
	h.mu.Unlock()
	for _, s := range shards {
		s.tellFailed(h.diskErr)
	}
}

func (h *Host) logCreated(l *raftLog) { h.raftLog, h.guard.raftLog = l, l }

// saveAcknowledged writes, from time to time, what peers have acknowledged.
func (h *Host) saveAcknowledged() {
	ticker := time.NewTicker(saveEvery)
	defer ticker.Stop()
	for open, failed := true, false; open; {
		select {
		case <-ticker.C:
		case <-h.noSave:
			open = false
		}
		err := h.guard.save()
		if err != nil && !failed {
			h.log.Warn("hiqlite: what other nodes have acknowledged could not be written; trying again", "node", h.cfg.Node, "error", err)
		}
		failed = err != nil
	}
}

// newNodeHost is dragonboat.NewNodeHost without its panics, and without the
// (nil, nil) that it returns after some of them.
func newNodeHost(nhc config.NodeHostConfig) (nh *dragonboat.NodeHost, err error) {
	defer func() {
		if r := recover(); r != nil {
			nh, err = nil, fmt.Errorf("hiqlite: Raft could not start: %v", r)
		}
	}()
	nh, err = dragonboat.NewNodeHost(nhc)
	if nh == nil && err == nil {
		err = errors.New("hiqlite: Raft could not start, and gave no reason (a damaged folder is the usual one)")
	}
	return nh, err
}

// explain adds what a user can do to errors of Dragonboat, some of which come
// from internal packages and are known by their text only.
func (h *Host) explain(err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	switch text := err.Error(); {
	case strings.Contains(text, "failed to lock data directory"):
		hint = "another process has it open: stop that one first"
	case strings.Contains(text, "NodeHostID changed"):
		hint = "it belongs to another node: check the node id"
	case strings.Contains(text, "hard setting"):
		hint = "it was written with other settings (a dragonboat-hard-settings.json in the working folder?)"
	case strings.Contains(text, "shard settings are invalid"):
		hint = "it was started with other members, or another kind of machine"
	}
	if hint == "" && hasLog(h.cfg.Dir) {
		return fmt.Errorf("%w: %s: %w: put back a copy of the data folder, and start this program anew", ErrUnreadable, h.cfg.Dir, err)
	} else if hint == "" {
		return fmt.Errorf("hiqlite: Raft folder %s: %w", h.cfg.Dir, err)
	}
	return fmt.Errorf("hiqlite: Raft folder %s: %w: %s", h.cfg.Dir, err, hint)
}

// probePort finds out whether address can be listened on, before anything is
// written. A name that does not resolve yet is no fault: see transport.Start.
func probePort(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return l.Close()
	case unresolved(err):
		return nil
	}
	return listenError(address, err)
}

// register makes the shard known to the host when it starts.
func (h *Host) register(s *Shard) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return ErrClosed
	}
	if _, ok := h.shards[s.cfg.ID]; ok {
		return fmt.Errorf("hiqlite: shard %d is already started", s.cfg.ID)
	}
	h.shards[s.cfg.ID] = s
	return nil
}

func (h *Host) forget(s *Shard) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shards[s.cfg.ID] == s {
		delete(h.shards, s.cfg.ID)
	}
}

func (h *Host) shard(id uint64) *Shard {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.shards[id]
}

// These methods implement guardedShards.

func (h *Host) damaged(id uint64, err error) {
	if s := h.shard(id); s != nil {
		go s.tellFailed(err) // the caller holds the guard's lock
	}
}

func (h *Host) applied(id uint64) uint64 {
	if s := h.shard(id); s != nil && s.cfg.Applied != nil {
		return s.cfg.Applied()
	}
	return 0
}

func (h *Host) shardName(id uint64) string {
	if s := h.shard(id); s != nil {
		return s.cfg.Name
	}
	return strconv.FormatUint(id, 10)
}

// leaderListener receives leader changes from Dragonboat, from one goroutine.
// It must not block or call the NodeHost.
type leaderListener struct{ h *Host }

var _ raftio.IRaftEventListener = leaderListener{}

func (l leaderListener) LeaderUpdated(info raftio.LeaderInfo) {
	if s := l.h.shard(info.ShardID); s != nil && s.replica == info.ReplicaID {
		s.setLeader(Leader{Node: nodeID(info.LeaderID), Term: info.Term})
	}
}
