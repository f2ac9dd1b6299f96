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

	"github.com/hiqlite/hiqlite/cluster/transport"
	"github.com/hiqlite/hiqlite/internal/identity"
)

const (
	defaultTick     = 50 * time.Millisecond // with other nodes: elections take 0.8 to 1.6 s
	defaultLoneTick = 20 * time.Millisecond // without: the node leads after 0.1 to 0.2 s

	// transferTime bounds how long Close waits until other nodes lead, for all shards
	// together.
	transferTime = 500 * time.Millisecond

	// maxSendQueue bounds, in bytes, the messages that wait to be sent to one node.
	// Messages beyond it are dropped, and Raft sends them again later. Without the
	// bound, a node that cannot be reached would be sent the same entries many times,
	// and all copies would be kept in memory.
	maxSendQueue = 16 << 20

	// brokenCloseTime bounds how long Close waits for goroutines that may be stuck in
	// a write to a disk that has failed.
	brokenCloseTime = time.Second

	// saveInterval is how often the guard writes its file.
	saveInterval = time.Second
)

// Protocol is what an Identity of a Config has to name as its protocol.
const Protocol = transport.Protocol

// Config describes a Host.
type Config struct {
	Dir     string            // folder of the Raft log; created if missing
	Node    uint64            // id of this node, a key of Members; 1 to 2^32-1
	Members map[uint64]string // node id -> host:port of its Raft listener
	Tick    time.Duration     // Raft's unit of time, whole milliseconds up to 250; 0: 50 ms, or 20 ms for a single member
	Logger  *slog.Logger      // for this package's own lines; nil: slog.Default()

	// Listen is the host:port on which this node listens; empty: its address in
	// Members. It differs from that address where other nodes reach this one through
	// a proxy or a translated address.
	Listen string

	// Identity encrypts and authenticates the connections to other nodes; nil: they
	// are in the clear.
	Identity *identity.Identity

	Hooks transport.Hooks // for tests

	segmentSize int64 // of the Raft log, in bytes; 0: its default; for tests
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
			break // a lone node does not listen, so its address does not matter
		}
		if err := transport.CheckAddress(address); err != nil {
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
	if c.Tick < 0 || c.Tick%time.Millisecond != 0 || c.Tick > firstAttemptTimeout {
		fault("Config.Tick %v is not a whole number of milliseconds up to %v", c.Tick, firstAttemptTimeout)
	}
	return errors.Join(faults...)
}

// Check reports what Open would refuse before it touches the folder: faults of
// the Config, and a port that cannot be listened on.
func (c Config) Check() error {
	if err := c.validate(); err != nil || len(c.Members) == 1 {
		return err
	}
	return transport.ProbePort(c.listenOn())
}

// listenOn returns the address on which this node listens.
func (c Config) listenOn() string { return cmp.Or(c.Listen, c.Members[c.Node]) }

// Host runs this node's replicas of all shards, in one folder. Its methods may be
// called from any goroutine.
type Host struct {
	cfg      Config
	log      *slog.Logger
	net      *transport.Transport // nil for a single member
	release  func()               // lets another Host use the folder
	guard    *guard
	raftLog  *raftLog      // set by Open
	broken   chan struct{} // closed when the disk has failed
	diskErr  error         // how the disk failed; set before broken is closed
	failOnce sync.Once     // of diskFailed

	saver     sync.WaitGroup // the goroutine that writes the guard's file
	stopSaver chan struct{}  // closed to end it

	ctx context.Context // the parent of every shard's context; ends when Close has transferred leadership, or when the disk fails
	end context.CancelFunc

	// gate is held for reading during every call of a method of nh, because a closed
	// NodeHost has nil fields and would panic. Its holders are quick, except for
	// Shard.Start.
	gate sync.RWMutex
	nh   *dragonboat.NodeHost // nil once closed; guarded by gate

	mu       sync.Mutex
	shards   map[uint64]*Shard // that were started and not stopped; guarded by mu
	closing  bool              // Close was called; guarded by mu
	closed   chan struct{}     // closed when Close is done
	closeErr error             // what Close returns; set before closed is closed
}

// Open starts Raft in cfg.Dir. If there is more than one member, it listens on this
// node's address. It takes tens of milliseconds and starts no replica: Shard.Start
// does. What is wrong with the Config, the folder or the port is returned as an
// error that says what to do. Only one Host at a time can use a folder.
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
		cfg:       cfg,
		log:       cfg.Logger,
		release:   release,
		shards:    map[uint64]*Shard{},
		closed:    make(chan struct{}),
		stopSaver: make(chan struct{}),
		broken:    make(chan struct{}),
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
	folder, err := openStorage(h.cfg.Dir)
	if err != nil {
		return err
	}
	nhc := config.NodeHostConfig{
		NodeHostID:        nodeTarget(h.cfg.Node),
		NodeHostDir:       h.cfg.Dir,
		RTTMillisecond:    uint64(h.cfg.Tick.Milliseconds()),
		RaftAddress:       h.cfg.Members[h.cfg.Node],
		RaftEventListener: leaderListener{h},
		Expert: config.ExpertConfig{
			// Dragonboat's defaults are meant for thousands of shards. ExecShards and
			// LogDB.Shards cannot be changed once a folder has been written with them.
			Engine:       config.EngineConfig{ExecShards: 4, CommitShards: 1, ApplyShards: 4, SnapshotShards: 4, CloseShards: 2},
			LogDB:        config.GetTinyMemLogDBConfig(),
			LogDBFactory: logFactory{h.cfg.Dir, folder.file.Name, h},
		},
		MaxSendQueueSize: maxSendQueue,
	}
	nhc.Expert.LogDB.Shards = 4
	if h.guard, err = newGuard(h.cfg, h); err != nil {
		return err
	}
	if err := h.connect(&nhc, folder); err != nil {
		return err
	}
	if h.nh, err = newNodeHost(nhc); err != nil {
		return h.withHint(err)
	}
	h.saver.Go(h.saveGuard)
	return nil
}

// connect sets what makes the connections to other nodes.
func (h *Host) connect(nhc *config.NodeHostConfig, folder *storage) error {
	if len(h.cfg.Members) == 1 {
		nhc.Expert.TransportFactory = loneTransport{}
		nhc.Expert.NodeRegistryFactory = newRegistry(h.cfg.Members, transport.Target)
		return nil
	}
	if err := transport.ProbePort(h.cfg.listenOn()); err != nil {
		return err
	}
	h.net = transport.New(transport.Options{
		Node: h.cfg.Node, Members: h.cfg.Members, Listen: h.cfg.listenOn(),
		Identity: h.cfg.Identity, Storage: folder.file.Name, SameStorage: folder.same, TookPart: func() bool { return h.raftLog.tookPart() },
		NodeOf: nodeID, Guard: h.guard, Dialled: h.guard.peers.dialled,
		Log: h.log, Hooks: h.cfg.Hooks,
	})
	nhc.Expert.TransportFactory = h.net
	nhc.Expert.NodeRegistryFactory = newRegistry(h.cfg.Members, h.net.Address)
	return nil
}

// Refused returns why other nodes keep this one from taking part, or nil if they do
// not: another process with its id does already, or so many refuse this node, for
// whatever reason, that the others are no majority.
func (h *Host) Refused() error {
	if h.net == nil {
		return nil
	}
	by := h.net.Refused()
	var all []error
	final := 2*len(by) >= len(h.cfg.Members)
	for _, node := range slices.Sorted(maps.Keys(by)) {
		var r *transport.Refusal
		final = final || errors.As(by[node], &r) && r.Code == transport.RefusedDuplicate
		all = append(all, by[node])
	}
	if !final {
		return nil
	}
	return errors.Join(all...)
}

// diskFailed ends all shards and stops the exchange of messages with other nodes.
// Only the first call does something.
func (h *Host) diskFailed(err error) { h.failOnce.Do(func() { h.fail(err) }) }

func (h *Host) fail(err error) {
	h.diskErr = fmt.Errorf("%w: %w", ErrDiskFailed, err)
	close(h.broken)
	h.guard.paused.Store(true)
	h.end()
	h.mu.Lock()
	shards := slices.Collect(maps.Values(h.shards))
	h.mu.Unlock()
	for _, s := range shards {
		go s.reportFailed(h.diskErr)
	}
}

func (h *Host) logCreated(l *raftLog) { h.raftLog, h.guard.raftLog = l, l }

// saveGuard writes the guard's file every saveInterval, and once more at the end.
func (h *Host) saveGuard() {
	ticker := time.NewTicker(saveInterval)
	defer ticker.Stop()
	for open, failed := true, false; open; {
		select {
		case <-ticker.C:
		case <-h.stopSaver:
			open = false
		}
		err := h.guard.save()
		if err != nil && !failed {
			h.log.Warn("hiqlite: what other nodes have acknowledged could not be written; trying again", "node", h.cfg.Node, "error", err)
		}
		failed = err != nil
	}
}

// newNodeHost calls dragonboat.NewNodeHost. It returns an error where that panics,
// and where it returns (nil, nil) after it has recovered from a panic itself.
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

// withHint adds to an error of Dragonboat what a user can do about it. Some of the
// errors are defined in internal packages and can be recognised only by their text.
func (h *Host) withHint(err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	switch text := err.Error(); {
	case strings.Contains(text, "failed to lock data directory"):
		hint = "another process has it open: stop that one first"
	case strings.Contains(text, "NodeHostID changed"):
		hint = "it belongs to another node: check the node id"
	case strings.Contains(text, "logdb type changed"):
		hint = "its log was written by an earlier development version and cannot be read any more: start with an empty data folder"
	case strings.Contains(text, "hard setting"):
		hint = "it was written with other settings (a dragonboat-hard-settings.json in the working folder?)"
	case strings.Contains(text, "shard settings are invalid"):
		hint = "it was started with other members, or another kind of machine"
	}
	if errors.Is(err, ErrUnreadable) {
		return err // it has a hint already
	}
	if hint == "" && hasLog(h.cfg.Dir) {
		return fmt.Errorf("%w: %s: %w: put back a copy of the data folder, and start this program anew", ErrUnreadable, h.cfg.Dir, err)
	} else if hint == "" {
		return fmt.Errorf("hiqlite: Raft folder %s: %w", h.cfg.Dir, err)
	}
	return fmt.Errorf("hiqlite: Raft folder %s: %w: %s", h.cfg.Dir, err, hint)
}

// register adds a shard that is being started.
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

// unregister removes a shard that has ended or was not started.
func (h *Host) unregister(s *Shard) {
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
		go s.reportFailed(err) // the caller holds the guard's lock
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

// leaderListener is told by Dragonboat, from one goroutine, who leads. It must not
// block or call the NodeHost.
type leaderListener struct{ h *Host }

var _ raftio.IRaftEventListener = leaderListener{}

func (l leaderListener) LeaderUpdated(info raftio.LeaderInfo) {
	if s := l.h.shard(info.ShardID); s != nil && s.replica == info.ReplicaID {
		s.setLeader(Leader{Node: nodeID(info.LeaderID), Term: info.Term})
	}
}
