package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/lni/dragonboat/v4/raftpb"
)

// ErrForgotten: a Raft log has lost entries that it once had, on this node or on
// others: an older copy of a folder was put back, or a disk has lost what it had
// confirmed. Raft's guarantees do not hold for such a node, so its replica stops.
var ErrForgotten = errors.New("hiqlite: a Raft log has lost entries that it had")

// putBackHint says what a user can do about ErrForgotten.
const putBackHint = "on all nodes, put back copies of the data folders that were made while all nodes were stopped; until then this node takes no part"

// A guard is a transport.Guard: it inspects all messages between this node and the
// others for signs that a log has lost entries. Raft relies on every log to keep what it
// has acknowledged. Without the guard, Raft would silently overwrite committed entries,
// or end the process.
//
//	what the guard sees                               what it means                what the guard does
//	a heartbeat says that this log has more entries   this log has lost entries    stops this replica
//	  than it has
//	an entry differs from the one that is committed   the other logs, or this      stops this replica
//	  here at its index                                 one, have lost entries
//	a read index is lower than what was applied       the other logs, or this      stops this replica
//	  here before it was asked for                      one, have lost entries
//	a vote request or a rejection says that a         the other node's log has     drops the message, and lets
//	  node's log ends before what the node has          lost entries, or the         heartbeats tell the node;
//	  acknowledged                                      message is late              logs it if it is not late
//	a candidate's last entry cannot belong to a       the candidate's log has      drops the message
//	  history with the entry that is committed here     another history
//
// At most once a second, the guard writes to a file what other nodes have
// acknowledged, of the entries that are committed, and which entries are committed
// here. If a log loses entries that were acknowledged or committed after the last
// write before a restart of this node, the guard does not notice it.
type guard struct {
	node   uint64
	path   string // of the file
	log    *slog.Logger
	shards guardedShards

	raftLog *raftLog // set by the log factory, before the first message

	paused atomic.Bool // all messages are dropped
	peers  peers

	mu     sync.Mutex
	states map[uint64]*guardState // by shard; guarded by mu
	saved  guardFile              // what the file holds; guarded by mu
}

// guardedShards is what a guard needs of the host's shards. The guard calls the
// methods while it holds its lock, so they must not block.
type guardedShards interface {
	damaged(shard uint64, err error) // a log of the shard has lost entries: this replica must stop
	applied(shard uint64) uint64     // index of the last entry that the machine on disk has applied; 0 for other machines
	shardName(shard uint64) string
}

// guardFile is the content of the guard's file.
type guardFile struct {
	// Acknowledged has, by shard and replica, the index of the last committed entry
	// that the replica has acknowledged to this node while this node was the leader.
	Acknowledged map[uint64]map[uint64]uint64
	// Committed has, by shard, the index of an entry that is committed and in this
	// node's log.
	Committed map[uint64]uint64
}

// guardState is what a guard knows about a shard.
type guardState struct {
	acknowledged map[uint64]acknowledged     // by replica
	answeredAt   map[uint64]time.Time        // replica -> when its last heartbeat response was let through
	asked        map[raftpb.SystemCtx]uint64 // a read index that was asked for -> index applied here before; at most maxAsked
	reported     map[uint64]bool             // replicas whose lost entries were logged
	late         int                         // messages that were dropped because they were late
	returns      uint64                      // see Shard.Returns
	failed       bool                        // this replica is damaged: all messages of the shard are dropped
}

const (
	// maxAsked bounds how many read indexes are remembered. When there are more, all
	// are forgotten and their answers are not checked.
	maxAsked = 4096

	// minAnswerInterval is the least time between two plain heartbeat responses of a
	// replica that are let through. A leader reacts to each with the entries that it
	// believes the replica lacks. After a network was cut, heartbeat responses arrive
	// in a burst, and the leader would send the same entries again for each.
	minAnswerInterval = 20 * time.Millisecond

	// silentTime is how long a replica must have been silent for its next answer to
	// count as a return.
	silentTime = 2 * time.Second

	guardFileName = "acknowledged.json"
)

func newGuard(cfg Config, shards guardedShards) (*guard, error) {
	g := &guard{
		node: cfg.Node, path: filepath.Join(cfg.Dir, guardFileName), log: cfg.Logger,
		shards: shards, states: map[uint64]*guardState{},
	}
	data, err := os.ReadFile(g.path)
	if errors.Is(err, fs.ErrNotExist) {
		return g, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &g.saved)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w: put back a copy of the data folder", ErrUnreadable, g.path, err)
	}
	for shard, replicas := range g.saved.Acknowledged {
		for replica, index := range replicas {
			g.state(shard).acknowledged[replica] = acknowledged{index: index}
		}
	}
	return g, nil
}

// state returns what is known about a shard. The caller holds mu, or no other
// goroutine has the guard yet.
func (g *guard) state(shard uint64) *guardState {
	s := g.states[shard]
	if s == nil {
		s = &guardState{acknowledged: map[uint64]acknowledged{}, answeredAt: map[uint64]time.Time{}, asked: map[raftpb.SystemCtx]uint64{}, reported: map[uint64]bool{}}
		g.states[shard] = s
	}
	return s
}

// save writes the file, if its content has changed. Only one goroutine calls it.
func (g *guard) save() error {
	now := guardFile{map[uint64]map[uint64]uint64{}, g.raftLog.committed()}
	g.mu.Lock()
	for shard, s := range g.states {
		for replica, a := range s.acknowledged {
			if now.Acknowledged[shard] == nil {
				now.Acknowledged[shard] = map[uint64]uint64{}
			}
			now.Acknowledged[shard][replica] = a.index
		}
	}
	for shard, index := range g.saved.Committed { // keeps shards that are not started
		now.Committed[shard] = max(now.Committed[shard], index)
	}
	same := reflect.DeepEqual(now, g.saved)
	g.mu.Unlock()
	if same {
		return nil
	}
	data, err := json.Marshal(now)
	if err == nil {
		err = durable.WriteFile(g.path, data)
	}
	if err == nil {
		g.mu.Lock()
		g.saved = now
		g.mu.Unlock()
	}
	return err
}

// committed returns the index of an entry that is committed and in this node's log,
// according to the file.
func (g *guard) committed(shard uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.saved.Committed[shard]
}

// Received removes from a batch the messages that Raft must not see.
func (g *guard) Received(batch *raftpb.MessageBatch) {
	if g.paused.Load() {
		batch.Requests = nil
		return
	}
	g.peers.received(batch.Requests)
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := batch.Requests[:0]
	for i := range batch.Requests {
		if g.letThrough(&batch.Requests[i]) {
			kept = append(kept, batch.Requests[i])
		}
	}
	batch.Requests = kept
}

// letThrough reports whether Raft may see a message that was received. The caller
// holds mu.
func (g *guard) letThrough(m *raftpb.Message) bool {
	s := g.state(m.ShardID)
	if s.failed {
		return false
	}
	log, known := g.raftLog.end(m.ShardID)
	if !known {
		return true // the shard is not started, so Raft ignores the message
	}
	switch m.Type {
	case raftpb.Heartbeat:
		if m.Commit > log.last {
			return g.fail(s, m.ShardID, fmt.Errorf("%w: node %d knows that this node had entry %d, but the log ends at %d: %s",
				ErrForgotten, nodeID(m.From), m.Commit, log.last, putBackHint))
		}
	case raftpb.Replicate:
		if index, differs := g.differs(m, log); differs {
			return g.fail(s, m.ShardID, fmt.Errorf("%w: node %d, which leads, sends another entry %d than the one that was committed here: %s",
				ErrForgotten, nodeID(m.From), index, putBackHint))
		}
	case raftpb.ReadIndexResp:
		ctx := raftpb.SystemCtx{Low: m.Hint, High: m.HintHigh}
		applied := s.asked[ctx]
		delete(s.asked, ctx)
		if m.LogIndex < applied {
			return g.fail(s, m.ShardID, fmt.Errorf("%w: node %d, which leads, takes entry %d for the last committed one, but entry %d was applied here: %s",
				ErrForgotten, nodeID(m.From), m.LogIndex, applied, putBackHint))
		}
	case raftpb.RequestVote, raftpb.RequestPreVote:
		return g.hasAcknowledged(s, m, m.LogIndex, log) && g.sameHistory(s, m, log)
	case raftpb.ReplicateResp:
		return !m.Reject || g.hasAcknowledged(s, m, m.Hint, log)
	case raftpb.HeartbeatResp:
		now, before := time.Now(), s.answeredAt[m.From]
		if m.Hint == 0 && now.Sub(before) < minAnswerInterval { // one with a hint confirms a read index
			return false
		}
		if now.Sub(before) > silentTime {
			s.returns++
		}
		s.answeredAt[m.From] = now
	}
	return true
}

// differs compares the entries that a leader sends with those that are committed
// here. A message of an earlier term is not compared: it is late, and its sender
// may have had entries that were never committed.
func (g *guard) differs(m *raftpb.Message, log logEnd) (index uint64, differs bool) {
	if m.LogIndex > log.committed || m.Term < log.term {
		return 0, false
	}
	if term, ok := g.raftLog.term(m.ShardID, m.LogIndex); ok && term != m.LogTerm {
		return m.LogIndex, true
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Index > log.committed {
			break
		}
		if term, ok := g.raftLog.term(m.ShardID, e.Index); ok && term != e.Term {
			return e.Index, true
		}
	}
	return 0, false
}

// hasAcknowledged reports whether another node's log, which ends at an index, has all
// that the node has acknowledged. If it has not, the message is either late, and Raft
// does not need it, or the log has lost entries, which is logged.
func (g *guard) hasAcknowledged(s *guardState, m *raftpb.Message, end uint64, log logEnd) bool {
	a := s.acknowledged[m.From]
	had := min(a.index, log.committed)
	if end >= had {
		return true
	}
	if !a.provesLoss(m, end, log.committed, time.Now()) {
		s.late++
		return false
	}
	if !s.reported[m.From] {
		s.reported[m.From] = true
		g.log.Error("hiqlite: another node's Raft log has lost entries that it had; it gets no vote from this node",
			"node", g.node, "other", nodeID(m.From), "shard", g.shards.shardName(m.ShardID), "ends", end, "had", had)
	}
	return false
}

// sameHistory reports whether a candidate's last entry can be part of the same
// history as this log. It cannot if its term is later than that of this log's last
// entry and another entry is committed here at its index: the leader of that term
// would have had the committed entry.
func (g *guard) sameHistory(s *guardState, m *raftpb.Message, log logEnd) bool {
	if m.LogIndex > log.committed {
		return true
	}
	term, ok := g.raftLog.term(m.ShardID, m.LogIndex)
	last, known := g.raftLog.term(m.ShardID, log.last)
	if !ok || !known || term == m.LogTerm || m.LogTerm <= last {
		return true
	}
	if !s.reported[m.From] {
		s.reported[m.From] = true
		g.log.Error("hiqlite: another node's Raft log has another entry than the one that was committed here; it gets no vote from this node",
			"node", g.node, "other", nodeID(m.From), "shard", g.shards.shardName(m.ShardID), "entry", m.LogIndex)
	}
	return false
}

// fail drops all further messages of a shard and reports the damage. It returns
// false, for letThrough.
func (g *guard) fail(s *guardState, shard uint64, err error) bool {
	s.failed = true
	g.shards.damaged(shard, err)
	return false
}

// Sending returns, of messages that Raft sends, those that may be sent. It raises
// the commit index of a heartbeat to what the receiver has acknowledged, so that a
// node that has lost entries notices it.
func (g *guard) Sending(all []raftpb.Message) []raftpb.Message {
	if g.paused.Load() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := make([]raftpb.Message, 0, len(all))
	for _, m := range all { // m is a copy: Raft's own messages are not changed
		s := g.state(m.ShardID)
		if s.failed {
			continue
		}
		switch m.Type {
		case raftpb.Heartbeat:
			// Raft sets Commit to the last committed entry that the replica has
			// acknowledged to this leader. A new leader does not know yet what replicas
			// acknowledged before.
			a := s.acknowledged[m.To].add(m.Commit, m.Term, time.Now())
			s.acknowledged[m.To] = a
			if log, ok := g.raftLog.end(m.ShardID); ok && m.Commit < a.index {
				m.Commit = max(m.Commit, min(a.index, log.committed))
			}
		case raftpb.ReadIndex:
			if len(s.asked) >= maxAsked {
				clear(s.asked)
			}
			s.asked[raftpb.SystemCtx{Low: m.Hint, High: m.HintHigh}] = g.shards.applied(m.ShardID)
		}
		kept = append(kept, m)
	}
	return kept
}

// Paused reports whether all messages are dropped.
func (g *guard) Paused() bool { return g.paused.Load() }

// Pause drops all messages from and to other nodes until Resume, as if the network
// were cut: other nodes will lead the shards that this node leads, and only what
// this node proposes itself is added to its logs. Reads of the machines go on.
func (h *Host) Pause() { h.guard.paused.Store(true) }

// Resume ends a Pause.
func (h *Host) Resume() { h.guard.paused.Store(false) }

// Returns counts how often other replicas answered this node, as the leader, for
// the first time, or for the first time after a silence. A leader that sees the
// count increase knows that a replica has come back.
func (s *Shard) Returns() uint64 {
	g := s.host.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state(s.cfg.ID).returns
}
