package hiqlite_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// said keeps what is logged.
type said struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *said) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf.Reset()
}

// lines returns the lines that have all of the texts.
func (s *said) lines(texts ...string) (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.buf.String()) {
		if !containsAll(line, texts) {
			continue
		}
		lines = append(lines, line)
	}
	return lines
}

func containsAll(text string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

// A node that has no majority says so once, with what it waits for, and once when
// that is over. So does the error of Ready.
func TestNoMajorityIsSaidOnce(t *testing.T) {
	t.Parallel()
	log := new(said)
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		if cfg.NodeID == 1 {
			cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
		}
	})
	log.clear()
	c.Stop(1)
	c.Stop(2)
	testrun.WaitFor(t, "the lack of a majority to be said", func() bool { return len(log.lines("no leader")) > 0 })
	line := log.lines("no leader")[0]
	if !containsAll(line, []string{"level=INFO", "node=1", "shard=sql,", "waiting for 1 more of node 2 at " + c.Config(1).Nodes[1].RaftAddr, "node 3 at"}) {
		t.Errorf("it says %s", line)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := c.Node(0).Ready(ctx); !errors.Is(err, hiqlite.ErrNoLeader) || !containsAll(err.Error(), []string{"node 1 is not ready", "sql", "waiting for 1 more of node 2"}) {
		t.Errorf("Ready says %v", err)
	}
	c.Start(1)
	c.WaitReady(0)
	testrun.WaitFor(t, "the end of it to be said", func() bool { return len(log.lines("there is a leader again")) > 0 })
	if n := len(log.lines("no leader")) + len(log.lines("a leader again", "node=1", "leader=", "after=")); n != 2 {
		t.Errorf("%d lines, want 2: %s", n, log.lines(""))
	}
}

// A node that is behind says by how much.
func TestReadySaysWhatIsNotApplied(t *testing.T) {
	gate := make(chan struct{})
	hold := make(chan uint64, 1)
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		cfg.HookApplySQL(func(node uint64) {
			select {
			case n := <-hold:
				if n == node {
					<-gate
					return
				}
				hold <- n
			default:
			}
		})
	})
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	hold <- 3
	c.insert(0, 20)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if err := c.Node(2).Ready(ctx); err == nil || !containsAll(err.Error(), []string{"node 3 is not ready", "shard sql has applied entry ", " of "}) {
		t.Errorf("Ready says %v", err)
	}
	close(gate)
	c.WaitReady(2)
}
