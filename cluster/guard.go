package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/lni/dragonboat/v4/raftpb"
)

// ErrForgotten: a Raft log has lost entries that it once had, here or on other
// nodes: an older copy of a folder was put back, or a disk lost what it had
// confirmed. Raft's promises do not hold for such a node, so its replica stops.
var ErrForgotten = errors.New("hiqlite: a Raft log has lost entries that it had")

// putBack is what to do about it.
const putBack = "on all nodes, put back copies of the data folders that were made while all nodes were stopped; until then this node takes no part"

// A guard looks at all messages between this node and the others, for signs
// that a log has lost what it had. Raft trusts every log to keep what it has
// acknowledged: it would overwrite committed entries without a word, or end the
// process.
//
//	seen                                              means                        then
//	a heartbeat that says this log holds more         this log has forgotten       this replica stops
//	an entry that differs from a committed one here   the others, or this one      this replica stops
//	a read index below what was applied here          the others, or this one      this replica stops
//	a vote or refusal of a peer whose log ends        the peer has forgotten       the message is dropped,
//	  before what it acknowledged                                                    and heartbeats tell the peer
//	a candidate's last entry that cannot be           the candidate's log is of    the message is dropped
//	  where another one is committed here               another history
//
// What peers have acknowledged, and is committed, is written to a file at most
// once a second, with what is committed here: a peer, or a file of this log, that
// forgot less than that is not noticed after a restart of this node.
type guard struct {
	node  uint64
	path  string // of the file
	log   *slog.Logger
	known guardedShards

	raftLog *raftLog // set before any message; of the log factory

	paused atomic.Bool // nothing goes in or out
	peers  peers

	mu     sync.Mutex
	shards map[uint64]*guardedShard // guarded by mu
	saved  knowledge                // guarded by mu: what the file says
}

// guardedShards is what a guard needs of the host's shards. It calls the methods
// while it holds its lock, so they must not block.
type guardedShards interface {
	damaged(shard uint64, err error) // the shard's log turned out to have lost entries
	applied(shard uint64) uint64     // index of the last entry that the machine on disk has applied; 0 for others
	shardName(shard uint64) string
}

// knowledge is what the file says.
type knowledge struct {
	// Acknowledged is, by shard and replica, the last committed entry that the
	// replica has acknowledged to this node as the leader.
	Acknowledged map[uint64]map[uint64]uint64
	// Committed is, by shard, an entry that is committed and in this log.
	Committed map[uint64]uint64
}

type guardedShard struct {
	acked     map[uint64]uint64           // replica -> index of the last committed entry that it has acknowledged
	answered  map[uint64]time.Time        // replica -> when its last heartbeat response was let through
	asked     map[raftpb.SystemCtx]uint64 // read index asked for -> index applied here before
	forgetful map[uint64]bool             // replicas about which it was said
	returns   uint64                      // how often replicas answered for the first time, or again
	failed    bool                        // this replica is damaged: nothing goes in or out
}

// mostAsked bounds the read indexes that are remembered; those forgotten are
// not checked.
const mostAsked = 4096

// answersEvery is the least time between two plain heartbeat responses of a
// replica. A leader answers each with what it takes the replica to lack: a
// burst of them, after a network was cut, would have it send the same again and
// again.
const answersEvery = 20 * time.Millisecond

// silence is how long a replica says nothing before its next answer counts as a
// return.
const silence = 2 * time.Second

const acknowledgedFile = "acknowledged.json"

func newGuard(cfg Config, known guardedShards) (*guard, error) {
	g := &guard{
		node: cfg.Node, path: filepath.Join(cfg.Dir, acknowledgedFile), log: cfg.Logger,
		known: known, shards: map[uint64]*guardedShard{},
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
		maps.Copy(g.shard(shard).acked, replicas)
	}
	return g, nil
}

// shard returns what is known of a shard. The caller holds mu, or is alone.
func (g *guard) shard(id uint64) *guardedShard {
	s := g.shards[id]
	if s == nil {
		s = &guardedShard{acked: map[uint64]uint64{}, answered: map[uint64]time.Time{}, asked: map[raftpb.SystemCtx]uint64{}, forgetful: map[uint64]bool{}}
		g.shards[id] = s
	}
	return s
}

// save writes the file, if there is anything new.
func (g *guard) save() error {
	now := knowledge{map[uint64]map[uint64]uint64{}, g.raftLog.committed()}
	g.mu.Lock()
	for shard, s := range g.shards {
		if len(s.acked) > 0 {
			now.Acknowledged[shard] = maps.Clone(s.acked)
		}
	}
	for shard, index := range g.saved.Committed { // of shards that are not started
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

// had returns an entry that the file says is committed and in this log.
func (g *guard) had(shard uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.saved.Committed[shard]
}

// received takes out of a batch what Raft must not see.
func (g *guard) received(batch *raftpb.MessageBatch) {
	if g.paused.Load() {
		batch.Requests = nil
		return
	}
	g.peers.hear(batch.Requests)
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := batch.Requests[:0]
	for i := range batch.Requests {
		if g.admit(&batch.Requests[i]) {
			kept = append(kept, batch.Requests[i])
		}
	}
	batch.Requests = kept
}

// admit looks at a message that has arrived. The caller holds mu.
func (g *guard) admit(m *raftpb.Message) bool {
	s := g.shard(m.ShardID)
	if s.failed {
		return false
	}
	log, known := g.raftLog.end(m.ShardID)
	if !known {
		return true // Raft does not know the shard either
	}
	switch m.Type {
	case raftpb.Heartbeat:
		if m.Commit > log.last {
			return g.fail(s, m.ShardID, fmt.Errorf("%w: node %d knows that this node had entry %d, but the log ends at %d: %s",
				ErrForgotten, nodeID(m.From), m.Commit, log.last, putBack))
		}
	case raftpb.Replicate:
		if index, differs := g.differs(m, log); differs {
			return g.fail(s, m.ShardID, fmt.Errorf("%w: node %d, which leads, sends another entry %d than the one that was committed here: %s",
				ErrForgotten, nodeID(m.From), index, putBack))
		}
	case raftpb.ReadIndexResp:
		ctx := raftpb.SystemCtx{Low: m.Hint, High: m.HintHigh}
		applied := s.asked[ctx]
		delete(s.asked, ctx)
		if m.LogIndex < applied {
			return g.fail(s, m.ShardID, fmt.Errorf("%w: node %d, which leads, takes entry %d for the last committed one, but entry %d was applied here: %s",
				ErrForgotten, nodeID(m.From), m.LogIndex, applied, putBack))
		}
	case raftpb.RequestVote, raftpb.RequestPreVote:
		return g.remembers(s, m, m.LogIndex, log) && g.sameHistory(s, m, log)
	case raftpb.ReplicateResp:
		return !m.Reject || g.remembers(s, m, m.Hint, log)
	case raftpb.HeartbeatResp:
		now, before := time.Now(), s.answered[m.From]
		if m.Hint == 0 && now.Sub(before) < answersEvery {
			return false
		}
		if now.Sub(before) > silence {
			s.returns++
		}
		s.answered[m.From] = now
	}
	return true
}

// differs compares a leader's entries with those that are committed here. One
// that is late, of an earlier term, may well have sent others.
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

// remembers reports whether a peer's log, which ends at an index, still holds
// what the peer has acknowledged.
func (g *guard) remembers(s *guardedShard, m *raftpb.Message, end uint64, log logEnd) bool {
	had := min(s.acked[m.From], log.committed)
	if end >= had {
		return true
	}
	if !s.forgetful[m.From] {
		s.forgetful[m.From] = true
		g.log.Error("hiqlite: another node's Raft log has lost entries that it had; it gets no vote from this node",
			"node", g.node, "other", nodeID(m.From), "shard", g.known.shardName(m.ShardID), "ends", end, "had", had)
	}
	return false
}

// sameHistory reports whether a candidate's last entry may be of the history
// that this log is of. One of a later term, at an index where another one is
// committed here, is not: that later leader would have had the committed one.
func (g *guard) sameHistory(s *guardedShard, m *raftpb.Message, log logEnd) bool {
	if m.LogIndex > log.committed {
		return true
	}
	term, ok := g.raftLog.term(m.ShardID, m.LogIndex)
	last, known := g.raftLog.term(m.ShardID, log.last)
	if !ok || !known || term == m.LogTerm || m.LogTerm <= last {
		return true
	}
	if !s.forgetful[m.From] {
		s.forgetful[m.From] = true
		g.log.Error("hiqlite: another node's Raft log has another entry than the one that was committed here; it gets no vote from this node",
			"node", g.node, "other", nodeID(m.From), "shard", g.known.shardName(m.ShardID), "entry", m.LogIndex)
	}
	return false
}

// fail ends this node's part in a shard.
func (g *guard) fail(s *guardedShard, shard uint64, err error) bool {
	s.failed = true
	g.known.damaged(shard, err)
	return false
}

// sending looks at messages on their way out, and returns those that may go.
func (g *guard) sending(all []raftpb.Message) []raftpb.Message {
	if g.paused.Load() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := make([]raftpb.Message, 0, len(all))
	for _, m := range all { // copies: Raft keeps its own
		s := g.shard(m.ShardID)
		if s.failed {
			continue
		}
		switch m.Type {
		case raftpb.Heartbeat:
			// Commit is what the replica has acknowledged, as far as it is
			// committed. A leader forgets that when it is elected anew.
			switch had := s.acked[m.To]; {
			case m.Commit > had:
				s.acked[m.To] = m.Commit
			case m.Commit < had:
				if log, ok := g.raftLog.end(m.ShardID); ok {
					m.Commit = max(m.Commit, min(had, log.committed))
				}
			}
		case raftpb.ReadIndex:
			if len(s.asked) >= mostAsked {
				clear(s.asked)
			}
			s.asked[raftpb.SystemCtx{Low: m.Hint, High: m.HintHigh}] = g.known.applied(m.ShardID)
		}
		kept = append(kept, m)
	}
	return kept
}

// Pause makes the node as good as cut off from the others, until Resume: what it
// leads others will lead, and nothing is added to its logs but what it proposes
// itself. Reads of its machines go on.
func (h *Host) Pause() { h.guard.paused.Store(true) }

// Resume ends what Pause began: the node takes part again.
func (h *Host) Resume() { h.guard.paused.Store(false) }

// Returns counts how often, as long as this node leads the shard, other replicas
// of it answered for the first time, or again after a silence.
func (s *Shard) Returns() uint64 {
	g := s.host.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shard(s.cfg.ID).returns
}
